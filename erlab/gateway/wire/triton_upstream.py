"""Upstream on a Triton server: KServe v2 over gRPC, whose responses are relayed as bytes."""

import struct
from contextlib import suppress

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from erlab.gateway import kserve as client
from erlab.gateway.core import Sink
from erlab.gateway.errors import Kind, RequestError
from erlab.gateway.wire import http2, messages, openai
from erlab.gateway.wire.answers import whole
from erlab.gateway.wire.interface import NO_HEADERS, Headers, Onward, Unpaused

SERVICE = "/inference.GRPCInferenceService"
STREAM, INFER = f"{SERVICE}/ModelStreamInfer", f"{SERVICE}/ModelInfer"
_RESPONSE = b"\x12"  # tag of infer_response in a ModelStreamInferResponse; the other field is error_message
_SIZE_BYTES = 5  # of the longest length in protobuf
_CLIENT_ERRORS = (Kind.INVALID_ARGUMENT, Kind.UNIMPLEMENTED, Kind.UNAUTHENTICATED, Kind.PERMISSION_DENIED)


class TritonModel:
    """Model of the Triton server behind a channel; an `interface.Upstream`. `key`: bearer token, not the client's."""

    def __init__(self, channel: http2.Channel, model: str, key: str | None = None):
        self._bearer = (("authorization", f"Bearer {key}"),) if key else ()
        self._channel, self._model, self._rename = channel, model, messages.rename(model)
        self.name = model
        self._known: tuple[frozenset[str], bool] | None = None

    async def kserve(self, request, data: bytes, headers: Headers, sink: Sink) -> None:
        # One request, many responses: on the wire the same as a stream of one request.
        answer = _Answer(sink)
        answer.call = self._channel.begin(STREAM, answer, self._with_key(headers), data=data + self._rename)
        sink.piece(b"")
        try:
            await answer.call.ended()
        except http2.Failed as e:
            raise answer.stopped or self._refused(e) from None
        whole(self._model, answer.answered)

    async def infer(self, request, data: bytes, headers: Headers) -> bytes:
        answer = await self._unary(INFER, data + self._rename, headers)
        try:
            whole(self._model, client.answers(service_pb2.ModelInferResponse.FromString(answer)))
        except DecodeError:
            raise _no_answer() from None
        return answer

    async def openai(self, kind: str, body: dict, sink: Sink) -> None:
        request = openai.to_kserve(kind, body, *await self._described())
        answer = openai.CompletionWriter(kind, body, self._model)
        await self.kserve(request, request.SerializeToString(), NO_HEADERS, _ToCompletion(answer, sink))
        sink.piece(answer.end())

    async def probe(self) -> None:
        data = client.request(self._model, "ping", 1).SerializeToString()
        with suppress(_Answered):
            await self.kserve(None, data, NO_HEADERS, _Probe())

    async def about(self, method: str, data: bytes, headers: Headers) -> bytes:
        """Return the server's response to `data`, a message of the unary `method`."""
        return await self._unary(f"{SERVICE}/{method}", data, headers)

    async def _described(self) -> tuple[frozenset[str], bool]:
        """Return the names of the model's inputs (Triton refuses others) and whether it is known to be greedy."""
        if self._known is None:
            about = service_pb2.ModelMetadataRequest(name=self._model).SerializeToString()
            data = await self._unary(f"{SERVICE}/ModelMetadata", about, NO_HEADERS)
            inputs = frozenset(i.name for i in service_pb2.ModelMetadataResponse.FromString(data).inputs)
            greedy = False
            with suppress(RequestError):  # servers may not tell configurations
                about = service_pb2.ModelConfigRequest(name=self._model).SerializeToString()
                data = await self._unary(f"{SERVICE}/ModelConfig", about, NO_HEADERS)
                parameters = service_pb2.ModelConfigResponse.FromString(data).config.parameters
                greedy = "greedy" in parameters and parameters["greedy"].string_value == "true"
            self._known = inputs, greedy
        return self._known

    async def _unary(self, method: str, data: bytes, headers: Headers) -> bytes:
        try:
            return await self._channel.unary(method, data, self._with_key(headers))
        except http2.Failed as e:
            raise self._refused(e) from None

    def _with_key(self, headers: Headers) -> Headers:
        if not self._bearer:
            return headers
        return (*(pair for pair in headers if pair[0] != "authorization"), *self._bearer)

    def _refused(self, error: http2.Failed) -> RequestError:
        name, details = error.code.name, f"{error.details} ({self._model})"
        if name not in Kind.__members__:
            return RequestError(Kind.UNKNOWN, f"{name}: {details}", retriable=True)
        return RequestError(Kind[name], details, retriable=Kind[name] not in _CLIENT_ERRORS)


class _Answer:
    """Receiver that checks a call's responses and pushes them to a sink.

    Attributes:
        stopped: Error that ended the call: the expert's, or one that the sink raised.
        answered: Whether a response carried text.
    """

    def __init__(self, sink: Sink):
        self._sink, self.stopped, self.answered = sink, None, False

    def message(self, data: bytes, now: int) -> None:
        try:
            if not self.answered or not _only_response(data):
                message = service_pb2.ModelStreamInferResponse.FromString(data)
                if message.error_message:
                    raise RequestError(Kind.UNKNOWN, message.error_message, retriable=True)
                self.answered = self.answered or client.answers(message.infer_response)
            self._sink.piece(data)
        except (DecodeError, struct.error):
            self._stop(_no_answer())
        except Exception as e:
            self._stop(e)

    def _stop(self, error: Exception) -> None:
        """Keep the error for the waiting task; raising it here would end the connection that reads frames."""
        self.stopped = error
        self.call.cancel()

    @property
    def paused(self) -> bool:
        return self._sink.paused

    async def resumed(self) -> None:
        await self._sink.resumed()


def _only_response(data: bytes) -> bool:
    """Whether a ModelStreamInferResponse holds only an infer_response; cheaper than decoding it."""
    if not data.startswith(_RESPONSE):
        return False
    size = 0
    for place, byte in enumerate(data[1 : 1 + _SIZE_BYTES]):
        size |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return 2 + place + size == len(data)
    return False


def _no_answer() -> RequestError:
    return RequestError(Kind.INTERNAL, "An expert sent a message that is no answer", retriable=True)


class _ToCompletion(Onward):
    """Sink that translates KServe responses into OpenAI's format."""

    def __init__(self, answer: openai.CompletionWriter, sink: Sink):
        super().__init__(sink)
        self._answer = answer

    def piece(self, data: bytes) -> None:
        response = service_pb2.ModelStreamInferResponse.FromString(data).infer_response
        self._sink.piece(self._answer.piece(client.content(response)))


class _Answered(Exception):
    """The probe has an answer."""


class _Probe(Unpaused):
    """Sink that accepts one piece."""

    def piece(self, data: bytes) -> None:
        if data:
            raise _Answered
