"""Request records: one row per request, measured or simulated.

A file is a parquet table with the columns of `SCHEMA`. Its metadata has one JSON object per run (`runs`): system,
workload, machine, commit and seed of the run's rows. In tables of other origin, missing optional columns read as null.

>>> import tempfile, pathlib
>>> row = dict(run_id="r", system="C", source="measured", users=1, user=0, turn=0, t_submit=0, status="ok")
>>> path = pathlib.Path(tempfile.mkdtemp()) / "r.parquet"
>>> write(path, [row], {"run_id": "r", "commit": "abc"})
>>> read(path).requests.loc[0, "t_first"] is pd.NA
True
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from erlab import parquet
from erlab.errors import ErlabError

MAX_TEXT = 100_000  # bytes of a name or an error's text
MAX_NUMBER = 2**62  # so that the difference of any two fits into 64 bits
_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
SCHEMA = pa.schema(
    [
        pa.field("run_id", _TEXT, nullable=False),  # run: one system under one load
        ("paper", _TEXT),  # v1 or v2
        pa.field("system", _TEXT, nullable=False),  # A to E, or another name
        pa.field("source", _TEXT, nullable=False),  # measured or simulated
        ("machine", _TEXT),
        pa.field("users", _INT, nullable=False),  # concurrent users
        ("user", _INT),
        ("turn", _INT),  # index of the request within the user's session
        ("prompt_id", _TEXT),
        ("domain", _TEXT),
        ("input_tokens", _INT),
        ("output_tokens", _INT),
        ("cluster", _INT),  # of the router's decision; null for baselines, as the next six
        ("expert", _TEXT),
        ("distance", _FLOAT),
        ("margin", _FLOAT),
        ("policy", _TEXT),
        ("classify_ns", _INT),  # classification of the prompt in the gateway
        ("queue_ns", _INT),  # time in the expert's queue in the gateway
        ("late_ns", _INT),  # delay of the user after the request was due
        ("expert_ns", _INT),  # arrival at the expert to first token, if the expert stamps its responses
        ("disordered", _INT),  # responses out of order, if the expert numbers them
        ("t_submit", _INT),  # ns since the run's start, like the next three
        ("t_routed", _INT),
        ("t_first", _INT),
        ("t_last", _INT),
        ("token_times", pa.list_(_INT)),  # ns, one per received response with text
        pa.field("status", _TEXT, nullable=False),  # ok, or the kind of failure, such as error or timeout
        ("error", _TEXT),
    ]
)
_REQUIRED = [f.name for f in SCHEMA if not f.nullable]
_RUNS = b"erlab.runs"


@dataclass(frozen=True, eq=False)  # compared by identity, so results can be cached per object
class Records:
    """Request records and the descriptions of their runs.

    Attributes:
        requests: One row per request, columns of `SCHEMA`, nullable types of pandas.
        runs: One row per run.
    """

    requests: pd.DataFrame
    runs: pd.DataFrame

    def _repr_html_(self) -> str:
        """Return a table of the requests per system, source and load, for Jupyter."""
        failed = self.requests.assign(failed=self.requests["status"] != "ok")
        cells = failed.groupby(["system", "source", "users"], dropna=False)["failed"]
        table = cells.agg(requests="size", failed="sum").reset_index()
        names_as_text = ["tex2jax_ignore", "mathjax_ignore"]
        return f"<p>{len(self.requests)} requests</p>{table.to_html(index=False, classes=names_as_text)}"


def write(path: Path, rows: Iterable[Mapping], *runs: Mapping) -> None:
    """Write rows, with unknown values absent or None, and the descriptions of their runs."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    parquet.save(table.replace_schema_metadata({_RUNS: json.dumps(list(runs))}), path)


def read(*paths: Path, columns: Collection[str] | None = None) -> Records:
    """Read and join files of records.

    Args:
        paths: Files, each read once, and folders, whose .parquet files are read in the order of their names. Columns
            that are not in `SCHEMA` are not read.
        columns: Columns to read besides the required ones; the others are null. None for all.

    Raises:
        ErlabError: A file is missing, no parquet, larger than the bounds of `erlab.parquet`, lacks a required column,
            or has invalid values: other types, negative numbers, times in wrong order. The message names the file.
    """
    candidates = [f for p in map(Path, paths) for f in (sorted(p.rglob("*.parquet")) if p.is_dir() else [p])]
    files = {}
    for file in candidates:
        files.setdefault(os.path.realpath(file), file)
    if not files:
        raise ErlabError(f"No request records (.parquet) in {', '.join(map(str, paths))}.")
    tables, runs = [], []
    for file in files.values():
        table = parquet.read(file, lambda schema: _read_columns(_chosen(schema, file), columns), MAX_TEXT)
        runs += _described(table, file)
        tables.append(_conform(table, file))
    requests = pa.concat_tables(tables).to_pandas(types_mapper=_PANDAS_TYPES.get)
    return Records(requests, pd.DataFrame(runs))


def _read_columns(names: list[str], columns: Collection[str] | None) -> list[str]:
    return [name for name in names if columns is None or name in columns or name in _REQUIRED]


def _chosen(schema: pa.Schema, file: Path | str) -> list[str]:
    """Return the columns of SCHEMA that a table has; raise ErlabError for missing columns and wrong types."""
    if missing := [c for c in _REQUIRED if c not in schema.names]:
        raise ErlabError(f"{file}: not request records, the columns {', '.join(missing)} are missing.")
    chosen = [name for name in SCHEMA.names if name in schema.names]
    for name in chosen:
        wanted, came = SCHEMA.field(name).type, schema.field(name).type
        # A cast would read the milliseconds of a timestamp as nanoseconds, and the text of a list as text.
        nested = pa.types.is_nested(came) and not pa.types.is_dictionary(came)
        if pa.types.is_temporal(came) or nested != pa.types.is_nested(wanted):
            raise ErlabError(f"{file}: not request records (the column {name} must be {_KINDS[wanted]}. Got {came}).")
    return chosen


def _described(table: pa.Table, file: Path) -> list[dict]:
    """Return the descriptions of a file's runs."""
    try:
        runs = json.loads((table.schema.metadata or {}).get(_RUNS, b"[]"))
    except (ValueError, RecursionError) as e:
        raise ErlabError(f"{file}: not request records (the description of its runs is no JSON: {e}).") from None
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise ErlabError(f"{file}: not request records (the description of its runs is no list of objects).")
    for name, value in (item for run in runs for item in run.items()):
        if not _fits(name, value):
            allowed = "a number" if name in _RUN_NUMBERS else f"a text of at most {MAX_TEXT:,} characters"
            raise ErlabError(f"{file}: not request records (a run's {name} must be {allowed}. Got {_short(value)}).")
    return runs


def _fits(name: str, value: object) -> bool:
    """Return whether a field of a run's description has its type; runs are grouped and drawn by some fields."""
    if name in _RUN_TEXTS:
        return value is None or (isinstance(value, str) and len(value) <= MAX_TEXT)
    return name not in _RUN_NUMBERS or isinstance(value, int | float | None)


def _short(value: object) -> str:
    return f"{len(value):,} characters" if isinstance(value, str) else f"a {type(value).__name__}"


def join(*parts: Records) -> Records:
    """Join records."""
    requests = pd.concat([part.requests for part in parts], ignore_index=True)
    return Records(requests, pd.concat([part.runs for part in parts], ignore_index=True))


def at_hand(folder: Path) -> Records:
    """Return the records of a folder, empty ones if it has none."""
    if not any(Path(folder).rglob("*.parquet")):
        return Records(SCHEMA.empty_table().to_pandas(types_mapper=_PANDAS_TYPES.get), pd.DataFrame())
    return read(folder)


def from_table(table: pa.Table, *runs: Mapping, origin: Path | str = "table") -> Records:
    """Make records from an Arrow table.

    Args:
        table: Columns of SCHEMA; optional ones may be missing.
        runs: Descriptions of the runs.
        origin: Name of the table in errors.

    Raises:
        ErlabError: The table has values that no record can have.
    """
    return Records(_conform(table, origin).to_pandas(types_mapper=_PANDAS_TYPES.get), pd.DataFrame(runs))


def save(path: Path, records: Records) -> None:
    """Write records to a file."""
    table = pa.Table.from_pandas(records.requests, schema=SCHEMA, preserve_index=False)
    runs = json.loads(records.runs.to_json(orient="records"))
    parquet.save(table.replace_schema_metadata({_RUNS: json.dumps(runs)}), path)


def _conform(table: pa.Table, file: Path | str) -> pa.Table:
    """Return all columns of SCHEMA, missing ones as null; raise ErlabError for invalid values."""
    present = _chosen(table.schema, file)
    columns = [table[f.name] if f.name in present else pa.nulls(len(table), f.type) for f in SCHEMA]
    try:
        conformed = pa.table(columns, names=SCHEMA.names).cast(SCHEMA).replace_schema_metadata(None)
    except (pa.ArrowException, ValueError) as e:
        raise ErlabError(f"{file}: not request records ({parquet.first_line(e)}).") from None
    if error := _invalid(conformed):
        raise ErlabError(f"{file}: not request records ({error}).")
    return conformed


def _invalid(table: pa.Table) -> str | None:
    """Describe the first invalid value, a number out of its range or a time out of order; None if all are valid."""
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
