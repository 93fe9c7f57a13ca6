"""A gRPC server whose methods are all one coroutine's: it gets a `Call`, takes its messages and sends others.

What it raises as `Failed` is the call's status. A client that cancels, vanishes or is past its deadline cancels it.
Messages and headers are bounded, and the bytes of a message that is too large are never kept; so are the streams of a
connection, the time until a connection says what it wants, and what a client may cost without wanting anything.
"""

import asyncio
import zlib
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from erlab.http2 import frames
from erlab.http2.connection import Connection
from erlab.http2.frames import END_STREAM, NO_ERROR, PREFACE, PROTOCOL_ERROR, REFUSED_STREAM, Broken
from erlab.http2.headers import Code, Failed
from erlab.http2.requests import OK, OPENED, Request, ending, read
from erlab.http2.stream import Stream

WINDOW = 64 * 2**10  # bytes of a call that may wait for their handler
_OVERHEAD = 64  # bytes that a message counts for beside its own, so that empty ones count too
_STREAMS = 4096
_PREFACE_SECONDS = 10.0
_BACKLOG = 1024

Handler = Callable[["Call"], Awaitable[None]]


class Call(Stream):
    """One call, as its handler sees it. `arrived`: when the last message that was received came (monotonic ns)."""

    __slots__ = ("request", "arrived", "task", "_received", "_waiting_bytes", "_reader", "_opened")
    __slots__ += ("_timer",)

    def __init__(self, request: Request, message_bytes: int):
        super().__init__(message_bytes)
        self.request, self.arrived = request, 0
        self.task: asyncio.Task | None = None
        self._received: deque[tuple[bytes, int]] = deque()
        self._waiting_bytes = 0
        self._opened = False  # headers are sent
        self._reader: asyncio.Future | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def receive(self) -> bytes | None:
        """The next message, None after the last."""
        while not self._received:
            if self.peer_done:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        data, self.arrived = self._received.popleft()
        self._waiting_bytes -= len(data) + _OVERHEAD
        if self._uncredited * 2 >= self.connection.window and not self.peer_done:
            self.credit()
        return data

    @property
    def exhausted(self) -> bool:
        """Whether no message is left, and none will come."""
        return self.peer_done and not self._received

    async def only(self) -> bytes:
        """The call's one message; raises Failed where there is none, or another."""
        data = await self.receive()
        if data is None or await self.receive() is not None:
            raise Failed(Code.UNIMPLEMENTED, "this method takes one message")
        return data

    def send(self, data: bytes) -> None:
        """Send a message now or as soon as the client takes it; not at all where it is gone."""
        if self.over:
            return
        if not self._opened:
            self._opened = True
            self.connection.write(frames.header_frames(self.number, 0, OPENED))
        super().send(data)

    def finish(self, code: Code, details: str) -> None:
        """End it by this status now, without waiting for its handler to return."""
        if self.over:
            return
        plain = self._opened and code is Code.OK
        self.refuse(OK if plain else ending(code, details, opened=self._opened))

    def refuse(self, last: bytes) -> None:
        """End it with this header block."""
        self._close()
        self.end(frames.header_frames(self.number, END_STREAM, last))

    def _close(self) -> None:
        self.over = True
        self._received.clear()
        if self._timer:
            self._timer.cancel()

    def fail(self, code: Code, details: str) -> None:
        self.finish(code, details)
        if self.task:
            self.task.cancel()

    def gone(self) -> None:
        """Nobody is there to hear of it any more."""
        self._close()
        self.drop()
        self.connection.forget(self.number)
        if self.task:
            self.task.cancel()

    def until(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self.fail, Code.DEADLINE_EXCEEDED, "Deadline Exceeded")

    @property
    def full(self) -> bool:
        return self._waiting_bytes > WINDOW

    def on_message(self, data: bytes, now: int) -> None:
        self._received.append((data, now))
        self._waiting_bytes += len(data) + _OVERHEAD
        self._tell()

    def on_end(self) -> None:
        self.peer_done = True
        self._tell()

    def _tell(self) -> None:
        if self._reader and not self._reader.done():
            self._reader.set_result(None)

    def on_sent(self) -> None:
        if not self.peer_done:
            self.connection.write(frames.reset(self.number, NO_ERROR))
        self.connection.forget(self.number)

    def on_reset(self, code: int) -> None:
        self.gone()

    def inflate(self, flag: int, message: bytes) -> bytes:
        if flag != 1 or self.request.encoding == "identity":
            raise Failed(Code.INTERNAL, "a message that says it is compressed, and the headers don't")
        stream = zlib.decompressobj(wbits=47)  # gzip's or zlib's head
        try:
            data = stream.decompress(message, self._message_bytes + 1)
        except zlib.error as e:
            raise Failed(Code.INTERNAL, f"a message that cannot be decompressed: {e}") from None
        if len(data) > self._message_bytes:
            raise Failed(Code.RESOURCE_EXHAUSTED, f"a decompressed message is larger than {self._message_bytes} bytes")
        if not stream.eof:
            raise Failed(Code.INTERNAL, "a compressed message that is cut short")
        return data


class _Connection(Connection):
    """The server's side."""

    def __init__(self, server: "Server"):
        super().__init__(WINDOW, lambda pairs: read(pairs, server.header_bytes), server.header_bytes)
        self._server, self._awaited, self._last, self._draining = server, PREFACE, 0, False

    @property
    def last(self) -> int:
        return self._last

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._server.connections.add(self)
        self._silent = asyncio.get_running_loop().call_later(_PREFACE_SECONDS, transport.abort)
        limits = {frames.MAX_CONCURRENT_STREAMS: _STREAMS, frames.MAX_HEADER_LIST_SIZE: self._server.header_bytes}
        self.greet(b"", limits)

    def connection_lost(self, exception: Exception | None) -> None:
        self._silent.cancel()
        for call in list(self.streams.values()):
            call.gone()
        self._server.left(self)

    def data_received(self, data: bytes) -> None:
        if self._awaited:
            size = min(len(data), len(self._awaited))
            if data[:size] != self._awaited[:size]:
                return self.on_broken(Broken(PROTOCOL_ERROR, "this is a gRPC server; it speaks HTTP/2"))
            self._awaited, data = self._awaited[size:], data[size:]
            if not self._awaited:
                self._silent.cancel()
        super().data_received(data)

    def on_headers(self, number: int, request: Request, ends: bool) -> None:
        call = self.streams.get(number)
        if call is not None:
            if not ends or request.method or call.peer_done:
                raise Broken(PROTOCOL_ERROR, "headers within a stream")
            if not call.over:
                call.on_end()
            return
        self._begun(number, frames.HEADERS)
        if number <= self._last:  # of a stream that has ended meanwhile
            return self.spend()
        self._last = number
        if not request.method:
            return self.on_malformed(number, "no method")
        if len(self.streams) >= _STREAMS or self._draining:
            self.spend()
            return self.write(frames.reset(number, REFUSED_STREAM))
        call = Call(request, self._server.message_bytes)
        call.begin(self, number)
        if ends:
            call.on_end()
        if request.refusal:
            return call.refuse(request.refusal)
        if request.timeout is not None:
            call.until(request.timeout)
        self._server.start(call)

    def on_malformed(self, number: int, why: str) -> None:
        self._begun(number, frames.HEADERS)
        self._last = max(self._last, number)
        self.write(frames.reset(number, PROTOCOL_ERROR))
        if call := self.streams.get(number):
            call.gone()

    def on_unknown(self, number: int, kind: int) -> None:
        if number > self._last:
            raise Broken(PROTOCOL_ERROR, f"a frame of kind {kind} for stream {number}, which never began")

    def _begun(self, number: int, kind: int) -> None:
        if not number & 1:
            raise Broken(PROTOCOL_ERROR, f"a frame of kind {kind} for stream {number}, which is ours to begin")

    def forget(self, number: int) -> None:
        self.streams.pop(number, None)
        if self._draining and not self.streams:
            self._hang_up()

    def drain(self) -> None:
        """Take no more calls, and hang up when those that are there have ended."""
        self._draining = True
        self.write(frames.goaway(self._last, NO_ERROR, "the server is ending"))
        if not self.streams:
            self._hang_up()

    def _hang_up(self) -> None:
        self._send()
        self.transport.close()


class Server:
    """Answers calls of any method by `handler`. `message_bytes`, `header_bytes`: of the largest request."""

    def __init__(self, handler: Handler, message_bytes: int = 4 * 2**20, header_bytes: int = 16 * 2**10):
        self.message_bytes, self.header_bytes = message_bytes, header_bytes
        self.connections: set[_Connection] = set()
        self._handler, self._tasks = handler, set()
        self._listener: asyncio.Server | None = None
        self._left = asyncio.Event()  # nobody is connected

    async def listen(self, host: str, port: int, shared: bool = False) -> int:
        """Listen on this port, 0 for any, and return it; raises OSError where it is in use. `shared`: by others too."""
        loop = asyncio.get_running_loop()
        options = {"backlog": _BACKLOG, "reuse_port": shared}
        self._listener = await loop.create_server(lambda: _Connection(self), host, port, **options)
        return self._listener.sockets[0].getsockname()[1]

    async def close(self, grace: float) -> None:
        """Take no more calls, let those that are there end within `grace` seconds, and end the others."""
        if self._listener:
            self._listener.close()
        for connection in list(self.connections):
            connection.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._empty()
        for connection in list(self.connections):
            for call in list(connection.streams.values()):
                call.fail(Code.UNAVAILABLE, "the server is ending")
        if self._tasks:
            await asyncio.wait(self._tasks)
        for connection in list(self.connections):
            connection.transport.abort() if connection.choked else connection.transport.close()

    async def _empty(self) -> None:
        while self.connections:
            self._left.clear()
            await self._left.wait()

    def left(self, connection: _Connection) -> None:
        self.connections.discard(connection)
        self._left.set()

    def start(self, call: Call) -> None:
        # A task begins in the loop's next turn: what a client takes back at once costs next to nothing.
        call.task = asyncio.get_running_loop().create_task(self._run(call))
        self._tasks.add(call.task)
        call.task.add_done_callback(self._tasks.discard)

    async def _run(self, call: Call) -> None:
        try:
            await self._handler(call)
            call.finish(Code.OK, "")
        except Failed as e:
            call.finish(e.code, e.details)
        except asyncio.CancelledError:
            call.finish(Code.CANCELLED, "given up")
            raise
        except Exception as e:
            told = {"message": f"A call of {call.request.method} failed", "exception": e}
            asyncio.get_running_loop().call_exception_handler(told)
            call.finish(Code.UNKNOWN, f"Unexpected {type(e).__name__}")
