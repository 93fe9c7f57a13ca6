"""Valid and invalid answers of a gRPC server: an incomplete, foreign or contradictory one is never OK."""

import asyncio

import grpc
import pytest
from peers import METHOD, FrameReader, listening
from receivers import RecordingReceiver

from erlab.gateway.wire.http2 import Channel, Failed, channel, frames
from erlab.gateway.wire.http2.frames import DATA, END_STREAM, frame, header_frames, message, message_frame, settings
from erlab.gateway.wire.http2.headers import block

CODE = grpc.StatusCode
STATUS, TYPE = [(":status", "200")], [("content-type", "application/grpc")]
OK = [("grpc-status", "0")]


def head(*fields, ends=False):
    return header_frames(1, END_STREAM if ends else 0, block(fields))


def typed(content_type):
    return head(*STATUS, ("content-type", content_type)) + BODY + END


def http(status, *fields):
    return head((":status", status), ("content-type", "text/html"), *fields) + frame(DATA, END_STREAM, 1, b"<html>")


def ended(*fields):
    return BEGIN + BODY + head(*fields, ends=True)


def error(status, details):
    return ended(("grpc-status", status), ("grpc-message", details))


BEGIN, BODY, END = head(*STATUS, *TYPE), message_frame(1, 0, b"hello"), head(*OK, ends=True)
HTML = [(":status", "200"), ("content-type", "text/html")]
CUT = message(b"hello")[:-1]
TOO_LARGE = frame(DATA, 0, 1, b"\0\x7f\0\0\0")  # which says so, and does not come

# What the server sends, the status that the call ends with, words of it, the messages that came.
ANSWERS = {
    "a whole answer": (BEGIN + BODY + END, CODE.OK, "", 1),
    "no message": (BEGIN + END, CODE.OK, "", 0),
    "trailers only": (head(*STATUS, *TYPE, *OK, ends=True), CODE.OK, "", 0),
    "content type with a suffix": (typed("application/grpc+proto"), CODE.OK, "", 1),
    "content type with a parameter": (typed("application/grpc;charset=utf-8"), CODE.OK, "", 1),
    "metadata": (head(*STATUS, *TYPE, ("grpc-encoding", "identity"), ("x-a", "1")) + BODY + END, CODE.OK, "", 1),
    "a message cut short, then status 0": (BEGIN + frame(DATA, 0, 1, CUT) + END, CODE.INTERNAL, "within a message", 0),
    "a message's head cut short": (BEGIN + BODY + frame(DATA, 0, 1, b"\0\0") + END, CODE.INTERNAL, "within", 1),
    "a message cut short, then an error": (
        BEGIN + frame(DATA, 0, 1, CUT) + head(("grpc-status", "8"), ends=True),
        CODE.RESOURCE_EXHAUSTED,
        "",
        0,
    ),
    "no grpc-status": (ended(("x-a", "1")), CODE.UNKNOWN, "without a grpc-status", 1),
    "trailers without a field": (ended(), CODE.UNKNOWN, "without a grpc-status", 1),
    "a grpc-status that is not known": (ended(("grpc-status", "17")), CODE.UNKNOWN, "", 1),
    "a grpc-status that is no number": (ended(("grpc-status", "OK")), CODE.UNKNOWN, "", 1),
    "a grpc-status twice": (ended(*OK, ("grpc-status", "13")), CODE.UNKNOWN, "", 1),
    "an error": (error("5", "50 %25 of gr%C3%B6%C3%9Fe"), CODE.NOT_FOUND, "50 % of größe", 1),
    "a grpc-message that is not UTF-8": (error("5", "%ff%zz"), CODE.NOT_FOUND, "%zz", 1),
    "text/html": (typed("text/html"), CODE.UNKNOWN, "content type 'text/html'", 0),
    "no content type": (head(*STATUS) + BODY + END, CODE.UNKNOWN, "content type ''", 0),
    "a content type of another protocol": (typed("application/grpc-web"), CODE.UNKNOWN, "grpc-web", 0),
    "a content type of a kilobyte": (typed("x" * 1000), CODE.UNKNOWN, f"'{'x' * 100}'", 0),
    "text/html with status 0": (head(*HTML, *OK, ends=True), CODE.UNKNOWN, "text/html", 0),
    "text/html and an error": (head(*HTML, ("grpc-status", "7"), ends=True), CODE.PERMISSION_DENIED, "", 0),
    "503 with status 0": (head((":status", "503"), *TYPE, *OK, ends=True), CODE.UNAVAILABLE, "503", 0),
    "503 and an error": (head((":status", "503"), ("grpc-status", "7"), ends=True), CODE.PERMISSION_DENIED, "", 0),
    "compressed": (BEGIN + frame(DATA, 0, 1, b"\1" + message(b"x")[1:]) + END, CODE.INTERNAL, "compressed", 0),
    "compressed, as it said": (
        head(*STATUS, *TYPE, ("grpc-encoding", "gzip")) + frame(DATA, 0, 1, b"\1" + message(b"x")[1:]) + END,
        CODE.INTERNAL,
        "compressed",
        0,
    ),
    "a message too large": (BEGIN + BODY + TOO_LARGE, CODE.RESOURCE_EXHAUSTED, "larger than 1000", 1),
    "a message of the largest size": (BEGIN + message_frame(1, 0, bytes(1000)) + END, CODE.OK, "", 1),
    "a message of one byte more": (BEGIN + message_frame(1, 0, bytes(1001)) + END, CODE.RESOURCE_EXHAUSTED, "1001", 0),
    "100 messages in a frame": (BEGIN + frame(DATA, 0, 1, message(b"x") * 100) + END, CODE.OK, "", 100),
    "a message cut short, then the end": (BEGIN + frame(DATA, END_STREAM, 1, CUT), CODE.INTERNAL, "out trailers", 0),
}
HTTP = {"400": CODE.INTERNAL, "401": CODE.UNAUTHENTICATED, "403": CODE.PERMISSION_DENIED, "404": CODE.UNIMPLEMENTED}
HTTP |= dict.fromkeys(("429", "502", "503", "504"), CODE.UNAVAILABLE)
HTTP |= dict.fromkeys(("201", "204", "302", "405", "415", "431", "500", "599"), CODE.UNKNOWN)
ANSWERS |= {f"HTTP status {status}": (http(status), code, status, 0) for status, code in HTTP.items()}


async def answered(sends, **options):
    """A call's status, details and messages before a server that answers by `sends`; the next call is answered well."""

    async def talk(reader, writer):
        heard = FrameReader(reader)
        writer.write(settings({}))
        await heard.request(1)
        writer.write(sends)
        if await heard.request(3):
            writer.write((BEGIN + BODY + END).replace(b"\0\0\0\1", b"\0\0\0\3"))
        await heard.until(lambda *_: False)

    async with listening(talk) as address, Channel(address, **options) as channel:
        receiver, code, details = RecordingReceiver(), CODE.OK, ""
        try:
            await channel.begin(METHOD, receiver, data=b"hi", timeout=60).ended()
        except Failed as failed:
            code, details = failed.code, failed.details
        assert await channel.unary(METHOD, b"more", timeout=60) == b"hello"
        return code, details, receiver.messages


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer(name):
    sends, code, words, count = ANSWERS[name]
    came, details, messages = asyncio.run(answered(sends, message_bytes=1000))
    assert came == code and words in details and len(messages) == count
    if code is CODE.OK:
        assert details == ""


@pytest.mark.parametrize(
    "sends, words",
    [(BEGIN + END, "no response"), (BEGIN + BODY * 2 + END, "more than one"), (BEGIN + BODY * 9, "more than one")],
)
def test_a_unary_call_has_one_response(sends, words):
    async def main():
        async def talk(reader, writer):
            heard = FrameReader(reader)
            writer.write(settings({}))
            await heard.request(1)
            writer.write(sends)
            await heard.until(lambda *_: False)

        async with listening(talk) as address, Channel(address) as channel:
            with pytest.raises(Failed, match=f"INTERNAL: .*{words}"):
                await channel.unary(METHOD, b"", timeout=60)

    asyncio.run(main())


@pytest.mark.parametrize(
    "sends, words",
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "answered in HTTP/1"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP/2"),
        (frame(frames.PING, 0, 0, bytes(8)), "first frame is not SETTINGS (PROTOCOL_ERROR)"),
        (frame(frames.SETTINGS, frames.ACK, 0), "first frame is not SETTINGS"),
        (BEGIN, "first frame is not SETTINGS"),
        (frames.goaway(0, 0), "first frame is not SETTINGS"),
    ],
)
def test_a_server_that_does_not_begin_with_settings_fails_the_call(sends, words):
    """RFC 9113, section 3.4."""

    async def main():
        async def talk(reader, writer):
            writer.write(sends)
            assert (await FrameReader(reader).until(lambda kind, *_: kind == frames.GOAWAY)) is not None

        async with listening(talk) as address, Channel(address) as channel:
            with pytest.raises(Failed) as failed:
                await channel.unary(METHOD, b"", timeout=60)
            assert failed.value.code is CODE.UNAVAILABLE and words in failed.value.details

    asyncio.run(main())


@pytest.mark.parametrize(
    "sends, closes, words",
    [
        (b"", True, "the server closed the connection"),
        (b"", False, "no HTTP/2 settings within 0.2 s"),
        (settings({})[:5], False, "no HTTP/2 settings within 0.2 s"),
        (settings({}) + frames.goaway(0, 0, "tired"), False, "goes away at once"),
    ],
)
def test_a_server_that_never_accepts_a_call_fails_it(sends, closes, words, monkeypatch):
    monkeypatch.setattr(channel, "CONNECT_SECONDS", 60.0 if closes or "settings" not in words else 0.2)

    async def main():
        async def talk(reader, writer):
            await reader.readexactly(len(frames.PREFACE))
            writer.write(sends)
            if closes:
                writer.close()
            await reader.read()

        async with listening(talk) as address, Channel(address) as channel:
            with pytest.raises(Failed) as failed:
                await channel.unary(METHOD, b"", timeout=60)
            assert failed.value.code is CODE.UNAVAILABLE and words in failed.value.details

    asyncio.run(main())
