"""The HTTP/2 client against grpcio's server; tests/users/test_users_wire.py tests it as users call it."""

import asyncio
import threading

import grpc
import pytest
from peers import METHOD, back, grpc_aio, grpc_threaded, until
from receivers import GatedReceiver, RecordingReceiver

from erlab.gateway.wire.http2 import Channel, Failed

CODE = grpc.StatusCode


def run(scenario, talk=back, **options):
    async def main():
        async with grpc_aio(talk) as (address, _), Channel(address, **options) as channel:
            return await asyncio.wait_for(scenario(channel), 30)

    return asyncio.run(main())


def test_messages_go_both_ways():
    async def scenario(channel):
        receiver = RecordingReceiver()
        call = channel.begin(METHOD, receiver, timeout=20)
        for i in range(100):
            call.send(b"%d" % i)
            await until(lambda i=i: len(receiver.messages) == i + 1)
        call.half_close()
        await call.ended()
        return receiver.messages

    assert run(scenario) == [b"%d" % i for i in range(100)]


def test_a_sender_pauses_while_the_server_accepts_no_more():
    """The server reads one message at a time; few wait at the sender, and all arrive in order."""

    async def scenario(channel):
        receiver, most = RecordingReceiver(), 0
        call = channel.begin(METHOD, receiver)
        for i in range(200):
            call.send(i.to_bytes(2, "big") * 10_000)
            most = max(most, call._unsent_bytes)
            if call.paused:
                await call.resumed()
        call.half_close()
        await call.ended()
        assert most < 200_000
        return [(len(message), int.from_bytes(message[:2], "big")) for message in receiver.messages]

    assert run(scenario) == [(20_000, i) for i in range(200)]


def test_a_paused_receiver_limits_the_server_to_its_window():
    sent = 0

    async def flood(requests, context):
        nonlocal sent
        async for data in requests:
            for _ in range(500):
                yield b"x" * 2000
                sent += 1

    async def scenario(channel):
        slow = GatedReceiver()
        call = channel.begin(METHOD, slow, data=b"")
        for _ in range(20):  # others go on
            quick = RecordingReceiver()
            await channel.begin(METHOD, quick, data=b"").ended()
            assert len(quick.messages) == 500
        assert len(slow.messages) * 2005 <= channel.window
        slow.gate.set()
        await call.ended()
        return len(slow.messages)

    assert run(scenario, flood) == 500


@pytest.mark.parametrize("window", [2**16, 2**20, 2**31 - 1])
def test_a_message_larger_than_the_window_arrives(window):
    async def scenario(channel):
        return await channel.unary(METHOD, b"x" * 3_000_000)

    assert run(scenario, window=window) == b"x" * 3_000_000


def test_metadata_is_sent_unchanged():
    seen = []

    async def look(requests, context):
        seen.extend(context.invocation_metadata())
        async for data in requests:
            yield data

    async def scenario(channel):
        return await channel.unary(METHOD, b"", (("x-trace", "12"), ("x-data-bin", "AAECAwQFBg")))

    run(scenario, look)
    assert ("x-trace", "12") in seen and ("x-data-bin", bytes(range(7))) in seen


def test_cancelling_the_wait_cancels_the_call():
    async def main():
        gone = asyncio.Event()

        async def hang(requests, context):
            context.add_done_callback(lambda _: gone.set())
            yield b"one"
            await asyncio.Event().wait()

        async with grpc_aio(hang) as (address, _), Channel(address) as channel:
            receiver = RecordingReceiver()
            waiting = asyncio.create_task(channel.begin(METHOD, receiver, data=b"").ended())
            await until(lambda: receiver.messages)
            waiting.cancel()
            await asyncio.wait_for(gone.wait(), 20)
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(main())


def test_calls_fail_at_once_during_the_backoff():
    async def main():
        loop = asyncio.get_running_loop()
        async with grpc_aio(back) as (address, _):
            port = int(address.rpartition(":")[2])
        async with Channel(address, backoff=60) as channel:
            for _ in range(3):
                with pytest.raises(Failed, match="UNAVAILABLE: cannot connect"):
                    await channel.unary(METHOD, b"")
            async with grpc_aio(back, port):
                with pytest.raises(Failed, match="UNAVAILABLE: cannot connect"):
                    await channel.unary(METHOD, b"")
                clock = loop.time
                loop.time = lambda: clock() + 60
                assert await channel.unary(METHOD, b"back") == b"back"

    asyncio.run(main())


def test_messages_sent_before_the_connection_opens_arrive():
    async def scenario(channel):
        receiver = RecordingReceiver()
        call = channel.begin(METHOD, receiver)
        call.send(b"one")
        call.send(b"two")
        call.half_close()
        await call.ended()
        return receiver.messages

    assert run(scenario) == [b"one", b"two"]


def test_a_closed_channel_ends_its_calls():
    async def main():
        async def hang(requests, context):
            yield b"one"
            await asyncio.Event().wait()

        async with grpc_aio(hang) as (address, _):
            channel = Channel(address)
            receiver = RecordingReceiver()
            call = channel.begin(METHOD, receiver, data=b"")
            await until(lambda: receiver.messages)
            await channel.__aexit__()
            with pytest.raises(Failed, match="CANCELLED"):
                await call.ended()

    asyncio.run(main())


def test_a_sender_that_waits_for_a_connection_resumes_with_it_or_with_the_calls_end():
    async def main():
        async with grpc_aio() as (address, _), Channel(address) as channel:
            receiver = RecordingReceiver()
            call, lost = channel.begin(METHOD, receiver), channel.begin(METHOD, RecordingReceiver())
            for each in (call, lost):
                each.send(bytes(100_000))
                assert each.paused and each.connection is None
            waiting, hopeless = asyncio.create_task(call.resumed()), asyncio.create_task(lost.resumed())
            await asyncio.sleep(0)
            assert not waiting.done() and not hopeless.done()
            lost.cancel()
            await asyncio.wait_for(hopeless, 60)
            assert call.connection is None
            await asyncio.wait_for(waiting, 60)
            assert call.connection is not None
            call.half_close()
            await call.ended()
            assert receiver.messages == [bytes(100_000)]

    asyncio.run(main())


@pytest.mark.parametrize("details", ["", " spaces ", "\n\ttab", "größer \N{SNOWMAN} 100 %", "x" * 5000])
def test_status_details_are_decoded(details):
    async def refuse(requests, context):
        yield b"one"
        await context.abort(CODE.FAILED_PRECONDITION, details)

    async def scenario(channel):
        with pytest.raises(Failed) as failed:
            await channel.unary(METHOD, b"")
        return failed.value.code, failed.value.details

    assert run(scenario, refuse) == (CODE.FAILED_PRECONDITION, details)


def test_the_timeout_is_sent_to_the_server():
    left = []

    async def look(requests, context):
        left.append(context.time_remaining())
        async for data in requests:
            yield data

    async def scenario(channel):
        for timeout in (30, 100_000_000, None):
            await channel.unary(METHOD, b"", timeout=timeout)

    run(scenario, look)
    assert 0 < left[0] <= 30 and 10**7 < left[1] <= 10**8 and left[2] is None


def test_a_restarted_server_gets_waiting_calls_and_its_former_calls_fail():
    async def main():
        async def hang(requests, context):
            async for data in requests:
                yield data
                await asyncio.Event().wait()

        async with grpc_aio(hang) as (address, server):
            port = int(address.rpartition(":")[2])
            async with Channel(address) as channel:
                receiver = RecordingReceiver()
                lost = channel.begin(METHOD, receiver, data=b"one", timeout=60)
                await until(lambda: receiver.messages)
                await server.stop(None)
                with pytest.raises(Failed) as failed:
                    await lost.ended()
                assert failed.value.code in (CODE.UNAVAILABLE, CODE.CANCELLED)
                async with grpc_aio(back, port):
                    got = await asyncio.gather(*(channel.unary(METHOD, b"%d" % i, timeout=60) for i in range(50)))
                    assert got == [b"%d" % i for i in range(50)]
                assert receiver.messages == [b"one"]

    asyncio.run(main())


def test_a_draining_server_finishes_its_calls_and_the_next_server_gets_new_ones():
    """grpcio's `stop` sends GOAWAY, refuses later calls, and lets calls in flight go on for its grace period."""

    async def main():
        go = asyncio.Event()

        async def slow(requests, context):
            async for data in requests:
                yield data
                await go.wait()
                yield data

        async with grpc_aio(slow) as (address, server):
            port = int(address.rpartition(":")[2])
            async with Channel(address) as channel:
                receivers = [RecordingReceiver() for _ in range(20)]
                calls = [channel.begin(METHOD, k, data=b"%d" % i, timeout=60) for i, k in enumerate(receivers)]
                await until(lambda: all(k.messages for k in receivers))
                stopping = asyncio.create_task(server.stop(60))
                first = calls[0].connection
                await until(lambda: not first.usable)
                async with grpc_aio(back, port):
                    assert await channel.unary(METHOD, b"new", timeout=60) == b"new"
                    go.set()
                    for call in calls:
                        await call.ended()
                    await stopping
                assert [k.messages for k in receivers] == [[b"%d" % i] * 2 for i in range(20)]

    asyncio.run(main())


@pytest.mark.parametrize("sender", ["many", "few"])
def test_calls_to_a_threaded_grpc_server(sender):
    """Concurrent calls, a slow receiver, a deadline, a cancelled call and a status, before grpcio's threaded server."""
    gone = threading.Semaphore(0)

    def talk(requests, context):
        for data in requests:
            if data == b"hang":
                context.add_callback(gone.release)
                yield b"one"
                gone.acquire()
                gone.release()
            elif data == b"fail":
                context.abort(CODE.OUT_OF_RANGE, "too far")
            for _ in range(200 if data == b"flood" else 1):
                yield data * 100

    async def main():
        count = 40 if sender == "many" else 1
        with grpc_threaded(talk) as (address, _):
            async with Channel(address) as channel:
                got = await asyncio.gather(*(channel.unary(METHOD, b"%d" % i, timeout=60) for i in range(count)))
                assert got == [b"%d" % i * 100 for i in range(count)]
                slow = GatedReceiver()
                flood = channel.begin(METHOD, slow, data=b"flood", timeout=60)
                with pytest.raises(Failed, match="OUT_OF_RANGE: too far"):
                    await channel.unary(METHOD, b"fail", timeout=60)
                assert len(slow.messages) * 505 <= channel.window
                slow.gate.set()
                await flood.ended()
                assert slow.messages == [b"flood" * 100] * 200
                receiver, seconds = RecordingReceiver(), 60.0 if sender == "many" else 0.5
                while not receiver.messages:  # on a busy machine the deadline may pass before the first response
                    hang = channel.begin(METHOD, receiver, data=b"hang", timeout=seconds)
                    await until(lambda: receiver.messages or hang.over)
                    seconds *= 2
                if sender == "many":
                    hang.cancel()
                with pytest.raises(Failed, match="CANCELLED" if sender == "many" else "DEADLINE_EXCEEDED"):
                    await hang.ended()
                assert await asyncio.to_thread(gone.acquire, timeout=60)
                gone.release()

    asyncio.run(main())


def test_calls_beyond_the_servers_stream_limit_all_succeed():
    async def main():
        async with grpc_aio(back, options=[("grpc.max_concurrent_streams", 2)]) as (address, _):
            async with Channel(address) as channel:  # whose first calls begin before it knows
                got = await asyncio.gather(*(channel.unary(METHOD, b"%d" % i, timeout=60) for i in range(100)))
                assert got == [b"%d" % i for i in range(100)]

    asyncio.run(main())
