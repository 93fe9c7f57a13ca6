"""What the gateway costs: against the server behind it and, where they are on the PATH, against LiteLLM's proxy
(`litellm[proxy]`) and SGLang's router (`sglang-router`), in one run with the same stub behind each.

CPU time is compared, not speed, so that a busy machine tells the same.
"""

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from functools import partial

import grpc
import pytest
from fake_triton import COURT, KITCHEN, STREAM
from processes import FAKE_TRITON, STUB, cpu_seconds, script

from erlab.gateway import Gateway, kserve
from erlab.routing import PromptRouter


@pytest.fixture(scope="module")
def router_folder(tmp_path_factory):
    return PromptRouter(clusters=2).fit(KITCHEN + COURT).save(tmp_path_factory.mktemp("bench") / "router")


def first_token(channel, model, times=50):
    """Median seconds to the first response of one user's requests."""
    request, ask = kserve.request(model, "salt the pasta water", 1).SerializeToString(), channel.unary_stream(STREAM)
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        call = ask(request, timeout=10)
        next(call)
        spent.append(time.perf_counter() - start)
        list(call)
    return statistics.median(spent)


def test_added_time_to_first_token_of_one_user(router_folder, record_property):
    with script(FAKE_TRITON, "e", 0) as (_, address), Gateway.of(router_folder, address, ("e",)) as gateway:
        with grpc.insecure_channel(address) as direct, grpc.insecure_channel(gateway.address) as through:
            first_token(through, "router"), first_token(direct, "e")
            pairs = [(first_token(direct, "e"), first_token(through, "router")) for _ in range(12)]
    before, after = min(pairs, key=lambda pair: pair[1] - pair[0])  # the blocks least disturbed
    print(f"first token of one user: {before * 1e3:.2f} ms from the expert, {after * 1e3:.2f} ms through the gateway")
    record_property("times_direct", round(after / before, 2))
    assert after <= 5 * before  # a second hop, and two more processes


async def chat(port, model, tokens):
    """The number of events of one streamed answer."""
    body = {"model": model, "max_tokens": tokens, "stream": True}
    body = json.dumps(body | {"messages": [{"role": "user", "content": "salt the pasta"}]}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    return answer.count(b"data: {")


def cost(port, pid, model, users=20, tokens=100, rounds=3):
    """CPU seconds of a process and its children for each streamed event, at best."""

    async def load():
        return sum(await asyncio.gather(*(chat(port, model, tokens) for _ in range(users))))

    asyncio.run(load())
    costs = []
    for _ in range(rounds):
        before = cpu_seconds(pid)
        events = asyncio.run(load())
        assert events >= users * tokens
        costs.append((cpu_seconds(pid) - before) / events)
    return min(costs)


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@contextmanager
def rival(command, port, ready):
    """A rival's process, once it answers at `ready`."""
    variables = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with subprocess.Popen([str(part) for part in command], env=os.environ | variables, **silent) as process:
        try:
            end = time.monotonic() + 90
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=2).close()
                    break
                except OSError:
                    assert time.monotonic() < end and process.poll() is None
                    time.sleep(0.2)
            yield process
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def relayed(router_folder):
    """What an event costs the gateway and the stub behind it, each a function of the `rounds`, and the stub's port."""
    with ExitStack() as stack:
        stub, port = stack.enter_context(script(STUB, 0.02))
        experts = (f"http://127.0.0.1:{port}/v1#m",)
        gateway = stack.enter_context(Gateway.of(router_folder, None, experts, http_port=0))
        ours = partial(cost, int(gateway.http.rpartition(":")[2]), gateway.pid, "router")
        yield ours, partial(cost, int(port), stub.pid, "m"), int(port)


def times_ours(ours, theirs, name, record_property, repeats=5):
    """What they need for an event over what we do: the median of alternating repeats."""
    pairs = [(ours(rounds=1), theirs(rounds=1)) for _ in range(repeats)]
    ratios = [b / a for a, b in pairs]
    us = "; ".join(f"{a * 1e6:.0f} and {b * 1e6:.0f}" for a, b in pairs)
    print(f"CPU us an event, ours and {name}: {us}; {statistics.median(ratios):.2f} x ours")
    record_property(f"{name}_times_ours", [round(ratio, 2) for ratio in ratios])
    return statistics.median(ratios)


def test_an_event_relayed_costs_at_most_two_events_sent(relayed, record_property):
    ours, stub = (measured() for measured in relayed[:2])
    print(f"CPU an event: gateway {ours * 1e6:.0f} us, the stub itself {stub * 1e6:.0f} us")
    record_property("us_an_event", round(ours * 1e6, 1))
    assert ours <= 2 * stub


def test_against_litellm(relayed, tmp_path, record_property):
    if not shutil.which("litellm"):
        pytest.skip("litellm[proxy] is not on the PATH")
    ours, _, stub = relayed
    config, port = tmp_path / "litellm.yaml", free_port()
    model = {"model": "openai/m", "api_base": f"http://127.0.0.1:{stub}/v1", "api_key": "x"}
    config.write_text(json.dumps({"model_list": [{"model_name": "router", "litellm_params": model}]}))
    command = ["litellm", "--config", config, "--host", "127.0.0.1", "--port", port, "--telemetry", "False"]
    with rival(command, port, "/health/liveliness") as process:
        assert times_ours(ours, partial(cost, port, process.pid, "router"), "litellm", record_property) >= 10


def test_against_sglang_router(relayed, record_property):
    if not shutil.which("sglang-router"):
        pytest.skip("sglang-router is not on the PATH")
    ours, _, stub = relayed
    port = free_port()
    command = ["sglang-router", "launch", "--host", "127.0.0.1", "--port", port, "--prometheus-port", free_port()]
    command += ["--worker-urls", f"http://127.0.0.1:{stub}", "--policy", "round_robin", "--log-level", "error"]
    with rival(command, port, "/readiness") as process:
        times = times_ours(ours, partial(cost, port, process.pid, "m"), "sglang", record_property)
    assert times >= 0.4  # it is written in Rust
