"""What serves the study's experts on one GPU: the first engine in `ORDER` that this machine has, or one by its name.

TensorRT-LLM is the paper's, this machine's own or in NVIDIA's container; trtllm-serve is its successor, behind
OpenAI's protocol like vLLM; the laptop's own engine on CUDA is correct and slow, for a machine with PyTorch alone.
`choose` says which and why.

Experts share the GPU by memory. A router system has as many distinct ones as fit with room for a batch, four at most,
and they stand for the paper's eight; where only one fits, it stands for all. No KV pool is larger than the one an expert
has on an H100 of its own, so that a larger GPU does not flatter it.
"""

import os
import shlex
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from erlab import machine, paper
from erlab.errors import ErlabError
from erlab.serving import nvidia, profiles, scaling
from erlab.serving.engines import families, openai_models, tensorrt_llm, trtllm_build, trtllm_machine
from erlab.serving.triton import llm
from erlab.simulation.hardware import GPUS, Gpu, kv_pool_tokens
from erlab.spec import Expert, Profile, System, require

if TYPE_CHECKING:
    from erlab.paths import Folders

ORDER = ("tensorrt-llm", "trtllm-serve", "vllm", "embedded")
MOST = 4  # experts that share the GPU
LEAST_REQUESTS = 16  # of the longest kind that the pool of one of several experts must hold


@dataclass(frozen=True)
class Choice:
    """The engine's name, None where there is none, and why it is this one: why each before it isn't.

    `container`: docker or podman where that runs TensorRT-LLM, None where this machine's own programs do.
    """

    name: str | None
    why: str
    container: str | None = None


def choose(name: str | None = None) -> Choice:
    """The engine that serves this machine's GPU: the first there is, or the one of that name if it is there."""
    require(name is None or name in ORDER, "engine", "one GPU", f"be one of {', '.join(ORDER)}", name)
    if not machine.gpus():
        return Choice(None, "no GPU answers (nvidia-smi)")
    reasons = {}
    for engine in (name,) if name else ORDER:
        if engine == "tensorrt-llm":
            reason, container = _tensorrt_llm(bool(name))
        else:
            reason, container = openai_models.missing(engine), None
        if reason is None:
            passed = [f"no {other}: {why}" for other, why in reasons.items()]
            why = [f"chosen by name ({engine})"] if name else passed or ["the first in order"]
            why += [f"in NVIDIA's container, by {container}"] * bool(container)
            return Choice(engine, "; ".join(why), container)
        reasons[engine] = reason
    return Choice(None, "; ".join(f"no {other}: {why}" for other, why in reasons.items()))


def _tensorrt_llm(named: bool) -> tuple[str | None, str | None]:
    """Why TensorRT-LLM cannot serve this machine's GPU (None if it can), and the container engine that runs it.

    A container engine that nobody named is one that gives GPUs: NVIDIA's toolkit for it is on PATH.
    """
    programs = {"trtllm-build": machine.find("trtllm-build"), "tritonserver with its backend": llm.native()}
    if all(programs.values()):
        return None, None
    absent = f"{next(name for name, place in programs.items() if not place)} is not here"
    try:
        container = nvidia.container()
    except ErlabError as e:
        return f"{absent}, and {e}", None
    if container and not named and not nvidia.gives_gpus():
        return f"{absent}, and {container} has no NVIDIA container toolkit (nvidia-ctk)", None
    return (None, container) if container else (f"{absent}, nor docker or podman", None)


def gpu() -> Gpu:
    """This machine's GPU as the driver names it; an H100 where there is none, for plans."""
    found = _devices(os.environ.get("PATH", ""))
    return found[0].gpu if found else GPUS["H100"]


@lru_cache
def _devices(path: str) -> tuple[trtllm_machine.Device, ...]:
    """Asked once for each PATH, on which nvidia-smi is looked for: it takes a second."""
    return trtllm_machine.devices()


def scale(system: System, to: Profile, gpus: int, max_batch_size: int) -> System:
    """What plays a row of Table I on one GPU; raises ErlabError where not even one engine of it fits, or the GPU does
    not compute in its precision."""
    expert = replace(
        system.expert,
        model=to.models[system.expert.model.name],
        precision=to.precisions[system.expert.precision.name],
        tensor_parallel=1,
        max_batch_size=max_batch_size,
    )
    if found := _devices(os.environ.get("PATH", "")):
        trtllm_machine.require_devices(expert, found)
    count = next(n for n in (MOST, 2, 1) if n == 1 or system.router and _fits(expert, n))
    pool = min(_pool(expert, count), paper.kv_pool_tokens(expert))
    return replace(system, expert=replace(expert, kv_tokens=pool), count=count)


def _fits(expert: Expert, count: int) -> bool:
    try:
        return _pool(expert, count) >= LEAST_REQUESTS * expert.max_sequence_tokens
    except ErlabError:
        return False


def _pool(expert: Expert, count: int) -> int:
    """Tokens of the KV cache that one of `count` experts has in its share of the GPU."""
    it = gpu()
    return kv_pool_tokens(expert, replace(it, memory=it.memory // count), paper.RESERVE / 2**30)


def build(engine: str | None, expert: Expert, folder: Path, seed: int, weights: Path | None) -> None:
    """Make what the chosen engine needs in `folder`."""
    chosen = _chosen(engine)
    if chosen == "tensorrt-llm":
        trtllm_build.build(expert, folder, weights)
    else:
        openai_models.build(chosen, expert, folder, seed, weights)


def plan(engine: str | None, expert: Expert, folder: Path, weights: Path | None) -> tuple:
    """The commands due for an expert's engine: TensorRT-LLM's, where that is chosen or named. Weights of another model
    are refused."""
    if choose(engine).name in (None, *openai_models.KINDS) and engine != "tensorrt-llm":
        if weights is not None:
            tensorrt_llm.require_weights(weights, expert.model)
        return ()
    return trtllm_build.plan(expert, folder, weights)


def check(engine: str | None, due: list) -> None:
    """Refuse before anything is built: no engine is there, or it cannot serve one of the experts."""
    chosen = _chosen(engine)
    if chosen == "tensorrt-llm":
        trtllm_build.check(due)
        return
    for expert, *_ in due:
        openai_models.check(chosen, expert)
    if chosen == "embedded" and due:
        made = {e.model.name: paper.weight_bytes(e) for e, folder, _ in due if not (folder / "openai.json").is_file()}
        trtllm_machine.require_disk(due[0][1], sum(made.values()))


def available(engine: str | None) -> str | None:
    """Why nothing can be served here, None if it can."""
    chosen = choose(engine)
    return None if chosen.name else chosen.why


def checks(engine: str | None, to: Profile) -> list[tuple[str, str, bool | None, str]]:
    """What this machine has of what one GPU needs (see `families.Family.checks`)."""
    names, chosen = machine.gpus(), choose(engine)
    advice = "" if names else "needs NVIDIA's driver"
    rows = [("GPU", ", ".join(names) or "none answers (nvidia-smi)", bool(names), advice)]
    install = "install TensorRT-LLM or vLLM, or give an OpenAI-compatible server that runs: --upstream http://HOST:PORT"
    rows.append(("engine", f"{chosen.name or 'none'}: {chosen.why}", bool(chosen.name), "" if chosen.name else install))
    if names:
        rows += [_room(name, system, to) for name, system in profiles.systems(to).items()]
    return rows


def _room(name: str, system: System, to: Profile) -> tuple[str, str, bool, str]:
    """Whether a system fits the GPU, and how many experts share it."""
    try:
        it = scale(system, to, 1, max(to.batch_limits))
    except ErlabError as e:
        return f"system {name}", str(e).rstrip("."), False, "erlab gpu --case 8B measures what may still fit"
    return f"system {name}", f"{it.title}, a KV cache of {it.expert.kv_tokens:,} tokens each", True, ""


def disk_bytes(engine: str | None, to: Profile) -> float:
    """What the engines take: dummy weights take nothing where a server makes them itself, and what doesn't fit the GPU
    is not made."""
    try:
        chosen, planned = choose(engine).name or engine, scaling.experts(to)
    except ErlabError:
        return 0.0
    if chosen == "tensorrt-llm":
        commands = [tensorrt_llm.commands(expert, "engine") for expert in planned]
        return sum(command.disk_bytes for due in commands for command in due)
    if chosen == "embedded":
        return sum({e.model.name: paper.weight_bytes(e) for e in planned}.values())
    return 20e6 * len(planned)  # tokenizers


def describe(engine: str | None, to: Profile, folders: "Folders", weights: str | Path | None = None) -> str:
    """Which engine serves which systems by which commands, to be read before it does. Nothing is written."""
    chosen = choose(engine)
    kind = chosen.name or engine or "vllm"
    lines = [f"Engine: {chosen.name or 'none here'} ({chosen.why})."]
    if chosen.name is None:
        lines[0] += f" Planned for {kind} on an {gpu().name}:"
    source = Path(weights).expanduser().resolve() if weights else None
    for key, system in profiles.systems(to).items():
        it = scale(system, to, 1, max(to.batch_limits))
        stands = "" if it.count > 1 or not system.router else ", one expert stands for eight"
        lines.append(f"\n{key}: {it.title}{stands}; it plays {system.title}.")
        if kind == "tensorrt-llm":
            continue
        folder = folders.engines / families.family(to).engine_name(it.expert)
        share, model = openai_models.share(it.expert, gpu()), source and source / families.slug(it.expert.model.name)
        argv = openai_models.KINDS[kind](it.expert, model or folder, _first(key, it), share, weights is None)
        more = f"  # and so on: {it.count} servers" if it.count > 1 else ""
        lines.append(f"  {shlex.join(argv).replace(shlex.quote(openai_models.PORT), 'PORT')}{more}")
    if kind == "tensorrt-llm":
        from erlab.study import plan as commands

        lines.append(f"\n{commands.text(to, folders, weights)}")
    return "\n".join(lines)


def _first(key: str, system: System) -> str:

    return system.model_names(key)[0]


def _chosen(engine: str | None) -> str:
    chosen = choose(engine)
    if chosen.name is None:
        raise ErlabError(f"Nothing here can serve experts on a GPU: {chosen.why}.")
    return chosen.name
