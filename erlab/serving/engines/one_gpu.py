"""Engines of a study on one GPU: the first available one of `ORDER`, or one chosen by name.

TensorRT-LLM, which the paper uses, is installed on this machine or runs in NVIDIA's container. trtllm-serve and vLLM
are OpenAI-compatible servers. The laptop's engine on CUDA, correct and slow, needs PyTorch only. `choose` returns the
engine and the reason.

Experts share the GPU's memory. A router system has as many distinct experts as fit with room for a batch, at most
`MOST`, which stand for the paper's eight. No KV pool is larger than that of an expert on an H100 of its own, so that a
larger GPU gives no advantage.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from erlab import machine, paper
from erlab.errors import ErlabError
from erlab.serving import nvidia, profiles
from erlab.serving.engines import openai_models, openai_server, tensorrt_llm, tensorrt_llm_machine
from erlab.serving.engines.tensorrt_llm_kind import TensorRTLLM
from erlab.serving.servers import ModelServer
from erlab.serving.triton import tensorrt_llm_server
from erlab.simulation.hardware import GPUS, Gpu, kv_pool_tokens
from erlab.spec import Expert, Profile, System, require

ORDER = ("tensorrt-llm", *openai_models.KINDS)
MOST = 4  # experts that share the GPU
TOKENIZER_BYTES = 20e6
LEAST_REQUESTS = 16  # of maximum length, which the pool of each of several experts must hold


@dataclass(frozen=True)
class Choice:
    """Engine that serves this machine's GPU.

    Attributes:
        name: Name in `ORDER`, None where no engine is available.
        why: Reason for the choice: why each engine before it is not available.
        container: docker or podman where it runs TensorRT-LLM, None for this machine's own programs.
    """

    name: str | None
    why: str
    container: str | None = None


def choose(name: str | None = None) -> Choice:
    """Return the first available engine for this machine's GPU, or the named one if it is available."""
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
    """Return why TensorRT-LLM cannot serve this machine's GPU (None if it can), and the container engine that runs it.

    Unless TensorRT-LLM is chosen by name, NVIDIA's container toolkit must be on PATH.
    """
    builder, server = machine.find("trtllm-build"), tensorrt_llm_server.native()
    programs = {"trtllm-build": builder, "tritonserver with its backend": server}
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
    """Return this machine's GPU; an H100 where there is none, for plans."""
    devices = _devices(os.environ.get("PATH", ""))
    return devices[0].gpu if devices else GPUS["H100"]


@lru_cache
def _devices(path: str) -> tuple[tensorrt_llm_machine.Device, ...]:
    """Return this machine's GPUs, cached per PATH, since nvidia-smi takes a second."""
    return tensorrt_llm_machine.devices()


def _fits(expert: Expert, count: int) -> bool:
    try:
        return _pool(expert, count) >= LEAST_REQUESTS * expert.max_sequence_tokens
    except ErlabError:
        return False


def _pool(expert: Expert, count: int) -> int:
    """Return the tokens of the KV cache of one of `count` experts that share the GPU."""
    shared = gpu()
    return kv_pool_tokens(expert, replace(shared, memory=shared.memory // count))


def _chosen(engine: str | None) -> str:
    chosen = choose(engine)
    if chosen.name is None:
        raise ErlabError(f"Nothing here can serve experts on a GPU: {chosen.why}.")
    return chosen.name


class OneGPU(TensorRTLLM):
    """The first available engine of `ORDER`; a subclass names one of them."""

    engine: str | None = None

    def scale(self, system: System, profile: Profile, devices: int, max_batch_size: int) -> System:
        """Return the counterpart of a system of the paper on one GPU."""
        expert = replace(
            system.expert,
            model=profile.models[system.expert.model.name],
            precision=profile.precisions[system.expert.precision.name],
            tensor_parallel=1,
            max_batch_size=max_batch_size,
        )
        if gpus := _devices(os.environ.get("PATH", "")):
            tensorrt_llm_machine.require_devices(expert, gpus)
        count = next(n for n in (MOST, 2, 1) if n == 1 or system.router and _fits(expert, n))
        pool = min(_pool(expert, count), paper.kv_pool_tokens(expert))
        return replace(system, expert=replace(expert, kv_tokens=pool), count=count)

    def plan(self, expert: Expert, folder: Path, weights: Path | None) -> tuple:
        """Return the due commands of TensorRT-LLM if it is chosen or named; refuse weights of another model."""
        if choose(self.engine).name in (None, *openai_models.KINDS) and self.engine != "tensorrt-llm":
            if weights is not None:
                tensorrt_llm.require_weights(weights, expert.model)
            return ()
        return super().plan(expert, folder, weights)

    def check(self, due: list[tuple[Expert, Path, tuple]]) -> None:
        chosen = _chosen(self.engine)
        if chosen == "tensorrt-llm":
            return super().check(due)
        for expert, *_ in due:
            openai_models.check(chosen, expert)
        if chosen == "embedded" and due:
            missing = [(expert, folder) for expert, folder, _ in due if not (folder / "openai.json").is_file()]
            tensorrt_llm_machine.require_disk(due[0][1], _weight_bytes([expert for expert, _ in missing]))

    def build(self, expert: Expert, folder: Path, seed: int, weights: Path | None) -> None:
        chosen = _chosen(self.engine)
        if chosen == "tensorrt-llm":
            return super().build(expert, folder, seed, weights)
        openai_models.build(chosen, expert, folder, seed, weights)

    def write(self, repository: Path, model: str, engine: Path, expert: Expert, place: tuple[int, ...]) -> None:
        if (engine / "openai.json").is_file():
            return openai_models.write(repository, model, engine, expert, gpu())
        super().write(repository, model, engine, expert, place)

    def server(
        self, repository: Path, models: Sequence[str], port: int | None, container: str | None, apart: bool
    ) -> ModelServer:
        if not (repository / models[0] / "server.json").is_file():
            return super().server(repository, models, port, container, apart)
        allowed = "be left out, since no container runs that (profile gpu-tensorrt-llm has one)"
        require(container is None, "container", "an OpenAI-compatible server", allowed, container)
        return openai_server.OpenAIServers(repository, models, port)

    def available(self) -> str | None:
        chosen = choose(self.engine)
        return None if chosen.name else chosen.why

    def checks(self, profile: Profile) -> list[tuple[str, str, bool | None, str]]:
        names, chosen = machine.gpus(), choose(self.engine)
        advice = "" if names else "needs NVIDIA's driver"
        rows = [("GPU", ", ".join(names) or "none answers (nvidia-smi)", bool(names), advice)]
        install = (
            "install TensorRT-LLM or vLLM, or give an OpenAI-compatible server that runs: --upstream http://HOST:PORT"
        )
        engine = f"{chosen.name or 'none'}: {chosen.why}"
        rows.append(("engine", engine, bool(chosen.name), "" if chosen.name else install))
        if names:
            rows += [self._room(name, system, profile) for name, system in profiles.systems(profile).items()]
        return rows

    def _room(self, name: str, system: System, profile: Profile) -> tuple[str, str, bool, str]:
        """Return whether a system fits the GPU, and how many experts share it."""
        try:
            scaled = self.scale(system, profile, 1, max(profile.batch_limits))
        except ErlabError as e:
            return f"system {name}", str(e).rstrip("."), False, "erlab gpu --case 8B measures what may still fit"
        return f"system {name}", f"{scaled.title}, a KV cache of {scaled.expert.kv_tokens:,} tokens each", True, ""

    def disk_bytes(self, profile: Profile, experts: Sequence[Expert]) -> float:
        """Return the bytes of engines; dummy weights that a server makes itself take none."""
        chosen = choose(self.engine).name or self.engine
        if chosen == "tensorrt-llm":
            return super().disk_bytes(profile, experts)
        return _weight_bytes(experts) if chosen == "embedded" else TOKENIZER_BYTES * len(experts)


def _weight_bytes(experts: Sequence[Expert]) -> int:
    """Return the bytes of the experts' weights, which experts of one model share."""
    return sum({expert.model.name: paper.weight_bytes(expert) for expert in experts}.values())


class OneGPUTensorRTLLM(OneGPU):
    engine = "tensorrt-llm"


class OneGPUTrtllmServe(OneGPU):
    engine = "trtllm-serve"


class OneGPUVllm(OneGPU):
    engine = "vllm"


class OneGPUEmbedded(OneGPU):
    engine = "embedded"
