"""The gateway's HTTP face: to a client, an OpenAI-compatible server whose model `router` is all experts at once.

    POST /v1/completions, /v1/chat/completions   an expert's name as `model` asks that one, without a decision
    POST /route                                  the decision alone, for a `prompt` or `messages`
    GET  /v1/models, /health, /metrics

An answer's headers tell its decision (`x-erlab-expert`, `-cluster`, `-distance`, `-margin`, `-policy`) and where time
went before the expert was asked (`x-erlab-classify-ns`, `-queue-ns`).
"""

import asyncio
import hmac
import json
import math
import time
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial

import grpc
from aiohttp import HttpVersion11, web

from erlab.gateway import openai
from erlab.gateway.dispatch import Dispatcher, Routed
from erlab.gateway.limits import Limits, Refused

ROUTER = "router"
_BODY_SECONDS = 30.0  # the longest a client may take to send a request
_RETRY_SECONDS = "1"
_CODE = grpc.StatusCode
_STATUS = {
    _CODE.INVALID_ARGUMENT: 400,
    _CODE.UNAUTHENTICATED: 401,
    _CODE.PERMISSION_DENIED: 403,
    _CODE.NOT_FOUND: 404,
    _CODE.RESOURCE_EXHAUSTED: 429,
    _CODE.UNAVAILABLE: 503,
    _CODE.DEADLINE_EXCEEDED: 504,
}


def application(dispatch: Dispatcher, limits: Limits, key: str | None = None) -> web.Application:
    """The face as an aiohttp application; `key`: what clients must bring as a bearer token (not for /health)."""
    face = _Face(dispatch, limits)
    app = web.Application(client_max_size=limits.message_bytes, middlewares=[_guard(key)])
    app.add_routes(
        [
            web.post("/v1/completions", partial(face.complete, "completions")),
            web.post("/v1/chat/completions", partial(face.complete, "chat/completions")),
            web.post("/route", face.route),
            web.get("/v1/models", face.models),
            web.get("/health", face.health),
            web.get("/metrics", face.metrics),
        ]
    )
    return app


class _Face:
    def __init__(self, dispatch: Dispatcher, limits: Limits):
        self._dispatch, self._limits = dispatch, limits
        self._named = {expert.name: expert for expert in dispatch.experts}
        self._started = int(time.time())

    async def complete(self, kind: str, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        model, text = body.get("model", ROUTER), openai.prompt(kind, body)
        expert = self._named.get(model) if isinstance(model, str) else None
        if model != ROUTER and expert is None:
            raise Refused(_CODE.NOT_FOUND, "The 'model' must be 'router' or an expert, see /v1/models.")
        reply = _Reply(request, bool(body.get("stream")))
        try:
            if expert is None:
                await self._dispatch.run(text, lambda chosen, sink: chosen.upstream.openai(kind, body, sink), reply)
            else:
                end = asyncio.get_running_loop().time() + self._limits.seconds
                await self._dispatch.attempt(expert, lambda e, sink: e.upstream.openai(kind, body, sink), reply, end)
        except Refused as e:
            if not reply.response.prepared:
                raise
            reply.piece(openai.error_event(e.code, str(e)), None)
        return reply.response

    async def route(self, request: web.Request) -> web.Response:
        body = await _body(request)
        text = openai.prompt("chat/completions" if "messages" in body else "completions", body)
        row, classify_ns = await self._dispatch.classify(text)
        _, decision = self._dispatch.decide(row)
        told = vars(decision) | {"classify_ns": classify_ns}
        if math.isinf(decision.margin):
            told["margin"] = None  # one cluster has no runner-up, and JSON no infinity
        return web.json_response(told)

    async def models(self, request: web.Request) -> web.Response:
        about = {"object": "model", "created": self._started, "owned_by": "erlab"}
        return web.json_response({"object": "list", "data": [{"id": name} | about for name in (ROUTER, *self._named)]})

    async def health(self, request: web.Request) -> web.Response:
        up = {name: expert.up for name, expert in self._named.items()}
        well = any(up.values())
        return web.json_response({"status": "ok" if well else "down", "experts": up}, status=200 if well else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._dispatch.metrics.text(), content_type="text/plain", charset="utf-8")


class _Reply:
    """A Reply whose response begins with its first piece, so that what fails before it still has a status of its own.

    aiohttp begins and ends a streamed response; its pieces go to the connection past it.
    """

    def __init__(self, request: web.Request, stream: bool):
        self._request, self._stream = request, stream
        self._chunked, self._protocol = request.version >= HttpVersion11, request.protocol
        self._transport: asyncio.Transport | None = None  # once the response has begun
        self.response = web.StreamResponse() if stream else web.Response(content_type="application/json")

    def piece(self, data: bytes, routed: Routed | None) -> None:
        if self._transport is None and not self._begin(data, routed):
            return
        if not self._transport.is_closing():  # else the client has left, and aiohttp is about to cancel this request
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _begin(self, data: bytes, routed: Routed | None) -> bool:
        """Begin the response; whether the piece is still to be written."""
        if routed:
            self.response.headers.update(_headers(routed))
        transport = self._request.transport
        if not self._stream:
            self.response.body = data
            return False
        if transport is None:
            return False  # it has left already
        self.response.content_type = "text/event-stream"
        self.response.headers["Cache-Control"] = "no-cache"
        if not self._chunked:
            self.response.force_close()  # else nothing would tell an HTTP/1.0 client the end
        _at_once(self.response.prepare(self._request))
        self._transport = transport
        return True

    @property
    def paused(self) -> bool:
        return self._stream and self._protocol.writing_paused

    async def resumed(self) -> None:
        with suppress(ConnectionError):  # it has left, see above
            await self._request.writer.drain()


def _at_once(coroutine: Coroutine) -> None:
    """Run a coroutine that has nothing to wait for, as aiohttp's that only fill the connection's buffer."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("aiohttp waits before it begins a response")


def _headers(routed: Routed) -> dict[str, str]:
    told = vars(routed.decision) | {"classify-ns": routed.classify_ns, "queue-ns": routed.queue_ns}
    return {f"x-erlab-{name}": str(value) for name, value in told.items()}


async def _body(request: web.Request) -> dict:
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            body = json.loads(await request.read())
    except (ValueError, RecursionError, web.RequestPayloadError):
        raise Refused(_CODE.INVALID_ARGUMENT, "The request's body must be JSON.") from None
    except TimeoutError:
        late = f"The request's body did not come within {_BODY_SECONDS:g} s."
        raise Refused(_CODE.DEADLINE_EXCEEDED, late) from None
    if not isinstance(body, dict):
        raise Refused(_CODE.INVALID_ARGUMENT, "The request's body must be a JSON object.")
    return body


def _guard(key: str | None):
    """A middleware that asks for the key and says every error in OpenAI's shape."""

    @web.middleware
    async def guard(request: web.Request, handler) -> web.StreamResponse:
        try:
            if key and request.path != "/health":
                came = request.headers.get("Authorization", "").encode(errors="replace")
                if not hmac.compare_digest(came, f"Bearer {key}".encode()):
                    raise Refused(_CODE.UNAUTHENTICATED, "This gateway asks for its key: 'Authorization: Bearer KEY'.")
            return await handler(request)
        except Refused as e:
            status = _STATUS.get(e.code, 502)
            headers = {"Retry-After": _RETRY_SECONDS} if status in (429, 503) else {}
            if e.routed:
                headers |= _headers(e.routed)
            return web.json_response(openai.error(e.code, str(e)), status=status, headers=headers)
        except web.HTTPException as e:
            code = _CODE.NOT_FOUND if e.status in (404, 405) else _CODE.INVALID_ARGUMENT
            content = openai.error(code, f"{request.method} {request.path}: {e.reason}.")
            kept = {"Allow": e.headers["Allow"]} if "Allow" in e.headers else None
            return web.json_response(content, status=e.status, headers=kept)

    return guard
