"""The kinds of engines that experts run on: one interface, and one table of all there are.

>>> from erlab import paper
>>> from erlab.serving import profiles
>>> laptop = profiles.profile("laptop")
>>> kind(laptop).scale(paper.SYSTEMS["v2"]["D"], laptop, 4, 32).title
'tiny 70B int8, 1 core, 4 experts'
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from pkgutil import resolve_name

from erlab import fingerprint
from erlab.spec import Expert, Profile, System, require


class EngineKind(ABC):
    """What builds and serves engines of one kind.

    Attributes:
        devices: What the engines run on, in the plural: "cores" or "GPUs".
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
        """Return the commands (`tensorrt_llm.Command`) that are due for an engine; none if it is made in a moment."""
        return ()

    def check(self, due: list[tuple[Expert, Path, tuple]]) -> None:
        """Refuse, before anything is built, engines that cannot be built here; `due` holds their due commands."""

    @abstractmethod
    def build(self, expert: Expert, folder: Path, seed: int, weights: Path | None) -> None:
        """Make an engine unless it is there; `weights` is a folder of real weights, None for dummies."""

    @abstractmethod
    def write(self, repository: Path, model: str, engine: Path, expert: Expert, place: tuple[int, ...]) -> None:
        """Write the Triton model that serves an engine on these devices."""

    @abstractmethod
    def server(
        self, repository: Path, models: Sequence[str], port: int | None, container: str | None, apart: bool
    ) -> AbstractContextManager:
        """Return a server of these models as a context manager.

        Args:
            port: Where it listens for gRPC; None lets the system choose.
            container: Container engine that runs it, docker or podman; None for this machine's own programs.
            apart: Whether each model gets a server of its own.
        """

    @abstractmethod
    def available(self) -> str | None:
        """Return why this machine cannot serve such engines, None if it can."""

    @abstractmethod
    def checks(self, profile: Profile) -> list[tuple[str, str, bool | None, str]]:
        """Return what the engines need of this machine: name, what is there, whether it will do (None: partly), advice."""

    @abstractmethod
    def disk_bytes(self, profile: Profile, experts: Sequence[Expert]) -> float:
        """Return the bytes that the engines of a profile's experts take."""


# A profile's `engine`, and the class of that kind (or its dotted name, so that only what is used is imported).
ENGINE_KINDS: dict[str, str | type[EngineKind]] = {
    "tiny": "erlab.serving.engines.on_cores.TinyEngines",
    "tensorrt-llm": "erlab.serving.engines.on_gpus.TensorRTLLM",
    "gpu": "erlab.serving.engines.onegpu.OneGPU",
    "gpu-tensorrt-llm": "erlab.serving.engines.onegpu.OneGPUTensorRTLLM",
    "gpu-trtllm-serve": "erlab.serving.engines.onegpu.OneGPUTrtllmServe",
    "gpu-vllm": "erlab.serving.engines.onegpu.OneGPUVllm",
    "gpu-embedded": "erlab.serving.engines.onegpu.OneGPUEmbedded",
}


def kind(profile: Profile) -> EngineKind:
    """Return the kind of engines that a profile names."""
    allowed = f"be one of {', '.join(ENGINE_KINDS)}"
    require(profile.engine in ENGINE_KINDS, "engine", f"profile {profile.name}", allowed, profile.engine)
    entry = ENGINE_KINDS[profile.engine]
    return (resolve_name(entry) if isinstance(entry, str) else entry)()


def unused(profile: Profile) -> set[str]:
    """Return the modules of the other kinds of engines: what they do changes no result of this profile."""
    modules = {name: entry.rpartition(".")[0] for name, entry in ENGINE_KINDS.items() if isinstance(entry, str)}
    own = modules.get(profile.engine)
    needed = fingerprint.code_of(f"import {own}", [__name__]) if own else ()  # without this table, which names all
    return set(modules.values()) - set(needed)


def slug(name: str) -> str:
    """Return a name as folders have it.

    >>> slug("Llama 3 8B-FP16")
    'llama-3-8b-fp16'
    """
    return name.replace(" ", "-").lower()
