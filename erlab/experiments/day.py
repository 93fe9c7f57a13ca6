"""A day of arrivals on the simulated machine, for notebook 08: latency, queues and goodput over time.

    load = day.load(trace=None)
    runs = day.simulate(load, fullscale.machine(), decisions)
    day.over_time(load, runs), day.summary(runs)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from erlab import paper
from erlab.errors import ErlabError
from erlab.prompts import traces, traffic
from erlab.prompts.loads import Load
from erlab.prompts.traffic import Traffic
from erlab.results import metrics
from erlab.simulation import Setup, beyond, replay
from erlab.spec import is_number, require

HOURS, SPEED = 24.0, 144.0  # of the synthetic day, which is simulated as 10 minutes
MEAN_RATE, SWING = 15.0, 0.6  # requests/s on average, and the share by which day and night differ
BURSTS, BURST_SHARE, BURST_SECONDS = 30, 0.25, 5.0  # in a day; their share of all requests; length of each
WINDOWS, SAMPLES = 48, 50  # parts of the time for which metrics are computed, and samples of the queue in each


@dataclass(frozen=True)
class Day:
    """A load over time: its requests, the factor by which time is compressed, and its description."""

    requests: Traffic
    speed: float
    title: str


def load(trace: str | Path | None = None, speed: float | None = None, seed: int = 0) -> Day:
    """Read a trace, or draw the synthetic day.

    Args:
        trace: File of a trace, see `erlab.prompts.traces`; None for `synthetic`.
        speed: Factor by which time is compressed (default: 144 for the synthetic day, 1 for a trace).
        seed: Random seed of the synthetic day.
    """
    check(trace, speed)
    if trace is None:
        factor = SPEED if speed is None else float(speed)
        return Day(synthetic(seed, HOURS * 3600 / factor), factor, f"synthetic day, {factor:g} times the speed")
    file, factor = Path(trace).expanduser(), 1.0 if speed is None else float(speed)
    try:
        requests = traffic.faster(traces.read(file).traffic, factor)
    except ErlabError as e:
        raise ErlabError(f"trace: {e}") from None
    return Day(requests, factor, f"{file.name}, {factor:g} times the speed")


def check(trace: object = None, speed: object = None) -> None:
    """Raise ErlabError unless the values are the name of a file and a speed."""
    require(trace is None or isinstance(trace, str | Path), "trace", "notebook 08", "be a file", trace)
    valid = speed is None or (is_number(speed) and 0 < speed <= 1e6)
    require(valid, "speed", "notebook 08", "be a number above 0 and at most 1000000", speed)


def synthetic(seed: int, seconds: float) -> Traffic:
    """Draw a day with the paper's token lengths, compressed to `seconds`.

    Arrivals are a Poisson process whose rate follows a sine over the day, with its lowest point at 4 o'clock, and
    bursts at random times.
    """
    rng = np.random.default_rng([seed, 24])
    base = MEAN_RATE * (1 - BURST_SHARE)
    at = np.sort(rng.uniform(0, seconds, rng.poisson(base * (1 + SWING) * seconds)))
    rate = 1 + SWING * np.sin(2 * np.pi * (at / seconds - 10 / 24))
    at = at[rng.uniform(0, 1 + SWING, len(at)) < rate]
    size = round(MEAN_RATE * BURST_SHARE * seconds / BURSTS)
    starts = np.repeat(rng.uniform(0, seconds - BURST_SECONDS, BURSTS), size)
    bursts = starts + rng.uniform(0, BURST_SECONDS, len(starts))
    at = np.sort(np.r_[at, bursts])
    return traffic.at_rate(paper.WORKLOAD, at - at[0], seed)


def simulate(
    load: Day, setup: Setup, decisions: Sequence, systems: Mapping = paper.SYSTEMS["v2"], seed: int = 0
) -> dict[tuple[str, str], pd.DataFrame]:
    """Simulate every system; return the request records by system and routing.

    Router systems are simulated twice: with the router's decisions on real prompts, and with even clusters.
    """
    runs = {}
    for name, system in systems.items():
        options = {"router": {"decisions": decisions}, "even": {}} if system.router else {"": {}}
        for routing, option in options.items():
            runs[name, routing] = replay(system, Load(trace=load.requests), setup=setup, seed=seed, **option).requests
    return runs


def over_time(load: Day, runs: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Compute metrics of each system in each of `WINDOWS` parts of the time in which requests arrive.

    Returns:
        One row per system, routing and window: hour of the trace, arrivals/s (compressed time), median time to first
        token (s) of the requests that arrive, most requests that wait for their first token at once, in all and at one
        expert, and the share of the arriving requests within MLPerf's limits.
    """
    last = max(requests["t_submit"].max() for requests in runs.values())
    edges = np.linspace(0, last + 1, WINDOWS + 1)
    moments = np.linspace(0, last + 1, WINDOWS * SAMPLES, endpoint=False)
    rows = []
    for (system, routing), requests in runs.items():
        window = np.searchsorted(edges, requests["t_submit"].to_numpy(), side="right") - 1
        grouped = pd.DataFrame(
            {"ttft": metrics.ttft(requests), "within": beyond.within(requests, beyond.MLPERF)}
        ).groupby(window)
        table = pd.DataFrame(
            {"arrivals": grouped.size(), "ttft_s": grouped["ttft"].median(), "within": grouped["within"].mean()}
        ).reindex(range(WINDOWS))
        experts = [own for _, own in requests.groupby("expert")] or [requests]
        queues = np.stack([_waiting(own, moments) for own in experts])
        seconds = (edges[1] - edges[0]) / 1e9
        table = table.assign(
            system=system,
            routing=routing,
            hour=(edges[:-1] + edges[1:]) / 2e9 * load.speed / 3600,
            arrivals=table["arrivals"].fillna(0) / seconds,
            waiting=_most(queues.sum(axis=0)),
            longest_queue=_most(queues.max(axis=0)),
        )
        rows.append(table)
    return pd.concat(rows, ignore_index=True).assign(load=load.title)


def _waiting(requests: pd.DataFrame, moments: np.ndarray) -> np.ndarray:
    """Return the number of requests without a first token at each moment, ns."""
    submitted, begun = (np.sort(requests[name].to_numpy(float)) for name in ("t_submit", "t_first"))
    return np.searchsorted(submitted, moments) - np.searchsorted(begun, moments)


def _most(queue: np.ndarray) -> np.ndarray:
    """Return the largest of the samples in each window."""
    return queue.reshape(WINDOWS, SAMPLES).max(axis=1)


def summary(runs: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Compute each system's metrics over all requests.

    Returns:
        One row per system and routing: largest share of one expert, median and 99th percentile of the time to first
        token (s), share of the requests within MLPerf's limits, and goodput (requests/s within them).
    """
    rows = []
    for (system, routing), requests in runs.items():
        ttft = metrics.ttft(requests)
        largest = requests["expert"].value_counts(normalize=True).max() if routing else pd.NA
        rows.append(
            {
                "system": system,
                "routing": routing,
                "largest expert": largest,
                "ttft_median_s": metrics.percentile(ttft, 50),
                "ttft_p99_s": metrics.percentile(ttft, 99),
                "within": float(beyond.within(requests, beyond.MLPERF).mean()),
                "goodput": beyond.goodput(requests, beyond.MLPERF),
            }
        )
    return pd.DataFrame(rows).round(3)
