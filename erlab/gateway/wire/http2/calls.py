"""One gRPC call on one HTTP/2 stream: messages in both directions, flow control, retries and the status."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from erlab.gateway.wire.http2 import frames
from erlab.gateway.wire.http2.frames import (
    CANCEL,
    DATA,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE,
    INADEQUATE_SECURITY,
    NO_ERROR,
    PREFIX,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    ProtocolError,
)
from erlab.gateway.wire.http2.headers import Code, Failed, Head, timeout_field

UNSENT_BYTES = 64 * 2**10  # of a call's messages not yet accepted by the server, above which its sender pauses
REPLAY_BYTES = 2**20  # of a call's messages kept for a retry until its response begins
ATTEMPTS = 20  # retries of a call that no server has begun
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


class Carrier(Protocol):
    """A connection as its calls use it."""

    window: int  # bytes that the server may send on a stream before they are read
    sendable: int  # bytes that the server accepts on all streams
    first_window: int  # bytes that it accepts on each stream at first
    frame_size: int  # bytes of the largest payload that it accepts
    choked: bool  # whether the system accepts no more bytes
    starved: dict["Call", None]  # calls that wait for `sendable`

    def begin(self, call: "Call", block: bytes) -> int:
        """Begin a call with this header block; returns its stream's number."""

    def write(self, data: bytes) -> None:
        """Send frames."""

    def forget(self, call: "Call") -> None:
        """Remove a call that is over."""


class Call:
    """A call in progress, or waiting for a connection with room for it; made by `Channel.begin`.

    Args:
        head: Header block, which a timeout may follow.
        receiver: Receiver of the responses.
        message_bytes: Largest response, bytes.
        seconds: Time until the call ends with DEADLINE_EXCEEDED; None for no deadline.
        data: The only message; None to send messages with `send` until `half_close`.
        retry: Called with the call when no server has begun it, so that it can begin again.
        forget: Called with the call when it ends while it waits for a connection.
    """

    __slots__ = ("answered", "code", "connection", "details", "number", "over", "sendable", "sent_all")
    __slots__ += ("_attempts", "_deadline", "_done", "_forget", "_half_closed", "_head", "_last", "_left")
    __slots__ += ("_message_bytes", "_needed", "_on_message", "_partial", "_receivable", "_receiver", "_request")
    __slots__ += ("_request_bytes", "_resuming", "_retry", "_timer", "_uncredited", "_unsent", "_unsent_bytes")
    __slots__ += ("_waiter",)

    def __init__(
        self,
        head: bytes,
        receiver: Receiver,
        message_bytes: int,
        seconds: float | None,
        data: bytes | None,
        retry: Callable[["Call"], None],
        forget: Callable[["Call"], None],
    ):
        self._head, self._receiver, self._message_bytes = head, receiver, message_bytes
        self._on_message, self._retry, self._forget = receiver.message, retry, forget
        self.code, self.details = Code.OK, ""
        self.over = False  # nothing more is sent or read
        self.answered = False  # the response's headers have arrived
        loop = asyncio.get_running_loop()
        self._deadline, self._timer = None, None
        if seconds is not None:
            self._deadline = loop.time() + seconds
            self._timer = loop.call_later(seconds, self.fail, Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
        self._done: asyncio.Future[None] = loop.create_future()
        self._resuming: asyncio.Task[None] | None = None  # waits for the receiver
        self._waiter: asyncio.Future[None] | None = None  # of a sender that waits for the server to accept more
        self._request: list[bytes] | None = [] if data is None else [data]  # all messages; None: cannot be retried
        self._request_bytes = 0 if data is None else len(data)
        self._half_closed = data is not None
        self._attempts = 0
        self._partial, self._needed = bytearray(), 0  # of an incomplete message; bytes that complete it
        self._left: int | None = None  # bytes of content-length still to come
        self._clear()

    def _clear(self) -> None:
        self.connection: Carrier | None = None
        self.number = 0
        self.sent_all = False  # END_STREAM is sent
        self.sendable = 0  # bytes that the server accepts beyond its first window (negative: short of it)
        self._unsent: list[memoryview] = []
        self._unsent_bytes, self._last = 0, b""  # _last: the frame that follows all messages
        self._receivable = self._uncredited = 0  # bytes that the server may send; that arrived since it was told so

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
        if self.connection is None:
            return self._request_bytes > UNSENT_BYTES
        return self._unsent_bytes > UNSENT_BYTES or self.connection.choked

    async def resumed(self) -> None:
        """Wait until the server has accepted enough, or the call is over."""
        while self.paused and not self.over:
            if self._waiter is None:
                self._waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiter)

    def cancel(self) -> None:
        """End the call, if it is not over."""
        self.fail(Code.CANCELLED, "the call was cancelled")

    # What the channel uses

    def begin(self, connection: Carrier) -> None:
        """Begin on a connection, and send all messages given so far."""
        head = self._head
        if self._deadline is not None:
            head += timeout_field(self._deadline - asyncio.get_running_loop().time())
        self.connection, self._receivable = connection, connection.window
        self.number = connection.begin(self, head)
        *others, last = self._request or [None]
        for data in others:
            self._send(data)
        if last is not None:
            self._send(last, self._half_closed)
        elif self._half_closed:
            self._end()
        self.wake()

    def fail(self, code: Code, details: str, error: int = CANCEL) -> None:
        """End the call, and reset its stream with an HTTP/2 error code."""
        if not self.over:
            if self.connection is not None:
                self.connection.write(frames.reset(self.number, error))
            self.finish(code, details)

    def finish(self, code: Code, details: str) -> None:
        """End the call without a message to the server."""
        if self.over:
            return
        self.over, self.code, self.details = True, code, details
        if not self._done.done():  # else the wait was cancelled
            self._done.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if self._resuming is not None:
            self._resuming.cancel()
        self._request = None
        if self.connection is None:
            self._forget(self)
        self._leave()

    def _leave(self) -> None:
        """Drop what is not sent yet, and leave the connection."""
        if self._unsent or self._last:
            self._unsent.clear()
            self._unsent_bytes, self._last = 0, b""
        self.wake()
        if self.connection is not None:
            self.connection.forget(self)

    # Requests

    def _send(self, data: bytes, ends: bool = False) -> None:
        """Send a message, and with `ends` nothing after it, now or as soon as the server accepts it."""
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
        """Send what the server accepts."""
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

    def wake(self) -> None:
        """Let `resumed` check again."""
        if self._waiter is not None:
            self._waiter.set_result(None)
            self._waiter = None

    # Responses, called by the connection

    def on_head(self, head: Head, ends: int) -> None:
        """Take a header block, which with `ends` is the last of the stream."""
        self._request = None  # the server has begun
        opens = head.http_status != ""
        if head.malformed:
            self._malformed(head.malformed)
        elif opens is self.answered:
            self._malformed("a :status after the first headers" if opens else "no :status")
        elif not opens and not ends:
            self._malformed("headers between messages")
        elif not opens:
            self._on_trailers(head)
        elif head.refusal is None and not ends:
            self.answered, self._left = True, head.length
        elif head.http_status.startswith("1"):  # an interim response; another follows
            if ends:
                self._malformed(f"the :status {head.http_status} in the last headers")
        elif head.refusal and not (ends and head.code not in (None, Code.OK)):
            self.fail(*head.refusal)
        else:
            self._on_trailers(head)

    def _on_trailers(self, head: Head) -> None:
        if head.code is None:
            self._finish_stream(Code.UNKNOWN, "the server ended the call without a grpc-status")
        elif head.code is Code.OK and self._is_cut:
            self._finish_stream(Code.INTERNAL, "the server ended the call within a message")
        else:
            self._finish_stream(head.code, head.details)

    def _finish_stream(self, code: Code, details: str) -> None:
        """End the call whose stream the server has ended; our side of it may still be open."""
        if not self.sent_all:
            self.connection.write(frames.reset(self.number, NO_ERROR))
        self.finish(code, details)

    def take(self, payload: bytes, size: int, ends: int, now: int) -> None:
        """Take the payload of a DATA frame, which with its padding took `size` bytes of the window."""
        self._receivable -= size
        self._uncredited += size
        if self._receivable < 0:
            raise ProtocolError(FLOW_CONTROL_ERROR, "more data than the window of the stream allows")
        length = len(payload)
        if not self.answered:
            return self._malformed("DATA before the headers of the response")
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
            self._finish_stream(Code.INTERNAL, "the server ended the call without trailers")
        elif self._uncredited * 2 >= self.connection.window:
            self._credit()

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
    def _is_cut(self) -> bool:
        """Whether a message is incomplete, or less data arrived than content-length says."""
        return bool(self._partial or self._left)

    def _credit(self) -> None:
        """Let the server send as much again as arrived, unless the receiver is paused."""
        if self._uncredited and not self.over and not self._full:
            self.connection.write(frames.window_update(self.number, self._uncredited))
            self._receivable += self._uncredited
            self._uncredited = 0

    @property
    def _full(self) -> bool:
        """Whether the receiver is paused; `_credit` is called when it resumes."""
        if self._resuming is None and self._receiver.paused:
            self._resuming = asyncio.get_running_loop().create_task(self._resume())
        return self._resuming is not None

    async def _resume(self) -> None:
        await self._receiver.resumed()
        self._resuming = None
        self._credit()

    def _malformed(self, why: str) -> None:
        """End a call whose response RFC 9113, section 8.1.1, calls malformed."""
        self.fail(Code.INTERNAL, f"the server's response is malformed: {why}", PROTOCOL_ERROR)

    def on_reset(self, error: int) -> None:
        """The server reset the stream."""
        words = f"the server reset the stream with {frames.error_name(error)}"
        if error == REFUSED_STREAM:
            self.on_lost(words, processed=False)
        else:
            self.finish(_RESETS.get(error, Code.INTERNAL), words)

    def on_lost(self, why: str, processed: bool) -> None:
        """The connection carries the call no more. `processed`: whether the server may have begun it."""
        if processed or self._request is None or self._attempts >= ATTEMPTS:
            self.finish(Code.UNAVAILABLE, why)
        else:
            self._attempts += 1
            self._leave()
            self._clear()
            self._retry(self)
