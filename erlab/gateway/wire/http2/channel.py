"""Channel to a gRPC server: one connection, which is reopened when a call needs it."""

import asyncio
from functools import lru_cache

from erlab.gateway.wire.http2.calls import Call, Receiver
from erlab.gateway.wire.http2.connection import Connection
from erlab.gateway.wire.http2.headers import Code, Failed, Metadata, block

MESSAGE_BYTES = 64 * 2**20  # of the largest response
WINDOW = 64 * 2**10  # bytes of a call's responses that may wait for its receiver
CONNECT_SECONDS = 10.0  # to connect and receive the server's settings
RETRY_SECONDS = 0.01  # between a refused call and the next attempt


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
        self._connections: set[Connection] = set()  # with those that only finish their calls
        self._connecting: asyncio.Task[None] | None = None
        self._waiting: dict[Call, None] = {}  # in order: for a connection, or for the server to accept more streams
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
            for call in list(connection.calls.values()):
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
        head = _head(self._address, method, metadata)
        call = Call(head, receiver, self.message_bytes, timeout, data, self._again, self._forget)
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

    def _again(self, call: Call) -> None:
        """Retry a call that no server has begun."""
        self._waiting[call] = None
        if self._closed:
            self._go_on()
        elif self._pause is None:
            self._pause = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._resume)

    def _forget(self, call: Call) -> None:
        """Remove a call that ended while it waited."""
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
                lost = await connection.settled  # calls wait: the settings say how many streams the server accepts
            if not connection.usable:
                raise ConnectionError(lost or "the server goes away at once")
            self._connection = connection
            self._connections = {connection, *(c for c in self._connections if not c.closed)}
        except (OSError, ValueError, OverflowError) as e:  # the latter for an invalid host or port
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
