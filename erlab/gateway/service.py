"""The gateway's gRPC service: to a client, a Triton server that has one more model, `router`.

A request to `router` is decoded once, to read its prompt, and its bytes go on to the chosen expert. Responses are
relayed as bytes; the first one carries the decision as parameters (`erlab_expert`, `erlab_cluster`, `erlab_distance`,
`erlab_margin`, `erlab_policy`, `erlab_routed_ns`: time.monotonic_ns() at the decision). All else passes through.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2

from erlab.errors import ErlabError
from erlab.gateway import messages
from erlab.gateway.decide import Decider

ROUTER = "router"
_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_INFER = "/inference.GRPCInferenceService/ModelInfer"
# Questions about the router itself are answered as for its first expert, under the router's name.
_ABOUT = {
    "/inference.GRPCInferenceService/ModelReady": (service_pb2.ModelReadyRequest, b""),
    "/inference.GRPCInferenceService/ModelMetadata": (
        service_pb2.ModelMetadataRequest,
        service_pb2.ModelMetadataResponse(name=ROUTER).SerializeToString(),
    ),
    "/inference.GRPCInferenceService/ModelConfig": (
        service_pb2.ModelConfigRequest,
        service_pb2.ModelConfigResponse(config=model_config_pb2.ModelConfig(name=ROUTER)).SerializeToString(),
    ),
}

Write = Callable[[bytes], Awaitable[None]]
Headers = list[tuple[str, str | bytes]] | None


class RoutingService(grpc.GenericRpcHandler):
    """Answers every method of the protocol: `decide` chooses experts, `upstream` is the channel to their server."""

    def __init__(self, decide: Decider, upstream: grpc.aio.Channel):
        self._decide, self._upstream = decide, upstream
        # One message out, many back: on the wire the same as a stream of one request, and cheaper to open.
        self._ask = upstream.unary_stream(_STREAM)
        self._pass = upstream.stream_stream(_STREAM)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        if details.method == _STREAM:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if details.method == _INFER:
            return grpc.unary_unary_rpc_method_handler(self._infer)
        if details.method in _ABOUT:
            return grpc.unary_unary_rpc_method_handler(partial(self._about, details.method))
        return grpc.unary_unary_rpc_method_handler(partial(self._unary, details.method))

    async def _stream(self, requests, context: grpc.aio.ServicerContext) -> None:
        """One client's stream: requests to the router side by side, all others in order on one upstream stream."""
        lock = asyncio.Lock()  # gRPC sends one message of a stream at a time

        async def write(response: bytes) -> None:
            async with lock:
                await context.write(response)

        passed = None
        try:
            async with asyncio.TaskGroup() as tasks:
                async for data in requests:
                    try:
                        request = messages.parse(service_pb2.ModelInferRequest, data)
                    except ErlabError as e:
                        await write(messages.streamed(service_pb2.ModelInferResponse(), str(e)))
                        continue
                    if request.model_name == ROUTER:
                        tasks.create_task(self._route(request, data, write, _headers(context)))
                        continue
                    if passed is None:
                        passed = self._pass(metadata=_headers(context))
                        tasks.create_task(_relay(passed, write))
                    await passed.write(data)
                if passed is not None:
                    await passed.done_writing()
        except* grpc.aio.AioRpcError as failed:
            cause = failed.exceptions[0]
        else:
            return
        await context.abort(cause.code(), cause.details())

    async def _route(self, request: service_pb2.ModelInferRequest, data: bytes, write: Write, headers: Headers) -> None:
        """Answer one request to the router; whatever happens upstream, the client hears of it."""
        answer = service_pb2.ModelInferResponse(id=request.id)
        try:
            decision = self._decide(messages.prompt(request))
        except ErlabError as e:
            await write(messages.streamed(answer, str(e)))
            return
        routed = messages.mark(decision, time.monotonic_ns())
        answer.MergeFrom(routed)
        mark = messages.streamed(routed)
        call = self._ask(data + messages.rename(decision.expert), metadata=headers)
        try:
            async for response in call:
                await write(response + mark)
                mark = b""
            error = f"{decision.expert} ended the stream without an answer." if mark else ""
        except grpc.aio.AioRpcError as e:
            error = f"{decision.expert}: {e.code().name}: {e.details()}"
        finally:
            call.cancel()
            self._decide.done(decision)
        if error:
            await write(messages.streamed(answer, error))

    async def _infer(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            request = messages.parse(service_pb2.ModelInferRequest, data)
            if request.model_name != ROUTER:
                return await self._unary(_INFER, data, context)
            decision = self._decide(messages.prompt(request))
        except ErlabError as e:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        mark = messages.mark(decision, time.monotonic_ns()).SerializeToString()
        try:
            return await self._unary(_INFER, data + messages.rename(decision.expert), context) + mark
        finally:
            self._decide.done(decision)

    async def _about(self, method: str, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        message, renamed = _ABOUT[method]
        try:
            name = messages.parse(message, data).name
        except ErlabError as e:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        if name != ROUTER:
            return await self._unary(method, data, context)
        expert = message(name=self._decide.experts[0]).SerializeToString()
        return await self._unary(method, data + expert, context) + renamed

    async def _unary(self, method: str, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            return await self._upstream.unary_unary(method)(data, metadata=_headers(context))
        except grpc.aio.AioRpcError as e:
            await context.abort(e.code(), e.details())


async def _relay(call: grpc.aio.StreamStreamCall, write: Write) -> None:
    try:
        async for response in call:
            await write(response)
    finally:
        call.cancel()


def _headers(context: grpc.aio.ServicerContext) -> Headers:
    """The client's own headers. Its deadline stays here: when it passes, gRPC cancels the call and with it ours."""
    own = [(k, v) for k, v in context.invocation_metadata() if k != "user-agent" and not k.startswith("grpc-")]
    return own or None
