"""The embedded Triton server: the ``tritonserver`` binary of the PyPI wheel ``nvidia-pytriton``.

    with Server(repository) as server:
        print("".join(kserve.generate(server.grpc, server.models[0], "What is a watt?", 16, timeout=30)))

The body begins when every model has answered a probe. Triton does not restart a model whose process died and still
reports ready, so a watch thread unloads and reloads such a model; requests in flight there may hang until their
deadlines. `keeper` removes the server and its files at the end.

Access is limited: the HTTP endpoint is closed, and `RESTRICTED` gRPC calls, which could load a model and so run code,
need a random key that only the watch thread has. Triton takes the key from its command line, which other users of this
machine can read unless /proc is mounted with hidepid: the key protects against the network, the gateway's clients and
web pages, not against a hostile user of the same machine. `private` explains the paths.
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
from typing import Self

import grpc
import psutil
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.serving.servers import ModelServer
from erlab.serving.triton import external, keeper, private
from erlab.serving.triton.process import launch
from erlab.spec import require

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
PORTS = ("grpc", "metrics")
RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")  # groups of gRPC calls, as Triton names them
_KEY = "erlab-key"  # header name in Triton's flag; on the wire it begins with triton-grpc-protocol-
START_ATTEMPTS = 5  # a port chosen by the system may be taken before Triton binds it
_EXIT_SECONDS = 3  # Triton waits so long for requests in flight when it is stopped
_KILL_SECONDS = 15  # after which it is killed, from the same moment
_WATCH_SECONDS = 0.5
_DEATH_SECONDS = 5  # Triton gets so long to log why it does not start, once a model's process has ended
_RETRY_SECONDS = 5
_RELAUNCHES = 3  # of a server that ends by itself, at most


def available() -> str | None:
    """Return why the embedded Triton cannot run on this machine; None if it can."""
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


class Server(ModelServer):
    """A Triton server on the loopback, started on `__enter__` and stopped on `__exit__`.

    Args:
        models: Names of the models to load; None for all in the repository.
        log: Log file; None for a temporary one, kept only if the start fails or the server dies.
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
        self._requested_ports = (grpc_port, metrics_port)
        for name, port in zip(PORTS, self._requested_ports):
            require(port is None or 1 <= port <= 65535, f"{name}_port", "Server", "be from 1 to 65535", port)
        present = self._present_models()
        self.models = tuple(present if models is None else models)
        if unknown := sorted(set(self.models) - set(present)):
            known = f"only {', '.join(present)}" if present else "it has none"
            raise ErlabError(f"{self._repository}: no model {', '.join(unknown)} there, {known}.")
        if not self.models:
            raise ErlabError(f"{self._repository}: no models there (folders with a config.pbtxt).")
        for model in self.models:
            require(private.harmless(model), "models", "Server", f"have names of {private.HARMLESS}", model)
        self.grpc = self._metrics = None
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
        """Number of times that a dead model was reloaded or a dead server was started again.

        So that no restart is missed, reading it waits for one that is due (at most `timeout` seconds), and counts a
        death that could not be repaired.
        """
        deadline = time.monotonic() + self._timeout
        while (broken := self._broken()) and self._watcher.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._restarts + broken

    def __enter__(self) -> Self:
        try:
            deadline = time.monotonic() + self._timeout
            self._start(deadline)
            for model in self.models:
                self._probe(model, deadline)
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
        running = self._keeper is not None and self._keeper.poll() is None
        return running or (self._watcher is not None and self._relaunches < _RELAUNCHES)

    def _start(self, deadline: float) -> None:
        if reason := available():
            raise ErlabError(
                f"The embedded Triton cannot run here: {reason}. Use a server that runs elsewhere: --triton HOST:PORT."
            )
        for attempt in range(1, START_ATTEMPTS + 1):
            ports = free_ports(self._requested_ports)
            self._stopping.clear()
            self._launch(ports)
            if self._listening(ports, deadline):
                return
            complaint = self._complaint()
            self._stop()
            if "already in use" not in complaint or attempt == START_ATTEMPTS:
                raise ErlabError(f"Triton did not start: {complaint}")

    def _listening(self, ports: Sequence[int], deadline: float) -> bool:
        """Wait until the server listens; return False if it ended.

        Raises:
            ErlabError: The deadline passed, or a model's process ended, for which Triton may wait forever.
        """
        next_check = time.monotonic()
        while self._keeper.poll() is None:
            if self._listens(ports):
                return True
            now = time.monotonic()
            if now > next_check and not self._death:
                self._death = self._dead_child()
                next_check = now + (_DEATH_SECONDS if self._death else _WATCH_SECONDS)
            elif now > next_check:
                raise ErlabError(f"Triton did not start: {self._complaint()}")
            if now > deadline:
                raise ErlabError(f"Triton was not ready within {self._timeout:g} s: {self._complaint()}")
            time.sleep(0.02)
        return False

    def _launch(self, ports: Sequence[int]) -> None:
        """Start keeper and server in a new private folder."""
        self.grpc, self._metrics = (f"{HOST}:{port}" for port in ports)
        self._key, self._death = secrets.token_urlsafe(), None
        with private.folder("erlab-triton-") as (self._folder, lock):
            self.log = self.log or self._folder.with_suffix(".log")
            try:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                output = open(self.log, "ab" if self._relaunches else "wb")
            except OSError as e:
                raise ErlabError(f"{self.log}: cannot write the server's log there ({e.strerror}).") from None
            models = filter(private.harmless, self._present_models())  # all, since ensembles load their parts
            private.copy_models(self._repository, models, self._folder)
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
            *(f"--{name}-address={HOST}" for name in PORTS),
            *(f"--{name}-port={port}" for name, port in zip(PORTS, ports)),
        ]

    def _present_models(self) -> list[str]:
        """Return the names of the repository's models."""
        return sorted(f.parent.name for f in self._repository.glob("*/config.pbtxt"))

    def _stop(self) -> None:
        """Stop watch thread and server and remove their traces; do nothing if nothing runs."""
        self._stopping.set()
        with self._launching:  # from here on the watch thread launches nothing
            if self._keeper:
                self._end()
        if self._watcher:
            self._watcher.join()
        if self._folder:
            keeper.sweep(self._folder)  # in case the keeper was killed
        self._keeper = self._watcher = self._folder = None

    def _end(self) -> None:
        """Terminate the server, which takes seconds to unload models; kill it if no client is connected."""
        if not self._connected():
            for process in self._processes():
                process.kill()  # the keeper cleans up
        self._keeper.terminate()
        self._keeper.wait()

    def _forget_log(self, needed: bool) -> None:
        """Remove a temporary log that is not needed."""
        if self._temporary_log and self.log and not needed:
            self.log.unlink(missing_ok=True)

    def _listens(self, ports: Sequence[int]) -> bool:
        """Return whether this server, not another process, listens on all its ports."""
        if not all(map(_answers, ports)):  # a cheap check first: finding the owner of a port takes much longer
            return False
        with suppress(psutil.Error):
            connections = [c for p in self._processes() for c in p.net_connections("tcp")]
            return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN} >= set(ports)
        return False

    def _connected(self) -> bool:
        """Return whether a client has a connection to the server."""
        port = int(self.grpc.rpartition(":")[2])
        with suppress(psutil.Error):
            connections = [c for p in self._processes() for c in p.net_connections("tcp")]
            return any(c.laddr.port == port and c.status == psutil.CONN_ESTABLISHED for c in connections)
        return True

    def _probe(self, model: str, deadline: float) -> None:
        try:
            external.probe(self.grpc, model, deadline)
        except ErlabError as e:
            raise ErlabError(f"{e} Its log: {self.log}.") from None

    def _processes(self) -> list[psutil.Process]:
        """Return the server's process; none if it has ended, or for a moment those of its models."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._keeper.pid).children()
        return []

    def _children(self) -> list[psutil.Process]:
        """Return the models' processes, including zombies."""
        with suppress(psutil.NoSuchProcess):
            return [child for server in self._processes() for child in server.children()]
        return []

    def _stubs(self) -> dict[psutil.Process, str]:
        """Return each model's processes: ``FOLDER/python/STUB FOLDER/models/MODEL/1/model.py ...``."""
        stubs = {}
        for process in self._children():
            with suppress(psutil.Error):
                program, *arguments = process.cmdline() or [""]
                if program.startswith(f"{self._folder}/"):
                    stubs[process] = Path(arguments[0]).parent.parent.name
        return stubs

    def _dead_child(self) -> str | None:
        """Return how one of the models' processes has ended, None while all live."""
        for child in self._children():
            with suppress(psutil.Error, OSError):
                if child.status() == psutil.STATUS_ZOMBIE:
                    status = Path(f"/proc/{child.pid}/stat").read_text().rsplit(maxsplit=1)[1]
                    return f"a model's process ended with status {os.waitstatus_to_exitcode(int(status))}"
        return None

    def _broken(self) -> bool:
        """Return whether a process has ended that the watch thread has yet to replace."""
        if not self._watcher or self._stopping.is_set():
            return False
        return any(map(_ended, (*self._server, *self._watched)))

    def _watch(self) -> None:
        """Reload each model of which a process has ended, until the server stops."""
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
                others = {process: name for process, name in self._watched.items() if name != model}
                self._watched = others | {process: name for process, name in self._stubs().items() if name == model}

    def _relaunch(self) -> bool:
        """Start the server again on its ports; return False if it stays dead."""
        ports = [int(at.rpartition(":")[2]) for at in (self.grpc, self._metrics)]
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
                process.kill()  # so that the next check starts it again
            self._watched = {}
        return True

    def _wait_free(self, ports: Sequence[int]) -> None:
        """Wait until the ports of a server that has ended are free; a launch on a port in use would fail."""
        end = time.monotonic() + self._timeout
        while time.monotonic() < end:
            with suppress(ErlabError):
                free_ports(ports)
                return
            if self._stopping.wait(_WATCH_SECONDS):
                return

    def _reload(self, model: str) -> None:
        """Unload, which returns at once, and load a model, also while requests hang in its dead process."""
        with grpc.insecure_channel(self.grpc, options=kserve.CHANNEL_OPTIONS) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            unload = service_pb2.RepositoryModelUnloadRequest(model_name=model)
            load = service_pb2.RepositoryModelLoadRequest(model_name=model)
            stub.RepositoryModelUnload(unload, timeout=self._timeout, metadata=self._allowed())
            stub.RepositoryModelLoad(load, timeout=self._timeout, metadata=self._allowed())

    def _allowed(self) -> tuple[tuple[str, str]]:
        """Return the header with which the server accepts `RESTRICTED` calls."""
        return ((f"triton-grpc-protocol-{_KEY}", self._key),)

    def _complaint(self) -> str:
        """Return the errors in the server's log in one line, and the path of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        failed = [line for line in lines if re.match(r"E\d{4} .*failed to load '", line)]
        failed = [re.sub(r'^.*?"|\\n.*|"$', "", line).rstrip(".") for line in failed]  # without timestamp and stack
        errors = [line for line in lines if re.match(r"E\d{4} .* main\.cc|error: ", line)]
        words = failed or errors or lines[-1:] or ["it wrote no log"]
        if self._death and (not failed or "is not healthy" in failed[-1]):  # then Triton logs no more than that
            own = [line.strip() for line in lines if line.strip() and not re.match(r"[EFIW]\d{4} |error: |[;+|]", line)]
            words = [*failed, self._death, *own[-3:]]
        return f"{'; '.join(words)}. Its log: {self.log}."


def closed(key: str) -> tuple[str, ...]:
    """Return the flags for gRPC and metrics only, with a key for `RESTRICTED` calls."""
    return "--allow-http=false", f"--grpc-restricted-protocol={','.join(RESTRICTED)}:{_KEY}={key}"


def _environment(folder: Path) -> dict[str, str]:
    """Return environment variables by which Triton finds its libraries, and its models this Python and package.

    Models run in the environment of the first python3 on PATH and ignore PYTHONPATH. All paths are links in `folder`.
    """
    wheel, backend = _wheel(), folder / "python"
    backend.mkdir()
    files = wheel / "backends" / "python"
    for file in (files / "libtriton_python.so", files / "triton_python_backend_utils.py", _stub(wheel)):
        (backend / file.name).symlink_to(file)  # a copy would lose the libraries found beside it
    (backend / "erlab").symlink_to(Path(__file__).parents[2])  # this folder is on the models' sys.path
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
    """Return the folder ``pytriton/tritonserver`` of the installed wheel."""
    spec = importlib.util.find_spec("pytriton")
    return Path(spec.origin).parent / "tritonserver" if spec and spec.origin else None


def _stub(wheel: Path) -> Path:
    """Return the program that runs models under this version of Python."""
    return wheel / "python_backend_stubs" / "{}.{}".format(*sys.version_info) / "triton_python_backend_stub"


def free_ports(ports: Sequence[int | None]) -> list[int]:
    """Return distinct free ports on the loopback: the given ones, and one chosen by the system for each None."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in ports]
        for port, bound in zip(ports, sockets):
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind((HOST, port or 0))
            except OSError as e:
                raise ErlabError(f"Port {port} on {HOST} cannot be used ({e.strerror}). Choose another.") from None
        return [bound.getsockname()[1] for bound in sockets]


def _answers(port: int) -> bool:
    """Return whether a process accepts connections at a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _ended(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True
