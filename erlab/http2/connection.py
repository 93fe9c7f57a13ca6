"""What both sides of an HTTP/2 connection do: take frames apart, answer what every side must, keep to windows.

A peer may be slow or hostile: frames and header blocks are bounded, what it may send is checked against the windows
that it was given, and frames that cost us more than the peer (resets, pings, settings, empty ones) are budgeted.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from erlab.http2 import frames
from erlab.http2.frames import (
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
    LARGEST,
    PING,
    PRIORITIZED,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Broken,
    frame,
)
from erlab.http2.headers import Decoder, Malformed, Pairs
from erlab.http2.stream import Stream

_BUFFERED = 512 * 2**10  # bytes that the system has not taken, beyond which streams are held back
_DEAF = 16 * 2**20  # … beyond which the peer isn't listened to either: it has to take its answers first
_PATIENCE, _PATIENCE_A_SECOND = 10_000, 1_000  # frames for nothing that a peer may send at once, and in the long run
_SIZES = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}  # of frames that have but one
_OF_STREAMS = (DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION)
_OF_CONNECTIONS = (SETTINGS, PING, GOAWAY)


class Connection(asyncio.Protocol):
    """`window`: bytes that each of the peer's streams may send before it has to wait for us; all of them together are
    not bounded. `read`, `header_bytes`: see `headers.Decoder`."""

    def __init__(self, window: int, read: Callable[[Pairs], object], header_bytes: int = 0):
        self.transport: asyncio.Transport | None = None
        self.streams: dict[int, Stream] = {}
        self.window = window
        self.sendable, self.first_window, self.frame_size = (
            FIRST_WINDOW,
            FIRST_WINDOW,
            FRAME_SIZE,
        )  # what the peer takes
        self.starved: deque[Stream] = deque()  # streams that wait for the connection's window
        self.choked = False  # the system takes no more
        self.held: set[Stream] = set()  # streams whose senders wait
        self._receivable = LARGEST
        self._decode, self._rest, self._settled = Decoder(read, header_bytes), b"", False
        self._block: list[bytes] | None = None  # a header block that goes on in the next frame, its stream and whether
        self._block_of, self._block_bytes, self._block_ends = 0, 0, False  # the stream ends by it
        self._out: list[bytes] = []
        self._patience, self._counted = _PATIENCE, time.monotonic()

    def greet(self, preface: bytes, settings: dict[int, int]) -> None:
        """Say the first words, and let all streams together send as much as they like."""
        values = {frames.ENABLE_PUSH: 0} | settings if preface else settings
        values |= {frames.INITIAL_WINDOW_SIZE: self.window}
        self.write(preface + frames.settings(values) + frames.window_update(0, LARGEST - FIRST_WINDOW))

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport  # with TCP_NODELAY, as all of asyncio's
        transport.set_write_buffer_limits(_BUFFERED)

    def write(self, data: bytes) -> None:
        """Send `data` with all else that is written in this turn of the event loop: a call to the system costs more."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._send)
        self._out.append(data)

    def _send(self) -> None:
        out, self._out = self._out, []
        if out and not self.transport.is_closing():
            self.transport.write(b"".join(out))
            if self.choked and self.transport.get_write_buffer_size() > _DEAF:
                self.transport.pause_reading()

    def pause_writing(self) -> None:
        self.choked = True

    def resume_writing(self) -> None:
        self.choked = False
        self.transport.resume_reading()
        for stream in list(self.held):
            stream.wake()

    def close(self, code: int = frames.NO_ERROR, details: str = "") -> None:
        """Say why, and hang up."""
        self.write(frames.goaway(self.last, code, details))
        self._send()
        if self.choked:
            self.transport.abort()  # who takes nothing would not take this either
        else:
            self.transport.close()

    @property
    def last(self) -> int:
        """The number of the last stream that the peer began."""
        return 0

    def on_headers(self, number: int, headers, ends: bool) -> None: ...
    def on_malformed(self, number: int, why: str) -> None: ...
    def on_unknown(self, number: int, kind: int) -> None:
        """A frame of a stream that isn't there; raises Broken where none was."""

    def on_settings(self, values: dict[int, int]) -> None: ...
    def on_goaway(self, last: int, details: str) -> None: ...

    def spend(self, patience: int = 1) -> None:
        """Count a frame that cost us more than it did the peer."""
        self._patience -= patience
        if self._patience < 0:
            now = time.monotonic()
            gained = int((now - self._counted) * _PATIENCE_A_SECOND)
            self._patience, self._counted = min(_PATIENCE, self._patience + gained), now
            if self._patience < 0:
                raise Broken(ENHANCE_YOUR_CALM, "too many frames for nothing")

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
                    raise Broken(FRAME_SIZE_ERROR, f"a frame of {size} bytes")
                following = at + 9 + size
                if following > end:
                    break
                number &= LARGEST
                if kind == DATA and self._block is None and self._settled and (stream := self.streams.get(number)):
                    self._receivable -= size
                    stream.take(frames.unpadded(data[at + 9 : following], flags), size, flags & END_STREAM, now)
                else:
                    self._take(kind, flags, number, data[at + 9 : following])
                at = following
            self._rest = data[at:]
            if self._receivable < LARGEST // 2:
                self.write(frames.window_update(0, LARGEST - self._receivable))
                self._receivable = LARGEST
        except Broken as e:
            self._rest = b""
            self.on_broken(e)

    def on_broken(self, error: Broken) -> None:
        if not self.transport.is_closing():
            self.close(error.code, str(error))
            self.connection_lost(error)

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """A frame of any kind but data for a stream that is there."""
        if not self._settled and kind != SETTINGS:
            raise Broken(PROTOCOL_ERROR, "the first frame is not of settings")
        if self._block is not None and (kind != CONTINUATION or number != self._block_of):
            raise Broken(PROTOCOL_ERROR, "another frame within a header block")
        if len(payload) != _SIZES.get(kind, len(payload)):
            raise Broken(FRAME_SIZE_ERROR, f"a frame of kind {kind} with {len(payload)} bytes")
        if (kind in _OF_STREAMS and number == 0) or (kind in _OF_CONNECTIONS and number) or kind == PUSH_PROMISE:
            raise Broken(PROTOCOL_ERROR, f"a frame of kind {kind} for stream {number}")
        match kind:
            case frames.DATA:
                self._receivable -= len(payload)
                self.on_unknown(number, kind)
            case frames.HEADERS:
                start = 5 if flags & PRIORITIZED else 0
                payload = frames.unpadded(payload, flags)
                if len(payload) < start:
                    raise Broken(FRAME_SIZE_ERROR, "a header frame without its priority")
                self._block, self._block_of, self._block_bytes = [], number, 0
                self._block_ends = bool(flags & END_STREAM)
                self._add_to_block(payload[start:], flags)
            case frames.CONTINUATION:
                if self._block is None:
                    raise Broken(PROTOCOL_ERROR, "a continuation of nothing")
                self.spend()
                self._add_to_block(payload, flags)
            case frames.SETTINGS:
                self._settle(flags, payload)
            case frames.PING if not flags & ACK:
                self.spend()
                self.write(frame(PING, ACK, 0, payload))
            case frames.WINDOW_UPDATE:
                self._widen(number, int.from_bytes(payload, "big") & LARGEST)
            case frames.RST_STREAM:
                self.spend()
                if stream := self.streams.get(number):
                    stream.on_reset(int.from_bytes(payload, "big"))
                else:
                    self.on_unknown(number, kind)
            case frames.GOAWAY:
                if len(payload) < 8:
                    raise Broken(FRAME_SIZE_ERROR, "a goaway that is too short")
                self.on_goaway(int.from_bytes(payload[:4], "big") & LARGEST, payload[8:].decode(errors="replace"))
            case _:
                self.spend()  # priorities, answers to pings, kinds that nobody knows: nothing is to be done

    def _add_to_block(self, part: bytes, flags: int) -> None:
        self._block.append(part)
        self._block_bytes += len(part)
        if self._block_bytes > self._decode.limit:
            raise Broken(ENHANCE_YOUR_CALM, f"a header block of more than {self._decode.limit} bytes")
        if flags & END_HEADERS:
            block, self._block = b"".join(self._block), None
            try:
                read = self._decode(block)
            except Malformed as e:
                self.spend()
                self.on_malformed(self._block_of, str(e))
            else:
                self.on_headers(self._block_of, read, self._block_ends)

    def _settle(self, flags: int, payload: bytes) -> None:
        self._settled = True
        if len(payload) % 6 or (flags & ACK and payload):
            raise Broken(FRAME_SIZE_ERROR, f"settings of {len(payload)} bytes")
        if flags & ACK:
            return
        self.spend()
        pairs = [payload[at : at + 6] for at in range(0, len(payload), 6)]
        values = {int.from_bytes(pair[:2], "big"): int.from_bytes(pair[2:], "big") for pair in pairs}
        window = values.get(frames.INITIAL_WINDOW_SIZE, self.first_window)
        size = values.get(frames.MAX_FRAME_SIZE, self.frame_size)
        if window > LARGEST:
            raise Broken(FLOW_CONTROL_ERROR, f"a first window of {window}")
        if not FRAME_SIZE <= size < 2**24:
            raise Broken(PROTOCOL_ERROR, f"a largest frame of {size}")
        self.write(frame(SETTINGS, ACK, 0))
        self.first_window, self.frame_size, wider = window, min(size, 2**16), window > self.first_window
        self.on_settings(values)
        if wider:
            self.spend(len(self.streams) // 16)
            for stream in list(self.streams.values()):
                stream.flush()

    def _widen(self, number: int, more: int) -> None:
        stream = self.streams.get(number)
        if more == 0:
            raise Broken(PROTOCOL_ERROR, "a window that widens by nothing")
        if number == 0:
            self.sendable += more
            if self.sendable > LARGEST:
                raise Broken(FLOW_CONTROL_ERROR, "a window that is too wide")
            waiting, self.starved = self.starved, deque()
            while waiting:
                stream = waiting.popleft()
                if self.sendable <= 0:
                    self.starved.extend([stream, *waiting])
                    return
                stream.starved = False
                stream.flush()
        elif stream:
            stream.sendable += more
            if self.first_window + stream.sendable > LARGEST:
                raise Broken(FLOW_CONTROL_ERROR, "a stream's window that is too wide")
            stream.flush()
        else:
            self.on_unknown(number, WINDOW_UPDATE)
