"""What serves the study's experts on one GPU: the first engine in `ORDER` that this machine has, or one by its name.

TensorRT-LLM is the paper's, this machine's own or in NVIDIA's container; trtllm-serve is its successor, behind
OpenAI's protocol like vLLM; the laptop's own engine on CUDA is correct and slow, for a machine with PyTorch alone.
`choose` says which and why.

Experts share the GPU by memory. A router system has as many distinct ones as fit with room for a batch, four at most,
and they stand for the paper's eight; where only one fits, it stands for all. No KV pool is larger than the one an expert
has on an H100 of its own, so that a larger GPU does not flatter it.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from erlab import machine, paper
from erlab.errors import ErlabError
from erlab.serving import nvidia, profiles
from erlab.serving.engines import openai_models, openai_server, tensorrt_llm, trtllm_machine
from erlab.serving.engines.on_gpus import TensorRTLLM
from erlab.serving.triton import llm
from erlab.simulation.hardware import GPUS, Gpu, kv_pool_tokens
from erlab.spec import Expert, Profile, System, require

ORDER = ("tensorrt-llm", "trtllm-serve", "vllm", "embedded")
MOST = 4  # experts that share the GPU
TOKENIZER_BYTES = 20e6
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


def _fits(expert: Expert, count: int) -> bool:
    try:
        return _pool(expert, count) >= LEAST_REQUESTS * expert.max_sequence_tokens
    except ErlabError:
        return False


def _pool(expert: Expert, count: int) -> int:
    """Tokens of the KV cache that one of `count` experts has in its share of the GPU."""
    it = gpu()
    return kv_pool_tokens(expert, replace(it, memory=it.memory // count), paper.RESERVE / 2**30)


def _chosen(engine: str | None) -> str:
    chosen = choose(engine)
    if chosen.name is None:
        raise ErlabError(f"Nothing here can serve experts on a GPU: {chosen.why}.")
    return chosen.name


class OneGPU(TensorRTLLM):
    """The first engine of `ORDER` that this machine has; a subclass names one of them."""

    engine: str | None = None

    def scale(self, system: System, profile: Profile, devices: int, max_batch_size: int) -> System:
        """Return the counterpart of a system of the paper on one GPU.

        Raises:
            ErlabError: Not even one engine fits, or the GPU does not compute in its precision.
        """
        expert = replace(
            system.expert,
            model=profile.models[system.expert.model.name],
            precision=profile.precisions[system.expert.precision.name],
            tensor_parallel=1,
            max_batch_size=max_batch_size,
        )
        if gpus := _devices(os.environ.get("PATH", "")):
            trtllm_machine.require_devices(expert, gpus)
        count = next(n for n in (MOST, 2, 1) if n == 1 or system.router and _fits(expert, n))
        pool = min(_pool(expert, count), paper.kv_pool_tokens(expert))
        return replace(system, expert=replace(expert, kv_tokens=pool), count=count)

    def plan(self, expert: Expert, folder: Path, weights: Path | None) -> tuple:
        """Return TensorRT-LLM's due commands, where that is chosen or named; weights of another model are refused."""
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
            trtllm_machine.require_disk(due[0][1], _weight_bytes([expert for expert, _ in missing]))

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
    ) -> AbstractContextManager:
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
        """Whether a system fits the GPU, and how many experts share it."""
        try:
            scaled = self.scale(system, profile, 1, max(profile.batch_limits))
        except ErlabError as e:
            return f"system {name}", str(e).rstrip("."), False, "erlab gpu --case 8B measures what may still fit"
        return f"system {name}", f"{scaled.title}, a KV cache of {scaled.expert.kv_tokens:,} tokens each", True, ""

    def disk_bytes(self, profile: Profile, experts: Sequence[Expert]) -> float:
        """Dummy weights take nothing where a server makes them itself."""
        chosen = choose(self.engine).name or self.engine
        if chosen == "tensorrt-llm":
            return super().disk_bytes(profile, experts)
        return _weight_bytes(experts) if chosen == "embedded" else TOKENIZER_BYTES * len(experts)


def _weight_bytes(experts: Sequence[Expert]) -> int:
    """Bytes of the experts' weights; experts of one model share them."""
    return sum({expert.model.name: paper.weight_bytes(expert) for expert in experts}.values())


class OneGPUTensorRTLLM(OneGPU):
    engine = "tensorrt-llm"


class OneGPUTrtllmServe(OneGPU):
    engine = "trtllm-serve"


class OneGPUVllm(OneGPU):
    engine = "vllm"


class OneGPUEmbedded(OneGPU):
    engine = "embedded"
