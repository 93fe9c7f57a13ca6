"""What a gRPC server reads in a call's headers, and the header blocks that it answers with."""

import re
from dataclasses import dataclass

from erlab.http2.headers import Code, Malformed, Metadata, Pairs, block, timeout, trailers

# What gRPC allows; as all of it may go on to another server, whose connection would end by anything else.
_PATH, _NAME, _VALUE = re.compile("/[!-~]*"), re.compile("[0-9a-z_.-]+"), re.compile("[ -~]*")
_PSEUDO = {":method", ":path", ":scheme", ":authority"}
_OF_CONNECTIONS = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
_NOT_OF_CALLS = {"te", "content-type", "content-length", "accept-encoding", "user-agent"}  # but of how they are made
_ENCODINGS = {"identity", "gzip", "deflate"}
_ACCEPTED = ("grpc-accept-encoding", ",".join(sorted(_ENCODINGS)))
_OPENING: Pairs = [(":status", "200"), ("content-type", "application/grpc")]
OPENED = block(_OPENING)  # what begins an answer, and what ends it if all went well
OK = block(trailers(Code.OK))


@dataclass(frozen=True)
class Request:
    """What a call's headers say: its method, the client's own metadata (as on the wire), seconds that it may take, how
    its messages are compressed; or the header block that refuses it. Without a method it is a stream's trailer."""

    method: str = ""
    metadata: Metadata = ()
    timeout: float | None = None
    encoding: str = "identity"
    refusal: bytes = b""


def read(pairs: Pairs, header_bytes: int) -> Request:
    """Raises Malformed."""
    pseudo, other = {}, []
    for name, value in pairs:
        if name.startswith(":"):
            if other or name in pseudo or name not in _PSEUDO:
                raise Malformed(f"the pseudo-header {name!r}")
            pseudo[name] = value
        elif name in _OF_CONNECTIONS or not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise Malformed(f"the header {name!r}")
        else:
            other.append((name, value))
    if not pseudo:
        return Request()
    if not _PATH.fullmatch(pseudo.get(":path", "")) or ":method" not in pseudo or ":scheme" not in pseudo:
        raise Malformed("a pseudo-header is missing, or no path")
    said = dict(other)
    if pseudo[":method"] != "POST":
        return Request("?", refusal=block([(":status", "405"), ("allow", "POST")]))
    if not said.get("content-type", "").startswith("application/grpc"):
        return Request("?", refusal=block([(":status", "415")]))
    size = sum(len(name) + len(value) + 32 for name, value in pairs)
    if size > header_bytes:
        why = f"headers of {size} bytes are larger than {header_bytes}"
        return Request("?", refusal=ending(Code.RESOURCE_EXHAUSTED, why))
    encoding = said.get("grpc-encoding", "identity")
    if encoding not in _ENCODINGS:
        why = f"messages are compressed by {encoding!r}"
        return Request("?", refusal=block([*_OPENING, _ACCEPTED, *trailers(Code.UNIMPLEMENTED, why)]))
    own = [(k, v) for k, v in other if k not in _NOT_OF_CALLS and not k.startswith("grpc-")]
    limit = timeout(said["grpc-timeout"]) if "grpc-timeout" in said else None
    return Request(pseudo[":path"], tuple(own), limit, encoding)


def ending(code: Code, details: str, opened: bool = False) -> bytes:
    """The header block that ends a call by this status, `opened` by another or not."""
    return block(([] if opened else _OPENING) + trailers(code, details))
