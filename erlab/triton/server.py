"""NVIDIA Triton as a context manager: the real ``tritonserver`` binary of the PyPI wheel ``nvidia-pytriton``.

    with Server(repository) as server:
        print("".join(client.generate(server.grpc, server.models[0], "What is a watt?", 16, timeout=30)))

The body begins when every model has answered a probe. Triton never restarts an expert whose process died and goes on
calling itself ready, so a watch unloads and loads such a model; requests that were in flight there may hang until their
deadlines. `keeper` sees to it that nothing is left behind. `Server.attach` gives the same interface to a server that
someone else runs.
"""

import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import socket
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import psutil
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab.errors import ErlabError
from erlab.spec import require
from erlab.triton import client, keeper
from erlab.triton.kept import launch

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_PORTS = ("grpc", "http", "metrics")
_START_ATTEMPTS = 5  # a port chosen by the system may be taken before Triton binds it
_EXIT_SECONDS = 3  # how long Triton waits for requests in flight when asked to stop
_KILL_SECONDS = 15  # then how long until it is killed, counted from the same moment
_WATCH_SECONDS = 0.5
_RETRY_SECONDS = 5
_RELAUNCHES = 3  # of a server that ended by itself; then it is left dead


def available() -> str | None:
    """Why the embedded Triton cannot run on this machine; None if it can."""
    system, machine, python = platform.system(), platform.machine(), "{}.{}".format(*sys.version_info)
    if (system, machine) != ("Linux", "x86_64"):
        return f"its wheel, nvidia-pytriton, exists for Linux on x86-64 only; this is {system} on {machine}"
    if not (wheel := _wheel()):
        return "nvidia-pytriton is not installed (python -m pip install nvidia-pytriton==0.7.0)"
    if not _stub(wheel).is_file():
        return f"nvidia-pytriton has no Python backend for Python {python}; 3.11 and 3.12 work"
    if int((numpy := importlib.metadata.version("numpy")).split(".")[0]) >= 2:
        return f"its Python backend aborts with numpy {numpy} (python -m pip install 'numpy<2')"
    return None


class Server:
    """A Triton server with models that take and stream text, started on `__enter__` and stopped on `__exit__`.

    `repository` is a model repository folder and `models` the names to load (None: all in it). Ports are chosen by
    the system unless given; only the loopback is listened on. The server's log goes to the file `log`; without one, to
    a temporary file that is kept only if the start fails or the server dies. `timeout` bounds the start, in seconds.

    Attributes: `grpc`, `http` and `metrics`, addresses as "HOST:PORT" (None where unknown); `models`; `log`;
    `restarts`, how many times a dead model was loaded, or a dead server started, again.
    """

    def __init__(
        self,
        repository: Path,
        models: Sequence[str] | None = None,
        *,
        grpc_port: int | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        log: Path | None = None,
        timeout: float = 120.0,
    ):
        self._repository = Path(repository).resolve()
        self._asked_ports = (grpc_port, http_port, metrics_port)
        for name, port in zip(_PORTS, self._asked_ports):
            require(port is None or 1 <= port <= 65535, f"{name}_port", "Server", "be from 1 to 65535", port)
        found = sorted(f.parent.name for f in self._repository.glob("*/config.pbtxt"))
        self.models = tuple(found if models is None else models)
        if unknown := sorted(set(self.models) - set(found)):
            there = f"only {', '.join(found)}" if found else "it has none"
            raise ErlabError(f"{self._repository}: no model {', '.join(unknown)} there, {there}.")
        if not self.models:
            raise ErlabError(f"{self._repository}: no models there (folders with a config.pbtxt).")
        self.grpc = self.http = self.metrics = None
        self.log = Path(log).resolve() if log else None
        self._temporary_log = log is None
        self._timeout = timeout
        self.restarts = 0
        self._keeper = self._folder = self._watcher = None
        self._stopping, self._launching, self._relaunches = threading.Event(), threading.Lock(), 0

    @property
    def upstreams(self) -> tuple[str, ...]:
        """What a gateway in front calls the models."""
        return self.models

    @classmethod
    def attach(cls, address: str, models: Sequence[str], timeout: float = 120.0) -> "Server":
        """The server that already runs at `address` ("HOST:PORT", gRPC) with these models; never started or stopped."""
        require(len(models) > 0, "models", "Server.attach", "name at least one model", models)
        self = cls.__new__(cls)
        self._repository = self._keeper = self._folder = self._watcher = None
        self.grpc, self.http, self.metrics, self.log = client.address(address), None, None, None
        self.models, self.restarts, self._timeout, self._temporary_log = tuple(models), 0, timeout, False
        self._relaunches = 0
        self._stopping, self._launching = threading.Event(), threading.Lock()
        return self

    def __enter__(self) -> "Server":
        """Start (unless attached) and wait until every model answers; raises ErlabError with the server's own words."""
        try:
            deadline = time.monotonic() + self._timeout
            if self._repository:
                self._start(deadline)
            for model in self.models:
                self._probe(model, deadline)
            if self._repository:
                self._watcher = threading.Thread(target=self._watch, args=(self._stubs(),), daemon=True)
                self._watcher.start()
        except BaseException as e:
            self._stop()
            self._forget_log(needed=isinstance(e, ErlabError))
            raise
        return self

    def __exit__(self, *_) -> None:
        died = not self.alive() or self._relaunches > 0
        self._stop()
        self._forget_log(needed=died)

    def alive(self) -> bool:
        """Whether the server still runs or, if attached, still says that it lives."""
        if self._repository:
            running = self._keeper is not None and self._keeper.poll() is None
            return running or (self._watcher is not None and self._relaunches < _RELAUNCHES)
        with grpc.insecure_channel(self.grpc, options=client.CHANNEL_OPTIONS) as channel, suppress(grpc.RpcError):
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=min(5, self._timeout)).live
        return False

    def _start(self, deadline: float) -> None:
        if reason := available():
            raise ErlabError(
                f"The embedded Triton cannot run here: {reason}. Use a server that runs elsewhere: --triton HOST:PORT."
            )
        for attempt in range(1, _START_ATTEMPTS + 1):
            ports = free_ports(self._asked_ports)
            self._stopping.clear()
            self._launch(ports)
            if self._listening(ports, deadline):
                return
            complaint = self._complaint()
            self._stop()
            if "already in use" not in complaint or attempt == _START_ATTEMPTS:
                raise ErlabError(f"Triton did not start: {complaint}")

    def _listening(self, ports: Sequence[int], deadline: float) -> bool:
        """Wait until the server listens; False where it ended instead. Raises ErlabError at the deadline."""
        while self._keeper.poll() is None:
            if self._listens(ports):
                return True
            if time.monotonic() > deadline:
                raise ErlabError(f"Triton was not ready within {self._timeout:g} s: {self._complaint()}")
            time.sleep(0.02)
        return False

    def _launch(self, ports: Sequence[int]) -> None:
        """Start keeper and server; what the keeper removes at the end is known before anything is made."""
        self._folder = Path(tempfile.mkdtemp(prefix="erlab-triton-"))
        self.log = self.log or self._folder.with_suffix(".log")
        self.grpc, self.http, self.metrics = (f"{_HOST}:{port}" for port in ports)
        wheel = _wheel()
        backend = self._folder / "python"
        backend.mkdir()
        files = wheel / "backends" / "python"
        for file in (files / "libtriton_python.so", files / "triton_python_backend_utils.py", _stub(wheel)):
            (backend / file.name).symlink_to(file)  # a copy would lose the libraries found beside it
        command = [
            wheel / "bin" / "tritonserver",
            f"--model-repository={self._repository}",
            f"--backend-directory={self._folder}",
            f"--backend-config=python,shm-region-prefix-name={self._folder.name}-",
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            f"--model-load-thread-count={max(4, len(self.models))}",
            *(f"--load-model={model}" for model in self.models),
            f"--exit-timeout-secs={_EXIT_SECONDS}",
            "--allow-gpu-metrics=false",
            *(f"--{name}-address={_HOST}" for name in _PORTS),
            *(f"--{name}-port={port}" for name, port in zip(_PORTS, ports)),
        ]
        libraries = (sysconfig.get_config_var("LIBDIR"), wheel.parent.parent / "nvidia_pytriton.libs")
        environment = os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        }
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            output = open(self.log, "ab" if self._relaunches else "wb")
        except OSError as e:
            raise ErlabError(f"{self.log}: cannot write the server's log there ({e.strerror}).") from None
        with output:
            self._keeper = launch(command, self._folder, _KILL_SECONDS, environment, output)

    def _stop(self) -> None:
        """Stop the watch and the server and remove what is left of it; harmless if nothing runs."""
        self._stopping.set()
        with self._launching:  # from here on the watch launches nothing
            if self._keeper:
                self._end()
        if self._watcher:
            self._watcher.join()
        if self._folder:
            keeper.sweep(self._folder)  # the keeper did, unless it was killed itself
        self._keeper = self._watcher = self._folder = None

    def _end(self) -> None:
        """Ask the server to stop, which takes it seconds of unloading models; where nobody is connected, and so no
        request is in flight, kill it."""
        if not self._connected():
            for process in self._processes():
                process.kill()  # the keeper tidies up
        self._keeper.terminate()
        self._keeper.wait()

    def _forget_log(self, needed: bool) -> None:
        """A temporary log stays only where it explains something."""
        if self._temporary_log and self.log and not needed:
            self.log.unlink(missing_ok=True)

    def _listens(self, ports: Sequence[int]) -> bool:
        """Whether our server, not just anybody, listens on all its ports."""
        if not all(map(_answers, ports)):  # to look whose they are takes a hundred times as long
            return False
        with suppress(psutil.Error):
            connections = [c for p in self._processes() for c in p.net_connections("tcp")]
            return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN} >= set(ports)
        return False

    def _connected(self) -> bool:
        """Whether a client has a connection to the server."""
        ports = {int(at.rpartition(":")[2]) for at in (self.grpc, self.http)}
        with suppress(psutil.Error):
            connections = [c for p in self._processes() for c in p.net_connections("tcp")]
            return any(c.laddr.port in ports and c.status == psutil.CONN_ESTABLISHED for c in connections)
        return True

    def _probe(self, model: str, deadline: float) -> None:
        """One token from the model, or ErlabError."""
        try:
            for _ in client.generate(self.grpc, model, "ready?", 1, max(deadline - time.monotonic(), 0.1)):
                pass
        except ErlabError as e:
            told = f" Its log: {self.log}." if self._repository else ""
            raise ErlabError(f"The Triton model does not answer: {e}{told}") from None

    def _processes(self) -> list[psutil.Process]:
        """The server's process (none if it is gone)."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._keeper.pid).children()
        return []

    def _stubs(self) -> dict[psutil.Process, str]:
        """Every model's processes: ``FOLDER/python/triton_python_backend_stub REPOSITORY/MODEL/1/model.py ...``."""
        stubs = {}
        for process in (child for server in self._processes() for child in server.children()):
            with suppress(psutil.Error):
                program, *arguments = process.cmdline() or [""]
                if program.startswith(f"{self._folder}/"):
                    stubs[process] = Path(arguments[0]).parent.parent.name
        return stubs

    def _watch(self, stubs: dict[psutil.Process, str]) -> None:
        """Load again each model of which a process has ended, until the server stops."""
        while not self._stopping.wait(_WATCH_SECONDS):
            if self._keeper.poll() is not None:
                logger.error("Triton ended by itself: %s", self._complaint())
                if not self._relaunch():
                    return
                stubs = self._stubs()
            for model in sorted({stubs[process] for process in stubs if _ended(process)}):
                logger.warning("The process of model %s ended; loading the model again.", model)
                try:
                    self._reload(model)
                except grpc.RpcError as e:
                    if not self._stopping.is_set():
                        logger.error("Model %s cannot be loaded again: %s", model, e.details())
                        self._stopping.wait(_RETRY_SECONDS)
                    continue
                self.restarts += 1
                kept = {process: name for process, name in stubs.items() if name != model}
                stubs = kept | {process: name for process, name in self._stubs().items() if name == model}

    def _relaunch(self) -> bool:
        """Start the server again on its ports; False where it is to stay dead."""
        ports = [int(at.rpartition(":")[2]) for at in (self.grpc, self.http, self.metrics)]
        self._wait_free(ports)
        with self._launching:
            if self._stopping.is_set() or self._relaunches >= _RELAUNCHES:
                return False
            self._relaunches += 1
            keeper.sweep(self._folder)
            self._launch(ports)
        try:
            if self._listening(ports, time.monotonic() + self._timeout):
                self.restarts += 1
        except ErlabError as e:
            logger.error("%s", e)
        return True

    def _wait_free(self, ports: Sequence[int]) -> None:
        """Wait a while for the ports of a server that has ended: a launch on a port still in use would be lost."""
        end = time.monotonic() + self._timeout
        while time.monotonic() < end:
            with suppress(ErlabError):
                free_ports(ports)
                return
            if self._stopping.wait(_WATCH_SECONDS):
                return

    def _reload(self, model: str) -> None:
        """Unload, which returns at once, and load; Triton does so beside requests that hang in the dead process."""
        with grpc.insecure_channel(self.grpc, options=client.CHANNEL_OPTIONS) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            unload = service_pb2.RepositoryModelUnloadRequest(model_name=model)
            stub.RepositoryModelUnload(unload, timeout=self._timeout)
            stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name=model), timeout=self._timeout)

    def _complaint(self) -> str:
        """What the server's log says went wrong, in a line, and where the log is."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        failed = [line for line in lines if re.match(r"E\d{4} .*failed to load '", line)]
        failed = [re.sub(r'^.*?"|\\n.*|"$', "", line) for line in failed]  # without time stamp and stack
        errors = [line for line in lines if re.match(r"E\d{4} .* main\.cc|error: ", line)]
        words = failed or errors or lines[-1:] or ["it wrote no log"]
        return f"{'; '.join(words)}. Its log: {self.log}."


def _wheel() -> Path | None:
    """The folder ``pytriton/tritonserver`` of the installed wheel."""
    spec = importlib.util.find_spec("pytriton")
    return Path(spec.origin).parent / "tritonserver" if spec and spec.origin else None


def _stub(wheel: Path) -> Path:
    """The program that runs models under this version of Python."""
    return wheel / "python_backend_stubs" / "{}.{}".format(*sys.version_info) / "triton_python_backend_stub"


def free_ports(asked: Sequence[int | None]) -> list[int]:
    """Distinct loopback ports: the asked ones if they are free, the system's choice where None was asked."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in asked]
        for port, bound in zip(asked, sockets):
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind((_HOST, port or 0))
            except OSError as e:
                raise ErlabError(f"Port {port} on {_HOST} cannot be used ({e.strerror}). Choose another.") from None
        return [bound.getsockname()[1] for bound in sockets]


def _answers(port: int) -> bool:
    """Whether anybody accepts connections at a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex((_HOST, port)) == 0


def _ended(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True
