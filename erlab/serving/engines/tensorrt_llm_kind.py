"""Engine kind of a DGX: TensorRT-LLM engines on GPUs behind a Triton with its backend."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from erlab.serving.engines import tensorrt_llm, tensorrt_llm_build, tensorrt_llm_machine
from erlab.serving.engines.kinds import EngineKind, slug
from erlab.serving.servers import ModelServer
from erlab.serving.triton import repository as triton_models
from erlab.serving.triton import tensorrt_llm_server
from erlab.spec import Expert, Profile, System, require


class TensorRTLLM(EngineKind):
    """Engines built by `trtllm-build`, as many per system as the GPUs hold."""

    devices = "GPUs"

    def scale(self, system: System, profile: Profile, devices: int, max_batch_size: int) -> System:
        width = system.expert.tensor_parallel
        require(width <= devices, "tensor_parallel", f"system {system.name}", f"be at most the {devices} GPUs", width)
        expert = replace(
            system.expert,
            model=profile.models[system.expert.model.name],
            precision=profile.precisions[system.expert.precision.name],
            max_batch_size=max_batch_size,
        )
        return replace(system, expert=expert, count=devices // width)

    def engine_name(self, expert: Expert) -> str:
        width, batch = expert.tensor_parallel, expert.max_batch_size
        return slug(f"{expert.model.name}-{expert.precision.name}-tp{width}-batch{batch}")

    def plan(self, expert: Expert, folder: Path, weights: Path | None) -> tuple:
        return tensorrt_llm_build.plan(expert, folder, weights)

    def check(self, due: list[tuple[Expert, Path, tuple]]) -> None:
        tensorrt_llm_build.check(due)

    def build(self, expert: Expert, folder: Path, seed: int, weights: Path | None) -> None:
        tensorrt_llm_build.build(expert, folder, weights)

    def write(self, repository: Path, model: str, engine: Path, expert: Expert, place: tuple[int, ...]) -> None:
        loaded = tensorrt_llm_build.load(engine, expert)
        triton_models.write_trtllm(repository, model, loaded, expert, place, engine / "tokenizer")

    def server(
        self, repository: Path, models: Sequence[str], port: int | None, container: str | None, apart: bool
    ) -> ModelServer:
        if apart:
            require(port is None, "port", "servers apart", "be None", port)
            return tensorrt_llm_server.ServersApart(repository, models, container=container)
        return tensorrt_llm_server.TensorRTLLMServer(repository, models, grpc_port=port, container=container)

    def available(self) -> str | None:
        return tensorrt_llm_server.available()

    def checks(self, profile: Profile) -> list[tuple[str, str, bool | None, str]]:
        return tensorrt_llm_machine.checks(profile)

    def disk_bytes(self, profile: Profile, experts: Sequence[Expert]) -> float:
        planned = [tensorrt_llm.commands(expert, "engine") for expert in experts]
        return sum(command.disk_bytes for commands in planned for command in commands)
