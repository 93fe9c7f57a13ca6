"""RFC 9113 (HTTP/2) and RFC 7541 (HPACK) case by case: what a server sends, and what our client does.

The server of each case takes a request on stream 1 and sends the bytes of the case. Unless that ends the connection, a
second request on it is answered as ever.
"""

import asyncio
from dataclasses import dataclass

import grpc
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from peers import METHOD, FrameReader, listening
from receivers import RecordingReceiver

from erlab.gateway.wire.http2 import Channel, Failed, frames
from erlab.gateway.wire.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITIZED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    header_frames,
    message,
    message_frame,
    reset,
    settings,
    window_update,
)
from erlab.gateway.wire.http2.headers import block, string

CODE = grpc.StatusCode


@dataclass(frozen=True)
class Ends:
    """The call on stream 1 ends with this status; if `reset`, the client resets the stream with that code."""

    code: grpc.StatusCode
    reset: int | None = None


@dataclass(frozen=True)
class Closes:
    """A connection error: the client sends GOAWAY with this code and hangs up; the call ends with UNAVAILABLE."""

    error: int


OK, INTERNAL, GONE = Ends(CODE.OK), Ends(CODE.INTERNAL), Ends(CODE.UNAVAILABLE)
MALFORMED = Ends(CODE.INTERNAL, frames.PROTOCOL_ERROR)
PROTOCOL, SIZE, FLOW = Closes(frames.PROTOCOL_ERROR), Closes(frames.FRAME_SIZE_ERROR), Closes(frames.FLOW_CONTROL_ERROR)
COMPRESSION, CALM = Closes(frames.COMPRESSION_ERROR), Closes(frames.ENHANCE_YOUR_CALM)

STATUS, TYPE = [(":status", "200")], [("content-type", "application/grpc")]
FIELDS, STATUS_0, EARLY = STATUS + TYPE, [("grpc-status", "0")], [(":status", "103")]
OPENED, HELLO, DEPENDENCY = block(FIELDS), message(b"hello"), b"\0\0\0\0\x0f"


def head(fields, flags=0, stream=1):
    return header_frames(stream, flags, block(fields))


def end(fields=(), stream=1):
    return head([*STATUS_0, *fields], END_STREAM, stream)


def padded(kind, flags, payload, size, said=None):
    return frame(kind, flags | PADDED, 1, bytes([size if said is None else said]) + payload + bytes(size))


BODY, END = message_frame(1, 0, b"hello"), end()
REST = BODY + END
BEGIN, OPEN = head(FIELDS), frame(HEADERS, 0, 1, OPENED)  # OPEN: to be continued
ANSWER = BEGIN + REST
LAST = frame(CONTINUATION, END_HEADERS, 1)
FIRST = settings({})
BOMB = b"\x40" + string("a") + string("y" * 3900) + b"\xbe" * 60  # an entry of the table, then 60 times the same
NAMES = ("X-Upper", "a b", "", "\xe9", "a\0", "a:b", "\x7f", "a\n")
BAD_VALUES, GOOD_VALUES = ("a\0", "a\r\nb: c", "a\nb", " a", "a ", "\ta"), ("", "a b", "\xe9", "a\tb", "\x7f")
BAD_STATUSES = ("", "20", "2000", "abc", "020", "2\xb20")
CONNECTION_NAMES = ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te")
RESETS = dict.fromkeys(frames.ERRORS, CODE.INTERNAL) | {"CANCEL": CODE.CANCELLED, "REFUSED_STREAM": CODE.UNAVAILABLE}
RESETS |= {"ENHANCE_YOUR_CALM": CODE.RESOURCE_EXHAUSTED, "INADEQUATE_SECURITY": CODE.PERMISSION_DENIED}

# By section: what the server does, the bytes after its SETTINGS, what becomes of it.
RFC9113 = {
    "4.1 Frame Format": [
        ("sends frames of an unknown type", frame(0xFE, 0xFF, 1, b"?") + frame(0xFE, 0, 0) + ANSWER, OK),
        ("sets flags of HEADERS that are not defined", frame(HEADERS, 0xD2 | END_HEADERS, 1, OPENED) + REST, OK),
        ("sets flags of DATA that are not defined", BEGIN + frame(DATA, 0xF6, 1, HELLO) + END, OK),
        ("sets the reserved bit", ANSWER.replace(b"\0\0\0\1", b"\x80\0\0\1", 1), OK),
    ],
    "4.2 Frame Size": [
        ("sends a frame of 16384 bytes", BEGIN + frame(0xFE, 0, 1, bytes(16384)) + REST, OK),
        ("sends a frame of 16385 bytes", frame(0xFE, 0, 1, bytes(16385)), SIZE),
        ("sends DATA of 16385 bytes", BEGIN + frame(DATA, 0, 1, bytes(16385)), SIZE),
        ("announces HEADERS of 16 MiB", b"\xff\xff\xff\x01\x04\0\0\0\1", SIZE),
    ],
    "4.3 Field Section Compression": [
        ("sends a field block that cannot be decoded", frame(HEADERS, END_HEADERS, 1, b"\xff" * 6), COMPRESSION),
        ("spreads a field block", frame(HEADERS, 0, 1, OPENED[:9]) + frame(CONTINUATION, 4, 1, OPENED[9:]) + REST, OK),
        ("sends PING within a field block", OPEN + frame(PING, 0, 0, bytes(8)), PROTOCOL),
    ],
    "5.1 Stream States (idle)": [
        ("sends HEADERS on a stream that never began", head(FIELDS, stream=3), PROTOCOL),
        ("sends DATA on a stream that never began", frame(DATA, 0, 3, HELLO), PROTOCOL),
        ("resets a stream that never began", reset(3, 8), PROTOCOL),
        ("widens a stream that never began", window_update(3, 9), PROTOCOL),
        ("prioritizes a stream that never began", frame(PRIORITY, 0, 5, DEPENDENCY) + ANSWER, OK),
    ],
    "5.1 Stream States (closed)": [
        ("sends DATA after the end", ANSWER + BODY, OK),
        ("sends HEADERS after the end", ANSWER + BEGIN, OK),
        ("sends trailers twice", ANSWER + END, OK),
        ("resets a stream after the end", ANSWER + reset(1, 0), OK),
        ("widens a stream after the end", ANSWER + window_update(1, 9), OK),
        ("prioritizes a stream after the end", ANSWER + frame(PRIORITY, 0, 1, DEPENDENCY), OK),
        ("goes on after it reset a stream", reset(1, 2) + ANSWER, INTERNAL),
        ("goes on after the client reset a stream", BODY + BODY + BEGIN + window_update(1, 1), MALFORMED),
        ("sends broken padding after the end", ANSWER + padded(DATA, 0, b"", 0, 9), PROTOCOL),
    ],
    "5.1.1 Stream Identifiers": [
        ("sends HEADERS on a stream of its own", head(FIELDS, stream=2), PROTOCOL),
        ("sends DATA on a stream of its own", frame(DATA, 0, 2, HELLO), PROTOCOL),
        ("resets a stream of its own", reset(2, 8), PROTOCOL),
    ],
    "5.2.1 Flow-Control Principles": [
        ("sends a window of padding", BEGIN + padded(DATA, 0, b"", 255) * 300 + REST, OK),
    ],
    "5.4.2 Stream Error Handling": [
        ("resets a stream, which is not answered by a reset", BEGIN + reset(1, frames.INTERNAL_ERROR), INTERNAL),
    ],
    "5.5 Extending HTTP/2": [
        ("sends a setting that is not known", settings({0xFFFF: 7, 0x0A: 1}) + ANSWER, OK),
        ("sends an unknown frame within a field block", OPEN + frame(0xFE, 0, 1), PROTOCOL),
    ],
    "6.1 DATA": [
        ("sends DATA on stream 0", frame(DATA, 0, 0, HELLO), PROTOCOL),
        ("pads DATA", BEGIN + padded(DATA, 0, HELLO, 200) + END, OK),
        ("pads DATA by nothing", BEGIN + padded(DATA, 0, HELLO, 0) + END, OK),
        ("sends padding only", BEGIN + padded(DATA, 0, b"", 255) * 9 + REST, OK),
        ("pads DATA beyond its length", BEGIN + frame(DATA, PADDED, 1, b"\x051234"), PROTOCOL),
        ("pads DATA without saying how much", BEGIN + frame(DATA, PADDED, 1), SIZE),
        ("sends empty DATA", BEGIN + frame(DATA, 0, 1) * 99 + REST, OK),
        ("spreads a message", BEGIN + b"".join(frame(DATA, 0, 1, bytes([b])) for b in HELLO) + END, OK),
    ],
    "6.2 HEADERS": [
        ("sends HEADERS on stream 0", head(FIELDS, stream=0), PROTOCOL),
        ("pads HEADERS", padded(HEADERS, END_HEADERS, OPENED, 99) + REST, OK),
        ("pads HEADERS beyond their length", padded(HEADERS, END_HEADERS, b"", 3, 4), PROTOCOL),
        ("pads HEADERS without saying how much", frame(HEADERS, END_HEADERS | PADDED, 1), SIZE),
        ("prioritizes", frame(HEADERS, END_HEADERS | PRIORITIZED, 1, DEPENDENCY + OPENED) + REST, OK),
        ("sends HEADERS too short for a priority", frame(HEADERS, END_HEADERS | PRIORITIZED, 1, b"1234"), SIZE),
        ("pads HEADERS into their priority", padded(HEADERS, END_HEADERS | PRIORITIZED, b"1234", 1), SIZE),
    ],
    "6.3 PRIORITY": [
        ("sends PRIORITY on stream 0", frame(PRIORITY, 0, 0, DEPENDENCY), PROTOCOL),
        ("sends 4 bytes", frame(PRIORITY, 0, 1, b"1234"), Ends(CODE.INTERNAL, frames.FRAME_SIZE_ERROR)),
        ("sends 6 bytes", frame(PRIORITY, 0, 1, b"123456"), Ends(CODE.INTERNAL, frames.FRAME_SIZE_ERROR)),
        ("makes a stream depend on itself", frame(PRIORITY, 0, 1, b"\0\0\0\1\0") + ANSWER, OK),
    ],
    "6.4 RST_STREAM": [
        ("resets stream 0", reset(0, 8), PROTOCOL),
        ("sends 3 bytes", frame(RST_STREAM, 0, 1, b"123"), SIZE),
        ("sends 5 bytes", frame(RST_STREAM, 0, 1, b"12345"), SIZE),
        ("sends 5 bytes after the end", ANSWER + frame(RST_STREAM, 0, 1, b"12345"), SIZE),
    ],
    "6.5 SETTINGS": [
        ("sends SETTINGS for stream 1", frame(SETTINGS, 0, 1), PROTOCOL),
        ("sends 5 bytes", frame(SETTINGS, 0, 0, bytes(5)), SIZE),
        ("acknowledges with a payload", frame(SETTINGS, ACK, 0, bytes(6)), SIZE),
        ("enables push", settings({2: 1}), PROTOCOL),
        ("disables push", settings({2: 0}) + ANSWER, OK),
        ("sets ENABLE_PUSH to 2", settings({2: 2}), PROTOCOL),
        ("sets windows of 2^31", settings({4: 2**31}), FLOW),
        ("sets windows of 2^31 - 1", settings({4: 2**31 - 1}) + ANSWER, OK),
        ("sets frames of 16383 bytes", settings({5: 16383}), PROTOCOL),
        ("sets frames of 2^24 bytes", settings({5: 2**24}), PROTOCOL),
        ("sets frames of 2^24 - 1 bytes", settings({5: 2**24 - 1}) + ANSWER, OK),
        ("allows no header table", settings({1: 0}) + ANSWER, OK),
        ("sets a forbidden value, then another", frame(SETTINGS, 0, 0, b"\0\5\0\0\0\1\0\5\0\0\x40\0"), PROTOCOL),
        ("acknowledges more than was sent", frame(SETTINGS, ACK, 0) * 9 + ANSWER, OK),
    ],
    "6.6 PUSH_PROMISE": [
        ("pushes", frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + OPENED), PROTOCOL),
        ("pushes on stream 0", frame(PUSH_PROMISE, END_HEADERS, 0, b"\0\0\0\2" + OPENED), PROTOCOL),
        ("pushes after the end", ANSWER + frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2"), PROTOCOL),
    ],
    "6.7 PING": [
        ("pings on stream 1", frame(PING, 0, 1, bytes(8)), PROTOCOL),
        ("sends 7 bytes", frame(PING, 0, 0, bytes(7)), SIZE),
        ("sends 9 bytes", frame(PING, 0, 0, bytes(9)), SIZE),
        ("answers a PING that was not sent", frame(PING, ACK, 0, bytes(8)) + ANSWER, OK),
    ],
    "6.8 GOAWAY": [
        ("sends GOAWAY for stream 1", frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL),
        ("sends 7 bytes", frame(GOAWAY, 0, 0, bytes(7)), SIZE),
    ],
    "6.9 WINDOW_UPDATE": [
        ("widens the connection by 0", window_update(0, 0), PROTOCOL),
        ("widens a stream by 0", window_update(1, 0), MALFORMED),
        ("widens a stream by 0 after the end", ANSWER + window_update(1, 0), OK),
        ("sets the reserved bit", frame(WINDOW_UPDATE, 0, 1, b"\x80\0\0\1") + ANSWER, OK),
        ("sends 3 bytes", frame(WINDOW_UPDATE, 0, 1, b"123"), SIZE),
        ("sends 5 bytes", frame(WINDOW_UPDATE, 0, 0, b"12345"), SIZE),
    ],
    "6.9.1 The Flow-Control Window": [
        ("makes the connection's window too large", window_update(0, 2**31 - 1), FLOW),
        ("makes a stream's too large", window_update(1, 2**31 - 1), Ends(CODE.INTERNAL, frames.FLOW_CONTROL_ERROR)),
    ],
    "6.9.2 Initial Flow-Control Window Size": [
        ("makes a stream's window too large", window_update(1, 2**30) + settings({4: 2**30 + 99}), FLOW),
        ("makes windows negative", settings({4: 0}) + ANSWER + settings({4: 65535}), OK),
    ],
    "6.10 CONTINUATION": [
        ("sends a field block in 200 frames", OPEN + frame(CONTINUATION, 0, 1) * 198 + LAST + REST, OK),
        ("continues nothing", frame(CONTINUATION, END_HEADERS, 1, OPENED), PROTOCOL),
        ("continues a complete field block", BEGIN + LAST, PROTOCOL),
        ("continues on another stream", OPEN + frame(CONTINUATION, END_HEADERS, 3), PROTOCOL),
        ("continues on stream 0", OPEN + frame(CONTINUATION, END_HEADERS, 0), PROTOCOL),
        ("sends DATA within a field block", OPEN + BODY, PROTOCOL),
        ("sends SETTINGS within a field block", OPEN + FIRST, PROTOCOL),
        ("sends HEADERS within a field block", OPEN + BEGIN, PROTOCOL),
        ("resets within a field block", OPEN + reset(1, 8), PROTOCOL),
    ],
    "7 Error Codes": [
        ("resets with a code that is not known", BEGIN + reset(1, 0xFFFFFFFF), INTERNAL),
        *((f"resets with {name}", BEGIN + reset(1, i), Ends(RESETS[name])) for i, name in enumerate(frames.ERRORS)),
    ],
    "8.1 HTTP Message Framing": [
        ("sends DATA before HEADERS", BODY, MALFORMED),
        ("sends DATA after an interim response", head(EARLY) + BODY, MALFORMED),
        ("sends interim responses", head(EARLY) * 3 + ANSWER, OK),
        ("ends by an interim response", head(EARLY, END_STREAM), MALFORMED),
        ("sends an interim response after the response", BEGIN + head(EARLY), MALFORMED),
        ("sends a second response", BEGIN + BEGIN, MALFORMED),
        ("sends trailers that do not end the stream", BEGIN + BODY + head(STATUS_0), MALFORMED),
        ("ends by DATA, without trailers", BEGIN + message_frame(1, END_STREAM, b"hello"), INTERNAL),
        ("ends by empty DATA, without trailers", BEGIN + BODY + frame(DATA, END_STREAM, 1), INTERNAL),
    ],
    "8.1.1 Malformed Messages": [
        ("sends as much as content-length", head([*FIELDS, ("content-length", "10")]) + REST, OK),
        ("sends less than content-length", head([*FIELDS, ("content-length", "11")]) + REST, INTERNAL),
        ("sends more than content-length", head([*FIELDS, ("content-length", "9")]) + REST, INTERNAL),
        ("sends a content-length that is no number", head([*FIELDS, ("content-length", "-1")]), MALFORMED),
        ("sends content-length twice", head([*FIELDS, ("content-length", "1"), ("content-length", "2")]), MALFORMED),
    ],
    "8.2.1 Field Validity": [
        *((f"sends the name {name!r}", head([*FIELDS, (name, "1")]), MALFORMED) for name in NAMES),
        ("sends a forbidden name in trailers", BEGIN + BODY + end([("X-Upper", "1")]), MALFORMED),
        *((f"sends the value {value!r}", head([*FIELDS, ("x-a", value)]), MALFORMED) for value in BAD_VALUES),
        *((f"sends the value {value!r}", head([*FIELDS, ("x-a", value)]) + REST, OK) for value in GOOD_VALUES),
    ],
    "8.2.2 Connection-Specific Header Fields": [
        *((f"sends {name}", head([*FIELDS, (name, "close")]), MALFORMED) for name in CONNECTION_NAMES),
    ],
    "8.3 HTTP Control Data": [
        ("sends :status after other fields", head(TYPE + STATUS), MALFORMED),
        ("sends :status twice", head(STATUS + STATUS + TYPE), MALFORMED),
        ("sends a pseudo-field that is not defined", head([*STATUS, (":what", "1"), *TYPE]), MALFORMED),
        ("sends a pseudo-field of requests", head([*STATUS, (":path", "/"), *TYPE]), MALFORMED),
        ("sends :status in trailers", BEGIN + BODY + head(STATUS + STATUS_0, END_STREAM), MALFORMED),
    ],
    "8.3.2 Response Pseudo-Header Fields": [
        ("sends no :status", head(TYPE), MALFORMED),
        ("sends no :status, and the end", head(TYPE + STATUS_0, END_STREAM), MALFORMED),
        ("sends no field", frame(HEADERS, END_HEADERS, 1), MALFORMED),
        *((f"sends {value!r}", head([(":status", value), *TYPE]), MALFORMED) for value in BAD_STATUSES),
    ],
    "8.6 The Upgrade Header Field": [("switches protocols", head([(":status", "101")]), MALFORMED)],
    "8.7 Request Reliability": [("refuses a stream after it began to answer", BEGIN + reset(1, 7), GONE)],
    "10.5.1 Limits on Field Block Size": [
        ("continues a field block for ever", OPEN + frame(CONTINUATION, 0, 1) * 300, CALM),
        ("sends a field block of 48 KiB", OPEN + frame(CONTINUATION, 0, 1, bytes(16384)) * 3, CALM),
        ("sends fields that grow when decoded", frame(HEADERS, END_HEADERS, 1, BOMB), CALM),
    ],
}


def opened(*parts, more=b""):
    """An answer whose first field block is `parts`, and whose trailers are followed by `more`."""
    last = frame(HEADERS, END_HEADERS | END_STREAM, 1, more or block(STATUS_0))
    return frame(HEADERS, END_HEADERS, 1, b"".join(parts)) + BODY + last


def huffman(text, padding=b""):
    data = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text.encode()) + padding
    return bytes([128 | len(data)]) + data


# Entries of the static table: 8 is ":status: 200", 31 content-type. The dynamic table begins with 62.
S, T, X = b"\x88", b"\x0f\x10" + string("application/grpc"), b"\0" + string("x-a")
ADDED, LARGE = (b"\x40" + string("x-a") + string("y" * size) for size in (1, 2000))
TOO_LARGE = b"\x40" + string("x") + string("y" * 4096)
RFC7541 = {
    "2.3.3 Index Address Space": [
        ("refers to an entry beyond the table", opened(S, b"\xbe"), COMPRESSION),
        ("takes a name beyond the table", opened(S, b"\x7e", string("a")), COMPRESSION),
        ("refers to an entry of the block before", opened(S, T, ADDED, more=block(STATUS_0) + b"\xbe"), OK),
    ],
    "4.1 Calculating Table Size": [
        ("refers to an entry that was evicted", opened(S, LARGE * 3, b"\xc0"), COMPRESSION),
    ],
    "4.2 Maximum Table Size": [
        ("resizes the table within its limit", opened(b"\x20\x3f\xe1\x1f", S, T), OK),
        ("resizes the table beyond its limit", opened(b"\x3f\xe2\x1f", S, T), COMPRESSION),
        ("resizes the table after a field", opened(S, b"\x20", T), COMPRESSION),
        ("resizes the table 9999 times", opened(b"\x20" * 9999, S, T), COMPRESSION),
    ],
    "4.3 Entry Eviction When Dynamic Table Size Changes": [
        ("refers to an entry of a table that was emptied", opened(S, T, ADDED, more=b"\x20\x88\xbe"), COMPRESSION),
    ],
    "4.4 Entry Eviction When Adding New Entries": [
        ("empties the table by a larger entry", opened(S, ADDED, TOO_LARGE, b"\xbe"), COMPRESSION),
    ],
    "5.1 Integer Representation": [
        ("cuts an integer", opened(S, b"\xff"), COMPRESSION),
        ("sends an integer of 99 bytes", opened(S, b"\xff", b"\x80" * 99, b"\0"), COMPRESSION),
        ("sends an integer of 16000 bytes", opened(S, b"\xff" * 16000), COMPRESSION),
    ],
    "5.2 String Literal Representation": [
        ("cuts a name", opened(S, b"\0\x09x-a"), COMPRESSION),
        ("cuts a value", opened(S, X, b"\x09b"), COMPRESSION),
        ("leaves out a value", opened(S, X), COMPRESSION),
        ("uses Huffman's code", opened(S, b"\x0f\x10", huffman("application/grpc")), OK),
        ("pads Huffman's code by more than 7 bits", opened(S, T, X, huffman("1", b"\xff")), COMPRESSION),
        ("pads Huffman's code by zeros", opened(S, T, X, b"\x81\x08"), COMPRESSION),
        ("sends Huffman's end of string", opened(S, T, X, b"\x84\xff\xff\xff\xff"), COMPRESSION),
    ],
    "6.1 Indexed Header Field Representation": [
        ("refers to entry 0", opened(S, b"\x80"), COMPRESSION),
        ("refers to the static table", opened(S, T, b"\x90"), OK),
    ],
    "6.2 Literal Header Field Representation": [
        ("adds fields to the table", opened(S, b"\x5f", string("application/grpc"), ADDED), OK),
        ("sends fields beside the table", opened(b"\x08\x03200", T), OK),
        ("sends fields never to be indexed", opened(b"\x18\x03200\x1f\x10", string("application/grpc")), OK),
    ],
}


def rows(rfc, sections):
    for section, cases in sections.items():
        for does, sends, outcome in cases:
            yield pytest.param(sends, outcome, id=f"{rfc} {section}: {does}")


@pytest.mark.parametrize("sends, outcome", [*rows("RFC 9113", RFC9113), *rows("RFC 7541", RFC7541)])
def test_a_server(sends, outcome):
    """`outcome` becomes of the call before a server that `sends` this."""

    async def main():
        connections = []

        async def talk(reader, writer):
            heard = FrameReader(reader)
            connections.append(heard)
            writer.write(FIRST)
            await heard.request(1)
            writer.write(sends)
            if await heard.request(3):
                writer.write(head(FIELDS, stream=3) + message_frame(3, 0, b"again") + end(stream=3))
            await heard.until(lambda *_: False)
            heard.over.set()

        async with listening(talk) as address:
            async with Channel(address) as channel:
                receiver, code = RecordingReceiver(), CODE.OK
                try:
                    await channel.begin(METHOD, receiver, data=b"hi", timeout=60).ended()
                except Failed as failed:
                    code = failed.code
                if isinstance(outcome, Ends):
                    assert await channel.unary(METHOD, b"more", timeout=60) == b"again"
            [heard] = connections
            await asyncio.wait_for(heard.over.wait(), 60)
        return code, receiver.messages, heard.frames

    code, messages, heard = asyncio.run(main())
    last_kind, _, _, last = heard[-1]
    assert last_kind == GOAWAY and last[:4] == bytes(4)
    error = int.from_bytes(last[4:8], "big")
    resets = [int.from_bytes(p, "big") for kind, _, stream, p in heard if kind == RST_STREAM and stream == 1]
    if isinstance(outcome, Closes):
        assert (code, error) == (CODE.OK if sends.startswith(ANSWER) else CODE.UNAVAILABLE, outcome.error)
    else:
        assert (code, error) == (outcome.code, frames.NO_ERROR)
        assert resets == ([] if outcome.reset is None else [outcome.reset])
    if outcome == OK:
        assert messages == [b"hello"]
