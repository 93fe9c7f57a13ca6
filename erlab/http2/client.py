"""Calls of a gRPC server over one connection, which is made again when it is lost and a call wants it.

A call's responses are pushed to its receiver where they arrive, as whole messages with the time at which their bytes
left the socket. While the receiver is `paused`, the server gets no more window for them: a slow reader holds back who
answers, and what waits here is bounded by that window.
"""

import asyncio
from collections import deque
from functools import lru_cache

from erlab.http2 import frames
from erlab.http2.calls import Call, Kept, Receiver
from erlab.http2.connection import Connection
from erlab.http2.frames import LARGEST, PROTOCOL_ERROR, Broken
from erlab.http2.headers import Code, Failed, Metadata, block

MESSAGE_BYTES = 64 * 2**20
WINDOW = 64 * 2**10
_CONNECT_SECONDS = 10.0


class _Connection(Connection):
    """The client's side: numbers streams, and begins no more of them than the server takes."""

    def __init__(self, channel: "Channel"):
        super().__init__(channel.window, dict)
        self._channel, self._next, self._most = channel, 1, LARGEST
        self._usable = True

    @property
    def usable(self) -> bool:
        """For new calls, now or when others have ended."""
        return self._usable and not self.transport.is_closing()

    @property
    def has_room(self) -> bool:
        return len(self.streams) < self._most

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.greet(frames.PREFACE, {})

    def connection_lost(self, exception: Exception | None) -> None:
        self._usable = False
        why = f"{exception or 'the server closed the connection'}"
        why = f"the server does not speak HTTP/2: {why}" if isinstance(exception, Broken) else why
        for call in list(self.streams.values()):
            call.finish(Code.UNAVAILABLE, why)
        self._channel.go_on()

    def begin(self, call: Call) -> None:
        number, self._next = self._next, self._next + 2
        self._usable = self._usable and self._next < LARGEST
        call.begin(self, number)

    def forget(self, number: int) -> None:
        self.streams.pop(number, None)
        if not self._usable and not self.streams:
            self.transport.close()
        self._channel.go_on()

    def on_headers(self, number: int, headers: dict[str, str], ends: bool) -> None:
        if call := self.streams.get(number):
            call.on_headers(headers, ends)
        else:
            self.on_unknown(number, frames.HEADERS)

    def on_unknown(self, number: int, kind: int) -> None:
        if number >= self._next or not number & 1:
            raise Broken(PROTOCOL_ERROR, f"a frame of kind {kind} for stream {number}, which never began")

    def on_settings(self, values: dict[int, int]) -> None:
        self._most = values.get(frames.MAX_CONCURRENT_STREAMS, self._most)
        self._channel.go_on()

    def on_goaway(self, last: int, details: str) -> None:
        self._usable = False
        for number, call in list(self.streams.items()):
            if number > last:
                call.finish(Code.UNAVAILABLE, f"the server goes away: {details}")
        if not self.streams:
            self.transport.close()


class Channel:
    """The server at HOST:PORT. `backoff`: seconds after a failed attempt to connect in which calls fail at once.
    `window`: bytes of a call that may wait here for its receiver. `message_bytes`: the largest response taken."""

    def __init__(self, address: str, backoff: float = 0.0, window: int = WINDOW, message_bytes: int = MESSAGE_BYTES):
        host, _, self._port = address.rpartition(":")
        self._address, self._host = address, host.strip("[]")
        self.window, self.message_bytes = window, message_bytes
        self._backoff, self._not_before, self._why = backoff, 0.0, ""
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task | None = None
        self._waiting: deque[Call] = deque()  # for a connection, or for the server to take more streams

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(self, *_) -> None:
        if self._connecting:
            self._connecting.cancel()
        self._give_up("the channel is closed")
        if self._connection:
            for call in list(self._connection.streams.values()):
                call.cancel()
            self._connection.transport.close()

    async def connect(self) -> None:
        """Connect, if there is no connection yet; calls will tell if that failed."""
        if self._connection is None:
            self._connect()
            await asyncio.wait([self._connecting])

    def begin(
        self,
        method: str,
        receiver: Receiver,
        metadata: Metadata = (),
        timeout: float | None = None,
        data: bytes | None = None,
    ) -> Call:
        """Begin a call whose responses go to `receiver`, `timeout` seconds at most, of which the server is told.

        data: the one message to send; without it, they are what the call is given by `send` until its `half_close`.
        """
        call = Call(self, _head(self._address, method, metadata, timeout), receiver, data)
        if timeout is not None:
            call.until(timeout)
        self._waiting.append(call)
        self.go_on()
        return call

    async def unary(self, method: str, data: bytes, metadata: Metadata = (), timeout: float | None = None) -> bytes:
        """The one response to one message; raises Failed."""
        kept = Kept()
        await self.begin(method, kept, metadata, timeout, data).ended()
        if len(kept.messages) != 1:
            raise Failed(Code.INTERNAL, f"{len(kept.messages)} responses where there should be one")
        return kept.messages[0]

    def put(self, call: Call, seconds: float) -> None:
        """Begin a call once more, in a while."""
        asyncio.get_running_loop().call_later(seconds, self._put, call)

    def _put(self, call: Call) -> None:
        self._waiting.append(call)
        self.go_on()

    def go_on(self) -> None:
        """Begin calls that wait, as many as can."""
        connection = self._connection
        while self._waiting:
            if self._waiting[0].over:
                self._waiting.popleft()
            elif connection is None or not connection.usable:
                return self._connect()
            elif not connection.has_room:
                return
            else:
                connection.begin(self._waiting.popleft())

    def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._connecting is None:
            if loop.time() < self._not_before:
                self._give_up(self._why)
            else:
                self._connecting = loop.create_task(self._attempt())

    async def _attempt(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, self._connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
        except (OSError, TimeoutError) as e:
            self._why, self._not_before = f"cannot connect: {e or 'timed out'}", loop.time() + self._backoff
            self._give_up(self._why)
        finally:
            self._connecting = None
        self.go_on()

    def _give_up(self, why: str) -> None:
        while self._waiting:
            self._waiting.popleft().finish(Code.UNAVAILABLE, why)


@lru_cache(256)
def _head(authority: str, method: str, metadata: Metadata, timeout: float | None) -> bytes:
    """The header block of a call."""
    headers = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", authority)]
    headers += [("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "erlab")]
    if timeout is not None:
        headers.append(("grpc-timeout", f"{min(99_999_999, max(1, round(timeout * 1000)))}m"))
    return block([*headers, *metadata])
