"""What notebooks 08 and 09 work out with the simulation: tables, kept as CSV, and their pictures.

    from erlab import deployment, profiles, studies
    to, folders = profiles.profile("laptop"), paths.Folders.of("laptop")
    found = studies.sensitivity(to, folders)
    figures.simulation.show(folders.root / "beyond", "sensitivity", found)
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from erlab import paper, simulation, textfiles
from erlab.errors import ErlabError
from erlab.experiments import fullscale
from erlab.paths import Folders
from erlab.prompts import workload
from erlab.results import claims, metrics, records, selection
from erlab.simulation import autoscaling as scaling
from erlab.simulation import beyond, era, validation
from erlab.spec import Profile, checked_loads, require

ROUTERS = {name: s for systems in paper.SYSTEMS.values() for name, s in systems.items() if s.router}
SYSTEMS = {name: s for systems in paper.SYSTEMS.values() for name, s in systems.items()}
LIMITS = (beyond.MLPERF, beyond.INTERACTIVE)
STUDYS_ROUTER = "the study's router"
TARGETS = {"throughput": 0.10, "tpot_ms": 0.10, "ttft_s": 0.25, "1.0": 0.10, "0.13": 0.15}  # median absolute errors


def keep(folder: Path, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Write a table as CSV into `folder` and return it."""
    textfiles.save(folder / f"{name}.csv", frame.to_csv(index=False))
    return frame


# ---- beyond the paper


def decisions(folders: Folders, clusterers: Iterable[str] = (), seed: int = 0) -> dict[str, list]:
    """What the study's router decides on the held-back prompts, and what routers decide that differ from it in nothing
    but the clusterer (names of `routing.clusterers.CLUSTERERS`): lists of `routing.compiled.Row` by name."""
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
        found = {name: router.route(texts["held_back"]) for name, router in routers.items()}
    return {name: [routing.row(i) for i in range(len(routing))] for name, routing in found.items()}


def shares(rows: Sequence, least: int = paper.GPUS) -> list[float]:
    """Each cluster's share of these decisions; at least `least` clusters, the missing ones empty."""
    counts = np.bincount([row.cluster for row in rows], minlength=max(least, len(rows[0].order)))
    return (counts / counts.sum()).tolist()


def check_system(system: str) -> None:
    """Refuse what is no router system of the paper."""
    require(system in tuple(ROUTERS), "system", "notebook 08", f"be one of {', '.join(ROUTERS)}", system)


def check_clusterers(clusterers: Iterable[str]) -> None:
    """Refuse what is no list of clusterers."""
    from erlab.routing.clusterers import CLUSTERERS  # scikit-learn takes a second to import

    fits = isinstance(clusterers, list | tuple) and all(name in tuple(CLUSTERERS) for name in clusterers)
    require(fits, "clusterers", "notebook 08", f"be a list out of {', '.join(CLUSTERERS)}", clusterers)


def policies(
    to: Profile,
    folders: Folders,
    decided: Mapping[str, list],
    system: str = "D",
    loads: Iterable[int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """A row a clusterer, policy and load (default: the two largest explored ones) of `simulation.beyond.policies`, and
    the largest cluster's share of the prompts."""
    check_system(system)
    loads = checked_loads(to.explored_loads[-2:] if loads is None else loads)
    options = dict(decisions=decided, setup=fullscale.setup(folders), seed=seed)
    found = beyond.policies(ROUTERS[system], loads, **options)
    largest = found["clusterer"].map({name: max(shares(rows)) for name, rows in decided.items()})
    found.insert(1, "largest cluster", largest)
    return found.rename(columns={"largest share": "largest expert"}).assign(system=system)


def policy_table(found: pd.DataFrame, column: str = "output_throughput") -> pd.DataFrame:
    """A row a load and clusterer, a column a policy."""
    wide = found.pivot_table(index=["users", "clusterer"], columns="policy", values=column, aggfunc="first", sort=False)
    return wide.astype(float).round(2)


def autoscaling(
    to: Profile,
    system: str = "D",
    experts: int = 4,
    seconds: float = 900,
    cold_start: float = 60.0,
    seed: int = 0,
) -> pd.DataFrame:
    """A row a controller and rate: how many requests of `autoscaling.shifting_load` stay within MLPerf's limits on
    `system`'s GPUs, shared by `experts` experts, and how many replicas changed hands."""
    check_system(system)
    rows = []
    for rate in to.explored_rates:
        load, chosen = scaling.shifting_load(experts, seconds, rate, seed=seed)
        for kind in scaling.CONTROLLERS:
            controller = scaling.Controller(kind, target=48, cold_start=cold_start)
            found = scaling.simulate_autoscaled(ROUTERS[system], experts, load, chosen, controller, fullscale.machine())
            rows.append(
                {
                    "system": system,
                    "controller": kind,
                    "rate": rate,
                    "cold_start_s": cold_start,
                    "moves": int(found.runs["moves"].item()),
                    "within": float(beyond.within(found.requests, beyond.MLPERF).mean()),
                    "ttft_p99_s": metrics.percentile(metrics.ttft(found.requests), 99),
                }
            )
    return pd.DataFrame(rows)


def simulated(folders: Folders) -> pd.DataFrame:
    """The requests that notebooks 04 and 05 simulated."""
    found = records.at_hand(folders.records / "simulated")
    try:
        return selection.systems(found)
    except ErlabError:
        missing = folders.records / "simulated"
        raise ErlabError(f"No {missing}: run notebooks 04 and 05 first (erlab reproduce --from 04).") from None


def economics(requests: pd.DataFrame, dollars_per_gpu_hour: float = 2.5) -> pd.DataFrame:
    """Cost and energy a token of every simulated system and load (see `simulation.beyond.economics`)."""
    summary = metrics.summarise(requests)
    found = beyond.economics(summary, SYSTEMS, dollars_per_gpu_hour=dollars_per_gpu_hour)
    found.insert(0, "paper", summary["paper"])
    return found.assign(dollars_per_gpu_hour=dollars_per_gpu_hour)


def cheapest(found: pd.DataFrame) -> pd.DataFrame:
    """Each system at the load where a token costs it least."""
    best = found.loc[found.groupby("system")["dollars_per_million_tokens"].idxmin()]
    return best.sort_values(["paper", "dollars_per_million_tokens"], ascending=[False, True]).round(2)


def goodput(requests: pd.DataFrame) -> pd.DataFrame:
    """A row a system, load and pair of limits: requests/s that met both, and whether the 99th percentiles do."""
    cells = requests.groupby(["paper", "system", "users"])
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
            for (version, system, users), rows in cells
            for limits in LIMITS
        ]
    )


def largest_loads(to: Profile, folders: Folders, decided: Sequence, seed: int = 0) -> pd.DataFrame:
    """The largest load each system holds within both pairs of limits, searched up to four times the largest simulated
    one, and its goodput there; router systems follow the decisions `decided`."""
    options = dict(limits=LIMITS, most=4 * max(to.simulated_loads), setup=fullscale.setup(folders), seed=seed)
    baselines = {name: s for name, s in SYSTEMS.items() if not s.router}
    routed = beyond.served_within(ROUTERS, decisions=decided, **options)
    found = pd.concat([beyond.served_within(baselines, **options), routed], ignore_index=True)
    found.insert(0, "paper", found["system"].map({name: s.paper for name, s in SYSTEMS.items()}))
    return found.sort_values(["paper", "system"], ascending=[False, True], kind="stable").round(2)


def sensitivity(to: Profile, folders: Folders, decided: Sequence, seed: int = 0) -> pd.DataFrame:
    """The verdict on each claim of both versions under each assumption (see `simulation.sensitivity`); cluster shares
    measured on the decisions `decided` are one of them."""
    measured = {STUDYS_ROUTER: shares(decided)}
    parts = []
    for version in paper.SYSTEMS:

        def judge(found: records.Records, version=version) -> pd.DataFrame:
            return claims.ledger(found, [c.id for c in paper.CLAIMS if c.paper == version], resamples=0)

        cases = simulation.variations(version, fullscale.setup(folders), measured_shares=measured)
        parts.append(simulation.sensitivity(judge, cases, to.explored_loads, seed))
    found = pd.concat(parts, ignore_index=True)
    return found.assign(loads=", ".join(map(str, to.explored_loads)))


def survival(found: pd.DataFrame) -> pd.DataFrame:
    """A row a claim: its verdict by default, whether that survives each other assumption (varied alone), and at which
    values it flips, with the verdict there where it is not just the opposite."""
    opposite = {claims.HOLDS: claims.FAILS, claims.FAILS: claims.HOLDS}
    rows = []
    for claim, mine in found.groupby("id", sort=False):
        default, others = mine.iloc[0], mine.iloc[1:]
        other = others[others["verdict"] != default["verdict"]]
        flips = {}
        for assumption, value, verdict in zip(other["assumption"], other["value"], other["verdict"]):
            said = "" if verdict == opposite.get(default["verdict"]) else f" ({verdict})"
            flips.setdefault(assumption, []).append(f"{value}{said}")
        survives = f"all {len(others)}" if other.empty else f"{len(others) - len(other)} of {len(others)}"
        at = "; ".join(f"{assumption}: {', '.join(values)}" for assumption, values in flips.items())
        row = {"claim": claim, "statement": default["statement"], "by default": default["verdict"]}
        rows.append(row | {"survives": survives, "flips at": at or "nothing"})
    return pd.DataFrame(rows)


# ---- validation


def published(to: Profile, version: str) -> pd.DataFrame:
    """The published cells of a version of TensorRT-LLM beside the simulation; `judged` is the ratio that its target
    is about, `how` says which: kernels as measured, or the era's factors, cross-validated."""
    with warnings.catch_warnings():  # joblib replaces a worker whose memory has grown, and says so
        warnings.filterwarnings("ignore", "A worker stopped")
        found = validation.validate_published(version, sizes=to.compared_sizes)
    untuned = version == "1.0"
    return found.assign(
        version=version,
        judged=found["ratio" if untuned else "fitted_ratio"],
        how="kernels as measured" if untuned else "era fitted on other lengths",
        target=TARGETS[version],
    )


def residuals(cells: pd.DataFrame) -> pd.DataFrame:
    """Median predicted / published by input and output lengths (rows) and precision and tensor-parallel size, of the
    ratio each of `published`'s cells is judged by: where the simulation is too fast (above 1) or too slow."""
    shapes = [f"{i}/{o}" for i, o in zip(cells["isl"], cells["osl"])]
    kinds = [f"{quant} TP {tp}" for quant, tp in zip(cells["quant"], cells["tp"])]
    named = cells.assign(shape=shapes, kind=kinds).sort_values(["isl", "osl"])
    wide = named.pivot_table(index="shape", columns="kind", values="judged", aggfunc="median", sort=False)
    return wide.sort_index(axis=1).rename_axis(index="input/output", columns=None).round(2).reset_index()


def era_fit(cells: pd.DataFrame) -> pd.DataFrame:
    """The era's factors as fitted on these cells now, and as the simulation uses them."""
    rows = [
        {"precision": quant, "TP": tp, "decode": decode, "prefill": prefill}
        | dict(zip(("decode used", "prefill used"), era.FACTORS["0.13"][quant, tp]))
        for (quant, tp), (decode, prefill) in validation.fit_era(cells).items()
    ]
    return pd.DataFrame(rows).round(2)


def interpolation(seed: int = 0) -> pd.DataFrame:
    """How far iteration times from the tables are from asking for each, for the engines of D and E: relative errors."""
    rows = []
    for name in ("D", "E"):
        found = validation.interpolation(SYSTEMS[name].expert, points=50, seed=seed)
        for step, part in found.groupby("step"):
            error = (part["ratio"] - 1).abs()
            rows.append({"engine": name, "step": step, "points": len(part), "median error": error.median()}
                        | {"largest error": error.max()})  # fmt: skip
    return pd.DataFrame(rows)


def targets(new: pd.DataFrame, old: pd.DataFrame, h200: pd.DataFrame) -> pd.DataFrame:
    """What the simulation was to reach (median absolute error), what it reached, and whether that is enough.

    `new`, `old`: `published` of 1.0 and 0.13. The host's share of a prefilling iteration was fitted to every second
    load of `h200`; the loads between have rows of their own.
    """
    rows = [
        ("published throughput, TensorRT-LLM 1.0, untuned", TARGETS["1.0"], new["judged"]),
        ("published throughput, TensorRT-LLM 0.13, era cross-validated", TARGETS["0.13"], old["judged"]),
    ]
    names = {"throughput": "throughput", "tpot_ms": "time per output token", "ttft_s": "time to first token"}
    for loads, part in (("all loads", h200), ("loads not used in the fit", h200.iloc[1::2])):
        rows += [(f"H200, {name}, {loads}", TARGETS[column], part[f"{column}_ratio"]) for column, name in names.items()]
    found = []
    for what, target, ratios in rows:
        reached = float((ratios.dropna() - 1).abs().median())
        found.append({"against": what, "compared": int(ratios.notna().sum()), "target": target, "reached": reached})
    return pd.DataFrame(found).assign(met=lambda f: np.where(f["reached"] <= f["target"], "yes", "no"))


def percent(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The table for reading: these columns as percentages."""
    return frame.assign(**{c: frame[c].map("{:.1%}".format) for c in columns})
