"""Simulation of a system: users, gateway delay, routing and engines.

>>> from erlab.paper import SYSTEMS
>>> records = simulate(SYSTEMS["v2"]["E"], users=2, setup=Setup(steps="roofline", era=None))
>>> records.requests.source.unique().tolist(), int(records.requests.t_routed.min())
(['simulated'], 2000000)
"""

import dataclasses
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from pathlib import Path

import numpy as np
import pyarrow as pa

from erlab import paper
from erlab.prompts.traffic import Traffic, closed_loop
from erlab.results import records
from erlab.routing.compiled import Row
from erlab.routing.policies import NEEDS, POLICIES, FleetState
from erlab.simulation import components, era, events, prefixes
from erlab.simulation.components import Software
from erlab.simulation.engine import Batching, Requests, SimulatedEngine
from erlab.simulation.hardware import arithmetic, gpu, kv_pool_tokens
from erlab.simulation.steptimes import NS, StepTimes
from erlab.spec import GIB, Expert, System, Workload, require


def simulated_policies() -> tuple[str, ...]:
    """Return the names of all policies that need neither a special expert nor prefix caches."""
    return tuple(name for name in POLICIES if name not in NEEDS)


@dataclass(frozen=True)
class Setup:
    """Simulated machine and serving software, assumed where not measured.

    Attributes:
        gpu: Name in `hardware.GPUS`.
        steps: Source of the iteration times, measured or roofline.
        software: Software whose kernels were measured.
        era: Name in `era.FACTORS`, two factors, or None for the kernels as measured.
        batching: Batching parameters of every engine.
        reserve_gib: See `hardware.kv_pool_tokens`.
        free_fraction: See `hardware.kv_pool_tokens`.
        gateway: Seconds between submission and arrival at the expert in router systems: a constant, or measured values
            to draw from.
        prefill_overhead: Seconds that the host adds to each iteration that prefills.
        tables: Folder of the step-time tables (default ``data/results/steptimes``).
    """

    gpu: str = "H100"
    steps: str = "measured"
    software: Software = Software()
    era: str | tuple[float, float] | None = "0.13"
    batching: Batching = Batching()
    reserve_gib: float = paper.RESERVE / GIB
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
        era.factors(self.era, "FP8", 1)  # raises for an unknown era
        require(self.reserve_gib >= 0, "reserve_gib", "Setup", "be at least 0", self.reserve_gib)
        require(0 < self.free_fraction <= 1, "free_fraction", "Setup", "lie in (0, 1]", self.free_fraction)
        require(self.prefill_overhead >= 0, "prefill_overhead", "Setup", "be at least 0 seconds", self.prefill_overhead)

    @property
    def machine(self) -> str:
        """Name of the machine in request records."""
        return f"DGX {self.gpu} (simulated{', roofline limit' * (self.steps == 'roofline')})"

    def pool(self, expert: Expert) -> int:
        """Return the tokens that one engine's KV cache holds (`hardware.kv_pool_tokens`)."""
        return kv_pool_tokens(expert, gpu(self.gpu), self.reserve_gib, self.free_fraction)


@lru_cache(maxsize=64)
def step_times(expert: Expert, setup: Setup) -> StepTimes:
    """Return an expert's iteration times, cached for this process."""
    if setup.steps == "roofline":
        parts = components.roofline(expert, gpu(setup.gpu))
    else:
        parts = components.measured(expert, gpu(setup.gpu), setup.software, setup.tables)
    slower = era.factors(setup.era, arithmetic(expert.precision), expert.tensor_parallel)
    return StepTimes(parts, expert.max_sequence_tokens, slower, setup.prefill_overhead)


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
    """Simulate one system under one load, deterministically for a seed.

    Args:
        system: System. Cluster c belongs to expert c mod `system.count`; user i of a baseline always uses replica
            i mod `system.count`.
        users: Concurrent closed-loop users with the lengths of `workload`; or give `traffic` instead.
        workload: Token lengths and turns.
        setup: Machine and serving software.
        seed: Random seed, at least 0.
        shares: Share of each cluster in the prompts, at least `system.count` values that sum to 1 (default equal).
        decisions: Decisions of a router on real prompts, of which each request draws one; instead of `shares`.
        policy: Routing policy, a name in `erlab.routing.policies.POLICIES`.
        traffic: Load, instead of `users`.

    Returns:
        Request records like those of a measured run, without token times.

    Raises:
        ErlabError: The system does not fit the machine, or a parameter is not allowed.
    """
    require((users is None) != (traffic is None), "users", "simulate", "be given, or else traffic, not both", users)
    require(isinstance(seed, Integral) and seed >= 0, "seed", "simulate", "be a whole number from 0", seed)
    if traffic is None:
        require(isinstance(users, Integral), "users", "simulate", "be a whole number", users)
        traffic = closed_loop(workload, users, seed)
    n = len(traffic.user)
    rng = np.random.default_rng([seed, traffic.users, 1])
    requests, engines = make_engines(system, traffic, setup)
    plan = schedule(traffic)
    columns = {}
    if system.router:
        delay = _gateway_delays(setup.gateway, rng, n)
        route, columns = _routes(system, engines, rng, n, shares, decisions, policy)
    else:
        require(shares is None and decisions is None, "shares", "simulate", "be None for a baseline", shares)
        require(policy == "nearest", "policy", "simulate", "be left out for a baseline, which has no router", policy)
        delay, route = [0] * n, (traffic.user % system.count).tolist()
    chosen = events.run(engines, delay=delay, route=route, **plan)
    run = describe(system, traffic.users, setup, seed) | {"policy": policy if system.router else None}
    if setup.batching.prefix_caching:
        run["prefix_cache"] = prefixes.summary(requests.blocks, requests.unit, requests.hits, traffic.input_tokens)
    if system.router:
        columns |= {
            "expert": expert_names(system.name, system.count, chosen),
            "policy": pa.repeat(policy, n),
            "t_routed": np.asarray(plan["submit"]) + np.asarray(delay),
        }
    return as_records(run, traffic, plan["submit"], requests, columns)


def make_engines(system: System, traffic: Traffic, setup: Setup) -> tuple[Requests, list[SimulatedEngine]]:
    """Make a load's requests and the idle engines that share them."""
    prompt, known = traffic.input_tokens.tolist(), (None, 0)
    if setup.batching.prefix_caching and traffic.prefix is not None:
        known = prefixes.blocks(traffic.prefix, prompt, traffic.block_tokens, setup.batching.block_tokens)
    requests = Requests.of(prompt, traffic.output_tokens.tolist(), *known)
    times, pool = step_times(system.expert, setup), setup.pool(system.expert)
    limit = system.expert.max_batch_size
    engines = [SimulatedEngine(times, requests, setup.batching, limit, pool) for _ in range(system.count)]
    return requests, engines


def as_records(run: dict, traffic: Traffic, submit: array, requests: Requests, columns: dict) -> records.Records:
    """Make request records of a finished run, with further `columns`."""
    n = len(traffic.user)
    columns = columns | {
        "user": traffic.user, "turn": traffic.turn,
        "input_tokens": traffic.input_tokens, "output_tokens": traffic.output_tokens,
        "t_submit": np.asarray(submit), "t_first": np.asarray(requests.first), "t_last": np.asarray(requests.last),
        "status": pa.repeat("ok", n),
    }  # fmt: skip
    columns |= {k: pa.repeat(run[k], n) for k in ("run_id", "paper", "system", "source", "machine", "users")}
    table = pa.table({k: pa.array(v) for k, v in columns.items()})
    if traffic.until < math.inf:  # requests that no user sent in time are no requests
        table = table.filter(np.asarray(submit) >= 0)
    return records.from_table(table, run)


def expert_names(system: str, count: int, indices: Sequence[int]) -> pa.Array:
    """Return the names of experts given by index; null for -1."""
    names, indices = [f"{system}-expert-{i}" for i in range(count)], np.asarray(indices)
    known = pa.array(indices, mask=indices < 0)
    return pa.DictionaryArray.from_arrays(known, pa.array(names)).cast(pa.string())


def schedule(traffic: Traffic) -> dict:
    """Return the arguments of `events.run` that say when requests are sent."""
    n = len(traffic.user)
    again = np.r_[traffic.user[1:] == traffic.user[:-1], False]
    following = np.where(again, np.arange(1, n + 1), -1)
    at = np.rint(traffic.at * NS).astype(np.int64)
    submit = np.where(np.r_[True, ~again[:-1]] & (traffic.at < traffic.until), at, -1)
    times = {"submit": array("q", submit.astype(np.int64).tobytes()), "following": following.tolist()}
    pauses = np.rint(traffic.pauses * NS).astype(np.int64).tolist()
    return times | {"pauses": pauses, "earliest": at.tolist(), "until": traffic.until * NS}


def _gateway_delays(gateway: float | tuple[float, ...], rng: np.random.Generator, n: int) -> list[int]:
    seconds = np.full(n, gateway) if isinstance(gateway, (int, float)) else rng.choice(np.asarray(gateway), n)
    return np.rint(seconds * NS).astype(np.int64).tolist()


def _routes(system, engines, rng, n, shares, decisions, policy):
    """Return the expert of each request and the router's record columns.

    The experts are a list, or a function of the request for policies that depend on load.
    """
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
    require(policy in POLICIES, "policy", "simulate", f"be one of {', '.join(POLICIES)}", policy)
    rows = decisions or [_row(c, known) for c in range(known)]
    owners = tuple(c % count for c in range(known))
    cached = _Cached(engines)
    known = cached if engines[0].caches_prefixes else None
    fleet = FleetState(owners, _Outstanding(engines), [True] * count, cached=known)
    decide, drawn = POLICIES[policy], drawn.tolist()

    def route(request: int) -> int:
        cached.request = request
        return decide(rows[drawn[request]], fleet, request)

    return route, columns


class _Outstanding(Sequence):
    """Live view of the engines' numbers of unfinished requests."""

    def __init__(self, engines: Sequence[SimulatedEngine]):
        self._engines = engines

    def __len__(self) -> int:
        return len(self._engines)

    def __getitem__(self, i: int) -> int:
        return self._engines[i].unfinished


class _Cached(_Outstanding):
    """Live view of the tokens of one request's prompt that each engine has cached."""

    request = 0

    def __getitem__(self, i: int) -> int:
        return self._engines[i].cached(self.request)


def _row(cluster: int, clusters: int) -> Row:
    """Make a decision from a cluster; the others follow cyclically."""
    order = tuple((cluster + j) % clusters for j in range(clusters))
    return Row(cluster=cluster, distance=None, margin=None, runner_up=order[1 % clusters], order=order)


def describe(system: System, users: int, setup: Setup, seed: int) -> dict:
    """Return a run's description for the metadata of its records."""
    expert = system.expert
    described = dataclasses.asdict(setup) | {"tables": None}
    if not isinstance(setup.gateway, (int, float)):
        described["gateway"] = {"measured": len(setup.gateway), "median": float(np.median(setup.gateway))}
    return {
        "run_id": f"simulated-{system.paper}-{system.name}-{users}-s{seed}",
        "experiment": "preliminary" if system.share else "systems",
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
        "plays": None if system.share else system.title,
        "half": system.share,
        "max_batch_size": expert.max_batch_size,
        "kv_tokens": setup.pool(expert),
        "setup": described,
    }
