"""HTTP/2 frames (RFC 9113) and the gRPC messages that DATA frames carry, as bytes.

>>> frame(PING, ACK, 0, b"12345678").hex(" ")
'00 00 08 06 01 00 00 00 00 31 32 33 34 35 36 37 38'
"""

import struct

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1  # flags
END_HEADERS, PADDED, PRIORITIZED = 4, 8, 32
ERRORS = (  # names of the error codes, in order
    "NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR "
    "REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM INADEQUATE_SECURITY HTTP_1_1_REQUIRED"
).split()
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED = range(6)
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR = range(6, 11)
ENHANCE_YOUR_CALM, INADEQUATE_SECURITY, HTTP_1_1_REQUIRED = range(11, 14)
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(2, 7)  # settings
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_SIZE = 16384  # bytes of the largest payload unless settings allow more, as ours never do
FIRST_WINDOW = 65535  # bytes of a flow-control window before settings change it, for the connection and each stream
LOW_BITS = 2**31 - 1  # of stream numbers and window increments: the highest bit is reserved
LARGEST_WINDOW = 2**31 - 1  # bytes
LARGEST_STREAM = 2**31 - 1
HEAD = struct.Struct(">HBBBL")  # a frame's head: length (in two parts), type, flags, stream
PREFIX = struct.Struct(">BL")  # a gRPC message's head: compressed or not, length
_MESSAGE_FRAME = struct.Struct(">HBBBLBL")  # both


class ProtocolError(Exception):
    """Connection error (RFC 9113, section 5.4.1): the peer broke the protocol, so the connection ends.

    Args:
        code: HTTP/2 error code.
        message: What the peer did.
    """

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def error_name(code: int) -> str:
    """Return the name of an HTTP/2 error code, or its number if it has none.

    >>> error_name(8), error_name(99)
    ('CANCEL', 'error code 99')
    """
    return ERRORS[code] if code < len(ERRORS) else f"error code {code}"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame of any type."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 255, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", *pair) for pair in values.items()))


def reset(stream: int, code: int) -> bytes:
    """Return a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def window_update(stream: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def goaway(last: int, code: int, details: str = "") -> bytes:
    """Return a GOAWAY frame; `last`: the peer's last stream that was processed."""
    return frame(GOAWAY, 0, 0, struct.pack(">LL", last, code) + details.encode())


def message(data: bytes) -> bytes:
    """Return a gRPC message as DATA frames carry it: its head and itself."""
    return PREFIX.pack(0, len(data)) + data


def message_frame(stream: int, flags: int, data: bytes) -> bytes:
    """Return a DATA frame that holds one whole message."""
    size = len(data)
    framed = size + 5
    return _MESSAGE_FRAME.pack(framed >> 8, framed & 255, DATA, flags, stream, 0, size) + data


def header_frames(stream: int, flags: int, block: bytes) -> bytes:
    """Return a HEADERS frame, followed by CONTINUATION frames if the block is too large for one."""
    if len(block) <= FRAME_SIZE:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    first, *middle, last = (block[at : at + FRAME_SIZE] for at in range(0, len(block), FRAME_SIZE))
    out = [frame(HEADERS, flags, stream, first)] + [frame(CONTINUATION, 0, stream, part) for part in middle]
    return b"".join([*out, frame(CONTINUATION, END_HEADERS, stream, last)])


def unpadded(payload: bytes, flags: int) -> bytes:
    """Return the payload of a DATA or HEADERS frame without its padding; raises ProtocolError."""
    if not flags & PADDED:
        return payload
    if not payload:
        raise ProtocolError(FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
    if payload[0] >= len(payload):
        raise ProtocolError(PROTOCOL_ERROR, "a frame whose padding is longer than the frame")
    return payload[1 : len(payload) - payload[0]]


def fields(payload: bytes, flags: int) -> bytes:
    """Return the part of a header block in a HEADERS frame, without padding and priority; raises ProtocolError."""
    payload, start = unpadded(payload, flags), 5 if flags & PRIORITIZED else 0
    if len(payload) < start:
        raise ProtocolError(FRAME_SIZE_ERROR, "a HEADERS frame too short for its priority")
    return payload[start:]
