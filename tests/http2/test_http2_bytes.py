"""Bytes to our two sides, without a socket: what is not legal ends a connection by a word, what is odd harms nobody."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import HEADERS, PEER, Watched, Wire, cut, service

from erlab.http2 import Channel, Failed, Server, connection, frames, server
from erlab.http2.calls import Kept
from erlab.http2.client import _Connection
from erlab.http2.frames import frame
from erlab.http2.headers import block, text, timeout

GREETING = frames.PREFACE + frames.settings({})


@pytest.fixture(autouse=True)
def _still(monkeypatch):
    """Connections' clock stands: their patience grows by time, of which much may pass on a busy machine."""
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: 0.0, monotonic_ns=lambda: 0))


async def _turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


def opened(number=1, path="Back", ends=False, more=()):
    head = block([*HEADERS[:2], (":path", PEER + path), *HEADERS[3:], *more])
    return frames.header_frames(number, int(ends), head)


CALL = opened() + frames.message_frame(1, 1, b"hello")


def feed(data, cuts=(), handler=service, **options):
    """What our server sends for these bytes: its frames, and whether it hung up."""
    watched = Watched(handler)
    pieces = [data[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True)]

    async def main():
        serves, wire = Server(watched, **options), Wire()
        protocol = server._Connection(serves)
        protocol.connection_made(wire)
        for piece in pieces:
            if not wire.closed:
                protocol.data_received(piece)
        await _turns(8)
        sent, closed = cut(wire.sent), wire.closed
        if not closed:
            wire.closed = True
            protocol.connection_lost(None)
        await _turns(8)
        assert not serves._tasks and not protocol.streams and not watched.running
        assert len(asyncio.all_tasks()) == 1
        return sent, closed

    return asyncio.run(main())


def told(sent):
    """The code of the goaway that ends what was sent."""
    kind, _, _, payload = sent[-1]
    return int.from_bytes(payload[4:8], "big") if kind == frames.GOAWAY else None


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, len(GREETING + CALL)), max_size=12))
def test_an_answer_is_the_same_however_the_question_is_cut(cuts):
    sent, closed = feed(GREETING + CALL, cuts)
    assert not closed
    assert [(kind, stream) for kind, _, stream, _ in sent if stream] == [(1, 1), (0, 1), (1, 1)]
    assert [payload for kind, _, _, payload in sent if kind == frames.DATA] == [frames.message(b"hello")]


@pytest.mark.parametrize(
    "data, code",
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", frames.PROTOCOL_ERROR),
        (frames.PREFACE + frame(frames.PING, 0, 0, bytes(8)), frames.PROTOCOL_ERROR),
        (GREETING + frame(frames.PING, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
        (GREETING + frame(frames.PING, 0, 0, bytes(7)), frames.FRAME_SIZE_ERROR),
        (GREETING + frame(frames.DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
        (GREETING + frame(frames.DATA, 0, 1, b"x"), frames.PROTOCOL_ERROR),
        (GREETING + frame(frames.SETTINGS, 0, 0, bytes(5)), frames.FRAME_SIZE_ERROR),
        (GREETING + frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}), frames.FLOW_CONTROL_ERROR),
        (GREETING + frames.settings({frames.MAX_FRAME_SIZE: 100}), frames.PROTOCOL_ERROR),
        (GREETING + frames.window_update(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
        (GREETING + frames.window_update(0, 0), frames.PROTOCOL_ERROR),
        (GREETING + frames.window_update(3, 9), frames.PROTOCOL_ERROR),
        (GREETING + frame(frames.PUSH_PROMISE, 4, 1, bytes(9)), frames.PROTOCOL_ERROR),
        (GREETING + frame(frames.CONTINUATION, 4, 1, b"\x82"), frames.PROTOCOL_ERROR),
        (GREETING + frame(frames.HEADERS, 0, 1, b"\x82") + frame(frames.PING, 0, 0, bytes(8)), frames.PROTOCOL_ERROR),
        (GREETING + frame(frames.HEADERS, 4, 1, b"\xff\xff\xff\xff"), frames.COMPRESSION_ERROR),
        (GREETING + frame(frames.HEADERS, 4 | frames.PADDED, 1, b"\x09\x82"), frames.PROTOCOL_ERROR),
        (GREETING + opened(2), frames.PROTOCOL_ERROR),
        (GREETING + opened() + opened(), frames.PROTOCOL_ERROR),
        (GREETING + CALL + frame(frames.DATA, 0, 1, b"more"), frames.STREAM_CLOSED),
        (GREETING + opened(path="Hang") + frame(frames.DATA, 0, 1, bytes(16384)) * 5, frames.FLOW_CONTROL_ERROR),
        (GREETING + b"\xff\xff\xff" + bytes(6), frames.FRAME_SIZE_ERROR),
        (GREETING + frame(frames.HEADERS, 0, 1, bytes(16384)) + frame(9, 0, 1, bytes(16384)) * 9, 11),
        (GREETING + frame(frames.HEADERS, 0, 1) + frame(frames.CONTINUATION, 0, 1) * 13_000, 11),
        (GREETING + frame(frames.PING, 0, 0, bytes(8)) * 13_000, frames.ENHANCE_YOUR_CALM),
        (GREETING + frames.settings({}) * 13_000, frames.ENHANCE_YOUR_CALM),
        (GREETING + opened(path="Hang") + frame(frames.DATA, 0, 1) * 13_000, frames.ENHANCE_YOUR_CALM),
    ],
)
def test_who_breaks_the_protocol_is_told_how_and_sent_away(data, code):
    sent, closed = feed(data)
    assert closed and told(sent) == code


def test_headers_that_grow_when_decoded_are_bounded():
    # One entry of 3.9 kB in the table, then named sixty times in sixty bytes.
    bomb = b"\x40" + text("x-a") + text("y" * 3900) + b"\xbe" * 60
    sent, closed = feed(GREETING + frame(frames.HEADERS, 4, 1, bomb))
    assert closed and told(sent) == frames.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "bad",
    [
        *({"more": [header]} for header in [("X-Upper", "1"), ("connection", "close"), (":path", "/again")]),
        *({"more": [header]} for header in [("a", "b\r\nc"), ("a", "\xe9"), ("\xe9", "1"), ("a b", "1"), ("", "1")]),
        {"path": "B\xe2ck"},
        {"path": "Ba ck"},
    ],
)
def test_malformed_headers_end_their_stream_alone(bad):
    sent, closed = feed(GREETING + opened(**bad) + CALL.replace(b"\0\0\0\x01", b"\0\0\0\x03"))
    assert not closed and (frames.RST_STREAM, 0, 1, bytes((0, 0, 0, 1))) in sent
    assert [payload for kind, _, _, payload in sent if kind == frames.DATA] == [frames.message(b"hello")]


def test_calls_that_are_taken_back_at_once_never_run_and_are_counted():
    ran = 0

    async def handler(call):
        nonlocal ran
        ran += 1

    pairs = b"".join(opened(2 * i + 1) + frames.reset(2 * i + 1, frames.CANCEL) for i in range(13_000))
    sent, closed = feed(GREETING + pairs, handler=handler)
    assert closed and told(sent) == frames.ENHANCE_YOUR_CALM and ran == 0


def test_no_more_streams_than_it_says():
    most = server._STREAMS
    sent, closed = feed(GREETING + b"".join(opened(2 * i + 1, "Hang") for i in range(most + 2)))
    refused = [stream for kind, _, stream, _ in sent if kind == frames.RST_STREAM]
    assert not closed and refused == [2 * most + 1, 2 * most + 3]


def test_a_declared_size_is_enough_to_refuse_a_message():
    async def handler(call):
        await call.receive()

    declared = frame(frames.DATA, 0, 1, b"\0" + (100_000_000).to_bytes(4, "big"))
    sent, closed = feed(GREETING + opened() + declared, handler=handler)
    assert not closed and b"grpc-status\x018" in sent[-2][3] and sent[-1][0] == frames.RST_STREAM


FRAMES = st.builds(
    frame,
    st.one_of(st.integers(0, 9), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 13, 32]), st.integers(0, 255)),
    st.one_of(st.integers(0, 6), st.integers(0, 2**31 - 1)),
    st.one_of(
        st.binary(max_size=40),
        st.just(block(HEADERS)),
        st.builds(frames.message, st.binary(max_size=60)),
        st.builds(lambda n: n.to_bytes(4, "big"), st.integers(0, 2**31 - 1)),
        st.just(block([(":status", "200"), ("grpc-status", "0")])),
    ),
)


CALLS = st.sampled_from([CALL, opened(3), opened(5, "Hang")])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(FRAMES, CALLS), max_size=12), st.binary(max_size=9))
def test_any_frames_leave_our_server_whole(sequence, junk):
    """No exception, no task or stream left; it hangs up with a goaway or goes on."""
    sent, closed = feed(GREETING + b"".join(sequence) + junk)
    assert (told(sent) is not None) == closed


@settings(deadline=None, max_examples=200)
@given(st.lists(FRAMES, max_size=12), st.binary(max_size=9))
def test_any_frames_leave_our_client_whole(sequence, junk):
    async def main():
        channel, wire = Channel("127.0.0.1:1"), Wire()
        connection = _Connection(channel)
        connection.connection_made(wire)
        channel._connection = connection
        kept = [Kept() for _ in range(3)]
        calls = [channel.begin("/a/B", one, data=b"hello", timeout=20) for one in kept]
        connection.data_received(frames.settings({}) + b"".join(sequence) + junk)
        await _turns(3)
        sent, closed = cut(wire.sent[len(frames.PREFACE) :]), wire.closed
        wire.closed = True
        connection.connection_lost(None)
        channel._not_before = float("inf")  # a refused call would be begun again, where nobody listens
        channel._backoff = 1.0
        for call in calls:
            call.cancel()
        ends = await asyncio.gather(*(call.ended() for call in calls), return_exceptions=True)
        assert all(end is None or isinstance(end, Failed) for end in ends) and not connection.streams
        await channel.__aexit__()
        await _turns(3)
        assert len(asyncio.all_tasks()) == 1
        return sent, closed

    sent, closed = asyncio.run(main())
    assert closed or not any(kind == frames.GOAWAY for kind, *_ in sent)


@given(st.text(st.characters(max_codepoint=255), max_size=400))
def test_header_texts_are_hpacks(value):
    import hpack

    assert hpack.Decoder().decode(b"\0" + text("name") + text(value), raw=True) == [(b"name", value.encode("latin-1"))]


@given(st.integers(0, 99_999_999), st.sampled_from("HMSmun"))
def test_timeouts_are_read_as_grpc_writes_them(number, unit):
    seconds = {"H": 3600, "M": 60, "S": 1, "m": 1e-3, "u": 1e-6, "n": 1e-9}[unit]
    assert timeout(f"{number}{unit}") == pytest.approx(number * seconds)
