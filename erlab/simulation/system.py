"""A whole system in virtual time: closed-loop users, the gateway's delay, routing, and its engines.

>>> from erlab.paper import SYSTEMS
>>> records = simulate(SYSTEMS["v2"]["E"], users=2, setup=Setup(steps="roofline", era=None))
>>> records.requests.source.unique().tolist(), int(records.requests.t_routed.min())
(['simulated'], 2000000)
"""

import dataclasses
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from pathlib import Path

import numpy as np
import pyarrow as pa

from erlab import paper
from erlab.errors import ErlabError
from erlab.results import records
from erlab.routing.compiled import Row
from erlab.simulation import components, era, events
from erlab.simulation.components import Software
from erlab.simulation.engine import Batching, Engine, Requests
from erlab.simulation.hardware import arithmetic, gpu, kv_pool_tokens
from erlab.simulation.steptimes import NS, StepTimes
from erlab.spec import Expert, System, Workload, require


@dataclass(frozen=True)
class Setup:
    """The simulated machine and its software, all of it assumptions with defaults.

    `steps`: "measured" or "roofline". `era`: a key of `era.FACTORS`, two factors, or None for the kernels as measured.
    `reserve_gib`, `free_fraction`: bound the KV pool where experts state no `kv_tokens` (`hardware.kv_pool_tokens`).
    `gateway`: seconds between a router system's submission and arrival at the expert, a constant or measured values to
    draw from. `prefill_overhead`: seconds the host adds to each iteration that prefills. `tables`: the folder of the
    step-time tables.
    """

    gpu: str = "H100"
    steps: str = "measured"
    software: Software = Software()
    era: str | tuple[float, float] | None = "0.13"
    batching: Batching = Batching()
    reserve_gib: float = paper.RESERVE / 2**30
    free_fraction: float = paper.FREE_FRACTION
    gateway: float | tuple[float, ...] = 0.002
    prefill_overhead: float = 0.0
    tables: Path | None = None

    def __post_init__(self):
        gpu(self.gpu)
        require(self.steps in ("measured", "roofline"), "steps", "Setup", "be measured or roofline", self.steps)
        if not isinstance(self.gateway, (int, float)):
            object.__setattr__(self, "gateway", tuple(float(g) for g in self.gateway))
        least = self.gateway if isinstance(self.gateway, (int, float)) else min(self.gateway, default=-1)
        require(least >= 0, "gateway", "Setup", "be at least 0 seconds", self.gateway)
        era.factors(self.era, "FP8", 1)  # refuses an unknown era
        require(self.reserve_gib >= 0, "reserve_gib", "Setup", "be at least 0", self.reserve_gib)
        require(0 < self.free_fraction <= 1, "free_fraction", "Setup", "lie in (0, 1]", self.free_fraction)
        require(self.prefill_overhead >= 0, "prefill_overhead", "Setup", "be at least 0 seconds", self.prefill_overhead)

    @property
    def machine(self) -> str:
        return f"DGX {self.gpu} (simulated{', roofline limit' * (self.steps == 'roofline')})"

    def pool(self, expert: Expert) -> int:
        """Tokens one engine's KV cache holds; ErlabError with the numbers where that is too few."""
        return kv_pool_tokens(expert, gpu(self.gpu), self.reserve_gib, self.free_fraction)


@lru_cache(maxsize=64)
def step_times(expert: Expert, setup: Setup) -> StepTimes:
    """The expert's iteration times under this setup, shared by all simulations of this process."""
    if setup.steps == "roofline":
        parts = components.roofline(expert, gpu(setup.gpu))
    else:
        parts = components.measured(expert, gpu(setup.gpu), setup.software, setup.tables)
    slower = era.factors(setup.era, arithmetic(expert.precision), expert.tensor_parallel)
    return StepTimes(parts, expert.max_sequence_tokens, slower, setup.prefill_overhead)


@dataclass(frozen=True)
class Traffic:
    """Who asks what: one entry a request, grouped by user, turn after turn.

    A user's first request is submitted at `start[user]` seconds, each other one `pause` seconds after the answer to
    the one before.
    """

    user: np.ndarray
    turn: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    start: np.ndarray
    pause: float = 0.0

    def __post_init__(self):
        require(len(self.user) > 0, "user", "Traffic", "have at least one request", 0)
        for name in ("turn", "input_tokens", "output_tokens"):
            allowed = f"have an entry for each of {len(self.user)} requests"
            require(len(getattr(self, name)) == len(self.user), name, "Traffic", allowed, len(getattr(self, name)))
        require(len(self.start) >= self.users, "start", "Traffic", f"have {self.users} users' entries", len(self.start))
        require(self.pause >= 0, "pause", "Traffic", "be at least 0 seconds", self.pause)
        for name in ("input_tokens", "output_tokens"):
            require(getattr(self, name).min() >= 1, name, "Traffic", "be at least 1", int(getattr(self, name).min()))

    @property
    def users(self) -> int:
        return int(self.user.max()) + 1


def closed_loop(workload: Workload, users: int, seed: int = 0) -> Traffic:
    """`users` users who ask `workload.turns_for(users)` times each; the same for every system at the same load."""
    from erlab.prompts.workload import sample

    turns = workload.turns_for(users)
    rng = np.random.default_rng([seed, users])
    n = users * turns
    lengths = sample(workload.input_tokens, rng, n), sample(workload.output_tokens, rng, n)
    return Traffic(np.repeat(np.arange(users), turns), np.tile(np.arange(turns), users), *lengths, np.zeros(users))


def fixed_lengths(users: int, turns: int, input_tokens: int, output_tokens: int) -> Traffic:
    """`users` users who ask `turns` times each, always with the same lengths."""
    require(users >= 1, "users", "the load", "be at least 1", users)
    require(turns >= 1, "turns", "the load", "be at least 1", turns)
    n = users * turns
    same = np.full(n, input_tokens), np.full(n, output_tokens)
    return Traffic(np.repeat(np.arange(users), turns), np.tile(np.arange(turns), users), *same, np.zeros(users))


def trace(at: Sequence[float], input_tokens: Sequence[int], output_tokens: Sequence[int]) -> Traffic:
    """An open-loop load: request i comes at `at[i]` seconds (rising), each from a user of its own."""
    at = np.asarray(at, float)
    n = len(at)
    rises = np.diff(at, prepend=0.0) >= 0  # not so for NaN either
    if not rises.all():
        i = int(np.argmin(rises))
        before = float(at[i - 1]) if i else 0.0
        raise ErlabError(f"The load trace must rise from 0 s. Got {float(at[i])} s after {before} s at request {i}.")
    return Traffic(np.arange(n), np.zeros(n, int), np.asarray(input_tokens), np.asarray(output_tokens), at)


def simulate(
    system: System,
    users: int | None = None,
    *,
    workload: Workload = paper.WORKLOAD,
    setup: Setup = Setup(),
    seed: int = 0,
    shares: Sequence[float] | None = None,
    decisions: Sequence[Row] | None = None,
    policy: str = "nearest",
    traffic: Traffic | None = None,
) -> records.Records:
    """Simulate one system under one load; request records like a measured run's, without token times.

    The load is `users` closed-loop users with the `workload`'s lengths, or any `traffic`. Where a router system's
    prompts go follows the clusters' `shares` (default: equal), or `decisions`, a real router's on real prompts, from
    which each request draws one; cluster c belongs to expert c mod `system.count`, and `policy` (a name in
    `erlab.routing.policies`) chooses. Baselines' user i asks replica i mod count. Deterministic for a seed.

    Raises ErlabError where the system does not fit the machine, and for zero users or an unordered trace.
    """
    require((users is None) != (traffic is None), "users", "simulate", "be given, or else traffic, not both", users)
    require(isinstance(seed, Integral) and seed >= 0, "seed", "simulate", "be a whole number from 0", seed)
    if traffic is None:
        require(isinstance(users, Integral), "users", "simulate", "be a whole number", users)
        traffic = closed_loop(workload, users, seed)
    expert, n = system.expert, len(traffic.user)
    rng = np.random.default_rng([seed, traffic.users, 1])
    requests = Requests.of(traffic.input_tokens.tolist(), traffic.output_tokens.tolist())
    times, pool = step_times(expert, setup), setup.pool(expert)
    engines = [Engine(times, requests, setup.batching, expert.max_batch_size, pool) for _ in range(system.count)]
    submit, following = loop(traffic)
    columns = {}
    if system.router:
        delay = _gateway(setup.gateway, rng, n)
        route, columns = _routes(system, engines, rng, n, shares, decisions, policy)
    else:
        require(shares is None and decisions is None, "shares", "simulate", "be None for a baseline", shares)
        require(policy == "nearest", "policy", "simulate", "be left out for a baseline, which has no router", policy)
        delay, route = [0] * n, (traffic.user % system.count).tolist()
    chosen = events.run(engines, submit, following, delay, route, round(traffic.pause * NS))
    run = describe(system, traffic.users, setup, seed) | {"policy": policy if system.router else None}
    if system.router:
        columns |= {
            "expert": named([f"{system.name}-expert-{i}" for i in range(system.count)], chosen),
            "policy": pa.repeat(policy, n),
            "t_routed": np.asarray(submit) + np.asarray(delay),
        }
    return as_records(run, traffic, submit, requests, columns)


def as_records(run: dict, traffic: Traffic, submit: array, requests: Requests, columns: dict) -> records.Records:
    """What happened as request records; `columns` are those beyond the load's and the times."""
    n = len(traffic.user)
    columns = columns | {
        "user": traffic.user, "turn": traffic.turn,
        "input_tokens": traffic.input_tokens, "output_tokens": traffic.output_tokens,
        "t_submit": np.asarray(submit), "t_first": np.asarray(requests.first), "t_last": np.asarray(requests.last),
        "status": pa.repeat("ok", n),
    }  # fmt: skip
    columns |= {k: pa.repeat(run[k], n) for k in ("run_id", "paper", "system", "source", "machine", "users")}
    return records.from_table(pa.table({k: pa.array(v) for k, v in columns.items()}), run)


def named(names: list[str], indices: array) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.asarray(indices)), pa.array(names)).cast(pa.string())


def loop(traffic: Traffic) -> tuple[array, list[int]]:
    """When each request is submitted (-1: after its user's previous one), and what follows its answer (-1: nothing)."""
    n = len(traffic.user)
    again = np.r_[traffic.user[1:] == traffic.user[:-1], False]
    following = np.where(again, np.arange(1, n + 1), -1)
    starts = np.rint(traffic.start[traffic.user] * NS)
    submit = np.where(np.r_[True, ~again[:-1]], starts, -1)
    return array("q", submit.astype(np.int64).tobytes()), following.tolist()


def _gateway(gateway: float | tuple[float, ...], rng: np.random.Generator, n: int) -> list[int]:
    seconds = np.full(n, gateway) if isinstance(gateway, (int, float)) else rng.choice(np.asarray(gateway), n)
    return np.rint(seconds * NS).astype(np.int64).tolist()


def _routes(system, engines, rng, n, shares, decisions, policy):
    """Each request's expert (a list, or a function that looks at the experts) and its columns of the records."""
    count = system.count
    if decisions is None:
        p = np.full(count, 1 / count) if shares is None else np.asarray(shares, float)
        allowed = f"be at least {count} shares, none negative, that sum to 1"
        require(len(p) >= count and (p >= 0).all() and abs(p.sum() - 1) < 1e-6, "shares", "simulate", allowed, shares)
        clusters = rng.choice(len(p), n, p=p / p.sum())
        known, drawn, columns = len(p), clusters, {"cluster": clusters}
    else:
        require(shares is None, "shares", "simulate", "be None where decisions are given", shares)
        require(len(decisions) > 0, "decisions", "simulate", "hold at least one decision", 0)
        known, drawn = len(decisions[0].order), rng.integers(len(decisions), size=n)
        fields = ("cluster", "distance", "margin")
        columns = {name: np.array([getattr(row, name) for row in decisions])[drawn] for name in fields}
    if policy == "nearest":
        return (columns["cluster"] % count).tolist(), columns
    from erlab.routing.policies import POLICIES, Fleet

    require(policy in POLICIES, "policy", "simulate", f"be one of {', '.join(POLICIES)}", policy)
    rows = decisions or [_row(c, known) for c in range(known)]
    owners = tuple(c % count for c in range(known))
    fleet = Fleet(owners, _Outstanding(engines), [True] * count)
    decide, drawn = POLICIES[policy], drawn.tolist()
    return (lambda i: decide(rows[drawn[i]], fleet, i)), columns


class _Outstanding(Sequence):
    """The engines' unfinished requests, read when asked."""

    def __init__(self, engines: Sequence[Engine]):
        self._engines = engines

    def __len__(self) -> int:
        return len(self._engines)

    def __getitem__(self, i: int) -> int:
        return self._engines[i].unfinished


def _row(cluster: int, clusters: int) -> Row:
    """A decision of which only the cluster is known; the others follow in a ring."""
    order = tuple((cluster + j) % clusters for j in range(clusters))
    return Row(cluster=cluster, distance=None, margin=None, runner_up=order[1 % clusters], order=order)


def describe(system: System, users: int, setup: Setup, seed: int) -> dict:
    """The run's description, as records' metadata hold it."""
    expert = system.expert
    described = dataclasses.asdict(setup) | {"tables": None}
    if not isinstance(setup.gateway, (int, float)):
        described["gateway"] = {"measured": len(setup.gateway), "median": float(np.median(setup.gateway))}
    return {
        "run_id": f"simulated-{system.paper}-{system.name}-{users}-s{seed}",
        "experiment": "preliminary" if system.name.startswith("P-") else "systems",
        "profile": "dgx-h100",
        "paper": system.paper,
        "system": system.name,
        "source": "simulated",
        "machine": setup.machine,
        "seed": seed,
        "users": users,
        "title": system.title,
        "model": expert.model.name,
        "precision": expert.precision.name,
        "tensor_parallel": expert.tensor_parallel,
        "count": system.count,
        "cores": None,
        "router": system.router,
        "plays": None if system.name.startswith("P-") else system.title,
        "max_batch_size": expert.max_batch_size,
        "kv_tokens": setup.pool(expert),
        "setup": described,
    }
