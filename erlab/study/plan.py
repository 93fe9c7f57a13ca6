"""What building and serving a profile's engines will run, to be read before it does: ``erlab reproduce --dry-run``.

    print(text(profiles.profile("dgx-h100"), Folders.of("dgx-h100")))
"""

import shlex
from pathlib import Path

from erlab.paths import Folders
from erlab.serving import deployment, nvidia, profiles, scaling
from erlab.serving.engines import one_gpu, openai_models
from erlab.serving.engines.kinds import kind, slug
from erlab.serving.engines.tensorrt_llm_kind import TensorRTLLM
from erlab.serving.triton import tensorrt_llm_server
from erlab.spec import Profile, System

_PORTS = (8001, 8002)  # Triton's usual ones: gRPC and metrics


def text(to: Profile, folders: Folders, weights: str | Path | None = None) -> str:
    """The commands that build the engines and start the servers, with hours and disk; empty where that takes a moment.

    Nothing is written, and neither GPUs nor TensorRT-LLM are needed.
    """
    engines = kind(to)
    if isinstance(engines, one_gpu.OneGPU):
        return _one_gpu(engines, to, folders, weights)
    return _tensorrt_llm(to, folders, weights) if isinstance(engines, TensorRTLLM) else ""


def _one_gpu(engines: one_gpu.OneGPU, to: Profile, folders: Folders, weights: str | Path | None) -> str:
    """Which engine serves which systems, and by which commands."""
    chosen = one_gpu.choose(engines.engine)
    engine = chosen.name or engines.engine or "vllm"
    lines = [f"Engine: {chosen.name or 'none here'} ({chosen.why})."]
    if chosen.name is None:
        lines[0] += f" Planned for {engine} on an {one_gpu.gpu().name}:"
    source = Path(weights).expanduser().resolve() if weights else None
    for key, original in profiles.systems(to).items():
        system = engines.scale(original, to, 1, max(to.batch_limits))
        stands = "" if system.count > 1 or not original.router else ", one expert stands for eight"
        lines.append(f"\n{key}: {system.title}{stands}; it plays {original.title}.")
        if engine != "tensorrt-llm":
            share = openai_models.share(system.expert, one_gpu.gpu())
            model = source / slug(system.expert.model.name) if source else deployment.engine_folder(system.expert, to, folders)
            argv = openai_models.KINDS[engine](system.expert, model, system.model_names(key)[0], share, weights is None)
            more = f"  # and so on: {system.count} servers" if system.count > 1 else ""
            lines.append(f"  {shlex.join(argv).replace(shlex.quote(openai_models.PORT), 'PORT')}{more}")
    if engine == "tensorrt-llm":
        lines.append(f"\n{_tensorrt_llm(to, folders, weights)}")
    return "\n".join(lines)


def _tensorrt_llm(to: Profile, folders: Folders, weights: str | Path | None) -> str:
    found = deployment.plan_engines(to, folders, weights)
    return "\n\n".join([_builds(found), _repositories(to, folders), _servers(to, folders)])


def _builds(found: list) -> str:
    due = [command for *_, commands in found for command in commands]
    hours, gigabytes = sum(c.minutes for c in due) / 60, sum(c.disk_bytes for c in due) / 1e9
    waiting = sum(bool(commands) for *_, commands in found)
    lines = [f"Engines: {waiting} of {len(found)} are to be built, about {hours:.1f} h and {gigabytes:,.0f} GB."]
    for expert, folder, source, commands in found:
        state = f"with {source or 'dummy weights'}" if commands else "is there"
        lines.append(f"\n{folder.name}: {expert.tensor_parallel} GPU{'s' * (expert.tensor_parallel > 1)}, {state}")
        for command in commands:
            lines += [f"  # {command.minutes:.1f} min, {command.disk_bytes / 1e9:.1f} GB", f"  {command}"]
    if due:
        folder = due[0].writes.parent
        inside = nvidia.contained("docker", due[0].argv, "erlab-build", [folder], as_user=True)
        lines += ["\nWhere these programs are not installed, each runs in NVIDIA's container. The first one then is:"]
        lines += [f"  mkdir -p {shlex.quote(str(folder))} && {shlex.join(inside)}"]
        lines += ["\nNotebook 01 runs them all and keeps what it made; what was built by other hands it builds again."]
    return "\n".join(lines)


def _repositories(to: Profile, folders: Folders) -> str:
    lines = [f"Model repositories, one a system, in {folders.models}:"]
    for key, system in _systems(to).items():
        lines.append(f"\n{key}/  {system.title}")
        engine = deployment.engine_folder(system.expert, to, folders).name
        places = scaling.placement(system, scaling.devices(to))
        for model, place in zip(system.model_names(key), places, strict=True):
            lines.append(f"  {model}  GPUs {','.join(map(str, place))}  {engine}")
    parts = ", ".join(f"NAME-{part}" for part in ("preprocessing", "tensorrt_llm", "postprocessing"))
    return "\n".join(lines + [f"\nEach NAME is an ensemble with its own parts beside it: {parts}."])


def _servers(to: Profile, folders: Folders) -> str:
    gpus = scaling.devices(to)
    orchestrated = " ".join(f"{name}={value}" for name, value in tensorrt_llm_server.ORCHESTRATOR.items())
    natively = "Triton, a server a system, in TensorRT-LLM's orchestrator mode. Natively:"
    lines, contained, apart = [natively], ["\nIn NVIDIA's container:"], ["\nOr, with --apart, a server an expert:"]
    for key, system in _systems(to).items():
        models, repository = system.model_names(key), folders.models / key
        engine = deployment.engine_folder(system.expert, to, folders)
        lines.append(f"  {orchestrated} {shlex.join(tensorrt_llm_server.arguments(repository, models, _PORTS, gpus))}")
        inside = tensorrt_llm_server.in_container("docker", repository, models, _PORTS, gpus, [engine])
        contained.append(f"  {shlex.join(inside)}")
        if system.expert.tensor_parallel == 1:
            first = tensorrt_llm_server.arguments(repository, models[:1], _PORTS, gpus[:1])
            apart.append(f"  {shlex.join(first)}  # and so on: {len(models)} servers, each with ports of its own")
    return "\n".join(lines + contained + apart)


def _systems(to: Profile) -> dict[str, System]:
    count = len(scaling.devices(to))
    return {key: scaling.scale(system, to, count) for key, system in profiles.systems(to).items()}
