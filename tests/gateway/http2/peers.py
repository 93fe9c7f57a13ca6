"""Servers and bytes that the tests of the HTTP/2 client share."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

import grpc

from erlab.gateway.wire.http2 import frames
from erlab.gateway.wire.http2.headers import block

METHOD = "/test.Service/Talk"


def begin(stream):
    """The first headers of a response."""
    return frames.header_frames(stream, 0, block([(":status", "200"), ("content-type", "application/grpc")]))


def end(stream):
    """The trailers of a response with status OK."""
    return frames.header_frames(stream, frames.END_STREAM, block([("grpc-status", "0")]))


def answer(stream, data=b"hello"):
    """A response of one message."""
    return begin(stream) + frames.message_frame(stream, 0, data) + end(stream)


async def until(condition, seconds=60.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def back(requests, context):
    async for data in requests:
        yield data


@asynccontextmanager
async def grpc_aio(talk=back, port=0, options=()):
    """A grpc.aio server whose one method is `talk(requests, context)`, an async generator; yields (address, server)."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *options])
    handler = grpc.stream_stream_rpc_method_handler(talk)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", {"Talk": handler})])
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.stop(None)


@contextmanager
def grpc_threaded(talk, options=()):
    """grpc's server of threads, as `grpc_aio`; `talk` is a generator."""
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0), *options])
    handler = grpc.stream_stream_rpc_method_handler(talk)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", {"Talk": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        server.stop(None).wait(60)


@asynccontextmanager
async def listening(talk):
    """A server of bytes that runs `talk(reader, writer)` for each connection; yields its address."""
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client hung up, or the test is over
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "127.0.0.1:{}".format(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


class FrameReader:
    """Reads the frames that a client sends on one connection: (type, flags, stream, payload)."""

    def __init__(self, reader):
        self._reader, self.frames, self._preface, self.over = reader, [], False, asyncio.Event()

    async def next(self):
        """The next frame; None at the end of the connection."""
        try:
            if not self._preface:
                assert await self._reader.readexactly(len(frames.PREFACE)) == frames.PREFACE
                self._preface = True
            high, low, kind, flags, stream = frames.HEAD.unpack(await self._reader.readexactly(9))
            self.frames.append((kind, flags, stream, await self._reader.readexactly(high << 8 | low)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return self.frames[-1]

    async def until(self, matches):
        """The next frame for which `matches(type, flags, stream, payload)`; None if the connection ends before."""
        async with asyncio.timeout(60):
            while (frame := await self.next()) is not None and not matches(*frame):
                pass
        return frame

    async def request(self, stream=None):
        """The number of the next stream whose request ends, or of this one, once it does."""
        ends = lambda kind, flags, number, _: kind in (0, 1) and flags & 1 and stream in (None, number)  # noqa: E731
        frame = await self.until(ends)
        return frame and frame[2]


class FakeTransport(asyncio.Transport):
    """A transport without a socket: `sent` holds all bytes written."""

    def __init__(self):
        super().__init__()
        self.sent, self.closed = b"", False

    def write(self, data):
        assert not self.closed
        self.sent += data

    def close(self):
        self.closed = True

    abort = close

    def is_closing(self):
        return self.closed

    def set_write_buffer_limits(self, high=None, low=None):
        pass


def cut(data):
    """The frames in `data`: (type, flags, stream, payload)."""
    found, at = [], 0
    while at < len(data):
        high, low, kind, flags, stream = frames.HEAD.unpack_from(data, at)
        at += 9 + (high << 8 | low)
        found.append((kind, flags, stream, data[at - (high << 8 | low) : at]))
    return found
