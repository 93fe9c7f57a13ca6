"""Client side of an HTTP/2 connection: frames, settings and flow-control windows.

The server may be slow, faulty or hostile. Memory held on behalf of the server is bounded: frames, header blocks and
messages by their size, a stream's unread bytes by its window, answers to PING and SETTINGS by `_MOST_UNSENT_ANSWERS`.
A connection error (RFC 9113, section 5.4.1) is raised as `ProtocolError` and ends the connection; a stream error ends
that stream alone.
"""

import asyncio
import math
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from erlab.gateway.wire.http2 import frames
from erlab.gateway.wire.http2.calls import Call
from erlab.gateway.wire.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FIRST_WINDOW,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEAD,
    HEADERS,
    LARGEST_STREAM,
    LARGEST_WINDOW,
    LOW_BITS,
    NO_ERROR,
    PADDED,
    PING,
    PRIORITIZED,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ProtocolError,
)
from erlab.gateway.wire.http2.headers import HEADER_BYTES, RESIZE, Code, Decoder

_BUFFERED_BYTES = 512 * 2**10  # not yet accepted by the system, above which all senders pause
_MOST_UNSENT_ANSWERS = 1000  # answers to PING and SETTINGS queued while the system accepts no bytes
_MOST_BLOCK_FRAMES = 256  # most frames of a header block
_SENT_FRAME_BYTES = 64 * 2**10  # payload of the largest frame sent where the server allows such
_LINGER_SECONDS = 5.0  # for the server to read the last frames of a closed connection
_SIZES = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}  # bytes of frames of one size
_OF_STREAMS = (DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION)
_OF_CONNECTIONS = (SETTINGS, PING, GOAWAY)


@dataclass(slots=True)
class _HeaderBlock:
    """Header block of a stream, whose next CONTINUATION frame is due."""

    number: int
    ends_stream: int
    data: bytearray
    frames: int = 1


class Connection(asyncio.Protocol):
    """A connection.

    Args:
        window: Bytes that the server may send on each stream before they are read.
        changed: Called when another call may begin, and when the connection accepts no more calls.
    """

    def __init__(self, window: int, changed: Callable[[], None]):
        self.window, self._changed = window, changed
        self.calls: dict[int, Call] = {}
        self.sendable = self.first_window = FIRST_WINDOW  # bytes that the server accepts: on all streams; on each
        self.frame_size = FRAME_SIZE  # bytes of the largest payload that the server accepts
        self.starved: dict[Call, None] = {}  # calls that wait for the connection's window, in order
        self.choked = False  # the system accepts no more bytes
        # Result: empty once the server's SETTINGS arrived, else the reason why they will not.
        self.settled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._next = 1  # number of the next stream
        self._most: float = math.inf  # concurrent streams that the server accepts
        self._draining = False  # no more calls begin
        self._first_unwritten = 1  # number of the first stream of which nothing was written
        self._receivable = LARGEST_WINDOW
        self._decode, self._rest = Decoder(), b""
        self._due: int | None = SETTINGS  # type of frame that has to come next
        self._block: _HeaderBlock | None = None
        self._resize = RESIZE  # begins the first header block
        self._window_changed = False  # the first window, for the open streams
        self._out: list[bytes] = []
        self._unsent_answers = 0  # written while choked

    # What a channel uses

    @property
    def usable(self) -> bool:
        """Whether calls can begin here, now or when others have ended."""
        return not self._draining and not self.closed

    @property
    def closed(self) -> bool:
        return self._transport.is_closing()

    @property
    def has_room(self) -> bool:
        return len(self.calls) < self._most

    def begin(self, call: Call, block: bytes) -> int:
        """Begin a call with this header block; returns its stream's number."""
        number, self._next = self._next, self._next + 2
        self._draining = self._draining or self._next >= LARGEST_STREAM
        self.calls[number] = call
        self.write(frames.header_frames(number, 0, self._resize + block))
        self._resize = b""
        return number

    def forget(self, call: Call) -> None:
        """Remove a call that is over."""
        self.calls.pop(call.number, None)
        if self.starved:
            self.starved.pop(call, None)
        if self._draining and not self.calls:
            self.close()
        self._changed()

    def close(self, error: int = NO_ERROR, why: str = "") -> None:
        """Send GOAWAY and close the connection."""
        if self._transport.is_closing():
            return
        self.write(frames.goaway(0, error, why))
        self._flush()
        self._transport.close()
        asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._transport.abort)

    def write(self, data: bytes) -> None:
        """Send `data` with everything written in this turn of the event loop, in one system call."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and not self._transport.is_closing():
            self._first_unwritten = self._next
            self._transport.write(b"".join(out))

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport  # with TCP_NODELAY, as all of asyncio's
        transport.set_write_buffer_limits(_BUFFERED_BYTES)
        values = {frames.ENABLE_PUSH: 0, frames.INITIAL_WINDOW_SIZE: self.window}
        values[frames.MAX_HEADER_LIST_SIZE] = HEADER_BYTES
        self.write(frames.PREFACE + frames.settings(values) + frames.window_update(0, LARGEST_WINDOW - FIRST_WINDOW))

    def pause_writing(self) -> None:
        self.choked = True

    def resume_writing(self) -> None:
        self.choked, self._unsent_answers = False, 0
        for call in list(self.calls.values()):
            call.wake()

    def connection_lost(self, exception: Exception | None) -> None:
        self._end_streams(f"{exception or 'the server closed the connection'}")

    def _end_streams(self, why: str) -> None:
        self._draining = True
        if not self.settled.done():
            self.settled.set_result(why)
        for number, call in list(self.calls.items()):
            call.on_lost(why, processed=number < self._first_unwritten)
        self._changed()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if self._rest:
            data = self._rest + data
        at, end, unpack = 0, len(data), HEAD.unpack_from
        try:
            while end - at >= 9:
                high, low, kind, flags, number = unpack(data, at)
                size = high << 8 | low
                if size > FRAME_SIZE:
                    raise ProtocolError(FRAME_SIZE_ERROR, f"a frame of {size} bytes")
                following = at + 9 + size
                if following > end:
                    break
                payload = data[at + 9 : following]
                number &= LOW_BITS
                if kind == DATA and self._due is None and (call := self.calls.get(number)):
                    self._receivable -= size
                    if flags & PADDED:
                        payload = frames.unpadded(payload, flags)
                    call.take(payload, size, flags & END_STREAM, now)
                else:
                    self._take(kind, flags, number, payload)
                at = following
            self._rest = data[at:]
            if self._window_changed:
                self._change_windows()
        except ProtocolError as error:
            self._on_broken(error, data)
        if self._receivable < LARGEST_WINDOW // 2:
            self.write(frames.window_update(0, LARGEST_WINDOW - self._receivable))
            self._receivable = LARGEST_WINDOW

    def _on_broken(self, error: ProtocolError, data: bytes) -> None:
        self._rest = b""
        self.close(error.code, str(error))
        words = f"{error} ({frames.error_name(error.code)})"
        if self._due == SETTINGS:
            words = "it answered in HTTP/1" if data.startswith(b"HTTP/1") else words
            self._end_streams(f"the server does not speak HTTP/2: {words}")
        else:
            self._end_streams(f"the server broke the HTTP/2 protocol: {words}")

    # Frames other than DATA of a call in progress

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._due == SETTINGS and (kind != SETTINGS or flags & ACK):
            raise ProtocolError(PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if self._due == CONTINUATION and (kind != CONTINUATION or number != self._block.number):
            raise ProtocolError(PROTOCOL_ERROR, "another frame within a header block")
        if len(payload) != _SIZES.get(kind, len(payload)):
            raise ProtocolError(FRAME_SIZE_ERROR, f"a frame of type {kind} with {len(payload)} bytes")
        if (kind in _OF_STREAMS and number == 0) or (kind in _OF_CONNECTIONS and number) or kind == PUSH_PROMISE:
            raise ProtocolError(PROTOCOL_ERROR, f"a frame of type {kind} for stream {number}")
        if kind in (DATA, HEADERS, RST_STREAM, WINDOW_UPDATE) and number and (number >= self._next or not number & 1):
            raise ProtocolError(PROTOCOL_ERROR, f"a frame of type {kind} for stream {number}, which never began")
        call = self.calls.get(number)  # None: it is over, and frames of it may still arrive
        match kind:
            case frames.DATA:
                self._receivable -= len(payload)
                frames.unpadded(payload, flags)  # only to validate
            case frames.HEADERS:
                if flags & (PADDED | PRIORITIZED):
                    payload = frames.fields(payload, flags)
                if flags & END_HEADERS:
                    self._on_block(number, payload, flags & END_STREAM)
                else:
                    self._due = CONTINUATION
                    self._block = _HeaderBlock(number, flags & END_STREAM, bytearray(payload))
            case frames.CONTINUATION:
                self._continue(payload, flags)
            case frames.PRIORITY if len(payload) != 5 and call:
                call.fail(Code.INTERNAL, "the server sent a PRIORITY frame of another size", FRAME_SIZE_ERROR)
            case frames.RST_STREAM if call:
                call.on_reset(int.from_bytes(payload, "big"))
            case frames.SETTINGS:
                self._on_settings(flags, payload)
            case frames.PING if not flags & ACK:
                self._answer(frames.frame(PING, ACK, 0, payload))
            case frames.GOAWAY:
                self._on_goaway(payload)
            case frames.WINDOW_UPDATE:
                self._on_window_update(number, call, int.from_bytes(payload, "big") & LOW_BITS)

    def _on_block(self, number: int, block: bytes, ends: int) -> None:
        head = self._decode(block)  # always: the decoder's table depends on every block
        if call := self.calls.get(number):
            call.on_head(head, ends)

    def _continue(self, part: bytes, flags: int) -> None:
        block = self._block
        if block is None:
            raise ProtocolError(PROTOCOL_ERROR, "a CONTINUATION frame without a header block")
        block.data += part
        block.frames += 1
        if len(block.data) > HEADER_BYTES or block.frames > _MOST_BLOCK_FRAMES:
            words = f"a header block of more than {HEADER_BYTES} bytes or {_MOST_BLOCK_FRAMES} frames"
            raise ProtocolError(ENHANCE_YOUR_CALM, words)
        if flags & END_HEADERS:
            self._due = self._block = None
            self._on_block(block.number, bytes(block.data), block.ends_stream)

    def _answer(self, data: bytes) -> None:
        if self.choked:
            self._unsent_answers += 1
            if self._unsent_answers > _MOST_UNSENT_ANSWERS:
                raise ProtocolError(ENHANCE_YOUR_CALM, "frames are to be answered, but no answers are read")
        self.write(data)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        self._due = None
        if len(payload) % 6 or (flags & ACK and payload):
            raise ProtocolError(FRAME_SIZE_ERROR, f"a SETTINGS frame of {len(payload)} bytes")
        if flags & ACK:
            return
        for name, value in struct.iter_unpack(">HL", payload):
            if name == frames.ENABLE_PUSH and value != 0:
                raise ProtocolError(PROTOCOL_ERROR, f"the setting ENABLE_PUSH is {value}")
            if name == frames.MAX_CONCURRENT_STREAMS:
                self._most = value
            elif name == frames.INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW:
                    raise ProtocolError(FLOW_CONTROL_ERROR, f"the setting INITIAL_WINDOW_SIZE is {value}")
                self.first_window, self._window_changed = value, True
            elif name == frames.MAX_FRAME_SIZE:
                if not FRAME_SIZE <= value < 2**24:
                    raise ProtocolError(PROTOCOL_ERROR, f"the setting MAX_FRAME_SIZE is {value}")
                self.frame_size = min(value, _SENT_FRAME_BYTES)
        self._answer(frames.frame(SETTINGS, ACK, 0))
        if not self.settled.done():
            self.settled.set_result("")
        self._changed()

    def _change_windows(self) -> None:
        """Apply a new initial window to the open streams, once for all settings that arrived together."""
        self._window_changed = False
        for call in list(self.calls.values()):
            if self.first_window + call.sendable > LARGEST_WINDOW:
                raise ProtocolError(FLOW_CONTROL_ERROR, "a setting makes the window of a stream too large")
            call.flush()

    def _on_window_update(self, number: int, call: Call | None, increment: int) -> None:
        if number == 0:
            self.sendable += increment
            if increment == 0:
                raise ProtocolError(PROTOCOL_ERROR, "a WINDOW_UPDATE frame of 0 bytes")
            if self.sendable > LARGEST_WINDOW:
                too_large = "a WINDOW_UPDATE frame makes the window of the connection too large"
                raise ProtocolError(FLOW_CONTROL_ERROR, too_large)
            while self.starved and self.sendable > 0:
                waiting = next(iter(self.starved))
                del self.starved[waiting]
                waiting.flush()
        elif call:
            call.sendable += increment
            if increment == 0:
                call.fail(Code.INTERNAL, "the server sent a WINDOW_UPDATE frame of 0 bytes", PROTOCOL_ERROR)
            elif self.first_window + call.sendable > LARGEST_WINDOW:
                call.fail(Code.INTERNAL, "the server made the window of the stream too large", FLOW_CONTROL_ERROR)
            else:
                call.flush()

    def _on_goaway(self, payload: bytes) -> None:
        if len(payload) < 8:
            raise ProtocolError(FRAME_SIZE_ERROR, f"a GOAWAY frame of {len(payload)} bytes")
        last, error = struct.unpack_from(">LL", payload)
        self._draining = True
        details = payload[8:].decode(errors="replace") or frames.error_name(error)
        for number, call in list(self.calls.items()):
            if number > last & LOW_BITS:
                call.on_lost(f"the server goes away: {details}", processed=False)
        if not self.calls:
            self.close()
