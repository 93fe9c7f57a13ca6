"""Faults before the real Triton: an expert, the gateway and the server killed under load, and nothing left behind.

The experts are emulated: real processes of Triton's, that take requests in batches and answer a token every 20 ms.
"""

import signal
import time
from collections import Counter

import grpc
import psutil
import pytest
from fake_triton import decoded, stream
from under_load import complete, during, load, metrics, once_busy

from erlab import paper, users
from erlab.gateway import Gateway, Limits, kserve
from erlab.serving.engines import emulated
from erlab.serving.engines.emulated_engine import StepTable
from erlab.serving.triton import Server
from erlab.serving.triton.server import available

pytestmark = pytest.mark.skipif(available() is not None, reason=f"no embedded Triton: {available()}")

EXPERTS = ("emulated-0", "emulated-1")
LIMITS = Limits(stall_seconds=2.0)  # on a busy machine a healthy expert is silent, too
TIMES = StepTable((1, 64), (1, 4096), ((20.0, 20.0),) * 2, (0, 1, 64), (1, 4096), ((5.0, 5.0),) * 3)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "models"
    for name in EXPERTS:
        emulated.write(folder, name, paper.SYSTEMS["v2"]["E"].expert, TIMES, kv_tokens=100_000, time_scale=1.0)
    with Server(folder) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(server, router_folder):
    with Gateway.of(router_folder, server.grpc, EXPERTS, limits=LIMITS, http_port=0) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(request, gateway, homes):
    """After each fault both experts answer again, no request is in flight, and the gateway has grown by nothing."""
    process = psutil.Process(gateway.pid)
    until(lambda: answered_by(gateway, homes) == [*EXPERTS])
    before = process.num_fds(), process.num_threads(), process.memory_info().rss
    yield
    if not gateway.alive():
        return
    until(lambda: answered_by(gateway, homes) == [*EXPERTS])
    until(lambda: not any(v for k, v in metrics(gateway).items() if k.startswith("erlab_in_flight")))
    until(lambda: process.num_fds() <= before[0] + 2)  # a connection to the server, a probe's
    assert process.num_threads() <= before[1] + 4 and process.memory_info().rss < before[2] + 20e6


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.05)


def answered_by(gateway, homes):
    """The expert that answers a prompt of each cluster; None if none does."""
    found = []
    with grpc.insecure_channel(gateway.address) as channel:
        for cluster in sorted(homes):
            first = decoded(stream(channel, kserve.request("router", homes[cluster], 1).SerializeToString()))[0]
            failed = first.error_message
            found.append(None if failed else first.infer_response.parameters["erlab_expert"].string_param)
    return found


def stub(server, model):
    return next(process for process, name in server._stubs().items() if name == model)


def triton(server):
    (process,) = server._processes()
    return process


def kinds(rows):
    return Counter((row["status"], row["error"], row["expert"]) for row in rows)


def test_a_killed_experts_streams_end_before_their_deadline(server, gateway, homes):
    """Its users get an error or another expert's answer and no timeout; other experts' users are unaffected."""
    whole = triton(server)
    rows = during(gateway.address, load(homes, 12), lambda: once_busy(gateway, stub(server, "emulated-0").kill))
    broken = [row for row in rows if not complete(row)]
    assert all(row["status"] == "error" and row["error"] and row["expert"] for row in broken), kinds(rows)
    if whole.is_running() and whole.status() != psutil.STATUS_ZOMBIE:  # Triton may abort when a stub dies
        assert len(broken) <= 10 and {row["expert"] for row in broken} <= {"emulated-0"}, kinds(rows)
        assert all(complete(row) for row in rows if row["cluster"] == 1)


def test_without_a_gateway_a_killed_experts_users_wait_for_their_own_deadline(server, homes):
    """Triton keeps their streams open, and that is measured of a system without a gateway. Later requests find the
    expert loaded again."""
    whole, doomed, restarts = triton(server), stub(server, "emulated-0"), server.restarts

    def kill_once(ended):
        if ended >= 20 and doomed.is_running():
            doomed.kill()

    rows = users.run(server.grpc, EXPERTS, load(homes, 8), timeout=10, progress=kill_once)
    until(lambda: server.restarts > restarts)
    assert len(rows) == 160 and len({row["prompt_id"] for row in rows}) == 160
    broken = [row for row in rows if not complete(row)]
    assert broken and {row["status"] for row in broken} <= {"timeout", "error"}, kinds(rows)
    if whole.is_running() and whole.status() != psutil.STATUS_ZOMBIE:  # Triton may abort when a stub dies
        assert all(row["user"] % 2 == 0 for row in broken), kinds(rows)
        hung = [row for row in broken if row["status"] == "timeout"]
        assert hung and all((row["t_last"] - row["t_submit"]) / 1e9 > 9.9 for row in hung)
    until(lambda: all(map(complete, users.run(server.grpc, EXPERTS, load(homes, 1), timeout=20))))


def test_an_expert_stopped_past_the_stall_and_continued(server, gateway, homes):
    """Its users get an error or the other expert's answer, whose own users are unaffected; then it is back."""
    paused = stub(server, "emulated-0")
    try:
        stop = lambda: paused.send_signal(signal.SIGSTOP)  # noqa: E731
        rows = during(gateway.address, load(homes, 8), lambda: once_busy(gateway, stop))
    finally:
        paused.send_signal(signal.SIGCONT)
    broken = [row for row in rows if not complete(row)]
    words = {"UNAVAILABLE: emulated-0 stopped answering", "UNKNOWN: Stub process 'emulated-0_0_0' is not healthy."}
    assert all(row["expert"] == "emulated-0" and row["error"] in words for row in broken), kinds(rows)
    assert len(broken) <= 10  # a user's first request that was under way; the next goes elsewhere
    moved = [row for row in rows if row["cluster"] == 0 and row["expert"] == "emulated-1"]
    assert moved and all(complete(row) for row in moved), kinds(rows)
    assert all(complete(row) for row in rows if row["cluster"] == 1), kinds(rows)


def test_a_gateway_killed_under_load_leaves_the_server_running(server, gateway, router_folder, homes):
    with Gateway.of(router_folder, server.grpc, EXPERTS, limits=LIMITS, http_port=0) as doomed:
        kill = psutil.Process(doomed.pid).kill
        rows = during(doomed.address, load(homes, 6), lambda: once_busy(doomed, kill))
    assert {row["status"] for row in rows} == {"ok", "error"}, kinds(rows)
    assert all(complete(row) for row in rows if row["status"] == "ok")
    assert all(row["error"].startswith("UNAVAILABLE") for row in rows if row["status"] == "error")


def test_a_killed_triton_is_taken_out_and_probed_back_in(server, gateway, homes):
    restarts = server.restarts

    def kill():
        once_busy(gateway, triton(server).kill)

    rows = during(gateway.address, load(homes, 12), kill)
    broken = [row for row in rows if not complete(row)]
    assert broken and {row["status"] for row in broken} == {"error"}, kinds(rows)
    assert all(row["error"].startswith("UNAVAILABLE") for row in broken), kinds(rows)
    until(lambda: server.restarts > restarts)
