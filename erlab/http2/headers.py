"""Header blocks, and what gRPC says in headers: its status, its time limits, its metadata.

Metadata stays as it is on the wire: values of names that end in -bin are base64.
"""

from collections.abc import Callable
from typing import Generic, TypeVar
from urllib.parse import quote, unquote

import grpc
import hpack

from erlab.http2.frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, Broken

Pairs = list[tuple[str, str]]
Metadata = tuple[tuple[str, str], ...]
Code = grpc.StatusCode
BY_NUMBER: dict[str, Code] = {str(code.value[0]): code for code in Code}
_SAFE = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) != "%")  # of a grpc-message
_DETAILS = 2000  # characters: clients take 8 KiB of headers, and a character may need 12 bytes
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_KNOWN_BLOCKS, _KNOWN_BYTES = 64, 1024  # how many blocks a connection remembers, each of how many bytes at most
_HARD_LIMIT = 64 * 2**10  # bytes of a block, encoded and decoded, beyond which a connection ends; limits are above it
Read = TypeVar("Read")


class Failed(Exception):
    """A call that ends with another status than OK: gRPC's code for it, and in words."""

    def __init__(self, code: Code, details: str):
        super().__init__(f"{code.name}: {details}")
        self.code, self.details = code, details


class Malformed(Exception):
    """Headers that HTTP/2 doesn't allow, or that gRPC cannot be without; the stream ends by it."""


class Decoder(Generic[Read]):
    """The header blocks of a connection, each given to `read`, whose result it returns; `limit`: bytes of a block.

    What stands in a block depends on those before it only by hpack's table. So a block that leaves the table as it was
    means the same until another changes it, and need not be read again: clients send few different ones.
    """

    def __init__(self, read: Callable[[Pairs], Read], limit: int = 0):
        self.limit = max(_HARD_LIMIT, 2 * limit)
        self._read, self._hpack = read, hpack.Decoder(max_header_list_size=self.limit)
        self._known: dict[bytes, Read] = {}

    def __call__(self, block: bytes) -> Read:
        """Raises what `read` raises, and Broken where it is no header block."""
        known = self._known.get(block)
        if known is not None:
            return known
        entries = self._hpack.header_table.dynamic_entries
        before = len(entries), entries[0] if entries else None
        try:
            pairs = [
                (name.decode("latin-1"), value.decode("latin-1")) for name, value in self._hpack.decode(block, True)
            ]
        except hpack.OversizedHeaderListError as e:
            raise Broken(ENHANCE_YOUR_CALM, str(e)) from None
        except (hpack.HPACKError, IndexError) as e:
            raise Broken(COMPRESSION_ERROR, str(e)) from None
        kept = len(entries) == before[0] and (not entries or entries[0] is before[1])
        if not kept:
            self._known.clear()
        read = self._read(pairs)
        resizes = block[:1] and block[0] & 0xE0 == 0x20  # the table, which has to be done each time
        if kept and not resizes and len(block) <= _KNOWN_BYTES and len(self._known) < _KNOWN_BLOCKS:
            self._known[block] = read
        return read


def block(headers: Pairs) -> bytes:
    """A header block that uses no table, so that it is the same for every stream and connection."""
    return b"".join(b"\0" + text(name) + text(value) for name, value in headers)


def text(text: str) -> bytes:
    """A string of a header block: its length, HPACK's integer of 7 bits, and itself."""
    data = text.encode("latin-1")
    size, left = bytearray([min(len(data), 127)]), len(data) - 127
    while left >= 0:
        size.append(left & 127 | (128 if left > 127 else 0))
        left = (left >> 7) or -1
    return bytes(size) + data


def trailers(code: Code, details: str = "") -> Pairs:
    """The headers that say a call's status."""
    pairs = [("grpc-status", str(code.value[0]))]
    return [*pairs, ("grpc-message", quote(details[:_DETAILS], safe=_SAFE, errors="replace"))] if details else pairs


def status(headers: dict[str, str]) -> tuple[Code, str]:
    """The status that trailers tell."""
    return BY_NUMBER.get(headers.get("grpc-status", ""), Code.UNKNOWN), unquote(headers.get("grpc-message", ""))


def timeout(text: str) -> float:
    """Seconds of a grpc-timeout; raises Malformed.

    >>> timeout("250m")
    0.25
    """
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not (number.isascii() and number.isdecimal() and len(number) <= 8):
        raise Malformed(f"grpc-timeout {text!r}")
    return int(number) * _UNITS[unit]
