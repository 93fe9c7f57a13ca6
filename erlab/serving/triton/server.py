"""NVIDIA Triton as a context manager: the real ``tritonserver`` binary of the PyPI wheel ``nvidia-pytriton``.

    with Server(repository) as server:
        print("".join(kserve.generate(server.grpc, server.models[0], "What is a watt?", 16, timeout=30)))

The body begins when every model has answered a probe. Triton never restarts an expert whose process died and goes on
calling itself ready, so a watch unloads and loads such a model; requests that were in flight there may hang until their
deadlines. `keeper` sees to it that nothing is left behind. `Server.attach` gives the same interface to a server that
someone else runs.

What can be asked of it is limited: its HTTP endpoint is closed, and over gRPC, `RESTRICTED` calls (with which anyone
could load a model, that is, run code) need a random key of this start, which only the watch holds. Triton takes that
key from its command line alone, which other users of this machine can read unless /proc is mounted with hidepid: the
key stops the network, the gateway's clients and web pages, not a hostile user of the same machine. `private` says where
its paths come from.
"""

import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import secrets
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import psutil
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.serving.triton import keeper, private
from erlab.serving.triton.kept import launch
from erlab.spec import require

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_PORTS = ("grpc", "metrics")
RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")  # Triton's names of groups of gRPC calls
_KEY = "erlab-key"  # what Triton's flag calls the header, whose name on the wire begins with triton-grpc-protocol-
_START_ATTEMPTS = 5  # a port chosen by the system may be taken before Triton binds it
_EXIT_SECONDS = 3  # how long Triton waits for requests in flight when asked to stop
_KILL_SECONDS = 15  # then how long until it is killed, counted from the same moment
_WATCH_SECONDS = 0.5
_DEATH_SECONDS = 5  # what Triton gets to say why it does not start, once a model's process has ended
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

    Attributes: `grpc` and `metrics`, addresses as "HOST:PORT" (None where unknown); `models`; `log`; `restarts`.
    """

    def __init__(
        self,
        repository: Path,
        models: Sequence[str] | None = None,
        *,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        log: Path | None = None,
        timeout: float = 120.0,
    ):
        self._repository = Path(repository).resolve()
        self._asked_ports = (grpc_port, metrics_port)
        for name, port in zip(_PORTS, self._asked_ports):
            require(port is None or 1 <= port <= 65535, f"{name}_port", "Server", "be from 1 to 65535", port)
        found = self._found()
        self.models = tuple(found if models is None else models)
        if unknown := sorted(set(self.models) - set(found)):
            there = f"only {', '.join(found)}" if found else "it has none"
            raise ErlabError(f"{self._repository}: no model {', '.join(unknown)} there, {there}.")
        if not self.models:
            raise ErlabError(f"{self._repository}: no models there (folders with a config.pbtxt).")
        for model in self.models:
            require(private.harmless(model), "models", "Server", f"have names of {private.HARMLESS}", model)
        self.grpc = self.metrics = None
        self.log = Path(log).resolve() if log else None
        self._temporary_log = log is None
        self._timeout = timeout
        self._restarts = self._relaunches = 0
        self._keeper = self._folder = self._watcher = None
        self._server: list[psutil.Process] = []
        self._watched: dict[psutil.Process, str] = {}
        self._stopping, self._launching = threading.Event(), threading.Lock()

    @property
    def restarts(self) -> int:
        """Number of times that a dead model was loaded, or a dead server was started, again; 0 for an attached one.

        Requests in flight at such a time fail or hang: a measurement during which it rises is invalid. So that none is
        missed, reading it waits (for `timeout` at most) until a restart that is due has been made, and counts a death
        that could not be mended.
        """
        deadline = time.monotonic() + self._timeout
        while (broken := self._broken()) and self._watcher.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._restarts + broken

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
        self.grpc, self.metrics, self.log = kserve.address(address), None, None
        self.models, self._timeout, self._temporary_log = tuple(models), timeout, False
        self._restarts = self._relaunches = 0
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
                self._server, self._watched = self._processes(), self._stubs()
                self._watcher = threading.Thread(target=self._watch, daemon=True)
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
        with grpc.insecure_channel(self.grpc, options=kserve.CHANNEL_OPTIONS) as channel, suppress(grpc.RpcError):
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
        """Wait until the server listens; False where it ended instead. Raises ErlabError at the deadline, and where a
        model's process has ended, for which Triton may wait without end."""
        look = time.monotonic()
        while self._keeper.poll() is None:
            if self._listens(ports):
                return True
            now = time.monotonic()
            if now > look and not self._death:
                self._death = self._dead_child()
                look = now + (_DEATH_SECONDS if self._death else _WATCH_SECONDS)
            elif now > look:
                raise ErlabError(f"Triton did not start: {self._complaint()}")
            if now > deadline:
                raise ErlabError(f"Triton was not ready within {self._timeout:g} s: {self._complaint()}")
            time.sleep(0.02)
        return False

    def _launch(self, ports: Sequence[int]) -> None:
        """Start keeper and server; what the keeper removes at the end is known before anything is made."""
        self.grpc, self.metrics = (f"{_HOST}:{port}" for port in ports)
        self._key, self._death = secrets.token_urlsafe(), None
        with private.folder("erlab-triton-") as (self._folder, lock):
            self.log = self.log or self._folder.with_suffix(".log")
            try:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                output = open(self.log, "ab" if self._relaunches else "wb")
            except OSError as e:
                raise ErlabError(f"{self.log}: cannot write the server's log there ({e.strerror}).") from None
            there = filter(private.harmless, self._found())  # all of them: ensembles load what they are made of
            for link, real in private.copy_models(self._repository, there, self._folder).items():
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(real)
            environment = _environment(self._folder)
            with output:
                self._keeper = launch(self._command(ports), self._folder, lock, _KILL_SECONDS, environment, output)

    def _command(self, ports: Sequence[int]) -> list[str | Path]:
        return [
            _wheel() / "bin" / "tritonserver",
            f"--model-repository={self._folder / 'models'}",
            f"--backend-directory={self._folder}",
            f"--backend-config=python,shm-region-prefix-name={self._folder.name}-",
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            f"--model-load-thread-count={max(4, len(self.models))}",
            *(f"--load-model={model}" for model in self.models),
            f"--exit-timeout-secs={_EXIT_SECONDS}",
            "--allow-gpu-metrics=false",
            *closed(self._key),
            *(f"--{name}-address={_HOST}" for name in _PORTS),
            *(f"--{name}-port={port}" for name, port in zip(_PORTS, ports)),
        ]

    def _found(self) -> list[str]:
        """The names of the repository's models."""
        return sorted(f.parent.name for f in self._repository.glob("*/config.pbtxt"))

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
        port = int(self.grpc.rpartition(":")[2])
        with suppress(psutil.Error):
            connections = [c for p in self._processes() for c in p.net_connections("tcp")]
            return any(c.laddr.port == port and c.status == psutil.CONN_ESTABLISHED for c in connections)
        return True

    def _probe(self, model: str, deadline: float) -> None:
        """One token from the model, or ErlabError."""
        try:
            for _ in kserve.generate(self.grpc, model, "ready?", 1, max(deadline - time.monotonic(), 0.1)):
                pass
        except ErlabError as e:
            told = f" Its log: {self.log}." if self._repository else ""
            raise ErlabError(f"The Triton model does not answer: {e}{told}") from None

    def _processes(self) -> list[psutil.Process]:
        """The server's process; none if it is gone, and its models' for a moment when it has just ended."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._keeper.pid).children()
        return []

    def _children(self) -> list[psutil.Process]:
        """The models' processes, those that have just ended included."""
        with suppress(psutil.NoSuchProcess):
            return [child for server in self._processes() for child in server.children()]
        return []

    def _stubs(self) -> dict[psutil.Process, str]:
        """Every model's processes: ``FOLDER/python/triton_python_backend_stub FOLDER/models/MODEL/1/model.py ...``."""
        stubs = {}
        for process in self._children():
            with suppress(psutil.Error):
                program, *arguments = process.cmdline() or [""]
                if program.startswith(f"{self._folder}/"):
                    stubs[process] = Path(arguments[0]).parent.parent.name
        return stubs

    def _dead_child(self) -> str | None:
        """How one of the models' processes has ended, None while all live."""
        for child in self._children():
            with suppress(psutil.Error, OSError):
                if child.status() == psutil.STATUS_ZOMBIE:
                    status = Path(f"/proc/{child.pid}/stat").read_text().rsplit(maxsplit=1)[1]
                    return f"a model's process ended with status {os.waitstatus_to_exitcode(int(status))}"
        return None

    def _broken(self) -> bool:
        """Whether a process has ended that the watch has yet to replace."""
        if not self._watcher or self._stopping.is_set():
            return False
        return any(map(_ended, (*self._server, *self._watched)))

    def _watch(self) -> None:
        """Load again each model of which a process has ended, until the server stops."""
        while not self._stopping.wait(_WATCH_SECONDS):
            if self._keeper.poll() is not None:
                logger.error("Triton ended by itself: %s", self._complaint())
                if not self._relaunch():
                    return
            stubs = self._watched
            for model in sorted({stubs[process] for process in stubs if _ended(process)}):
                logger.warning("The process of model %s ended; loading the model again.", model)
                try:
                    self._reload(model)
                except grpc.RpcError as e:
                    if not self._stopping.is_set():
                        logger.error("Model %s cannot be loaded again: %s", model, e.details())
                        self._stopping.wait(_RETRY_SECONDS)
                    continue
                self._restarts += 1
                kept = {process: name for process, name in self._watched.items() if name != model}
                self._watched = kept | {process: name for process, name in self._stubs().items() if name == model}

    def _relaunch(self) -> bool:
        """Start the server again on its ports; False where it is to stay dead."""
        ports = [int(at.rpartition(":")[2]) for at in (self.grpc, self.metrics)]
        self._wait_free(ports)
        with self._launching:
            if self._stopping.is_set() or self._relaunches >= _RELAUNCHES:
                return False
            self._relaunches += 1
            keeper.sweep(self._folder)
            self._launch(ports)
        try:
            if self._listening(ports, time.monotonic() + self._timeout):
                self._restarts += 1
                self._server, self._watched = self._processes(), self._stubs()
        except ErlabError as e:
            logger.error("%s", e)
            for process in self._processes():
                process.kill()  # so that it is started again
            self._watched = {}
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
        with grpc.insecure_channel(self.grpc, options=kserve.CHANNEL_OPTIONS) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            unload = service_pb2.RepositoryModelUnloadRequest(model_name=model)
            load = service_pb2.RepositoryModelLoadRequest(model_name=model)
            stub.RepositoryModelUnload(unload, timeout=self._timeout, metadata=self._allowed())
            stub.RepositoryModelLoad(load, timeout=self._timeout, metadata=self._allowed())

    def _allowed(self) -> tuple[tuple[str, str]]:
        """The header with which the server takes `RESTRICTED` calls."""
        return ((f"triton-grpc-protocol-{_KEY}", self._key),)

    def _complaint(self) -> str:
        """What the server's log says went wrong, in a line, and where the log is."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        failed = [line for line in lines if re.match(r"E\d{4} .*failed to load '", line)]
        failed = [re.sub(r'^.*?"|\\n.*|"$', "", line).rstrip(".") for line in failed]  # without time stamp and stack
        errors = [line for line in lines if re.match(r"E\d{4} .* main\.cc|error: ", line)]
        words = failed or errors or lines[-1:] or ["it wrote no log"]
        if self._death and (not failed or "is not healthy" in failed[-1]):  # then Triton knows no more than that
            own = [line.strip() for line in lines if line.strip() and not re.match(r"[EFIW]\d{4} |error: |[;+|]", line)]
            words = [*failed, self._death, *own[-3:]]
        return f"{'; '.join(words)}. Its log: {self.log}."


def closed(key: str) -> tuple[str, ...]:
    """The flags by which Triton listens for gRPC and metrics only, and takes `RESTRICTED` calls with this key only."""
    return "--allow-http=false", f"--grpc-restricted-protocol={','.join(RESTRICTED)}:{_KEY}={key}"


def _environment(folder: Path) -> dict[str, str]:
    """The environment in which Triton's models find this Python, this package and the server its libraries.

    Models run in the environment of the first python3 on PATH, and ignore PYTHONPATH. All paths are links in `folder`.
    """
    wheel, backend = _wheel(), folder / "python"
    backend.mkdir()
    files = wheel / "backends" / "python"
    for file in (files / "libtriton_python.so", files / "triton_python_backend_utils.py", _stub(wheel)):
        (backend / file.name).symlink_to(file)  # a copy would lose the libraries found beside it
    (backend / "erlab").symlink_to(Path(__file__).parent.parent)  # this folder is on the models' sys.path
    base, environment, libraries = folder / "base", folder / "environment", folder / "libraries"
    base.symlink_to(sys.base_prefix)
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python3").symlink_to(sys.executable)
    (environment / "lib").symlink_to(Path(sys.prefix) / "lib")
    virtual = sys.prefix != sys.base_prefix
    settings = (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8") if virtual else ""
    both = not virtual or "include-system-site-packages = true" in settings
    cfg = f"home = {base}/bin\ninclude-system-site-packages = {str(both).lower()}\n"
    (environment / "pyvenv.cfg").write_text(cfg)
    libraries.mkdir()
    (libraries / "python").symlink_to(sysconfig.get_config_var("LIBDIR"))
    (libraries / "triton").symlink_to(wheel.parent.parent / "nvidia_pytriton.libs")
    return os.environ | {
        "PATH": os.pathsep.join([str(environment / "bin"), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join([str(libraries / "python"), str(libraries / "triton")]),
    }


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
