"""Load of a run as its user describes it: a closed loop, arrivals at a rate, or a trace.

>>> from erlab.paper import WORKLOAD
>>> Load(rate=2.0, duration=30).traffic(WORKLOAD, users=1, seed=0).users
60
>>> Load(requests=5).traffic(WORKLOAD, users=2, seed=0).user.tolist()
[0, 0, 0, 1, 1]
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from erlab.errors import ErlabError
from erlab.prompts import traffic
from erlab.prompts.traffic import Traffic
from erlab.spec import Workload

DURATION = 60.0  # seconds of arrivals at a rate, by default
MOST_REQUESTS = 10_000_000
_ALONE = ("rate", "constant_rate", "trace")


@dataclass(frozen=True)
class Load:
    """How requests are sent; the default is a closed loop.

    Attributes:
        rate: Requests per second of a Poisson process.
        constant_rate: Evenly spaced requests per second.
        trace: Requests of a trace.
        source: Name of the trace in records.
        duration: Seconds of load after the warm-up (default: the workload's requests per user; 60 s at a rate; all of a
            trace).
        requests: Number of requests (default: as many as the duration has).
        think: Mean think time of closed-loop users, seconds; exponential.
        warmup: Seconds at the beginning whose requests are not recorded.

    Raises:
        ErlabError: Two of them exclude each other.
    """

    rate: float | None = None
    constant_rate: float | None = None
    trace: Traffic | None = None
    source: str | None = None
    duration: float | None = None
    requests: int | None = None
    think: float = 0.0
    warmup: float = 0.0

    def __post_init__(self):
        kinds = [f"--{name.replace('_', '-')}" for name in _ALONE if getattr(self, name) is not None]
        if len(kinds) > 1:
            raise ErlabError(f"{kinds[1]} must not stand beside {kinds[0]}.")
        if kinds and self.think:
            raise ErlabError(f"--think is for a closed loop and must not stand beside {kinds[0]}.")
        if self.requests and self.duration and not kinds:
            raise ErlabError("--requests must not stand beside --duration in a closed loop.")
        rate = self.rate or self.constant_rate
        if rate and not (self.requests or 1 <= rate * self._seconds <= MOST_REQUESTS):
            count = rate * self._seconds
            raise ErlabError(f"--duration must leave 1 to {MOST_REQUESTS:,} requests at that rate. Got {count:.3g}.")

    @property
    def closed(self) -> bool:
        """Whether users send the next request after the answer to the one before."""
        return all(getattr(self, name) is None for name in _ALONE)

    @property
    def _seconds(self) -> float:
        default = DURATION if self.rate or self.constant_rate else math.inf
        return self.warmup + (default if self.duration is None else self.duration)

    def traffic(self, workload: Workload, users: int = 1, seed: int = 0, turns: int | None = None) -> Traffic:
        """Draw the load.

        Args:
            workload: Token lengths, except of a trace, and requests per user.
            users: Concurrent users of a closed loop.
            seed: Random seed.
            turns: Requests per user of a closed loop; of one with a duration, the requests that users have ready.
        """
        if self.trace is not None:
            return traffic.first(self.trace, self.requests, self._seconds)
        if not self.closed:
            rate = self.rate or self.constant_rate
            count = self.requests or round(rate * self._seconds)
            at = traffic.constant(rate, count) if self.constant_rate else traffic.poisson(rate, count, seed)
            return traffic.at_rate(workload, at, seed)
        if self.requests:
            if self.requests < users:
                raise ErlabError(f"--requests must be at least the {users} users. Got {self.requests}.")
            drawn = traffic.closed_loop(workload, users, seed, -(-self.requests // users), self.think)
            return traffic.chosen(drawn, drawn.turn * users + drawn.user < self.requests)
        drawn = traffic.closed_loop(workload, users, seed, turns, self.think)
        return drawn if self.duration is None else replace(drawn, until=self._seconds)

    def describe(self) -> dict:
        """Return the load for a run's description."""
        kind = next((name for name in _ALONE if getattr(self, name) is not None), "closed loop")
        known = {name: getattr(self, name) for name in ("rate", "constant_rate", "source", "duration", "requests")}
        known |= {"think": self.think or None, "warmup": self.warmup or None}
        return {"kind": kind.replace("_", " ")} | {name: value for name, value in known.items() if value is not None}

    def tag(self) -> str:
        """Return the load as part of a run's name; empty for the plain closed loop."""
        described = self.describe()
        kind = described.pop("kind")
        numbers = "-".join(f"{value:g}" if isinstance(value, int | float) else value for value in described.values())
        return f"-{kind}-{numbers}".replace(" ", "-") if described else ""

    def title(self) -> str:
        """Return the load in words, such as ``5 requests/s (Poisson)``."""
        if self.trace is not None:
            return f"trace {self.source}"
        if self.closed:
            return "closed loop"
        return f"{self.rate or self.constant_rate:g} requests/s ({'Poisson' if self.rate else 'evenly spaced'})"


def counted(load: Load, t_submit: np.ndarray) -> np.ndarray:
    """Return which requests, by submission time in ns, are after the warm-up; raise ErlabError if none is."""
    after = np.asarray(t_submit) >= load.warmup * 1e9
    if not after.any():
        raise ErlabError(f"--warmup must end before the last request is sent. Got {load.warmup:g} s.")
    return after
