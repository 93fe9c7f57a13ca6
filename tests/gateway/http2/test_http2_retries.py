"""Calls are retried only if certainly no server began them: then whole, and within their deadline."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from peers import METHOD, FakeTransport, FrameReader, answer, begin, cut, end, listening, until
from receivers import RecordingReceiver

from erlab.gateway.wire.http2 import Channel, Failed, calls, frames
from erlab.gateway.wire.http2.connection import Connection
from erlab.gateway.wire.http2.frames import END_STREAM, goaway, message_frame, reset, settings

CODE = grpc.StatusCode
REFUSED = frames.REFUSED_STREAM


def body(stream):
    return message_frame(stream, 0, b"hello")


@asynccontextmanager
async def scripted(*scripts, **options):
    """A channel to a server whose first connection runs the first script(writer, heard), and so on, and whose further
    connections run the last. Yields the channel and the FrameReader of each connection."""
    connections = []

    async def talk(reader, writer):
        heard = FrameReader(reader)
        connections.append(heard)
        writer.write(settings({}))
        await scripts[min(len(connections), len(scripts)) - 1](writer, heard)
        await heard.until(lambda *_: False)

    async with listening(talk) as address, Channel(address, **options) as channel:
        yield channel, connections


async def good(writer, heard):
    """Answer everything."""
    while stream := await heard.request():
        writer.write(answer(stream))


def sent(heard, stream):
    """The bytes of the messages that a client sent on a stream, and whether it ended it."""
    mine = [(flags, payload) for kind, flags, number, payload in heard.frames if (kind, number) == (0, stream)]
    return b"".join(payload for _, payload in mine), bool(mine) and bool(mine[-1][0] & END_STREAM)


async def outcome(call):
    try:
        await asyncio.wait_for(call.ended(), 60)
    except Failed as failed:
        return failed.code
    return CODE.OK


def whole(*messages):
    return b"".join(map(frames.message, messages)), True


def test_a_refused_call_is_retried_whole():
    async def main():
        async def script(writer, heard):
            await heard.request(1)
            writer.write(reset(1, REFUSED))
            await good(writer, heard)

        async with scripted(script) as (channel, connections):
            receiver = RecordingReceiver()
            assert await outcome(channel.begin(METHOD, receiver, data=b"question")) is CODE.OK
        [heard] = connections
        assert receiver.messages == [b"hello"]
        assert sent(heard, 1) == sent(heard, 3) == whole(b"question")

    asyncio.run(main())


def test_a_refused_call_is_retried_with_all_its_messages():
    async def main():
        async def script(writer, heard):
            await heard.request(1)
            writer.write(reset(1, REFUSED))
            await good(writer, heard)

        async with scripted(script) as (channel, connections):
            call = channel.begin(METHOD, RecordingReceiver())
            call.send(b"one")
            await until(lambda: connections and connections[0].frames)
            call.send(b"two")
            call.half_close()
            assert await outcome(call) is CODE.OK
        assert sent(connections[0], 3) == whole(b"one", b"two")

    asyncio.run(main())


@pytest.mark.parametrize("messages", [0, 1, 3])
def test_a_call_with_a_response_is_not_retried_when_refused(messages):
    """A retry would append a second answer to the first."""

    async def main():
        async def script(writer, heard):
            await heard.request(1)
            writer.write(begin(1) + body(1) * messages + reset(1, REFUSED))
            await good(writer, heard)

        async with scripted(script) as (channel, connections):
            receiver = RecordingReceiver()
            assert await outcome(channel.begin(METHOD, receiver, data=b"question")) is CODE.UNAVAILABLE
            assert await channel.unary(METHOD, b"other", timeout=60) == b"hello"  # by which time it would have been
        assert receiver.messages == [b"hello"] * messages
        assert {stream for *_, stream, _ in connections[0].frames} == {0, 1, 3}

    asyncio.run(main())


def test_attempts_of_a_refused_call_are_bounded():
    async def main():
        async def script(writer, heard):
            while stream := await heard.request():
                writer.write(reset(stream, REFUSED))

        async with scripted(script) as (channel, connections):
            with pytest.raises(Failed, match="UNAVAILABLE: the server reset the stream with REFUSED_STREAM"):
                await channel.unary(METHOD, b"")
        assert len({stream for *_, stream, _ in connections[0].frames if stream}) == 1 + calls.ATTEMPTS

    asyncio.run(main())


def test_a_request_beyond_replay_bytes_is_not_retried():
    async def main():
        async def script(writer, heard):
            await heard.until(lambda kind, *_: kind == frames.HEADERS)
            writer.write(frames.window_update(0, 2**30) + frames.window_update(1, 2**30))
            await heard.request(1)
            writer.write(reset(1, REFUSED))

        async with scripted(script) as (channel, connections):
            call = channel.begin(METHOD, RecordingReceiver())
            await until(lambda: call.connection is not None)
            for _ in range(3):
                call.send(bytes(calls.REPLAY_BYTES // 2))
                await call.resumed()
            call.half_close()
            assert await outcome(call) is CODE.UNAVAILABLE
        assert {stream for *_, stream, _ in connections[0].frames} <= {0, 1}

    asyncio.run(main())


def test_a_retry_keeps_the_calls_deadline():
    async def main():
        async def script(writer, heard):
            await heard.request(1)
            await asyncio.sleep(0.1)
            writer.write(reset(1, REFUSED))
            await good(writer, heard)

        async with scripted(script) as (channel, connections):
            assert await outcome(channel.begin(METHOD, RecordingReceiver(), data=b"", timeout=30)) is CODE.OK
        first, second = (
            int(payload.partition(b"grpc-timeout")[2][1:].rstrip(b"m"))
            for kind, _, _, payload in connections[0].frames
            if kind == frames.HEADERS
        )
        assert 0 < second <= first - 90 <= 30_000 - 90  # milliseconds; the server waited for 100, by its own clock

        async def refuse(writer, heard):
            while stream := await heard.request():
                await asyncio.sleep(0.1)
                writer.write(reset(stream, REFUSED))

        async with scripted(refuse) as (channel, _):
            assert (
                await outcome(channel.begin(METHOD, RecordingReceiver(), data=b"", timeout=0.5))
                is CODE.DEADLINE_EXCEEDED
            )

    asyncio.run(main())


def test_goaway_retries_unprocessed_calls_and_lets_others_finish():
    async def main():
        second = asyncio.Event()

        async def leaving(writer, heard):
            for stream in (1, 3, 5):
                await heard.request(stream)
            writer.write(begin(1) + body(1) + goaway(1, 0))
            await second.wait()  # the others have been answered elsewhere
            writer.write(body(1) + end(1))

        async with scripted(leaving, good) as (channel, connections):
            receivers = [RecordingReceiver() for _ in range(3)]
            calls = [channel.begin(METHOD, k, data=b"%d" % i) for i, k in enumerate(receivers)]
            assert [await outcome(call) for call in calls[1:]] == [CODE.OK] * 2
            second.set()
            assert await outcome(calls[0]) is CODE.OK
            assert await asyncio.wait_for(connections[0].until(lambda *_: False), 60) is None  # the old one is closed
        assert [k.messages for k in receivers] == [[b"hello"] * 2, [b"hello"], [b"hello"]]
        assert [sent(connections[1], stream) for stream in (1, 3)] == [whole(b"1"), whole(b"2")]

    asyncio.run(main())


@pytest.mark.parametrize("error", [frames.NO_ERROR, frames.ENHANCE_YOUR_CALM])
def test_goaway_before_all_calls_retries_all(error):
    async def main():
        async def leaving(writer, heard):
            for stream in (1, 3):
                await heard.request(stream)
            writer.write(goaway(0, error, "tired"))
            writer.close()

        async with scripted(leaving, good) as (channel, connections):
            calls = [channel.begin(METHOD, RecordingReceiver(), data=b"%d" % i) for i in range(2)]
            assert [await outcome(call) for call in calls] == [CODE.OK] * 2
        assert [sent(connections[1], stream) for stream in (1, 3)] == [whole(b"0"), whole(b"1")]

    asyncio.run(main())


def test_a_call_with_a_response_is_not_retried_after_goaway():
    async def main():
        async def leaving(writer, heard):
            await heard.request(1)
            writer.write(begin(1) + body(1) + goaway(0, 0, "tired"))

        async with scripted(leaving, good) as (channel, connections):
            receiver = RecordingReceiver()
            with pytest.raises(Failed, match="UNAVAILABLE: the server goes away: tired"):
                await channel.begin(METHOD, receiver, data=b"").ended()
            assert receiver.messages == [b"hello"] and len(connections) == 1

    asyncio.run(main())


def test_a_drain_in_two_steps_loses_no_call():
    """RFC 9113, section 6.8: GOAWAY with the largest stream number first, then with the true one."""

    async def main():
        async def leaving(writer, heard):
            await heard.request(1)
            writer.write(goaway(frames.LARGEST_WINDOW, 0) + frames.frame(frames.PING, 0, 0, b"drained?"))
            assert await heard.until(lambda kind, flags, _, data: (kind, flags, data) == (frames.PING, 1, b"drained?"))
            writer.write(goaway(1, 0) + answer(1))

        async with scripted(leaving, good) as (channel, connections):
            call = channel.begin(METHOD, RecordingReceiver(), data=b"")
            await until(lambda: connections and any(kind == frames.PING for kind, *_ in connections[0].frames))
            assert await channel.unary(METHOD, b"", timeout=60) == b"hello"  # no stream begins on the old one
            assert await outcome(call) is CODE.OK
        assert [sum(kind == frames.HEADERS for kind, *_ in heard.frames) for heard in connections] == [1, 1]

    asyncio.run(main())


def test_attempts_after_goaway_are_bounded():
    async def main():
        async def leaving(writer, heard):
            await heard.request(1)
            writer.write(goaway(0, 0, "tired"))

        async with scripted(leaving) as (channel, connections):
            with pytest.raises(Failed, match="UNAVAILABLE: the server goes away: tired"):
                await channel.unary(METHOD, b"")
            assert len(connections) == 1 + calls.ATTEMPTS

    asyncio.run(main())


def test_a_lost_connection_fails_its_calls_and_the_next_call_reconnects():
    async def main():
        async def lost(writer, heard):
            await heard.request(1)
            writer.close()

        async with scripted(lost, good) as (channel, connections):
            assert await outcome(channel.begin(METHOD, RecordingReceiver(), data=b"")) is CODE.UNAVAILABLE
            assert await channel.unary(METHOD, b"", timeout=60) == b"hello"
            assert len(connections) == 2

    asyncio.run(main())


def test_an_unwritten_call_is_retried():
    async def main():
        async with scripted(good) as (channel, connections):
            dead = Connection(channel.window, channel._go_on)
            dead.connection_made(wire := FakeTransport())
            await asyncio.sleep(0)
            channel._connection = dead
            written, unwritten = channel.begin(METHOD, RecordingReceiver(), data=b"one"), None
            await asyncio.sleep(0)
            unwritten = channel.begin(METHOD, RecordingReceiver(), data=b"two")
            wire.closed = True
            dead.connection_lost(ConnectionResetError("reset"))
            assert (await outcome(written), await outcome(unwritten)) == (CODE.UNAVAILABLE, CODE.OK)
        assert sent(connections[0], 1) == whole(b"two")
        assert b"two" not in wire.sent and len([f for f in cut(wire.sent[24:]) if f[0] == frames.HEADERS]) == 1

    asyncio.run(main())


@pytest.mark.parametrize("when", ["refused", "full", "connecting"])
def test_closing_a_channel_ends_waiting_calls(when):
    async def main():
        async def script(writer, heard):
            writer.write(settings({frames.MAX_CONCURRENT_STREAMS: 0 if when == "full" else 9}))
            while stream := await heard.request():
                writer.write(reset(stream, REFUSED))

        async with scripted(script) as (channel, connections):
            call = channel.begin(METHOD, RecordingReceiver(), data=b"")
            if when == "refused":
                await until(lambda: call._attempts)
            elif when == "full":
                await until(lambda: connections and len(connections[0].frames) > 1)
            await channel.__aexit__()
            with pytest.raises(Failed, match="CANCELLED: the channel is closed"):
                await asyncio.wait_for(call.ended(), 60)
            with pytest.raises(Failed, match="CANCELLED: the channel is closed"):
                await asyncio.wait_for(channel.unary(METHOD, b""), 60)

    asyncio.run(main())
