"""What users send and what comes back: one message out, many back, each with the time at which it came.

    async with Channel("127.0.0.1:8001", "/inference.GRPCInferenceService/ModelStreamInfer", timeout=60) as channel:
        answer = await channel.ask(message)

A response is stamped when its bytes leave the socket, before anything is done with them, so that those that come
together do not wait for each other's handling in what is measured; grpc.aio hands them over one by one, some 50 us
apart.
"""

from dataclasses import dataclass, field

from erlab.gateway import http2
from erlab.gateway.http2.frames import LARGEST


@dataclass(eq=False)
class Answer:
    """Messages as they came with their time.monotonic_ns(), gRPC's name of the status, and what the server said."""

    times: list[int] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    code: str = "OK"
    details: str = ""
    paused = False  # as an `http2.client.Receiver`: users take whatever comes

    def message(self, data: bytes, now: int) -> None:
        self.times.append(now)
        self.messages.append(data)

    async def resumed(self) -> None: ...


class Channel:
    """Calls of one method at HOST:PORT over one connection, made again when it is lost and a call wants it."""

    def __init__(self, address: str, method: str, timeout: float):
        """`timeout`: seconds for a whole answer, of which the server is told."""
        self._channel = http2.Channel(address, window=LARGEST)
        self._method, self._timeout = method, timeout

    async def __aenter__(self) -> "Channel":
        await self._channel.connect()
        return self

    async def __aexit__(self, *_) -> None:
        await self._channel.__aexit__()

    async def ask(self, data: bytes) -> Answer:
        """Send one message and wait for the end of its answer, whatever it is; raises nothing."""
        answer = Answer()
        call = self._channel.begin(self._method, answer, timeout=self._timeout, data=data)
        try:
            await call.ended()
        except http2.Failed as failed:
            answer.code, answer.details = failed.code.name, failed.details
        return answer
