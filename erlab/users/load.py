"""When users begin and how long their answers are: closed loops, open loops, fixed lengths.

In a closed loop every user begins at the start and asks again when answered (`starts` = None). In an open loop requests
come whether or not others have been answered: each is a user of its own (`apart`) who begins at a time given in seconds
after the run's start.

>>> constant(2.0, 3).tolist()
[0.0, 0.5, 1.0]
>>> 95 < poisson(100.0, 10_000, seed=0).max() < 105
True
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from erlab.errors import ErlabError
from erlab.spec import require

if TYPE_CHECKING:
    from erlab.workload import Request


def poisson(rate: float, count: int, seed: int) -> np.ndarray:
    """`count` rising times in seconds of a Poisson process of `rate` requests a second, from its start."""
    require(rate > 0, "rate", "poisson", "be above 0 requests a second", rate)
    return np.random.default_rng(seed).exponential(1 / rate, count).cumsum()


def constant(rate: float, count: int) -> np.ndarray:
    """`count` times in seconds, `rate` a second, the first at 0."""
    require(rate > 0, "rate", "constant", "be above 0 requests a second", rate)
    return np.arange(count) / rate


def trace(path: Path, speed: float = 1.0) -> np.ndarray:
    """The times of a trace's requests in seconds after its first, `speed` times as fast as they came.

    Read are Azure's LLM inference traces (CSV with the column TIMESTAMP, date and time) and Mooncake's and AIPerf's
    (a JSON object a line with `timestamp`, ms). Raises ErlabError where the file is neither or its times don't rise.
    """
    require(speed > 0, "speed", "trace", "be above 0", speed)
    path = Path(path)
    try:
        text = path.read_text().strip()
        if text.startswith("{"):
            times = [float(json.loads(line)["timestamp"]) / 1e3 for line in text.splitlines()]
        else:
            # seven digits of a second come with some of them, one more than Python reads
            rows = csv.DictReader(text.splitlines())
            times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ErlabError(f"{path}: no trace of requests' times ({type(e).__name__}: {e}).") from None
    times = np.asarray(times, float)
    if not len(times) or (np.diff(times) < 0).any():
        raise ErlabError(f"{path}: the times of a trace must rise. Got {len(times)} times.")
    return (times - times[0]) / speed


def apart(requests: list[list["Request"]], count: int | None = None) -> list[list["Request"]]:
    """Every request as a user of its own, for an open loop; `count` of them, in turn again where there are fewer."""
    turns = range(max(map(len, requests)))
    every = [request for turn in turns for mine in requests for request in mine[turn : turn + 1]]
    return [[every[i % len(every)]] for i in range(len(every) if count is None else count)]


def answers(requests: list[list["Request"]], tokens: int) -> list[list["Request"]]:
    """The same requests with `tokens` as every answer's length, or its limit where the engine has an end token.

    The lengths that requests come with are sampled (`erlab.workload`). An answer is as long as was asked unless the
    engine ends it; erlab's own engines never do. For answers up to the end token ask for the engine's largest output.
    """
    require(tokens >= 1, "tokens", "answers", "be at least 1", tokens)
    return [[replace(request, max_tokens=tokens) for request in mine] for mine in requests]


def pauses(think: float, counts: Sequence[int], seed: int) -> list[list[float]]:
    """Seconds that each user thinks before each request: exponential with mean `think`, none before the first."""
    require(think >= 0, "think", "run", "be at least 0 seconds", think)
    rng = np.random.default_rng([seed, len(counts)])
    return [[0.0, *rng.exponential(think, n - 1).tolist()] if think else [0.0] * n for n in counts]
