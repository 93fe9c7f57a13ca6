"""The gateway's gRPC face: to a client, a Triton server that has one more model, `router`.

A request to `router` is decoded once, to read its prompt, and its bytes go on to the chosen expert. Responses are
relayed as bytes; the first one carries parameters: the decision (`erlab_expert`, `erlab_cluster`, `erlab_distance`,
`erlab_margin`, `erlab_policy`), when the request was read and decided (`erlab_received_ns`, `erlab_routed_ns`:
time.monotonic_ns()) and how long it was classified and queued (`erlab_classify_ns`, `erlab_queue_ns`). All else passes
through to the server `upstream`.
"""

import asyncio
import hmac

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2

from erlab import http2
from erlab.errors import ErlabError
from erlab.gateway import messages
from erlab.gateway.dispatch import Dispatcher, Routed
from erlab.gateway.expert import Expert, Headers, Sink, Unpaused
from erlab.gateway.limits import Refused
from erlab.gateway.triton import INFER, SERVICE, STREAM
from erlab.http2.server import Call

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


class RoutingService:
    """Answers calls of every method of the protocol: `dispatch` the router's requests, `upstream`'s server all others.

    `upstream` is None where no expert is on a Triton server; then only the router is known. `first` is the model that
    speaks for it in metadata. `key`: what clients must bring as a bearer token, if
    anything; it is not handed on.
    """

    def __init__(self, dispatch: Dispatcher, upstream: http2.Channel | None, first: str, key: str | None = None):
        self._dispatch, self._upstream, self._first = dispatch, upstream, first
        self._bearer = f"Bearer {key}".encode() if key else None

    async def __call__(self, call: Call) -> None:
        method, headers = call.request.method, call.request.metadata
        if self._bearer:
            came = next((value for name, value in headers if name == "authorization"), "")
            if not hmac.compare_digest(came.encode("latin-1"), self._bearer):
                asked = "This gateway asks for its key: metadata 'authorization: Bearer KEY'."
                raise http2.Failed(_CODE.UNAUTHENTICATED, asked)
            headers = tuple((name, value) for name, value in headers if name != "authorization")
        if method == STREAM:
            return await self._stream(call, headers)
        data = await call.only()
        try:
            call.send(await self._answer(method, data, headers))
        except Refused as e:
            raise http2.Failed(e.code, str(e)) from None
        except ErlabError as e:
            raise http2.Failed(_CODE.INVALID_ARGUMENT, str(e)) from None

    async def _stream(self, call: Call, headers: Headers) -> None:
        """One client's stream: requests to the router side by side, all others in order on one upstream stream."""
        passed, outlet = None, Outlet(call)
        try:
            async with asyncio.TaskGroup() as tasks:
                while (data := await call.receive()) is not None:
                    try:
                        request = messages.parse(service_pb2.ModelInferRequest, data)
                    except ErlabError as e:
                        outlet.piece(messages.streamed(service_pb2.ModelInferResponse(), str(e)))
                        continue
                    if request.model_name == ROUTER:
                        answering = self._route(request, data, outlet, headers)
                        if call.exhausted:
                            await answering  # nothing comes beside which it had to be a task
                        else:
                            tasks.create_task(answering)
                        continue
                    if self._upstream is None:
                        answer = service_pb2.ModelInferResponse(id=request.id)
                        outlet.piece(messages.streamed(answer, "This gateway has one model, 'router'."))
                        continue
                    if passed is None:
                        passed = self._upstream.begin(STREAM, outlet, headers)
                        tasks.create_task(passed.ended())
                    passed.send(data)
                    await passed.resumed()
                if passed is not None:
                    passed.half_close()
        except* http2.Failed as failed:
            cause = failed.exceptions[0]
        else:
            return
        raise cause

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

    async def _answer(self, method: str, data: bytes, headers: Headers) -> bytes:
        """The response of a method that has one."""
        if method == INFER:
            request = messages.parse(service_pb2.ModelInferRequest, data)
            if request.model_name == ROUTER:
                return await self._infer(request, data, headers)
            if self._upstream is None:
                raise Refused(_CODE.NOT_FOUND, "This gateway has one model, 'router'.")
        if self._upstream is None:
            return _alone(method, data)
        if method in _ABOUT:
            message, renamed = _ABOUT[method]
            if messages.parse(message, data).name == ROUTER:
                first = message(name=self._first).SerializeToString()
                return await self._upstream.unary(method, data + first, headers) + renamed
        answer = await self._upstream.unary(method, data, headers)
        return answer + _LISTED if method == _INDEX else answer

    async def _infer(self, request: service_pb2.ModelInferRequest, data: bytes, headers: Headers) -> bytes:
        async def ask(expert: Expert, sink: Sink) -> None:
            sink.piece(await expert.upstream.infer(request, data, headers))

        kept = _Kept()
        await self._dispatch.run(messages.prompt(request), ask, kept)
        return kept.answer


class Outlet:
    """A client's stream: a Reply, a Sink, and a Receiver of what passes through."""

    def __init__(self, call: Call):
        self._call, self.resumed = call, call.resumed

    def piece(self, data: bytes, routed: Routed | None = None) -> None:
        self._call.send(data + messages.streamed(messages.mark(routed)) if routed else data)

    def message(self, data: bytes, now: int) -> None:
        self._call.send(data)

    @property
    def paused(self) -> bool:
        return self._call.paused


class _Kept(Unpaused):
    """A Reply of one piece."""

    answer = b""

    def piece(self, data: bytes, routed: Routed | None) -> None:
        self.answer = data + messages.mark(routed).SerializeToString()


# What a gateway without Triton answers, the same whatever is asked.
_ALONE = {
    f"{SERVICE}/ServerLive": service_pb2.ServerLiveResponse(live=True).SerializeToString(),
    f"{SERVICE}/ServerReady": service_pb2.ServerReadyResponse(ready=True).SerializeToString(),
    f"{SERVICE}/ModelReady": service_pb2.ModelReadyResponse(ready=True).SerializeToString(),
    _INDEX: _LISTED,
}


def _alone(method: str, data: bytes) -> bytes:
    known = method in _ALONE
    if known and method == f"{SERVICE}/ModelReady":
        known = messages.parse(service_pb2.ModelReadyRequest, data).name == ROUTER
    if not known:
        raise Refused(_CODE.UNIMPLEMENTED, "No expert of this gateway is on a Triton server, which could answer.")
    return _ALONE[method]
