"""The users' own gRPC against grpc's: every call ends, with the truth, whatever the server does."""

import asyncio
import socket
import threading
from contextlib import contextmanager

import grpc
import pytest
from fake_triton import FakeTriton
from hypothesis import given, settings
from hypothesis import strategies as st

from erlab.users import wire
from erlab.users.wire import Answer, Channel, Frames, frame

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
    assert up.wait(10)
    yield f"127.0.0.1:{box['port']}"
    box["loop"].call_soon_threadsafe(box["stop"].set)
    thread.join(10)


def ask(address, *requests, timeout=20.0):
    """The answers to requests made at the same time on one channel."""

    async def all_of_them():
        async with Channel(address, METHOD, timeout) as channel:
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
    async with Channel(address, METHOD, 20) as channel:
        await channel.ask(b"first")  # after which the server's settings are known
        answers += await asyncio.gather(*(channel.ask(str(i).encode()) for i in range(40)))


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_a_status_and_its_message_are_told(code):
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


def test_at_the_deadline_the_call_ends_and_the_server_hears_of_it():
    gone = threading.Event()

    async def hang(data, context):
        context.add_done_callback(lambda _: gone.set())
        yield b"one"
        await asyncio.Event().wait()

    with serving(hang) as address:
        [answer] = ask(address, b"", timeout=0.5)
        assert (answer.code, answer.messages) == ("DEADLINE_EXCEEDED", [b"one"])
        assert gone.wait(10)


def test_a_cancelled_call_leaves_the_others():
    async def scenario(address):
        async with Channel(address, METHOD, 20) as channel:
            lost = asyncio.create_task(channel.ask(b"lost"))
            kept = asyncio.create_task(channel.ask(b"kept"))
            await asyncio.sleep(0)
            lost.cancel()
            with pytest.raises(asyncio.CancelledError):
                await lost
            return await kept

    with serving(back) as address:
        assert asyncio.run(scenario(address)).messages == [b"kept", b"4"]


def test_a_server_that_comes_back_is_found_again():
    async def scenario(first, again):
        with first as address:
            channel = await Channel(address, METHOD, 20).__aenter__()
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
    """A server that says these bytes to the first who asks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with listener.accept()[0] as connection:
                heard = b""
                while METHOD.encode() not in heard:
                    heard += connection.recv(65536)
                for data in sent:
                    connection.sendall(data)
                if not close:
                    while connection.recv(65536):
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield "127.0.0.1:{}".format(listener.getsockname()[1])
        thread.join(10)


SETTINGS = frame(wire.SETTINGS, 0, 0)


@pytest.mark.parametrize(
    "sent, close, code, words",
    [
        ((), True, "UNAVAILABLE", ""),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), False, "UNAVAILABLE", "does not speak HTTP/2: a frame of 4740180"),
        ((SETTINGS,), False, "DEADLINE_EXCEEDED", ""),
        ((SETTINGS, frame(wire.RST_STREAM, 0, 1, bytes((0, 0, 0, 2)))), False, "INTERNAL", "code 2"),
        ((SETTINGS, frame(wire.GOAWAY, 0, 0, bytes(8) + b"tired")), False, "UNAVAILABLE", "tired"),
        ((SETTINGS, frame(wire.HEADERS, 5, 1, b"\xff\xff\xff\xff")), False, "UNAVAILABLE", "HTTP/2"),
        ((SETTINGS, frame(wire.HEADERS, 4, 1, b"\0\x07:status\x03503")), False, "UNAVAILABLE", "503"),
        ((SETTINGS, frame(wire.DATA, 1, 1, wire.message(b"x"))), False, "INTERNAL", "without a status"),
        ((SETTINGS, frame(wire.DATA, 0, 1, b"\1\0\0\0\1x")), False, "UNIMPLEMENTED", "compressed"),
        ((SETTINGS, frame(wire.DATA, 0, 1, b"\0\x7f\0\0\0")), False, "RESOURCE_EXHAUSTED", "larger"),
    ],
)
def test_whatever_a_server_says_the_call_ends(sent, close, code, words):
    async def scenario(address):
        async with Channel(address, METHOD, 1.0) as channel:
            return await channel.ask(b"hello")

    with raw(*sent, close=close) as address:
        answer = asyncio.run(scenario(address))
    assert answer.code == code and words in answer.details


class Recorder(Frames):
    def __init__(self):
        super().__init__()
        self.seen = []
        self.write = lambda data: self.seen.append(("sent", data))

    def on_data(self, stream, data, ends, now):
        self.seen.append(("data", stream, data, ends))

    def on_headers(self, stream, headers, ends):
        self.seen.append(("headers", stream, headers, ends))

    def on_reset(self, stream, code):
        self.seen.append(("reset", stream, code))


STREAM = b"".join(
    [
        wire.settings(initial_window_size=70_000, max_frame_size=20_000),
        frame(wire.HEADERS, 0, 1, b"\x88"),
        frame(wire.CONTINUATION, 4, 1, b"\0\x01a\x01b"),
        frame(wire.PING, 0, 0, b"12345678"),
        frame(wire.DATA, 0, 1, wire.message(b"one")),
        frame(wire.DATA, wire.PADDED, 1, b"\x02ab\0\0"),
        frame(wire.DATA, 1, 3, b""),
        frame(wire.HEADERS, 4 | 1 | wire.PADDED | wire.PRIORITY, 1, b"\x01" + bytes(5) + b"\x88" + b"\0"),
        frame(wire.RST_STREAM, 0, 5, bytes((0, 0, 0, 8))),
        frame(99, 0, 0, b"unknown frames are ignored"),
    ]
)


@settings(deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_frames_are_the_same_however_they_are_cut(cuts):
    recorder = Recorder()
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(STREAM)]):
        recorder.data_received(STREAM[start:end])
    assert recorder.seen == [
        ("sent", frame(wire.SETTINGS, wire.ACK, 0)),
        ("headers", 1, {":status": "200", "a": "b"}, False),
        ("sent", frame(wire.PING, wire.ACK, 0, b"12345678")),
        ("data", 1, wire.message(b"one"), False),
        ("data", 1, b"ab", False),
        ("data", 3, b"", True),
        ("headers", 1, {":status": "200"}, True),
        ("reset", 5, 8),
    ]


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_ends_every_call(garbage):
    async def scenario(address):
        async with Channel(address, METHOD, 0.3) as channel:
            return await channel.ask(b"hello")

    with raw(SETTINGS, garbage) as address:
        answer = asyncio.run(scenario(address))
    assert isinstance(answer, Answer) and answer.code != "OK"


@given(st.text(max_size=400))
def test_header_texts_are_hpacks(text):
    import hpack

    block = b"\0" + wire._text("name") + wire._text(text)
    assert dict(hpack.Decoder().decode(block)) == {"name": text}
