"""HTTP/1.1 client that posts JSON and pushes the answer to a sink as it arrives, without waking a task per piece.

The parser is llhttp (Node's) in MagicStack's binding. A connection serves one request at a time and is kept open for
the next. Redirects, proxies, compression and upgrades are not supported.
"""

import asyncio
import ssl
from urllib.parse import urlsplit

import httptools

from erlab.gateway.core import Sink
from erlab.gateway.kserve import MAX_MESSAGE_BYTES

CONNECT_SECONDS = 5.0  # to open a connection, TLS included
IDLE_SECONDS = 15.0  # an idle connection is kept; servers close theirs too, which would hit a request just sent
REST_SECONDS = 1.0  # for a server to end an answer after Enough; then its connection is closed
HEAD_BYTES = 64 * 2**10  # of headers, chunk sizes and trailers between two pieces of a body


class HTTPFailure(Exception):
    """No connection, a connection lost before the end of the answer, or an answer that is not valid HTTP."""


class Enough(Exception):
    """Raised by a sink that needs no more of the answer."""


class HTTPClient:
    """Client of the server at `base`, an http or https URL; raises ValueError for any other."""

    def __init__(self, base: str):
        url = urlsplit(base)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"not an http or https URL: {base!r}")
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._address = url.hostname, url.port or (443 if self._tls else 80)
        self._line = f"POST {url.path.rstrip('/')}/".encode("ascii")
        self._head = f" HTTP/1.1\r\nHost: {url.netloc.rpartition('@')[2]}\r\n".encode("ascii")
        self._head += b"Content-Type: application/json\r\nAccept-Encoding: identity\r\nContent-Length: "
        self._idle: dict[HTTPConnection, None] = {}  # in order of last use

    async def post(self, path: str, content: bytes, sink: Sink | None = None) -> tuple[int, bytes]:
        """Post `content`, and return status and body of the answer.

        Args:
            path: Path relative to the base URL.
            content: JSON.
            sink: Receiver of the body if the status is 200, until it raises Enough; the returned body is then empty.

        Raises:
            HTTPFailure: There is no whole answer.
        """
        request = b"%b%b%b%d\r\n\r\n%b" % (self._line, path.encode("ascii"), self._head, len(content), content)
        if self._idle:
            connection, _ = self._idle.popitem()
            try:
                return await connection.exchange(request, sink)
            except HTTPFailure:
                if connection.heard:
                    raise  # else the server has closed the idle connection
        return await (await self._connect()).exchange(request, sink)

    async def _connect(self) -> "HTTPConnection":
        connect = asyncio.get_running_loop().create_connection
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await connect(lambda: HTTPConnection(self._idle), *self._address, ssl=self._tls)
        except OSError as e:  # TimeoutError included
            raise HTTPFailure(f"no connection ({type(e).__name__})") from None
        return connection

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()


class HTTPConnection(asyncio.Protocol):
    """One connection. After an exchange it joins `idle`, to serve another, or closes."""

    def __init__(self, idle: dict["HTTPConnection", None]):
        self._idle, self._loop = idle, asyncio.get_running_loop()
        self._busy = self.heard = False
        self._expiry: asyncio.TimerHandle | None = None

    async def exchange(self, request: bytes, sink: Sink | None) -> tuple[int, bytes]:
        """Send `request` and return the answer as `HTTPClient.post`; `heard`: whether any of it has arrived."""
        self._parser, self._sink = httptools.HttpResponseParser(self), sink
        self._pieces: list[bytes] = []
        self._status = self._size = self._overhead = 0
        self._pushes = self._delimited = self._ended = self._enough = self._lasts = self.heard = False
        self._failure: Exception | None = None
        self._turn = self._loop.create_future()
        if self._expiry:
            self._expiry.cancel()
        if self._transport.is_closing():
            raise HTTPFailure("the connection has been closed")
        self._busy = True
        self._transport.write(request)
        try:
            while True:
                await self._turn
                if self._failure:
                    raise self._failure
                if self._ended or self._enough:
                    break
                self._turn = self._loop.create_future()
                await sink.resumed()
                if not self._transport.is_closing():
                    self._transport.resume_reading()
        finally:
            self._sink = None
            if self._enough and not self._ended and not self._transport.is_closing():
                self._expiry = self._loop.call_later(REST_SECONDS, self.close)
                self._transport.resume_reading()
            else:
                self._leave()
        return self._status, b"".join(self._pieces)

    def _leave(self) -> None:
        """Become idle if another exchange can follow, else close."""
        self._busy, self._parser = False, None
        # A server may answer before it has read all of the request; the rest would precede the next one.
        lasts = self._lasts and not self._transport.is_closing()
        if self._ended and lasts and not self._transport.get_write_buffer_size():
            self._expiry = self._loop.call_later(IDLE_SECONDS, self.close)
            self._idle[self] = None
        else:
            self.close()

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle.pop(self, None)
        if self._expiry:
            self._expiry.cancel()
        if not self._busy or self._ended:
            return
        if self._status and not self._delimited and exc is None:
            self._ended = True  # the end of the connection is the end of the body
            self._wake()
        else:
            self._fail(HTTPFailure("the connection ended before the answer did"))

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            return self.close()  # data without a request
        self.heard = True
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            self._lasts = False
            if not self._ended:
                return self._fail(HTTPFailure(f"the answer is no HTTP ({e})"))
        if not self._pushes:
            self._size += len(data)
            if self._size > MAX_MESSAGE_BYTES:
                return self._fail(HTTPFailure(f"the answer has more than {MAX_MESSAGE_BYTES} bytes"))
        elif pieces := self._pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            if not self._enough:
                try:
                    self._sink.piece(data)
                except Enough:
                    self._enough = True
                except Exception as e:  # raised again in the caller's task
                    return self._fail(e)
                if self._sink.paused and not (self._ended or self._enough):
                    self._transport.pause_reading()
                    self._wake()
        if self._ended and self._sink is None and self._enough:
            self._expiry.cancel()
            self._leave()
        elif self._ended or self._enough:
            self._wake()
        elif self._overhead > HEAD_BYTES:
            self._fail(HTTPFailure(f"more than {HEAD_BYTES} bytes arrived that are not part of the answer"))

    def _fail(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure
        self.close()
        self._wake()

    def _wake(self) -> None:
        if not self._turn.done():
            self._turn.set_result(None)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        self._delimited = False
        if self._ended:
            raise HTTPFailure("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._delimited = True
        elif name == b"content-encoding" and value.lower() != b"identity":
            self._fail(HTTPFailure("the answer is compressed, which was not requested"))
            raise self._failure  # stops the parser

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # an interim response is followed by another
            self._status = status
            self._pushes = self._sink is not None and status == 200

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._status:
            self._ended, self._lasts = True, self._parser.should_keep_alive()
