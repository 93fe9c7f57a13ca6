"""The study's experiments at full scale, on the simulated DGX H100.

    records = simulate("baselines", profiles.profile("laptop"), Folders.of("laptop"))

Where aiconfigurator's measured kernels are not available (macOS, some ARM machines), iteration times come from the
roofline, the lower limit of physics. Performance is then overestimated; the machine's name in records, figures and
verdicts says so.
"""

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
    profile: Profile,
    folders: Folders,
    papers: Iterable[str] = ("v2",),
    loads: Iterable[int] | None = None,
    seed: int = 0,
) -> records.Records:
    """Simulate an experiment on the DGX H100, write its records, and return them.

    Router systems follow the decisions of the study's router on the held-back prompts, with the gateway's delay as
    measured here at the lowest load. Records whose dependencies have not changed are not simulated again. The progress
    report says if measured step times are not available.

    Args:
        loads: Numbers of concurrent users; by default the profile's simulated ones.
        seed: First seed. Systems of Table I are simulated with `profile.simulated_seeds` seeds, preliminary systems,
            on which no claim rests, with one.
    """
    require(experiment in EXPERIMENTS, "experiment", "simulate", f"be one of {', '.join(EXPERIMENTS)}", experiment)
    papers = checked_papers(papers)
    loads = list(loads or profile.simulated_loads)
    seeds = list(range(seed, seed + (1 if experiment == "preliminary" else profile.simulated_seeds)))
    folder = folders.records / "simulated" / experiment
    if reason := unavailable():
        report(0, 1, f"{experiment}: simulated with the roofline, the limit, without measured step times: {reason}")
    for version in paper.SYSTEMS.keys() - set(papers):  # of an earlier run
        (folder / f"{version}.parquet").unlink(missing_ok=True)
    for version in papers:
        _simulate(folder / f"{version}.parquet", experiment, folders, version, loads, seeds)
    return records.read(folder)


def checked_papers(papers: Iterable[str]) -> list[str]:
    """Return the versions without duplicates; raise ErlabError unless they are versions of the paper."""
    versions = list(papers) if isinstance(papers, Iterable) and not isinstance(papers, str) else []
    fits = versions and all(version in tuple(paper.SYSTEMS) for version in versions)
    require(bool(fits), "papers", "simulate", f"be a list of some of {', '.join(paper.SYSTEMS)}", papers)
    return list(dict.fromkeys(versions))


def _simulate(
    file: Path, experiment: str, folders: Folders, version: str, loads: list[int], seeds: list[int]
) -> None:
    """Simulate the systems of one version unless its file has the same key."""
    gateway = _gateway_seconds(folders) if experiment == "router" else None
    machine_setup = setup(folders) if experiment == "router" else machine()
    parts = [version, loads, seeds, gateway, machine_setup.steps, fingerprint.of_code("erlab.experiments.fullscale")]
    if experiment == "router":
        parts += [fingerprint.of_file(f) for f in (folders.router / "router.json", folders.prompts)]
    key = fingerprint.of_parts(parts)
    if file.is_file() and records.read(file).runs.key.eq(key).all():
        return
    routing = {"decisions": decisions(folders)} if experiment == "router" else {}
    systems = _systems(experiment, version)
    options = {"setup": machine_setup, **routing}
    simulated = records.join(*(simulation.sweep(systems, loads, seed=seed, **options) for seed in seeds))
    lengths = {"input": asdict(paper.WORKLOAD.input_tokens), "output": asdict(paper.WORKLOAD.output_tokens)}
    runs = simulated.runs.assign(key=key, workload=[lengths] * len(simulated.runs))
    records.save(file, records.Records(simulated.requests, runs))


def decisions(folders: Folders) -> list:
    """Return the decisions of the study's router on the held-back prompts (rows of `routing.Routing`)."""
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
    """Return the simulated machine with the gateway delay measured here, by default `machine`."""
    gateway = _gateway_seconds(folders)
    return replace(machine(), gateway=gateway) if gateway else machine()


def machine() -> simulation.Setup:
    """Return the simulated machine with measured step times, or the roofline's if they are not available."""
    return simulation.Setup(steps="roofline", era=None) if unavailable() else simulation.Setup()


def _gateway_seconds(folders: Folders) -> tuple[float, ...] | None:
    """Return the times to the gateway's decision measured at the lowest load, None without measurements."""
    requests = records.at_hand(folders.records / "router").requests
    delays = metrics.routing(requests[requests.users == requests.users.min()]).dropna()
    return tuple((delays / 1e3).round(6)) or None
