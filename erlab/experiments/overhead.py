"""Gateway overhead up to 1,000 users, measured with emulated experts.

Emulated experts (`erlab.serving.engines.emulated`) of system E have the step times of the simulated H100, `time_scale`
times slower, and compute nothing. This leaves the machine's time to the users, the gateway and Triton, which are real.
The users send the same prompts two ways. With the gateway, its router chooses the expert; directly, each request names
the expert that the router would choose. The experts have the same work, and the difference is the gateway.

    records = measure(profiles.profile("laptop"), Folders.of("laptop"))
    overhead_tables.added(records), overhead_tables.parts(records)

The records lie apart from the study's (`Folders.overhead`) and have emulated experts as system and machine, so figures
and claims about experts leave them out.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timezone

import psutil

from erlab import fingerprint, machine, paper, provenance, users
from erlab.experiments import cell, cells
from erlab.gateway import Gateway
from erlab.paths import Folders
from erlab.prompts import workload
from erlab.results import records
from erlab.routing import CompiledRouter
from erlab.serving import deployment
from erlab.serving.deployment import Running
from erlab.serving.engines import emulated
from erlab.serving.triton import Server
from erlab.serving.triton.server import available
from erlab.simulation.components import unavailable
from erlab.spec import Profile, checked_loads

EXPERIMENT = "emulated"
SYSTEM = "E"  # its experts are the fastest, so the gateway's share of the time is largest
WAYS = ("direct", "gateway")


def measure(
    profile: Profile, folders: Folders, loads: Iterable[int] | None = None, seed: int = 0
) -> records.Records:
    """Measure the loads that are not finished yet with and without the gateway; return all records.

    Where no Triton can run, or no step times are available, nothing is measured, and the progress report says so.
    """
    emulation, system, folders_apart = profile.emulation, paper.SYSTEMS["v2"][SYSTEM], folders.overhead
    loads = checked_loads(emulation.loads if loads is None else loads, "emulated_loads")
    prompts = workload.stored(folders)
    if reason := available() or unavailable():
        return cells.unmeasured(EXPERIMENT, folders_apart, f"Triton cannot run here: {reason}")
    router = CompiledRouter.load(folders.router)
    ways = {f"{emulated.PREFIX}{SYSTEM}-{way}": way for way in WAYS}
    inputs = [fingerprint.of_file(f) for f in (folders.prompts, folders.router / "router.json")]
    common = [dataclasses.asdict(emulation) | {"loads": None}, seed, inputs, fingerprint.of_code(__name__)]
    keys = {(name, n, 0): fingerprint.of_parts([name, n, *common]) for name in ways for n in loads}
    models = system.model_names(f"{emulated.PREFIX}{SYSTEM}")
    experts = tuple(models[cluster % len(models)] for cluster in range(len(router.centers_)))

    def requests(n: int) -> list[list[workload.Request]]:
        return workload.requests(prompts, emulation.workload, n, seed)

    @contextmanager
    def open_servers(names: list[str]) -> Iterator[Callable]:
        emulated.write_system(folders_apart.models, SYSTEM, system, emulation.time_scale)
        with (
            Server(folders_apart.models, models) as server,
            Gateway.of(folders.router, server.grpc, experts) as gateway,
        ):
            running = {
                "direct": Running(server.grpc, models, server, None),
                "gateway": Running(gateway.address, (deployment.ROUTER_MODEL,), server, gateway),
            }
            yield lambda name: nullcontext(running[ways[name]])

    def measure_cell(name: str, n: int, repetition: int, running: Running) -> tuple[list[dict], dict]:
        plan = requests(n) if running.gateway else _addressed(requests(n), router, experts)
        started, clock, cpu = datetime.now(timezone.utc), time.monotonic(), _cpu_seconds(running.gateway)
        rows = users.run(running.address, running.models, plan, timeout=profile.deadline, stamped=True)
        run = _describe(name, n, profile, seed) | {
            "way": ways[name],
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 3),
            "gateway_cpu_s": _cpu_seconds(running.gateway) - cpu if running.gateway else None,
            "tokens_asked": sum(request.max_tokens for session in plan for request in session),
        }
        if not running.gateway:  # only a gateway reports the expert
            rows = [row | {"expert": plan[row["user"]][row["turn"]].model} for row in rows]
        return cell.with_run(rows, run), run

    return cells.sweep(EXPERIMENT, keys, folders_apart, open_servers, measure_cell, requests)


def _addressed(
    plan: list[list[workload.Request]], router: CompiledRouter, experts: tuple[str, ...]
) -> list[list[workload.Request]]:
    """Return the requests, each for the expert of its prompt's cluster."""
    clusters = iter(router.route([request.text for session in plan for request in session]).cluster)
    return [[dataclasses.replace(r, model=experts[next(clusters)]) for r in session] for session in plan]


def _describe(name: str, users: int, profile: Profile, seed: int) -> dict:
    emulation, system = profile.emulation, paper.SYSTEMS["v2"][SYSTEM]
    lengths = emulation.workload.input_tokens, emulation.workload.output_tokens
    return {
        "run_id": f"{profile.name}-{EXPERIMENT}-{name}-{users}-s{seed}",
        "experiment": EXPERIMENT,
        "paper": system.paper,
        "system": name,
        "source": "measured",
        "machine": emulated.machine(emulation.time_scale, machine.title()),
        "profile": profile.name,
        "commit": provenance.commit(),
        "seed": seed,
        "users": users,
        "title": f"{system.title}, emulated {emulation.time_scale:g} times slower",
        "time_scale": emulation.time_scale,
        "count": system.count,
        "workload": dict(zip(("input", "output"), map(dataclasses.asdict, lengths))),
    }


def _cpu_seconds(gateway: Gateway | None) -> float:
    """Return the CPU time of the gateway's processes so far; 0 without a gateway, or if it died."""
    times = []
    if gateway:
        with suppress(psutil.Error):
            process = psutil.Process(gateway.pid)
            times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum((t.user + t.system for t in times), 0.0)
