"""Autoscaling of experts on a fixed number of GPUs.

Every `interval` seconds a controller determines the demand of each expert: its unfinished requests (by Little's law,
arrival rate × response time). An expert with more than `target` per replica takes a GPU from an expert that can spare
one. A **reactive** controller uses the current demand; a **forecasting** one extrapolates it over the cold start with
Holt's linear smoothing. A replica that is given up accepts no more requests; when it is empty, its GPU loads the other
expert, which answers `cold_start` seconds later.

>>> round(demand([3.0, 5.0, 7.0], horizon=2.0, forecast=True), 6), demand([3.0, 5.0, 7.0], 2.0, forecast=False)
(11.0, 7.0)
"""

from dataclasses import asdict, dataclass

import numpy as np

from erlab import paper
from erlab.prompts.traffic import Traffic, open_loop
from erlab.prompts.workload import sample
from erlab.results import records
from erlab.simulation import events
from erlab.simulation.engine import SimulatedEngine
from erlab.simulation.steptimes import NS
from erlab.simulation.system import Setup, as_records, describe, expert_names, make_engines, schedule
from erlab.spec import System, Workload, is_number, require

CONTROLLERS = ("fixed", "reactive", "forecasting")


@dataclass(frozen=True)
class Controller:
    """Autoscaling policy.

    Attributes:
        target: Unfinished requests per replica.
        interval: Seconds between two decisions.
        cold_start: Seconds to load 8 to 70 GB of weights and warm up; assumed.
    """

    kind: str = "reactive"
    target: int = 32
    interval: float = 5.0
    cold_start: float = 60.0

    def __post_init__(self):
        require(self.kind in CONTROLLERS, "kind", "Controller", f"be one of {', '.join(CONTROLLERS)}", self.kind)
        require(self.target >= 1, "target", "Controller", "be at least 1", self.target)
        require(self.interval > 0, "interval", "Controller", "be above 0 seconds", self.interval)
        valid = is_number(self.cold_start) and self.cold_start >= 0
        require(valid, "cold_start", "Controller", "be at least 0 seconds", self.cold_start)


def demand(history: list[float], horizon: float, forecast: bool, level: float = 0.2, trend: float = 0.05) -> float:
    """Return the last demand or Holt's linear forecast, at least 0.

    Args:
        horizon: Intervals ahead.
        level: Smoothing factor of the level, in [0, 1].
        trend: Smoothing factor of the slope, in [0, 1].
    """
    if not forecast or len(history) < 2:
        return history[-1]
    smooth, slope = history[0], history[1] - history[0]
    for value in history[1:]:
        previous = smooth
        smooth = level * value + (1 - level) * (smooth + slope)
        slope = trend * (smooth - previous) + (1 - trend) * slope
    return max(0.0, smooth + horizon * slope)


def shifting_load(
    experts: int, seconds: float, rate: float, swing: float = 0.8, workload: Workload = paper.WORKLOAD, seed: int = 0
) -> tuple[Traffic, np.ndarray]:
    """Draw Poisson arrivals whose distribution over experts changes.

    The share of expert e is proportional to 1 + swing · sin(2π (t / seconds − e / experts)).

    Args:
        rate: Arrival rate over all experts, requests/s.
        swing: Amplitude of the shares, in [0, 1].
    """
    require(0 <= swing <= 1, "swing", "shifting_load", "lie in [0, 1]", swing)
    rng = np.random.default_rng([seed, experts])
    at = np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))
    weights = 1 + swing * np.sin(2 * np.pi * (at[:, None] / seconds - np.arange(experts) / experts))
    edges = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    chosen = (rng.uniform(size=(len(at), 1)) > edges).sum(axis=1).clip(max=experts - 1)
    lengths = sample(workload.input_tokens, rng, len(at)), sample(workload.output_tokens, rng, len(at))
    return open_loop(at, *lengths), chosen


class _Replicas:
    """State of the replicas, one per engine."""

    def __init__(self, engines: list[SimulatedEngine], experts: int, controller: Controller):
        self.engines, self.controller = engines, controller
        self.serves = [g % experts for g in range(len(engines))]
        self.ready = [0] * len(engines)  # ns
        self.leaving: list[int | None] = [None] * len(engines)  # expert that gets the engine when it is empty
        self.history: list[list[float]] = [[] for _ in range(experts)]
        self.tick, self.moves = 0, 0

    def choose(self, expert: int, now: int) -> int:
        """Return the expert's answering replica with the fewest unfinished requests."""
        while self.controller.kind != "fixed" and self.tick <= now:
            self._plan(self.tick)
            self.tick += round(self.controller.interval * NS)
        return min(self._answering(expert, now), key=lambda g: self.engines[g].unfinished)

    def _answering(self, expert: int, now: int) -> list[int]:
        return [
            g for g, e in enumerate(self.serves) if e == expert and self.leaving[g] is None and self.ready[g] <= now
        ]

    def _plan(self, now: int) -> None:
        for g, expert in enumerate(self.leaving):
            if expert is not None and not self.engines[g].unfinished:
                self.serves[g], self.leaving[g] = expert, None
                self.ready[g] = now + round(self.controller.cold_start * NS)
                self.moves += 1
        unfinished = [0] * len(self.history)
        for g, engine in enumerate(self.engines):
            unfinished[self.serves[g]] += engine.unfinished
        for past, value in zip(self.history, unfinished):
            past.append(float(value))
        ahead, forecast = self.controller.cold_start / self.controller.interval, self.controller.kind == "forecasting"
        wanted = [demand(past[-60:], ahead, forecast) for past in self.history]
        replicas = [0] * len(wanted)
        for g, e in enumerate(self.leaving):
            replicas[self.serves[g] if e is None else e] += 1
        for giver, taker in moves(wanted, replicas, self.controller.target):
            answering = self._answering(giver, now)
            if len(answering) > 1:  # the last answering replica of an expert stays
                self.leaving[min(answering, key=lambda g: self.engines[g].unfinished)] = taker


def moves(wanted: list[float], replicas: list[int], target: int) -> list[tuple[int, int]]:
    """Return the replicas to move, as (giving expert, taking expert).

    The expert with the highest demand per replica takes first, as long as its demand is above `target` per replica. An
    expert gives only while its own demand stays within `target` per replica.

    >>> moves([100.0, 10.0, 10.0], [2, 2, 1], target=32)
    [(1, 0)]
    """
    replicas, planned = list(replicas), []
    while True:
        taker = max(range(len(replicas)), key=lambda e: wanted[e] / replicas[e])
        spare = [
            e
            for e in range(len(replicas))
            if e != taker and replicas[e] > 1 and wanted[e] <= target * (replicas[e] - 1)
        ]
        if wanted[taker] <= target * replicas[taker] or not spare:
            return planned
        giver = min(spare, key=lambda e: wanted[e] / replicas[e])
        replicas[giver] -= 1
        replicas[taker] += 1
        planned.append((giver, taker))


def simulate_autoscaled(
    system: System,
    experts: int,
    traffic: Traffic,
    chosen: np.ndarray,
    controller: Controller,
    setup: Setup = Setup(),
) -> records.Records:
    """Simulate experts that share a system's engines, without gateway delay.

    Args:
        system: System whose engines are shared; engine g begins with expert g mod `experts`.

    Returns:
        Records like those of `simulate`; the run's description adds `controller` and `moves`, the number of replicas
        moved.
    """
    require(1 <= experts <= system.count, "experts", "simulate_autoscaled", f"be 1 to {system.count}", experts)
    n = len(traffic.user)
    require(len(chosen) == n, "chosen", "simulate_autoscaled", f"name an expert for each of {n} requests", len(chosen))
    requests, engines = make_engines(system, traffic, setup)
    replicas, experts_of = _Replicas(engines, experts, controller), np.asarray(chosen).tolist()
    plan = schedule(traffic)
    submit = plan["submit"]
    events.run(engines, delay=[0] * n, route=lambda i: replicas.choose(experts_of[i], submit[i]), **plan)
    run = describe(system, traffic.users, setup, seed=0) | {
        "run_id": f"autoscaled-{system.name}-{controller.kind}", "experiment": "autoscaling",
        "controller": asdict(controller), "moves": replicas.moves,
    }  # fmt: skip
    columns = {"cluster": np.asarray(chosen), "expert": expert_names(system.name, experts, chosen)}
    return as_records(run, traffic, submit, requests, columns)
