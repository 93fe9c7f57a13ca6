"""The gateway's gRPC face: to a client, a Triton server that has one more model, `router`.

A request to `router` is decoded once, to read its prompt, and its bytes go on to the chosen expert. Responses are
relayed as bytes; the first one carries parameters: the decision (`erlab_expert`, `erlab_cluster`, `erlab_distance`,
`erlab_margin`, `erlab_policy`), when the request was read and decided (`erlab_received_ns`, `erlab_routed_ns`:
time.monotonic_ns()) and how long it was classified and queued (`erlab_classify_ns`, `erlab_queue_ns`). All else passes
through to the server `upstream`.
"""

import asyncio
import hmac
from collections import deque
from functools import partial

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2

from erlab.errors import ErlabError
from erlab.gateway import messages
from erlab.gateway.dispatch import Dispatcher, Routed
from erlab.gateway.expert import Expert, Headers, Sink, Unpaused
from erlab.gateway.limits import Refused
from erlab.gateway.triton import INFER, SERVICE, STREAM

ROUTER = "router"
# Questions about the router itself are answered as for its first expert, under the router's name.
_ABOUT = {
    f"{SERVICE}/ModelReady": (service_pb2.ModelReadyRequest, b""),
    f"{SERVICE}/ModelMetadata": (
        service_pb2.ModelMetadataRequest,
        service_pb2.ModelMetadataResponse(name=ROUTER).SerializeToString(),
    ),
    f"{SERVICE}/ModelConfig": (
        service_pb2.ModelConfigRequest,
        service_pb2.ModelConfigResponse(config=model_config_pb2.ModelConfig(name=ROUTER)).SerializeToString(),
    ),
}
_INDEX = f"{SERVICE}/RepositoryIndex"
_LISTED = service_pb2.RepositoryIndexResponse(
    models=[service_pb2.RepositoryIndexResponse.ModelIndex(name=ROUTER, version="1", state="READY")]
).SerializeToString()
_CODE = grpc.StatusCode


class RoutingService(grpc.GenericRpcHandler):
    """Answers every method of the protocol: `dispatch` the router's requests, `upstream`'s server all others.

    `upstream` is None where no expert is on a Triton server; then only the router is known. `first` is the model that
    speaks for it in metadata. `key`: what clients must bring as a bearer token, if
    anything; it is not handed on.
    """

    def __init__(self, dispatch: Dispatcher, upstream: grpc.aio.Channel | None, first: str, key: str | None = None):
        self._dispatch, self._upstream, self._first = dispatch, upstream, first
        self._bearer = f"Bearer {key}".encode() if key else None
        self._pass = upstream.stream_stream(STREAM) if upstream else None

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        if self._bearer and not _brings(self._bearer, details):
            behaviour = grpc.stream_stream_rpc_method_handler if details.method == STREAM else _unary_handler
            return behaviour(_turn_away)
        if details.method == STREAM:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if details.method == INFER:
            return _unary_handler(self._infer)
        if self._upstream is None:
            return _unary_handler(partial(_alone, details.method))
        if details.method in _ABOUT:
            return _unary_handler(partial(self._about, details.method))
        return _unary_handler(partial(self._unary, details.method))

    async def _stream(self, requests, context: grpc.aio.ServicerContext) -> None:
        """One client's stream: requests to the router side by side, all others in order on one upstream stream."""
        passed, outlet = None, Outlet(context)
        try:
            async with asyncio.TaskGroup() as tasks:
                async for data in requests:
                    try:
                        request = messages.parse(service_pb2.ModelInferRequest, data)
                    except ErlabError as e:
                        outlet.piece(messages.streamed(service_pb2.ModelInferResponse(), str(e)))
                        await outlet.resumed()
                        continue
                    if request.model_name == ROUTER:
                        tasks.create_task(self._route(request, data, outlet, self._headers(context)))
                        continue
                    if self._pass is None:
                        answer = service_pb2.ModelInferResponse(id=request.id)
                        outlet.piece(messages.streamed(answer, "This gateway has one model, 'router'."))
                        await outlet.resumed()
                        continue
                    if passed is None:
                        passed = self._pass(metadata=self._headers(context))
                        tasks.create_task(_relay(passed, outlet))
                    await passed.write(data)
                if passed is not None:
                    await passed.done_writing()
        except* grpc.aio.AioRpcError as failed:
            cause = failed.exceptions[0]
        else:
            return
        await context.abort(cause.code(), cause.details())

    async def _route(
        self, request: service_pb2.ModelInferRequest, data: bytes, outlet: "Outlet", headers: Headers
    ) -> None:
        """Answer one request to the router; whatever happens upstream, the client hears of it."""
        try:
            text = messages.prompt(request)
            await self._dispatch.run(text, lambda e, sink: e.upstream.kserve(request, data, headers, sink), outlet)
        except ErlabError as e:
            answer = service_pb2.ModelInferResponse(id=request.id)
            code = e.code if isinstance(e, Refused) else _CODE.INVALID_ARGUMENT
            if isinstance(e, Refused) and e.routed:
                answer.MergeFrom(messages.mark(e.routed))
            # Triton's own words come as they are, and these errors have no field for their kind.
            plain = code in (_CODE.UNKNOWN, _CODE.INVALID_ARGUMENT)
            outlet.piece(messages.streamed(answer, str(e) if plain else f"{code.name}: {e}"))
        await outlet.resumed()

    async def _infer(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        async def ask(expert: Expert, sink: Sink) -> None:
            sink.piece(await expert.upstream.infer(request, data, headers))

        kept = _Kept()
        try:
            request = messages.parse(service_pb2.ModelInferRequest, data)
            if request.model_name != ROUTER:
                if self._upstream is None:
                    await context.abort(_CODE.NOT_FOUND, "This gateway has one model, 'router'.")
                return await self._unary(INFER, data, context)
            text, headers = messages.prompt(request), self._headers(context)
            await self._dispatch.run(text, ask, kept)
        except Refused as e:
            await context.abort(e.code, str(e))
        except ErlabError as e:
            await context.abort(_CODE.INVALID_ARGUMENT, str(e))
        return kept.answer

    async def _about(self, method: str, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        message, renamed = _ABOUT[method]
        try:
            name = messages.parse(message, data).name
        except ErlabError as e:
            await context.abort(_CODE.INVALID_ARGUMENT, str(e))
        if name != ROUTER:
            return await self._unary(method, data, context)
        first = message(name=self._first).SerializeToString()
        return await self._unary(method, data + first, context) + renamed

    async def _unary(self, method: str, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            answer = await self._upstream.unary_unary(method)(data, metadata=self._headers(context))
        except grpc.aio.AioRpcError as e:
            await context.abort(e.code(), e.details())
        return answer + _LISTED if method == _INDEX else answer

    def _headers(self, context: grpc.aio.ServicerContext) -> Headers:
        """The client's own headers. Its deadline stays here: when it passes, gRPC cancels the call and with it ours."""
        own = [(k, v) for k, v in context.invocation_metadata() if k != "user-agent" and not k.startswith("grpc-")]
        if self._bearer:
            own = [(k, v) for k, v in own if k != "authorization"]
        return own or None


class Outlet:
    """A client's stream as a Reply, and as a Sink. grpc.aio's write is a coroutine, one at a time, so that pieces wait
    for `resumed` to write them."""

    def __init__(self, context: grpc.aio.ServicerContext):
        self._context, self._waiting, self._lock = context, deque(), asyncio.Lock()

    def piece(self, data: bytes, routed: Routed | None = None) -> None:
        self._waiting.append(data + messages.streamed(messages.mark(routed)) if routed else data)

    @property
    def paused(self) -> bool:
        return bool(self._waiting)

    async def resumed(self) -> None:
        async with self._lock:
            while self._waiting:
                await self._context.write(self._waiting.popleft())


class _Kept(Unpaused):
    """A Reply of one piece."""

    answer = b""

    def piece(self, data: bytes, routed: Routed | None) -> None:
        self.answer = data + messages.mark(routed).SerializeToString()


_unary_handler = grpc.unary_unary_rpc_method_handler


def _brings(bearer: bytes, details: grpc.HandlerCallDetails) -> bool:
    came = next((v for k, v in details.invocation_metadata if k == "authorization"), "")
    return hmac.compare_digest(came.encode(), bearer)


async def _turn_away(request, context: grpc.aio.ServicerContext) -> None:
    await context.abort(_CODE.UNAUTHENTICATED, "This gateway asks for its key: metadata 'authorization: Bearer KEY'.")


# What a gateway without Triton answers, the same whatever is asked.
_ALONE = {
    f"{SERVICE}/ServerLive": service_pb2.ServerLiveResponse(live=True).SerializeToString(),
    f"{SERVICE}/ServerReady": service_pb2.ServerReadyResponse(ready=True).SerializeToString(),
    f"{SERVICE}/ModelReady": service_pb2.ModelReadyResponse(ready=True).SerializeToString(),
    _INDEX: _LISTED,
}


async def _alone(method: str, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
    known = method in _ALONE
    if known and method == f"{SERVICE}/ModelReady":
        known = messages.parse(service_pb2.ModelReadyRequest, data).name == ROUTER
    if not known:
        await context.abort(_CODE.UNIMPLEMENTED, "No expert of this gateway is on a Triton server, which could answer.")
    return _ALONE[method]


async def _relay(call: grpc.aio.StreamStreamCall, outlet: Outlet) -> None:
    try:
        async for response in call:
            outlet.piece(response)
            await outlet.resumed()
    finally:
        call.cancel()
