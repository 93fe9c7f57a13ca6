"""Engine kind of the laptop: tiny Llamas on CPU cores behind the embedded Triton."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from erlab import machine, paper, provenance
from erlab.errors import ErlabError
from erlab.serving.engines import tiny
from erlab.serving.engines.kinds import EngineKind, slug
from erlab.serving.servers import ModelServer
from erlab.serving.triton import repository as triton_models
from erlab.serving.triton import server as triton
from erlab.spec import Expert, Profile, System, require


class TinyEngines(EngineKind):
    """Llamas of a few million seeded parameters; each core stands for an equal share of the paper's GPUs."""

    devices = "cores"
    together = True

    def scale(self, system: System, profile: Profile, devices: int, max_batch_size: int) -> System:
        original = system.expert
        width = max(1, devices * original.tensor_parallel // paper.GPUS)
        longest_in, longest_out = profile.workload.input_tokens.maximum, profile.workload.output_tokens.maximum
        full = original.max_batch_size * original.max_sequence_tokens
        share = min(1.0, paper.kv_pool_tokens(original) / full)
        expert = replace(
            original,
            model=profile.models[original.model.name],
            precision=profile.precisions[original.precision.name],
            tensor_parallel=1,
            cores=1 if system.router else width,
            max_batch_size=max_batch_size,
            max_input_tokens=longest_in,
            max_output_tokens=longest_out,
            kv_tokens=max(longest_in + longest_out, int(share * max_batch_size * (longest_in + longest_out))),
        )
        return replace(system, expert=expert, count=devices if system.router else max(1, devices // width))

    def engine_name(self, expert: Expert) -> str:
        return slug(f"{expert.model.name}-{expert.precision.name}")

    def plan(self, expert: Expert, folder: Path, weights: Path | None) -> tuple:
        require(weights is None, "weights", "a tiny engine", "be None (its weights are seeded dummies)", str(weights))
        return ()

    def build(self, expert: Expert, folder: Path, seed: int, weights: Path | None) -> None:
        tiny.build(folder, expert.model, expert.precision, seed)

    def write(self, repository: Path, model: str, engine: Path, expert: Expert, place: tuple[int, ...]) -> None:
        write_tiny(repository, model, engine, expert, place)

    def server(
        self, repository: Path, models: Sequence[str], port: int | None, container: str | None, apart: bool
    ) -> ModelServer:
        require(container is None, "container", "the embedded Triton", "be None", container)
        require(not apart, "apart", "the embedded Triton", "be False", apart)
        return triton.Server(repository, models, grpc_port=port)

    def available(self) -> str | None:
        return triton.available()

    def checks(self, profile: Profile) -> list[tuple[str, str, bool | None, str]]:
        reason = triton.available()
        advice = "nothing is measured here, only simulated, unless --triton HOST:PORT names a running one"
        server = ("Triton server", reason, None, advice)
        if not reason:
            server = ("Triton server", f"nvidia-pytriton {provenance.version('nvidia-pytriton')}", True, "")
        gpus = machine.gpus()
        return [server, ("GPU", ", ".join(gpus) if gpus else "none seen", True, "" if gpus else "none is needed")]

    def disk_bytes(self, profile: Profile, experts: Sequence[Expert]) -> float:
        bits = {p.weight_bits for p in profile.precisions.values()}
        return sum(m.parameters * b / 8 for m in profile.models.values() for b in bits)


def write_tiny(repository: Path, name: str, engine: Path, expert: Expert, cores: tuple[int, ...]) -> Path:
    """Write the model that serves an engine of a tiny Llama.

    Args:
        cores: CPU cores of its process; empty for no pinning.
    """
    engine = Path(engine).resolve()
    if not engine.is_dir():
        raise ErlabError(f"{engine}: no such engine folder.")
    distinct = len(set(cores)) == len(cores) and all(core >= 0 for core in cores)
    require(distinct, "cores", "write_tiny", "be distinct CPU numbers from 0", cores)
    counted = not cores or expert.cores in (None, len(cores))
    require(counted, "cores", "write_tiny", f"be as many as the expert's {expert.cores}", cores)
    parameters = {
        "engine_dir": str(engine),
        **triton_models.limits(expert),
        "kv_tokens": "" if expert.kv_tokens is None else str(expert.kv_tokens),
        "cores": ",".join(map(str, cores)),
    }
    code = "from erlab.serving.engines.tiny_backend import TritonPythonModel\n"
    return triton_models.write(repository, triton_models.text_model(name, parameters), code)
