"""Our server against grpc's clients: what they send arrives, what it says is understood, what they do is noticed."""

import asyncio
import socket
import threading
from contextlib import asynccontextmanager, contextmanager

import grpc
import pytest
from peers import PEER, Watched, service, serving, until

from erlab.http2 import Server, server

CODE = grpc.StatusCode
SIZES = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def run(scenario, handler=service, options=(), **limits):
    """What `scenario(channel)` returns, with a grpc.aio channel to our server."""

    async def main():
        async with serving(handler, **limits) as address:
            async with grpc.aio.insecure_channel(address, options=[*SIZES, *options]) as channel:
                return await scenario(channel)

    return asyncio.run(main())


@asynccontextmanager
async def call_beside(channel):
    """A call under way, which is answered before and after what is done meanwhile."""
    call = channel.stream_stream(f"{PEER}Back")()
    await call.write(b"one")
    assert await call.read() == b"one"
    yield
    await call.write(b"two")
    assert await call.read() == b"two"
    call.cancel()


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


def test_messages_of_any_size_arrive_whole_both_ways():
    messages = [bytes([i]) * size for i, size in enumerate((0, 1, 16379, 16380, 65535, 65536, 300_000, 4_000_000, 3))]

    async def scenario(channel):
        return [message async for message in channel.stream_stream(f"{PEER}Back")(iter(messages))]

    assert run(scenario) == messages


@pytest.mark.parametrize("size, count", [(10, 5000), (100_000, 50), (0, 3), (7, 0)])
def test_many_messages_come_in_full(size, count):
    async def scenario(channel):
        asked = [channel.unary_stream(f"{PEER}Sizes")(b"%d %d" % (size, count)) for _ in range(3)]
        return [[len(message) async for message in call] for call in asked]

    assert run(scenario) == [[size] * count] * 3


def test_a_thousand_calls_at_once_on_one_connection():
    async def scenario(channel):
        ask = channel.unary_unary(f"{PEER}Back")
        return await asyncio.gather(*(ask(b"%d" % i) for i in range(1000)))

    assert run(scenario) == [b"%d" % i for i in range(1000)]


@pytest.mark.parametrize("code", [code for code in CODE if code is not CODE.OK])
def test_a_status_and_its_words_are_told(code):
    async def scenario(channel):
        return await refused(channel.unary_unary(f"{PEER}Fail")(f"{code.name} 50 % of it, größer\nthan".encode()))

    assert run(scenario) == (code, "50 % of it, größer\nthan")


def test_endless_words_are_cut_to_what_a_client_takes():
    async def scenario(channel):
        return await refused(channel.unary_unary(f"{PEER}Fail")(b"ABORTED " + b"x" * 100_000))

    assert run(scenario) == (CODE.ABORTED, "x" * 2000)


def test_an_error_of_ours_is_no_news_for_clients(caplog):
    async def scenario(channel):
        return await refused(channel.unary_unary(f"{PEER}Bug")(b""))

    assert run(scenario) == (CODE.UNKNOWN, "Unexpected ValueError")
    assert "secret" in caplog.text  # the operator sees it


def test_metadata_is_given_as_it_is_on_the_wire():
    async def scenario(channel):
        brought = [("x-trace", "12"), ("x-trace", "13"), ("x-data-bin", bytes(range(7)))]
        return eval(await channel.unary_unary(f"{PEER}Headers")(b"", metadata=brought, timeout=20))

    assert run(scenario) == (("x-trace", "12"), ("x-trace", "13"), ("x-data-bin", "AAECAwQFBg"))


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_messages_may_come_compressed_and_stay_bounded(compression):
    async def scenario(channel):
        ask = channel.unary_unary(f"{PEER}Back")
        assert await ask(b"a" * 900_000, compression=compression) == b"a" * 900_000
        return await refused(ask(b"a" * 1_000_001, compression=compression))  # about 1 kB on the wire

    code, words = run(scenario, message_bytes=1_000_000)
    assert code is CODE.RESOURCE_EXHAUSTED and "decompressed" in words


def test_too_large_a_message_ends_its_call_only():
    async def scenario(channel):
        ask = channel.unary_unary(f"{PEER}Back")
        async with call_beside(channel):
            return [await refused(ask(b"x" * n)) for n in (20_000_000, 10_001)] + [await ask(b"x" * 10_000)]

    large, larger, fits = run(scenario, message_bytes=10_000)
    assert large[0] is larger[0] is CODE.RESOURCE_EXHAUSTED and "10001 bytes is larger than 10000" in larger[1]
    assert fits == b"x" * 10_000


def test_too_many_headers_end_their_call_only():
    async def scenario(channel):
        ask = channel.unary_unary(f"{PEER}Back")
        async with call_beside(channel):
            code, _ = await refused(ask(b"", metadata=[("x-long", "x" * 4000)]))
        return code

    assert run(scenario, header_bytes=2000) is CODE.RESOURCE_EXHAUSTED


def test_a_client_that_cancels_or_vanishes_or_is_late_cancels_its_calls():
    watched = Watched()

    async def main():
        async with serving(watched) as address:
            async with grpc.aio.insecure_channel(address) as channel:
                hang = channel.unary_stream(f"{PEER}Hang")
                first = hang(b"one")
                assert await first.read() == b"one"
                first.cancel()
                await until(lambda: watched.cancelled == 1)
                code, _ = await refused(channel.unary_unary(f"{PEER}Hang")(b"late", timeout=1.0))
                assert code is CODE.DEADLINE_EXCEEDED
                await until(lambda: watched.cancelled == 2)
                for call in [hang(b"x") for _ in range(5)]:
                    await call.read()
            await until(lambda: watched.cancelled == 7)
            assert watched.running == 0

    asyncio.run(main())


def test_a_slow_reader_holds_back_its_call_and_no_other():
    sent = 0

    async def flood(call):
        nonlocal sent
        if not call.request.method.endswith("Flood"):
            return await service(call)
        for _ in range(1200):
            call.send(b"x" * 50_000)
            sent += 1
            if call.paused:
                await call.resumed()

    async def scenario(channel):
        lazy = aiter(channel.unary_stream(f"{PEER}Flood")(b""))
        assert len(await anext(lazy)) == 50_000
        ask = channel.unary_unary(f"{PEER}Back")
        for _ in range(50):
            await ask(b"quick")
        held = sent
        assert held < 800  # of 60 MB: grpc's client opens its window to 16 MiB by and by, and a little is ours
        assert len([message async for message in lazy]) == 1199
        return held

    run(scenario, flood)
    assert sent == 1200


def test_a_call_without_a_message_or_with_two_is_no_unary_call():
    async def scenario(channel):
        call = channel.stream_unary(f"{PEER}Fail")
        return [(await refused(call(iter(messages))))[0] for messages in ([], [b"ABORTED a", b"ABORTED b"])]

    assert run(scenario) == [CODE.UNIMPLEMENTED] * 2


def test_while_it_ends_calls_may_end_and_none_begins():
    async def main():
        begun, gate = asyncio.Event(), asyncio.Event()

        async def slow(call):
            begun.set()
            await gate.wait()
            await service(call)

        ending = Server(slow)
        address = f"127.0.0.1:{await ending.listen('127.0.0.1', 0)}"
        async with grpc.aio.insecure_channel(address) as channel:
            there = asyncio.ensure_future(channel.unary_unary(f"{PEER}Back")(b"there"))
            await begun.wait()
            closing = asyncio.create_task(ending.close(20))
            await asyncio.sleep(0)
            late = await refused(channel.unary_unary(f"{PEER}Back")(b"late"))
            gate.set()
            assert await there == b"there"
            await closing
        return late[0]

    assert asyncio.run(main()) is CODE.UNAVAILABLE


def test_what_does_not_end_in_time_is_ended():
    watched = Watched()

    async def main():
        ending = Server(watched)
        address = f"127.0.0.1:{await ending.listen('127.0.0.1', 0)}"
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_stream(f"{PEER}Hang")(b"one")
            await call.read()
            await ending.close(0.05)
            return await refused(call.read())

    assert asyncio.run(main())[0] is CODE.UNAVAILABLE and watched.cancelled == 1


@contextmanager
def in_a_thread(**options):
    """Our server for clients that block; yields its address."""
    up, box = threading.Event(), {}

    async def main():
        async with serving(**options) as box["address"]:
            box["stop"], box["loop"] = asyncio.Event(), asyncio.get_running_loop()
            up.set()
            await box["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert up.wait(60)
    yield box["address"]
    box["loop"].call_soon_threadsafe(box["stop"].set)
    thread.join(10)


def test_grpcs_blocking_client_works_too():
    with in_a_thread() as address, grpc.insecure_channel(address) as channel:
        assert list(channel.stream_stream(f"{PEER}Back")(iter([b"a", b"b" * 100_000]))) == [b"a", b"b" * 100_000]
        call = channel.unary_stream(f"{PEER}Hang")(b"one")
        assert next(call) == b"one" and call.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"{PEER}Other")(b"")
        assert (caught.value.code(), caught.value.details()) == (CODE.UNIMPLEMENTED, "no Other")


@pytest.mark.parametrize("said", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n"])
def test_connections_that_never_say_what_they_want_are_closed(said, monkeypatch):
    monkeypatch.setattr(server, "_PREFACE_SECONDS", 0.2)
    with in_a_thread() as address, socket.create_connection(address.split(":"), timeout=10) as silent:
        silent.sendall(said)
        while silent.recv(65536):
            pass


def test_a_port_in_use_is_an_error_unless_it_is_shared():
    async def main():
        async with serving() as address:
            with pytest.raises(OSError):
                await Server(service).listen("127.0.0.1", int(address.rpartition(":")[2]))
        first, second = Server(service), Server(service)
        port = await first.listen("127.0.0.1", 0, shared=True)
        assert await second.listen("127.0.0.1", port, shared=True) == port
        await first.close(0), await second.close(0)

    asyncio.run(main())
