"""The paper's machine, simulated, beside what was measured here: the same experiments at full scale.

    found = simulate("baselines", profiles.profile("laptop"), Folders.of("laptop"))

Where aiconfigurator's measured kernels cannot be had (macOS, some ARM machines), iterations take the roofline's times, the
least that physics allows. Every number is then too good; the records' machine says so, and every figure and verdict
names it.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from erlab import fingerprint, paper, simulation
from erlab.paths import Folders
from erlab.progress import report
from erlab.prompts import workload
from erlab.results import metrics, records
from erlab.simulation.components import unavailable
from erlab.spec import Profile, System, require

EXPERIMENTS = ("preliminary", "baselines", "router")


def simulate(
    experiment: str,
    to: Profile,
    folders: Folders,
    papers: Iterable[str] = ("v2",),
    loads: Iterable[int] | None = None,
    seed: int = 0,
) -> records.Records:
    """Simulate an experiment on the DGX H100 for these versions of the paper, keep its records, and return them.

    Table I's systems are simulated with each of the profile's `simulated_seeds` seeds from `seed` on; the preliminary
    ones, which no claim rests on and which are more than all the others, with the first.
    Router systems follow what the study's router decides on the held-back prompts, and their gateway takes as long
    as the real one took here at the lowest measured load. Kept records are returned as they are while nothing that
    they depend on has changed. Where measured step times cannot be had, that is said. Raises ErlabError for an unknown
    experiment or version of the paper.
    """
    require(experiment in EXPERIMENTS, "experiment", "simulate", f"be one of {', '.join(EXPERIMENTS)}", experiment)
    papers = checked_papers(papers)
    loads = list(loads or to.simulated_loads)
    seeds = list(range(seed, seed + (1 if experiment == "preliminary" else to.simulated_seeds)))
    folder = folders.records / "simulated" / experiment
    if reason := unavailable():
        report(0, 1, f"{experiment}: simulated with the roofline, the limit, without measured step times: {reason}")
    for version in paper.SYSTEMS.keys() - set(papers):  # of an earlier run
        (folder / f"{version}.parquet").unlink(missing_ok=True)
    for version in papers:
        _simulate(folder / f"{version}.parquet", experiment, folders, version, loads, seeds)
    return records.read(folder)


def checked_papers(papers: Iterable[str]) -> list[str]:
    """The versions of the paper, each once; ErlabError for anything else, a single text too."""
    versions = list(papers) if isinstance(papers, Iterable) and not isinstance(papers, str) else []
    fits = versions and all(version in tuple(paper.SYSTEMS) for version in versions)
    require(bool(fits), "papers", "simulate", f"be a list of some of {', '.join(paper.SYSTEMS)}", papers)
    return list(dict.fromkeys(versions))


def _simulate(
    file: Path, experiment: str, folders: Folders, version: str, loads: list[int], seeds: list[int]
) -> None:
    """Simulate one version's systems unless its file holds just that already."""
    gateway = _gateway_seconds(folders) if experiment == "router" else None
    on = setup(folders) if experiment == "router" else machine()
    parts = [version, loads, seeds, gateway, on.steps, fingerprint.of_code("erlab.experiments.fullscale")]
    if experiment == "router":
        parts += [fingerprint.of_file(f) for f in (folders.router / "router.json", folders.prompts)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    if file.is_file() and records.read(file).runs.key.eq(key).all():
        return
    routing = {"decisions": decisions(folders)} if experiment == "router" else {}
    systems = _systems(experiment, version)
    found = records.join(*(simulation.sweep(systems, loads, setup=on, seed=seed, **routing) for seed in seeds))
    lengths = {"input": asdict(paper.WORKLOAD.input_tokens), "output": asdict(paper.WORKLOAD.output_tokens)}
    runs = found.runs.assign(key=key, workload=[lengths] * len(found.runs))
    records.save(file, records.Records(found.requests, runs))


def decisions(folders: Folders) -> list:
    """What the study's router decides on each held-back prompt (rows of `routing.Routing`)."""
    prompts = workload.stored(folders)
    held_back = prompts.filter(lambda split: split == "held_back", input_columns="split")
    from erlab.routing import CompiledRouter

    routing = CompiledRouter.load(folders.router).route(held_back["text"])
    return [routing.row(i) for i in range(len(routing))]


def _systems(experiment: str, version: str) -> dict[str, System]:
    if experiment == "preliminary":
        return simulation.preliminary_systems()
    return {k: s for k, s in paper.SYSTEMS[version].items() if s.router == (experiment == "router")}


def setup(folders: Folders) -> simulation.Setup:
    """The simulated machine, its gateway as slow as the real one was here; the default where nothing was measured."""
    gateway = _gateway_seconds(folders)
    return replace(machine(), gateway=gateway) if gateway else machine()


def machine() -> simulation.Setup:
    """The simulated machine by default: with measured step times or, where they cannot be had, the roofline's."""
    return simulation.Setup(steps="roofline", era=None) if unavailable() else simulation.Setup()


def _gateway_seconds(folders: Folders) -> tuple[float, ...] | None:
    """From submission to decision as measured at the lowest load, or None where nothing was measured."""
    requests = records.at_hand(folders.records / "router").requests
    delays = metrics.routing(requests[requests.users == requests.users.min()]).dropna()
    return tuple((delays / 1e3).round(6)) or None
