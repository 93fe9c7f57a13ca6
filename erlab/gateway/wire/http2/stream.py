"""One HTTP/2 stream: gRPC messages in both directions, with flow control."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from erlab.gateway.wire.http2 import frames
from erlab.gateway.wire.http2.frames import (
    CANCEL,
    DATA,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE,
    PREFIX,
    PROTOCOL_ERROR,
    ProtocolError,
)
from erlab.gateway.wire.http2.headers import Code, Head

UNSENT_BYTES = 64 * 2**10  # of a stream not yet accepted by the server, above which its sender pauses


class Carrier(Protocol):
    """Interface of a connection as its streams use it."""

    window: int  # bytes that the server may send on a stream before they are read
    sendable: int  # bytes that the server accepts on all streams
    first_window: int  # bytes that it accepts on each at first
    frame_size: int  # bytes of the largest payload that it accepts
    choked: bool  # whether the system accepts no more
    starved: dict["Stream", None]  # streams that wait for `sendable`

    def write(self, data: bytes) -> None:
        """Send frames."""

    def forget(self, stream: "Stream") -> None:
        """Let go of a stream that is over."""


class Stream(ABC):
    """A stream that carries gRPC messages in both directions.

    Args:
        message_bytes: Largest message accepted, bytes.
        on_message: Called with each message and the time (monotonic ns) at which it was read from the socket.
    """

    __slots__ = ("over", "answered", "sent_all", "connection", "number", "sendable", "_unsent", "_unsent_bytes")
    __slots__ += ("_last", "_waiter", "_receivable", "_uncredited", "_left", "_partial", "_needed", "_message_bytes")
    __slots__ += ("_on_message",)

    def __init__(self, message_bytes: int, on_message: Callable[[bytes, int], None]):
        self._message_bytes, self._on_message = message_bytes, on_message
        self.over = False  # nothing more is sent or read
        self.answered = False  # the headers of the response are there
        self._waiter: asyncio.Future[None] | None = None  # for the server to take more
        self._partial, self._needed = bytearray(), 0  # of messages not yet complete; bytes with which the next one is
        self._left: int | None = None  # bytes of content-length still to come
        self._clear()

    def _clear(self) -> None:
        self.connection: Carrier | None = None
        self.number = 0
        self.sent_all = False  # END_STREAM is sent
        self.sendable = 0  # bytes that the server takes beyond its first window (negative: short of it)
        self._unsent: list[memoryview] = []
        self._unsent_bytes, self._last = 0, b""  # _last: the frame that follows all messages
        self._receivable = self._uncredited = 0  # bytes that the server may send; that came since it was told so

    def begun(self, connection: Carrier, number: int) -> None:
        """The stream has this number from now on."""
        self.connection, self.number, self._receivable = connection, number, connection.window

    def rewind(self) -> None:
        """Leave the connection; the stream can begin anew on this one or another."""
        self.leave()
        self._clear()

    def leave(self) -> None:
        """Forget what is not sent yet, and let the connection forget the stream."""
        if self._unsent or self._last:
            self._unsent.clear()
            self._unsent_bytes, self._last = 0, b""
        if self._waiter is not None:
            self.wake()
        if self.connection is not None:
            self.connection.forget(self)

    # Requests

    def _send(self, data: bytes, ends: bool = False) -> None:
        """Send a message, and with `ends` nothing after it, now or as soon as the server takes it."""
        connection, size = self.connection, len(data) + 5
        room = connection.first_window + self.sendable
        if not self._unsent and size <= room and size <= connection.sendable and size <= FRAME_SIZE:
            self.sendable -= size
            connection.sendable -= size
            self.sent_all = ends
            connection.write(frames.message_frame(self.number, END_STREAM if ends else 0, data))
            return
        self._unsent.append(memoryview(frames.message(data)))
        self._unsent_bytes += size
        if ends:
            self._end()
        else:
            self.flush()

    def _end(self) -> None:
        """Send nothing after what was sent."""
        self._last = frames.frame(DATA, END_STREAM, self.number)
        self.flush()

    def flush(self) -> None:
        """Send what the server takes."""
        connection, sent, whole = self.connection, False, 0
        for view in self._unsent:
            while view:
                room = min(connection.first_window + self.sendable, connection.sendable, connection.frame_size)
                if room <= 0:
                    break
                part, view = view[:room], view[room:]
                self.sendable -= len(part)
                connection.sendable -= len(part)
                self._unsent_bytes -= len(part)
                connection.write(frames.frame(DATA, 0, self.number, bytes(part)))
                sent = True
            if view:
                self._unsent[whole] = view
                break
            whole += 1
        del self._unsent[:whole]
        if self._unsent and connection.sendable <= 0:
            connection.starved[self] = None
        if self._last and not self._unsent:
            last, self._last, self.sent_all = self._last, b"", True
            connection.write(last)
        if sent:
            self.wake()

    @property
    def paused(self) -> bool:
        """Whether the sender should wait: the server has not taken what was sent."""
        return self._unsent_bytes > UNSENT_BYTES or self.connection.choked

    async def resumed(self) -> None:
        """Wait until the server has taken enough, or the stream is over."""
        while self.paused and not self.over:
            if self._waiter is None:
                self._waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiter)

    def wake(self) -> None:
        """Let who waits in `resumed` look again."""
        if self._waiter is not None:
            self._waiter.set_result(None)
            self._waiter = None

    # Responses

    def take(self, payload: bytes, size: int, ends: int, now: int) -> None:
        """Take the payload of a DATA frame, which with its padding took `size` bytes of the window."""
        self._receivable -= size
        self._uncredited += size
        if self._receivable < 0:
            raise ProtocolError(FLOW_CONTROL_ERROR, "more data than the window of the stream allows")
        length = len(payload)
        if not self.answered:
            return self.malformed("DATA before the headers of the response")
        if self._left is not None:
            self._left -= length
        if not self._partial and length >= 5:
            compressed, expected = PREFIX.unpack_from(payload)
            if expected + 5 == length and not compressed and expected <= self._message_bytes:
                self._on_message(payload[5:], now)
            else:
                self._assemble(payload, now)
        elif payload:
            self._assemble(payload, now)
        if self.over:
            return
        if ends:
            self.on_end()
        elif self._uncredited * 2 >= self.connection.window:
            self.credit()

    def _assemble(self, payload: bytes, now: int) -> None:
        partial, at = self._partial, 0
        partial += payload
        while len(partial) >= max(self._needed, at + 5):
            compressed, size = PREFIX.unpack_from(partial, at)
            if compressed:
                return self.fail(Code.INTERNAL, "the server sent a compressed message, which was not negotiated")
            if size > self._message_bytes:
                words = f"a message of {size} bytes is larger than {self._message_bytes}"
                return self.fail(Code.RESOURCE_EXHAUSTED, words)
            following = at + 5 + size
            if len(partial) < following:
                self._needed = 5 + size
                break
            with memoryview(partial) as view:
                message = bytes(view[at + 5 : following])
            at, self._needed = following, 0
            self._on_message(message, now)
            if self.over:
                return
        del partial[:at]

    @property
    def is_cut(self) -> bool:
        """Whether a part of a message came, or less than content-length says."""
        return bool(self._partial or self._left)

    def credit(self) -> None:
        """Let the server send as much again as came, unless what came has still to be taken."""
        if self._uncredited and not self.over and not self.full:
            self.connection.write(frames.window_update(self.number, self._uncredited))
            self._receivable += self._uncredited
            self._uncredited = 0

    def malformed(self, why: str) -> None:
        """End a call whose response RFC 9113, section 8.1.1, calls malformed."""
        self.fail(Code.INTERNAL, f"the server's response is malformed: {why}", PROTOCOL_ERROR)

    # What a call decides

    @property
    @abstractmethod
    def full(self) -> bool:
        """Whether the receiver wants no more for now; `credit` is called when it does again."""

    @abstractmethod
    def fail(self, code: Code, details: str, error: int = CANCEL) -> None:
        """End the call, and reset its stream with an HTTP/2 error code."""

    @abstractmethod
    def on_head(self, head: Head, ends: int) -> None:
        """Take a header block, which with `ends` is the last of the stream."""

    @abstractmethod
    def on_end(self) -> None:
        """A DATA frame ended the stream."""

    @abstractmethod
    def on_reset(self, error: int) -> None:
        """The server reset the stream."""

    @abstractmethod
    def on_lost(self, why: str, processed: bool) -> None:
        """The connection does nothing more for the stream. `processed`: whether the server may have looked at it."""
