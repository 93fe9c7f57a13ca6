"""The paper's experiments: systems under rising loads of closed-loop users, one cell a (system, users) pair.

A finished cell is a parquet file of request records with the key of everything it depends on; a cell whose key is
unchanged is not measured again, so a sweep goes on where it stopped. A cell is invalid, and never finished, where the
server restarted or died while it was measured, or where not one request ended well.
"""

import dataclasses
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd

from erlab import fingerprint, machine, paper, provenance, textfiles, users
from erlab.errors import ErlabError
from erlab.experiments import clients, telemetry
from erlab.paths import Folders
from erlab.progress import report
from erlab.prompts import workload
from erlab.results import metrics, records
from erlab.serving import deployment, external, profiles, scaling
from erlab.serving.deployment import Running
from erlab.serving.engines import kinds
from erlab.serving.engines.kinds import kind
from erlab.serving.scaling import preliminary
from erlab.spec import Profile, System, checked_loads

_ATTEMPTS = 2  # at a cell, of a server that lives


def measure_preliminary(
    to: Profile, folders: Folders, loads: Iterable[int] | None = None, seed: int = 0, triton: str | None = None
) -> records.Records:
    """Measure the systems of Fig. 3 (see `profiles.preliminary`) under the profile's preliminary loads.

    `triton`: the address of a server that somebody else runs. Its batch limit is its own, so nothing is measured.
    """
    if triton:
        return unmeasured("preliminary", folders, f"{triton} has a batch limit of its own")
    systems = {name: system for name, (_, system) in preliminary(to).items()}
    loads = to.preliminary_loads if loads is None else loads
    return measure("preliminary", systems, to, folders, loads, seed, together=True)


def choose_batch_limits(found: records.Records, to: Profile) -> dict[str, int]:
    """The batch limit of each row of Table I: the one with the lowest median response time at the highest load.

    A, B and C are chosen among the preliminary runs of their precision and share of the cores; D and E take
    the limit of A and B, which have their precision. Those of which nothing was measured have the largest.
    """
    requests, runs, largest = found.requests, found.runs, max(to.batch_limits)
    if requests.empty:  # nothing could be measured on this machine
        return dict.fromkeys(to.systems, largest)
    top = requests[(requests.users == requests.users.max()) & (requests.status == "ok")]
    median = metrics.e2e(top).groupby(top.run_id).median()
    runs = runs.assign(median=runs.run_id.map(median)).dropna(subset="median")
    chosen = {}
    for letter, half, precision in (("A", "half", "FP8"), ("B", "half", "FP16"), ("C", "all", "FP16")):
        if letter not in to.systems:
            continue
        rows = runs[(runs.half == half) & (runs.precision == to.precisions[precision].name)]
        if rows.empty:
            of = f"baseline {letter} ({half} of the cores, {precision})"
            raise ErlabError(f"No preliminary runs for {of}: run 03_preliminary.")
        chosen[letter] = int(rows.sort_values(["median", "max_batch_size"]).max_batch_size.iloc[0])
    chosen |= {"D": chosen.get("A", largest), "E": chosen.get("B", largest)}
    return {letter: chosen[letter] for letter in to.systems}


def save_table1(limits: dict[str, int], folders: Folders) -> None:
    textfiles.save(folders.table1, json.dumps(limits, indent=1))


def table1(to: Profile, folders: Folders, triton: str | None = None) -> dict[str, System]:
    """The systems A to E as they run here, with the batch limits the preliminary experiments chose, or as a server at
    the address `triton` stands for them."""
    if not folders.table1.is_file():
        raise ErlabError(f"No {folders.table1}: run notebook 03_preliminary first (erlab reproduce --only 03).")
    limits = json.loads(folders.table1.read_text())
    if triton:
        return {k: external.scale(s, to, triton, limits[k]) for k, s in profiles.systems(to).items()}
    count = len(scaling.devices(to))
    return {k: scaling.scale(s, to, count, limits[k]) for k, s in profiles.systems(to).items()}


def describe_systems(systems: dict[str, System], triton: str | None = None) -> pd.DataFrame:
    """A row a system: what of the paper it plays and with which limits; these are unknown of a server at `triton`."""
    title = external.title(triton) if triton else None
    rows = []
    for name, system in systems.items():
        expert = system.expert
        rows.append(
            {
                "system": name,
                "plays": paper.SYSTEMS[system.paper][name].title,
                "runs as": title or system.title,
                "max batch": pd.NA if triton else expert.max_batch_size,
                "KV tokens": pd.NA if triton else expert.kv_tokens,
            }
        )
    return pd.DataFrame(rows)


def measure(
    experiment: str,
    systems: dict[str, System],
    to: Profile,
    folders: Folders,
    loads: Iterable[int] | None = None,
    seed: int = 0,
    triton: str | None = None,
    together: bool = False,
) -> records.Records:
    """Measure every (system, users) cell that isn't finished yet and return all cells' records.

    A cell is written when its last request has ended; a failed request keeps its row. An invalid cell is measured again
    at once; where it stays invalid, or the system has died, the sweep ends with ErlabError. The cell's records and the
    reason are kept, and the next call measures it again.
    Where no Triton can run, nothing is measured, and that is said. `together`: one server holds all systems' engines,
    which idle while it's not their turn; starts are dear.
    """
    loads = checked_loads(to.loads if loads is None else loads)
    prompts = workload.stored(folders)
    if not systems:
        report(0, 1, f"{experiment}: profile {to.name} has none of these systems")
        (folders.records / experiment).mkdir(parents=True, exist_ok=True)
        return records.at_hand(folders.records / experiment)
    if not triton and (reason := kind(to).available()):
        return unmeasured(experiment, folders, f"Triton cannot run here: {reason}")
    keys = {(k, n): _key(experiment, systems[k], n, to, folders, seed, triton) for k in systems for n in loads}

    @contextmanager
    def opened(waiting: list[str]) -> Iterator[Callable[[str], AbstractContextManager[Running]]]:
        holder = None
        with ExitStack() as stack:
            if together and kind(to).together and not triton:
                held = {name: systems[name] for name in waiting}
                holder = stack.enter_context(deployment.server(held, experiment, to, folders))
            options = dict(triton=triton, holder=holder)
            yield lambda name: deployment.serve(name, systems[name], to, folders, **options)

    def cell(name: str, n: int, running: Running) -> tuple[list[dict], dict]:
        return _cell(experiment, name, systems[name], running, plan(n), to, folders, seed, triton)

    def plan(n: int) -> list[list[workload.Request]]:
        return workload.requests(prompts, to.workload, n, seed)

    return sweep(experiment, keys, folders, opened, cell, plan)


def unmeasured(experiment: str, folders: Folders, reason: str) -> records.Records:
    """Say why nothing can be measured here; the records that are there."""
    report(0, 1, f"{experiment}: nothing is measured, {reason}")
    (folders.records / experiment).mkdir(parents=True, exist_ok=True)
    return records.at_hand(folders.records / experiment)


def sweep(
    experiment: str,
    keys: Mapping[tuple[str, int], str],
    folders: Folders,
    opened: Callable[[list[str]], AbstractContextManager[Callable[[str], AbstractContextManager[Running]]]],
    cell: Callable[[str, int, Running], tuple[list[dict], dict]],
    plan: Callable[[int], list[list[workload.Request]]],
) -> records.Records:
    """Measure every (system, users) cell of `keys` that isn't there with its key yet; return all cells' records.

    `opened(systems)` is entered once where any is to be measured and gives what serves one of them by name; `cell`
    makes a cell's rows and the run's description. When all are there, the users test themselves with `plan(users)`
    (see `clients.check`).
    """
    cells = {(k, n): folders.records / experiment / f"{k}-{n:04d}users.parquet" for k, n in keys}
    _set_aside(folders, experiment, set(cells.values()))
    due = [key for key, file in cells.items() if not _finished(file, keys[key])]
    there = len(cells) - len(due)
    report(there, len(cells), f"{experiment}: {there} of {len(cells)} cells are there")
    waiting = list(dict.fromkeys(name for name, _ in due))
    with opened(waiting) if waiting else nullcontext() as serve:
        for name in waiting:
            with serve(name) as running:
                for n in [n for k, n in due if k == name]:
                    report(len(cells) - len(due), len(cells), f"system {name}, {n} user{'s' * (n > 1)}")
                    for _ in range(_ATTEMPTS):
                        restarts = running.server.restarts
                        rows, run = cell(name, n, running)
                        restarts, dead = running.server.restarts - restarts, running.failure()
                        invalid = dead or _spoiled(rows, restarts)
                        run |= {"restarts": restarts, "key": None if invalid else keys[name, n], "invalid": invalid}
                        records.write(cells[name, n], rows, run)
                        if dead or not invalid:
                            break
                    if invalid:
                        kept = f"Finished loads are kept; run again to go on with {name} at {n} users."
                        raise ErlabError(f"{invalid} {kept}")
                    due.remove((name, n))
    report(len(cells), len(cells), f"{experiment}: the users test themselves")
    clients.check(cells, plan, folders.client)
    report(len(cells), len(cells), f"{experiment} done")
    return records.read(*cells.values())


def _spoiled(rows: list[dict], restarts: int) -> str | None:
    """Why a cell's requests say nothing about the system, in a sentence; None where they do."""
    if restarts:
        return f"The server was restarted while it was measured (restarts: {restarts})."
    if not any(row["status"] == "ok" for row in rows):
        [(error, _)] = Counter(row["error"] for row in rows).most_common(1)
        return f"None of {len(rows)} requests ended well ({' '.join(str(error).split())})."
    return None


def _cell(experiment, name, system, running, plan, to, folders, seed, triton) -> tuple[list[dict], dict]:
    """One closed loop: its request records and the run's description."""
    started, clock = datetime.now(timezone.utc), time.monotonic()
    told = folders.infrastructure / experiment / f"{name}-{len(plan):04d}users.parquet"
    with telemetry.sampled(running.server.metrics, told):
        rows = users.run(running.address, running.models, plan, timeout=to.deadline)
    run = describe(experiment, name, system, to, len(plan), seed, folders) | {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 3),
        "engine": running.server.engine,
    }
    if triton:
        run |= external.description(triton, to)
    common = {k: run[k] for k in ("run_id", "paper", "system", "source", "machine", "users")}
    return [row | common | {"expert": _model(row.get("expert"))} for row in rows], run


def _model(expert: str | None) -> str | None:
    """An expert's model, which a gateway may know by an address that changes from start to start."""
    return expert and re.split("[#/]", expert)[-1]


def describe(experiment: str, name: str, system: System, to: Profile, n: int, seed: int, folders: Folders) -> dict:
    """A run's description, as records' metadata hold it."""
    expert = system.expert
    half = None
    if experiment == "preliminary":
        half = "half" if "-half-" in name else "all"
    return {
        "run_id": f"{to.name}-{experiment}-{name}-{n}-s{seed}",
        "experiment": experiment,
        "paper": system.paper,
        "system": name,
        "source": "measured",
        "machine": machine.title(on_gpus=to.gpus > 0),
        "profile": to.name,
        "commit": provenance.commit(),
        "seed": seed,
        "users": n,
        "title": system.title,
        "model": expert.model.name,
        "precision": expert.precision.name,
        "tensor_parallel": expert.tensor_parallel,
        "cores": expert.cores,
        "count": system.count,
        "router": system.router,
        "max_batch_size": expert.max_batch_size,
        "kv_tokens": expert.kv_tokens,
        "plays": None if half else _plays(name, system),
        "half": half,
        "workload": {
            "input": dataclasses.asdict(to.workload.input_tokens),
            "output": dataclasses.asdict(to.workload.output_tokens),
        },
        "router_summary": json.loads(folders.router_summary.read_text()) if system.router else None,
    }


def _plays(name: str, system: System) -> str | None:
    """What of the paper a system plays, None where it is none of its systems."""
    played = paper.SYSTEMS[system.paper].get(name)
    return played and played.title


def overview(found: records.Records) -> pd.DataFrame:
    """A row a system and load: medians of the users' times, failures, throughput (see `metrics.summarise`), and for
    measured ones what the users added themselves."""
    table = metrics.summarise(found.requests).set_index(["system", "users"])
    columns = ["requests", "failed", "ttft_median_s", "tpot_median_ms", "e2e_median_s", "output_throughput"]
    return table[columns].astype(float).round(3).join(clients.overview(found.runs))


def routing_overview(found: records.Records) -> pd.DataFrame:
    """A row a router system and load: milliseconds from sending to the gateway's decision."""
    table = metrics.summarise(found.requests).set_index(["system", "users"])
    return table[[f"routing_{q}_ms" for q in ("min", "median", "p95", "p99")]].astype(float).round(3)


def _key(experiment, system: System, n: int, to: Profile, folders: Folders, seed: int, triton: str | None) -> str:
    """SHA-256 of what a cell depends on: its spec, its inputs and the code that measures it."""
    engine = deployment.engine_folder(system.expert, to, folders)
    inputs = [folders.prompts, engine / "engine.json", engine / "openai.json"]
    if system.router:
        inputs.append(folders.router / "router.json")
    parts = [
        experiment,
        dataclasses.asdict(system),
        dataclasses.asdict(to.workload),
        (n, seed, to.clusters, triton, external.model(triton) if triton else None),
        [fingerprint.of_file(f) if f.is_file() else None for f in inputs],
        fingerprint.of_code("erlab.experiments.cells", kinds.unused(to) | (set() if system.router else {"erlab.routing"})),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _set_aside(folders: Folders, experiment: str, wanted: set[Path]) -> None:
    """Move cells that this sweep does not ask for out of the records, and those it asks for back in."""
    current, aside = folders.records / experiment, folders.set_aside / experiment
    moves = [(file, aside) for file in current.glob("*.parquet") if file not in wanted]
    moves += [(file, current) for file in aside.glob("*.parquet") if current / file.name in wanted]
    for file, to in moves:
        to.mkdir(parents=True, exist_ok=True)
        file.rename(to / file.name)


def _finished(file: Path, key: str) -> bool:
    """Whether this cell was measured, with this key, by a system that lived to its end."""
    if not file.is_file():
        return False
    try:
        runs = records.read(file).runs
    except ErlabError:  # it is measured again, and written over
        return False
    return "key" in runs and bool((runs.key == key).all())
