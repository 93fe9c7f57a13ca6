"""Load shapes: start times, think times and answer lengths.

In a closed loop every user begins at the start (`starts` = None) and sends the next request when the one before has
been answered. In an open loop requests arrive independently of answers: each is a user of its own (`apart`) with a
start time in seconds.

>>> constant(2.0, 3).tolist()
[0.0, 0.5, 1.0]
>>> 95 < poisson(100.0, 10_000, seed=0).max() < 105
True
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from erlab import textfiles
from erlab.errors import ErlabError, reason
from erlab.prompts.workload import Request
from erlab.spec import is_number, require


def poisson(rate: float, count: int, seed: int) -> np.ndarray:
    """Draw `count` arrival times, in seconds, of a Poisson process with `rate` requests per second."""
    require(rate > 0, "rate", "poisson", "be above 0 requests a second", rate)
    return np.random.default_rng(seed).exponential(1 / rate, count).cumsum()


def constant(rate: float, count: int) -> np.ndarray:
    """Return `count` arrival times, in seconds, at `rate` requests per second from 0."""
    require(rate > 0, "rate", "constant", "be above 0 requests a second", rate)
    return np.arange(count) / rate


def trace(path: Path, speed: float = 1.0) -> np.ndarray:
    """Read the arrival times of a trace, in seconds after its first request.

    Args:
        path: One of Azure's LLM inference traces (CSV with the column TIMESTAMP: ISO dates and times, UTC by default),
            or one of Mooncake's or AIPerf's (one JSON object per line with `timestamp`, ms).
        speed: Factor by which the trace is replayed faster.

    Raises:
        ErlabError: The file is neither, or its times decrease; the message names file and line.
    """
    require(speed > 0, "speed", "trace", "be above 0", speed)
    path = Path(path)
    text = textfiles.read(path)
    times = list(_json_times(text, path) if text.lstrip().startswith("{") else _csv_times(text, path))
    if not times:
        raise ErlabError(f"{path}: the trace holds no times.")
    for (_, before), (line, time) in zip(times, times[1:]):
        if time < before:
            raise ErlabError(f"{path}:{line}: the times of a trace must rise. Got one {before - time:g} s earlier.")
    since = np.array([time for _, time in times]) - times[0][1]
    return since / speed


def _json_times(text: str, path: Path) -> Iterator[tuple[int, float]]:
    """Yield each request's line number, from 1, and time in seconds."""
    for number, line in enumerate(textfiles.lines(text), 1):
        if not line.strip():
            continue
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise ErlabError(f"{path}:{number}: no trace, a line must be one JSON object ({reason(e)}).") from None
        time = request.get("timestamp") if isinstance(request, dict) else None
        if time is None and isinstance(request, dict) and request.keys() & {"delay", "session_id", "turns"}:
            raise ErlabError(
                f"{path}:{number}: a trace of AIPerf's conversations, whose turns follow answers after a `delay` and "
                "have no times of their own; a trace needs a `timestamp` (ms) on every line."
            )
        if not is_number(time):
            raise ErlabError(f"{path}:{number}: no trace, `timestamp` must be a number of ms. Got {time!r:.40}.")
        yield number, time / 1e3


def _csv_times(text: str, path: Path) -> Iterator[tuple[int, float]]:
    """Yield each request's line number, from 1, and time in seconds since 1970."""
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if "TIMESTAMP" not in (rows.fieldnames or ()):
            columns = textfiles.printable(", ".join(rows.fieldnames or ()) or "an empty file")[:100]
            raise ErlabError(f"{path}: no trace, a CSV file must have the column TIMESTAMP. Got {columns}.")
        for row in rows:
            try:
                time = datetime.fromisoformat((row["TIMESTAMP"] or "").strip())
            except ValueError:
                allowed = "TIMESTAMP must be a date and time, such as 2023-11-16 18:15:46.68"
                came = f"{row['TIMESTAMP']!r:.40}"
                raise ErlabError(f"{path}:{rows.line_num}: no trace, {allowed}. Got {came}.") from None
            yield rows.line_num, (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
    except csv.Error as e:
        raise ErlabError(f"{path}: no trace, it must be comma-separated values ({e}).") from None


def apart(requests: list[list[Request]], count: int | None = None) -> list[list[Request]]:
    """Make every request a user of its own, for an open loop; `count` of them, repeated as needed."""
    turns = range(max(map(len, requests)))
    every = [request for turn in turns for mine in requests for request in mine[turn : turn + 1]]
    return [[every[i % len(every)]] for i in range(len(every) if count is None else count)]


def answers(requests: list[list[Request]], tokens: int) -> list[list[Request]]:
    """Set the answer length of all requests to `tokens`, instead of the sampled length.

    An engine with an end token may end an answer earlier; erlab's own engines never do. For answers up to the end token
    use the engine's largest output length.
    """
    require(tokens >= 1, "tokens", "answers", "be at least 1", tokens)
    return [[replace(request, max_tokens=tokens) for request in mine] for mine in requests]


def pauses(think: float, counts: Sequence[int], seed: int) -> list[list[float]]:
    """Draw each user's think times, in seconds: exponential with mean `think`, none before the first request."""
    require(think >= 0, "think", "run", "be at least 0 seconds", think)
    rng = np.random.default_rng([seed, len(counts)])
    return [[0.0, *rng.exponential(think, n - 1).tolist()] if think else [0.0] * n for n in counts]
