"""From a system's spec to something users can ask: its engines, its Triton repository, its servers.

    with serve("C", system, to, folders) as running:
        users.run(running.address, running.models, requests, timeout=60)
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
from erlab.serving.triton import Server
from erlab.spec import Expert, Profile, System, require

ROUTER_MODEL = "router"


def engine_folder(expert: Expert, to: Profile, folders: Folders) -> Path:
    return folders.engines / kind(to).engine_name(expert)


def plan_engines(
    to: Profile, folders: Folders, weights: str | Path | None = None, wanted: list[Expert] | None = None
) -> list[tuple[Expert, Path, Path | None, tuple]]:
    """The profile's (or the wanted) experts, each with its engine's folder, its weights' folder and the commands due
    for its engine."""
    found = []
    for expert in scaling.experts(to) if wanted is None else wanted:
        folder = engine_folder(expert, to, folders)
        source = Path(weights).expanduser().resolve() / slug(expert.model.name) if weights else None
        found.append((expert, folder, source, kind(to).plan(expert, folder, source)))
    return found


def check_weights(weights: str | Path | None, triton: str | None = None) -> None:
    """Refuse weights for a server that runs, and what is no folder's name."""
    allowed = "be None, since a server that runs has its own" if triton else "be a folder's path"
    fits = weights is None or (isinstance(weights, str | Path) and not triton)
    require(fits, "weights", "build_engines", allowed, weights)


def build_engines(
    to: Profile,
    folders: Folders,
    seed: int,
    weights: str | Path | None = None,
    wanted: list[Expert] | None = None,
    triton: str | None = None,
) -> pd.DataFrame:
    """Build every engine of the profile (or the `wanted` experts') that isn't there yet; a row an engine: its size in
    parameters and bytes.

    `weights`: a folder with one a model (such as ``llama-3-8b``) as Hugging Face stores it; None for dummy weights.
    What cannot be built is refused before the first is. `triton`: as in `serve`; then nothing is built, which is said.
    """
    check_weights(weights, triton)
    if triton:
        folders.engines.mkdir(parents=True, exist_ok=True)
        return pd.DataFrame([{"left out": f"{external.title(triton)}: {triton}"}])
    found = plan_engines(to, folders, weights, wanted)
    kind(to).check([(expert, folder, due) for expert, folder, _, due in found])
    if minutes := sum(command.minutes for *_, due in found for command in due):
        report(0, len(found), f"{len(found)} engines: about {minutes / 60:.1f} h to build")
    rows = []
    for i, (expert, folder, source, _) in enumerate(found):
        report(i, len(found), f"engine {folder.name}")
        kind(to).build(expert, folder, seed, source)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        plays = sorted(name for name, model in to.models.items() if model == expert.model)
        rows.append(
            {
                "engine": folder.name,
                "plays": ", ".join(plays),
                "parameters": expert.model.parameters,
                "weights MB": round(size / 1e6, 1),
                "folder": str(folder),
            }
        )
    report(len(found), len(found), "engines")
    return pd.DataFrame(rows)


def write_repository(systems: dict[str, System], name: str, to: Profile, folders: Folders) -> Path:
    """The Triton model repository `name`: one model an engine of each system, on its own devices."""
    folder = folders.models / name
    devices = scaling.devices(to)
    for key, system in systems.items():
        engine = engine_folder(system.expert, to, folders)
        if not engine.is_dir():
            command = f"erlab reproduce --profile {to.name} --only 01"
            raise ErlabError(f"No engine {engine}: run notebook 01_build_engines first ({command}).")
        for model, place in zip(system.model_names(key), scaling.placement(system, devices), strict=True):
            kind(to).write(folder, model, engine, system.expert, place)
    return folder


def write_repositories(to: Profile, folders: Folders, triton: str | None = None) -> pd.DataFrame:
    """Write the repository of each system of Table I; a row a Triton model: its engine, devices and limits.

    `triton`: as in `serve`; then none is written, and that is said.
    """
    if triton:
        return pd.DataFrame([{"left out": f"{triton} has its own models"}])
    devices = scaling.devices(to)
    rows = []
    for key, original in profiles.systems(to).items():
        system = scaling.scale(original, to, len(devices))
        write_repository({key: system}, key, to, folders)
        for model, place in zip(system.model_names(key), scaling.placement(system, devices), strict=True):
            rows.append(
                {
                    "system": key,
                    "plays": original.title,
                    "Triton model": model,
                    "engine": engine_folder(system.expert, to, folders).name,
                    kind(to).devices: ", ".join(map(str, place)),
                    "max batch": system.expert.max_batch_size,
                    "KV tokens": system.expert.kv_tokens,
                }
            )
    return pd.DataFrame(rows)


def try_out(
    to: Profile, folders: Folders, text: str, max_tokens: int = 40, triton: str | None = None
) -> pd.DataFrame:
    """Start system C (or the first there is) for a moment and ask it: what it writes, and when its first and last token
    came (ms).

    `triton`: as in `serve`. Where none is given and no server can run, the table says why instead.
    """
    if not triton and (reason := kind(to).available()):
        return pd.DataFrame([{"left out": reason}])
    systems = profiles.systems(to)
    key = "C" if "C" in systems else min(systems)
    if triton:
        system = external.scale(systems[key], to, triton, max(to.batch_limits))
    else:
        system = scaling.scale(systems[key], to, len(scaling.devices(to)))
    with serve(key, system, to, folders, triton=triton) as running:
        start = time.monotonic()
        answered = client.generate(running.address, running.models[0], text, max_tokens, timeout=60)
        pieces = [(piece, time.monotonic() - start) for piece in answered]
    answer = "".join(piece for piece, _ in pieces)
    times = {"first token ms": pieces[0][1] * 1e3, "last token ms": pieces[-1][1] * 1e3}
    return pd.DataFrame([{"prompt": text, "answer": answer, "tokens": len(pieces)} | times]).round(1)


@dataclass(frozen=True)
class Running:
    """A system that answers: ask `models` (user i asks models[i mod n]) at `address`, a KServe v2 gRPC endpoint."""

    address: str
    models: tuple[str, ...]
    server: Server
    gateway: Gateway | None

    def failure(self) -> str | None:
        """What has died for good, in a sentence, or None while all is well."""
        if not self.server.alive():
            return f"The server at {self.server.grpc} died (its log: {self.server.log})."
        if self.gateway and not self.gateway.alive():
            return f"The gateway at {self.address} died."
        return None


def server(
    systems: dict[str, System],
    name: str,
    to: Profile,
    folders: Folders,
    port: int | None = None,
    container: str | None = None,
    apart: bool = False,
) -> AbstractContextManager[Server]:
    """A Triton server, to be entered, with all engines of these systems in the model repository `name`.

    `container`: the container engine that is to run it, `apart`: a server an engine; both on GPUs only.
    """
    models = tuple(model for key, system in systems.items() for model in system.model_names(key))
    return kind(to).server(write_repository(systems, name, to, folders), models, port, container, apart)


def check_choice(key: str, system: System, folders: Folders, **choice: str | float) -> None:
    """Refuse how the system's gateway is told to choose (see `serve`): what no gateway takes first, then a router that
    is missing or cannot choose so. For before engines are built or started, which takes long."""
    models = system.model_names(key)
    if choice and not system.router:
        raise ErlabError(f"System {key} has no gateway, so it takes no {', '.join(choice)}.")
    for name in choice.keys() & {"generalist", "strong"}:
        require(choice[name] in models, name, "serve", f"be one of {', '.join(models)}", choice[name])
    if not system.router:
        return
    if choice:
        from erlab.gateway import server as gateway
        from erlab.routing import CompiledRouter

        settings = gateway.Settings(None, models, **choice)
        gateway.check_settings(settings)
    if not (folders.router / "router.json").is_file():
        raise ErlabError(f"No router in {folders.router}: run 02_train_router first (erlab reproduce --only 02).")
    if choice:
        gateway.check_policy(CompiledRouter.load(folders.router), settings)


@contextmanager
def serve(
    key: str,
    system: System,
    to: Profile,
    folders: Folders,
    port: int | None = None,
    triton: str | None = None,
    holder: Server | None = None,
    container: str | None = None,
    apart: bool = False,
    **choice: str | float,
) -> Iterator[Running]:
    """Start Triton with the system's engines and, for a router system, the gateway; stop both on leaving.

    `port`: where users ask (the gateway's or Triton's gRPC port), chosen by the system if None.
    `triton`: HOST:PORT of a server that already holds the models, or http://HOST:PORT of an OpenAI-compatible one, whose
    model stands for all of them; `holder`: a running one of `server`'s; either takes the place of one that is started
    for this system alone. `container`, `apart`: as in `server`. `choice`: how the gateway chooses, `policy`,
    `generalist`, `strong` and `threshold` of `gateway.Gateway`; the experts are named as the system's own models.
    """
    check_choice(key, system, folders, **choice)
    models = system.model_names(key)
    with ExitStack() as stack:
        if triton:
            holder = stack.enter_context(external.attach(triton, models, None if system.router else port))
        elif holder is None:
            own = None if system.router else port
            holder = stack.enter_context(server({key: system}, key, to, folders, own, container, apart))
        if not system.router:
            yield Running(holder.grpc, models, holder, None)
            return
        placed = tuple(holder.upstreams[c % len(models)] for c in range(to.clusters))
        choice = {k: holder.upstreams[models.index(v)] if v in models else v for k, v in choice.items()}
        gateway = stack.enter_context(Gateway(folders.router, holder.grpc, placed, port=port, **choice))
        yield Running(gateway.address, (ROUTER_MODEL,), holder, gateway)
