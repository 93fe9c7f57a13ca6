"""The HTTP/1.1 client's side of a connection, fed with bytes cut anywhere."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erlab.gateway.wire.http1 import HTTPConnection, HTTPFailure


def whole(body):
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    closed = paused = False

    def write(self, data): ...

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return self.closed

    def abort(self):
        self.closed = True

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False


class Moody:
    """A Sink that keeps what it gets, and pauses for a turn now and then."""

    def __init__(self):
        self.body, self._count = b"", 0

    def piece(self, data):
        self.body += data
        self._count += 1

    @property
    def paused(self):
        return self._count % 3 == 0

    async def resumed(self):
        await asyncio.sleep(0)


def fed(parts, sink=None):
    """What an exchange makes of these bytes, after which the connection ends: its result, and whether the connection
    was kept for another."""

    async def main():
        idle, wire = {}, Wire()
        connection = HTTPConnection(idle)
        connection.connection_made(wire)
        asked = asyncio.create_task(connection.exchange(b"", sink))
        await asyncio.sleep(0)
        for part in parts:
            while wire.paused:
                await asyncio.sleep(0)
            if not wire.closed:
                connection.data_received(part)
        await asyncio.sleep(0)
        if not wire.closed:
            await asyncio.sleep(0)
        kept = connection in idle
        connection.connection_lost(None)
        assert not idle
        return await asked, kept

    return asyncio.run(main())


def cut(data, places):
    """The bytes in parts, cut at these places."""
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [part for start, end in zip([0, *ends], ends) if (part := data[start:end])]


pieces = st.lists(st.binary(min_size=1, max_size=40), max_size=8)
places = st.lists(st.integers(0, 1000), max_size=12)


@given(pieces, places, st.sampled_from(["chunked", "length", "close"]), st.booleans())
def test_an_answer_cut_anywhere_is_the_same(pieces, places, form, streams):
    body = b"".join(pieces)
    head = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nServer:\r\nDate: now\r\n"
    if form == "chunked":
        chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nTrailer: x\r\n\r\n"
    elif form == "length":
        data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    else:
        data = head + b"\r\n" + body
    sink = Moody() if streams else None
    (status, got), kept = fed(cut(data, places), sink)
    assert status == 200 and kept == (form != "close")
    assert (sink.body, got) == (body, b"") if streams else got == body
    if form != "close":
        for at in {place % len(data) for place in places} - {len(data)}:
            sink = Moody() if streams else None
            with pytest.raises(HTTPFailure):
                fed(cut(data[:at], places), sink)
            assert not streams or body.startswith(sink.body)


@given(st.lists(st.binary(max_size=60), max_size=6), st.sampled_from([b"", whole(b"ab"), b"HTTP/1.1 200 OK\r\n"]))
def test_garbage_breaks_nothing_else(junk, before):
    sink = Moody()
    try:
        (status, _), kept = fed([before, *junk], sink)
    except HTTPFailure:
        return
    assert status >= 200 and (not kept or sink.body == b"ab")


def test_an_answer_nobody_asked_for_closes_the_connection():
    (status, body), kept = fed([whole(b"asked") + whole(b"surplus")])
    assert (status, body, kept) == (200, b"asked", False)
    (status, body), kept = fed([whole(b"asked").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"surplus"])
    assert (status, body, kept) == (200, b"asked", False)
