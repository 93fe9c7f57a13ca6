"""What the gRPC door's methods do: to a client, a Triton server whose models are `router` and the gateway's experts.

A request is decoded once, to read its model and its prompt, and its bytes go on to the expert: the policy's choice for
`router`, else the one it names. Responses are relayed as bytes; the first one to a request to `router` carries
parameters: the decision (`erlab_expert`, `erlab_cluster`, `erlab_distance`, `erlab_margin`, `erlab_policy`), when the
request was received and decided (`erlab_received_ns`, `erlab_routed_ns`: time.monotonic_ns()) and how long it was
classified and queued (`erlab_classify_ns`, `erlab_queue_ns`).

Only the door's METHODS are answered, and for no other model of the servers behind: what loads models, maps shared
memory or changes how a server logs and traces is not for whoever reaches the gateway's port.
"""

import asyncio

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2

from erlab.errors import ErlabError
from erlab.gateway import messages
from erlab.gateway.dispatch import Ask, Dispatcher, Reply, Routed
from erlab.gateway.door import Method, Stream
from erlab.gateway.expert import Expert, Headers, Sink, Unpaused
from erlab.gateway.limits import Limits, Refused
from erlab.gateway.triton import TritonModel

ROUTER = "router"
_NAME = 100  # characters of an unknown name that an error repeats
_CODE = grpc.StatusCode
# Questions about a model, and what appended to their answer gives the model another name.
_ABOUT = {
    "ModelMetadata": (service_pb2.ModelMetadataRequest, service_pb2.ModelMetadataResponse),
    "ModelConfig": (
        service_pb2.ModelConfigRequest,
        lambda name: service_pb2.ModelConfigResponse(config=model_config_pb2.ModelConfig(name=name)),
    ),
}


class Service:
    """Answers for the experts of `dispatch` by their names and, where it `routes`, for `router`, which they all are.

    What is asked of the server, and of `router` as a model, the first expert on a Triton server is asked; without one
    the gateway answers by itself what it can.
    """

    def __init__(self, dispatch: Dispatcher, limits: Limits, routes: bool):
        self._dispatch, self._limits, self._routes = dispatch, limits, routes
        self._named = {expert.name: expert for expert in dispatch.experts}
        self._models = [*self._named, ROUTER] if routes else [*self._named]
        on_triton = (e.upstream for e in dispatch.experts if isinstance(e.upstream, TritonModel))
        self._triton: TritonModel | None = next(on_triton, None)
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

    async def answer(self, data: bytes, received_ns: int, headers: Headers, stream: Stream) -> None:
        """Answer one request of a stream, received at that moment; whatever happens, the client hears of it."""
        request = service_pb2.ModelInferRequest()
        try:
            request = messages.request(data)
            ask = lambda expert, sink: expert.upstream.kserve(request, data, headers, sink)  # noqa: E731
            await self._ask(request, ask, stream, received_ns)
        except ErlabError as e:
            answer = service_pb2.ModelInferResponse(id=request.id)
            code = e.code if isinstance(e, Refused) else _CODE.INVALID_ARGUMENT
            if isinstance(e, Refused) and e.routed:
                answer.MergeFrom(messages.mark(e.routed))
            # Triton's own words come as they are, and these errors have no field for their kind.
            plain = code in (_CODE.UNKNOWN, _CODE.INVALID_ARGUMENT)
            stream.piece(messages.streamed(answer, str(e) if plain else f"{code.name}: {e}"))

    async def _infer(self, data: bytes, headers: Headers) -> bytes:
        async def ask(expert: Expert, sink: Sink) -> None:
            sink.piece(await expert.upstream.infer(request, data, headers))

        request, kept = messages.request(data), _Kept()
        await self._ask(request, ask, kept)
        return kept.answer

    async def _ask(
        self, request: service_pb2.ModelInferRequest, ask: Ask, reply: Reply, received_ns: int | None = None
    ) -> None:
        if self._routes and request.model_name == ROUTER:
            return await self._dispatch.run(messages.prompt(request), ask, reply, received_ns)
        expert = self._expert(request.model_name)
        await self._dispatch.attempt(expert, ask, reply, asyncio.get_running_loop().time() + self._limits.seconds)

    def _expert(self, name: str) -> Expert:
        if name not in self._named:
            known = ", ".join(self._models)
            raise Refused(_CODE.NOT_FOUND, f"There is no model {name[:_NAME]!r} here, only {known}.")
        return self._named[name]

    async def _live(self, data: bytes, headers: Headers) -> bytes:
        if self._triton:
            return await self._triton.about("ServerLive", data, headers)
        return service_pb2.ServerLiveResponse(live=True).SerializeToString()

    async def _ready(self, data: bytes, headers: Headers) -> bytes:
        if self._triton:
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
        question, renamed = _ABOUT[method]
        name = messages.parse(question, data).name
        model = self._model(name)
        if not isinstance(model, TritonModel):
            alone = f"The model {name!r} is not on a Triton server, which could answer {method}."
            raise Refused(_CODE.UNIMPLEMENTED, alone)
        answer = await model.about(method, data + question(name=model.name).SerializeToString(), headers)
        return answer + renamed(name=name).SerializeToString()

    def _model(self, name: str):
        """Who is asked about the model of this name."""
        return self._triton if self._routes and name == ROUTER else self._expert(name).upstream

    async def _statistics(self, data: bytes, headers: Headers) -> bytes:
        """Those of one expert; of all of them for `router` or no name."""
        name = messages.parse(service_pb2.ModelStatisticsRequest, data).name
        everyone = not name or (self._routes and name == ROUTER)
        upstreams = [expert.upstream for expert in (self._named.values() if everyone else [self._expert(name)])]
        asked = [model for model in upstreams if isinstance(model, TritonModel)]
        questions = [data + service_pb2.ModelStatisticsRequest(name=model.name).SerializeToString() for model in asked]
        told = [await model.about("ModelStatistics", mine, headers) for model, mine in zip(asked, questions)]
        return b"".join(told)  # lists of one message are joined by joining the messages

    async def _index(self, data: bytes, headers: Headers) -> bytes:
        ready_only = messages.parse(service_pb2.RepositoryIndexRequest, data).ready
        up = {expert.name: expert.up for expert in self._dispatch.experts}
        up |= {ROUTER: any(up.values())} if self._routes else {}
        index = service_pb2.RepositoryIndexResponse()
        for name in self._models:
            if up[name] or not ready_only:
                index.models.add(name=name, version="1", state="READY" if up[name] else "UNAVAILABLE")
        return index.SerializeToString()


class _Kept(Unpaused):
    """A Reply of one piece."""

    answer = b""

    def piece(self, data: bytes, routed: Routed | None) -> None:
        self.answer = data + messages.mark(routed).SerializeToString() if routed else data
