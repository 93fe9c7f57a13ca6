"""Load test: starts the users' processes, lets all users begin together, and collects their records.

    rows = run("127.0.0.1:8001", ("router",), workload.requests(prompts, lengths, users=64, seed=0), timeout=60)

Users never share a process with the caller, whose notebook or progress bar would delay them.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from queue import SimpleQueue
from typing import IO

from erlab import textfiles
from erlab.errors import REASON, ErlabError
from erlab.gateway import kserve
from erlab.prompts.workload import Request
from erlab.spec import require
from erlab.users.worker import DONE

USERS_PER_PROCESS = 250
_LEAD_NS = 50_000_000  # between the last process's "ready" and the common start


def run(
    address: str,
    models: tuple[str, ...],
    requests: list[list[Request]],
    *,
    timeout: float,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
    at: Sequence[Sequence[float]] | None = None,
    pauses: Sequence[Sequence[float]] | None = None,
    until: float | None = None,
    warmup: int = 0,
    stamped: bool = False,
) -> list[dict]:
    """Send every user's requests, each user in a closed loop, and return one record per request, by user and turn.

    Args:
        address: HOST:PORT of a KServe v2 gRPC server.
        models: User i queries models[i mod n], unless a request names its own `model`.
        requests: One list per user; each request is sent when the one before has been answered or has failed.
        timeout: Deadline of a whole answer, s.
        processes: Processes of users; None for one per 250 users, at most one per core.
        progress: Called with the number of requests ended so far.
        at: Earliest time of each user's requests, s after the common start (default 0). In an open loop each request
            has a user of its own.
        pauses: Time between the answer before and each request, s (default 0).
        until: Users repeat their requests until this time, s after the common start (default: each request once).
        warmup: Requests of each user that are sent first and leave no record; turns are counted after them. They are
            dropped, not marked, because readers of records count all rows.
        stamped: The server stamps its answers (`erlab.users.loop.added`), and the records have those columns.

    Returns:
        Records with the columns of `erlab.results.records` known here; times are ns since the common start, when all
        users are connected. `late_ns`: delay between when a request was due and when it was sent. `status`: ok,
        timeout, cancelled or error, described by `error`; a user continues after a failed request.

    Raises:
        ErlabError: No server answers at the address, or an argument is out of range.
    """
    kserve.address(address)
    require(bool(models), "models", "run", "name at least one model", models)
    require(timeout > 0, "timeout", "run", "be above 0 seconds", timeout)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    require(processes is None or processes >= 1, "processes", "run", "be at least 1", processes)
    processes = processes or min(-(-len(requests) // USERS_PER_PROCESS), cores)
    at, pauses = _times("at", at, requests), _times("pauses", pauses, requests)
    require(until is None or until > 0, "until", "run", "be above 0 seconds", until)
    fewest = min(map(len, requests), default=0)
    allowed = f"be from 0 to {max(fewest - 1, 0)}, so that rows remain"
    require(0 <= warmup < max(fewest, 1), "warmup", "run", allowed, warmup)
    plan = [
        {
            "number": i,
            "model": models[i % len(models)],
            "requests": [asdict(request) for request in mine],
            "pauses": pauses[i],
            "at": at[i],
        }
        for i, mine in enumerate(requests)
    ]
    common = {"address": address, "timeout": timeout, "until": until, "stamped": stamped}
    jobs = [common | {"users": plan[i::processes]} for i in range(processes)]
    expected = {(one["number"], turn): r for one in plan for turn, r in enumerate(one["requests"])} if not until else {}
    rows = {}
    lines: SimpleQueue[tuple["_Worker", str]] = SimpleQueue()
    with ExitStack() as stack:
        jobs = [job for job in jobs if job["users"]]
        workers = [stack.enter_context(_Worker(lines)) for _ in jobs]
        for worker, job in zip(workers, jobs):
            worker.send(json.dumps(job))
        for _ in workers:
            worker, line = lines.get()
            if line != "ready":
                raise ErlabError(f"The users could not start: {worker.last_words()}")
        start = time.monotonic_ns() + _LEAD_NS
        for worker in workers:
            worker.send(str(start))
        ended = 0
        died = set(workers)
        while ended < len(workers):
            worker, line = lines.get()
            if not line:
                ended += 1
                continue
            if line == DONE:
                died.discard(worker)
                continue
            row = json.loads(line)
            rows[row["user"], row["turn"]] = row
            if progress:
                progress(len(rows))
        if until:  # how many requests a user would have made is unknown: the one that was lost has a record
            turns = Counter(user for user, _ in rows)
            lost = [one for worker, job in zip(workers, jobs) if worker in died for one in job["users"]]
            expected = {(one["number"], turns[one["number"]]): one["requests"][0] for one in lost}
        for key in expected.keys() - rows.keys():
            worker = workers[key[0] % processes]
            rows[key] = _lost(key, expected[key], worker.last_words())
    return [rows[user, turn] | {"turn": turn - warmup} for user, turn in sorted(rows) if turn >= warmup]


def _times(name: str, given: Sequence[Sequence[float]] | None, requests: list[list[Request]]) -> list[list[float]]:
    """Return times of all requests, s, each 0 by default; raise ErlabError unless they fit the requests."""
    times = [[0.0] * len(mine) for mine in requests] if given is None else [[float(t) for t in own] for own in given]
    fits = list(map(len, times)) == list(map(len, requests)) and min((min(own, default=0) for own in times), default=0) >= 0
    require(fits, name, "run", "be times from 0 s, one for each request of each user", given)
    return times


def _lost(key: tuple[int, int], request: dict, why: str) -> dict:
    """Return the record of a request whose process died; the time it was sent is unknown."""
    known = {name: request[name] for name in ("prompt_id", "domain", "input_tokens")}
    return {"user": key[0], "turn": key[1], **known, "status": "error", "error": f"The user's process ended: {why}"}


class _Worker:
    """A process of `erlab.users.worker`, whose lines go to `lines`; "" marks its end."""

    def __init__(self, lines: SimpleQueue):
        self._lines = lines

    def __enter__(self) -> "_Worker":
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        # In its own session Ctrl-C reaches only the parent, which then stops it; it ends when its stdin closes.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "erlab.users.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        with suppress(BrokenPipeError):  # of lines not yet written
            self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()

    def send(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it has died, which its last line reports
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        return (textfiles.lines(self._errors.read().strip()) or [f"exit status {status}"])[-1][:REASON]

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            self._lines.put((self, line.rstrip("\n")))
        self._lines.put((self, ""))
