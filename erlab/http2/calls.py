"""One call of a client: what it sends, where its responses go, and how it ended."""

import asyncio
from typing import TYPE_CHECKING, Protocol

from erlab.http2 import frames
from erlab.http2.connection import Connection
from erlab.http2.frames import CANCEL, REFUSED_STREAM
from erlab.http2.headers import Code, Failed, status
from erlab.http2.stream import Stream

if TYPE_CHECKING:
    from erlab.http2.client import Channel

_RESETS = {REFUSED_STREAM: Code.UNAVAILABLE, CANCEL: Code.CANCELLED, 11: Code.RESOURCE_EXHAUSTED}
_RESETS |= {12: Code.PERMISSION_DENIED}
_OF_HTTP = {"400": Code.INTERNAL, "401": Code.UNAUTHENTICATED, "403": Code.PERMISSION_DENIED, "404": Code.UNIMPLEMENTED}
_OF_HTTP |= dict.fromkeys(("429", "502", "503", "504"), Code.UNAVAILABLE)
_REFUSALS, _REFUSED_SECONDS = 20, 0.01  # how often a stream that the server did not take is begun again, and when


class Receiver(Protocol):
    """Where a call's responses go."""

    def message(self, data: bytes, now: int) -> None:
        """A response, which came at `now` (monotonic ns)."""

    @property
    def paused(self) -> bool:
        """Whether no more should come."""

    async def resumed(self) -> None:
        """Until more may come."""


class Kept:
    """A receiver that keeps the responses."""

    paused = False

    def __init__(self):
        self.messages: list[bytes] = []

    def message(self, data: bytes, now: int) -> None:
        self.messages.append(data)

    async def resumed(self) -> None: ...


class Call(Stream):
    """A call that has begun, or will when there is a connection; made by `Channel.begin`."""

    __slots__ = ("head", "code", "details", "_channel", "_receiver", "_done", "_pending", "_ends", "_again")
    __slots__ += ("_refusals", "_timer", "_task")

    def __init__(self, channel: "Channel", head: bytes, receiver: Receiver, data: bytes | None):
        super().__init__(channel.message_bytes)
        self.head, self.code, self.details = head, Code.OK, ""
        self._channel, self._receiver = channel, receiver
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending = [] if data is None else [data]  # what is to be sent when it begins
        self._ends = data is not None  # whether that is all
        self._again = True  # whether it can begin once more: all that was sent is still pending
        self._refusals = 0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task | None = None  # waits for the receiver

    async def ended(self) -> None:
        """Until the call is over; raises Failed unless it went well. Who stops waiting cancels it."""
        try:
            await self._done
        finally:
            self.cancel()
        if self.code is not Code.OK:
            raise Failed(self.code, self.details)

    def begin(self, connection: Connection, number: int) -> None:
        super().begin(connection, number)
        connection.write(frames.header_frames(number, 0, self.head))
        for place, data in enumerate(self._pending, 1):
            super().send(data, ends=self._ends and place == len(self._pending))
        if self._ends and not self._pending:
            self.end(frames.frame(frames.DATA, frames.END_STREAM, number))

    def send(self, data: bytes) -> None:
        """Send one more message."""
        if self.connection is None:
            self._pending.append(data)
        elif not self.over:
            self._again = False
            super().send(data)

    def half_close(self) -> None:
        """Send no more."""
        if self.connection is None:
            self._ends = True
        elif not self.over:
            self._again = False
            self.end(frames.frame(frames.DATA, frames.END_STREAM, self.number))

    @property
    def paused(self) -> bool:
        if self.connection is None:
            return sum(map(len, self._pending)) > frames.FIRST_WINDOW
        return super().paused

    async def resumed(self) -> None:
        while self.connection is None and self.paused and not self.over:
            await asyncio.wait([self._done], timeout=_REFUSED_SECONDS)
        if self.connection is not None:
            await super().resumed()

    def cancel(self) -> None:
        self.fail(Code.CANCELLED, "given up")

    def fail(self, code: Code, details: str) -> None:
        if not self.over:
            if self.connection is not None:
                self.connection.write(frames.reset(self.number, CANCEL))
            self.finish(code, details)

    def finish(self, code: Code, details: str) -> None:
        """End it here, where the server knows of it or never will."""
        if self.over:
            return
        self.over, self.code, self.details = True, code, details
        if not self._done.done():  # else who waited was cancelled
            self._done.set_result(None)
        self._pending = []
        for waiting in (self._timer, self._task):
            if waiting:
                waiting.cancel()
        if self.connection is not None:
            self.drop()
            self.connection.forget(self.number)

    def until(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self.fail, Code.DEADLINE_EXCEEDED, "Deadline Exceeded")

    @property
    def full(self) -> bool:
        if self._task is None and self._receiver.paused:
            self._task = asyncio.get_running_loop().create_task(self._resume())
        return self._task is not None

    async def _resume(self) -> None:
        await self._receiver.resumed()
        self._task = None
        self.credit()

    def on_message(self, data: bytes, now: int) -> None:
        self._receiver.message(data, now)

    def on_headers(self, headers: dict[str, str], ends: bool) -> None:
        said, self._pending = headers.get(":status", "200"), []
        if ends and "grpc-status" in headers:
            self.finish(*status(headers))
        elif said != "200" and not said.startswith("1"):
            self.fail(_OF_HTTP.get(said, Code.UNKNOWN), f"the server answered with HTTP status {said}")
        elif ends:
            self.finish(Code.UNKNOWN, "the server ended without a status")

    def on_end(self) -> None:
        self.finish(Code.INTERNAL, "the stream ended without a status")

    def on_reset(self, code: int) -> None:
        if code == REFUSED_STREAM and self._again and self._refusals < _REFUSALS:  # the server has not looked at it
            self._refusals += 1
            self.connection.forget(self.number)
            self.rewind()
            self._channel.put(self, _REFUSED_SECONDS)
        else:
            self.finish(_RESETS.get(code, Code.INTERNAL), f"the server reset the stream with code {code}")
