"""A running system for any client, and a load test of any running server: `erlab serve` and `erlab users`.

    with serve("E", profiles.profile("laptop"), Folders.of("laptop")) as running:
        rows, run = load(running.address, running.models, 8, profiles.profile("laptop"), prompts)
"""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from datasets import Dataset

from erlab import machine, provenance, users
from erlab.experiments import table1
from erlab.paths import Folders
from erlab.prompts import traffic
from erlab.prompts.loads import Load, counted
from erlab.serving import deployment, external, nvidia, profiles
from erlab.serving.deployment import Running
from erlab.spec import Profile, System, require


@contextmanager
def serve(
    name: str,
    profile: Profile,
    folders: Folders,
    port: int | None = None,
    triton: str | None = None,
    container: str | None = None,
    apart: bool = False,
    **choice: str | float,
) -> Iterator[Running]:
    """Start a system of Table I as it runs in this profile, and stop it on exit.

    Missing engines are built. Batch limits are those that the profile's study chose, if it has run.

    Args:
        name: A to E.
        port: Port for the users, 1 to 65535; None lets the system choose.
        container: Container engine that runs Triton, on GPUs only; None runs it natively.
        apart: Whether each expert gets a server of its own, on GPUs only.

    Raises:
        ErlabError: The system is unknown, the port is in use, or a router system has no trained router.
    """
    require(port is None or 1 <= port <= 65535, "port", "serve", "be from 1 to 65535", port)
    allowed = f"be one of {', '.join(nvidia.CONTAINERS)}"
    require(container in (None, *nvidia.CONTAINERS), "container", "serve", allowed, container)
    system = _system(name, profile, folders, triton)
    deployment.check_choice(name, system, folders, **choice)
    if not triton:
        deployment.build_engines(profile, folders, seed=0, wanted=[system.expert])
    options = {"triton": triton, "container": container, "apart": apart}
    with deployment.serve(name, system, profile, folders, port, **options, **choice) as running:
        yield running


def commands(name: str, profile: Profile, folders: Folders, apart: bool = False) -> list[str]:
    """Return the shell commands that start a system's Triton in a container; nothing is started.

    The model repository is written; the engines must exist. Raises ErlabError as `serve` does, and for a profile whose
    server runs in no container.
    """
    system = _system(name, profile, folders)
    server = deployment.server({name: system}, name, profile, folders, container="docker", apart=apart)
    return [shlex.join(command) for command in server.commands()]


def _system(name: str, profile: Profile, folders: Folders, triton: str | None = None) -> System:
    systems = profiles.systems(profile)
    require(name in systems, "system", "serve", f"be one of {', '.join(systems)}", name)
    if folders.table1.is_file():
        return table1.systems(profile, folders, triton)[name]
    return external.scale(systems[name], profile, triton)


def load(
    address: str,
    models: tuple[str, ...],
    count: int,
    profile: Profile,
    prompts: Dataset,
    name: str = "custom",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    shape: Load = Load(),
) -> tuple[list[dict], dict]:
    """Load-test any KServe v2 gRPC server.

    Requests longer than those of the profile's workload are cut.

    Args:
        address: HOST:PORT.
        models: Models to query; user i always uses models[i mod n].
        count: Concurrent users of a closed loop.
        profile: Its workload gives the token lengths and the requests per user, its deadline is each request's.
        shape: How requests are sent.

    Returns:
        Request records, one row per request, and the run's description.
    """
    lengths = profile.workload
    most = lengths.input_tokens.maximum, lengths.output_tokens.maximum
    wanted = shape.traffic(lengths, count, seed)
    sent = traffic.cut(wanted, sum(most), *most)
    requests = traffic.requests(prompts, sent, seed)
    started, clock = datetime.now(timezone.utc), time.monotonic()
    rows = users.run(
        address, models, requests, timeout=profile.deadline, progress=progress, **traffic.schedule(sent)
    )
    rows = [row for row, kept in zip(rows, counted(shape, [row.get("t_submit", 0) for row in rows])) if kept]
    cut = int(((sent.input_tokens < wanted.input_tokens) | (sent.output_tokens < wanted.output_tokens)).sum())
    common = {
        "run_id": f"{profile.name}-users-{name}-{wanted.users}-s{seed}{shape.tag()}-{started:%Y%m%dT%H%M%SZ}",
        "system": name,
        "source": "measured",
        "machine": machine.title(),
        "users": wanted.users,
    }
    run = {
        "experiment": "users",
        "title": f"{', '.join(models)} at {address}",
        "profile": profile.name,
        "commit": provenance.commit(),
        "seed": seed,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 3),
        "load": shape.describe() | {"cut": cut},
    }
    return [row | common for row in rows], common | run
