"""Interface and table of the engine kinds that experts run on.

>>> from erlab import paper
>>> from erlab.serving import profiles
>>> laptop = profiles.profile("laptop")
>>> kind(laptop).scale(paper.SYSTEMS["v2"]["D"], laptop, 4, 32).title
'tiny 70B int8, 1 core, 4 experts'
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name

from erlab import fingerprint
from erlab.serving.servers import ModelServer
from erlab.spec import Expert, Profile, System, require


class EngineKind(ABC):
    """Builder and server of one kind of engines.

    Attributes:
        devices: Unit of the devices, "cores" or "GPUs".
        together: Whether one server may hold engines that get no requests, because idle they cost little.
    """

    devices: str
    together = False

    @abstractmethod
    def scale(self, system: System, profile: Profile, devices: int, max_batch_size: int) -> System:
        """Return the counterpart of a system of the paper on that many devices."""

    @abstractmethod
    def engine_name(self, expert: Expert) -> str:
        """Return the name of an expert's engine folder; experts of the same name share the engine."""

    def plan(self, expert: Expert, folder: Path, weights: Path | None) -> tuple:
        """Return the due build commands (`tensorrt_llm.Command`) of an engine; none if it takes seconds."""
        return ()

    def check(self, due: list[tuple[Expert, Path, tuple]]) -> None:
        """Refuse engines that cannot be built here, given as (expert, folder, due commands)."""

    @abstractmethod
    def build(self, expert: Expert, folder: Path, seed: int, weights: Path | None) -> None:
        """Build an engine unless it exists; `weights` is a folder of real weights, None for dummy weights."""

    @abstractmethod
    def write(self, repository: Path, model: str, engine: Path, expert: Expert, place: tuple[int, ...]) -> None:
        """Write the Triton model that serves an engine on these devices."""

    @abstractmethod
    def server(
        self, repository: Path, models: Sequence[str], port: int | None, container: str | None, apart: bool
    ) -> ModelServer:
        """Return a server of these models, not yet started.

        Args:
            port: gRPC port; None lets the system choose.
            container: Container engine that runs it, docker or podman; None for this machine's own programs.
            apart: Whether each model gets a server of its own.
        """

    @abstractmethod
    def available(self) -> str | None:
        """Return why this machine cannot serve such engines, None if it can."""

    @abstractmethod
    def checks(self, profile: Profile) -> list[tuple[str, str, bool | None, str]]:
        """Return the requirements: name, what this machine has, whether that suffices (None: partly), advice."""

    @abstractmethod
    def disk_bytes(self, profile: Profile, experts: Sequence[Expert]) -> float:
        """Return the bytes that the engines of a profile's experts take."""


# By a profile's `engine`: the class, or its dotted name, so that only the kind in use is imported.
ENGINE_KINDS: dict[str, str | type[EngineKind]] = {
    "tiny": "erlab.serving.engines.tiny_kind.TinyEngines",
    "tensorrt-llm": "erlab.serving.engines.tensorrt_llm_kind.TensorRTLLM",
    "gpu": "erlab.serving.engines.one_gpu.OneGPU",
    "gpu-tensorrt-llm": "erlab.serving.engines.one_gpu.OneGPUTensorRTLLM",
    "gpu-trtllm-serve": "erlab.serving.engines.one_gpu.OneGPUTrtllmServe",
    "gpu-vllm": "erlab.serving.engines.one_gpu.OneGPUVllm",
    "gpu-embedded": "erlab.serving.engines.one_gpu.OneGPUEmbedded",
}


def kind(profile: Profile) -> EngineKind:
    """Return the engine kind of a profile."""
    allowed = f"be one of {', '.join(ENGINE_KINDS)}"
    require(profile.engine in ENGINE_KINDS, "engine", f"profile {profile.name}", allowed, profile.engine)
    entry = ENGINE_KINDS[profile.engine]
    return (resolve_name(entry) if isinstance(entry, str) else entry)()


def unused(profile: Profile) -> set[str]:
    """Return the modules of the other engine kinds, on which no result of this profile depends."""
    modules = {name: entry.rpartition(".")[0] for name, entry in ENGINE_KINDS.items() if isinstance(entry, str)}
    own = modules.get(profile.engine)
    needed = fingerprint.code_of(f"import {own}", [__name__]) if own else ()  # without this table, which names all
    return set(modules.values()) - set(needed)


def slug(name: str) -> str:
    """Return the folder name of a model or engine.

    >>> slug("Llama 3 8B-FP16")
    'llama-3-8b-fp16'
    """
    return name.replace(" ", "-").lower()
