"""Sweeps: systems under rising loads of closed-loop users, one cell per (system, users) pair.

A finished cell is a parquet file of request records with the key of everything it depends on. A cell with an unchanged
key is not measured again, so a sweep continues where it stopped. A cell is invalid if the server restarted or died
during it, or if no request succeeded; it is then measured again.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from erlab import fingerprint
from erlab.errors import ErlabError
from erlab.experiments import cell, clients
from erlab.paths import Folders
from erlab.progress import report
from erlab.prompts import workload
from erlab.results import records
from erlab.serving import deployment, external, scaling
from erlab.serving.deployment import Running
from erlab.serving.engines import kinds
from erlab.serving.engines.kinds import kind
from erlab.spec import Profile, System, checked_loads, require

MOST_REPETITIONS = 1000
_ATTEMPTS = 2  # per cell, while its server lives


def measure(
    experiment: str,
    systems: dict[str, System],
    profile: Profile,
    folders: Folders,
    loads: Iterable[int] | None = None,
    seed: int = 0,
    triton: str | None = None,
    together: bool = False,
    repeat: int = 1,
) -> records.Records:
    """Measure the cells that are not finished yet and return the records of all.

    A cell is written when its last request has ended; a failed request keeps its row. Where no Triton can run, nothing
    is measured, and the progress report says so.

    Args:
        triton: Address of an external server (`erlab.serving.external`); None starts servers.
        together: Whether one server holds the engines of all systems, which saves starts. They idle most of the time.
        repeat: Repetitions of each load, with seeds from `seed` on; figures then draw confidence bands.

    Raises:
        ErlabError: A cell stayed invalid, or the system died. The cell's records and the reason are kept, and the next
            call measures it again.
    """
    loads = checked_loads(profile.loads if loads is None else loads)
    check_repeat(repeat)
    prompts = workload.stored(folders)
    if not systems:
        report(0, 1, f"{experiment}: profile {profile.name} has none of these systems")
        (folders.records / experiment).mkdir(parents=True, exist_ok=True)
        return records.at_hand(folders.records / experiment)
    if not triton and (reason := kind(profile).available()):
        return unmeasured(experiment, folders, f"Triton cannot run here: {reason}")
    keys = {
        (name, users, repetition): _key(experiment, system, users, profile, folders, seed + repetition, triton)
        for name, system in systems.items()
        for users in loads
        for repetition in range(repeat)
    }

    @contextmanager
    def open_servers(names: list[str]) -> Iterator[Callable[[str], AbstractContextManager[Running]]]:
        holder = None
        with ExitStack() as stack:
            if together and kind(profile).together and not triton:
                engines = {name: systems[name] for name in names}
                holder = stack.enter_context(deployment.server(engines, experiment, profile, folders))
            options = dict(triton=triton, holder=holder)
            yield lambda name: deployment.serve(name, systems[name], profile, folders, **options)

    def requests(users: int, repetition: int = 0) -> list[list[workload.Request]]:
        return workload.requests(prompts, profile.workload, users, seed + repetition)

    def measure_cell(name: str, users: int, repetition: int, running: Running) -> tuple[list[dict], dict]:
        asked, options = requests(users, repetition), {"triton": triton, "repetition": repetition}
        return cell.measure(
            experiment, name, systems[name], running, asked, profile, folders, seed + repetition, **options
        )

    return sweep(experiment, keys, folders, open_servers, measure_cell, requests)


def check_repeat(repeat: int) -> None:
    """Raise ErlabError unless the number of repetitions is a whole number from 1."""
    valid = type(repeat) is int and 1 <= repeat <= MOST_REPETITIONS
    require(valid, "repeat", "measure", f"be a whole number from 1 to {MOST_REPETITIONS}", repeat)


def measure_preliminary(
    profile: Profile, folders: Folders, loads: Iterable[int] | None = None, seed: int = 0, triton: str | None = None
) -> records.Records:
    """Measure the systems of Fig. 3 (`scaling.preliminary_systems`) under the profile's preliminary loads.

    An external server at `triton` has a batch limit of its own, so nothing is measured with it.
    """
    if triton:
        return unmeasured("preliminary", folders, f"{triton} has a batch limit of its own")
    loads = profile.preliminary_loads if loads is None else loads
    return measure("preliminary", scaling.preliminary_systems(profile), profile, folders, loads, seed, together=True)


def unmeasured(experiment: str, folders: Folders, reason: str) -> records.Records:
    """Report why nothing can be measured here, and return the records that exist."""
    report(0, 1, f"{experiment}: nothing is measured, {reason}")
    (folders.records / experiment).mkdir(parents=True, exist_ok=True)
    return records.at_hand(folders.records / experiment)


def sweep(
    experiment: str,
    keys: Mapping[tuple[str, int, int], str],
    folders: Folders,
    open_servers: Callable[[list[str]], AbstractContextManager[Callable[[str], AbstractContextManager[Running]]]],
    measure_cell: Callable[[str, int, int, Running], tuple[list[dict], dict]],
    requests: Callable[[int], list[list[workload.Request]]],
) -> records.Records:
    """Measure the cells that have no file with their key, and return the records of all.

    Args:
        keys: Key of each cell, by system, users and repetition.
        open_servers: Entered once with the names of the systems to measure, if there are any; yields a function that
            serves a system by its name.
        requests: Returns the requests of each user under a load, for the users' self-test (`clients.check`).
    """
    files = {pair: folders.records / experiment / cell.file_name(*pair) for pair in keys}
    _set_aside(folders, experiment, set(files.values()))
    due = [pair for pair, file in files.items() if not _finished(file, keys[pair])]
    done = len(files) - len(due)
    report(done, len(files), f"{experiment}: {done} of {len(files)} cells are there")
    names = list(dict.fromkeys(name for name, _, _ in due))
    with open_servers(names) if names else nullcontext() as serve:
        for name in names:
            with serve(name) as running:
                for pair in [pair for pair in due if pair[0] == name]:
                    report(done, len(files), f"system {name}, {pair[1]} user{'s' * (pair[1] > 1)}")
                    _measure_valid(files[pair], keys[pair], pair, running, measure_cell)
                    done += 1
    report(done, len(files), f"{experiment}: the users test themselves")
    clients.check(files, requests, folders.client)
    report(done, len(files), f"{experiment} done")
    return records.read(*files.values())


def _measure_valid(
    file: Path, key: str, pair: tuple[str, int, int], running: Running, measure_cell: Callable
) -> None:
    """Measure a cell until it is valid and write it; raise ErlabError if it stays invalid."""
    for _ in range(_ATTEMPTS):
        restarts = running.server.restarts
        rows, run = measure_cell(*pair, running)
        restarts, dead = running.server.restarts - restarts, running.failure()
        invalid = dead or cell.why_invalid(rows, restarts)
        records.write(file, rows, run | {"restarts": restarts, "key": None if invalid else key, "invalid": invalid})
        if dead or not invalid:
            break
    if invalid:
        raise ErlabError(f"{invalid} Finished loads are kept; run again to go on with {pair[0]} at {pair[1]} users.")


def _key(
    experiment: str, system: System, users: int, profile: Profile, folders: Folders, seed: int, triton: str | None
) -> str:
    """Hash what a cell depends on: its spec, its inputs, and the code that serves and measures it."""
    engine = deployment.engine_folder(system.expert, profile, folders)
    inputs = [folders.prompts, engine / "engine.json", engine / "openai.json"]
    if system.router:
        inputs.append(folders.router / "router.json")
    parts = [
        experiment,
        dataclasses.asdict(system),
        dataclasses.asdict(profile.workload),
        (users, seed, profile.clusters, triton, external.model(triton) if triton else None),
        [fingerprint.of_file(f) if f.is_file() else None for f in inputs],
        code(profile, system.router),
    ]
    return fingerprint.of_parts(parts)


def code(profile: Profile, router: bool) -> str:
    """Hash the code that a cell depends on: how its system is served, with a gateway or without, and measured."""
    unused = kinds.unused(profile) | (set() if router else {"erlab.routing"})
    # Engines need the data sheets of GPUs. The package around these is imported, but the simulation does not run.
    simulation = (fingerprint.PACKAGE / "simulation").glob("[!_]*.py")
    unused |= {f"erlab.simulation.{file.stem}" for file in simulation if file.stem != "hardware"}
    return fingerprint.of_code("erlab.experiments.cell", unused)


def _set_aside(folders: Folders, experiment: str, files: set[Path]) -> None:
    """Move the cells of other sweeps out of the experiment's records, and those of this sweep back in."""
    current, aside = folders.records / experiment, folders.set_aside / experiment
    moves = [(file, aside) for file in current.glob("*.parquet") if file not in files]
    moves += [(file, current) for file in aside.glob("*.parquet") if current / file.name in files]
    for file, folder in moves:
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / file.name)


def _finished(file: Path, key: str) -> bool:
    """Return whether a file holds the valid cell of this key."""
    if not file.is_file():
        return False
    try:
        runs = records.read(file).runs
    except ErlabError:  # it is measured again, and overwritten
        return False
    return "key" in runs and bool((runs.key == key).all())
