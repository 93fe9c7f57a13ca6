"""Random bytes to the HTTP/2 client, without a socket: every call ends, and nothing stays open."""

import asyncio

import hpack
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import FakeTransport, cut
from receivers import RecordingReceiver

from erlab.gateway.wire.http2 import Channel, Failed, frames
from erlab.gateway.wire.http2.connection import Connection
from erlab.gateway.wire.http2.frames import ProtocolError, frame
from erlab.gateway.wire.http2.headers import Decoder, Head, block, string, timeout_field

OPENED = block([(":status", "200"), ("content-type", "application/grpc")])
END = frames.header_frames(1, frames.END_STREAM, block([("grpc-status", "0")]))
ANSWER = frames.header_frames(1, 0, OPENED) + frames.message_frame(1, 0, b"hello") * 3 + END
FRAMES = st.builds(
    frame,
    st.one_of(st.integers(0, 9), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 13, 32]), st.integers(0, 255)),
    st.one_of(st.integers(0, 6), st.integers(0, 2**31 - 1)),
    st.one_of(
        st.binary(max_size=40),
        st.just(OPENED),
        st.builds(frames.message, st.binary(max_size=60)),
        st.builds(lambda n: n.to_bytes(4, "big"), st.integers(0, 2**31 - 1)),
        st.just(block([(":status", "200"), ("grpc-status", "0")])),
    ),
)


async def feed(*pieces):
    """The calls' ends and messages, the frames that the client sent, and whether it hung up."""
    channel, wire = Channel("127.0.0.1:1", backoff=1.0), FakeTransport()
    receivers = [RecordingReceiver() for _ in range(3)]
    channel._not_before = float("inf")  # a call that would be sent again finds no other server
    channel._connection = connection = Connection(channel.window, channel._go_on)
    channel._connections.add(connection)
    connection.connection_made(wire)
    calls = [channel.begin("/a/B", receiver, data=b"hello", timeout=20) for receiver in receivers]
    for piece in pieces:
        if not wire.closed:
            connection.data_received(piece)
    await asyncio.sleep(0)
    sent, closed = cut(wire.sent[len(frames.PREFACE) :]), wire.closed
    await channel.__aexit__()
    connection.connection_lost(None)
    ends = await asyncio.gather(*(call.ended() for call in calls), return_exceptions=True)
    assert not connection.calls and not connection.starved and not channel._waiting
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1
    return ends, [receiver.messages for receiver in receivers], sent, closed


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(FRAMES, st.just(ANSWER)), max_size=12), st.binary(max_size=9))
def test_random_frames_leave_no_call_or_stream_open(sequence, junk):
    ends, _, sent, closed = asyncio.run(feed(frames.settings({}), b"".join(sequence) + junk))
    assert all(end is None or isinstance(end, Failed) for end in ends)
    assert closed == any(kind == frames.GOAWAY for kind, *_ in sent)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, len(ANSWER) + 9), max_size=12))
def test_an_answer_split_anywhere_is_the_same(cuts):
    data, cuts = frames.settings({}) + ANSWER, sorted(cuts)
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    ends, messages, _, closed = asyncio.run(feed(*pieces))
    assert ends[0] is None and messages == [[b"hello"] * 3, [], []] and not closed


PIECES = [b"\x82", b"\xbe", b"\x40\x01a\x01b", b"\0\x01a\x81\xff", b"\x20", b"\xff"]
BLOCKS = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from(PIECES)).map(b"".join),
)


@settings(deadline=None, max_examples=500)
@given(st.lists(BLOCKS, max_size=6))
def test_any_header_block_is_read_or_ends_the_connection(blocks):
    """Whatever hpack raises; and a remembered block means what hpack says."""
    decoder, library = Decoder(), hpack.Decoder()
    for each in blocks:
        try:
            library.decode(each, raw=True)
        except hpack.HPACKError:
            expected = False
        else:
            expected = True
        try:
            assert isinstance(decoder(each), Head) and expected
        except ProtocolError:
            assert not expected or each.startswith(b"\x20" * 3)
            return


@given(st.text(st.characters(max_codepoint=255), max_size=400))
def test_header_strings_are_encoded_as_hpack_encodes_them(value):
    decoded = hpack.Decoder().decode(b"\0" + string("name") + string(value), raw=True)
    assert decoded == [(b"name", value.encode("latin-1"))]


@given(st.floats(-1, 1e7))
def test_timeouts_are_encoded_as_grpc_decodes_them(seconds):
    [(_, text)] = hpack.Decoder().decode(timeout_field(seconds))
    number, unit = int(text[:-1]), {"m": 1e-3, "S": 1.0}[text[-1]]
    assert len(text) <= 9 and -1.0 <= number * unit - max(seconds, 0.001) <= 0.001 + 1e-9 and number > 0
