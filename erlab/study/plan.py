"""Commands that build and serve the engines of a profile on GPUs, shown by ``erlab reproduce --dry-run``.

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

_PORTS = (8001, 8002)  # Triton's defaults: gRPC and metrics


def text(profile: Profile, folders: Folders, weights: str | Path | None = None) -> str:
    """List the commands that build engines and start servers, with their time and disk space.

    Writes nothing and needs neither GPUs nor TensorRT-LLM.
    """
    engines = kind(profile)
    if isinstance(engines, one_gpu.OneGPU):
        return _one_gpu(engines, profile, folders, weights)
    return _tensorrt_llm(profile, folders, weights) if isinstance(engines, TensorRTLLM) else ""


def _one_gpu(engines: one_gpu.OneGPU, profile: Profile, folders: Folders, weights: str | Path | None) -> str:
    """List the engine of each system and the commands that serve it."""
    chosen = one_gpu.choose(engines.engine)
    engine = chosen.name or engines.engine or "vllm"
    lines = [f"Engine: {chosen.name or 'none here'} ({chosen.why})."]
    if chosen.name is None:
        lines[0] += f" Planned for {engine} on an {one_gpu.gpu().name}:"
    source = Path(weights).expanduser().resolve() if weights else None
    for key, original in profiles.systems(profile).items():
        system = engines.scale(original, profile, 1, max(profile.batch_limits))
        single = "" if system.count > 1 or not original.router else ", one expert represents eight"
        lines.append(f"\n{key}: {system.title}{single}; scaled-down counterpart of {original.title}.")
        if engine != "tensorrt-llm":
            share = openai_models.share(system.expert, one_gpu.gpu())
            built = deployment.engine_folder(system.expert, profile, folders)
            model = source / slug(system.expert.model.name) if source else built
            argv = openai_models.KINDS[engine](system.expert, model, system.model_names(key)[0], share, weights is None)
            more = f"  # {system.count} servers of this kind" if system.count > 1 else ""
            lines.append(f"  {shlex.join(argv).replace(shlex.quote(openai_models.PORT), 'PORT')}{more}")
    if engine == "tensorrt-llm":
        lines.append(f"\n{_tensorrt_llm(profile, folders, weights)}")
    return "\n".join(lines)


def _tensorrt_llm(profile: Profile, folders: Folders, weights: str | Path | None) -> str:
    engines = deployment.plan_engines(profile, folders, weights)
    return "\n\n".join([_builds(engines), _repositories(profile, folders), _servers(profile, folders)])


def _builds(engines: list) -> str:
    due = [command for *_, commands in engines for command in commands]
    hours, gigabytes = sum(c.minutes for c in due) / 60, sum(c.disk_bytes for c in due) / 1e9
    missing = sum(bool(commands) for *_, commands in engines)
    lines = [f"Engines: {missing} of {len(engines)} are to be built, about {hours:.1f} h and {gigabytes:,.0f} GB."]
    for expert, folder, source, commands in engines:
        state = f"with {source or 'dummy weights'}" if commands else "already built"
        lines.append(f"\n{folder.name}: {expert.tensor_parallel} GPU{'s' * (expert.tensor_parallel > 1)}, {state}")
        for command in commands:
            lines += [f"  # {command.minutes:.1f} min, {command.disk_bytes / 1e9:.1f} GB", f"  {command}"]
    if due:
        folder = due[0].writes.parent
        inside = nvidia.contained("docker", due[0].argv, "erlab-build", [folder], as_user=True)
        lines += ["\nIf these programs are not installed, each runs in NVIDIA's container. The first command is then:"]
        lines += [f"  mkdir -p {shlex.quote(str(folder))} && {shlex.join(inside)}"]
        lines += ["\nNotebook 01 runs all of them and keeps its engines; engines from elsewhere are built again."]
    return "\n".join(lines)


def _repositories(profile: Profile, folders: Folders) -> str:
    lines = [f"Model repositories, one per system, in {folders.models}:"]
    for key, system in _systems(profile).items():
        lines.append(f"\n{key}/  {system.title}")
        engine = deployment.engine_folder(system.expert, profile, folders).name
        places = scaling.placement(system, scaling.devices(profile))
        for model, place in zip(system.model_names(key), places, strict=True):
            lines.append(f"  {model}  GPUs {','.join(map(str, place))}  {engine}")
    parts = ", ".join(f"NAME-{part}" for part in ("preprocessing", "tensorrt_llm", "postprocessing"))
    return "\n".join(lines + [f"\nEach NAME is an ensemble of the models {parts}."])


def _servers(profile: Profile, folders: Folders) -> str:
    gpus = scaling.devices(profile)
    orchestrated = " ".join(f"{name}={value}" for name, value in tensorrt_llm_server.ORCHESTRATOR.items())
    installed = "Triton, one server per system, in TensorRT-LLM's orchestrator mode. On this machine:"
    lines, contained, apart = [installed], ["\nIn NVIDIA's container:"], ["\nWith --apart, one server per expert:"]
    for key, system in _systems(profile).items():
        models, repository = system.model_names(key), folders.models / key
        engine = deployment.engine_folder(system.expert, profile, folders)
        lines.append(f"  {orchestrated} {shlex.join(tensorrt_llm_server.arguments(repository, models, _PORTS, gpus))}")
        contained.append(f"  {shlex.join(tensorrt_llm_server.in_container('docker', repository, models, _PORTS, gpus, [engine]))}")
        if system.expert.tensor_parallel == 1:
            first = tensorrt_llm_server.arguments(repository, models[:1], _PORTS, gpus[:1])
            apart.append(f"  {shlex.join(first)}  # {len(models)} servers, each on its own ports")
    return "\n".join(lines + contained + apart)


def _systems(profile: Profile) -> dict[str, System]:
    return {key: scaling.scale(system, profile) for key, system in profiles.systems(profile).items()}
