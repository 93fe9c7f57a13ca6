"""Capacity planning with the simulated machine, for notebook 08: policies, autoscaling, cost and latency limits.

    profile, folders = profiles.profile("laptop"), paths.Folders.of("laptop")
    decisions = capacity.decisions(folders)
    table = capacity.policies(profile, folders, decisions)
    figures.simulation.show(folders.root / "beyond", "policies", table)
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from erlab import paper
from erlab.errors import ErlabError
from erlab.experiments import fullscale
from erlab.paths import Folders
from erlab.prompts import workload
from erlab.results import metrics, records, selection
from erlab.simulation import autoscaling as scaling
from erlab.simulation import beyond
from erlab.spec import Profile, checked_loads, require

SYSTEMS = {name: s for systems in paper.SYSTEMS.values() for name, s in systems.items()}
ROUTERS = {name: s for name, s in SYSTEMS.items() if s.router}
LIMITS = (beyond.MLPERF, beyond.INTERACTIVE)
STUDYS_ROUTER = "the study's router"
_EXPERTS, _SECONDS = 4, 900  # of the autoscaled load


def decisions(folders: Folders, clusterers: Iterable[str] = (), seed: int = 0) -> dict[str, list]:
    """Route the held-back prompts with the study's router and with routers of other clusterers.

    Args:
        clusterers: Names in `routing.clusterers.CLUSTERERS`. These routers differ from the study's only in the
            clusterer.

    Returns:
        Decisions (`routing.compiled.Row`), one per prompt, by router; the study's router is the first.
    """
    from erlab.routing import PromptRouter  # scikit-learn takes a second to import

    check_clusterers(clusterers)
    prompts = workload.stored(folders)
    texts = {
        split: prompts.filter(lambda s, wanted=split: s == wanted, input_columns="split")["text"][:]
        for split in ("train", "held_back")
    }
    studys = PromptRouter.load(folders.router)
    routers = {f"{STUDYS_ROUTER} ({studys.clusterer})": studys}
    with threadpool_limits(1):  # OpenMP's threads spin where cores are busy: many times slower, same clusters
        for name in clusterers:
            routers[name] = PromptRouter(**studys.get_params() | {"clusterer": name, "seed": seed}).fit(texts["train"])
        routings = {name: router.route(texts["held_back"]) for name, router in routers.items()}
    return {name: [routing.row(i) for i in range(len(routing))] for name, routing in routings.items()}


def shares(decisions: Sequence, least: int = paper.GPUS) -> list[float]:
    """Return each cluster's share of decisions; with fewer than `least` clusters, empty ones are appended."""
    counts = np.bincount([row.cluster for row in decisions], minlength=max(least, len(decisions[0].order)))
    return (counts / counts.sum()).tolist()


def check_system(system: str) -> None:
    """Raise ErlabError unless `system` is a router system of the paper."""
    require(system in tuple(ROUTERS), "system", "notebook 08", f"be one of {', '.join(ROUTERS)}", system)


def check_clusterers(clusterers: Iterable[str]) -> None:
    """Raise ErlabError unless `clusterers` is a list of clusterers."""
    from erlab.routing.clusterers import CLUSTERERS  # scikit-learn takes a second to import

    fits = isinstance(clusterers, list | tuple) and all(name in tuple(CLUSTERERS) for name in clusterers)
    require(fits, "clusterers", "notebook 08", f"be a list out of {', '.join(CLUSTERERS)}", clusterers)


def policies(
    profile: Profile,
    folders: Folders,
    decisions: Mapping[str, list],
    system: str = "D",
    loads: Iterable[int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Simulate every routing policy with the decisions of several routers (`simulation.beyond.policies`).

    Args:
        loads: Numbers of concurrent users; by default the two largest of the profile's explored ones.

    Returns:
        One row per clusterer, policy and load, with the largest cluster's share of the prompts.
    """
    check_system(system)
    loads = checked_loads(profile.explored_loads[-2:] if loads is None else loads)
    options = dict(decisions=decisions, setup=fullscale.setup(folders), seed=seed)
    table = beyond.policies(ROUTERS[system], loads, **options)
    largest = table["clusterer"].map({name: max(shares(rows)) for name, rows in decisions.items()})
    table.insert(1, "largest cluster", largest)
    return table.rename(columns={"largest share": "largest expert"}).assign(system=system)


def policy_table(policies: pd.DataFrame, column: str = "output_throughput") -> pd.DataFrame:
    """Arrange a metric of policies with one row per load and clusterer, one column per policy."""
    rows = ["users", "clusterer"]
    wide = policies.pivot_table(index=rows, columns="policy", values=column, aggfunc="first", sort=False)
    return wide.astype(float).round(2)


def autoscaling(profile: Profile, system: str = "D", cold_start: float = 60.0, seed: int = 0) -> pd.DataFrame:
    """Simulate autoscaling controllers under a shifting load (`autoscaling.shifting_load`).

    Args:
        system: Router system of the paper, whose GPUs the experts share.
        cold_start: Seconds until a replica that changes its expert serves again.

    Returns:
        One row per controller and arrival rate: share of the requests within MLPerf's limits, p99 of the time to first
        token (s), and replicas that changed their expert.
    """
    check_system(system)
    rows = []
    for rate in profile.explored_rates:
        load, chosen = scaling.shifting_load(_EXPERTS, _SECONDS, rate, seed=seed)
        for kind in scaling.CONTROLLERS:
            controller = scaling.Controller(kind, target=48, cold_start=cold_start)
            run = scaling.simulate_autoscaled(ROUTERS[system], _EXPERTS, load, chosen, controller, fullscale.machine())
            rows.append(
                {
                    "system": system,
                    "controller": kind,
                    "rate": rate,
                    "cold_start_s": cold_start,
                    "moves": int(run.runs["moves"].item()),
                    "within": float(beyond.within(run.requests, beyond.MLPERF).mean()),
                    "ttft_p99_s": metrics.percentile(metrics.ttft(run.requests), 99),
                }
            )
    return pd.DataFrame(rows)


def simulated(folders: Folders) -> pd.DataFrame:
    """Return the requests that notebooks 04 and 05 simulated; raise ErlabError if there are none."""
    try:
        return selection.systems(records.at_hand(folders.records / "simulated"))
    except ErlabError:
        missing = folders.records / "simulated"
        raise ErlabError(f"No {missing}: run notebooks 04 and 05 first (erlab reproduce --from 04).") from None


def economics(requests: pd.DataFrame, dollars_per_gpu_hour: float = 2.5) -> pd.DataFrame:
    """Compute cost and energy per token, one row per system and load (`simulation.beyond.economics`)."""
    summary = metrics.summarise(requests)
    table = beyond.economics(summary, SYSTEMS, dollars_per_gpu_hour=dollars_per_gpu_hour)
    table.insert(0, "paper", summary["paper"])
    return table.assign(dollars_per_gpu_hour=dollars_per_gpu_hour)


def cheapest(economics: pd.DataFrame) -> pd.DataFrame:
    """Select each system's load with the lowest cost per token."""
    best = economics.loc[economics.groupby("system")["dollars_per_million_tokens"].idxmin()]
    return best.sort_values(["paper", "dollars_per_million_tokens"], ascending=[False, True]).round(2)


def goodput(requests: pd.DataFrame) -> pd.DataFrame:
    """Compute the goodput, one row per system, load and pair of latency limits.

    Returns:
        Goodput: requests/s within both limits. `holds`: whether the 99th percentiles are within them.
    """
    return pd.DataFrame(
        [
            {
                "paper": version,
                "system": system,
                "users": users,
                "limits": limits.name,
                "goodput": beyond.goodput(rows, limits),
                "holds": beyond.holds(rows, limits),
            }
            for (version, system, users), rows in requests.groupby(["paper", "system", "users"])
            for limits in LIMITS
        ]
    )


def largest_loads(profile: Profile, folders: Folders, decisions: Sequence, seed: int = 0) -> pd.DataFrame:
    """Find the largest load that each system serves within both pairs of limits, and its goodput there.

    Loads up to four times the profile's largest simulated one are searched.
    """
    most = 4 * max(profile.simulated_loads)
    options = dict(limits=LIMITS, most=most, setup=fullscale.setup(folders), seed=seed)
    baselines = {name: s for name, s in SYSTEMS.items() if not s.router}
    routed = beyond.served_within(ROUTERS, decisions=decisions, **options)
    table = pd.concat([beyond.served_within(baselines, **options), routed], ignore_index=True)
    table.insert(0, "paper", table["system"].map({name: s.paper for name, s in SYSTEMS.items()}))
    return table.sort_values(["paper", "system"], ascending=[False, True], kind="stable").round(2)
