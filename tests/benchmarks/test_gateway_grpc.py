"""What a response and a request through the gateway's gRPC face cost, beside the least that grpc.aio can do: a relay
that neither classifies nor counts (`aio_relay.py`), in one run, before the same echo and under the same users.

CPU time is compared, so that a busy machine tells about the same.
"""

import statistics
from pathlib import Path

import pytest
from fake_triton import COURT, KITCHEN
from processes import cpu_seconds, script

from erlab import users
from erlab.gateway import Gateway
from erlab.prompts.workload import Request
from erlab.routing import PromptRouter
from erlab.users.selftest import Echo

RELAY = Path(__file__).parent / "aio_relay.py"


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    """(address, pid, model) of the gateway and of the bare relay."""
    router_folder = PromptRouter(clusters=2).fit(KITCHEN + COURT).save(tmp_path_factory.mktemp("bench") / "router")
    with Echo(0.02, 0.02) as echo, script(RELAY, echo.address) as (relay, address):
        with Gateway.of(router_folder, echo.address, ("echo-0", "echo-1")) as gateway:
            yield (gateway.address, gateway.pid, "router"), (address, relay.pid, "echo-0")


def cost(way, count, turns, tokens):
    """CPU us of a request of so many tokens each, and the median ms added to its first token."""
    address, pid, model = way
    asks = [[Request(f"{u}-{t}", "d", "salt the pasta", 3, tokens) for t in range(turns)] for u in range(count)]
    before = cpu_seconds(pid)
    rows = users.run(address, (model,), asks, timeout=60, processes=1, stamped=True)
    spent = cpu_seconds(pid) - before
    assert all(row["status"] == "ok" and row["output_tokens"] == tokens and not row["disordered"] for row in rows)
    return spent * 1e6 / (count * turns), statistics.median(row["added_ttft_ns"] for row in rows) / 1e6


def compared(ways, record_property, *load, rounds=3):
    """The least that the gateway and the relay needed, alternating."""
    for way in ways:
        cost(way, 4, 2, 4)
    spent = [[cost(way, *load) for way in ways] for _ in range(rounds)]
    ours, theirs = (min(costs) for costs in zip(*spent))
    record_property("ours_and_grpc_aio", f"{ours} {theirs}")
    return ours, theirs


def test_a_response_relayed(ways, record_property):
    (ours, _), (theirs, _) = compared(ways, record_property, 20, 3, 100)
    print(f"CPU a response, with 1/100 of its request: gateway {ours / 100:.1f} us, grpc.aio {theirs / 100:.1f} us")
    assert ours <= 1.2 * theirs


def test_a_request(ways, record_property):
    (ours, added), (theirs, bare) = compared(ways, record_property, 20, 30, 1)
    print(f"CPU a request of one token: gateway {ours:.0f} us, grpc.aio {theirs:.0f} us without a decision")
    print(f"added to the first token: gateway {added:.2f} ms, grpc.aio {bare:.2f} ms")
    assert ours <= 1.5 * theirs


def test_a_request_of_one_user(ways, record_property):
    (ours, added), (theirs, bare) = compared(ways, record_property, 1, 100, 1)
    print(f"CPU a request of one user: gateway {ours:.0f} us, grpc.aio {theirs:.0f} us without a decision")
    print(f"added to the first token: gateway {added:.2f} ms, grpc.aio {bare:.2f} ms")
    assert ours <= 1.5 * theirs
