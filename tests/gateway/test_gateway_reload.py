"""`erlab gateway` under load: reloads on SIGHUP, one expert killed and back.

The environment variables ERLAB_USERS and ERLAB_WORKERS set the size, such as 1,000 users and 4 worker processes.

The experts are emulated: each has a Triton server of its own, whose stub answers a token per step. Only requests in
flight at the killed expert may end with an error, which names it.
"""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from test_gateway_command import Started
from under_load import during, metrics

from erlab import paper, users
from erlab.prompts.workload import Request
from erlab.serving.engines import emulated
from erlab.serving.engines.emulated_engine import StepTable
from erlab.serving.triton import Server
from erlab.serving.triton.server import available

pytestmark = pytest.mark.skipif(available() is not None, reason=f"no embedded Triton: {available()}")

WORKERS = int(os.environ.get("ERLAB_WORKERS", 1))
USERS, TURNS, TOKENS = int(os.environ.get("ERLAB_USERS", 30)), 4, 8
STALL_S = 2 if USERS < 100 else 8
STEP_MS = max(30.0, USERS / 4)  # a few thousand tokens per second, whatever the number of users
TIMES = StepTable((1, 512), (1, 4096), ((STEP_MS, STEP_MS),) * 2, (0, 1, 512), (1, 4096), ((5.0, 5.0),) * 3)


@pytest.fixture
def servers(tmp_path):
    """Two servers of one expert each."""
    for name in ("a", "b"):
        expert = paper.SYSTEMS["v2"]["E"].expert
        emulated.write(tmp_path / name, f"emulated-{name}", expert, TIMES, kv_tokens=10**6, time_scale=1.0)
    with Server(tmp_path / "a") as first, Server(tmp_path / "b") as second:
        yield first, second


def test_reloads_and_a_killed_expert_lose_only_what_it_was_working_on(servers, router_folder, homes, tmp_path):
    first, second = servers
    file = Path(tmp_path / "fleet.toml")

    def write(weight):
        experts = "".join(
            f'[experts.{name}]\nurl = "grpc://{server.grpc}/emulated-{name}"\nclusters = [{c}]\nweight = {weight}\n'
            for c, (name, server) in enumerate((("a", first), ("b", second)))
        )
        settings = f"[gateway]\nworkers = {WORKERS}\n[limits]\nstall_seconds = {STALL_S}\n"
        file.write_text(f'{settings}[router]\nfolder = "{router_folder}"\n{experts}')

    write(1)
    requests = [[Request(f"{u}-{t}", "d", homes[u % 2], 3, TOKENS) for t in range(TURNS)] for u in range(USERS)]
    with Started("--config", file) as gateway:

        def reload(weight):
            write(weight)
            gateway.process.send_signal(signal.SIGHUP)
            assert gateway.until("eloaded").startswith("Reloaded: a, b.")

        def disturb():
            wait_for(gateway, 'erlab_requests_total{expert="a",status="ok"}', USERS // 4)
            reload(2)
            wait_for(gateway, 'erlab_in_flight{expert="a"}', 3)
            doomed = next(iter(first._stubs()))
            doomed.kill()
            reload(3)
            reload(4)

        rows = during(gateway.grpc, requests, disturb, timeout=300)
        failed = [row for row in rows if row["status"] != "ok"]
        print(Counter((row["status"], row["error"], row["expert"]) for row in rows))
        assert all(row["expert"] == "a" and row["error"] for row in failed)
        assert len(failed) <= USERS // 2  # in flight at the killed expert: each of its users has one request at a time
        assert all(row["output_tokens"] == TOKENS for row in rows if row["status"] == "ok")
        assert {row["expert"] for row in rows if row["status"] == "ok" and row["cluster"] == 1} == {"b"}
        end = time.monotonic() + 120
        while {row["expert"] for row in users.run(gateway.grpc, ("router",), requests[:2], timeout=20)} != {"a", "b"}:
            assert time.monotonic() < end  # it is back
    assert gateway.status == 0


def wait_for(gateway, name, least):
    end = time.monotonic() + 120
    while metrics(gateway).get(name, 0) < least:
        assert time.monotonic() < end, metrics(gateway)
        time.sleep(0.01)
