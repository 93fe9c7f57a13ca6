"""Closed-loop users against a fake server, directly and through a gateway: nothing is lost, whatever happens."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
from fake_triton import FakeTriton, ModelError, plan, words
from tritonclient.grpc import service_pb2

from erlab import users
from erlab.errors import ErlabError
from erlab.results import records
from erlab.routing import PromptRouter


def workers():
    return [p for p in psutil.Process().children() if "erlab.users.worker" in p.cmdline()]


def complete(rows, requests):
    """Exactly one row a request, in order."""
    expected = [(u, t, r.prompt_id) for u, mine in enumerate(requests) for t, r in enumerate(mine)]
    return [(row["user"], row["turn"], row["prompt_id"]) for row in rows] == expected


def check_loop(rows):
    """Each user waits for an answer before its next request."""
    for row in rows:
        times = [row["t_submit"], row["t_routed"], row["t_first"], row["t_last"]]
        assert [t for t in times if t is not None] == sorted(t for t in times if t is not None)
        assert row["t_submit"] >= 0
    for row, following in zip(rows, rows[1:]):
        if row["user"] == following["user"]:
            assert following["t_submit"] >= row["t_last"]


class Crowd:
    """A model that waits until `size` requests have arrived, then answers all, one word per response."""

    def __init__(self, size):
        self.size, self.here, self.all_here = size, 0, asyncio.Event()

    async def __call__(self, request):
        self.here += 1
        if self.here == self.size:
            self.all_here.set()
        await self.all_here.wait()
        for word in words(request):
            yield word


@pytest.mark.parametrize("processes", [1, 2])
def test_all_users_start_together_and_never_more_than_they_are(tmp_path, processes):
    requests = plan("one two three", "four", "five six", users=20)
    with FakeTriton({"m": Crowd(20)}) as fake:
        seen = []
        rows = users.run(fake.address, ("m",), requests, timeout=20, processes=processes, progress=seen.append)
        assert fake.most_in_flight["m"] == 20 and len(fake.received) == 60
    assert seen == list(range(1, 61))
    assert complete(rows, requests)
    check_loop(rows)
    assert [row["output_tokens"] for row in rows] == [3, 1, 2] * 20
    assert {row["status"] for row in rows} == {"ok"}
    assert all(len(row["token_times"]) == row["output_tokens"] for row in rows)
    assert all(row["expert"] is None and row["t_routed"] is None for row in rows)
    run = {"run_id": "r", "system": "C", "source": "measured", "users": 20}
    records.write(tmp_path / "r.parquet", [row | run for row in rows], run)
    assert len(records.read(tmp_path / "r.parquet").requests) == 60


def test_user_i_always_sends_to_replica_i_mod_n(fake):
    requests = plan("one", "two", users=5)
    assert complete(users.run(fake.address, ("expert_0", "expert_1"), requests, timeout=20), requests)
    asked = sorted(service_pb2.ModelInferRequest.FromString(data).model_name for data in fake.received)
    assert asked == ["expert_0"] * 6 + ["expert_1"] * 4


def test_a_request_that_names_its_model_goes_to_that_model(fake):
    [[first, second]] = plan("one", "two", users=1)
    requests = [[first, replace(second, model="expert_1")]]
    assert complete(users.run(fake.address, ("expert_0",), requests, timeout=20), requests)
    asked = [service_pb2.ModelInferRequest.FromString(data).model_name for data in fake.received]
    assert asked == ["expert_0", "expert_1"]


def test_rows_name_the_gateways_decision(gateway, router_folder):
    texts = ["boil the pasta", "the court and the law", "butter"]
    requests = plan(*texts, users=4)
    rows = users.run(gateway.address, ("router",), requests, timeout=20)
    assert complete(rows, requests)
    check_loop(rows)
    routing = PromptRouter.load(router_folder).route(texts)
    for row in rows:
        cluster = routing.cluster[row["turn"]]
        assert (row["status"], row["cluster"], row["expert"]) == ("ok", cluster, f"expert_{cluster}")
        assert row["distance"] == pytest.approx(routing.distance[row["turn"]])
        assert row["policy"] == "nearest" and row["t_routed"] is not None


@pytest.mark.parametrize("through", ["direct", "gateway"])
def test_each_failure_has_its_row_and_the_user_goes_on(request, fake, through):
    requests = plan("fail", "one", "abort", "nothing", "hang", "half", "two", users=3)
    if through == "direct":
        rows = users.run(fake.address, ("expert_0",), requests, timeout=3)
    else:
        rows = users.run(request.getfixturevalue("gateway").address, ("router",), requests, timeout=3)
        assert all(row["expert"] in ("expert_0", "expert_1") for row in rows)
    assert complete(rows, requests)
    check_loop(rows)
    for mine in (rows[i : i + 7] for i in (0, 7, 14)):
        assert [row["status"] for row in mine] == ["error", "ok", "error", "error", "timeout", "error", "ok"]
        assert [row["output_tokens"] for row in mine] == [0, 1, 0, 0, 1, 1, 1]
        assert "out of memory" in mine[0]["error"]
        assert "UNAVAILABLE: connection reset" in mine[2]["error"] and "UNAVAILABLE" in mine[5]["error"]
        assert "without an answer" in mine[3]["error"]
        assert "DEADLINE_EXCEEDED" in mine[4]["error"]
        assert 2.9e9 < mine[4]["t_last"] - mine[4]["t_submit"] < 60e9
    fake.wait(lambda: fake.in_flight.total() == 0)


def _hanging(fake):
    return sum(b"hang" in data for data in fake.received)


def when(fake, condition, action):
    """Run `action` in another thread as soon as the server sees `condition`."""
    thread = threading.Thread(target=lambda: (fake.wait(condition), action()), daemon=True)
    thread.start()
    return thread


def test_a_gateway_killed_mid_run_leaves_every_row(fake, gateway):
    requests = plan("one two", "hang", "three", users=8)
    killing = when(fake, lambda: _hanging(fake) == 8, lambda: os.kill(gateway.pid, 9))
    rows = users.run(gateway.address, ("router",), requests, timeout=60)
    killing.join()
    assert complete(rows, requests)
    check_loop(rows)
    assert [row["status"] for row in rows] == ["ok", "error", "error"] * 8
    assert all("UNAVAILABLE" in row["error"] for row in rows if row["status"] == "error")


def test_a_killed_process_of_users_leaves_every_row(fake):
    requests = plan("one", "hang", "two", users=4)
    # Each process has two of the users; those of the one that stays end by their deadline.
    killing = when(fake, lambda: _hanging(fake) == 4, lambda: workers()[0].kill())
    rows = users.run(fake.address, ("expert_0",), requests, timeout=3, processes=2)
    killing.join()
    assert complete(rows, requests)
    lost = [row for row in rows if row["error"] and "user's process ended" in row["error"]]
    assert len({row["user"] % 2 for row in lost}) == 1 and {row["turn"] for row in lost} >= {1, 2}
    others = [row["status"] for row in rows if row["user"] % 2 != lost[0]["user"] % 2]
    assert others == ["ok", "timeout", "ok"] * 2


def test_refused_requests_of_a_server_that_stamps_kill_no_process_of_users():
    """One dead expert of three among 300 users."""

    async def stamps(request):
        for i in range(3):
            now = time.monotonic_ns()
            yield f"{i} {now} {now}"

    async def dead(request):
        raise ModelError("Failed to process the request: Stub process 'm1' is not healthy.")
        yield

    requests = plan("one", "two", users=300)
    with FakeTriton({"m0": stamps, "m1": dead, "m2": stamps}) as fake:
        rows = users.run(fake.address, ("m0", "m1", "m2"), requests, timeout=60, stamped=True)
    assert complete(rows, requests)
    for row in rows:
        served = row["user"] % 3 != 1
        expected = ("ok", 3, 3) if served else ("error", 0, 0)
        assert (row["status"], row["output_tokens"], len(row["added_ns"])) == expected
        assert served or "is not healthy" in row["error"]


SERVER = """
import asyncio, sys
from fake_triton import FakeTriton, obedient, words

async def paced(request):
    for word in words(request):
        await asyncio.sleep(0.05)
        yield word

with FakeTriton({"obedient": obedient, "paced": paced}) as fake:
    print(fake.address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def server():
    """A server in a process of its own, and its address."""
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__) + "/.."}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


@pytest.mark.parametrize("timeout, all_well", [(1.0, False), (60.0, True)])
def test_a_paused_server_blocks_no_user_beyond_the_timeout(server, timeout, all_well):
    process, address = server
    requests = plan(*["one two three"] * 10, users=60)
    going_on = threading.Timer(2.5, process.send_signal, (signal.SIGCONT,))

    def stop(ended):
        if ended == 20:
            process.send_signal(signal.SIGSTOP)
            going_on.start()

    rows = users.run(address, ("paced",), requests, timeout=timeout, progress=stop)
    going_on.join()
    assert complete(rows, requests)
    assert all(row["output_tokens"] == 3 for row in rows if row["status"] == "ok")
    assert all(row["t_last"] - row["t_submit"] < (timeout + 20) * 1e9 for row in rows)
    assert {row["status"] for row in rows} == ({"ok"} if all_well else {"ok", "timeout"})


def test_a_server_that_vanishes_ends_every_request_at_once(server):
    process, address = server
    requests = plan("one two three", "hang", "four", users=60)
    kill = lambda ended: process.kill() if ended == 60 else None  # noqa: E731
    rows = users.run(address, ("obedient",), requests, timeout=60, progress=kill)
    assert complete(rows, requests)
    assert [row["status"] for row in rows] == ["ok", "error", "error"] * 60
    assert all(row["output_tokens"] == 3 for row in rows if row["status"] == "ok")
    assert all("UNAVAILABLE" in row["error"] for row in rows if row["status"] == "error")
    assert max(row["t_last"] - row["t_submit"] for row in rows) < 55e9


def test_a_server_that_refuses_ends_every_request_with_its_message(fake):
    requests = plan("one", "two", users=20)
    rows = users.run(fake.address, ("unknown",), requests, timeout=60)
    assert complete(rows, requests) and {row["status"] for row in rows} == {"error"}
    assert all("'unknown' is not found" in row["error"] for row in rows)


def test_a_text_that_cannot_be_sent_gives_the_exceptions_message(fake):
    with pytest.raises(ErlabError) as caught:
        users.run(fake.address, ("m",), plan("half a pair: \ud800"), timeout=60)
    assert str(caught.value).startswith("The users could not start: 'utf-8' codec can't encode character")


def test_ctrl_c_stops_the_users(fake):
    requests = plan("hang", users=4)
    when(fake, lambda: _hanging(fake) == 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        users.run(fake.address, ("expert_0",), requests, timeout=60, processes=2)
    assert not workers()
    fake.wait(lambda: fake.in_flight.total() == 0)


def test_the_users_die_with_their_parent(fake):
    script = (
        "from erlab import users; from fake_triton import plan\n"
        f"users.run({fake.address!r}, ('expert_0',), plan('hang', users=4), timeout=60)"
    )
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__) + "/.."}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as parent:
        fake.wait(lambda: _hanging(fake) == 4)
        parent.kill()
    fake.wait(lambda: fake.in_flight.total() == 0)


def test_users_begin_at_their_times_and_wait_for_nobody(fake):
    # The first user's answer never comes; the others, in an open loop, do not wait for it.
    requests = [[ask] for ask in (plan("hang")[0] + plan("one", "two", "three")[0])]
    at = [[0.0], [0.2], [0.4], [0.6]]
    rows = users.run(fake.address, ("expert_0",), requests, timeout=3, at=at, processes=2)
    assert [row["status"] for row in rows] == ["timeout", "ok", "ok", "ok"]
    for row, (start,) in zip(rows, at):
        assert row["t_submit"] == int(start * 1e9) + row["late_ns"] and row["late_ns"] >= 0
    assert all(row["t_last"] < rows[0]["t_last"] for row in rows[1:])


def test_users_pause_between_answer_and_request_but_not_before_its_time(fake):
    requests = plan("fail", "nothing", "one", "two", users=3)
    pauses, at = [[0.0, 0.1, 0.02, 0.0]] * 3, [[0.0, 0.0, 0.0, 0.4]] * 3
    rows = users.run(fake.address, ("expert_0",), requests, timeout=20, pauses=pauses, at=at)
    for before, row in zip(rows, rows[1:]):
        if row["user"] == before["user"]:
            due, wanted = row["t_submit"] - row["late_ns"], int(pauses[0][row["turn"]] * 1e9)
            # What failed ended when its user began to wait; whole answers' last token came a little before.
            known = before["status"] == "error" and row["turn"] < 3
            assert due - before["t_last"] == wanted if known else due - before["t_last"] >= wanted
            assert due >= at[0][row["turn"]] * 1e9


def test_users_repeat_their_requests_until_the_end(fake):
    rows = users.run(fake.address, ("expert_0",), plan("one", "two", users=2), timeout=20, until=0.3)
    for user in (0, 1):
        own = [row for row in rows if row["user"] == user]
        assert [row["turn"] for row in own] == list(range(len(own))) and len(own) > 2
        assert [row["prompt_id"] for row in own[:3]] == [f"{user}-0", f"{user}-1", f"{user}-0"]
        assert max(row["t_submit"] - row["late_ns"] for row in own) < 0.3e9
    assert len(rows) == len(fake.received)


def test_users_do_not_flood_a_server_that_refuses(fake):
    rows = users.run(fake.address, ("expert_0",), plan("fail", users=2), timeout=20, until=0.5)
    assert [(row["user"], row["status"]) for row in rows] == [(0, "error"), (1, "error")]


def test_users_whose_process_dies_before_the_end_have_an_error(fake):
    kill = lambda ended: [p.kill() for p in workers()] if ended == 3 else None  # noqa: E731
    rows = users.run(fake.address, ("expert_0",), plan("one", users=2), timeout=20, until=60, progress=kill)
    assert [row["status"] for row in rows].count("error") == 2 and "process ended" in rows[-1]["error"]


@pytest.mark.parametrize("warmup", [1, 2])
def test_warm_up_requests_are_made_and_leave_no_row(fake, warmup):
    requests = plan("warm", "up", "one", users=4)
    rows = users.run(fake.address, ("expert_0",), requests, timeout=20, warmup=warmup)
    assert len(fake.received) == 12
    expected = [(u, t - warmup, f"{u}-{t}") for u in range(4) for t in range(warmup, 3)]
    assert [(row["user"], row["turn"], row["prompt_id"]) for row in rows] == expected
    assert min(row["t_submit"] for row in rows) > 0


def test_nothing_at_the_address_is_one_line():
    with pytest.raises(ErlabError, match="No KServe v2 gRPC server answers at 127.0.0.1:1: ") as caught:
        users.run("127.0.0.1:1", ("m",), plan("one"), timeout=1)
    assert "\n" not in str(caught.value)


def test_processes_that_do_not_start_are_one_line(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ErlabError, match="could not start: exit status 1$"):
        users.run("127.0.0.1:1", ("m",), plan("a long prompt " * 10_000), timeout=1)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"address": "nonsense"}, "must be HOST:PORT with a port from 1 to 65535. Got 'nonsense'"),
        ({"processes": 0}, "'processes'"),
        ({"models": ()}, "'models'"),
        ({"timeout": 0}, "'timeout'"),
        ({"at": [[0.0, 1.0]]}, "'at'.* one for each request of each user"),
        ({"at": [[-1.0]]}, "'at'"),
        ({"pauses": [[-1.0]]}, "'pauses'"),
        ({"until": 0}, "'until'"),
        ({"warmup": 1}, "'warmup'.* from 0 to 0"),
    ],
)
def test_bad_parameters_are_named(change, said):
    with pytest.raises(ErlabError, match=said):
        users.run(**({"address": "127.0.0.1:1", "models": ("m",), "requests": plan("one"), "timeout": 1} | change))
