"""Traces of production services and load generators: arrivals, token lengths, sessions and shared prefixes.

`TRACES` is the registry: a format names its columns and units, and `read` recognizes it by the columns of a file.

>>> import pathlib, tempfile
>>> path = pathlib.Path(tempfile.mkdtemp()) / "trace.csv"
>>> lines = ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46,374,44", "2023-11-16 18:15:50,396,109"]
>>> _ = path.write_text("\\n".join(lines))
>>> read(path).traffic.at.tolist()
[0.0, 4.0]
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from erlab import textfiles
from erlab.errors import ErlabError, reason
from erlab.prompts.traffic import Traffic
from erlab.spec import require

MOST_TOKENS = 10_000_000  # of a request
MOST_SECONDS = 1e9  # between a trace's first and last request
_MOST_IDS = 1_000_000  # of a prompt's blocks
_FIELDS = ("time", "input", "output", "session")


@dataclass(frozen=True)
class TraceFormat:
    """Columns of a trace file and their units.

    Attributes:
        about: Origin, for help texts.
        lines: Whether each line is a JSON object; else the file is CSV.
        time: Column of the arrival time.
        input: Column of the prompt tokens.
        output: Column of the output tokens.
        unit: Seconds per unit of a time; None for dates and times (ISO 8601, UTC if without zone).
        session: Column of the session, which a file may lack.
        delay: Column of the time after the answer before, instead of an arrival time.
        prefix: Column of the ids of the prompt's blocks, which a file may lack.
        block_tokens: Tokens per block.
        marks: Columns by which a file is recognized, besides those of time and lengths.
    """

    about: str
    lines: bool
    time: str
    input: str
    output: str
    unit: float | None = 1.0
    session: str | None = None
    delay: str | None = None
    prefix: str | None = None
    block_tokens: int = 0
    marks: tuple[str, ...] = ()

    def fits(self, columns: Sequence[str]) -> bool:
        """Return whether a file with these columns has this format."""
        needed = (self.input, self.output, *(self.marks or (self.time,)))
        return all(name in columns for name in needed)


_LENGTHS = dict(lines=True, time="timestamp", input="input_length", output="output_length", prefix="hash_ids")
# The first format that fits a file is taken: more specific ones come first.
TRACES = {
    "azure": TraceFormat(
        "Azure LLM inference, 2023 and 2024", False, "TIMESTAMP", "ContextTokens", "GeneratedTokens", None
    ),
    "burstgpt": TraceFormat("BurstGPT", False, "Timestamp", "Request tokens", "Response tokens", session="Session ID"),
    "servegen": TraceFormat("ServeGen", False, "timestamp", "input_tokens", "output_tokens"),
    "aiperf": TraceFormat(
        "AIPerf", unit=1e-3, session="session_id", delay="delay", block_tokens=512, marks=("session_id",), **_LENGTHS
    ),
    "mooncake": TraceFormat("Mooncake", unit=1e-3, block_tokens=512, **_LENGTHS),
    "vllm": TraceFormat("timed trace of vLLM's bench serve", block_tokens=16, **_LENGTHS),
    "csv": TraceFormat("other CSV, times in seconds or as dates", False, "arrival_s", "input_tokens", "output_tokens"),
}


@dataclass(frozen=True)
class Trace:
    """A trace that was read.

    Attributes:
        traffic: Its requests; a session is one user.
        format: Name in `TRACES`.
        skipped: Requests without prompt or output tokens, such as failed ones, which are left out.
    """

    traffic: Traffic
    format: str
    skipped: int


def columns(text: str) -> dict[str, str]:
    """Parse the columns of another CSV file, such as ``time=t,input=prompt,output=answer``.

    >>> columns("time=t, input=prompt,output=answer")
    {'time': 't', 'input': 'prompt', 'output': 'answer'}
    """
    pairs = [part.partition("=") for part in text.split(",")]
    named = {key.strip(): value.strip() for key, _, value in pairs}
    needed = set(_FIELDS[:3])
    if not needed <= named.keys() <= set(_FIELDS) or not all(named.values()) or len(named) < len(pairs):
        raise ErlabError(f"Columns must be given as time=NAME,input=NAME,output=NAME[,session=NAME]. Got {text!r:.100}.")
    return named


def read(
    path: Path, name: str | None = None, named: Mapping[str, str] | None = None, block_tokens: int | None = None
) -> Trace:
    """Read a trace; its first request arrives at 0 s.

    Requests of a session are sent in order, none before the answer to the one before. Arrivals must not decrease,
    except between sessions.

    Args:
        path: File in one of `TRACES`.
        name: Format (default: the one whose columns the file has).
        named: Columns of another CSV file, see `columns`.
        block_tokens: Tokens per prefix id (default: that of the format).

    Raises:
        ErlabError: The file has another format, or impossible numbers; the message names file and line.
    """
    path = Path(path)
    require(name is None or name in TRACES, "format", "the trace", f"be one of {', '.join(TRACES)}", name)
    text = textfiles.read(path)
    if not text.strip():
        raise ErlabError(f"{path}: no trace, the file is empty.")
    rows = _json_rows(text, path) if text.lstrip().startswith("{") else _csv_rows(text, path)
    kind, rows = _recognized(rows, name, named, path)
    chosen = TRACES[kind]
    if named:
        chosen = replace(chosen, **named)
    if block_tokens is not None:
        chosen = replace(chosen, block_tokens=block_tokens)
    return _parsed(rows, chosen, kind, path)


def _recognized(rows: Iterator, name: str | None, named: Mapping | None, path: Path) -> tuple[str, Iterator]:
    """Return the format's name and the rows."""
    start, found = next(rows)
    keys = tuple(found)
    in_lines = start > 0  # the first row of a CSV file is its header, as line 0
    if name is None and named:
        name = "csv"
    if name is None:
        fitting = [k for k, f in TRACES.items() if f.lines == in_lines and f.fits(keys)]
        if not fitting:
            known = "; ".join(
                f"{k}: {', '.join((f.time, f.input, f.output))}" for k, f in TRACES.items() if f.lines == in_lines
            )
            got = textfiles.printable(", ".join(map(str, keys)))[:100] or "none"
            raise ErlabError(f"{path}: no trace of a known format, the columns must be those of {known}. Got {got}.")
        name = fitting[0]
        if name == "mooncake" and _blocks(found, 512) is False and _blocks(found, 16):
            name = "vllm"
    chosen = TRACES[name]
    require(chosen.lines == in_lines, "format", "the trace", f"be one of a {'JSONL' if in_lines else 'CSV'} file", name)
    if not in_lines:
        needed = [(named or {}).get(key) or getattr(chosen, key) for key in _FIELDS[:3]]
        needed += [(named or {})["session"]] if named and "session" in named else []
        if missing := [column for column in needed if column not in keys]:
            got = textfiles.printable(", ".join(keys))[:100]
            raise ErlabError(f"{path}: no trace, it must have the column {missing[0]}. Got {got}.")
        return name, rows
    return name, _again(start, found, rows)


def _again(line: int, row: dict, rows: Iterator) -> Iterator:
    yield line, row
    yield from rows


def _blocks(row: Mapping, block: int) -> bool | None:
    """Return whether a request has one id per block of this size; None if unknown."""
    ids, tokens = row.get("hash_ids"), row.get("input_length")
    if not isinstance(ids, list) or not isinstance(tokens, int):
        return None
    return len(ids) == -(-tokens // block)


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, dict]]:
    """Yield each line's number, from 1, and object."""
    for number, line in enumerate(textfiles.lines(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise ErlabError(f"{path}:{number}: no trace, a line must be one JSON object ({reason(e)}).") from None
        if not isinstance(row, dict):
            raise ErlabError(f"{path}:{number}: no trace, a line must be one JSON object. Got a {type(row).__name__}.")
        yield number, row


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, dict | list]]:
    """Yield the columns as line 0, then each row's line number and object."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(rows)]
        yield 0, header
        for row in rows:
            if row:
                yield rows.line_num, dict(zip(header, row))
    except csv.Error as e:
        raise ErlabError(f"{path}: no trace, it must be comma-separated values ({e}).") from None


def _parsed(rows: Iterator[tuple[int, dict]], chosen: TraceFormat, kind: str, path: Path) -> Trace:
    """Check the rows and arrange them by session."""
    time, tokens = (_date if chosen.unit is None else _seconds), _tokens
    at, pause, inputs, outputs, sessions, prefixes, skipped = [], [], [], [], [], [], 0
    latest: dict[object, float] = {}
    line = 0
    try:
        for line, row in rows:
            prompt, output = tokens(row.get(chosen.input), chosen.input), tokens(row.get(chosen.output), chosen.output)
            session = row.get(chosen.session) if chosen.session else None
            key = len(at) if session in (None, "") else str(session)
            wait = 0.0
            if chosen.delay and row.get(chosen.time) is None and row.get(chosen.delay) is not None:
                wait = _seconds(row[chosen.delay], chosen.delay, chosen.unit, path)
                if key not in latest:
                    raise ValueError(f"the first request of a session must have a {chosen.time!r}, not only a delay")
                moment = latest[key]
            else:
                moment = time(row.get(chosen.time), chosen.time, chosen.unit, path)
            before = latest.get(key) if chosen.session and session not in (None, "") else latest.get(None)
            if before is not None and moment < before:
                raise ValueError(f"the arrivals of a trace must not decrease. Got one {before - moment:g} s earlier")
            latest[key] = moment
            if session in (None, ""):
                latest[None] = moment
            if not (prompt and output):
                skipped += 1
                continue
            at.append(moment)
            pause.append(wait)
            inputs.append(prompt)
            outputs.append(output)
            sessions.append(key)
            prefixes.append(_ids(row.get(chosen.prefix), chosen.prefix) if chosen.prefix else None)
    except ValueError as e:
        raise ErlabError(f"{path}:{line}: no trace, {e}.") from None
    if not at:
        raise ErlabError(f"{path}: the trace holds no requests with prompt and output tokens.")
    return Trace(_by_session(at, pause, inputs, outputs, sessions, prefixes, chosen.block_tokens, path), kind, skipped)


def _by_session(at, pause, inputs, outputs, sessions, prefixes, block_tokens: int, path: Path) -> Traffic:
    """Group requests by session; sessions are ordered by their first request."""
    at = np.array(at)
    at -= at.min()
    if at.max() > MOST_SECONDS:
        raise ErlabError(f"{path}: no trace, its times must span at most {MOST_SECONDS:g} s. Got {at.max():g} s.")
    starts: dict[object, float] = {}
    for key, moment in zip(sessions, at.tolist()):
        starts.setdefault(key, moment)
    ranked = {key: i for i, key in enumerate(sorted(starts, key=starts.__getitem__))}
    user = np.array([ranked[key] for key in sessions])
    order = np.argsort(user, kind="stable")
    user = user[order]
    new = np.r_[True, user[1:] != user[:-1]]
    turn = np.arange(len(user)) - np.flatnonzero(new)[np.cumsum(new) - 1]
    known = all(prefix is not None for prefix in prefixes)
    return Traffic(
        user, turn, np.array(inputs)[order], np.array(outputs)[order], at[order], np.array(pause)[order],
        prefix=[prefixes[i] for i in order] if known else None, block_tokens=block_tokens if known else 0,
    )  # fmt: skip


def _seconds(value: object, column: str, unit: float | None, path: Path) -> float:
    """Return a time in seconds; a text may also be a date where the unit is a second."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        if unit == 1.0 and isinstance(value, str):
            return _date(value, column, unit, path)
        number = None
    if number is None or not 0 <= number <= 1e18:
        raise ValueError(f"{column!r} must be a number from 0. Got {value!r:.40}")
    return number * unit


def _date(value: object, column: str, unit: float | None, path: Path) -> float:
    """Return a date and time in seconds since 1970."""
    try:
        moment = datetime.fromisoformat((value or "").strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, AttributeError, OverflowError):
        allowed = "be a date and time, such as 2023-11-16 18:15:46.68"
        raise ValueError(f"{column!r} must {allowed}. Got {value!r:.40}") from None


def _tokens(value: object, column: str) -> int:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        number = -1.0
    if not (0 <= number <= MOST_TOKENS and number == int(number)):
        raise ValueError(f"{column!r} must be a whole number of tokens from 0 to {MOST_TOKENS:,}. Got {value!r:.40}")
    return int(number)


def _ids(value: object, column: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) <= _MOST_IDS and all(type(i) is int for i in value)):
        raise ValueError(f"{column!r} must be a list of whole numbers. Got {value!r:.40}")
    return tuple(value)
