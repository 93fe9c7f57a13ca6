"""The HTTP client of OpenAI-compatible servers, against aiohttp's server and against misbehaving sockets."""

import asyncio
import json
import shutil
import ssl
import subprocess
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from erlab.gateway.wire import http1
from erlab.gateway.wire.http1 import HTTPClient, HTTPFailure


@pytest.fixture(params=("asyncio", "uvloop"))
def run(request):
    """Runs a coroutine on either of the loops that a gateway may have."""
    made = pytest.importorskip(request.param).new_event_loop
    with asyncio.Runner(loop_factory=made) as runner:
        yield runner.run


class RecordingSink:
    """A sink that records its pieces, and is paused from `paused = True` until `resume`."""

    def __init__(self):
        self.pieces, self.paused, self._on = [], False, asyncio.Event()

    def piece(self, data):
        self.pieces.append(data)

    async def resumed(self):
        await self._on.wait()

    def resume(self):
        self.paused = False
        self._on.set()

    @property
    def body(self):
        return b"".join(self.pieces)


@asynccontextmanager
async def aiohttp_server(answer, **site):
    """The base URL of a server that answers every POST by `answer(request)`."""
    app = web.Application()
    app.router.add_post("/v1/{kind:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, **site).start()
        yield f"http{'s' if site else ''}://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_server(answer):
    """The base URL of a server that hands each connection's streams to `answer`."""

    async def connected(reader, writer):
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def request_read(reader):
    """A request's body; None where the client has closed."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return await reader.readexactly(length)


async def post(base, *arguments):
    """The answer to the only request of a client."""
    async with HTTPClient(base) as client:
        return await client.post("x", *arguments)


def whole(body):
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def test_answers_of_a_real_server(run):
    async def answer(request):
        said = await request.read()
        if request.match_info["kind"] == "plain":
            about = {"path": request.path, "type": request.content_type, "host": request.host, "said": said.decode()}
            return web.json_response(about)
        if request.match_info["kind"] == "refused":
            return web.Response(status=429, body=said)
        response = web.StreamResponse()
        if request.match_info["kind"] == "closing":
            response.force_close()
        await response.prepare(request)
        for i in range(20):
            await response.write(said + b"%d\n" % i)
            await asyncio.sleep(0)
        return response

    async def main():
        async with aiohttp_server(answer) as base, HTTPClient(base) as client:
            status, body = await client.post("plain", b"x" * 300_000)
            about = {"path": "/v1/plain", "type": "application/json", "host": base[7:-3], "said": "x" * 300_000}
            assert (status, json.loads(body)) == (200, about)
            for kind in ("streamed", "closing"):
                sink, lines = RecordingSink(), b"".join(b"a%d\n" % i for i in range(20))
                assert await client.post(kind, b"a", sink) == (200, b"") and sink.body == lines
                assert await client.post(kind, b"a") == (200, lines)
            sink = RecordingSink()
            assert await client.post("refused", b"later", sink) == (429, b"later") and not sink.pieces

    run(main())


def test_connections_are_kept_for_the_next_request(run):
    seen, together = [], asyncio.Barrier(8)

    async def answer(request):
        seen.append(request.transport.get_extra_info("peername"))
        if request.match_info["kind"] == "together":
            await together.wait()
        return web.Response(body=await request.read())

    async def main():
        async with aiohttp_server(answer) as base, HTTPClient(base) as client:
            for _ in range(3):
                assert await client.post("alone", b"a") == (200, b"a")
            assert len(set(seen)) == 1
            for _ in range(3):
                bodies = [b"%d" % i for i in range(8)]
                answers = await asyncio.gather(*(client.post("together", body) for body in bodies))
                assert answers == [(200, body) for body in bodies]
            assert len(set(seen)) == 8

    run(main())


def test_an_idle_connection_expires_one_in_use_does_not(run, monkeypatch):
    monkeypatch.setattr(http1, "IDLE_SECONDS", 0.2)
    requests, ends = [], []

    async def answer(reader, writer):
        while (request := await request_read(reader)) is not None:
            requests.append(request)
            if request == b"late":
                await asyncio.sleep(0.5)  # longer than a connection may be idle
            writer.write(whole(request))
        ends.append(reader)

    async def main():
        async with raw_server(answer) as base, HTTPClient(base) as client:
            for request in (b"soon", b"late"):
                assert await client.post("x", request) == (200, request)
            assert requests == [b"soon", b"late"]  # and nothing twice
            async with asyncio.timeout(60):
                while not ends:
                    await asyncio.sleep(0.01)

    run(main())


@pytest.mark.parametrize("answer_begins", [False, True])
def test_a_request_on_a_connection_that_the_server_closes_is_sent_again_unless_answered(run, answer_begins):
    requests = []

    async def answer(reader, writer):
        requests.append(await request_read(reader))
        writer.write(whole(b"first"))
        requests.append(await request_read(reader))
        if answer_begins:
            writer.write(whole(b"second")[:-1])

    async def main():
        async with raw_server(answer) as base, HTTPClient(base) as client:
            assert await client.post("x", b"one") == (200, b"first")
            if answer_begins:
                with pytest.raises(HTTPFailure, match="ended before the answer"):
                    await client.post("x", b"two")
                assert requests == [b"one", b"two"]
            else:
                assert await client.post("x", b"two") == (200, b"first")
                assert requests == [b"one", b"two", b"two"]

    run(main())


def test_each_failure_is_reported(run, monkeypatch):
    async def answer(reader, writer):
        writer.write(await request_read(reader))

    async def ask(base, says, sink=None):
        with pytest.raises(HTTPFailure) as broken:
            await post(base, says, sink)
        return str(broken.value)

    async def main():
        async with raw_server(answer) as base:
            ok = b"HTTP/1.1 200 OK\r\n"
            assert "ended before" in await ask(base, b"")
            assert "ended before" in await ask(base, whole(b"half")[:-1])
            assert "no HTTP" in await ask(base, b"SSH-2.0-OpenSSH_9.6\r\n")
            assert await post(base, b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n") == (101, b"")  # an error, too
            sink, chunked = RecordingSink(), ok + b"Transfer-Encoding: chunked\r\n\r\n"
            compressed = ok + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nxx"
            assert "compressed" in await ask(base, compressed, sink) and not sink.pieces
            assert "ended before" in await ask(base, chunked + b"3\r\nabc\r\n", sink) and sink.body == b"abc"
            assert "no HTTP (Got more than" in await ask(base, ok + b"X: " + b"x" * 100_000)
            assert await ask(base, chunked + b"0\r\nX: " + b"x" * 100_000)
            assert "ended before" in await ask(base, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
            monkeypatch.setattr(http1, "MAX_MESSAGE_BYTES", 1000)
            assert (await post(base, whole(bytes(1000))))[1] == bytes(1000)
            assert "more than 1000 bytes" in await ask(base, whole(bytes(1001)))
        assert "no connection (ConnectionRefusedError)" in await ask(base, b"")
        for base in ("ftp://x", "http://", "http://x:port", "http://x:99999"):
            with pytest.raises(ValueError):
                HTTPClient(base)

    run(main())


def test_a_sink_that_fails_ends_the_answer(run):
    class Failing(RecordingSink):
        def piece(self, data):
            raise KeyError("its own")

    gone = asyncio.Event()

    async def answer(reader, writer):
        await request_read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        assert not await reader.read()
        gone.set()

    async def main():
        async with raw_server(answer) as base:
            with pytest.raises(KeyError, match="its own"):
                await post(base, b"", Failing())
            await asyncio.wait_for(gone.wait(), 60)

    run(main())


class Satisfied(RecordingSink):
    """Has enough when the answer says so."""

    def piece(self, data):
        super().piece(data)
        if b"enough" in self.body:
            raise http1.Enough


@pytest.mark.parametrize("rest", [b"0\r\n\r\n", b"4\r\nmore\r\n0\r\n\r\n", b"", None])
def test_an_answer_ends_at_enough_and_its_connection_is_reused_if_possible(run, monkeypatch, rest):
    monkeypatch.setattr(http1, "DRAIN_SECONDS", 60.0 if rest else 0.1)
    go_on, ends, connections = asyncio.Event(), asyncio.Event(), []

    async def answer(reader, writer):
        connections.append(writer)
        while await request_read(reader) is not None:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nenough\r\n")
            if rest is None:
                break  # and the connection closes
            await go_on.wait()
            writer.write(rest)
        ends.set()

    async def main():
        async with raw_server(answer) as base, HTTPClient(base) as client:
            for sent in (1, 2):
                sink = Satisfied()
                assert await client.post("x", b"", sink) == (200, b"")  # though the server has not ended it
                assert sink.body == b"enough" and len(connections) == (1 if rest else sent)
                go_on.set()
                async with asyncio.timeout(60):
                    while client._draining or not rest and not ends.is_set():
                        await asyncio.sleep(0.01)
                go_on.clear(), ends.clear()

    run(main())


def test_a_request_that_is_cancelled_closes_its_connection(run):
    begun, gone = asyncio.Event(), asyncio.Event()

    async def answer(reader, writer):
        await request_read(reader)
        begun.set()
        assert not await reader.read()
        gone.set()

    async def main():
        async with raw_server(answer) as base:
            asked = asyncio.create_task(post(base, b""))
            await begun.wait()
            asked.cancel()
            await asyncio.wait_for(gone.wait(), 60)

    run(main())


def test_a_paused_sink_holds_the_server_back(run):
    total, piece = 200, b"x" * 500_000
    sent = 0

    async def answer(reader, writer):
        nonlocal sent
        await request_read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (total * len(piece)))
        for _ in range(total):
            writer.write(piece)
            await writer.drain()
            sent += 1

    async def main():
        async with raw_server(answer) as base:
            sink = RecordingSink()
            sink.paused = True
            asked = asyncio.create_task(post(base, b"", sink))
            still = 0
            while still < 20:  # until the server has come to rest
                before = sent
                await asyncio.sleep(0.02)
                still = still + 1 if sent == before and sink.pieces else 0
            assert len(sink.pieces) == 1 and len(sink.body) <= 256 * 2**10  # one read
            assert sent < total / 2  # the sockets' buffers hold some
            sink.resume()
            await asked
            assert sent == total and len(sink.body) == total * len(piece)

    run(main())


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_https(run, tmp_path, monkeypatch):
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=here"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def answer(request):
        return web.Response(body=await request.read())

    async def main():
        async with aiohttp_server(answer, ssl_context=context) as base:
            with pytest.raises(HTTPFailure, match="SSLCertVerificationError"):
                await post(base, b"")
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            async with HTTPClient(base) as client:
                for _ in range(2):
                    assert await client.post("x", b"hidden" * 100_000) == (200, b"hidden" * 100_000)

    run(main())
