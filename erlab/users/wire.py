"""Users' gRPC client: one request, many responses, each with its arrival time.

    async with UserChannel("127.0.0.1:8001", "/inference.GRPCInferenceService/ModelStreamInfer", timeout=60) as channel:
        responses = await channel.ask(message)

A response is stamped when its bytes are read from the socket, before they are processed, so that the measured times of
responses that arrive together do not include each other's processing. grpc.aio would hand them over one by one.
"""

from dataclasses import dataclass, field

from erlab.gateway.wire import http2
from erlab.gateway.wire.http2.frames import LARGEST_WINDOW


@dataclass(eq=False)
class Responses:
    """Responses to one request: arrival times (monotonic ns), messages, gRPC status name and details."""

    times: list[int] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    code: str = "OK"
    details: str = ""
    paused = False  # an `http2.calls.Receiver` that never pauses

    def message(self, data: bytes, now: int) -> None:
        self.times.append(now)
        self.messages.append(data)

    async def resumed(self) -> None: ...


class UserChannel:
    """Calls of one method at HOST:PORT over one connection, reopened when a call needs it."""

    def __init__(self, address: str, method: str, timeout: float):
        """`timeout`: deadline of a whole answer, s, sent to the server."""
        self._channel = http2.Channel(address, window=LARGEST_WINDOW)
        self._method, self._timeout = method, timeout

    async def __aenter__(self) -> "UserChannel":
        await self._channel.connect()
        return self

    async def __aexit__(self, *_) -> None:
        await self._channel.__aexit__()

    async def ask(self, data: bytes) -> Responses:
        """Send one message and wait for the end of its responses; a failure is their status."""
        responses = Responses()
        call = self._channel.begin(self._method, responses, timeout=self._timeout, data=data)
        try:
            await call.ended()
        except http2.Failed as failed:
            responses.code, responses.details = failed.code.name, failed.details
        return responses
