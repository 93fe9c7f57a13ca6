"""Our client against grpc's server; what users ask of it is in tests/users/test_users_wire.py."""

import asyncio
import threading

import grpc
import pytest
from peers import METHOD, Gated, Kept, back, grpc_aio, grpc_threaded, until

from erlab.gateway.wire.http2 import Channel, Failed

CODE = grpc.StatusCode


def run(scenario, talk=back, **options):
    async def main():
        async with grpc_aio(talk) as (address, _), Channel(address, **options) as channel:
            return await asyncio.wait_for(scenario(channel), 30)

    return asyncio.run(main())


def test_a_conversation_goes_both_ways_and_ends():
    async def scenario(channel):
        kept = Kept()
        call = channel.begin(METHOD, kept, timeout=20)
        for i in range(100):
            call.send(b"%d" % i)
            await until(lambda i=i: len(kept.messages) == i + 1)
        call.half_close()
        await call.ended()
        return kept.messages

    assert run(scenario) == [b"%d" % i for i in range(100)]


def test_more_than_the_server_takes_waits_here_and_says_so():
    """The server reads a message a turn; whoever asks `paused` keeps a few, and all arrive in order."""

    async def scenario(channel):
        kept, most = Kept(), 0
        call = channel.begin(METHOD, kept)
        for i in range(200):
            call.send(i.to_bytes(2, "big") * 10_000)
            most = max(most, call._unsent_bytes)
            if call.paused:
                await call.resumed()
        call.half_close()
        await call.ended()
        assert most < 200_000
        return [(len(message), int.from_bytes(message[:2], "big")) for message in kept.messages]

    assert run(scenario) == [(20_000, i) for i in range(200)]


def test_a_receiver_that_pauses_holds_back_the_server():
    sent = 0

    async def flood(requests, context):
        nonlocal sent
        async for data in requests:
            for _ in range(500):
                yield b"x" * 2000
                sent += 1

    async def scenario(channel):
        slow = Gated()
        call = channel.begin(METHOD, slow, data=b"")
        for _ in range(20):  # others go on
            quick = Kept()
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


def test_metadata_goes_as_it_is_given():
    seen = []

    async def look(requests, context):
        seen.extend(context.invocation_metadata())
        async for data in requests:
            yield data

    async def scenario(channel):
        return await channel.unary(METHOD, b"", (("x-trace", "12"), ("x-data-bin", "AAECAwQFBg")))

    run(scenario, look)
    assert ("x-trace", "12") in seen and ("x-data-bin", bytes(range(7))) in seen


def test_who_stops_waiting_cancels_the_call():
    async def main():
        gone = asyncio.Event()

        async def hang(requests, context):
            context.add_done_callback(lambda _: gone.set())
            yield b"one"
            await asyncio.Event().wait()

        async with grpc_aio(hang) as (address, _), Channel(address) as channel:
            kept = Kept()
            waiting = asyncio.create_task(channel.begin(METHOD, kept, data=b"").ended())
            await until(lambda: kept.messages)
            waiting.cancel()
            await asyncio.wait_for(gone.wait(), 20)
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(main())


def test_after_a_failed_attempt_calls_fail_at_once_for_a_while():
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


def test_what_was_sent_before_there_is_a_connection_arrives():
    async def scenario(channel):
        kept = Kept()
        call = channel.begin(METHOD, kept)
        call.send(b"one")
        call.send(b"two")
        call.half_close()
        await call.ended()
        return kept.messages

    assert run(scenario) == [b"one", b"two"]


def test_a_closed_channel_ends_its_calls():
    async def main():
        async def hang(requests, context):
            yield b"one"
            await asyncio.Event().wait()

        async with grpc_aio(hang) as (address, _):
            channel = Channel(address)
            kept = Kept()
            call = channel.begin(METHOD, kept, data=b"")
            await until(lambda: kept.messages)
            await channel.__aexit__()
            with pytest.raises(Failed, match="CANCELLED"):
                await call.ended()

    asyncio.run(main())


def test_where_a_call_waits_to_send_until_there_is_a_connection_it_is_woken_by_its_begin_and_its_end():
    async def main():
        async with grpc_aio() as (address, _), Channel(address) as channel:
            kept = Kept()
            call, lost = channel.begin(METHOD, kept), channel.begin(METHOD, Kept())
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
            assert kept.messages == [bytes(100_000)]

    asyncio.run(main())


@pytest.mark.parametrize("details", ["", " spaces ", "\n\ttab", "größer \N{SNOWMAN} 100 %", "x" * 5000])
def test_details_of_a_status_come_as_they_are(details):
    async def refuse(requests, context):
        yield b"one"
        await context.abort(CODE.FAILED_PRECONDITION, details)

    async def scenario(channel):
        with pytest.raises(Failed) as failed:
            await channel.unary(METHOD, b"")
        return failed.value.code, failed.value.details

    assert run(scenario, refuse) == (CODE.FAILED_PRECONDITION, details)


def test_the_server_is_told_of_the_time_limit():
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


def test_a_restarted_server_gets_the_calls_that_wait_and_the_calls_it_had_are_lost():
    async def main():
        async def hang(requests, context):
            async for data in requests:
                yield data
                await asyncio.Event().wait()

        async with grpc_aio(hang) as (address, server):
            port = int(address.rpartition(":")[2])
            async with Channel(address) as channel:
                kept = Kept()
                lost = channel.begin(METHOD, kept, data=b"one", timeout=60)
                await until(lambda: kept.messages)
                await server.stop(None)
                with pytest.raises(Failed) as failed:
                    await lost.ended()
                assert failed.value.code in (CODE.UNAVAILABLE, CODE.CANCELLED)
                async with grpc_aio(back, port):
                    got = await asyncio.gather(*(channel.unary(METHOD, b"%d" % i, timeout=60) for i in range(50)))
                    assert got == [b"%d" % i for i in range(50)]
                assert kept.messages == [b"one"]

    asyncio.run(main())


def test_a_server_that_drains_ends_its_calls_well_and_the_next_server_gets_the_others():
    """grpc's `stop` says GOAWAY, refuses what comes too late, and lets calls go on for its grace."""

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
                kept = [Kept() for _ in range(20)]
                calls = [channel.begin(METHOD, k, data=b"%d" % i, timeout=60) for i, k in enumerate(kept)]
                await until(lambda: all(k.messages for k in kept))
                stopping = asyncio.create_task(server.stop(60))
                first = calls[0].connection
                await until(lambda: not first.usable)
                async with grpc_aio(back, port):
                    assert await channel.unary(METHOD, b"new", timeout=60) == b"new"
                    go.set()
                    for call in calls:
                        await call.ended()
                    await stopping
                assert [k.messages for k in kept] == [[b"%d" % i] * 2 for i in range(20)]

    asyncio.run(main())


@pytest.mark.parametrize("sender", ["many", "few"])
def test_threads_answer_as_tasks_do(sender):
    """Conversations, a slow receiver, a deadline, a cancelled call, a status, before grpc's server of threads."""
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
                slow = Gated()
                flood = channel.begin(METHOD, slow, data=b"flood", timeout=60)
                with pytest.raises(Failed, match="OUT_OF_RANGE: too far"):
                    await channel.unary(METHOD, b"fail", timeout=60)
                assert len(slow.messages) * 505 <= channel.window
                slow.gate.set()
                await flood.ended()
                assert slow.messages == [b"flood" * 100] * 200
                kept = Kept()
                hang = channel.begin(METHOD, kept, data=b"hang", timeout=60 if sender == "many" else 0.5)
                await until(lambda: kept.messages or hang.over)
                if sender == "many":
                    hang.cancel()
                with pytest.raises(Failed, match="CANCELLED" if sender == "many" else "DEADLINE_EXCEEDED"):
                    await hang.ended()
                assert await asyncio.to_thread(gone.acquire, timeout=60)
                gone.release()

    asyncio.run(main())


def test_a_server_that_refuses_too_many_streams_gets_them_all_in_the_end():
    async def main():
        async with grpc_aio(back, options=[("grpc.max_concurrent_streams", 2)]) as (address, _):
            async with Channel(address) as channel:  # whose first calls begin before it knows
                got = await asyncio.gather(*(channel.unary(METHOD, b"%d" % i, timeout=60) for i in range(100)))
                assert got == [b"%d" % i for i in range(100)]

    asyncio.run(main())
