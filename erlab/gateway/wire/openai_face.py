"""OpenAI-compatible face: an HTTP server whose model `router` stands for all experts.

    POST /v1/completions, /v1/chat/completions   `model`: router, or an expert's name to bypass the routing
    POST /route                                  the routing decision alone, for a `prompt` or `messages`
    GET  /v1/models, /v1/models/NAME, /metrics   the experts; metrics in Prometheus's format
    GET  /health/live, /health/ready             200 while it runs; 200 while an expert is up, else 503
    GET  /health                                 as /health/ready; clients of vLLM, such as GuideLLM, ask it first

Response headers tell the decision (`x-erlab-expert`, `-cluster`, `-distance`, `-margin`, `-policy`) and the time spent
before the request was forwarded (`x-erlab-classify-ns`, `-queue-ns`). A request that names an expert gets only the
first of them. The answer's `model` is the model's name at the expert's server.

Web pages in a browser must not reach it, neither by a host name that resolves to it nor by a form: a POST must have the
content type application/json, and on loopback only loopback's host names and the configured ones are answered.
"""

import asyncio
import hmac
import json
import math
import re
import time
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from ipaddress import ip_address

from aiohttp import HttpVersion11, web

from erlab.gateway.core import ROUTER, Dispatcher, Routed
from erlab.gateway.errors import Kind, RequestError
from erlab.gateway.limits import Limits
from erlab.gateway.wire import openai
from erlab.gateway.wire.openai import StatusError

_BODY_SECONDS = 30.0  # for a client to send a request's body
_RETRY_SECONDS = "1"  # sent as Retry-After
_STATUS = {
    Kind.INVALID_ARGUMENT: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.PERMISSION_DENIED: 403,
    Kind.NOT_FOUND: 404,
    Kind.RESOURCE_EXHAUSTED: 429,
    Kind.UNAVAILABLE: 503,
    Kind.DEADLINE_EXCEEDED: 504,
}

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")
_SILENT = web.AppKey("silent", dict)  # timers that close connections without a request
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: %b\r\n\r\n"


def application(
    dispatch: Dispatcher,
    limits: Limits,
    key: str | None = None,
    hosts: frozenset[str] | None = None,
    origins: frozenset[str] = frozenset(),
) -> web.Application:
    """Build the face as an aiohttp application.

    Args:
        dispatch: The gateway's core.
        limits: The gateway's limits.
        key: Bearer token that clients must send, except for /health.
        hosts: Host names, without ports, answered beside loopback's; None for all.
        origins: Origins of web pages that may read answers (CORS).
    """
    face = _Face(dispatch)
    app = web.Application(client_max_size=limits.message_bytes, middlewares=[_guard(key, hosts, origins)])
    if origins:
        app.on_response_prepare.append(partial(_allow_origin, origins))
    app[_SILENT] = {}
    app.add_routes(
        [
            web.post("/v1/completions", partial(face.complete, "completions")),
            web.post("/v1/chat/completions", partial(face.complete, "chat/completions")),
            web.post("/route", face.route),
            web.get("/v1/models", face.models),
            web.get("/v1/models/{name:.+}", face.model),
            web.get("/health", face.ready),
            web.get("/health/live", face.live),
            web.get("/health/ready", face.ready),
            web.get("/metrics", face.metrics),
        ]
    )
    return app


def hosts_answered(host: str, given: tuple[str, ...]) -> frozenset[str] | None:
    """Return the `hosts` of `application` for a listening address and the configured host names."""
    return frozenset(name.lower() for name in given) if given or _is_loopback(host) else None


class Site(web.BaseSite):
    """Listening site of the application: refuses connections beyond the limit and closes those without a request."""

    def __init__(self, runner: web.AppRunner, limits: Limits, host: str, port: int, shared: bool):
        super().__init__(runner, backlog=1024)
        self._limits, self._at, self._shared = limits, (host, port), shared
        self._silent = runner.app[_SILENT]

    @property
    def name(self) -> str:
        return "http://{}:{}".format(*self._at)

    async def start(self) -> None:
        await super().start()
        create = asyncio.get_running_loop().create_server
        self._server = await create(self._connection, *self._at, backlog=self._backlog, reuse_port=self._shared)

    def _connection(self) -> asyncio.Protocol:
        server = self._runner.server
        if len(server.connections) >= self._limits.connections:
            return _Full()
        connection = server()
        timer = asyncio.get_running_loop().call_later(self._limits.header_seconds, self._end, connection)
        self._silent[connection] = timer
        return connection

    def _end(self, connection: web.RequestHandler) -> None:
        del self._silent[connection]
        connection.force_close()


class _Full(asyncio.Protocol):
    """A connection that is refused with 503."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport.write(_FULL % _RETRY_SECONDS.encode())
        transport.close()


class _Face:
    def __init__(self, dispatch: Dispatcher):
        self._dispatch = dispatch
        self._started = int(time.time())

    async def complete(self, kind: str, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        if body.get("model") is None:
            body["model"] = ROUTER
        model, stream, text = body["model"], body.get("stream"), openai.prompt(kind, body)
        expert = self._dispatch.named.get(model) if isinstance(model, str) else None
        if model != ROUTER and expert is None:
            raise _unknown("The 'model'")
        if not (stream is None or isinstance(stream, bool)):
            got = json.dumps(stream)[:40]
            raise RequestError(Kind.INVALID_ARGUMENT, f"'stream' must be true, false or null. Got {got}.")
        reply = _Reply(request, bool(stream))
        try:
            if expert is None:
                await self._dispatch.run(text, lambda chosen, sink: chosen.upstream.openai(kind, body, sink), reply)
            else:
                reply.response.headers["x-erlab-expert"] = expert.name
                await self._dispatch.ask(expert, text, lambda e, sink: e.upstream.openai(kind, body, sink), reply)
        except RequestError as e:
            if not reply.response.prepared:
                raise
            reply.piece(openai.error_event(e), None)
        return reply.response

    async def route(self, request: web.Request) -> web.Response:
        body = await _body(request)
        text = openai.prompt("completions" if body.get("messages") is None else "chat/completions", body)
        decision, classify_ns = await self._dispatch.decision(text)
        content = vars(decision) | {"classify_ns": classify_ns}
        if math.isinf(decision.margin):
            content["margin"] = None  # one cluster has no runner-up, and JSON no infinity
        return web.json_response(content)

    async def models(self, request: web.Request) -> web.Response:
        names = ROUTER, *self._dispatch.named
        return web.json_response({"object": "list", "data": [self._about(name) for name in names]})

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name != ROUTER and name not in self._dispatch.named:
            raise _unknown("A model's name")
        return web.json_response(self._about(name))

    def _about(self, name: str) -> dict:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "erlab"}

    async def live(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        experts = self._dispatch.experts
        ready = any(expert.up for expert in experts)
        states = {expert.name: "up" if expert.up else f"down: {expert.down_reason}" for expert in experts}
        content = {"status": "ok" if ready else "down", "experts": states}
        return web.json_response(content, status=200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._dispatch.metrics.text(), content_type="text/plain", charset="utf-8")


class _Reply:
    """A Reply whose response begins with the first piece, so that an earlier failure still has its own HTTP status.

    Pieces are pushed, not awaited: what aiohttp writes fills the connection's buffer at once.
    """

    def __init__(self, request: web.Request, stream: bool):
        self._request, self._stream = request, stream
        self.client = f"http:{request.remote}"
        self.response = web.StreamResponse() if stream else web.Response(content_type="application/json")

    def piece(self, data: bytes, routed: Routed | None) -> None:
        if routed:
            self.response.headers.update(_headers(routed))
        if not self._stream:
            self.response.body = data
            return
        with suppress(ConnectionError):  # the client has disconnected, and aiohttp is about to cancel
            if not self.response.prepared:
                self._begin()
            _at_once(self._request.writer.write(data, drain=False))

    def _begin(self) -> None:
        self.response.content_type = "text/event-stream"
        self.response.headers["Cache-Control"] = "no-cache"
        if self._request.version < HttpVersion11:
            self.response.force_close()  # the only end of a stream that HTTP/1.0 knows
        _at_once(self.response.prepare(self._request))

    @property
    def paused(self) -> bool:
        return self._stream and self._request.protocol.writing_paused

    async def resumed(self) -> None:
        with suppress(ConnectionError):  # the client has disconnected
            await self._request.writer.drain()


def _at_once(coroutine: Coroutine) -> None:
    """Run a coroutine of aiohttp's that only fills the connection's buffer and so never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("aiohttp waits before it writes")


def _headers(routed: Routed) -> dict[str, str]:
    values = vars(routed.decision) | {"classify-ns": routed.classify_ns, "queue-ns": routed.queue_ns}
    return {f"x-erlab-{name}": str(value) for name, value in values.items()}


def _unknown(what: str) -> RequestError:
    return RequestError(Kind.NOT_FOUND, f"{what} must be 'router' or an expert, see /v1/models.")


async def _body(request: web.Request) -> dict:
    if request.content_type != "application/json":
        raise StatusError(Kind.INVALID_ARGUMENT, "The request's Content-Type must be application/json.", False, 415)
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            text = (await request.read()).decode("utf-8-sig")
        body = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if isinstance(body, dict) and _SURROGATE.search(text):
            _check_text(body)
    except (ValueError, RecursionError, web.RequestPayloadError):
        raise RequestError(Kind.INVALID_ARGUMENT, "The request's body must be JSON, with finite numbers.") from None
    except TimeoutError:
        late = f"The request's body did not arrive within {_BODY_SECONDS:g} s."
        raise RequestError(Kind.DEADLINE_EXCEEDED, late) from None
    if not isinstance(body, dict):
        raise RequestError(Kind.INVALID_ARGUMENT, "The request's body must be a JSON object.")
    return body


def _finite(text: str) -> float:
    """Convert a number of a JSON document; raises ValueError if it is not finite."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _check_text(body: dict) -> None:
    """Refuse half of a surrogate pair, which a JSON escape can hold and UTF-8 cannot."""
    for item in body.items():
        try:
            json.dumps(item, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            lone = f"{item[0][:40]!a} must be text. Got half of a surrogate pair."
            raise RequestError(Kind.INVALID_ARGUMENT, lone) from None


async def _allow_origin(origins: frozenset[str], request: web.Request, response: web.StreamResponse) -> None:
    """Let the web pages of these origins read a response."""
    response.headers["Vary"] = "Origin"
    if (origin := request.headers.get("Origin")) in origins:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = "*"


def _preflight(request: web.Request, origins: frozenset[str]) -> bool:
    """Whether a browser asks if a page of one of these origins may send a request."""
    asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
    return asks and request.headers.get("Origin") in origins


_PREFLIGHT = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Max-Age": "600"}


def _guard(key: str | None, hosts: frozenset[str] | None, origins: frozenset[str]):
    """Middleware that checks host and key, and returns every error in OpenAI's format."""

    @web.middleware
    async def guard(request: web.Request, handler) -> web.StreamResponse:
        if timer := request.app[_SILENT].pop(request.protocol, None):
            timer.cancel()
        try:
            if hosts is not None:
                _check_hosts(request.headers.getall("Host", ()), hosts)
            if _preflight(request, origins):
                asked = {"Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "")}
                return web.Response(status=204, headers=_PREFLIGHT | asked)
            if key and not f"{request.path}/".startswith("/health/"):
                token = request.headers.get("Authorization", "").encode(errors="replace")
                if not hmac.compare_digest(token, f"Bearer {key}".encode()):
                    missing = "This gateway requires its key: 'Authorization: Bearer KEY'."
                    raise RequestError(Kind.UNAUTHENTICATED, missing)
            return await handler(request)
        except RequestError as e:
            status = e.status if isinstance(e, StatusError) else _STATUS.get(e.kind, 502)
            headers = {"Retry-After": _RETRY_SECONDS} if status in (429, 503) else {}
            if e.routed:
                headers |= _headers(e.routed)
            return web.json_response(openai.error_body(e), status=status, headers=headers)
        except web.HTTPException as e:
            kind = Kind.NOT_FOUND if e.status in (404, 405) else Kind.INVALID_ARGUMENT
            content = openai.error_body(RequestError(kind, f"{request.method} {request.path}: {e.reason}."))
            allow = {"Allow": e.headers["Allow"]} if "Allow" in e.headers else None
            return web.json_response(content, status=e.status, headers=allow)

    return guard


def _check_hosts(requested: list[str], hosts: frozenset[str]) -> None:
    """Refuse a Host other than loopback's and `hosts`. A missing one is fine: no browser omits it."""
    for host in requested:
        match = _HOST.fullmatch(host.lower())
        if not match or not (match[1] in hosts or _is_loopback(match[1])):
            got = ascii(host[:80])
            raise RequestError(Kind.PERMISSION_DENIED, f"The Host must be loopback's or one of --hosts. Got {got}.")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
