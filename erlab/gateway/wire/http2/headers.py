"""Header blocks (HPACK, RFC 7541) and gRPC's fields in them: content type, status, timeout, metadata.

Metadata stays as on the wire: values of names that end in -bin are base64.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

import grpc
import hpack

from erlab.gateway.wire.http2.frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, ProtocolError

Pairs = list[tuple[str, str]]
Metadata = tuple[tuple[str, str], ...]
Code = grpc.StatusCode
HEADER_BYTES = 32 * 2**10  # bytes of a header block, encoded and decoded, beyond which the connection ends
_CODES = {str(code.value[0]): code for code in Code}
_OF_HTTP = {  # github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
    "400": Code.INTERNAL,
    "401": Code.UNAUTHENTICATED,
    "403": Code.PERMISSION_DENIED,
    "404": Code.UNIMPLEMENTED,
    "429": Code.UNAVAILABLE,
    "502": Code.UNAVAILABLE,
    "503": Code.UNAVAILABLE,
    "504": Code.UNAVAILABLE,
}
_NAME, _FORBIDDEN = re.compile("[!-9;-@[-~]+"), re.compile("[\0\r\n]")  # RFC 9113, section 8.2.1
_CONNECTION_FIELDS = {"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"}
_CONTENT_TYPE = re.compile(r"application/grpc([+;].*)?", re.IGNORECASE)
_RESIZES = re.compile(rb"(?:[\x20-\x3e]|\x3f[\x80-\xff]*[\0-\x7f]){3}")  # three resizes of the table; two suffice
_SHOWN = 100  # characters of a field's value in an error message
_MOST_MS = 10**8  # from which a grpc-timeout, limited to 8 digits, is written in seconds
_KNOWN_BLOCKS, _KNOWN_BYTES = 64, 1024  # blocks that a decoder remembers, and the bytes of the largest


class Failed(Exception):
    """A call that ended with a status other than OK."""

    def __init__(self, code: Code, details: str):
        super().__init__(f"{code.name}: {details}")
        self.code, self.details = code, details


@dataclass(frozen=True)
class Head:
    """Checked fields of a response's header block.

    Attributes:
        malformed: Why RFC 9113 forbids these fields; empty if it does not.
        http_status: Three digits; empty in trailers.
        refusal: Status that ends the call if a block with an HTTP status begins no gRPC response, else None.
        code: gRPC status; None if the block has none.
        details: Message of the gRPC status.
        length: Value of content-length, bytes; None if absent.
    """

    malformed: str = ""
    http_status: str = ""
    refusal: tuple[Code, str] | None = None
    code: Code | None = None
    details: str = ""
    length: int | None = None


def read(pairs: Pairs) -> Head:
    """Check the fields of a block."""
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name == ":status":
            if fields:
                return Head("a :status that comes twice or after other fields")
            if not re.fullmatch("[1-9][0-9]{2}", value) or value == "101":
                return Head(f"the :status {value[:_SHOWN]!r}")
        elif not _NAME.fullmatch(name) or name in _CONNECTION_FIELDS:
            return Head(f"the field name {name[:_SHOWN]!r}")
        elif _FORBIDDEN.search(value) or (value.strip(" \t") != value and name != "grpc-message"):
            return Head(f"the value of the field {name[:_SHOWN]!r}")  # gRPC's messages keep their spaces
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    http_status, length = fields.get(":status", ""), fields.get("content-length", "")
    if not re.fullmatch("[0-9]{0,18}", length):
        return Head(f"the content-length {length[:_SHOWN]!r}")
    return Head(
        http_status=http_status,
        refusal=_refusal(http_status, fields.get("content-type", "")) if http_status else None,
        code=_CODES.get(fields["grpc-status"], Code.UNKNOWN) if "grpc-status" in fields else None,
        details=unquote(fields.get("grpc-message", "")),
        length=int(length) if length else None,
    )


def _refusal(http_status: str, content_type: str) -> tuple[Code, str] | None:
    if http_status != "200":
        return _OF_HTTP.get(http_status, Code.UNKNOWN), f"the server answered with HTTP status {http_status}"
    if not _CONTENT_TYPE.fullmatch(content_type):
        return Code.UNKNOWN, f"the server answered with content type {content_type[:_SHOWN]!r}, not application/grpc"
    return None


class Decoder:
    """Decoder of a server's header blocks on one connection, in the order of their arrival.

    The meaning of a block depends on earlier blocks only through HPACK's table. A block that leaves the table unchanged
    keeps its meaning until another block changes the table, and is not decoded again: most responses begin and end with
    the same blocks.
    """

    def __init__(self):
        self._hpack = hpack.Decoder(max_header_list_size=HEADER_BYTES)
        self._known: dict[bytes, Head] = {}

    def __call__(self, block: bytes) -> Head:
        """Decode a block; raises ProtocolError if it is invalid or too large."""
        known = self._known.get(block)
        if known is not None:
            return known
        if _RESIZES.match(block):
            raise ProtocolError(COMPRESSION_ERROR, "a header block that resizes the table more than twice")
        entries = self._hpack.header_table.dynamic_entries
        before = len(entries), entries[0] if entries else None
        try:
            fields = self._hpack.decode(block, raw=True)
        except hpack.OversizedHeaderListError:
            raise ProtocolError(ENHANCE_YOUR_CALM, f"header fields of more than {HEADER_BYTES} bytes") from None
        except Exception as e:  # after any error the table, and so the connection, is unusable
            undecodable = f"a header block that cannot be decoded: {str(e)[:_SHOWN]}"
            raise ProtocolError(COMPRESSION_ERROR, undecodable) from None
        unchanged = len(entries) == before[0] and (not entries or entries[0] is before[1])
        if not unchanged:
            self._known.clear()
        head = read([(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields])
        resizes = block[:1] and block[0] & 0xE0 == 0x20  # the table, so it must be decoded each time
        if unchanged and not resizes and len(block) <= _KNOWN_BYTES and len(self._known) < _KNOWN_BLOCKS:
            self._known[block] = head
        return head


# Sets the size of our side of HPACK's table to 0: no block of ours uses it.
RESIZE = b"\x20"


def block(headers: Pairs) -> bytes:
    """Return a header block that does not use the table, so it is the same for all streams and connections."""
    return b"".join(b"\0" + string(name) + string(value) for name, value in headers)


def string(text: str) -> bytes:
    """Encode a string of a header block: its length as an HPACK integer with a 7-bit prefix, then its bytes."""
    data = text.encode("latin-1")
    size, rest = bytearray([min(len(data), 127)]), len(data) - 127
    while rest >= 0:
        size.append(rest & 127 | (128 if rest > 127 else 0))
        rest = (rest >> 7) or -1
    return bytes(size) + data


def timeout_field(seconds: float) -> bytes:
    """Encode the field grpc-timeout for a header block; at least 1 ms.

    >>> timeout_field(0.25)
    b'\\x00\\x0cgrpc-timeout\\x04250m'
    """
    return _timeout_field(max(1, math.ceil(seconds * 1000)))


@lru_cache(256)
def _timeout_field(ms: int) -> bytes:
    return block([("grpc-timeout", f"{ms}m" if ms < _MOST_MS else f"{min(ms // 1000, _MOST_MS - 1)}S")])
