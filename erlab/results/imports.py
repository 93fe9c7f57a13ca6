"""Results of other benchmark clients as request records, and records as CSV.

    found = read("artifacts/profile_export.jsonl", system="E", machine="DGX H100")
    records.save(folder / "aiperf.parquet", found)

The format is recognised by the content (`erlab.results.formats`):

- AIPerf 0.2 and later: `profile_export.jsonl`, one request per line;
- GuideLLM 0.4 and later: `benchmarks.json`, one run per benchmark;
- `vllm bench serve --save-result --save-detailed`: one run per appended result that has `start_times`.

Entries that cannot be a request record are left out; each run's description lists them (`left_out`, a text).

Times stay as the clients measured them. Definitions that differ from `erlab.results.metrics`: vLLM's time to first
token counts a first chunk without text. GuideLLM has no time per token, and neither GuideLLM nor vLLM name the user.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from erlab import textfiles
from erlab.errors import ErlabError, reason
from erlab.results import formats, records
from erlab.spec import require

_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
_BLANK = re.compile(r"[ \t\r\n]*")


def read(
    path: Path, system: str, users: int | None = None, machine: str | None = None, paper: str | None = None
) -> records.Records:
    """Read a result file of another client as request records.

    Run ids are the file's name and the index of the run in it.

    Args:
        path: Result file.
        system: Name of the measured system in the records.
        users: Concurrent users, at least 1; None takes the largest number of requests in flight.
        machine: Machine in the records.
        paper: Version of the paper in the records, v1 or v2.

    Raises:
        ErlabError: The file has none of the formats, no requests, or values that no request record can have.
    """
    require(users is None or type(users) is int and users >= 1, "users", "read", "be at least 1, or None", users)
    path = Path(path)
    text = textfiles.read(path)
    left_out = Counter()
    try:
        client, runs = _runs(list(_documents(text, left_out)), left_out)
    except formats.Unsupported as e:
        raise ErlabError(f"{path}: {e}") from None
    except _MALFORMED as e:
        error = f"{type(e).__name__}: {reason(e)}"
        raise ErlabError(f"{path}: no result of AIPerf, GuideLLM or vLLM bench serve ({error}).") from None
    if not any(runs):
        suffix = f" ({_list(left_out)} left out)" if left_out else ""
        raise ErlabError(f"{path}: the {client} result has no requests{suffix}.")
    rows, descriptions = [], []
    for i, run in enumerate(runs):
        if not run:
            continue
        common = {
            "run_id": f"{path.stem}-{i}",
            "paper": paper,
            "system": system,
            "source": "measured",
            "machine": machine,
            "users": users or _most_in_flight(run),
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


def write_csv(path: Path, found: records.Records) -> None:
    """Write request records as CSV, one row per request; `token_times` as a JSON list of ns, unknown values empty."""
    times = [None if t is None else json.dumps([int(ns) for ns in t]) for t in found.requests["token_times"]]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.requests.assign(token_times=times).to_csv(path, index=False)


def _documents(text: str, left_out: Counter) -> Iterator[object]:
    """Yield the JSON values of a text; an incomplete last line is left out."""
    decoder, at, first = json.JSONDecoder(), _BLANK.match(text).end(), True
    while at < len(text):
        try:
            document, end = decoder.raw_decode(text, at)
        except ValueError as e:
            if first or "\n" in text[at:].strip():
                raise ValueError(f"line {text.count(chr(10), 0, at) + 1}: {getattr(e, 'msg', e)}") from None
            left_out["last line, cut short"] += 1
            return
        yield document
        at, first = _BLANK.match(text, end).end(), False


def _runs(documents: list, left_out: Counter) -> tuple[str, list[list[dict]]]:
    """Return the client that wrote the documents, and the rows of each run."""
    if not documents:
        raise ValueError("the file is empty")
    clients = sorted({formats.recognise(document) for document in documents})
    if len(clients) > 1:
        raise formats.Unsupported(f"results of {' and '.join(clients)} in one file; give each a file of its own.")
    return clients[0], formats.FORMATS[clients[0]].read(documents, left_out)


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
