"""Results of other benchmark clients as request records.

    found = read("artifacts/profile_export.jsonl", system="E", machine="DGX H100")
    records.save(folder / "aiperf.parquet", found)

The format is recognized by the content; `formats.CLIENTS` lists the clients and the files that are read. Entries that
cannot be a request record are left out; each run's description lists them (`left_out`, a text).

Times stay as the clients measured them. Definitions that differ from `erlab.results.metrics`: vLLM's and SGLang's time
to first token counts a first chunk without text; MLPerf's starts at the scheduled time, ours when the request is sent
(`late_ns` is the difference). What a client does not record is unknown: GuideLLM the times of tokens, GenAI-Perf and
MLPerf the number of tokens.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from erlab import paths, textfiles
from erlab.errors import ErlabError, reason
from erlab.results import formats, records
from erlab.spec import require

_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)


def read(
    path: Path,
    system: str,
    users: int | None = None,
    machine: str | None = None,
    paper: str | None = None,
    name: str | None = None,
) -> records.Records:
    """Read a result file of another client as request records.

    Args:
        path: Result file.
        system: Name of the measured system in the records.
        users: Concurrent users, at least 1; None takes the client's setting where the result has it, else the largest
            number of requests in flight.
        machine: Machine in the records.
        paper: Version of the paper in the records, v1 or v2.
        name: Start of the run ids, which end with the index of the run in the file (default: the file's name).

    Raises:
        ErlabError: The file has none of the formats, no requests, or values that no request record can have.
    """
    require(users is None or type(users) is int and users >= 1, "users", "read", "be at least 1, or None", users)
    path = Path(path)
    text = textfiles.read(path)
    left_out = Counter()
    try:
        client, runs = formats.runs(formats.documents(text, left_out), left_out)
    except formats.Unsupported as e:
        raise ErlabError(f"{path}: {e}") from None
    except _MALFORMED as e:
        error = f"{type(e).__name__}: {reason(e)}"
        raise ErlabError(f"{path}: no result of {', '.join(formats.CLIENTS)} ({error}).") from None
    if not any(run.rows for run in runs):
        suffix = f" ({_list(left_out)} left out)" if left_out else ""
        raise ErlabError(f"{path}: the {client} result has no requests{suffix}.")
    rows, descriptions = [], []
    for i, (run, known_users) in enumerate(runs):
        if not run:
            continue
        common = {
            "run_id": f"{name or path.stem}-{i}",
            "paper": paper,
            "system": system,
            "source": "measured",
            "machine": machine,
            "users": users or known_users or _most_in_flight(run),
        }
        missing = (name for row in run if row["status"] == "ok" for name in formats.TIMES if row[name] is None)
        left_out += Counter(f"{name} of a request that ended well" for name in missing)
        start = min(row["t_submit"] for row in run)
        rows += [row | common for row in sorted((_since(row, start) for row in run), key=lambda row: row["t_submit"])]
        descriptions.append(common | {"client": client, "file": path.name})
    descriptions = [run | {"left_out": _list(left_out)} for run in descriptions]
    try:
        table = pa.Table.from_pylist(rows, schema=records.SCHEMA)
    except (pa.ArrowException, *_MALFORMED) as e:
        raise ErlabError(f"{path}: the {client} result cannot be request records ({reason(e)}).") from None
    return records.from_table(table, *descriptions, origin=path)


def read_all(files: Iterable[Path], **about: str | None) -> records.Records:
    """Read and join result files, each once; `about`: arguments of `read` besides path and name."""
    files = list({os.path.realpath(file): Path(file) for file in files}.values())
    return records.join(*(read(file, name=name, **about) for file, name in zip(files, paths.names(files))))


def _since(row: dict, start: int) -> dict:
    """Return the row with times relative to the run's start; a failed request ends with its last token or later."""
    times, last = row.get("token_times"), row["t_last"]
    if last is not None and row["status"] != "ok":
        last = max([last, row["t_first"] or last, *(times or ())])
    row = row | {"t_last": last}
    relative = {name: None if row[name] is None else row[name] - start for name in formats.TIMES}
    return row | relative | {"token_times": None if times is None else [t - start for t in times]}


def _most_in_flight(rows: list[dict]) -> int:
    ends = (math.inf if row["t_last"] is None else row["t_last"] for row in rows)
    events = sorted(event for row, end in zip(rows, ends) for event in ((row["t_submit"], 1), (end, -1)))
    most = now = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return max(most, 1)


def _list(left_out: Counter) -> str | None:
    """Format what was left out, None if nothing was."""
    return ", ".join(f"{count} x {entry}" for entry, count in sorted(left_out.items())) or None
