"""Load during which something fails, and the outcome of each request."""

import threading
import time
import urllib.request

from erlab import users
from erlab.prompts.workload import Request


def load(homes, turns=30):
    """20 users, half of whose prompts belong to each expert; 20 tokens an answer."""
    return [[Request(f"{u}-{t}", "d", homes[u % 2], 3, 20) for t in range(turns)] for u in range(20)]


def during(address, requests, act, timeout=60):
    """The rows of a run, in whose middle `act()` is called."""
    rows = []
    thread = threading.Thread(target=lambda: rows.extend(users.run(address, ("router",), requests, timeout=timeout)))
    thread.start()
    act()
    thread.join(180 + timeout)
    assert len(rows) == sum(map(len, requests))  # one row a request, whatever happens
    assert len({row["prompt_id"] for row in rows}) == len(rows)
    return rows


def once_busy(gateway, act):
    """Call `act()` once both experts have answered and have requests in flight."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        values = metrics(gateway)
        done = [v for k, v in values.items() if k.startswith("erlab_requests_total") and 'status="ok"' in k]
        flying = [v for k, v in values.items() if k.startswith("erlab_in_flight")]
        if len(done) == 2 and min(done) >= 20 and min(flying) >= 3:
            return act()
        time.sleep(0.01)
    raise AssertionError("the load never came")


def metrics(gateway):
    with urllib.request.urlopen(f"{gateway.http}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def complete(row):
    return row["status"] == "ok" and row["output_tokens"] == 20
