"""What the tests of HTTP/2 have in common: a service, servers around it, and a socket that only remembers."""

import asyncio
from contextlib import asynccontextmanager

import grpc

from erlab.http2 import Failed, Server, frames

PEER = "/test.Service/"
HEADERS = [(":method", "POST"), (":scheme", "http"), (":path", f"{PEER}Back"), (":authority", "a")]
HEADERS += [("te", "trailers"), ("content-type", "application/grpc")]


async def service(call):
    """One method a way to talk."""
    match call.request.method.removeprefix(PEER):
        case "Back":  # each message comes back at once
            while (data := await call.receive()) is not None:
                call.send(data)
                await call.resumed()
        case "Sizes":  # as many messages as asked for, of that size
            size, count = map(int, (await call.only()).split())
            for _ in range(count):
                call.send(b"x" * size)
                await call.resumed()
        case "Fail":
            code, _, details = (await call.only()).decode().partition(" ")
            raise Failed(grpc.StatusCode[code], details)
        case "Headers":
            await call.only()
            call.send(repr(call.request.metadata).encode())
        case "Hang":
            call.send(await call.receive())
            await asyncio.Event().wait()
        case "Bug":
            raise ValueError("secret")
        case other:
            raise Failed(grpc.StatusCode.UNIMPLEMENTED, f"no {other}")


class Watched:
    """A handler that counts calls that run, and those that were cancelled."""

    def __init__(self, handler=service):
        self._handler, self.running, self.cancelled = handler, 0, 0

    async def __call__(self, call):
        self.running += 1
        try:
            await self._handler(call)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


@asynccontextmanager
async def serving(handler=service, grace=0.0, **options):
    """Our server; yields its address."""
    server = Server(handler, **options)
    try:
        yield f"127.0.0.1:{await server.listen('127.0.0.1', 0)}"
    finally:
        await server.close(grace)


async def until(condition, seconds=60.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class Wire(asyncio.Transport):
    """A socket on which nothing is lost: what is written stays in `sent`."""

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

    def get_write_buffer_size(self):
        return 0

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def resume_reading(self):
        pass

    pause_reading = resume_reading


def cut(data):
    """The frames in `data`: (kind, flags, stream, payload)."""
    found, at = [], 0
    while at < len(data):
        high, low, kind, flags, stream = frames.HEAD.unpack_from(data, at)
        at += 9 + (high << 8 | low)
        found.append((kind, flags, stream, data[at - (high << 8 | low) : at]))
    return found
