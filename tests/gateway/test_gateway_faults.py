"""Faults of real processes: every request ends in one row, other requests are unaffected, nothing stays open."""

import json
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from fake_triton import STREAM, FakeTriton, decoded, echo, stream
from under_load import complete, during, load, metrics, once_busy

from erlab.gateway import Gateway, Limits, kserve

LIMITS = Limits(stall_seconds=2.0)  # on a busy machine a healthy expert is silent, too


def ask(text, tokens=4, request_id=""):
    return kserve.request("router", text, tokens, request_id=request_id).SerializeToString()


@contextmanager
def server(model):
    """A fake Triton in a process of its own; yields the process and its address."""
    command = [sys.executable, Path(__file__).parent / "fake_server.py", model, "0.01"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()  # also ends one that is stopped


@pytest.fixture
def pair(router_folder, homes):
    """Two servers of an expert each and a gateway: (gateway, processes by cluster, a prompt of each cluster)."""
    with ExitStack() as stack:
        processes, addresses = zip(*(stack.enter_context(server("m")) for _ in range(2)))
        experts = tuple(f"grpc://{address}/m" for address in addresses)
        gateway = stack.enter_context(Gateway.of(router_folder, None, experts, limits=LIMITS, http_port=0))
        yield gateway, processes, homes, experts


def test_an_expert_killed_under_load(pair):
    gateway, processes, homes, experts = pair
    rows = during(gateway.address, load(homes), lambda: once_busy(gateway, processes[0].kill))
    assert all(complete(row) or row["status"] == "error" for row in rows), Counter(row["status"] for row in rows)
    broken = [row for row in rows if row["status"] == "error"]
    assert len(broken) <= 10 and all(row["expert"] == experts[0] and row["error"] for row in broken)
    moved = [row for row in rows if row["cluster"] == 0 and row["expert"] == experts[1]]
    assert moved and all(complete(row) for row in moved)
    assert all(complete(row) for row in rows if row["cluster"] == 1)  # nobody else noticed
    flying = {k: v for k, v in metrics(gateway).items() if k.startswith("erlab_in_flight")}
    assert set(flying.values()) == {0}


def test_an_expert_stopped_past_its_deadline_and_continued(pair):
    gateway, processes, homes, experts = pair
    stop = lambda: processes[0].send_signal(signal.SIGSTOP)  # noqa: E731
    rows = during(gateway.address, load(homes, turns=10), lambda: once_busy(gateway, stop))
    broken = [row for row in rows if not complete(row)]
    assert len(broken) <= 10
    assert all("stopped answering" in row["error"] and row["expert"] == experts[0] for row in broken)
    assert all(complete(row) for row in rows if row["cluster"] == 1)
    assert any(row["cluster"] == 0 and row["expert"] == experts[1] for row in rows)
    processes[0].send_signal(signal.SIGCONT)
    with grpc.insecure_channel(gateway.address) as channel:
        end = time.monotonic() + 60
        while True:
            said = decoded(stream(channel, ask(homes[0])))[0].infer_response.parameters
            if said["erlab_expert"].string_param == experts[0]:
                break
            assert time.monotonic() < end


def test_the_gateway_killed_under_load(pair):
    gateway, _, homes, _ = pair
    rows = during(gateway.address, load(homes, 8), lambda: once_busy(gateway, psutil.Process(gateway.pid).kill))
    assert {row["status"] for row in rows} == {"ok", "error"}
    assert all(complete(row) for row in rows if row["status"] == "ok")
    assert all("UNAVAILABLE" in row["error"] for row in rows if row["status"] == "error")


@pytest.fixture(scope="module")
def plain(router_folder):
    """A gateway with both faces before one fake server, its fake, and its process."""
    with FakeTriton({"e": echo}) as fake:
        with Gateway.of(router_folder, fake.address, ("e",), http_port=0) as gateway:
            yield gateway, fake, psutil.Process(gateway.pid)


def fine(gateway):
    """It still answers, on both faces."""
    with grpc.insecure_channel(gateway.address) as channel:
        assert [kserve.text(r.infer_response) for r in decoded(stream(channel, ask("one two")))] == ["one", "two"]
    said = exchange(gateway.http, http_request("one two"))
    assert said.startswith(b"HTTP/1.1 200") and b"onetwo" in said


def http_request(text, **fields):
    body = json.dumps({"prompt": text} | fields).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def connect(address):
    host, _, port = address.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def exchange(address, data, hang_up=False):
    """All that comes back for `data`, until its end or for a minute; `hang_up`: close the sending side first."""
    with connect(address) as opened:
        try:
            opened.sendall(data)
            if hang_up:
                opened.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: opened.recv(65536), b""))
        except (ConnectionError, OSError):
            return b""


def test_random_bytes_do_not_affect_other_clients(plain):
    gateway, _, process = plain
    draw = random.Random(0)
    fine(gateway)
    before = process.num_fds()
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for i in range(60):
        junk = draw.randbytes(draw.randrange(1, 400))
        exchange(gateway.address, preface * (i % 2) + junk, hang_up=True)
        exchange(gateway.http, junk if i % 3 else b"POST /v1/completions HTTP/1.1\r\n" + junk, hang_up=True)
    whole = http_request("one two")
    for cut in range(0, len(whole), 7):  # half a request, of every length
        assert b"onetwo" not in exchange(gateway.http, whole[:cut], hang_up=True)
    fine(gateway)
    end = time.monotonic() + 60
    while process.num_fds() > before:
        assert time.monotonic() < end


def test_mutated_messages_are_answered(plain):
    """Valid messages with bytes changed, cut or doubled: each gets an answer or an error, and the rest go on."""
    gateway, _, process = plain
    draw, method = random.Random(1), "/inference.GRPCInferenceService/"
    request = ask("salt the pasta", request_id="7")
    with grpc.insecure_channel(gateway.address) as channel:
        for _ in range(300):
            data = bytearray(request)
            for _ in range(draw.randrange(1, 6)):
                at = draw.randrange(len(data))
                match draw.randrange(3):
                    case 0:
                        data[at] = draw.randrange(256)
                    case 1:
                        del data[at : at + draw.randrange(1, 9)]
                    case 2:
                        data[at:at] = data[max(0, at - 9) : at]
                data = data or bytearray(b"\n")
            try:
                assert stream(channel, bytes(data))
            except grpc.RpcError as e:
                assert e.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
            try:
                channel.unary_unary(method + draw.choice(["ModelInfer", "ModelReady", "ModelConfig"]))(bytes(data), 60)
            except grpc.RpcError as e:
                assert e.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    body = json.dumps({"prompt": "salt", "max_tokens": 3, "stream": True, "stop": ["x"], "temperature": 1.5})
    pool = [None, True, -1, 0, 1e308, 2**70, "", "x", [], [1], {}, {"a": None}, [["x"]], "\ud800", [{"role": 1}]]
    for _ in range(300):
        changed = json.loads(body)
        for name in draw.sample([*changed, "model", "messages", "n", "stream_options", "max_completion_tokens"], 2):
            changed[name] = draw.choice(pool)
        path = draw.choice([b"/v1/completions", b"/v1/chat/completions", b"/route"])
        said = exchange(gateway.http, http_request("", **changed).replace(b"/v1/completions", path, 1))
        status = int(said.split(b" ", 2)[1])
        assert status in (200, 400, 404) and (status == 200 or b'"error"' in said), (changed, said)
    fine(gateway)


def test_a_prompt_of_100_mb_is_refused_without_being_kept(plain):
    gateway, fake, process = plain
    fine(gateway)
    before, got = process.memory_info().rss, len(fake.received)
    text = "x" * 100_000_000
    limit = 2**30
    options = [("grpc.max_send_message_length", limit)]
    with grpc.insecure_channel(gateway.address, options=options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            stream(channel, ask(text))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    said = exchange(gateway.http, http_request(text))
    assert not said or said.startswith(b"HTTP/1.1 413")
    fine(gateway)
    assert process.memory_info().rss < before + 60e6 and len(fake.received) == got + 2


def test_10000_connections_opened_and_left(plain):
    gateway, _, process = plain
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 11_000:
        pytest.skip(f"this machine allows a process {most} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    fine(gateway)
    files, memory = process.num_fds(), process.memory_info().rss
    with ExitStack() as stack:
        for i in range(10_000):
            stack.enter_context(connect(gateway.http if i % 2 else gateway.address))
        fine(gateway)
        assert process.memory_info().rss < memory + 400e6
    end = time.monotonic() + 60
    while process.num_fds() > files + 5:
        assert time.monotonic() < end
        time.sleep(0.05)
    fine(gateway)


def test_a_slow_client_delays_only_itself(router_folder):
    """It gets 100 MB and reads a byte at a time: the gateway keeps a little of it, and others go on."""

    async def flood(request):
        for _ in range(2000):
            yield "x" * 50_000

    with ExitStack() as stack:
        fake = stack.enter_context(FakeTriton({"e": flood, "other": echo}))
        g = stack.enter_context(Gateway.of(router_folder, fake.address, ("e", "other"), http_port=0))
        process = psutil.Process(g.pid)
        with connect(g.http) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(http_request("a", stream=True, model="e"))
            for _ in range(3):
                assert len(slow.recv(1)) == 1
            with grpc.insecure_channel(g.address) as channel:
                lazy = channel.unary_stream(STREAM)(kserve.request("e", "b", 4).SerializeToString(), timeout=60)
                next(lazy)
                before = process.memory_info().rss
                request = kserve.request("other", "one two", 4).SerializeToString()
                for _ in range(50):
                    assert len(stream(channel, request)) == 2
                assert process.memory_info().rss < before + 60e6  # of two times 100 MB: sockets' and windows' shares
                assert fake.in_flight["e"] == 2  # they are held back, not buffered
                lazy.cancel()
        fake.wait(lambda: fake.in_flight["e"] == 0)
