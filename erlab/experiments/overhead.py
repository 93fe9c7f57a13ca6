"""What the gateway costs up to 1,000 users: the same users and emulated experts, with the gateway and without it.

Emulated experts (`erlab.serving.engines.emulated`) of system E keep the time of the simulator's H100, `time_scale` times
slower, and compute nothing, so that this machine has time for the users, the gateway and Triton, which are all real.
Users send the same prompts both ways. Through the gateway it is the router that finds the expert; directly each request
names the very expert that the router would have found, so that the experts have the same to do and what differs is the
gateway.

Experts stamp their answers, so that of each time to first token the expert's own part is known. The rest, here called
*outside*, is what the gateway can add to: it does not depend on where in an expert's step a request happened to arrive,
which moves times to first token by more than any gateway does. Each user's first request is left out of all times: at
the start everyone asks at once, which says how fast a thousand prompts are classified, not what one user waits for.

    found = measure(profiles.profile("laptop"), Folders.of("laptop"))
    added(found), parts(found)

The records lie apart from the study's (`Folders.overhead`) and name emulated experts as their system and machine, so
that no figure or claim about experts takes them for such.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timezone

import pandas as pd
import psutil

from erlab import fingerprint, machine, paper, provenance, users
from erlab.experiments import cells
from erlab.gateway import Gateway
from erlab.paths import Folders
from erlab.prompts import workload
from erlab.results import metrics, records
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
WARMUP = 1  # of each user's requests, left out of the times


def measure(to: Profile, folders: Folders, loads: Iterable[int] | None = None, seed: int = 0) -> records.Records:
    """Measure every load (default: the profile's) both ways, as far as it isn't yet; all records.

    Where no Triton can run, or no step times can be had, nothing is measured, and that is said.
    """
    emulation, system, apart = to.emulation, paper.SYSTEMS["v2"][SYSTEM], folders.overhead
    loads = checked_loads(emulation.loads if loads is None else loads, "emulated_loads")
    prompts = workload.stored(folders)
    if reason := available() or unavailable():
        return cells.unmeasured(EXPERIMENT, apart, f"Triton cannot run here: {reason}")
    router = CompiledRouter.load(folders.router)
    names = {f"{emulated.PREFIX}{SYSTEM}-{way}": way for way in WAYS}
    inputs = [fingerprint.of_file(f) for f in (folders.prompts, folders.router / "router.json")]
    common = [dataclasses.asdict(emulation) | {"loads": None}, seed, inputs, fingerprint.of_code(__name__)]
    keys = {(name, n): _key([name, n, *common]) for name in names for n in loads}
    models = system.model_names(f"{emulated.PREFIX}{SYSTEM}")

    placed = tuple(models[cluster % len(models)] for cluster in range(len(router.centers_)))

    def asked(n: int) -> list[list[workload.Request]]:
        return workload.requests(prompts, emulation.workload, n, seed)

    @contextmanager
    def opened(waiting: list[str]) -> Iterator[Callable]:
        emulated.write_system(apart.models, SYSTEM, system, emulation.time_scale)
        with Server(apart.models, models) as server, Gateway(folders.router, server.grpc, placed) as gateway:
            running = {
                "direct": Running(server.grpc, models, server, None),
                "gateway": Running(gateway.address, (deployment.ROUTER_MODEL,), server, gateway),
            }
            yield lambda name: nullcontext(running[names[name]])

    def cell(name: str, n: int, running: Running) -> tuple[list[dict], dict]:
        plan = asked(n) if running.gateway else _named(asked(n), router, placed)
        started, clock, cpu = datetime.now(timezone.utc), time.monotonic(), _cpu_seconds(running.gateway)
        rows = users.run(running.address, running.models, plan, timeout=to.deadline, stamped=True)
        run = _describe(name, n, to, seed) | {
            "way": names[name],
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 3),
            "gateway_cpu_s": _cpu_seconds(running.gateway) - cpu if running.gateway else None,
            "tokens_asked": sum(request.max_tokens for mine in plan for request in mine),
        }
        common = {k: run[k] for k in ("run_id", "paper", "system", "source", "machine", "users")}
        if not running.gateway:  # which would have said so
            rows = [row | {"expert": plan[row["user"]][row["turn"]].model} for row in rows]
        return [row | common for row in rows], run

    return cells.sweep(EXPERIMENT, keys, apart, opened, cell, asked)


def _named(asked: list[list[workload.Request]], router: CompiledRouter, placed: tuple[str, ...]) -> list[list]:
    """The same requests, each to the expert of its prompt's cluster."""
    clusters = iter(router.route([request.text for mine in asked for request in mine]).cluster)
    return [[dataclasses.replace(request, model=placed[next(clusters)]) for request in mine] for mine in asked]


def _describe(name: str, n: int, to: Profile, seed: int) -> dict:
    emulation, system = to.emulation, paper.SYSTEMS["v2"][SYSTEM]
    lengths = emulation.workload.input_tokens, emulation.workload.output_tokens
    return {
        "run_id": f"{to.name}-{EXPERIMENT}-{name}-{n}-s{seed}",
        "experiment": EXPERIMENT,
        "paper": system.paper,
        "system": name,
        "source": "measured",
        "machine": emulated.machine(emulation.time_scale, machine.title()),
        "profile": to.name,
        "commit": provenance.commit(),
        "seed": seed,
        "users": n,
        "title": f"{system.title}, emulated {emulation.time_scale:g} times slower",
        "time_scale": emulation.time_scale,
        "count": system.count,
        "workload": dict(zip(("input", "output"), map(dataclasses.asdict, lengths))),
    }


def _key(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _cpu_seconds(gateway: Gateway | None) -> float:
    """CPU time of the gateway's processes so far; 0 without one, or where it has died."""
    times = []
    if gateway:
        with suppress(psutil.Error):
            process = psutil.Process(gateway.pid)
            times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum((t.user + t.system for t in times), 0.0)


# ---- what was found


def compare(found: records.Records) -> pd.DataFrame:
    """A row a load and way: what was lost on the way, and times in ms (see the module for *outside*).

    `lost`: requests that did not end well; `tokens_missing` and `disordered`: tokens that never came, and that came in
    another's place. `start_...`: of the first requests, which all users make at once. Empty where nothing was measured.
    """
    if found.requests.empty:
        return pd.DataFrame()
    rows = []
    for run in found.runs.sort_values(["users", "way"]).to_dict("records"):
        mine = found.requests[found.requests["run_id"] == run["run_id"]]
        later, first = mine[mine["turn"] >= WARMUP], mine[mine["turn"] < WARMUP]
        times = {
            "ttft": metrics.ttft(later) * 1e3,
            "outside": outside(later),
            "start_outside": outside(first),
        }
        cpu = run["gateway_cpu_s"]
        rows.append(
            {
                "users": run["users"],
                "way": run["way"],
                "requests": len(mine),
                "lost": int((~metrics.finished(mine)).sum()),
                "tokens": int(mine["output_tokens"].sum()),
                "tokens_missing": int(run["tokens_asked"] - mine["output_tokens"].sum()),
                "disordered": int(mine["disordered"].sum()),
                **{f"{k}_p{q}_ms": metrics.percentile(v, q) for k, v in times.items() for q in (50, 99)},
                "gateway_us_a_token": 1e6 * cpu / mine["output_tokens"].sum() if pd.notna(cpu) else None,
                "time_scale": run["time_scale"],
                "machine": run["machine"],
            }
        )
    return pd.DataFrame(rows)


def added(found: records.Records) -> pd.DataFrame:
    """A row a load: requests and tokens lost both ways, and by how many ms more lies outside of the experts with the
    gateway than without, at the median and at the 99th percentile."""
    compared = compare(found)
    if compared.empty:
        return compared
    both = compared.pivot(index="users", columns="way")
    lost = ["lost", "tokens_missing", "disordered"]
    frame = pd.DataFrame({name: both[name].sum(axis=1) for name in ("requests", *lost)})
    for name, label in (("outside", "added"), ("start_outside", "added at the start")):
        for q in (50, 99):
            values = both[f"{name}_p{q}_ms"].astype(float)
            frame[f"{label} p{q} ms"] = (values["gateway"] - values["direct"]).round(2)
    return frame.assign(**{"time scale": both["time_scale"]["gateway"]})


def outside(requests: pd.DataFrame) -> pd.Series:
    """The part of each time to first token that its expert did not take, ms."""
    return metrics.ttft(requests) * 1e3 - requests["expert_ns"] / 1e6


def parts(found: records.Records) -> pd.DataFrame:
    """What the time to first token through the gateway consists of: a row a load and part, p50 and p99 in ms.

    The client's wait comes before it: how long after it was due the request was sent.
    """
    if found.requests.empty:
        return pd.DataFrame()
    gateways = found.runs.loc[found.runs["way"] == "gateway", "run_id"]
    requests = found.requests
    requests = requests[requests["run_id"].isin(gateways) & (requests["turn"] >= WARMUP) & metrics.finished(requests)]
    upstream = requests["t_first"] - requests["t_routed"] - requests["queue_ns"]
    times = {
        "client wait": requests["late_ns"],
        "to the gateway and decided": requests["t_routed"] - requests["t_submit"] - requests["classify_ns"],
        "classify": requests["classify_ns"],
        "gateway queue": requests["queue_ns"],
        "upstream: the expert": requests["expert_ns"],
        "upstream: Triton and both ways": upstream - requests["expert_ns"],
    }
    frame = pd.DataFrame(times).astype(float).div(1e6).groupby(requests["users"])
    columns = {f"p{q} ms": frame.quantile(q / 100).stack() for q in (50, 99)}
    return pd.DataFrame(columns).round(3).rename_axis(["users", "part"])
