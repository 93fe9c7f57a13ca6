"""Which conclusions survive the assumptions: every assumption varied alone, everything else at its default.

    from erlab import claims, simulation
    found = simulation.sensitivity(claims.ledger)       # a row an assumption, value and claim: its verdict
    found.pivot_table(index=["assumption", "value"], columns="id", values="verdict", aggfunc="first")
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from erlab import paper
from erlab.results import metrics
from erlab.results.records import Records
from erlab.simulation.sweeps import sweep
from erlab.simulation.system import Setup
from erlab.spec import GIB, System, Workload, require

LOADS = (1, 50, 200, 600, 1000)


@dataclass(frozen=True)
class Variation:
    """One assumption at one value: what to hand to `sweep`."""

    assumption: str
    value: str
    systems: Mapping[str, System]
    setup: Setup
    workload: Workload = paper.WORKLOAD
    options: Mapping = field(default_factory=dict)


def zipf(n: int, exponent: float) -> list[float]:
    """Shares of `n` clusters that fall like 1 / rank**exponent; 0 is even."""
    require(n >= 1, "n", "zipf", "be at least 1", n)
    weights = np.arange(1, n + 1) ** -float(exponent)
    return (weights / weights.sum()).tolist()


def with_kv_pool(system: System, gib: float) -> System:
    """The system with `gib` GiB of KV cache on each GPU, whatever its weights leave."""
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
) -> tuple[System, Setup]:
    """A system of the paper and the machine it is simulated on, with some assumptions changed.

    `era`: a name of `era.FACTORS`, "none" for kernels as measured, or None: the default's, none with the roofline.
    """
    require(version in paper.SYSTEMS, "paper", "simulate", f"be one of {', '.join(paper.SYSTEMS)}", version)
    systems = paper.SYSTEMS[version]
    require(name in systems, "system", "simulate", f"be one of {', '.join(systems)} of paper {version}", name)
    found = systems[name] if kv_gib is None else with_kv_pool(systems[name], kv_gib)
    if replicas is not None:
        found = replace(found, count=replicas)
    if era is None:
        era = "none" if steps == "roofline" else Setup.era
    return found, Setup(steps=steps, era=None if era == "none" else era, gateway=gateway)


def variations(
    version: str = "v2",
    setup: Setup = Setup(),
    kv_gib: Iterable[float] = (3.5, 4.5, 8.0, 12.0),
    zipfs: Iterable[float] = (0.5, 1.0),
    measured_shares: Mapping[str, list[float]] | None = None,
    input_medians: Iterable[float] = (100.0, 380.0),
    gateways: Iterable[float] = (0.0, 0.01, 0.05),
) -> list[Variation]:
    """The default first, then each assumption's other values. `kv_gib` bounds the pool of systems whose 70B expert has
    one GPU; `measured_shares` adds real clusterers' cluster shares by name."""
    systems = paper.SYSTEMS[version]
    crowded = {k: s for k, s in systems.items() if s.expert.tensor_parallel == 1 and "70B" in s.expert.model.name}
    found = [Variation("default", "", systems, setup)]
    for gib in kv_gib:
        smaller = {k: with_kv_pool(s, gib) for k, s in crowded.items()}
        found.append(Variation("KV pool of 70B on one GPU", f"{gib:g} GiB", {**systems, **smaller}, setup))
    if setup.steps == "measured":
        found.append(Variation("software era", "kernels as measured (2025/26)", systems, replace(setup, era=None)))
        found.append(Variation("step times", "roofline", systems, replace(setup, steps="roofline", era=None)))
    alone = {k: s if s.router else replace(s, count=1) for k, s in systems.items()}
    found.append(Variation("replicas of a baseline", "1", alone, setup))
    for exponent in zipfs:
        shares = zipf(paper.GPUS, exponent)
        found.append(Variation("cluster shares", f"Zipf {exponent:g}", systems, setup, options={"shares": shares}))
    for name, shares in (measured_shares or {}).items():
        found.append(Variation("cluster shares", name, systems, setup, options={"shares": shares}))
    for median in input_medians:
        lengths = replace(paper.WORKLOAD.input_tokens, median=median)
        workload = replace(paper.WORKLOAD, input_tokens=lengths)
        found.append(Variation("median input length", f"{median:g} tokens", systems, setup, workload))
    for seconds in gateways:
        slower = replace(setup, gateway=seconds)
        found.append(Variation("gateway delay", f"{seconds * 1e3:g} ms", systems, slower))
    return found


def sensitivity(
    judge: Callable[[Records], pd.DataFrame] = lambda found: metrics.summarise(found.requests),
    cases: Iterable[Variation] | None = None,
    loads: Iterable[int] = LOADS,
    seed: int = 0,
) -> pd.DataFrame:
    """What `judge` says of the records under each variation, with the columns `assumption` and `value` before.

    The default judge summarises (system, load) cells; `erlab.results.claims.ledger` gives the verdict on every claim, whose own
    column `value` is called `found` here.
    """
    loads, parts = list(loads), []
    for case in variations() if cases is None else cases:
        found = sweep(case.systems, loads, setup=case.setup, workload=case.workload, seed=seed, **case.options)
        judged = judge(found).rename(columns={"value": "found"})
        judged.insert(0, "assumption", case.assumption)
        judged.insert(1, "value", case.value)
        parts.append(judged)
    return pd.concat(parts, ignore_index=True)
