"""The users' own gRPC against grpc's: every call ends, with the truth, whatever the server does."""

import asyncio
import socket
import threading
from contextlib import contextmanager, suppress

import grpc
import pytest
from fake_triton import FakeTriton
from hypothesis import given, settings
from hypothesis import strategies as st

from erlab.gateway.wire.http2 import frames
from erlab.gateway.wire.http2.frames import frame
from erlab.gateway.wire.http2.headers import block
from erlab.users.wire import Responses, UserChannel

METHOD = "/test.Service/Ask"


@contextmanager
def serving(behaviour, options=(), port=0):
    """A grpc.aio server in a thread whose one method is `behaviour(data, context)`, an async generator of bytes."""
    up, box = threading.Event(), {}

    async def serve():
        async def answer(data, context):
            async for message in behaviour(data, context):
                yield message

        handler = grpc.method_handlers_generic_handler(
            "test.Service", {"Ask": grpc.unary_stream_rpc_method_handler(answer)}
        )
        sizes = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
        server = grpc.aio.server(options=(*sizes, ("grpc.so_reuseport", 0), *options))
        server.add_generic_rpc_handlers([handler])
        box["port"] = server.add_insecure_port(f"127.0.0.1:{port}")
        box["stop"], box["loop"] = asyncio.Event(), asyncio.get_running_loop()
        await server.start()
        up.set()
        await box["stop"].wait()
        await server.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert up.wait(60)
    yield f"127.0.0.1:{box['port']}"
    box["loop"].call_soon_threadsafe(box["stop"].set)
    thread.join(10)


def ask(address, *requests, timeout=20.0):
    """The answers to requests made at the same time on one channel."""

    async def all_of_them():
        async with UserChannel(address, METHOD, timeout) as channel:
            return await asyncio.gather(*(channel.ask(data) for data in requests))

    return asyncio.run(all_of_them())


async def back(data, context):
    """The request in pieces of a thousand bytes, and how large it was."""
    for at in range(0, len(data), 1000):
        yield data[at : at + 1000]
    yield str(len(data)).encode()


def test_requests_larger_than_every_window_arrive_whole():
    # gRPC gives 64 KiB at first, to each stream and to all together.
    requests = [bytes([i]) * size for i, size in enumerate((0, 1, 16384, 65535, 65536, 300_000, 1_500_000, 70_000))]
    with serving(back) as address:
        for data, answer in zip(requests, ask(address, *requests), strict=True):
            assert answer.code == "OK" and answer.messages[-1] == str(len(data)).encode()
            assert b"".join(answer.messages[:-1]) == data
            assert answer.times == sorted(answer.times) and len(answer.times) == len(answer.messages)


def test_responses_of_any_size_arrive_whole():
    sizes = [0, 1, 16379, 16380, 100_000, 5_000_000, 3]

    async def large(data, context):
        for size in sizes:
            yield b"x" * size

    with serving(large) as address:
        [answer] = ask(address, b"")
    assert [len(message) for message in answer.messages] == sizes and answer.code == "OK"


def test_no_more_streams_than_the_server_takes_and_all_are_served():
    most, now = 0, 0

    async def count(data, context):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        yield data
        now -= 1

    with serving(count, options=(("grpc.max_concurrent_streams", 3),)) as address:
        asyncio.run(_settled_then_ask(address, answers := []))
    assert sorted(answer.messages[0] for answer in answers) == sorted(str(i).encode() for i in range(40))
    assert most <= 3


async def _settled_then_ask(address, answers):
    async with UserChannel(address, METHOD, 20) as channel:
        await channel.ask(b"first")  # after which the server's settings are known
        answers += await asyncio.gather(*(channel.ask(str(i).encode()) for i in range(40)))


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_a_status_and_its_message_are_reported(code):
    async def fail(data, context):
        yield b"one"
        await context.abort(code, "50 % of it, größer\nthan allowed")

    with serving(fail) as address:
        [answer] = ask(address, b"")
    assert (answer.code, answer.details) == (code.name, "50 % of it, größer\nthan allowed")
    assert answer.messages == [b"one"]


def test_an_unknown_method_is_unimplemented():
    with FakeTriton({}) as fake:
        [answer] = ask(fake.address, b"")
    assert answer.code == "UNIMPLEMENTED"


def test_at_the_deadline_the_call_ends_and_the_server_is_notified():
    gone = threading.Event()

    async def hang(data, context):
        context.add_done_callback(lambda _: gone.set())
        yield b"one"
        await asyncio.Event().wait()

    with serving(hang) as address:
        [answer] = ask(address, b"", timeout=2.0)
        assert (answer.code, answer.messages) == ("DEADLINE_EXCEEDED", [b"one"])
        assert gone.wait(60)


def test_a_cancelled_call_leaves_the_others():
    async def scenario(address):
        async with UserChannel(address, METHOD, 20) as channel:
            lost = asyncio.create_task(channel.ask(b"lost"))
            kept = asyncio.create_task(channel.ask(b"kept"))
            await asyncio.sleep(0)
            lost.cancel()
            with pytest.raises(asyncio.CancelledError):
                await lost
            return await kept

    with serving(back) as address:
        assert asyncio.run(scenario(address)).messages == [b"kept", b"4"]


def test_a_restarted_server_is_reached_again():
    async def scenario(first, again):
        with first as address:
            channel = await UserChannel(address, METHOD, 20).__aenter__()
            codes = [(await channel.ask(b"a")).code]
        codes.append((await channel.ask(b"b")).code)
        with again(int(address.rpartition(":")[2])):
            codes.append((await channel.ask(b"c")).code)
        await channel.__aexit__()
        return codes

    codes = asyncio.run(scenario(serving(back), lambda port: serving(back, port=port)))
    assert codes == ["OK", "UNAVAILABLE", "OK"]


@contextmanager
def raw(*sent, close=True):
    """A server that sends the first of these bytes on each connection, and the others in reply to the request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk(connection):
            heard = connection.recv(65536)
            for data in sent[:1]:
                connection.sendall(data)
            while sent[1:] and METHOD.encode() not in heard and (more := connection.recv(65536)):
                heard += more
            for data in sent[1:]:
                connection.sendall(data)
            while not close and connection.recv(65536):
                pass

        def serve():
            with suppress(OSError):  # the listener is closed
                while True:
                    with listener.accept()[0] as connection, suppress(ConnectionError):
                        talk(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield "127.0.0.1:{}".format(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


SETTINGS = frame(frames.SETTINGS, 0, 0)
HEAD = frames.header_frames(1, 0, block([(":status", "200"), ("content-type", "application/grpc")]))


@pytest.mark.parametrize(
    "sent, close, code, words",
    [
        ((), True, "UNAVAILABLE", ""),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), False, "UNAVAILABLE", "does not speak HTTP/2: it answered in HTTP/1"),
        ((SETTINGS,), False, "DEADLINE_EXCEEDED", ""),
        ((SETTINGS, frame(frames.RST_STREAM, 0, 1, bytes((0, 0, 0, 2)))), False, "INTERNAL", "INTERNAL_ERROR"),
        ((SETTINGS, frame(frames.GOAWAY, 0, 0, bytes(8) + b"tired")), False, "UNAVAILABLE", "tired"),
        ((SETTINGS, frame(frames.HEADERS, 5, 1, b"\xff\xff\xff\xff")), False, "UNAVAILABLE", "HTTP/2"),
        ((SETTINGS, frame(frames.HEADERS, 4, 1, b"\0\x07:status\x03503")), False, "UNAVAILABLE", "503"),
        ((SETTINGS, HEAD + frame(frames.DATA, 1, 1, frames.message(b"x"))), False, "INTERNAL", "without trailers"),
        ((SETTINGS, HEAD + frame(frames.DATA, 0, 1, b"\1\0\0\0\1x")), False, "INTERNAL", "compressed"),
        ((SETTINGS, HEAD + frame(frames.DATA, 0, 1, b"\0\x7f\0\0\0")), False, "RESOURCE_EXHAUSTED", "larger"),
    ],
)
def test_any_reply_of_a_server_ends_the_call(sent, close, code, words):
    async def scenario(address):
        async with UserChannel(address, METHOD, 1.0 if code == "DEADLINE_EXCEEDED" else 60.0) as channel:
            return await channel.ask(b"hello")

    with raw(*sent, close=close) as address:
        answer = asyncio.run(scenario(address))
    assert answer.code == code and words in answer.details


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_ends_every_call(garbage):
    async def scenario(address):
        async with UserChannel(address, METHOD, 0.3) as channel:
            return await channel.ask(b"hello")

    with raw(SETTINGS, garbage) as address:
        answer = asyncio.run(scenario(address))
    assert isinstance(answer, Responses) and answer.code != "OK"
