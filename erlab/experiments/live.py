"""A system kept up for whoever asks, and users for any that runs: `erlab serve` and `erlab users`.

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
from erlab.experiments import cells
from erlab.paths import Folders
from erlab.prompts import workload
from erlab.serving import deployment, external, nvidia, profiles, scaling
from erlab.serving.deployment import Running
from erlab.spec import Profile, System, require


@contextmanager
def serve(
    name: str,
    to: Profile,
    folders: Folders,
    port: int | None = None,
    triton: str | None = None,
    container: str | None = None,
    apart: bool = False,
    **choice: str | float,
) -> Iterator[Running]:
    """Start a system of Table I (A to E) as it runs in this profile, and stop it on leaving.

    Engines are built where they are missing; batch limits are those its study chose, if it has one. `port` is where
    users ask, chosen by the system if None; `triton`: the address of a server that runs already (`erlab.serving.external`). On
    GPUs, `container` names the container engine that is to run Triton, `apart` gives each expert a server of its own.
    `choice` is how its gateway chooses (see `deployment.serve`). Raises ErlabError for an unknown system, a port in
    use, and for a router system whose router isn't trained yet.
    """
    require(port is None or 1 <= port <= 65535, "port", "serve", "be from 1 to 65535", port)
    allowed = f"be one of {', '.join(nvidia.CONTAINERS)}"
    require(container in (None, *nvidia.CONTAINERS), "container", "serve", allowed, container)
    system = _system(name, to, folders, triton)
    deployment.check_choice(name, system, folders, **choice)
    if not triton:
        deployment.build_engines(to, folders, seed=0, wanted=[system.expert])
    options = {"triton": triton, "container": container, "apart": apart}
    with deployment.serve(name, system, to, folders, port, **options, **choice) as running:
        yield running


def commands(name: str, to: Profile, folders: Folders, apart: bool = False) -> list[str]:
    """The shell commands that start a system's Triton in a container, for other hands to run: nothing is started.

    The model repository is written; engines have to be there. Raises ErlabError as `serve` does, and for a profile
    whose server runs in no container.
    """
    system = _system(name, to, folders)
    server = deployment.server({name: system}, name, to, folders, container="docker", apart=apart)
    return [shlex.join(command) for command in server.commands()]


def _system(name: str, to: Profile, folders: Folders, triton: str | None = None) -> System:
    systems = profiles.systems(to)
    require(name in systems, "system", "serve", f"be one of {', '.join(systems)}", name)
    if folders.table1.is_file():
        return cells.table1(to, folders, triton)[name]
    if triton:
        return external.scale(systems[name], to, triton, max(to.batch_limits))
    return scaling.scale(systems[name], to, len(scaling.devices(to)))


def load(
    address: str,
    models: tuple[str, ...],
    count: int,
    to: Profile,
    prompts: Dataset,
    name: str = "custom",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[dict], dict]:
    """Let `count` closed-loop users ask any KServe v2 gRPC server; its request records and the run's description.

    User i asks models[i mod n]. Lengths and turns are the profile's; `name` is what the records call the system, and
    the machine they name is the users'. `progress` is called with the number of requests ended so far.
    """
    plan = workload.requests(prompts, to.workload, count, seed)
    started, clock = datetime.now(timezone.utc), time.monotonic()
    rows = users.run(address, models, plan, timeout=to.deadline, progress=progress)
    common = {
        "run_id": f"{to.name}-users-{name}-{count}-s{seed}-{started:%Y%m%dT%H%M%SZ}",
        "system": name,
        "source": "measured",
        "machine": machine.title(),
        "users": count,
    }
    run = {
        "experiment": "users",
        "title": f"{', '.join(models)} at {address}",
        "profile": to.name,
        "commit": provenance.commit(),
        "seed": seed,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 3),
    }
    return [row | common for row in rows], common | run
