"""Sensitivity of conclusions to the assumptions: each one varied alone.

    from erlab import simulation
    from erlab.results import claims
    verdicts = simulation.sensitivity(claims.ledger)       # one row per assumption, value and claim
    verdicts.pivot_table(index=["assumption", "value"], columns="id", values="verdict", aggfunc="first")
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from erlab import paper
from erlab.results import metrics
from erlab.results.records import Records
from erlab.simulation.sweeps import sweep
from erlab.simulation.systems import read as read_systems
from erlab.simulation.system import Setup
from erlab.spec import GIB, System, Workload, require

LOADS = (1, 50, 200, 600, 1000)


@dataclass(frozen=True)
class Variation:
    """One assumption at one value, as arguments of `sweep`."""

    assumption: str
    value: str
    systems: Mapping[str, System]
    setup: Setup
    workload: Workload = paper.WORKLOAD
    options: Mapping = field(default_factory=dict)


def zipf(n: int, exponent: float) -> list[float]:
    """Return Zipf-distributed shares of `n` clusters, proportional to 1 / rank**exponent."""
    require(n >= 1, "n", "zipf", "be at least 1", n)
    weights = np.arange(1, n + 1) ** -float(exponent)
    return (weights / weights.sum()).tolist()


def with_kv_pool(system: System, gib: float) -> System:
    """Return the system with `gib` GiB of KV cache per GPU."""
    require(gib > 0, "gib", "with_kv_pool", "be above 0", gib)
    expert = system.expert
    tokens = int(gib * GIB * expert.tensor_parallel) // paper.kv_bytes_per_token(expert)
    return replace(system, expert=replace(expert, kv_tokens=tokens))


def of_paper(
    version: str,
    name: str,
    kv_gib: float | None = None,
    replicas: int | None = None,
    era: str | None = None,
    steps: str = "measured",
    gateway: float = 0.002,
    file: str | Path | None = None,
) -> tuple[System, Setup]:
    """Return a system of the paper and its simulated machine.

    Args:
        version: Version of the paper, v1 or v2.
        kv_gib: KV cache per GPU, GiB (default: what weights and reserve leave).
        era: Name in `era.FACTORS`, or "none" for kernels as measured (default: that of `Setup`; none for the roofline).
        gateway: Delay of the gateway, seconds.
        file: TOML file of further systems (`systems.read`).
    """
    require(version in paper.SYSTEMS, "paper", "simulate", f"be one of {', '.join(paper.SYSTEMS)}", version)
    systems = paper.SYSTEMS[version] | (read_systems(file) if file else {})
    own = f" or {file}" if file else ""
    require(name in systems, "system", "simulate", f"be one of {', '.join(systems)} of paper {version}{own}", name)
    system = systems[name] if kv_gib is None else with_kv_pool(systems[name], kv_gib)
    if replicas is not None:
        system = replace(system, count=replicas)
    if era is None:
        era = "none" if steps == "roofline" else Setup.era
    return system, Setup(steps=steps, era=None if era == "none" else era, gateway=gateway)


def variations(
    version: str = "v2",
    setup: Setup = Setup(),
    kv_gib: Iterable[float] = (3.5, 4.5, 8.0, 12.0),
    zipfs: Iterable[float] = (0.5, 1.0),
    measured_shares: Mapping[str, list[float]] | None = None,
    input_medians: Iterable[float] = (100.0, 380.0),
    gateways: Iterable[float] = (0.0, 0.01, 0.05),
) -> list[Variation]:
    """Return the default, then every assumption at its other values.

    Args:
        kv_gib: KV cache per GPU of systems whose 70B expert has one GPU, GiB.
        measured_shares: Cluster shares of real clusterers, by name.
    """
    systems = paper.SYSTEMS[version]
    single_gpu = {k: s for k, s in systems.items() if s.expert.tensor_parallel == 1 and "70B" in s.expert.model.name}
    cases = [Variation("default", "", systems, setup)]
    for gib in kv_gib:
        smaller = {k: with_kv_pool(s, gib) for k, s in single_gpu.items()}
        cases.append(Variation("KV pool of 70B on one GPU", f"{gib:g} GiB", {**systems, **smaller}, setup))
    if setup.steps == "measured":
        cases.append(Variation("software era", "kernels as measured (2025/26)", systems, replace(setup, era=None)))
        cases.append(Variation("step times", "roofline", systems, replace(setup, steps="roofline", era=None)))
    single = {k: s if s.router else replace(s, count=1) for k, s in systems.items()}
    cases.append(Variation("replicas of a baseline", "1", single, setup))
    for exponent in zipfs:
        shares = zipf(paper.GPUS, exponent)
        cases.append(Variation("cluster shares", f"Zipf {exponent:g}", systems, setup, options={"shares": shares}))
    for name, shares in (measured_shares or {}).items():
        cases.append(Variation("cluster shares", name, systems, setup, options={"shares": shares}))
    for median in input_medians:
        lengths = replace(paper.WORKLOAD.input_tokens, median=median)
        workload = replace(paper.WORKLOAD, input_tokens=lengths)
        cases.append(Variation("median input length", f"{median:g} tokens", systems, setup, workload))
    for seconds in gateways:
        slower = replace(setup, gateway=seconds)
        cases.append(Variation("gateway delay", f"{seconds * 1e3:g} ms", systems, slower))
    return cases


def sensitivity(
    judge: Callable[[Records], pd.DataFrame] = lambda records: metrics.summarise(records.requests),
    cases: Iterable[Variation] | None = None,
    loads: Iterable[int] = LOADS,
    seed: int = 0,
) -> pd.DataFrame:
    """Simulate each variation and judge its records.

    Args:
        judge: Function from records to a table (default `metrics.summarise`). `erlab.results.claims.ledger` gives the
            verdict on every claim.

    Returns:
        The tables of all variations, after the columns `assumption` and `value`; a column `value` of the judge is
        renamed to `found`.
    """
    loads, parts = list(loads), []
    for case in variations() if cases is None else cases:
        records = sweep(case.systems, loads, setup=case.setup, workload=case.workload, seed=seed, **case.options)
        judged = judge(records).rename(columns={"value": "found"})
        judged.insert(0, "assumption", case.assumption)
        judged.insert(1, "value", case.value)
        parts.append(judged)
    return pd.concat(parts, ignore_index=True)
