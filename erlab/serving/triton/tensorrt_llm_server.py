"""Triton with TensorRT-LLM's backend, installed on this machine or in NVIDIA's container.

    with TensorRTLLMServer(repository, ("A-replica-0", "A-replica-1")) as server:
        print("".join(kserve.generate(server.grpc, "A-replica-0", "What is a watt?", 16, timeout=60)))

`models` are ensembles that `repository.write_trtllm` wrote. One server has all of them in TensorRT-LLM's orchestrator
mode: Triton starts the engines' processes on the GPUs that the models name. `ServersApart` starts one server per model
instead, for models of one GPU each. `keeper` removes the servers at the end. A server that ends by itself is not
started again.

As with the embedded server, HTTP is closed and `server.RESTRICTED` calls need a key; nobody has it, since no model is
loaded later. The server gets its models by harmless paths (`private`), also in the container.
"""

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import grpc
from google.protobuf import text_format
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.grpc.model_config_pb2 import ModelConfig

from erlab import machine
from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.serving import nvidia
from erlab.serving.servers import ModelServer, ServerGroup
from erlab.serving.triton import private
from erlab.serving.triton.process import ServerProcess, launch
from erlab.serving.triton.repository import PARTS
from erlab.serving.triton.server import HOST, PORTS, START_ATTEMPTS, closed, free_ports
from erlab.spec import require

ORCHESTRATOR = {"TRTLLM_ORCHESTRATOR": "1"}
_INSTALLED = "/opt/tritonserver/bin"
_PREFIX = "erlab-llm-"  # of private folders, and so of containers' names
_KILL_SECONDS = 30  # how long a server may take to end


def available() -> str | None:
    """Return why this machine cannot start such a server; None if it can. Container engines are not contacted."""
    if not machine.gpus():
        return "no GPU answers (nvidia-smi)"
    if native() or any(map(machine.find, nvidia.CONTAINERS)):
        return None
    return f"neither tritonserver with TensorRT-LLM's backend, nor docker or podman to run it in {nvidia.IMAGE}"


def arguments(
    repository: Path,
    models: Sequence[str],
    ports: Sequence[int],
    gpus: Sequence[int],
    program: str = "tritonserver",
    host: str = HOST,
    prefix: str = "erlab-",
) -> tuple[str, ...]:
    """Return the command that starts Triton for TensorRT-LLM, as NVIDIA's launch script does."""
    return (
        *("mpirun", "--allow-run-as-root", "-n", "1", program),
        *(f"--model-repository={repository}", "--model-control-mode=explicit"),
        *(f"--load-model={model}" for model in models),
        *closed(secrets.token_urlsafe()),
        *("--disable-auto-complete-config", f"--backend-config=python,shm-region-prefix-name={prefix}"),
        *("--pinned-memory-pool-byte-size=0", "--enable-peer-access=false"),  # otherwise it takes memory on every GPU
        *(f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in gpus),
        *(f"--{name}-address={host}" for name in PORTS),
        *(f"--{name}-port={port}" for name, port in zip(PORTS, ports, strict=True)),
    )


def in_container(
    engine: str,
    repository: Path,
    models: Sequence[str],
    ports: Sequence[int],
    gpus: Sequence[int],
    folders: Sequence[str | Path] | Mapping[str | Path, str | Path],
    name: str = "erlab-triton",
    orchestrate: bool = True,
) -> tuple[str, ...]:
    """Return the command by which docker or podman runs the server, with ports on this machine's loopback."""
    inside = arguments(repository, models, ports, gpus, host="0.0.0.0")
    variables = ORCHESTRATOR if orchestrate else {}
    places = folders if isinstance(folders, Mapping) else {folder: folder for folder in folders}
    return nvidia.contained(engine, inside, name, {repository: repository, **places}, ports, variables)


class TensorRTLLMServer(ServerProcess, ModelServer):
    """A Triton server of TensorRT-LLM models on the loopback, started on `__enter__` and stopped on `__exit__`.

    Args:
        models: Names of ensembles in it, at least one.
        container: docker or podman; None for the installed Triton or, without one, the first that is installed.
        orchestrate: Whether Triton runs in orchestrator mode; False for one model on one GPU, whose engine then runs in
            the server's process.
    """

    def __init__(
        self,
        repository: Path,
        models: Sequence[str],
        *,
        grpc_port: int | None = None,
        container: str | None = None,
        orchestrate: bool = True,
        timeout: float = 1800.0,
    ):
        self._repository, self.models = Path(repository).resolve(), tuple(models)
        owner = "TensorRTLLMServer"
        require(len(self.models) > 0, "models", owner, "name at least one model", models)
        require(orchestrate or len(models) == 1, "models", owner, "be one without an orchestrator", models)
        require(grpc_port is None or 1 <= grpc_port <= 65535, "grpc_port", owner, "be from 1 to 65535", grpc_port)
        self._parameters = [parameters(self._repository, model) for model in self.models]
        self._gpus = sorted({int(gpu) for p in self._parameters for gpu in p["gpu_device_ids"].split(",")})
        self._requested_ports, self._container = (grpc_port, None), container
        self._orchestrate, self._timeout = orchestrate, timeout
        self.grpc = self._metrics = self._name = None
        self._starts = 0

    def commands(self, first_port: int = 8000, name: str = "erlab-triton") -> list[tuple[str, ...]]:
        """Return the command that starts the server by hand, in its container if it has one.

        Args:
            first_port: gRPC and metrics listen on the two ports after it.
        """
        folders = self._folders()
        for path in (self._repository, *folders):
            if not private.harmless(path):
                allowed = f"have only {private.HARMLESS} to be given to Triton by hand (erlab serve maps others)"
                raise ErlabError(f"{path}: the path must {allowed}.")
        return [self._command((first_port + 1, first_port + 2), name, self._repository, folders)]

    def _folders(self) -> list[str]:
        """Return the engine folders, which also hold the tokenizers."""
        return sorted({str(Path(p["gpt_model_path"]).parent) for p in self._parameters})

    def _command(
        self,
        ports: Sequence[int],
        name: str,
        repository: Path,
        folders: Sequence[str | Path] | Mapping[str | Path, str | Path],
    ) -> tuple[str, ...]:
        common = (repository, self.models, ports, self._gpus)
        if not self._container:
            return arguments(*common, program=native(), prefix=f"{name}-")
        return in_container(self._container, *common, folders, name, self._orchestrate)

    def start(self) -> None:
        if reason := available():
            raise ErlabError(f"Triton cannot run here: {reason}. Name one that runs: --triton HOST:PORT.")
        if (count := len(machine.gpus())) <= self._gpus[-1]:
            raise ErlabError(f"The models are for GPUs {', '.join(map(str, self._gpus))}, and {count} are here.")
        if self._container or not native():
            self._container = nvidia.container(self._container)
        self._starts += 1
        ports = free_ports(self._requested_ports)
        self.grpc, self._metrics = (f"{HOST}:{port}" for port in ports)
        for name in private.sweep(_PREFIX):
            for engine in filter(machine.find, nvidia.CONTAINERS):
                nvidia.remove(engine, name)
        with private.folder(_PREFIX) as (folder, lock):
            self.log, self._name = folder.with_suffix(".log"), folder.name
            places = self._copy_models(folder)
            environment = machine.environment() | {"TMPDIR": str(folder.parent)}
            environment |= ORCHESTRATOR if self._orchestrate else {}
            with open(self.log, "wb") as output:
                command = self._command(ports, self._name, folder / "models", places)
                self._keeper = launch(command, folder, lock, _KILL_SECONDS, environment, output)

    def _copy_models(self, folder: Path) -> dict[str | Path, str | Path]:
        """Copy the models to ``folder/models``; return the engine folders by their paths for the server."""
        parts = [f"{model}{part}" for model in self.models for part in PARTS]
        places = private.copy_models(self._repository, parts, folder, linked=not self._container)
        if self._container:
            return {path: path for path in self._folders() if private.harmless(path)} | places
        return places

    def wait(self) -> None:
        """Return when every model has answered a probe; ErlabError with the end of the log where one does not."""
        deadline = time.monotonic() + self._timeout
        with grpc.insecure_channel(self.grpc, options=kserve.CHANNEL_OPTIONS) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for model in self.models:
                while not _ready(stub, model):
                    if not self.alive():
                        complaint = self._complaint()
                        if "already in use" not in complaint or self._starts == START_ATTEMPTS:
                            raise ErlabError(f"Triton did not start: {complaint}")
                        self._stop(keep_log=False)  # another process took a port that was chosen
                        self.start()
                        return self.wait()
                    if time.monotonic() > deadline:
                        raise ErlabError(f"{model} was not ready within {self._timeout:g} s: {self._complaint()}")
                    time.sleep(0.1)
        for model in self.models:
            for _ in kserve.generate(self.grpc, model, "ready?", 1, max(deadline - time.monotonic(), 1)):
                pass

    def _stop(self, keep_log: bool) -> None:
        running = self._keeper is not None
        super()._stop(keep_log)
        if running and self._container:
            nvidia.remove(self._container, self._name)

    def _complaint(self) -> str:
        """Return the errors in the server's log in one line, and the path of the log."""
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
        errors = [line for line in lines if re.match(r"E\d{4} |\[TensorRT-LLM\]\[ERROR\]|error: ", line)]
        words = errors[-3:] or [line for line in lines if line][-3:] or ["it wrote no log"]
        return f"{' | '.join(words)}. Its log: {self.log}."


class ServersApart(ServerGroup):
    """One server per model, each on its own GPU, behind the interface of one server."""

    def __init__(self, repository: Path, models: Sequence[str], *, container: str | None = None):
        for model in models:
            gpus = parameters(repository, model)["gpu_device_ids"]
            require("," not in gpus, "models", "ServersApart", "take one GPU each", f"{model} on {gpus}")
        self.models = tuple(models)
        self._servers = [
            TensorRTLLMServer(repository, (model,), container=container, orchestrate=False) for model in models
        ]

    @property
    def grpc(self) -> str:
        """Address of the first server; `upstreams` has all."""
        return self._servers[0].grpc

    @property
    def upstreams(self) -> tuple[str, ...]:
        return tuple(f"grpc://{server.grpc}/{model}" for server, model in zip(self._servers, self.models))

    @property
    def metrics(self) -> dict[str, str]:
        return {name: page for s in self._servers for name, page in zip(s.models, s.metrics.values())}

    def commands(self, first_port: int = 8000) -> list[tuple[str, ...]]:
        """Return one command per server, with ports from `first_port`, `first_port` + 10 and so on."""
        ports = ((server, first_port + 10 * i) for i, server in enumerate(self._servers))
        return [c for server, port in ports for c in server.commands(port, f"erlab-{server.models[0]}")]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self._servers:
                stack.push(server)
                server.start()
            for server in self._servers:
                server.wait()
            self._stack = stack.pop_all()
        return self


def parameters(repository: Path, ensemble: str) -> dict[str, str]:
    """Return the parameters of an ensemble's engine model, as `repository.write_trtllm` wrote them."""
    file = Path(repository) / f"{ensemble}-tensorrt_llm" / "config.pbtxt"
    if not file.is_file():
        raise ErlabError(f"{repository}: no TensorRT-LLM model {ensemble} there.")
    config = text_format.Parse(file.read_text(encoding="utf-8"), ModelConfig())
    return {key: value.string_value for key, value in config.parameters.items()}


def native() -> str | None:
    """Return the path of an installed tritonserver with TensorRT-LLM's backend and MPI, None without one."""
    program = machine.find("tritonserver", _INSTALLED)
    backend = program and (Path(program).resolve().parent.parent / "backends" / "tensorrtllm").is_dir()
    return program if backend and machine.find("mpirun") else None


def _ready(stub, model: str) -> bool:
    with suppress(grpc.RpcError):
        return stub.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=5).ready
    return False
