"""Interface of the inference servers that hold a system's experts.

    with deployment.server(systems, "C", profile, folders) as server:  # or external.attach("HOST:PORT", models)
        users.run(server.grpc, server.models, requests, timeout=60)
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self


class ModelServer(ABC):
    """One server, or several behind one interface; a context manager that yields itself when every model answers.

    Attributes:
        grpc: HOST:PORT of its KServe v2 gRPC endpoint, which serves all models unless `upstreams` says otherwise; None
            before it is entered.
        upstreams: What a gateway forwards to, one entry per model: a name at `grpc`, or a URL.
        metrics: Address of each page of Prometheus metrics (HOST:PORT or URL) by the name that records give it.
        restarts: Number of times that a model or the server was started again. Requests in flight at such a time fail
            or hang, so a measurement during which it rises is invalid.
        engine: Program that computes, with its version where the server states it; None where the profile determines
            it.
    """

    models: tuple[str, ...]
    grpc: str | None = None
    log: Path | None = None
    restarts: int = 0
    engine: str | None = None
    _metrics: str | None = None  # address of the page of a server that has one

    @property
    def upstreams(self) -> tuple[str, ...]:
        return self.models

    @property
    def metrics(self) -> Mapping[str, str]:
        return {self._metrics: self._metrics} if self._metrics else {}

    @abstractmethod
    def alive(self) -> bool:
        """Return whether the server still runs and all its models can be reached."""

    @abstractmethod
    def __enter__(self) -> Self:
        """Start the server unless it is external; ErlabError with the server's message where a model does not answer."""

    @abstractmethod
    def __exit__(self, *_) -> None:
        """Stop what `__enter__` started."""


class ServerGroup(ModelServer):
    """Several servers behind the interface of one; `_servers` are its servers, `_stack` stops them."""

    _servers: Sequence
    _stack: ExitStack

    @property
    def log(self) -> Path | None:
        """Log of the first server that has died, else of the first server."""
        return next((s.log for s in self._servers if not s.alive()), self._servers[0].log)

    def alive(self) -> bool:
        return all(server.alive() for server in self._servers)

    def __exit__(self, *_) -> None:
        self._stack.close()
