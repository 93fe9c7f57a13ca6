"""Our client against grpc's server; what users ask of it is in tests/users/test_users_wire.py."""

import asyncio

import pytest
from peers import METHOD, Gated, Kept, back, grpc_aio, until

from erlab.http2 import Channel, Failed

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


def test_a_unary_call_has_one_response():
    async def twice(requests, context):
        async for data in requests:
            yield data
            yield data

    async def scenario(channel):
        with pytest.raises(Failed, match="INTERNAL: 2 responses"):
            await channel.unary(METHOD, b"")

    run(scenario, twice)


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
