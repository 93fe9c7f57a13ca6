"""The kinds of engines that a profile's experts run on, in one table: all that differs between them is here.

>>> from erlab import paper, profiles
>>> laptop = profiles.profile("laptop")
>>> family(laptop).scale(paper.SYSTEMS["v2"]["D"], laptop, 4, 32).title
'tiny 70B int8, 1 core, 4 experts'
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from erlab import machine, paper
from erlab.serving import scaling
from erlab.spec import Expert, Profile, System, require


@dataclass(frozen=True)
class Family:
    """What builds and serves engines of one kind.

    devices: what they run on, in the plural.
    scale(system, to, devices, max_batch_size): what plays a row of Table I on that many devices.
    engine_name(expert): the name of its engine's folder; experts of the same name share the engine.
    plan(expert, folder, weights): the commands (`tensorrt_llm.Command`) that are due for its engine; none where it is
        there, or made in a moment.
    check(due): refuses what cannot be built here, (expert, folder, due commands) an engine, before any is.
    build(expert, folder, seed, weights): makes the engine, unless it is there; `weights`: a folder of real weights,
        None for dummies.
    write(repository, model, engine, expert, place): writes the Triton model that serves the engine on these devices.
    server(repository, models, port, container, apart): a context manager with the interface of `erlab.serving.triton.Server`;
        `container`: the container engine that is to run it, `apart`: whether each model gets a server of its own.
    available(): why this machine cannot serve them, None if it can.
    checks(to): what was looked at for them on this machine: name, what was found, whether it will do (None: in part)
        and advice, as `environment.Check` has them.
    disk_bytes(to): what all engines of a profile take.
    describe(to, folders, weights): what building and serving them will run, to be read first; empty where it takes a
        moment.
    together: whether one server may hold engines that are not asked, because idle they cost little.
    """

    devices: str
    scale: Callable[[System, Profile, int, int], System]
    engine_name: Callable[[Expert], str]
    plan: Callable[[Expert, Path, Path | None], tuple]
    check: Callable[[list], object]
    build: Callable[[Expert, Path, int, Path | None], object]
    write: Callable[[Path, str, Path, Expert, tuple[int, ...]], object]
    server: Callable[[Path, tuple[str, ...], int | None, str | None, bool], AbstractContextManager]
    available: Callable[[], str | None]
    checks: Callable[[Profile], list[tuple[str, str, bool | None, str]]]
    disk_bytes: Callable[[Profile], float]
    describe: Callable[..., str]
    together: bool


def family(to: Profile) -> Family:
    """The kind of engines that a profile names."""
    require(to.engine in FAMILIES, "engine", f"profile {to.name}", f"be one of {', '.join(FAMILIES)}", to.engine)
    return FAMILIES[to.engine]


def slug(name: str) -> str:
    """A name as folders have it.

    >>> slug("Llama 3 8B-FP16")
    'llama-3-8b-fp16'
    """
    return name.replace(" ", "-").lower()


# ---- tiny Llamas on CPU cores, behind the embedded Triton


def _scale_to_cores(system: System, to: Profile, cores: int, max_batch_size: int) -> System:
    """Every core plays an equal share of the paper's GPUs."""
    original = system.expert
    width = max(1, cores * original.tensor_parallel // paper.GPUS)
    longest_in, longest_out = to.workload.input_tokens.maximum, to.workload.output_tokens.maximum
    full = original.max_batch_size * original.max_sequence_tokens
    share = min(1.0, paper.kv_pool_tokens(original) / full)
    expert = replace(
        original,
        model=to.models[original.model.name],
        precision=to.precisions[original.precision.name],
        tensor_parallel=1,
        cores=1 if system.router else width,
        max_batch_size=max_batch_size,
        max_input_tokens=longest_in,
        max_output_tokens=longest_out,
        kv_tokens=max(longest_in + longest_out, int(share * max_batch_size * (longest_in + longest_out))),
    )
    return replace(system, expert=expert, count=cores if system.router else max(1, cores // width))


def _plan_tiny(expert: Expert, folder: Path, weights: Path | None) -> tuple:
    require(weights is None, "weights", "a tiny engine", "be None (its weights are seeded dummies)", str(weights))
    return ()


def _build_tiny(expert: Expert, folder: Path, seed: int, weights: Path | None) -> None:
    from erlab.serving.engines import tiny

    tiny.build(folder, expert.model, expert.precision, seed)


def _write_tiny(repository: Path, model: str, engine: Path, expert: Expert, cores: tuple[int, ...]) -> None:
    from erlab.serving.triton import repository as models

    models.write_tiny(repository, model, engine, expert, cores)


def _embedded(
    repository: Path, models: tuple[str, ...], port: int | None, container: str | None, apart: bool
) -> AbstractContextManager:
    from erlab.serving.triton import Server

    require(container is None, "container", "the embedded Triton", "be None", container)
    require(not apart, "apart", "the embedded Triton", "be False", apart)
    return Server(repository, models, grpc_port=port)


def _embedded_available() -> str | None:
    from erlab.serving.triton import server

    return server.available()


def _check_embedded(to: Profile) -> list[tuple[str, str, bool | None, str]]:
    from erlab import provenance

    reason = _embedded_available()
    advice = "nothing is measured here, only simulated, unless --triton HOST:PORT names a running one"
    found = ("Triton server", reason, None, advice)
    if not reason:
        found = ("Triton server", f"nvidia-pytriton {provenance.version('nvidia-pytriton')}", True, "")
    gpus = machine.gpus()
    return [found, ("GPU", ", ".join(gpus) if gpus else "none seen", True, "" if gpus else "none is needed")]


def _tiny_bytes(to: Profile) -> float:
    bits = {p.weight_bits for p in to.precisions.values()}
    return sum(m.parameters * b / 8 for m in to.models.values() for b in bits)


# ---- TensorRT-LLM on GPUs


def _scale_to_gpus(system: System, to: Profile, gpus: int, max_batch_size: int) -> System:
    """The system itself, on all of the GPUs."""
    width = system.expert.tensor_parallel
    require(width <= gpus, "tensor_parallel", f"system {system.name}", f"be at most the {gpus} GPUs", width)
    expert = replace(
        system.expert,
        model=to.models[system.expert.model.name],
        precision=to.precisions[system.expert.precision.name],
        max_batch_size=max_batch_size,
    )
    return replace(system, expert=expert, count=gpus // width)


def _trtllm_name(expert: Expert) -> str:
    width, batch = expert.tensor_parallel, expert.max_batch_size
    return slug(f"{expert.model.name}-{expert.precision.name}-tp{width}-batch{batch}")


def _plan_trtllm(expert: Expert, folder: Path, weights: Path | None) -> tuple:
    from erlab.serving.engines import trtllm_build

    return trtllm_build.plan(expert, folder, weights)


def _check_trtllm(due: list) -> None:
    from erlab.serving.engines import trtllm_build

    trtllm_build.check(due)


def _build_trtllm(expert: Expert, folder: Path, seed: int, weights: Path | None) -> None:
    from erlab.serving.engines import trtllm_build

    trtllm_build.build(expert, folder, weights)


def _write_trtllm(repository: Path, model: str, engine: Path, expert: Expert, gpus: tuple[int, ...]) -> None:
    from erlab.serving.engines import trtllm_build
    from erlab.serving.triton import repository as models

    models.write_trtllm(repository, model, trtllm_build.load(engine, expert), expert, gpus, engine / "tokenizer")


def _check_gpus(to: Profile) -> list[tuple[str, str, bool | None, str]]:
    from erlab.serving.engines import trtllm_machine

    return trtllm_machine.checks(to)


def _trtllm_bytes(to: Profile) -> float:
    from erlab.serving.engines import tensorrt_llm

    planned = [tensorrt_llm.commands(expert, "engine") for expert in scaling.experts(to)]
    return sum(command.disk_bytes for commands in planned for command in commands)


def _describe_trtllm(to: Profile, folders, weights: str | Path | None) -> str:
    from erlab.study import plan

    return plan.text(to, folders, weights)


def _llm_available() -> str | None:
    from erlab.serving.triton import llm

    return llm.available()


def _llm_server(
    repository: Path, models: tuple[str, ...], port: int | None, container: str | None, apart: bool
) -> AbstractContextManager:
    from erlab.serving.triton import llm

    if apart:
        require(port is None, "port", "servers apart", "be None", port)
        return llm.Apart(repository, models, container=container)
    return llm.LLMServer(repository, models, grpc_port=port, container=container)


# ---- one GPU, by whatever this machine has


def _one_gpu(engine: str | None) -> Family:
    """The family of one engine of `onegpu.ORDER`; of the first that is there for None."""

    def module():
        from erlab.serving.engines import onegpu

        return onegpu

    def write(repository: Path, model: str, folder: Path, expert: Expert, gpus: tuple[int, ...]) -> None:
        from erlab.serving.engines import openai_models

        if (folder / "openai.json").is_file():
            openai_models.write(repository, model, folder, expert, module().gpu())
        else:
            _write_trtllm(repository, model, folder, expert, gpus)

    def server(
        repository: Path, models: tuple[str, ...], port: int | None, container: str | None, apart: bool
    ) -> AbstractContextManager:
        from erlab.serving.engines import openai_server

        if not (repository / models[0] / "server.json").is_file():
            return _llm_server(repository, models, port, container, apart)
        allowed = "be left out, since no container runs that (profile gpu-tensorrt-llm has one)"
        require(container is None, "container", "an OpenAI-compatible server", allowed, container)
        return openai_server.OpenAIServers(repository, models, port)

    return Family(
        devices="GPUs",
        scale=lambda *arguments: module().scale(*arguments),
        engine_name=_trtllm_name,
        plan=lambda *arguments: module().plan(engine, *arguments),
        check=lambda due: module().check(engine, due),
        build=lambda *arguments: module().build(engine, *arguments),
        write=write,
        server=server,
        available=lambda: module().available(engine),
        checks=lambda to: module().checks(engine, to),
        disk_bytes=lambda to: module().disk_bytes(engine, to),
        describe=lambda *arguments: module().describe(engine, *arguments),
        together=False,
    )


FAMILIES = {
    "tiny": Family(
        devices="cores",
        scale=_scale_to_cores,
        engine_name=lambda expert: slug(f"{expert.model.name}-{expert.precision.name}"),
        plan=_plan_tiny,
        check=lambda due: None,
        build=_build_tiny,
        write=_write_tiny,
        server=_embedded,
        available=_embedded_available,
        checks=_check_embedded,
        disk_bytes=_tiny_bytes,
        describe=lambda to, folders, weights: "",
        together=True,
    ),
    "tensorrt-llm": Family(
        devices="GPUs",
        scale=_scale_to_gpus,
        engine_name=_trtllm_name,
        plan=_plan_trtllm,
        check=_check_trtllm,
        build=_build_trtllm,
        write=_write_trtllm,
        server=_llm_server,
        available=_llm_available,
        checks=_check_gpus,
        disk_bytes=_trtllm_bytes,
        describe=_describe_trtllm,
        together=False,
    ),
    "gpu": _one_gpu(None),
    **{f"gpu-{engine}": _one_gpu(engine) for engine in ("tensorrt-llm", "trtllm-serve", "vllm", "embedded")},
}
