"""NVIDIA's Triton with TensorRT-LLM's backend as a context manager: this machine's own, or the one in its container.

    with LLMServer(repository, ("A-replica-0", "A-replica-1")) as server:
        print("".join(kserve.generate(server.grpc, "A-replica-0", "What is a watt?", 16, timeout=60)))

`models` are ensembles that `repository.write_trtllm` wrote; their parts come with them. One server holds all of them
in TensorRT-LLM's orchestrator mode: Triton starts the engines' processes on the GPUs that the models name. `Apart` is
the alternative, a server a GPU, each for one model of one GPU. `keeper` sees to it that nothing is left behind. A
server that ends by itself stays dead: a sweep notices that and says so.

As with the embedded server, HTTP is closed and `server.RESTRICTED` calls need a key, which here nobody holds: nothing
is ever loaded again. The server gets its models by harmless paths (`private`), in the container as well.
"""

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
from google.protobuf import text_format
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.grpc.model_config_pb2 import ModelConfig

from erlab import machine
from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.serving import nvidia
from erlab.serving.triton import private
from erlab.serving.triton.kept import Kept, launch
from erlab.serving.triton.repository import PARTS
from erlab.serving.triton.server import closed, free_ports
from erlab.spec import require

ORCHESTRATOR = {"TRTLLM_ORCHESTRATOR": "1"}
_INSTALLED = "/opt/tritonserver/bin"
_HOST = "127.0.0.1"
_PORTS = ("grpc", "metrics")
_PREFIX = "erlab-llm-"  # of private folders, and so of containers' names
_START_ATTEMPTS = 5  # a port chosen by the system may be taken before Triton binds it
_KILL_SECONDS = 30  # how long a server may take to end


def available() -> str | None:
    """Why no such server can be started on this machine; None if one can. No container engine is asked to answer."""
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
    host: str = _HOST,
    prefix: str = "erlab-",
) -> tuple[str, ...]:
    """How NVIDIA's launch script starts Triton for TensorRT-LLM, with only these models and listening on `host`.

    `ports`: gRPC and metrics. `gpus`: all that the engines use. `prefix`: of the shared memory's names.
    """
    return (
        *("mpirun", "--allow-run-as-root", "-n", "1", program),
        *(f"--model-repository={repository}", "--model-control-mode=explicit"),
        *(f"--load-model={model}" for model in models),
        *closed(secrets.token_urlsafe()),
        *("--disable-auto-complete-config", f"--backend-config=python,shm-region-prefix-name={prefix}"),
        *("--pinned-memory-pool-byte-size=0", "--enable-peer-access=false"),  # or it takes memory on every GPU
        *(f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in gpus),
        *(f"--{name}-address={host}" for name in _PORTS),
        *(f"--{name}-port={port}" for name, port in zip(_PORTS, ports, strict=True)),
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
    """The command by which docker or podman runs that server, its ports published on our loopback.

    `folders`: where the models' engines and tokenizers are; a mapping says at which paths inside each is found.
    """
    inside = arguments(repository, models, ports, gpus, host="0.0.0.0")
    variables = ORCHESTRATOR if orchestrate else {}
    places = folders if isinstance(folders, Mapping) else {folder: folder for folder in folders}
    return nvidia.contained(engine, inside, name, {repository: repository, **places}, ports, variables)


class LLMServer(Kept):
    """A Triton server of TensorRT-LLM models, started on `__enter__` and stopped on `__exit__`.

    `container`: docker or podman; None for this machine's own Triton or, without one, whichever of them is there.
    `orchestrate`: False for a single model on one GPU, whose engine then runs in the server's own process. Ports are on
    the loopback, chosen by the system unless given. `timeout` bounds the start, in seconds: large engines load for
    minutes. Attributes as `erlab.serving.triton.Server`'s. Raises ErlabError for models that aren't there, where no such server
    can be started, and with the server's own words where it does not come up.
    """

    def __init__(
        self,
        repository: Path,
        models: Sequence[str],
        *,
        grpc_port: int | None = None,
        container: str | None = None,
        orchestrate: bool = True,
        log: Path | None = None,
        timeout: float = 1800.0,
    ):
        self._repository, self.models = Path(repository).resolve(), tuple(models)
        require(len(self.models) > 0, "models", "LLMServer", "name at least one model", models)
        require(orchestrate or len(models) == 1, "models", "LLMServer", "be one without an orchestrator", models)
        require(grpc_port is None or 1 <= grpc_port <= 65535, "grpc_port", "LLMServer", "be from 1 to 65535", grpc_port)
        self._parameters = [parameters(self._repository, model) for model in self.models]
        self._gpus = sorted({int(gpu) for p in self._parameters for gpu in p["gpu_device_ids"].split(",")})
        self._asked_ports, self._container = (grpc_port, None), container
        self._orchestrate, self._timeout = orchestrate, timeout
        self.grpc = self.metrics = self._name = None
        self.log, self._temporary_log = Path(log).resolve() if log else None, log is None
        self.restarts = self._starts = 0

    @property
    def upstreams(self) -> tuple[str, ...]:
        """What a gateway in front calls the models."""
        return self.models

    def commands(self, first_port: int = 8000, name: str = "erlab-triton") -> list[tuple[str, ...]]:
        """The command that starts the server, in its container if that is how it runs, for other hands: on Triton's
        usual ports from `first_port` on, gRPC and metrics. Raises ErlabError for a path that Triton cannot take."""
        folders = self._folders()
        for path in (self._repository, *folders):
            if not private.harmless(path):
                allowed = f"have only {private.HARMLESS} to be given to Triton by hand (erlab serve maps others)"
                raise ErlabError(f"{path}: the path must {allowed}.")
        return [self._command((first_port + 1, first_port + 2), name, self._repository, folders)]

    def _folders(self) -> list[str]:
        """Where the engines are, with their tokenizers beside them."""
        return sorted({str(Path(p["gpt_model_path"]).parent) for p in self._parameters})

    def _command(
        self,
        ports: Sequence[int],
        name: str,
        repository: Path,
        folders: Sequence[str | Path] | Mapping[str | Path, str | Path],
    ) -> tuple[str, ...]:
        asked = (repository, self.models, ports, self._gpus)
        if not self._container:
            return arguments(*asked, program=native(), prefix=f"{name}-")
        return in_container(self._container, *asked, folders, name, self._orchestrate)

    def start(self) -> None:
        """Start it without waiting."""
        if reason := available():
            raise ErlabError(f"Triton cannot run here: {reason}. Name one that runs: --triton HOST:PORT.")
        if (there := len(machine.gpus())) <= self._gpus[-1]:
            raise ErlabError(f"The models are for GPUs {', '.join(map(str, self._gpus))}, and {there} are here.")
        if self._container or not native():
            self._container = nvidia.container(self._container)
        self._starts += 1
        ports = free_ports(self._asked_ports)
        self.grpc, self.metrics = (f"{_HOST}:{port}" for port in ports)
        for name in private.sweep(_PREFIX):
            for engine in filter(machine.find, nvidia.CONTAINERS):
                nvidia.remove(engine, name)
        with private.folder(_PREFIX) as (folder, lock):
            self.log = self.log or folder.with_suffix(".log")
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._name = folder.name
            places = self._copy_models(folder)
            environment = machine.environment() | {"TMPDIR": str(folder.parent)}
            environment |= ORCHESTRATOR if self._orchestrate else {}
            with open(self.log, "wb") as output:
                command = self._command(ports, self._name, folder / "models", places)
                self._keeper = launch(command, folder, lock, _KILL_SECONDS, environment, output)

    def _copy_models(self, folder: Path) -> dict[str | Path, str | Path]:
        """Write the server's own repository ``folder/models``; the engines' folders, by their paths for the server."""
        parts = [f"{model}{part}" for model in self.models for part in PARTS]
        places = private.copy_models(self._repository, parts, folder, linked=not self._container)
        if self._container:
            return {path: path for path in self._folders() if private.harmless(path)} | places
        for link, real in places.items():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(real)
        return places

    def wait(self) -> None:
        """Wait until every model has answered a probe."""
        deadline = time.monotonic() + self._timeout
        with grpc.insecure_channel(self.grpc, options=kserve.CHANNEL_OPTIONS) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for model in self.models:
                while not _ready(stub, model):
                    if not self.alive():
                        complaint = self._complaint()
                        if "already in use" not in complaint or self._starts == _START_ATTEMPTS:
                            raise ErlabError(f"Triton did not start: {complaint}")
                        self._stop(keep_log=False)  # somebody took a port between our choice and its start
                        self.start()
                        return self.wait()
                    if time.monotonic() > deadline:
                        raise ErlabError(f"{model} was not ready within {self._timeout:g} s: {self._complaint()}")
                    time.sleep(0.1)
        for model in self.models:
            for _ in kserve.generate(self.grpc, model, "ready?", 1, max(deadline - time.monotonic(), 1)):
                pass

    def _stop(self, keep_log: bool) -> None:
        if self._keeper:
            self._keeper.terminate()
            self._keeper.wait()
            if self._container:
                nvidia.remove(self._container, self._name)
        self._keeper = None
        if self._temporary_log and self.log and not keep_log:
            self.log.unlink(missing_ok=True)

    def _complaint(self) -> str:
        """What the server's log says went wrong, in a line, and where the log is."""
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
        errors = [line for line in lines if re.match(r"E\d{4} |\[TensorRT-LLM\]\[ERROR\]|error: ", line)]
        words = errors[-3:] or [line for line in lines if line][-3:] or ["it wrote no log"]
        return f"{' | '.join(words)}. Its log: {self.log}."


class Apart:
    """A server a model, each on its own GPU, with the interface of one server; for models of one GPU."""

    def __init__(self, repository: Path, models: Sequence[str], *, container: str | None = None, **options):
        for model in models:
            gpus = parameters(repository, model)["gpu_device_ids"]
            require("," not in gpus, "models", "Apart", "take one GPU each", f"{model} on {gpus}")
        self.models, self.restarts = tuple(models), 0
        self._servers = [
            LLMServer(repository, (model,), container=container, orchestrate=False, **options) for model in models
        ]

    @property
    def grpc(self) -> str:
        """The first one's address: who asks all of them needs `upstreams`."""
        return self._servers[0].grpc

    @property
    def upstreams(self) -> tuple[str, ...]:
        return tuple(f"grpc://{server.grpc}/{model}" for server, model in zip(self._servers, self.models))

    @property
    def metrics(self) -> dict[str, str]:
        """Where each tells its metrics, by its model."""
        return {model: server.metrics for server, model in zip(self._servers, self.models)}

    def commands(self, first_port: int = 8000) -> list[tuple[str, ...]]:
        """A command a server, each with ports of its own from 8000, 8010 and so on."""
        placed = ((server, first_port + 10 * i) for i, server in enumerate(self._servers))
        return [c for server, port in placed for c in server.commands(port, f"erlab-{server.models[0]}")]

    @property
    def log(self) -> Path | None:
        """That of the first that has died, or of the first."""
        return next((s.log for s in self._servers if not s.alive()), self._servers[0].log)

    def __enter__(self) -> "Apart":
        with ExitStack() as stack:
            for server in self._servers:
                stack.push(server)
                server.start()
            for server in self._servers:
                server.wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def alive(self) -> bool:
        return all(server.alive() for server in self._servers)


def parameters(repository: Path, ensemble: str) -> dict[str, str]:
    """The parameters of an ensemble's engine model, as `repository.write_trtllm` wrote them."""
    file = Path(repository) / f"{ensemble}-tensorrt_llm" / "config.pbtxt"
    if not file.is_file():
        raise ErlabError(f"{repository}: no TensorRT-LLM model {ensemble} there.")
    found = text_format.Parse(file.read_text(encoding="utf-8"), ModelConfig()).parameters
    return {key: value.string_value for key, value in found.items()}


def native() -> str | None:
    """This machine's own tritonserver, if TensorRT-LLM's backend and MPI are there too."""
    program = machine.find("tritonserver", _INSTALLED)
    backend = program and (Path(program).resolve().parent.parent / "backends" / "tensorrtllm").is_dir()
    return program if backend and machine.find("mpirun") else None


def _ready(stub, model: str) -> bool:
    with suppress(grpc.RpcError):
        return stub.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=5).ready
    return False
