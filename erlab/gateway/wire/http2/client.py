"""Calls to a gRPC server over one connection, which is reopened when a call needs it."""

import asyncio
from functools import lru_cache
from typing import Protocol

from erlab.gateway.wire.http2 import frames
from erlab.gateway.wire.http2.connection import Connection
from erlab.gateway.wire.http2.frames import CANCEL, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY, NO_ERROR, REFUSED_STREAM
from erlab.gateway.wire.http2.headers import Code, Failed, Head, Metadata, block, timeout_field
from erlab.gateway.wire.http2.stream import UNSENT_BYTES, Stream

MESSAGE_BYTES = 64 * 2**20  # of the largest response
WINDOW = 64 * 2**10  # bytes of a call's responses that may wait for its receiver
CONNECT_SECONDS = 10.0  # to connect and receive the server's settings
ATTEMPTS = 20  # to send a call that servers refuse before they begin it
RETRY_SECONDS = 0.01  # between a refused call and the next attempt
REPLAY_BYTES = 2**20  # of a call's messages kept for another attempt until its answer begins
_RESETS = {REFUSED_STREAM: Code.UNAVAILABLE, CANCEL: Code.CANCELLED}  # others: INTERNAL
_RESETS |= {ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED, INADEQUATE_SECURITY: Code.PERMISSION_DENIED}


class Receiver(Protocol):
    """Receiver of a call's responses."""

    def message(self, data: bytes, now: int) -> None:
        """Take a response, read from the socket at `now` (time.monotonic_ns()); must not raise."""

    @property
    def paused(self) -> bool:
        """Whether the server should send no more for now."""

    async def resumed(self) -> None:
        """Wait until the server may send more."""


class Call(Stream):
    """A call in progress, or waiting for a connection with room for it; made by `Channel.begin`."""

    __slots__ = ("code", "details", "_channel", "_head", "_receiver", "_deadline", "_timer", "_done", "_resuming")
    __slots__ += ("_request", "_request_bytes", "_half_closed", "_attempts")

    def __init__(self, channel: "Channel", head: bytes, receiver: Receiver, seconds: float | None, data: bytes | None):
        super().__init__(channel.message_bytes, receiver.message)
        self.code, self.details = Code.OK, ""
        self._channel, self._head, self._receiver = channel, head, receiver
        loop = asyncio.get_running_loop()
        self._deadline, self._timer = None, None
        if seconds is not None:
            self._deadline = loop.time() + seconds
            self._timer = loop.call_later(seconds, self.fail, Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
        self._done: asyncio.Future[None] = loop.create_future()
        self._resuming: asyncio.Task[None] | None = None  # waits for the receiver
        self._request: list[bytes] | None = [] if data is None else [data]  # all messages; None: cannot be sent again
        self._request_bytes = 0 if data is None else len(data)
        self._half_closed = data is not None
        self._attempts = 0

    async def ended(self) -> None:
        """Wait for the end of the call; raises Failed unless its status is OK. Cancelling the wait cancels the call."""
        try:
            await self._done
        finally:
            self.cancel()
        if self.code is not Code.OK:
            raise Failed(self.code, self.details)

    def send(self, data: bytes) -> None:
        """Send one more message."""
        if self.over:
            return
        if self._request is not None:
            self._request.append(data)
            self._request_bytes += len(data)
        if self.connection is not None:
            self._send(data)
            if self._request_bytes > REPLAY_BYTES:
                self._request = None

    def half_close(self) -> None:
        """Send no more messages."""
        if not self.over and not self._half_closed:
            self._half_closed = True
            if self.connection is not None:
                self._end()

    @property
    def paused(self) -> bool:
        """Whether to wait with more messages, with `resumed`: the server has not accepted those sent."""
        return self._request_bytes > UNSENT_BYTES if self.connection is None else super().paused

    def cancel(self) -> None:
        """End the call, if it is not over."""
        self.fail(Code.CANCELLED, "the call was cancelled")

    # What the channel and the connection use

    def begin(self, connection: Connection) -> None:
        """Send all that there is to be sent."""
        head = self._head
        if self._deadline is not None:
            head += timeout_field(self._deadline - asyncio.get_running_loop().time())
        connection.begin(self, head)
        *others, last = self._request or [None]
        for data in others:
            self._send(data)
        if last is not None:
            self._send(last, self._half_closed)
        elif self._half_closed:
            self._end()
        if self._waiter is not None:
            self.wake()

    def fail(self, code: Code, details: str, error: int = CANCEL) -> None:
        if not self.over:
            if self.connection is not None:
                self.connection.write(frames.reset(self.number, error))
            self.finish(code, details)

    def finish(self, code: Code, details: str) -> None:
        """End the call here; the server knows, or will never hear of it."""
        if self.over:
            return
        self.over, self.code, self.details = True, code, details
        if not self._done.done():  # else who waited was cancelled
            self._done.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if self._resuming is not None:
            self._resuming.cancel()
        self._request = None
        if self.connection is None:
            self._channel.forget(self)
        self.leave()

    @property
    def full(self) -> bool:
        if self._resuming is None and self._receiver.paused:
            self._resuming = asyncio.get_running_loop().create_task(self._resume())
        return self._resuming is not None

    async def _resume(self) -> None:
        await self._receiver.resumed()
        self._resuming = None
        self.credit()

    def on_head(self, head: Head, ends: int) -> None:
        self._request = None  # the server has begun
        opens = head.http_status != ""
        if head.malformed:
            self.malformed(head.malformed)
        elif opens is self.answered:
            self.malformed("a :status after the first headers" if opens else "no :status")
        elif not opens and not ends:
            self.malformed("headers between messages")
        elif not opens:
            self._on_trailers(head)
        elif head.refusal is None and not ends:
            self.answered, self._left = True, head.length
        elif head.http_status.startswith("1"):  # an interim response; another follows
            if ends:
                self.malformed(f"the :status {head.http_status} in the last headers")
        elif head.refusal and not (ends and head.code not in (None, Code.OK)):
            self.fail(*head.refusal)
        else:
            self._on_trailers(head)

    def _on_trailers(self, head: Head) -> None:
        if head.code is None:
            self._finish_stream(Code.UNKNOWN, "the server ended the call without a grpc-status")
        elif head.code is Code.OK and self.is_cut:
            self._finish_stream(Code.INTERNAL, "the server ended the call within a message")
        else:
            self._finish_stream(head.code, head.details)

    def on_end(self) -> None:
        self._finish_stream(Code.INTERNAL, "the server ended the call without trailers")

    def _finish_stream(self, code: Code, details: str) -> None:
        """End the call as the server has ended the stream, which on our side may still be open."""
        if not self.sent_all:
            self.connection.write(frames.reset(self.number, NO_ERROR))
        self.finish(code, details)

    def on_reset(self, error: int) -> None:
        words = f"the server reset the stream with {frames.error_name(error)}"
        if error == REFUSED_STREAM:
            self.on_lost(words, processed=False)
        else:
            self.finish(_RESETS.get(error, Code.INTERNAL), words)

    def on_lost(self, why: str, processed: bool) -> None:
        if processed or self._request is None or self._attempts >= ATTEMPTS:
            self.finish(Code.UNAVAILABLE, why)
        else:
            self._attempts += 1
            self.rewind()
            self._channel.again(self)


class Channel:
    """Connection to the server at HOST:PORT.

    Args:
        address: HOST:PORT.
        backoff: Seconds after a failed connection attempt during which calls fail at once.
        window: Bytes of a call's responses that may wait for its receiver.
        message_bytes: Largest response, bytes.
    """

    def __init__(self, address: str, backoff: float = 0.0, window: int = WINDOW, message_bytes: int = MESSAGE_BYTES):
        host, _, self._port = address.rpartition(":")
        self._address, self._host = address, host.strip("[]")
        self.window, self.message_bytes = window, message_bytes
        self._backoff, self._not_before, self._why = backoff, 0.0, ""
        self._connection: Connection | None = None  # for new calls
        self._connections: set[Connection] = set()  # with those that only end their calls
        self._connecting: asyncio.Task[None] | None = None
        self._waiting: dict[Call, None] = {}  # in order: for a connection, or for the server to take more streams
        self._pause: asyncio.TimerHandle | None = None  # after a refused call
        self._closed = False

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(self, *_) -> None:
        self._closed = True
        if self._connecting:
            self._connecting.cancel()
        if self._pause:
            self._pause.cancel()
            self._pause = None
        self._give_up("the channel is closed", Code.CANCELLED)
        for connection in self._connections:
            for call in list(connection.streams.values()):
                call.fail(Code.CANCELLED, "the channel is closed")
            connection.close()

    async def connect(self) -> None:
        """Connect, unless connected; a failure is reported by later calls."""
        if self._connection is None:
            self._connect()
            if self._connecting:
                await asyncio.wait([self._connecting])

    def begin(
        self,
        method: str,
        receiver: Receiver,
        metadata: Metadata = (),
        timeout: float | None = None,
        data: bytes | None = None,
    ) -> Call:
        """Begin a call.

        Args:
            method: "/package.Service/Method".
            receiver: Receiver of the responses.
            metadata: Pairs as on the wire: lower-case names, base64 values of names that end in -bin.
            timeout: Seconds until the call ends with DEADLINE_EXCEEDED, sent to the server; None for no deadline.
            data: The only message; None to send messages with `Call.send` until `Call.half_close`.
        """
        call = Call(self, _head(self._address, method, metadata), receiver, timeout, data)
        self._waiting[call] = None
        self._go_on()
        return call

    async def unary(self, method: str, data: bytes, metadata: Metadata = (), timeout: float | None = None) -> bytes:
        """Return the only response to one message; parameters as of `begin`; raises Failed."""
        single = _Single()
        single.call = self.begin(method, single, metadata, timeout, data)
        await single.call.ended()
        if single.response is None:
            raise Failed(Code.INTERNAL, "the server sent no response where one is expected")
        return single.response

    def again(self, call: Call) -> None:
        """Send a call again that no server has begun."""
        self._waiting[call] = None
        if self._closed:
            self._go_on()
        elif self._pause is None:
            self._pause = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._resume)

    def forget(self, call: Call) -> None:
        """The call is over."""
        self._waiting.pop(call, None)

    def _resume(self) -> None:
        self._pause = None
        self._go_on()

    def _go_on(self) -> None:
        """Begin as many waiting calls as the connection has room for."""
        connection = self._connection
        while self._waiting and self._pause is None:
            if self._closed:
                self._give_up("the channel is closed", Code.CANCELLED)
            elif connection is None or not connection.usable:
                return self._connect()
            elif not connection.has_room:
                return
            else:
                call = next(iter(self._waiting))
                del self._waiting[call]
                call.begin(connection)

    def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._connecting is None:
            if loop.time() < self._not_before:
                self._give_up(self._why, Code.UNAVAILABLE)
            else:
                self._connecting = loop.create_task(self._attempt())

    async def _attempt(self) -> None:
        loop, connection = asyncio.get_running_loop(), None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(self._protocol, self._host, self._port)
                lost = await connection.settled  # calls wait: the settings say how many streams the server takes
            if not connection.usable:
                raise ConnectionError(lost or "the server goes away at once")
            self._connection = connection
            self._connections = {connection, *(c for c in self._connections if not c.closed)}
        except (OSError, ValueError, OverflowError) as e:  # a host or port that is none raises the latter
            self._why = f"cannot connect: {str(e) or f'no HTTP/2 settings within {CONNECT_SECONDS:g} s'}"
            self._not_before = loop.time() + self._backoff
            self._give_up(self._why, Code.UNAVAILABLE)
        finally:
            self._connecting = None
            if connection is not None and connection is not self._connection:
                connection.close()
        self._go_on()

    def _protocol(self) -> Connection:
        return Connection(self.window, self._go_on)

    def _give_up(self, why: str, code: Code) -> None:
        for call in list(self._waiting):
            call.finish(code, why)


class _Single:
    """A receiver of one response."""

    call: Call
    response: bytes | None = None
    paused = False

    def message(self, data: bytes, now: int) -> None:
        if self.response is not None:
            self.call.fail(Code.INTERNAL, "the server sent more than one response where one is expected")
        self.response = data

    async def resumed(self) -> None: ...


@lru_cache(256)
def _head(authority: str, method: str, metadata: Metadata) -> bytes:
    """Return the header block of a call, which its time limit may follow."""
    headers = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", authority)]
    headers += [("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "erlab")]
    return block([*headers, *metadata])
