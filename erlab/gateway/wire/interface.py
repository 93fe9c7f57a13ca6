"""Interface between faces and upstreams: an expert's model as both protocols call it, and helpers for sinks."""

from typing import Protocol

from tritonclient.grpc import service_pb2

from erlab.gateway import core
from erlab.gateway.core import Sink

Headers = tuple[tuple[str, str], ...]  # a client's own metadata, as on the wire
NO_HEADERS: Headers = ()


class Upstream(core.Probeable, Protocol):
    """A model on a server, for clients of either face.

    Each method returns when the answer has ended whole, and raises RequestError if it fails.
    """

    async def kserve(self, request: service_pb2.ModelInferRequest, data: bytes, headers: Headers, sink: Sink) -> None:
        """Answer `request`, whose bytes are `data`; each piece is one ModelStreamInferResponse."""

    async def infer(self, request: service_pb2.ModelInferRequest, data: bytes, headers: Headers) -> bytes:
        """Return the ModelInferResponse to `request`, whose bytes are `data`."""

    async def openai(self, kind: str, body: dict, sink: Sink) -> None:
        """Answer `body`, a request of `kind` "completions" or "chat/completions".

        The pieces are those of an event stream if the body has `stream`, else one JSON document.
        """


class Onward:
    """A sink in front of another, which decides when to pause."""

    def __init__(self, sink: Sink):
        self._sink = sink

    @property
    def paused(self) -> bool:
        return self._sink.paused

    async def resumed(self) -> None:
        await self._sink.resumed()


class Unpaused:
    """A sink that never pauses."""

    paused = False

    async def resumed(self) -> None:
        return
