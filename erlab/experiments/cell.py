"""One measured cell: a system under one load of closed-loop users.

The key of a finished cell covers the code of this module and of all that it reaches, the serving system included. What
only plans sweeps, marks runs or shows tables therefore lies in other modules.
"""

import dataclasses
import json
import re
import time
from collections import Counter
from datetime import datetime, timezone

from erlab import machine, paper, provenance, users
from erlab.experiments import telemetry
from erlab.paths import Folders
from erlab.prompts import workload
from erlab.serving import external
from erlab.serving.deployment import Running
from erlab.spec import Profile, System

_COMMON = ("run_id", "paper", "system", "source", "machine", "users")  # of the run, in each row


def measure(
    experiment: str,
    name: str,
    system: System,
    running: Running,
    requests: list[list[workload.Request]],
    profile: Profile,
    folders: Folders,
    seed: int,
    triton: str | None = None,
    repetition: int = 0,
) -> tuple[list[dict], dict]:
    """Send the users' requests to a running system and sample its metrics.

    Returns:
        Request records, one row per request, and the run's description.
    """
    started, clock = datetime.now(timezone.utc), time.monotonic()
    samples = folders.infrastructure / experiment / file_name(name, len(requests), repetition)
    with telemetry.sampled(running.server.metrics, samples):
        rows = users.run(running.address, running.models, requests, timeout=profile.deadline)
    run = describe(experiment, name, system, profile, len(requests), seed, folders) | {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 3),
        "engine": running.server.engine,
    }
    if triton:
        run |= external.description(triton, profile)
    return with_run([row | {"expert": _model(row.get("expert"))} for row in rows], run), run


def file_name(system: str, users: int, repetition: int = 0) -> str:
    """Return the file of a cell; the first repetition has no number."""
    return f"{system}-{users:04d}users{f'-{repetition}' if repetition else ''}.parquet"


def with_run(rows: list[dict], run: dict) -> list[dict]:
    """Return rows with the columns that they have in common with their run."""
    common = {column: run[column] for column in _COMMON}
    return [row | common for row in rows]


def why_invalid(rows: list[dict], restarts: int) -> str | None:
    """Return why a cell's requests say nothing about the system, as a sentence; None if they do."""
    if restarts:
        return f"The server was restarted while it was measured (restarts: {restarts})."
    if not any(row["status"] == "ok" for row in rows):
        [(error, _)] = Counter(row["error"] for row in rows).most_common(1)
        return f"None of {len(rows)} requests ended well ({' '.join(str(error).split())})."
    return None


def describe(
    experiment: str, name: str, system: System, profile: Profile, users: int, seed: int, folders: Folders
) -> dict:
    """Return a run's description for the metadata of its records."""
    expert, lengths = system.expert, profile.workload
    original = paper.SYSTEMS[system.paper].get(name)
    return {
        "run_id": f"{profile.name}-{experiment}-{name}-{users}-s{seed}",
        "experiment": experiment,
        "paper": system.paper,
        "system": name,
        "source": "measured",
        "machine": machine.title(on_gpus=profile.gpus > 0),
        "profile": profile.name,
        "commit": provenance.commit(),
        "seed": seed,
        "users": users,
        "title": system.title,
        "model": expert.model.name,
        "precision": expert.precision.name,
        "tensor_parallel": expert.tensor_parallel,
        "cores": expert.cores,
        "count": system.count,
        "router": system.router,
        "max_batch_size": expert.max_batch_size,
        "kv_tokens": expert.kv_tokens,
        "plays": original.title if original else None,
        "half": system.share,
        "workload": {
            "input": dataclasses.asdict(lengths.input_tokens),
            "output": dataclasses.asdict(lengths.output_tokens),
        },
        "router_summary": json.loads(folders.router_summary.read_text()) if system.router else None,
    }


def _model(expert: str | None) -> str | None:
    """Return an expert's model; a gateway may know it by an address that changes with each start."""
    return expert and re.split("[#/]", expert)[-1]
