"""Replicas per expert that follow demand, on a fixed number of GPUs, under an open-loop load that changes.

Every `interval` seconds a controller looks at each expert's demand, how many requests it has unfinished (Little's law:
rate × response time). Where that is above `target` a replica, it takes a GPU from an expert that can spare one. A
**reactive** controller takes demand as it is; a **forecasting** one extrapolates it by the cold start's length with
Holt's linear smoothing. A replica that is given up takes no more requests; once it is empty its GPU loads the other
expert and answers `cold_start` seconds later.

>>> round(demand([3.0, 5.0, 7.0], horizon=2.0, forecast=True), 6), demand([3.0, 5.0, 7.0], 2.0, forecast=False)
(11.0, 7.0)
"""

from dataclasses import asdict, dataclass

import numpy as np

from erlab import paper
from erlab.results import records
from erlab.simulation import events, system
from erlab.simulation.engine import Engine, Requests
from erlab.simulation.steptimes import NS
from erlab.simulation.system import Setup, Traffic, step_times
from erlab.spec import System, Workload, is_number, require


@dataclass(frozen=True)
class Controller:
    """`kind`: fixed (never changes), reactive or forecasting. `target` unfinished requests a replica is meant for."""

    kind: str = "reactive"
    target: int = 32
    interval: float = 5.0
    cold_start: float = 60.0  # s to load 8 to 70 GB of weights and warm up; assumed

    def __post_init__(self):
        kinds = ("fixed", "reactive", "forecasting")
        require(self.kind in kinds, "kind", "Controller", f"be one of {', '.join(kinds)}", self.kind)
        require(self.target >= 1, "target", "Controller", "be at least 1", self.target)
        require(self.interval > 0, "interval", "Controller", "be above 0 seconds", self.interval)
        fits = is_number(self.cold_start) and self.cold_start >= 0
        require(fits, "cold_start", "Controller", "be at least 0 seconds", self.cold_start)


def demand(history: list[float], horizon: float, forecast: bool, level: float = 0.2, trend: float = 0.05) -> float:
    """The demand to plan for: the last value, or Holt's linear forecast `horizon` intervals ahead, never negative."""
    if not forecast or len(history) < 2:
        return history[-1]
    smooth, slope = history[0], history[1] - history[0]
    for value in history[1:]:
        before = smooth
        smooth = level * value + (1 - level) * (smooth + slope)
        slope = trend * (smooth - before) + (1 - trend) * slope
    return max(0.0, smooth + horizon * slope)


def shifting_load(
    experts: int, seconds: float, rate: float, swing: float = 0.8, workload: Workload = paper.WORKLOAD, seed: int = 0
) -> tuple[Traffic, np.ndarray]:
    """Poisson arrivals of `rate` requests/s in all whose share per expert rises and falls once, one expert after the
    other: expert e's share follows 1 + swing · sin(2π (t / seconds − e / experts)). Returns it and the experts."""
    from erlab.prompts.workload import sample

    require(0 <= swing <= 1, "swing", "shifting_load", "lie in [0, 1]", swing)
    rng = np.random.default_rng([seed, experts])
    at = np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))
    weights = 1 + swing * np.sin(2 * np.pi * (at[:, None] / seconds - np.arange(experts) / experts))
    edges = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    chosen = (rng.uniform(size=(len(at), 1)) > edges).sum(axis=1).clip(max=experts - 1)
    lengths = sample(workload.input_tokens, rng, len(at)), sample(workload.output_tokens, rng, len(at))
    return system.trace(at, *lengths), chosen


class _Fleet:
    """The GPUs: which expert each serves, from when it answers, and whether it is being given up."""

    def __init__(self, engines, experts: int, controller: Controller):
        self.engines, self.controller = engines, controller
        self.serves = [g % experts for g in range(len(engines))]
        self.ready = [0] * len(engines)  # ns
        self.leaving: list[int | None] = [None] * len(engines)  # the expert that gets the GPU once it is empty
        self.history: list[list[float]] = [[] for _ in range(experts)]
        self.tick, self.moves = 0, 0

    def choose(self, expert: int, now: int) -> int:
        """The expert's answering replica with the fewest unfinished requests, after what was planned until now."""
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
        have = [0] * len(wanted)
        for g, e in enumerate(self.leaving):
            have[self.serves[g] if e is None else e] += 1
        for giver, taker in moves(wanted, have, self.controller.target):
            answering = self._answering(giver, now)
            if len(answering) > 1:  # else the giver's last one stays until another answers
                self.leaving[min(answering, key=lambda g: self.engines[g].unfinished)] = taker


def moves(wanted: list[float], have: list[int], target: int) -> list[tuple[int, int]]:
    """Which expert gives a replica to which, so that demand per replica falls to `target` where it is above; only what
    an expert can spare without rising above `target` itself. The neediest first.

    >>> moves([100.0, 10.0, 10.0], [2, 2, 1], target=32)
    [(1, 0)]
    """
    have, found = list(have), []
    while True:
        taker = max(range(len(have)), key=lambda e: wanted[e] / have[e])
        spare = [e for e in range(len(have)) if e != taker and have[e] > 1 and wanted[e] <= target * (have[e] - 1)]
        if wanted[taker] <= target * have[taker] or not spare:
            return found
        giver = min(spare, key=lambda e: wanted[e] / have[e])
        have[giver] -= 1
        have[taker] += 1
        found.append((giver, taker))


def simulate_autoscaled(
    kind: System,
    experts: int,
    traffic: Traffic,
    chosen: np.ndarray,
    controller: Controller,
    setup: Setup = Setup(),
) -> records.Records:
    """Serve `traffic` (request i is for expert ``chosen[i]``) on `kind.count` engines shared by `experts` experts,
    without a gateway's delay.

    GPU g begins with expert g mod `experts`. Records like `simulate`'s, `cluster` and `expert` being the expert's; the
    run's description has the controller and how many replicas changed hands (`moves`).
    """
    require(1 <= experts <= kind.count, "experts", "simulate_autoscaled", f"be 1 to {kind.count}", experts)
    n = len(traffic.user)
    require(len(chosen) == n, "chosen", "simulate_autoscaled", f"name an expert for each of {n} requests", len(chosen))
    requests = Requests.of(traffic.input_tokens.tolist(), traffic.output_tokens.tolist())
    times, pool = step_times(kind.expert, setup), setup.pool(kind.expert)
    engines = [Engine(times, requests, setup.batching, kind.expert.max_batch_size, pool) for _ in range(kind.count)]
    fleet, experts_of = _Fleet(engines, experts, controller), np.asarray(chosen).tolist()
    submit, following = system.loop(traffic)
    events.run(engines, submit, following, [0] * n, lambda i: fleet.choose(experts_of[i], submit[i]))
    run = system.describe(kind, traffic.users, setup, seed=0) | {
        "run_id": f"autoscaled-{kind.name}-{controller.kind}", "experiment": "autoscaling",
        "controller": asdict(controller), "moves": fleet.moves,
    }  # fmt: skip
    names = system.named([f"{kind.name}-expert-{e}" for e in range(experts)], np.asarray(chosen))
    return system.as_records(run, traffic, submit, requests, {"cluster": np.asarray(chosen), "expert": names})
