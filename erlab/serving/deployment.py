"""Deployment of a system: its engines, model repository, servers and gateway.

    with serve("C", system, profile, folders) as running:
        users.run(running.address, running.models, requests, timeout=60)
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from erlab.errors import ErlabError
from erlab.gateway import Gateway
from erlab.gateway import kserve as client
from erlab.paths import Folders
from erlab.progress import report
from erlab.serving import external, profiles, scaling
from erlab.serving.engines.kinds import kind, slug
from erlab.serving.servers import ModelServer
from erlab.spec import Expert, Profile, System, require

ROUTER_MODEL = "router"


def engine_folder(expert: Expert, profile: Profile, folders: Folders) -> Path:
    """Return the folder of an expert's engine."""
    return folders.engines / kind(profile).engine_name(expert)


def plan_engines(
    profile: Profile, folders: Folders, weights: str | Path | None = None, wanted: list[Expert] | None = None
) -> list[tuple[Expert, Path, Path | None, tuple]]:
    """Return the engines of a profile and the commands that are due to build them.

    Returns:
        For each engine: expert, engine folder, folder of its weights (None for dummy weights), due commands.
    """
    planned = []
    for expert in scaling.experts(profile) if wanted is None else wanted:
        folder = engine_folder(expert, profile, folders)
        source = Path(weights).expanduser().resolve() / slug(expert.model.name) if weights else None
        planned.append((expert, folder, source, kind(profile).plan(expert, folder, source)))
    return planned


def check_weights(weights: str | Path | None, triton: str | None = None) -> None:
    """Refuse weights that are no path, and weights for an external server."""
    allowed = "be None, since a server that runs has its own" if triton else "be a folder's path"
    fits = weights is None or (isinstance(weights, str | Path) and not triton)
    require(fits, "weights", "build_engines", allowed, weights)


def build_engines(
    profile: Profile,
    folders: Folders,
    seed: int,
    weights: str | Path | None = None,
    wanted: list[Expert] | None = None,
    triton: str | None = None,
) -> pd.DataFrame:
    """Build the engines of a profile that do not exist yet.

    Args:
        weights: Folder with one Hugging Face folder per model, such as ``llama-3-8b``; None for dummy weights.
        wanted: Experts whose engines are built; None for all of the profile.

    Returns:
        One row per engine: models of the paper it stands for, parameters, size in MB, folder. With `triton`, one row
        that says why nothing was built.

    Raises:
        ErlabError: An engine cannot be built on this machine; raised before the first build.
    """
    check_weights(weights, triton)
    if triton:
        folders.engines.mkdir(parents=True, exist_ok=True)
        return pd.DataFrame([{"left out": f"{external.title(triton)}: {triton}"}])
    planned = plan_engines(profile, folders, weights, wanted)
    kind(profile).check([(expert, folder, due) for expert, folder, _, due in planned])
    if minutes := sum(command.minutes for *_, due in planned for command in due):
        report(0, len(planned), f"{len(planned)} engines: about {minutes / 60:.1f} h to build")
    rows = []
    for i, (expert, folder, source, _) in enumerate(planned):
        report(i, len(planned), f"engine {folder.name}")
        kind(profile).build(expert, folder, seed, source)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        originals = sorted(name for name, model in profile.models.items() if model == expert.model)
        rows.append(
            {
                "engine": folder.name,
                "in the paper": ", ".join(originals),
                "parameters": expert.model.parameters,
                "weights MB": round(size / 1e6, 1),
                "folder": str(folder),
            }
        )
    report(len(planned), len(planned), "engines")
    return pd.DataFrame(rows)


def write_repository(systems: dict[str, System], name: str, profile: Profile, folders: Folders) -> Path:
    """Write a Triton model repository with one model per engine of each system.

    Args:
        name: Name of the repository, a folder in `folders.models`.
    """
    folder = folders.models / name
    devices = scaling.devices(profile)
    for key, system in systems.items():
        engine = engine_folder(system.expert, profile, folders)
        if not engine.is_dir():
            command = f"erlab reproduce --profile {profile.name} --only 01"
            raise ErlabError(f"No engine {engine}: run notebook 01_build_engines first ({command}).")
        for model, place in zip(system.model_names(key), scaling.placement(system, devices), strict=True):
            kind(profile).write(folder, model, engine, system.expert, place)
    return folder


def write_repositories(profile: Profile, folders: Folders, triton: str | None = None) -> pd.DataFrame:
    """Write the model repository of each system of Table I.

    Returns:
        One row per Triton model: its system, engine, devices and limits.
    """
    if triton:
        return pd.DataFrame([{"left out": f"{triton} has its own models"}])
    devices = scaling.devices(profile)
    rows = []
    for key, original in profiles.systems(profile).items():
        system = scaling.scale(original, profile)
        write_repository({key: system}, key, profile, folders)
        for model, place in zip(system.model_names(key), scaling.placement(system, devices), strict=True):
            rows.append(
                {
                    "system": key,
                    "in the paper": original.title,
                    "Triton model": model,
                    "engine": engine_folder(system.expert, profile, folders).name,
                    kind(profile).devices: ", ".join(map(str, place)),
                    "max batch": system.expert.max_batch_size,
                    "KV tokens": system.expert.kv_tokens,
                }
            )
    return pd.DataFrame(rows)


def try_out(
    profile: Profile, folders: Folders, text: str, max_tokens: int = 40, triton: str | None = None
) -> pd.DataFrame:
    """Start system C, or the first of the profile, and send it one request.

    Returns:
        One row: prompt, answer, output tokens, times to the first and last token (ms). One row with the reason where
        this machine cannot run a server.
    """
    if not triton and (reason := kind(profile).available()):
        return pd.DataFrame([{"left out": reason}])
    systems = profiles.systems(profile)
    key = "C" if "C" in systems else min(systems)
    system = external.scale(systems[key], profile, triton)
    with serve(key, system, profile, folders, triton=triton) as running:
        start = time.monotonic()
        responses = client.generate(running.address, running.models[0], text, max_tokens, timeout=60)
        pieces = [(piece, time.monotonic() - start) for piece in responses]
    answer = "".join(piece for piece, _ in pieces)
    times = {"first token ms": pieces[0][1] * 1e3, "last token ms": pieces[-1][1] * 1e3}
    return pd.DataFrame([{"prompt": text, "answer": answer, "tokens": len(pieces)} | times]).round(1)


@dataclass(frozen=True)
class Running:
    """A deployed system that answers requests.

    Attributes:
        address: HOST:PORT of its KServe v2 gRPC endpoint.
        models: Models that users request: user i requests models[i mod n].
    """

    address: str
    models: tuple[str, ...]
    server: ModelServer
    gateway: Gateway | None

    def failure(self) -> str | None:
        """Return what has died, in a sentence; None while server and gateway live."""
        if not self.server.alive():
            return f"The server at {self.server.grpc} died (its log: {self.server.log})."
        if self.gateway and not self.gateway.alive():
            return f"The gateway at {self.address} died."
        return None


def server(
    systems: dict[str, System],
    name: str,
    profile: Profile,
    folders: Folders,
    port: int | None = None,
    container: str | None = None,
    apart: bool = False,
) -> ModelServer:
    """Return a server, not yet started, of all engines of some systems.

    Args:
        port: gRPC port; None lets the system choose.
        container: Container engine that runs the server, docker or podman; None for this machine's own programs. GPUs
            only.
        apart: Whether each engine gets a server of its own. GPUs only.
    """
    models = tuple(model for key, system in systems.items() for model in system.model_names(key))
    return kind(profile).server(write_repository(systems, name, profile, folders), models, port, container, apart)


def check_choice(key: str, system: System, folders: Folders, **choice: str | float) -> None:
    """Refuse a routing policy that the system's gateway cannot follow, before engines are built or started.

    Raises:
        ErlabError: The system has no gateway, a value is not allowed, or the router is missing or lacks the policy.
    """
    models = system.model_names(key)
    if choice and not system.router:
        raise ErlabError(f"System {key} has no gateway, so it takes no {', '.join(choice)}.")
    for name in choice.keys() & {"generalist", "strong"}:
        require(choice[name] in models, name, "serve", f"be one of {', '.join(models)}", choice[name])
    if not system.router:
        return
    if choice:
        # Imported here, since only a choice of policy needs them: they double the start-up time of this module.
        from erlab.gateway import fleet
        from erlab.gateway import server as gateway
        from erlab.routing import CompiledRouter

        config = fleet.from_clusters(folders.router, "127.0.0.1:1", models, **choice)  # nothing is asked there
    if not (folders.router / "router.json").is_file():
        raise ErlabError(f"No router in {folders.router}: run 02_train_router first (erlab reproduce --only 02).")
    if choice:
        gateway.check_policy(CompiledRouter.load(folders.router), config)


@contextmanager
def serve(
    key: str,
    system: System,
    profile: Profile,
    folders: Folders,
    port: int | None = None,
    triton: str | None = None,
    holder: ModelServer | None = None,
    container: str | None = None,
    apart: bool = False,
    **choice: str | float,
) -> Iterator[Running]:
    """Start a system's server and, for a router system, its gateway; stop both on leaving.

    Args:
        port: Port for users, the gateway's or the server's gRPC port; None lets the system choose.
        triton: Address of an external server: HOST:PORT of a Triton that has the models, or http://HOST:PORT of an
            OpenAI-compatible server, whose model stands for all experts.
        holder: Running server (see `server`) that has the models. `triton` and `holder` replace a server of its own.
        **choice: Routing policy of the gateway: `policy`, `generalist`, `strong` and `threshold` of
            `gateway.fleet.from_clusters`; experts are named as the system's models.
    """
    check_choice(key, system, folders, **choice)
    models = system.model_names(key)
    with ExitStack() as stack:
        if triton:
            holder = stack.enter_context(external.attach(triton, models, None if system.router else port))
        elif holder is None:
            own_port = None if system.router else port
            holder = stack.enter_context(server({key: system}, key, profile, folders, own_port, container, apart))
        if not system.router:
            yield Running(holder.grpc, models, holder, None)
            return
        experts = tuple(holder.upstreams[c % len(models)] for c in range(profile.clusters))
        choice = {k: holder.upstreams[models.index(v)] if v in models else v for k, v in choice.items()}
        gateway = stack.enter_context(Gateway.of(folders.router, holder.grpc, experts, port=port or 0, **choice))
        yield Running(gateway.address, (ROUTER_MODEL,), holder, gateway)
