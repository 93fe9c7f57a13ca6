"""Client-side latency of measured cells: measured once per load, kept in the runs' descriptions.

A run is marked if that latency is more than `users.selftest.SHARE` of the measured one: its description gives the
reason under ``client_invalid``. Marked runs stay in figures and claims, with a warning; measuring them again would not
make the users faster.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from erlab import fingerprint, textfiles, users
from erlab.prompts.workload import Request
from erlab.results import records
from erlab.users import OwnLatency

_SECONDS = 1.0  # longest duration of a request to the echo server, approximately


def check(
    files: Mapping[tuple[str, int, int], Path], requests: Callable[[int], list[list[Request]]], results: Path
) -> None:
    """Write the client-side latency into cells, as ``client`` and ``client_invalid``.

    There is one self-test per load, at the pace of the load's fastest system, which is an upper bound for the others.

    Args:
        results: File that keeps the results of the self-tests. They are used again for systems that are not faster,
            until the users' code changes.
    """
    code = fingerprint.of_code("erlab.users.selftest")
    tests = json.loads(textfiles.read(results)) if results.is_file() else {}
    for load in sorted({load for _, load, _ in files}):
        cells = {file: records.read(file) for (_, n, _), file in files.items() if n == load}
        if all("client" in cell.runs for cell in cells.values()):
            continue
        rows = {file: _rows(cell.requests) for file, cell in cells.items()}
        paces = [users.pace(rs) for rs in rows.values() if any(row["status"] == "ok" for row in rs)]
        if paces:
            first, gap = (min(values) for values in zip(*paces))
            test = tests.get(str(load))
            if not test or test["code"] != code or test["first"] > first or test["gap"] > gap:
                engines = max(int(cell.runs["count"].max()) for cell in cells.values())
                own = users.self_test(requests(load), (first, gap), engines=engines, seconds=_SECONDS)
                test = {"first": first, "gap": gap, "own": asdict(own), "code": code}
                tests[str(load)] = test
                textfiles.save(results, json.dumps(tests, indent=1))
        for file, cell in cells.items():
            own = OwnLatency(**test["own"]) if paces else None
            reason = users.invalid(rows[file], own) if own else None
            runs = cell.runs.assign(client=[own and asdict(own)], client_invalid=[reason])
            records.save(file, records.Records(cell.requests, runs))


def _rows(requests: pd.DataFrame) -> list[dict]:
    """Return the columns that a self-test reads, unknown values as None."""
    known = requests[["status", "t_submit", "t_first", "t_last", "output_tokens", "late_ns"]].astype(object)
    return known.where(known.notna(), None).to_dict("records")
