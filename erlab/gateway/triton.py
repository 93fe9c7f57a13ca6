"""An expert on a Triton server: asked in KServe v2 over gRPC, its responses relayed as the bytes they are."""

from contextlib import suppress

import grpc
from tritonclient.grpc import service_pb2

from erlab.gateway import messages, openai
from erlab.gateway.expert import Headers, Onward, Sink, Unpaused
from erlab.gateway.limits import Refused
from erlab.triton import client

SERVICE = "/inference.GRPCInferenceService"
STREAM, INFER = f"{SERVICE}/ModelStreamInfer", f"{SERVICE}/ModelInfer"
# A server that comes back is found within a second, not after gRPC's own two minutes.
CHANNEL_OPTIONS = (
    *client.CHANNEL_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_ERROR = b"\n"  # how a ModelStreamInferResponse with an error_message begins: field 1, a string
_CODE = grpc.StatusCode
_OWN_FAULT = (_CODE.INVALID_ARGUMENT, _CODE.UNIMPLEMENTED, _CODE.UNAUTHENTICATED, _CODE.PERMISSION_DENIED)


class TritonModel:
    """The model `model` of the server behind `channel`; an `expert.Upstream`."""

    def __init__(self, channel: grpc.aio.Channel, model: str):
        self._channel, self._model, self._rename = channel, model, messages.rename(model)
        # One message out, many back: on the wire the same as a stream of one request, and cheaper to open.
        self._stream, self._infer = channel.unary_stream(STREAM), channel.unary_unary(INFER)
        self._inputs: frozenset[str] = frozenset()

    async def kserve(self, request, data: bytes, headers: Headers, sink: Sink) -> None:
        call = self._stream(data + self._rename, metadata=headers)
        try:
            sink.piece(b"")
            async for response in call:
                if response.startswith(_ERROR):
                    message = service_pb2.ModelStreamInferResponse.FromString(response).error_message
                    raise Refused(_CODE.UNKNOWN, message, again=True)
                sink.piece(response)
                if sink.paused:
                    await sink.resumed()
        except grpc.aio.AioRpcError as e:
            raise self._refused(e) from None
        finally:
            call.cancel()

    async def infer(self, request, data: bytes, headers: Headers) -> bytes:
        try:
            return await self._infer(data + self._rename, metadata=headers)
        except grpc.aio.AioRpcError as e:
            raise self._refused(e) from None

    async def openai(self, kind: str, body: dict, sink: Sink) -> None:
        request = openai.to_kserve(kind, body, await self._declared())
        answer = openai.Answer(kind, body)
        await self.kserve(request, request.SerializeToString(), None, _Translated(answer, sink))
        sink.piece(answer.end())

    async def probe(self) -> None:
        data = client.request(self._model, "ping", 1).SerializeToString()
        with suppress(_Answered):
            await self.kserve(None, data, None, _Probe())

    async def _declared(self) -> frozenset[str]:
        """The names of the model's inputs; Triton refuses others."""
        if not self._inputs:
            about = service_pb2.ModelMetadataRequest(name=self._model).SerializeToString()
            try:
                data = await self._channel.unary_unary(f"{SERVICE}/ModelMetadata")(about)
            except grpc.aio.AioRpcError as e:
                raise self._refused(e) from None
            self._inputs = frozenset(i.name for i in service_pb2.ModelMetadataResponse.FromString(data).inputs)
        return self._inputs

    def _refused(self, error: grpc.aio.AioRpcError) -> Refused:
        return Refused(error.code(), f"{error.details()} ({self._model})", again=error.code() not in _OWN_FAULT)


class _Translated(Onward):
    """KServe's responses on their way into OpenAI's form."""

    def __init__(self, answer: openai.Answer, sink: Sink):
        super().__init__(sink)
        self._answer = answer

    def piece(self, data: bytes) -> None:
        response = service_pb2.ModelStreamInferResponse.FromString(data).infer_response
        self._sink.piece(self._answer.piece(client.text(response)))


class _Answered(Exception):
    """The probe has its answer."""


class _Probe(Unpaused):
    """Wants one piece."""

    def piece(self, data: bytes) -> None:
        if data:
            raise _Answered
