"""Self-test of the users: the latency they add themselves, measured with the same load against an echo server.

    rows = run(address, models, requests, timeout=60)
    own = self_test(requests, pace(rows))
    run_description |= {"client": asdict(own), "invalid": invalid(rows, own)}

Every response of the echo states when it was sent, so the latency added by the users is known for each: the server's
gRPC, the loopback, and the users' own gRPC and event loop. Server and users share the machine, so this is an upper
bound. The time that requests waited for the echo itself, as in a burst, is reported separately.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from erlab.errors import ErlabError
from erlab.prompts.workload import Request
from erlab.spec import require
from erlab.users.processes import run

SHARE = 0.1  # of a measured latency that the users may add
_MS = 1e6
_REQUESTS = 20
_END_SECONDS = 5.0  # that the echo gets to end in


@dataclass(frozen=True)
class OwnLatency:
    """Latency added by the users, ms, at the median and the 99th percentile.

    Attributes:
        ttft_p50, ttft_p99: Added to the time to first token (both directions).
        response_p50, response_p99: Added to each response (one direction).
        late_p50, late_p99: Delay between when a request was due and when it was sent.
        responses_per_second: Received responses per second.
        echo_p50, echo_p99: Wait of requests for the echo server, included in none of the others.
    """

    ttft_p50: float
    ttft_p99: float
    response_p50: float
    response_p99: float
    late_p50: float
    late_p99: float
    responses_per_second: float
    echo_p50: float = 0.0
    echo_p99: float = 0.0


class Echo:
    """A process of `erlab.users.echo` as a context manager.

    Args:
        first: Time to first token, s.
        gap: Time per output token, s.
        patience: Deadline of its users, s, from which it computes how long requests waited.

    Attributes:
        address: HOST:PORT on the loopback.
        waits: Afterwards: percentiles of that wait, ms.
    """

    def __init__(self, first: float, gap: float, patience: float = 0.0):
        require(first >= 0, "first", "Echo", "be at least 0 seconds", first)
        require(gap > 0, "gap", "Echo", "be above 0 seconds", gap)
        self._pace = [repr(float(seconds)) for seconds in (first, gap, patience)]
        self.waits = {"wait_p50": 0.0, "wait_p99": 0.0}

    def __enter__(self) -> "Echo":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "erlab.users.echo", *self._pace],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.address = self._process.stdout.readline().strip()
        if not self.address:
            self.__exit__()
            raise ErlabError(f"The echo server did not start: exit status {self._process.returncode}.")
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
            if last := self._process.stdout.read():
                self.waits = json.loads(last)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()  # nothing where it has ended
            self._process.wait()
            self._process.stdout.close()


def self_test(
    requests: list[list[Request]],
    at: tuple[float, float],
    *,
    engines: int = 1,
    processes: int | None = None,
    warmup: int = 0,
    seconds: float = 10.0,
) -> OwnLatency:
    """Repeat the users' first counted requests against an echo server: one each, at least 20 in all.

    Args:
        requests: The run's requests, one list per user.
        at: The echo's time to first token and per output token, s, as from `pace`.
        engines: Number of models that answer in turn.
        processes, warmup: As given to `run`.
        seconds: Approximate time per user; answers and times to first token are shortened to fit.

    Raises:
        ErlabError: A request to the echo failed.
    """
    require(engines >= 1, "engines", "self_test", "be at least 1", engines)
    require(seconds > 0, "seconds", "self_test", "be above 0", seconds)
    turns = min(max(1, -(-_REQUESTS // len(requests))), min(map(len, requests)) - warmup)
    first, gap = at
    first = min(first, seconds / turns / 4)
    gap = min(gap, (seconds / turns - first) / 3)  # for at least a few tokens
    longest = max(2, int((seconds / turns - first) / gap))
    short = [[replace(r, max_tokens=min(r.max_tokens, longest)) for r in own[: warmup + turns]] for own in requests]
    models = tuple(f"echo-{i}" for i in range(engines))
    options = {"processes": processes, "warmup": warmup}
    patience = 60 + 4 * seconds
    with Echo(first, gap, patience) as echo:
        rows = run(echo.address, models, short, timeout=patience, stamped=True, **options)
    failed = [row for row in rows if row["status"] != "ok"]
    if failed:
        raise ErlabError(f"The users' self-test failed, {len(failed)} of {len(rows)} requests: {failed[0]['error']}")
    span = (max(row["t_last"] for row in rows) - min(row["t_submit"] for row in rows)) / 1e9
    responses = np.concatenate([row["added_ns"] for row in rows]) / _MS
    ttft = np.array([row["added_ttft_ns"] for row in rows]) / _MS
    late = np.array([row["late_ns"] for row in rows]) / _MS
    at = [float(np.percentile(values, q)) for values in (ttft, responses, late) for q in (50, 99)]
    return OwnLatency(*(round(value, 4) for value in at), round(len(responses) / span, 1), *echo.waits.values())


def invalid(rows: Sequence[dict], own: OwnLatency, share: float = SHARE) -> str | None:
    """Return the reason why the users' own latency invalidates a run, in one sentence, or None.

    A run is invalid if that exceeds `share` of the median or 99th percentile time to first token, or of the time
    per output token, or if requests were sent late by more than `share` of the median time to first token.
    """
    require(0 < share < 1, "share", "invalid", "lie between 0 and 1", share)
    ttft, tpot = _measured(rows)
    late = [row["late_ns"] / _MS for row in rows if row.get("late_ns") is not None]
    checks = [
        ("the median time to first token", own.ttft_p50, np.median(ttft) if ttft else None),
        ("the 99th percentile of the time to first token", own.ttft_p99, np.percentile(ttft, 99) if ttft else None),
        ("the median time per output token", own.response_p50, np.median(tpot) if tpot else None),
    ]
    for what, added, measured in checks:
        if measured is not None and added > share * measured:
            return f"The users add {added:.2f} ms to {what}, {measured:.2f} ms: more than {share:.0%}."
    if ttft and late and (sent := np.percentile(late, 99)) > share * np.median(ttft):
        return f"The users sent requests up to {sent:.2f} ms late: more than {share:.0%} of {np.median(ttft):.2f} ms."
    return None


def _measured(rows: Sequence[dict]) -> tuple[list[float], list[float]]:
    """Return times to first token and per output token, ms, of the successful requests."""
    ok = [row for row in rows if row["status"] == "ok" and row["t_first"] is not None]
    several = [row for row in ok if row["output_tokens"] > 1]
    tpot = [(row["t_last"] - row["t_first"]) / (row["output_tokens"] - 1) / _MS for row in several]
    return [(row["t_first"] - row["t_submit"]) / _MS for row in ok], tpot


def pace(rows: Sequence[dict]) -> tuple[float, float]:
    """Return a run's median time to first token and per output token, s; the former twice for one-token answers.

    Raises ErlabError if no request succeeded.
    """
    ttft, tpot = _measured(rows)
    if not ttft:
        raise ErlabError("The users' self-test needs the pace of a run; none of its requests ended well.")
    return float(np.median(ttft)) / 1e3, max(float(np.median(tpot or ttft)) / 1e3, 1e-4)
