"""What the users themselves added to each run of a sweep: measured once a load, and kept in the runs' descriptions.

A run is marked where that is more than `users.selftest.SHARE` of what was measured: its description says why under
``client_invalid``. A marked run stays in figures and claims, which say so: to measure it again would not make the users
faster, and a table without its smallest loads would be no better.
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

_SECONDS = 1.0  # that a request to the echo lasts at most, about


def check(files: Mapping[tuple[str, int], Path], plan: Callable[[int], list[list[Request]]], kept: Path) -> None:
    """Write into the cells `files` (by system and users) what the users add, as ``client`` and ``client_invalid``.

    One self-test a load, at the pace of the load's fastest system, which bounds it for the others. Its results are kept
    in the file `kept` and used for whatever is not faster, until the users' code changes.
    """
    code = fingerprint.of_code("erlab.users.selftest")
    tests = json.loads(textfiles.read(kept)) if kept.is_file() else {}
    for load in sorted({load for _, load in files}):
        cells = {file: records.read(file) for (_, n), file in files.items() if n == load}
        if all("client" in cell.runs for cell in cells.values()):
            continue
        rows = {file: _rows(cell.requests) for file, cell in cells.items()}
        paces = [users.pace(mine) for mine in rows.values() if any(row["status"] == "ok" for row in mine)]
        if paces:
            first, gap = (min(values) for values in zip(*paces))
            test = tests.get(str(load))
            if not test or test["code"] != code or test["first"] > first or test["gap"] > gap:
                engines = max(int(cell.runs["count"].max()) for cell in cells.values())
                own = users.self_test(plan(load), (first, gap), engines=engines, seconds=_SECONDS)
                test = {"first": first, "gap": gap, "own": asdict(own), "code": code}
                tests[str(load)] = test
                textfiles.save(kept, json.dumps(tests, indent=1))
        for file, cell in cells.items():
            own = OwnLatency(**test["own"]) if paces else None
            why = users.invalid(rows[file], own) if own else None
            told = {"client": [own and asdict(own)], "client_invalid": [why]}
            records.save(file, records.Records(cell.requests, cell.runs.assign(**told)))


def _rows(requests: pd.DataFrame) -> list[dict]:
    """What a self-test reads of each request, unknown values as None."""
    known = requests[["status", "t_submit", "t_first", "t_last", "output_tokens", "late_ns"]].astype(object)
    return known.where(known.notna(), None).to_dict("records")


def overview(runs: pd.DataFrame) -> pd.DataFrame:
    """By system and users: what the users add to the time to first token, ms, and whether that is little enough.

    Empty where the runs were not measured.
    """
    index = ["system", "users"]
    if "client" not in runs:
        return pd.DataFrame(index=pd.MultiIndex.from_arrays([[], []], names=index))
    known = runs[runs["client"].notna()]
    own = pd.DataFrame(known["client"].tolist())[["ttft_p50", "ttft_p99"]].round(2)
    own.columns = ["users add p50 ms", "users add p99 ms"]
    own.index = pd.MultiIndex.from_frame(known[index])
    return own.assign(client=known["client_invalid"].fillna("ok").to_numpy())
