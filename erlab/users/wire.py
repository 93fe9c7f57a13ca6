"""gRPC over HTTP/2 for calls of one message out and many back: as much of it as users need, and quick.

    async with Channel("127.0.0.1:8001", "/inference.GRPCInferenceService/ModelStreamInfer", timeout=60) as channel:
        answer = await channel.ask(message)

A response is stamped when its bytes leave the socket, before anything is done with them, so that those that come
together do not wait for each other's handling in what is measured; grpc.aio hands them over one by one, some 50 us
apart. Header compression is the `hpack` library's; what is framed here is RFC 9113 (HTTP/2) and gRPC's protocol on it:
no TLS, no compression of messages, no server push.
"""

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote

import hpack

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9  # frames
END_STREAM = ACK = 1  # flags
END_HEADERS, PADDED, PRIORITY = 4, 8, 32
REFUSED, CANCEL = 7, 8
FRAME_SIZE = 16384  # the largest frame's that either side takes unless it says otherwise; we don't
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGEST = 2**31 - 1  # window, stream number
MAX_MESSAGE_BYTES = 64 * 2**20
_CODES = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
    "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
    "UNAUTHENTICATED"
).split()
_RESETS = {REFUSED: "UNAVAILABLE", CANCEL: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}
_REFUSALS, _REFUSED_SECONDS = 20, 0.01  # how often a stream that the server did not take is begun again, and when


@dataclass(eq=False)
class Answer:
    """Messages as they came with their time.monotonic_ns(), gRPC's name of the status, and what the server said."""

    times: list[int] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    code: str = "OK"
    details: str = ""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame."""
    numbers = {"enable_push": 2, "max_concurrent_streams": 3, "initial_window_size": 4, "max_frame_size": 5}
    pairs = (numbers[name].to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values.items())
    return frame(SETTINGS, 0, 0, b"".join(pairs))


def message(data: bytes) -> bytes:
    """A gRPC message as it goes into DATA frames."""
    return b"\0" + len(data).to_bytes(4, "big") + data


def block(*headers: tuple[str, str]) -> bytes:
    """A header block that uses no table, so that it is the same for every stream and connection."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in headers)


class Frames(asyncio.Protocol):
    """Takes a connection's bytes apart and answers what every side must; the rest is the sides' own."""

    def __init__(self):
        self.transport: asyncio.Transport | None = None
        self._decoder = hpack.Decoder()
        self._rest = b""
        self._consumed = 0  # bytes of data since the connection's window was last opened again
        self._out: list[bytes] = []
        self._block, self._block_ends = b"", False  # a header block that may go on in the next frame

    def open(self, first: bytes) -> None:
        """Send `first` and let the peer send as much as it likes."""
        everything = settings(enable_push=0, initial_window_size=LARGEST)
        more = frame(WINDOW_UPDATE, 0, 0, (LARGEST - 65535).to_bytes(4, "big"))
        self.write(first + everything + more)

    def write(self, data: bytes) -> None:
        """Send `data` with all else that is written in this turn of the event loop: a call to the system costs more."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._send)
        self._out.append(data)

    def _send(self) -> None:
        self.transport.write(b"".join(self._out))  # which a closed one ignores
        self._out.clear()

    def on_data(self, stream: int, data: bytes, ends: bool, now: int) -> None: ...
    def on_headers(self, stream: int, headers: dict[str, str], ends: bool) -> None: ...
    def on_reset(self, stream: int, code: int) -> None: ...
    def on_settings(self, values: dict[int, int]) -> None: ...
    def on_window(self, stream: int, more: int) -> None: ...
    def on_goaway(self, last: int, details: str) -> None: ...

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        try:
            while end - at >= 9:
                size = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
                if size > FRAME_SIZE:
                    raise ValueError(f"a frame of {size} bytes")
                following = at + 9 + size
                if following > end:
                    break
                stream = int.from_bytes(data[at + 5 : at + 9], "big") & LARGEST
                self._take(data[at + 3], data[at + 4], stream, data[at + 9 : following], now)
                at = following
        except (ValueError, IndexError, hpack.HPACKError) as e:
            self.connection_lost(ConnectionError(f"the server does not speak HTTP/2: {e}"))
            self.transport.abort()
        self._rest = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes, now: int) -> None:
        if kind == DATA:
            self._consumed += len(payload)
            if self._consumed > LARGEST // 2:
                self.write(frame(WINDOW_UPDATE, 0, 0, self._consumed.to_bytes(4, "big")))
                self._consumed = 0
            self.on_data(stream, _unpadded(payload, flags), bool(flags & END_STREAM), now)
        elif kind == HEADERS:
            self._block = _unpadded(payload, flags)[5 if flags & PRIORITY else 0 :]
            self._block_ends = bool(flags & END_STREAM)
        elif kind == CONTINUATION:
            self._block += payload
        elif kind == SETTINGS and not flags & ACK:
            pairs = [payload[at : at + 6] for at in range(0, len(payload), 6)]
            self.on_settings({int.from_bytes(p[:2], "big"): int.from_bytes(p[2:], "big") for p in pairs})
            self.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self.on_window(stream, int.from_bytes(payload, "big"))
        elif kind == RST_STREAM:
            self.on_reset(stream, int.from_bytes(payload, "big"))
        elif kind == GOAWAY:
            self.on_goaway(int.from_bytes(payload[:4], "big") & LARGEST, payload[8:].decode(errors="replace"))
        if kind in (HEADERS, CONTINUATION) and flags & END_HEADERS:
            self.on_headers(stream, dict(self._decoder.decode(self._block)), self._block_ends)


def _unpadded(payload: bytes, flags: int) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & PADDED else payload


@dataclass(eq=False)
class _Call:
    data: bytes
    done: asyncio.Future
    stream: int = 0  # none yet
    answer: Answer = field(default_factory=Answer)
    rest: bytes = b""  # of a message that is not yet there in full
    refusals: int = 0


class _Connection(Frames):
    """The client's side: numbers streams, and sends requests as far as the server lets it."""

    def __init__(self, headers: bytes):
        super().__init__()
        self.usable = False  # for new calls
        self._headers = headers
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[_Call] = deque()  # for the server to take more streams
        self._next = 1
        self._frame_size, self._most_streams = FRAME_SIZE, LARGEST
        self._window = self._first_window = 65535  # bytes that the server takes, on the connection and of each stream
        self._windows: dict[int, int] = {}
        self._unsent: deque[tuple[int, bytes]] = deque()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.usable = transport, True
        self.open(PREFACE)

    def connection_lost(self, exception: Exception | None) -> None:
        self.usable = False
        for call in [*self._calls.values(), *self._waiting]:
            self._end(call, "UNAVAILABLE", str(exception or "the server closed the connection"))

    async def ask(self, data: bytes, timeout: float) -> Answer:
        loop = asyncio.get_running_loop()
        call = _Call(data, loop.create_future())
        timer = loop.call_later(timeout, self._give_up, call, "DEADLINE_EXCEEDED", "Deadline Exceeded")
        self._waiting.append(call)
        self._begin_waiting()
        try:
            await call.done
        finally:
            timer.cancel()
            self._give_up(call, "CANCELLED", "given up")
        return call.answer

    def _begin_waiting(self) -> None:
        while self.usable and self._waiting and len(self._calls) < self._most_streams:
            self._begin(self._waiting.popleft())

    def _begin(self, call: _Call) -> None:
        call.stream, self._next = self._next, self._next + 2
        self.usable = self.usable and self._next < LARGEST
        self._calls[call.stream] = call
        self._windows[call.stream] = self._first_window
        self._unsent.append((call.stream, message(call.data)))
        self._flush(frame(HEADERS, END_HEADERS, call.stream, self._headers))

    def _flush(self, first: bytes = b"") -> None:
        """Send what the server has room for; a stream without room does not hold up others."""
        out, stuck = [first], []
        while self._unsent and self._window > 0:
            stream, data = self._unsent.popleft()
            if stream not in self._windows:  # it has ended already
                continue
            part = data[: max(0, min(self._window, self._windows[stream], self._frame_size))]
            if not part:
                stuck.append((stream, data))
                continue
            self._window -= len(part)
            self._windows[stream] -= len(part)
            whole = len(part) == len(data)
            out.append(frame(DATA, END_STREAM if whole else 0, stream, part))
            if whole:
                del self._windows[stream]
            else:
                self._unsent.appendleft((stream, data[len(part) :]))
        self._unsent.extendleft(reversed(stuck))
        if any(out):
            self.write(b"".join(out))

    def _give_up(self, call: _Call, code: str, details: str) -> None:
        """End a call that the server may still be answering; it hears of that."""
        if call.stream not in self._calls and call not in self._waiting:
            return
        if call.stream:
            self.write(frame(RST_STREAM, 0, call.stream, CANCEL.to_bytes(4, "big")))
        self._end(call, code, details)

    def _end(self, call: _Call, code: str, details: str) -> None:
        self._calls.pop(call.stream, None)
        self._windows.pop(call.stream, None)
        if call in self._waiting:
            self._waiting.remove(call)
        call.answer.code, call.answer.details = code, details
        if not call.done.done():
            call.done.set_result(None)
        self._begin_waiting()

    def on_data(self, stream: int, data: bytes, ends: bool, now: int) -> None:
        call = self._calls.get(stream)
        if call is None:
            return
        data = call.rest + data if call.rest else data
        while len(data) >= 5 and len(data) >= 5 + (size := int.from_bytes(data[1:5], "big")):
            if data[0]:
                self._give_up(call, "UNIMPLEMENTED", "the answer is compressed")
                return
            call.answer.times.append(now)
            call.answer.messages.append(data[5 : 5 + size])
            data = data[5 + size :]
        call.rest = data
        if len(data) >= 5 and int.from_bytes(data[1:5], "big") > MAX_MESSAGE_BYTES:
            self._give_up(call, "RESOURCE_EXHAUSTED", f"a response is larger than {MAX_MESSAGE_BYTES} bytes")
        elif ends:
            self._end(call, "INTERNAL", "the stream ended without a status")

    def on_headers(self, stream: int, headers: dict[str, str], ends: bool) -> None:
        call = self._calls.get(stream)
        if call is None:
            return
        if (status := headers.get(":status", "200")) != "200":
            code = "UNAVAILABLE" if status in ("429", "502", "503", "504") else "UNKNOWN"
            self._give_up(call, code, f"the server answered with HTTP status {status}")
        elif ends:
            number = headers.get("grpc-status", "")
            known = number.isdecimal() and int(number) < len(_CODES)
            self._end(call, _CODES[int(number)] if known else "UNKNOWN", unquote(headers.get("grpc-message", "")))

    def on_reset(self, stream: int, code: int) -> None:
        call = self._calls.get(stream)
        if call is None:
            return
        if code == REFUSED and call.refusals < _REFUSALS:  # the server has not looked at it
            call.refusals += 1
            del self._calls[stream]
            self._windows.pop(stream, None)
            call.stream = 0
            self._waiting.append(call)
            asyncio.get_running_loop().call_later(_REFUSED_SECONDS, self._begin_waiting)
        else:
            self._end(call, _RESETS.get(code, "INTERNAL"), f"the server reset the stream with code {code}")

    def on_settings(self, values: dict[int, int]) -> None:
        self._most_streams = values.get(3, self._most_streams)
        more = values.get(4, self._first_window) - self._first_window
        self._first_window += more
        self._windows = {stream: window + more for stream, window in self._windows.items()}
        self._frame_size = values.get(5, self._frame_size)
        self._flush()

    def on_window(self, stream: int, more: int) -> None:
        if stream == 0:
            self._window += more
        elif stream in self._windows:
            self._windows[stream] += more
        self._flush()

    def on_goaway(self, last: int, details: str) -> None:
        self.usable = False
        for call in [c for s, c in self._calls.items() if s > last] + list(self._waiting):
            self._end(call, "UNAVAILABLE", f"the server goes away: {details}")


class Channel:
    """Calls of one method at HOST:PORT over one connection, made again when it is lost and a call wants it."""

    def __init__(self, address: str, method: str, timeout: float):
        """`timeout`: seconds for a whole answer, of which the server is told."""
        self._host, _, self._port = address.rpartition(":")
        self._host = self._host.strip("[]")
        self._timeout = timeout
        headers = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", address)]
        headers += [("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "erlab-users")]
        headers += [("grpc-timeout", f"{max(1, round(timeout * 1000))}m")]
        self._headers = block(*headers)
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> "Channel":
        with suppress(OSError, TimeoutError):  # which the first call will tell
            await asyncio.wait_for(self._connect(), self._timeout)
        return self

    async def __aexit__(self, *_) -> None:
        if self._connection:
            self._connection.transport.close()

    async def ask(self, data: bytes) -> Answer:
        """Send one message and wait for the end of its answer, whatever it is; raises nothing."""
        if self._connection is None or not self._connection.usable:
            async with self._connecting:
                if self._connection is None or not self._connection.usable:
                    try:
                        await asyncio.wait_for(self._connect(), self._timeout)
                    except (OSError, TimeoutError) as e:
                        return Answer(code="UNAVAILABLE", details=f"cannot connect: {e or 'timed out'}")
        return await self._connection.ask(data, self._timeout)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, self._connection = await loop.create_connection(lambda: _Connection(self._headers), self._host, self._port)


def _text(text: str) -> bytes:
    """A string of a header block: HPACK's length in 7 bits, more for the longest, and the text itself."""
    data = text.encode()
    size, left = bytearray([min(len(data), 127)]), len(data) - 127
    while left >= 0:
        size.append(left & 127 | (128 if left > 127 else 0))
        left = (left >> 7) or -1
    return bytes(size) + data
