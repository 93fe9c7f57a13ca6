"""KServe v2 face: a Triton server whose models are `router` and the gateway's experts.

A request is decoded once, for its model and prompt, and its bytes are forwarded to the expert: the policy's choice for
`router`, else the named one. Responses are relayed as bytes. The first response to a request to `router` carries
parameters: the decision (`erlab_expert`, `erlab_cluster`, `erlab_distance`, `erlab_margin`, `erlab_policy`), when the
request was received and decided (`erlab_received_ns`, `erlab_routed_ns`: time.monotonic_ns()) and the time it took to
classify and to queue (`erlab_classify_ns`, `erlab_queue_ns`).

Only `grpc_server.METHODS` are answered, and only for these models. Loading models, mapping shared memory and changing
logs and traces are not for everyone who reaches the gateway's port.
"""

from contextlib import suppress

from tritonclient.grpc import model_config_pb2, service_pb2

from erlab.errors import ErlabError
from erlab.gateway.core import ROUTER, Dispatcher, Forward, Reply, Routed, ServedExpert, Sink
from erlab.gateway.errors import Kind, RequestError
from erlab.gateway.wire import messages
from erlab.gateway.wire.grpc_server import Method, StreamCall
from erlab.gateway.wire.interface import Headers, Unpaused
from erlab.gateway.wire.triton_upstream import TritonModel

_NAME = 100  # characters of an unknown name shown in an error
# Requests about a model, and the message that renames the model when appended to the response.
_ABOUT = {
    "ModelMetadata": (service_pb2.ModelMetadataRequest, service_pb2.ModelMetadataResponse),
    "ModelConfig": (
        service_pb2.ModelConfigRequest,
        lambda name: service_pb2.ModelConfigResponse(config=model_config_pb2.ModelConfig(name=name)),
    ),
}


class KServeFace:
    """Methods of the KServe v2 service for the experts of `dispatch` and, if it routes, for `router`.

    Requests about the server, and about `router` as a model, go to the first expert on a Triton server that is up.
    Without one the gateway answers what it can by itself.
    """

    def __init__(self, dispatch: Dispatcher):
        self._dispatch = dispatch
        self.methods: dict[str, Method] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": lambda data, headers: self._about("ModelMetadata", data, headers),
            "ModelConfig": lambda data, headers: self._about("ModelConfig", data, headers),
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "ModelInfer": self._infer,
        }

    @property
    def _models(self) -> list[str]:
        return [*self._dispatch.named, ROUTER] if self._dispatch.routes else [*self._dispatch.named]

    @property
    def _triton(self) -> TritonModel | None:
        experts = sorted(self._dispatch.experts, key=lambda expert: not expert.up)
        return next((e.upstream for e in experts if isinstance(e.upstream, TritonModel)), None)

    async def answer(self, data: bytes, received_ns: int, headers: Headers, stream: StreamCall) -> None:
        """Answer one request of a stream; every failure becomes an error response."""
        request = service_pb2.ModelInferRequest()
        try:
            request = messages.request(data)
            forward = lambda expert, sink: expert.upstream.kserve(request, data, headers, sink)  # noqa: E731
            await self._ask(request, forward, stream, received_ns)
        except ErlabError as e:
            answer = service_pb2.ModelInferResponse(id=request.id)
            kind = e.kind if isinstance(e, RequestError) else Kind.INVALID_ARGUMENT
            if isinstance(e, RequestError) and e.routed:
                answer.MergeFrom(messages.mark(e.routed))
            # Triton's own messages are relayed unchanged; this response has no field for a status code.
            plain = kind in (Kind.UNKNOWN, Kind.INVALID_ARGUMENT)
            stream.piece(messages.streamed(answer, str(e) if plain else f"{kind.name}: {e}"))

    async def _infer(self, data: bytes, headers: Headers) -> bytes:
        async def forward(expert: ServedExpert, sink: Sink) -> None:
            sink.piece(await expert.upstream.infer(request, data, headers))

        request, reply = messages.request(data), _UnaryReply()
        await self._ask(request, forward, reply)
        return reply.response

    async def _ask(
        self, request: service_pb2.ModelInferRequest, forward: Forward, reply: Reply, received_ns: int | None = None
    ) -> None:
        if self._dispatch.routes and request.model_name == ROUTER:
            return await self._dispatch.run(messages.prompt(request), forward, reply, received_ns)
        expert, text = self._expert(request.model_name), ""
        with suppress(ErlabError):  # a named expert may take other tensors
            text = messages.prompt(request)
        await self._dispatch.ask(expert, text, forward, reply, received_ns)

    def _expert(self, name: str) -> ServedExpert:
        if name not in self._dispatch.named:
            known = ", ".join(self._models)
            raise RequestError(Kind.NOT_FOUND, f"There is no model {name[:_NAME]!r} here, only {known}.")
        return self._dispatch.named[name]

    async def _live(self, data: bytes, headers: Headers) -> bytes:
        if self._triton:
            return await self._triton.about("ServerLive", data, headers)
        return service_pb2.ServerLiveResponse(live=True).SerializeToString()

    async def _ready(self, data: bytes, headers: Headers) -> bytes:
        elsewhere = any(e.up and not isinstance(e.upstream, TritonModel) for e in self._dispatch.experts)
        if self._triton and not elsewhere:
            return await self._triton.about("ServerReady", data, headers)
        return service_pb2.ServerReadyResponse(ready=True).SerializeToString()

    async def _server_metadata(self, data: bytes, headers: Headers) -> bytes:
        extensions = ["model_configuration", "statistics"]
        return service_pb2.ServerMetadataResponse(name="erlab", extensions=extensions).SerializeToString()

    async def _model_ready(self, data: bytes, headers: Headers) -> bytes:
        name = messages.parse(service_pb2.ModelReadyRequest, data).name
        model = self._model(name) if name in self._models else None
        if isinstance(model, TritonModel):
            data += service_pb2.ModelReadyRequest(name=model.name).SerializeToString()
            return await model.about("ModelReady", data, headers)
        return service_pb2.ModelReadyResponse(ready=name in self._models).SerializeToString()

    async def _about(self, method: str, data: bytes, headers: Headers) -> bytes:
        request, renamed = _ABOUT[method]
        name = messages.parse(request, data).name
        model = self._model(name)
        if not isinstance(model, TritonModel):
            no_triton = f"The model {name!r} is not on a Triton server, which could answer {method}."
            raise RequestError(Kind.UNIMPLEMENTED, no_triton)
        response = await model.about(method, data + request(name=model.name).SerializeToString(), headers)
        return response + renamed(name=name).SerializeToString()

    def _model(self, name: str):
        """Upstream that answers requests about the model of this name."""
        return self._triton if self._dispatch.routes and name == ROUTER else self._expert(name).upstream

    async def _statistics(self, data: bytes, headers: Headers) -> bytes:
        """Statistics of one expert, or of all experts for `router` or no name."""
        name = messages.parse(service_pb2.ModelStatisticsRequest, data).name
        every_expert = not name or (self._dispatch.routes and name == ROUTER)
        upstreams = [expert.upstream for expert in (self._dispatch.experts if every_expert else [self._expert(name)])]
        models = [model for model in upstreams if isinstance(model, TritonModel)]
        renamed = [data + service_pb2.ModelStatisticsRequest(name=model.name).SerializeToString() for model in models]
        statistics = [await m.about("ModelStatistics", request, headers) for m, request in zip(models, renamed)]
        return b"".join(statistics)  # concatenated messages merge their lists

    async def _index(self, data: bytes, headers: Headers) -> bytes:
        ready_only = messages.parse(service_pb2.RepositoryIndexRequest, data).ready
        up = {expert.name: expert.up for expert in self._dispatch.experts}
        up |= {ROUTER: any(up.values())} if self._dispatch.routes else {}
        index = service_pb2.RepositoryIndexResponse()
        for name in self._models:
            if up[name] or not ready_only:
                index.models.add(name=name, version="1", state="READY" if up[name] else "UNAVAILABLE")
        return index.SerializeToString()


class _UnaryReply(Unpaused):
    """A Reply of one piece."""

    client = "grpc"
    response = b""

    def piece(self, data: bytes, routed: Routed | None) -> None:
        self.response = data + messages.mark(routed).SerializeToString() if routed else data
