"""What both sides of a gRPC call on an HTTP/2 stream do: send messages as far as the peer takes them, and put together
those that come."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING

from erlab.http2 import frames
from erlab.http2.frames import DATA, END_STREAM, FLOW_CONTROL_ERROR, STREAM_CLOSED, Broken
from erlab.http2.headers import Code, Failed

if TYPE_CHECKING:
    from erlab.http2.connection import Connection

UNSENT = 64 * 2**10  # bytes that the peer does not take, beyond which a stream is to be held back


class Stream(ABC):
    """`number` on `connection`; messages of more than `message_bytes` are not taken."""

    __slots__ = (
        "over",
        "peer_done",
        "connection",
        "number",
        "sendable",
        "starved",
        "_unsent",
        "_unsent_bytes",
        "_last",
        "_waiter",
        "_receivable",
        "_uncredited",
        "_parts",
        "_needed",
        "_message_bytes",
    )

    def __init__(self, message_bytes: int):
        self.over = False  # nothing more is to be said or heard
        self.peer_done = False  # the peer says no more
        self.connection: "Connection | None" = None
        self.number = 0
        self.sendable = 0  # bytes that the peer takes beyond its first window, or short of it
        self.starved = False  # waits for the connection's window
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes, self._last = 0, b""
        self._waiter: asyncio.Future | None = None  # for the peer to take more
        self._receivable = self._uncredited = 0  # bytes that the peer may still send; that came since it was told so
        self._parts: list[bytes] = []  # of messages that are not yet there in full
        self._needed = 0  # bytes without which there is no use in looking at them
        self._message_bytes = message_bytes

    def rewind(self) -> None:
        """As if it had not begun."""
        self.sendable, self.starved, self._uncredited = 0, False, 0
        self._parts.clear()
        self.drop()
        self.connection = None

    def begin(self, connection: "Connection", number: int) -> None:
        self.connection, self.number = connection, number
        self._receivable = connection.window
        connection.streams[number] = self

    # What goes out

    def send(self, data: bytes, ends: bool = False) -> None:
        """Send a message, and with `ends` nothing after it, now or as soon as the peer takes it."""
        connection, size = self.connection, len(data) + 5
        room = connection.first_window + self.sendable
        if not self._unsent and size <= room and size <= connection.sendable and size <= frames.FRAME_SIZE:
            self.sendable -= size
            connection.sendable -= size
            connection.write(frames.message_frame(self.number, END_STREAM if ends else 0, data))
            return
        self._unsent.append(memoryview(frames.message(data)))
        self._unsent_bytes += size
        if ends:
            self._last = frames.frame(DATA, END_STREAM, self.number)
        self.flush()

    def end(self, last: bytes) -> None:
        """Send this frame after all else."""
        self._last = last
        self.flush()

    def flush(self) -> None:
        """Send what the peer takes."""
        connection, sent = self.connection, False
        while self._unsent:
            room = min(connection.first_window + self.sendable, connection.frame_size)
            if room <= 0:
                break
            if connection.sendable <= 0:
                if not self.starved:
                    self.starved = True
                    connection.starved.append(self)
                break
            view = self._unsent[0]
            part = view[: min(room, connection.sendable)]
            if len(part) == len(view):
                self._unsent.popleft()
            else:
                self._unsent[0] = view[len(part) :]
            self.sendable -= len(part)
            connection.sendable -= len(part)
            self._unsent_bytes -= len(part)
            connection.write(frames.frame(DATA, 0, self.number, bytes(part)))
            sent = True
        if self._last and not self._unsent:
            last, self._last = self._last, b""
            connection.write(last)
            self.on_sent()
        if sent and self._waiter:
            self.wake()

    @property
    def paused(self) -> bool:
        """Whether more should not be sent now: the peer has not taken what was."""
        return self._unsent_bytes > UNSENT or self.connection.choked

    async def resumed(self) -> None:
        """Until the peer has taken enough, or the call is over."""
        while self.paused and not self.over:
            if self._waiter is None:
                self._waiter = asyncio.get_running_loop().create_future()
                self.connection.held.add(self)
            await asyncio.shield(self._waiter)

    def drop(self) -> None:
        """Forget what is not yet sent: nobody waits for it."""
        self._unsent.clear()
        self._unsent_bytes, self._last = 0, b""
        self.wake()

    def wake(self) -> None:
        self.connection.held.discard(self)
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None

    # What comes in

    def take(self, payload: bytes, size: int, ends: int, now: int) -> None:
        """A DATA frame's payload, which took `size` bytes of the window with its padding, at `now` (monotonic ns)."""
        self._receivable -= size
        self._uncredited += size
        if self._receivable < 0:
            raise Broken(FLOW_CONTROL_ERROR, "more than the stream's window")
        if self.peer_done:
            raise Broken(STREAM_CLOSED, "data after the stream's end")
        if self.over:
            return
        if not payload and not ends:
            self.connection.spend()
        try:
            length = len(payload)
            if not self._parts and length >= 5 and payload.startswith(b"\0"):
                if int.from_bytes(payload[1:5], "big") + 5 == length <= self._message_bytes + 5:
                    self.on_message(payload[5:], now)
                else:
                    self._assemble(payload, now)
            elif payload:
                self._assemble(payload, now)
        except Failed as e:
            self.fail(e.code, e.details)
        if self.over:
            return
        if ends:
            self.peer_done = True
            if self._parts:
                self.fail(Code.INTERNAL, "the last message is cut short")
            else:
                self.on_end()
        elif self._uncredited * 2 >= self.connection.window:
            self.credit()

    def _assemble(self, payload: bytes, now: int) -> None:
        self._parts.append(payload)
        self._needed -= len(payload)
        if self._needed > 0:
            return
        data, at, self._needed = b"".join(self._parts), 0, 0
        while len(data) - at >= 5:
            size = int.from_bytes(data[at + 1 : at + 5], "big")
            if size > self._message_bytes:
                self._parts.clear()
                raise Failed(Code.RESOURCE_EXHAUSTED, f"a message of {size} bytes is larger than {self._message_bytes}")
            if len(data) - at < 5 + size:
                self._needed = 5 + size - (len(data) - at)
                break
            message = data[at + 5 : at + 5 + size]
            self.on_message(self.inflate(data[at], message) if data[at] else message, now)
            if self.over:
                return
            at += 5 + size
        self._parts = [data[at:]] if at < len(data) else []

    def credit(self) -> None:
        """Let the peer send as much again as has come, if there is still place for it."""
        if self._uncredited and not self.full:
            self.connection.write(frames.window_update(self.number, self._uncredited))
            self._receivable += self._uncredited
            self._uncredited = 0

    def inflate(self, flag: int, message: bytes) -> bytes:
        raise Failed(Code.UNIMPLEMENTED, "the message is compressed")

    # The sides' own

    @property
    @abstractmethod
    def full(self) -> bool:
        """Whether what came has not been taken, so that no more should come."""

    @abstractmethod
    def fail(self, code: Code, details: str) -> None:
        """End the call by this status, and tell the peer."""

    def on_message(self, data: bytes, now: int) -> None: ...
    def on_end(self) -> None:
        """Nothing more comes."""

    def on_sent(self) -> None:
        """Everything has been sent."""

    def on_reset(self, code: int) -> None: ...
