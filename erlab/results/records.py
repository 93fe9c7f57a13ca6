"""Request records: one row a request, the only currency between whatever produced them and everything after.

A file is a parquet table with the columns of `SCHEMA`; its metadata holds one JSON object a run (`runs`), with the
system, the workload, the machine, the commit and the seed that the run's rows came from. A table written by other
means needs only the columns it knows: the others read as null.

>>> import tempfile, pathlib
>>> row = dict(run_id="r", system="C", source="measured", users=1, user=0, turn=0, t_submit=0, status="ok")
>>> path = pathlib.Path(tempfile.mkdtemp()) / "r.parquet"
>>> write(path, [row], {"run_id": "r", "commit": "abc"})
>>> read(path).requests.loc[0, "t_first"] is pd.NA
True
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from erlab import parquet
from erlab.errors import ErlabError

MAX_TEXT = 100_000  # bytes of a name or an error's text
MAX_NUMBER = 2**62  # so that the difference of any two fits into 64 bits
_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
SCHEMA = pa.schema(
    [
        pa.field("run_id", _TEXT, nullable=False),  # one run: one system under one load
        ("paper", _TEXT),  # v1 or v2
        pa.field("system", _TEXT, nullable=False),  # A to E, or another system's name
        pa.field("source", _TEXT, nullable=False),  # measured or simulated
        ("machine", _TEXT),  # on what
        pa.field("users", _INT, nullable=False),  # the load
        ("user", _INT),
        ("turn", _INT),  # that user's how-manieth request, from 0
        ("prompt_id", _TEXT),
        ("domain", _TEXT),
        ("input_tokens", _INT),
        ("output_tokens", _INT),
        ("cluster", _INT),  # what the router decided; null for baselines, like the next six
        ("expert", _TEXT),
        ("distance", _FLOAT),
        ("margin", _FLOAT),
        ("policy", _TEXT),
        ("classify_ns", _INT),  # how long the gateway classified the prompt, and how long it queued the request
        ("queue_ns", _INT),
        ("late_ns", _INT),  # how long after it was due the user sent it
        ("expert_ns", _INT),  # from arrival at the expert to its first token, where the expert stamps its answers
        ("disordered", _INT),  # responses that came in another's place, where the expert numbers them
        ("t_submit", _INT),  # ns since the run's start, like the next three
        ("t_routed", _INT),
        ("t_first", _INT),
        ("t_last", _INT),
        ("token_times", pa.list_(_INT)),  # ns, one a received response with text
        pa.field("status", _TEXT, nullable=False),  # ok, or what went wrong
        ("error", _TEXT),
    ]
)
_REQUIRED = [f.name for f in SCHEMA if not f.nullable]
_RUNS = b"erlab.runs"


@dataclass(frozen=True, eq=False)  # tables don't compare to one truth; what was computed of one object can be kept
class Records:
    """`requests`: a row a request, pandas' nullable types. `runs`: a row a run, what its rows came from."""

    requests: pd.DataFrame
    runs: pd.DataFrame


def write(path: Path, rows: Iterable[Mapping], *runs: Mapping) -> None:
    """Write rows (unknown values absent or None) and their runs' descriptions; aside first, then renamed."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    save_table(table.replace_schema_metadata({_RUNS: json.dumps(list(runs))}), path)


def save_table(table: pa.Table, path: Path) -> None:
    """Write any table as parquet so that `path` holds either all of it or what it held before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, aside, compression="zstd")
        os.replace(aside, path)
    except OSError as e:
        e.filename = str(path)  # a disk that is full names no file
        raise
    finally:
        aside.unlink(missing_ok=True)


def read(*paths: Path) -> Records:
    """Read and join files of records, and the .parquet files of folders (sorted by name).

    A file counts once, however often it is named. Columns that are not in `SCHEMA` are not read. Raises ErlabError,
    naming the file, where one is missing, is no parquet, is larger than the bounds of `erlab.parquet`, lacks a required
    column, or holds what cannot be in a record: other types, negative numbers, times out of their order.
    """
    found = [f for p in map(Path, paths) for f in (sorted(p.rglob("*.parquet")) if p.is_dir() else [p])]
    files = {}
    for file in found:
        files.setdefault(file.resolve(), file)
    if not files:
        raise ErlabError(f"No request records (.parquet) in {', '.join(map(str, paths))}.")
    tables, runs = [], []
    for file in files.values():
        table = parquet.read(file, lambda schema: _chosen(schema, file), MAX_TEXT)
        runs += _described(table, file)
        tables.append(_conform(table, file))
    requests = pa.concat_tables(tables).to_pandas(types_mapper=_PANDAS_TYPES.get)
    return Records(requests, pd.DataFrame(runs))


def _chosen(schema: pa.Schema, file: Path | str) -> list[str]:
    """The columns of SCHEMA that a table has; refuses a table that lacks required ones, or has other types."""
    if missing := [c for c in _REQUIRED if c not in schema.names]:
        raise ErlabError(f"{file}: not request records, the columns {', '.join(missing)} are missing.")
    chosen = [name for name in SCHEMA.names if name in schema.names]
    for name in chosen:
        wanted, came = SCHEMA.field(name).type, schema.field(name).type
        # A cast would take the milliseconds of a timestamp for nanoseconds, and a list's text for a text.
        nested = pa.types.is_nested(came) and not pa.types.is_dictionary(came)
        if pa.types.is_temporal(came) or nested != pa.types.is_nested(wanted):
            raise ErlabError(f"{file}: not request records (the column {name} must be {_KINDS[wanted]}. Got {came}).")
    return chosen


def _described(table: pa.Table, file: Path) -> list[dict]:
    """The descriptions of a file's runs."""
    try:
        runs = json.loads((table.schema.metadata or {}).get(_RUNS, b"[]"))
    except (ValueError, RecursionError) as e:
        raise ErlabError(f"{file}: not request records (the description of its runs is no JSON: {e}).") from None
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise ErlabError(f"{file}: not request records (the description of its runs is no list of objects).")
    for name, value in (said for run in runs for said in run.items()):
        if not _fits(name, value):
            allowed = "a number" if name in _RUN_NUMBERS else f"a text of at most {MAX_TEXT:,} characters"
            raise ErlabError(f"{file}: not request records (a run's {name} must be {allowed}. Got {_short(value)}).")
    return runs


def _fits(name: str, value: object) -> bool:
    """Whether a run's description may say this; runs are grouped and drawn by some of what it says."""
    if name in _RUN_TEXTS:
        return value is None or (isinstance(value, str) and len(value) <= MAX_TEXT)
    return name not in _RUN_NUMBERS or isinstance(value, int | float | None)


def _short(value: object) -> str:
    return f"{len(value):,} characters" if isinstance(value, str) else f"a {type(value).__name__}"


def join(*parts: Records) -> Records:
    """All rows and runs of several records."""
    requests = pd.concat([part.requests for part in parts], ignore_index=True)
    return Records(requests, pd.concat([part.runs for part in parts], ignore_index=True))


def at_hand(folder: Path) -> Records:
    """The records of a folder, or empty ones where nothing was measured yet."""
    if not any(Path(folder).rglob("*.parquet")):
        return Records(SCHEMA.empty_table().to_pandas(types_mapper=_PANDAS_TYPES.get), pd.DataFrame())
    return read(folder)


def from_table(table: pa.Table, *runs: Mapping, origin: Path | str = "table") -> Records:
    """Records from an Arrow table of any of the columns of SCHEMA and its runs' descriptions; fast for many rows.

    Raises ErlabError, which names the table's `origin`, where it holds what cannot be in a record.
    """
    return Records(_conform(table, origin).to_pandas(types_mapper=_PANDAS_TYPES.get), pd.DataFrame(runs))


def save(path: Path, records: Records) -> None:
    """Write records, as `read` returns them, to a file of their own."""
    table = pa.Table.from_pandas(records.requests, schema=SCHEMA, preserve_index=False)
    runs = json.loads(records.runs.to_json(orient="records"))
    save_table(table.replace_schema_metadata({_RUNS: json.dumps(runs)}), path)


def _conform(table: pa.Table, file: Path | str) -> pa.Table:
    """The columns of SCHEMA in their order and types; absent ones as null. Refuses what is in no record."""
    there = _chosen(table.schema, file)
    columns = [table[f.name] if f.name in there else pa.nulls(len(table), f.type) for f in SCHEMA]
    try:
        conformed = pa.table(columns, names=SCHEMA.names).cast(SCHEMA).replace_schema_metadata(None)
    except (pa.ArrowException, ValueError) as e:
        raise ErlabError(f"{file}: not request records ({parquet.first_line(e)}).") from None
    if why := _impossible(conformed):
        raise ErlabError(f"{file}: not request records ({why}).")
    return conformed


def _impossible(table: pa.Table) -> str | None:
    """What of these records cannot be: numbers out of their range, and times before those that they follow."""
    numbers = {f.name: table[f.name] for f in SCHEMA if f.type == _INT}
    numbers["token_times"] = pc.list_flatten(table["token_times"])
    for name, values in numbers.items():
        least, most = pc.min_max(values).as_py().values()
        lowest = 1 if name == "users" else 0
        if least is not None and least < lowest:
            return f"{name} must be at least {lowest}. Got {least}"
        if most is not None and most > MAX_NUMBER:
            return f"{name} must be at most 2^62. Got {most}"
    for before, after in _IN_ORDER:
        row = pc.index(pc.less(table[after], table[before]), True).as_py()
        if row >= 0:
            came = f"{table[after][row]} and {table[before][row]} in row {row}"
            return f"{after} must not lie before {before}. Got {came}"
    return None


_IN_ORDER = [("t_submit", name) for name in ("t_routed", "t_first", "t_last")] + [("t_first", "t_last")]
_KINDS = {_INT: "whole numbers", _FLOAT: "numbers", _TEXT: "text", pa.list_(_INT): "lists of whole numbers"}
_PANDAS_TYPES = {_INT: pd.Int64Dtype(), _FLOAT: pd.Float64Dtype(), _TEXT: pd.StringDtype()}
_RUN_TEXTS = {"run_id", "experiment", "paper", "system", "source", "machine", "commit", "title", "plays", "model"}
_RUN_TEXTS |= {"precision", "half", "way", "engine", "started", "key", "invalid", "client_invalid"}
_RUN_NUMBERS = {"users", "seed", "count", "tensor_parallel", "cores", "max_batch_size", "kv_tokens", "time_scale"}
