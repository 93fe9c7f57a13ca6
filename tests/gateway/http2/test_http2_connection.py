"""One connection: streams, windows, settings and bounds, before scripted servers and without a socket."""

import asyncio
import tracemalloc

import grpc
import h2.connection
import pytest
from h2.config import H2Configuration
from peers import METHOD, FakeTransport, FrameReader, answer, begin, cut, end, listening, until
from receivers import GatedReceiver, RecordingReceiver

from erlab.gateway.wire.http2 import Channel, Failed, connection, frames
from erlab.gateway.wire.http2.connection import Connection
from erlab.gateway.wire.http2.frames import (
    ACK,
    END_STREAM,
    PING,
    SETTINGS,
    frame,
    header_frames,
    message_frame,
    settings,
)
from erlab.gateway.wire.http2.headers import HEADER_BYTES, Metadata

CODE = grpc.StatusCode


def opened(window=2**16, first=frames.settings({})):
    """A channel on a connection whose socket is a FakeTransport, and both."""
    channel, wire = Channel("127.0.0.1:1", window=window), FakeTransport()
    channel._connection = Connection(window, channel._go_on)
    channel._connection.connection_made(wire)
    channel._connection.data_received(first)
    return channel, channel._connection, wire


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


def sent(wire, kind):
    return [f for f in cut(wire.sent[len(frames.PREFACE) :]) if f[0] == kind]


async def failure(call):
    with pytest.raises(Failed) as failed:
        await asyncio.wait_for(call.ended(), 60)
    return failed.value


def test_a_connection_begins_with_preface_and_settings():
    """RFC 9113, section 3.4: the preface, then SETTINGS; push is off, limits are said."""

    async def main():
        _, _, wire = opened()
        await turns()
        (kind, _, _, payload), *_ = cut(wire.sent[len(frames.PREFACE) :])
        assert wire.sent.startswith(frames.PREFACE) and kind == SETTINGS
        said = {int.from_bytes(payload[at : at + 2]): int.from_bytes(payload[at + 2 : at + 6]) for at in (0, 6, 12)}
        limits = {frames.INITIAL_WINDOW_SIZE: 2**16, frames.MAX_HEADER_LIST_SIZE: HEADER_BYTES}
        assert said == {frames.ENABLE_PUSH: 0} | limits

    asyncio.run(main())


def test_settings_and_pings_are_answered_in_order():
    """RFC 9113, sections 6.5.3 and 6.7."""

    async def main():
        _, conn, wire = opened()
        conn.data_received(frame(PING, 0, 0, b"12345678") + settings({4: 9}) + frame(PING, 0x80, 0, b"abcdefgh"))
        conn.data_received(frame(PING, ACK, 0, b"87654321") + frame(SETTINGS, ACK, 0))
        await turns()
        answers = [(kind, payload) for kind, flags, _, payload in cut(wire.sent[len(frames.PREFACE) :]) if flags & ACK]
        assert answers == [(SETTINGS, b""), (PING, b"12345678"), (SETTINGS, b""), (PING, b"abcdefgh")]

    asyncio.run(main())


def test_stream_numbers_are_odd_and_ascending_within_the_servers_limit():
    """RFC 9113, sections 5.1.1 and 5.1.2."""

    async def main():
        channel, conn, wire = opened(first=settings({frames.MAX_CONCURRENT_STREAMS: 2}))
        calls = [channel.begin(METHOD, RecordingReceiver(), data=b"") for _ in range(4)]
        await turns()
        assert [stream for _, _, stream, _ in sent(wire, frames.HEADERS)] == [1, 3]
        conn.data_received(answer(3))
        await turns()
        assert [stream for _, _, stream, _ in sent(wire, frames.HEADERS)] == [1, 3, 5]
        conn.data_received(settings({frames.MAX_CONCURRENT_STREAMS: 0}) + answer(1) + answer(5))
        await turns()
        assert [stream for _, _, stream, _ in sent(wire, frames.HEADERS)] == [1, 3, 5]
        calls[3].cancel()
        conn.data_received(settings({frames.MAX_CONCURRENT_STREAMS: 9}))
        await channel.__aexit__()
        assert [call.code for call in calls] == [CODE.OK] * 3 + [CODE.CANCELLED] and not channel._waiting

    asyncio.run(main())


def test_calls_that_end_while_waiting_are_removed():
    async def main():
        channel, _, wire = opened(first=settings({frames.MAX_CONCURRENT_STREAMS: 0}))
        calls = [channel.begin(METHOD, RecordingReceiver(), data=b"", timeout=0.0 if i else None) for i in range(9)]
        await until(lambda: all(call.over for call in calls[1:]))
        assert list(channel._waiting) == calls[:1]
        assert sent(wire, frames.HEADERS) == []

    asyncio.run(main())


def test_data_beyond_the_window_of_a_paused_stream_ends_the_connection():
    """RFC 9113, section 5.2.1: padding counts. What waits for a receiver is never more than its window."""

    async def main(data):
        channel, conn, wire = opened()
        receiver = GatedReceiver()
        call = channel.begin(METHOD, receiver, data=b"")
        conn.data_received(begin(1))
        while not wire.closed:
            conn.data_received(data)
        assert sum(map(len, receiver.messages)) <= 2**16
        assert sent(wire, frames.GOAWAY)[0][3][4:8] == bytes((0, 0, 0, frames.FLOW_CONTROL_ERROR))
        details = (await failure(call)).details
        assert "FLOW_CONTROL_ERROR" in details and "the server broke the HTTP/2 protocol" in details

    asyncio.run(main(message_frame(1, 0, bytes(5000))))
    asyncio.run(main(frame(frames.DATA, frames.PADDED, 1, b"\xff" + bytes(255))))


def test_unsent_answers_to_pings_and_settings_are_bounded():
    """Answers to PING and SETTINGS do not pile up (RFC 9113, section 10.5)."""

    async def main(asks):
        channel, conn, wire = opened()
        call = channel.begin(METHOD, RecordingReceiver(), data=b"")
        conn.data_received(asks * 5000)  # more than enough, but its answers go out
        await turns()
        conn.pause_writing()
        conn.data_received(asks * connection._MOST_UNSENT_ANSWERS)
        conn.resume_writing()
        conn.pause_writing()
        assert not wire.closed
        conn.data_received(asks * (connection._MOST_UNSENT_ANSWERS + 1))
        assert wire.closed and "ENHANCE_YOUR_CALM" in (await failure(call)).details

    asyncio.run(main(frame(PING, 0, 0, bytes(8))))
    asyncio.run(main(settings({4: 2**16})))


def test_a_flood_of_pings_ends_the_connection_within_the_buffer_limit():
    async def main():
        async def flood(writer_reader, writer):
            heard = FrameReader(writer_reader)
            writer.write(settings({}))
            await heard.request(1)
            writer_reader._transport.pause_reading()
            while not writer.is_closing():
                writer.write(frame(PING, 0, 0, bytes(8)) * 4000)
                await writer.drain()

        async with listening(flood) as address, Channel(address) as channel:
            call, most = channel.begin(METHOD, RecordingReceiver(), data=b""), 0
            await until(lambda: call.connection)
            conn = call.connection
            while not call.over:
                most = max(most, conn._transport.get_write_buffer_size())
                await asyncio.sleep(0)
            assert "no answers are read" in (await failure(call)).details
            assert most < 2 * connection._BUFFERED_BYTES

    asyncio.run(main())


def test_repeated_window_settings_in_one_read_are_applied_once():
    async def main():
        channel, conn, _ = opened()
        call, flushes = channel.begin(METHOD, RecordingReceiver(), data=bytes(100_000)), 0

        def flush():
            nonlocal flushes
            flushes += 1

        class Counted(dict):
            def values(self):
                flush()
                return super().values()

        conn.calls = Counted(conn.calls)
        conn.data_received((settings({4: 2**16}) + settings({4: 2**17})) * 1000)
        assert flushes == 1 and not call.over

    asyncio.run(main())


def test_a_message_in_one_byte_frames_uses_memory_of_its_own_size():
    """RFC 9113, section 10.5: data in tiny frames."""

    async def main():
        channel, conn, _ = opened(window=2**31 - 1)
        receiver = RecordingReceiver()
        channel.begin(METHOD, receiver, data=b"")
        conn.data_received(begin(1))
        data = frames.message(bytes(50_000))
        tiny = [frame(frames.DATA, 0, 1, data[at : at + 1]) for at in range(len(data) - 1)]
        tracemalloc.start()
        for piece in tiny:
            conn.data_received(piece)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        conn.data_received(frame(frames.DATA, 0, 1, data[-1:]))
        assert receiver.messages == [bytes(50_000)] and peak < 500_000

    asyncio.run(main())


def test_ended_streams_do_not_wait_for_the_connections_window():
    """RFC 9113, section 6.9: a server that never widens it leaves nothing behind."""

    async def main():
        channel, conn, _ = opened()
        calls = [channel.begin(METHOD, RecordingReceiver(), data=bytes(50_000)) for _ in range(50)]
        assert len(conn.starved) == 49
        for call in calls:
            call.cancel()
        assert not conn.starved and not conn.calls and not channel._waiting

    asyncio.run(main())


def test_the_connections_window_is_shared_by_all_streams():
    async def main():
        channel, conn, wire = opened(first=settings({4: 2**20}))
        calls = [channel.begin(METHOD, RecordingReceiver(), data=bytes(60_000)) for _ in range(3)]
        for _ in range(12):
            conn.data_received(frames.window_update(0, 10_000))
        await turns()
        taken = {n: sum(len(p) for _, _, stream, p in sent(wire, frames.DATA) if stream == n) for n in (1, 3, 5)}
        assert taken == {1: 60_005, 3: 60_005, 5: 60_005} and all(call.sent_all for call in calls)

    asyncio.run(main())


def test_an_early_answer_stops_the_request():
    """RFC 9113, section 8.1: the server may answer early; the rest of the request is not sent."""

    async def main():
        channel, conn, wire = opened()
        call = channel.begin(METHOD, RecordingReceiver(), data=bytes(100_000))
        conn.data_received(answer(1))
        await turns()
        assert sent(wire, frames.RST_STREAM) == [(frames.RST_STREAM, 0, 1, bytes(4))]
        await call.ended()
        conn.data_received(frames.window_update(0, 2**20) + frames.window_update(1, 2**20))
        await turns()
        assert sum(len(p) for *_, p in sent(wire, frames.DATA)) <= 65535

    asyncio.run(main())


def test_header_blocks_of_cancelled_calls_update_the_table():
    """RFC 9113, section 4.3: a block of a stream that was reset is decoded, as the next one may refer to it."""

    async def main():
        channel, conn, _ = opened()
        first, receiver = channel.begin(METHOD, RecordingReceiver(), data=b""), RecordingReceiver()
        second = channel.begin(METHOD, receiver, data=b"")
        first.cancel()
        adds = b"\x88\x5f" + bytes([16]) + b"application/grpc"  # to the table, as entry 62
        conn.data_received(header_frames(1, 0, adds) + message_frame(1, 0, b"late"))
        conn.data_received(header_frames(3, 0, b"\x88\xbe") + message_frame(3, 0, b"hello") + end(3))
        await second.ended()
        assert receiver.messages == [b"hello"]

    asyncio.run(main())


@pytest.mark.parametrize("size", [0, 100, 4096, 65536])
def test_the_servers_header_table_size_is_respected(size):
    """RFC 7541, section 4.2: h2 refuses a client that does not shrink its table as it was told."""

    async def main():
        done = []

        async def talk(reader, writer):
            server = h2.connection.H2Connection(H2Configuration(client_side=False))
            server.initiate_connection()
            server.update_settings({1: size})
            writer.write(server.data_to_send())
            while data := await reader.read(65536):
                for event in server.receive_data(data):
                    if type(event).__name__ == "StreamEnded":
                        done.append(event.stream_id)
                        writer.write(answer(event.stream_id))
                writer.write(server.data_to_send())

        async with listening(talk) as address, Channel(address) as channel:
            for _ in range(3):
                assert await channel.unary(METHOD, b"", (("x-a", "1"),), timeout=60) == b"hello"
        assert done == [1, 3, 5]

    asyncio.run(main())


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:", f"{'a' * 64}.b:80", "no-port"])
def test_an_invalid_address_fails_the_call(address):
    async def main():
        async with Channel(address) as channel:
            with pytest.raises(Failed, match="UNAVAILABLE: cannot connect"):
                await asyncio.wait_for(channel.unary(METHOD, b""), 60)

    asyncio.run(main())


def test_metadata_larger_than_a_frame_is_continued():
    metadata: Metadata = tuple((f"x-{i}", "y" * 9000) for i in range(4))

    async def main():
        channel, _, wire = opened()
        channel.begin(METHOD, RecordingReceiver(), metadata, data=b"")
        await turns()
        mine = [f for f in cut(wire.sent[len(frames.PREFACE) :]) if f[2] == 1]
        assert [(kind, flags, len(p)) for kind, flags, _, p in mine[:2]] == [(1, 0, 16384), (9, 0, 16384)]
        assert [(kind, flags) for kind, flags, *_ in mine[2:]] == [(9, frames.END_HEADERS), (0, END_STREAM)]

    asyncio.run(main())
