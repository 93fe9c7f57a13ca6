"""HTTP client of one server, on aiohttp's: posts JSON and passes the answer on as it arrives.

tests/benchmarks/test_gateway_http.py compares it with a client that bypasses aiohttp.
"""

import asyncio
import ssl
from types import SimpleNamespace

import aiohttp
from yarl import URL

from erlab.gateway.core import Sink
from erlab.gateway.kserve import MAX_MESSAGE_BYTES

CONNECT_SECONDS = 5.0  # to open a connection, TLS included
IDLE_SECONDS = 15.0  # for which an idle connection is kept
DRAIN_SECONDS = 1.0  # for a server to end an answer after Enough; then its connection is closed
_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}


class HTTPFailure(Exception):
    """No connection, a connection lost before the end of the answer, or an answer that is not valid HTTP."""


class Enough(Exception):
    """Raised by a sink that needs no more of the answer."""


class HTTPClient:
    """Client of the server at `base`, an http or https URL, as a context manager; raises ValueError for any other.

    `key`: bearer token that the server requires.
    """

    def __init__(self, base: str, key: str | None = None):
        self._base = URL(base)
        if self._base.scheme not in ("http", "https") or not self._base.host:
            raise ValueError(f"not an http or https URL: {base!r}")
        self._headers = _HEADERS | ({"Authorization": f"Bearer {key}"} if key else {})
        self._draining: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "HTTPClient":
        tls = ssl.create_default_context() if self._base.scheme == "https" else True
        reuse = aiohttp.TraceConfig()
        reuse.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=0, keepalive_timeout=IDLE_SECONDS),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(connect=CONNECT_SECONDS),
            auto_decompress=False,
            trace_configs=[reuse],
        )
        return self

    async def __aexit__(self, *_) -> None:
        await self._session.close()

    async def post(self, path: str, content: bytes, sink: Sink | None = None) -> tuple[int, bytes]:
        """Post `content`, and return status and body of the answer.

        Args:
            path: Path relative to the base URL.
            content: JSON.
            sink: Receiver of the body if the status is 200, until it raises Enough; the returned body is then empty.

        Raises:
            HTTPFailure: There is no whole answer.
        """
        try:
            response = await self._begin(path, content)
            try:
                return response.status, await _body(response, sink)
            except Enough:
                drain = asyncio.create_task(_drain(response))
                self._draining.add(drain)
                drain.add_done_callback(self._draining.discard)
                return response.status, b""
            except BaseException:
                response.close()
                raise
        except aiohttp.ConnectionTimeoutError:
            raise HTTPFailure("no connection (TimeoutError)") from None
        except aiohttp.ClientConnectorError as e:
            raise HTTPFailure(f"no connection ({type(e.os_error).__name__})") from None
        except aiohttp.ClientResponseError as e:
            raise HTTPFailure(f"the answer is no HTTP ({e.message.partition(':')[0]})") from None
        except (aiohttp.ClientError, OSError):
            raise HTTPFailure("the connection ended before the answer did") from None

    async def _begin(self, path: str, content: bytes) -> aiohttp.ClientResponse:
        """Send a request and return its answer's beginning; again where the server had closed an idle connection."""
        while True:
            attempt = SimpleNamespace(reuses=False)
            try:
                return await self._session.post(
                    self._base / path, data=content, allow_redirects=False, trace_request_ctx=attempt
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not attempt.reuses:
                    raise


async def _note_reuse(session: aiohttp.ClientSession, trace: SimpleNamespace, params: object) -> None:
    trace.trace_request_ctx.reuses = True


async def _body(response: aiohttp.ClientResponse, sink: Sink | None) -> bytes:
    """Return the body, unless it goes to `sink`."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise HTTPFailure("the answer is compressed, which was not requested")
    body = bytearray()
    while data := await response.content.readany():
        if sink is None or response.status != 200:
            body += data
            if len(body) > MAX_MESSAGE_BYTES:
                raise HTTPFailure(f"the answer has more than {MAX_MESSAGE_BYTES} bytes")
        else:
            sink.piece(data)
            if sink.paused:
                await sink.resumed()
    return bytes(body)


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read an answer to its end, so that its connection can serve another request; close it if there is none."""
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while await response.content.readany():
                pass
    except (aiohttp.ClientError, TimeoutError):
        response.close()
