"""HTTP/2's frames (RFC 9113) and gRPC's messages in them, as bytes.

>>> frame(PING, ACK, 0, b"12345678").hex(" ")
'00 00 08 06 01 00 00 00 00 31 32 33 34 35 36 37 38'
"""

import struct

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1  # flags
END_HEADERS, PADDED, PRIORITIZED = 4, 8, 32
(
    NO_ERROR,
    PROTOCOL_ERROR,
    INTERNAL_ERROR,
    FLOW_CONTROL_ERROR,
    SETTINGS_TIMEOUT,
    STREAM_CLOSED,
    FRAME_SIZE_ERROR,
    REFUSED_STREAM,
    CANCEL,
    COMPRESSION_ERROR,
    CONNECT_ERROR,
    ENHANCE_YOUR_CALM,
    INADEQUATE_SECURITY,
) = range(13)
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 2, 3, 4, 5, 6
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_SIZE = 16384  # the largest frame's that either side takes unless it says otherwise; we don't
FIRST_WINDOW = 65535  # bytes that either side takes before it says otherwise, on the connection and of each stream
LARGEST = 2**31 - 1  # window, stream number
HEAD = struct.Struct(">HBBBL")  # size (in two parts), kind, flags, stream
_MESSAGE_FRAME = struct.Struct(">HBBBLBL")  # a DATA frame's head and that of the message it holds


class Broken(Exception):
    """The peer broke the protocol, so that the connection has to end: HTTP/2's code for how, and in words."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return HEAD.pack(size >> 8, size & 255, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", *pair) for pair in values.items()))


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def window_update(stream: int, more: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, more.to_bytes(4, "big"))


def goaway(last: int, code: int, details: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">LL", last, code) + details.encode())


def message(data: bytes) -> bytes:
    """A gRPC message as it goes into DATA frames."""
    return b"\0" + len(data).to_bytes(4, "big") + data


def message_frame(stream: int, flags: int, data: bytes) -> bytes:
    """A DATA frame that holds one whole message."""
    size = len(data)
    framed = size + 5
    return _MESSAGE_FRAME.pack(framed >> 8, framed & 255, DATA, flags, stream, 0, size) + data


def header_frames(stream: int, flags: int, block: bytes) -> bytes:
    """A HEADERS frame, with CONTINUATION frames where the block is too large for it."""
    if len(block) <= FRAME_SIZE:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    parts = [block[at : at + FRAME_SIZE] for at in range(0, len(block), FRAME_SIZE)]
    first, *middle, last = parts
    out = [frame(HEADERS, flags, stream, first)] + [frame(CONTINUATION, 0, stream, part) for part in middle]
    return b"".join([*out, frame(CONTINUATION, END_HEADERS, stream, last)])


def unpadded(payload: bytes, flags: int) -> bytes:
    """What a DATA or HEADERS frame holds; raises Broken where its padding is longer than itself."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Broken(PROTOCOL_ERROR, "a frame's padding is longer than the frame")
    return payload[1 : len(payload) - payload[0]]
