"""A KServe v2 gRPC server without Triton, whose models are async generators: what a test wants to happen, happens.

    with FakeTriton({"expert_0": obedient}) as fake:
        stream(grpc.insecure_channel(fake.address), request)

It runs in a thread of its own event loop and counts what it sees: requests in flight, cancelled ones, raw bytes.
"""

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable

import grpc
import numpy as np
from in_thread import InThread
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import serialize_byte_tensor

from erlab.prompts.workload import Request

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
KITCHEN = ["boil the pasta", "salt the pasta water", "fry an egg in butter", "boil an egg", "butter the pasta"]
COURT = ["sue the landlord", "landlord and tenant law", "appeal to the court", "court and law", "the tenant sues"]
Model = Callable[[service_pb2.ModelInferRequest], AsyncIterator[str]]


class ModelError(Exception):
    """Raised in a model: answered as Triton does, by an `error_message`."""


class Abort(Exception):
    """Raised in a model: the stream ends with UNAVAILABLE, as when the server goes away."""


def words(request: service_pb2.ModelInferRequest) -> list[str]:
    """The words of the request's text_input."""
    names = [tensor.name for tensor in request.inputs]
    return request.raw_input_contents[names.index("text_input")][4:].decode().split()


async def echo(request):
    for word in words(request):
        yield word


async def count(request):
    """As many responses as max_tokens asks for."""
    names = [tensor.name for tensor in request.inputs]
    for i in range(int(np.frombuffer(request.raw_input_contents[names.index("max_tokens")], np.int32)[0])):
        yield str(i)


GATES = defaultdict(asyncio.Event)


async def obedient(request):
    """What the prompt's first word says; otherwise its words come back."""
    match words(request):
        case ["fail", *_]:
            raise ModelError("out of memory")
        case ["abort", *_]:
            raise Abort("connection reset")
        case ["nothing", *_]:
            return
        case ["half", *_]:
            yield "half"
            raise Abort("connection reset")
        case ["hang", *_]:
            yield "hang"
            await asyncio.Event().wait()
        case ["wait", gate, *_]:
            await GATES[gate].wait()
            yield "late"
        case ["open", gate, *_]:
            yield "early"
            GATES[gate].set()
        case some:
            for word in some:
                yield word


def text_response(request: service_pb2.ModelInferRequest, text: str) -> bytes:
    answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    answer.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1])
    answer.raw_output_contents.append(serialize_byte_tensor(np.array([text.encode()], dtype=object)).item())
    return service_pb2.ModelStreamInferResponse(infer_response=answer).SerializeToString()


class FakeTriton(InThread, grpc.GenericRpcHandler):
    """`models`: name -> async generator of texts. `port` 0 is chosen by the system."""

    def __init__(self, models: dict[str, Model], port: int = 0):
        self.models = models
        self.in_flight, self.most_in_flight = Counter(), Counter()
        self.cancelled = Counter()
        self.received: list[bytes] = []
        self.sent: list[bytes] = []
        self.metadata: list[dict] = []
        self._port = port

    async def _serve(self, up: threading.Event):
        self.changed = asyncio.Condition()
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers([self])
        port = server.add_insecure_port(f"127.0.0.1:{self._port}")
        await server.start()
        self.address = f"127.0.0.1:{port}"
        up.set()
        await self._stop.wait()
        await server.stop(None)

    def wait(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        """Block the calling thread until `condition()`, looked at whenever a request begins or ends."""

        async def until():
            async with self.changed:
                await asyncio.wait_for(self.changed.wait_for(condition), timeout)

        asyncio.run_coroutine_threadsafe(until(), self.loop).result(timeout + 5)

    async def _tell(self):
        async with self.changed:
            self.changed.notify_all()

    def service(self, details):
        name = details.method.rpartition("/")[2]
        if name == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if hasattr(self, f"_{name}"):
            return grpc.unary_unary_rpc_method_handler(getattr(self, f"_{name}"))
        return None

    async def _stream(self, requests, context):
        self.metadata.append(dict(context.invocation_metadata()))
        lock = asyncio.Lock()
        async with asyncio.TaskGroup() as tasks:
            async for data in requests:
                tasks.create_task(self._answer(data, context, lock))

    async def _answer(self, data: bytes, context, lock: asyncio.Lock):
        async def send(response: bytes):
            async with lock:
                self.sent.append(response)
                await context.write(response)

        self.received.append(data)
        request = service_pb2.ModelInferRequest.FromString(data)
        name = request.model_name
        self.in_flight[name] += 1
        self.most_in_flight[name] = max(self.most_in_flight[name], self.in_flight[name])
        self.most_in_flight[None] = max(self.most_in_flight[None], self.in_flight.total())
        await self._tell()
        try:
            if name not in self.models:
                raise ModelError(f"Request for unknown model: '{name}' is not found")
            async for text in self.models[name](request):
                await send(text_response(request, text))
        except ModelError as e:
            await send(service_pb2.ModelStreamInferResponse(error_message=str(e)).SerializeToString())
        except Abort as e:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(e))
        except asyncio.CancelledError:
            self.cancelled[name] += 1
            raise
        finally:
            self.in_flight[name] -= 1
            await asyncio.shield(self._tell())

    async def _ServerLive(self, data, context):
        return service_pb2.ServerLiveResponse(live=True).SerializeToString()

    async def _ServerReady(self, data, context):
        return service_pb2.ServerReadyResponse(ready=True).SerializeToString()

    async def _ModelReady(self, data, context):
        name = service_pb2.ModelReadyRequest.FromString(data).name
        return service_pb2.ModelReadyResponse(ready=name in self.models).SerializeToString()

    async def _ModelMetadata(self, data, context):
        name = service_pb2.ModelMetadataRequest.FromString(data).name
        if name not in self.models:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
        return service_pb2.ModelMetadataResponse(name=name, versions=["1"], platform="python").SerializeToString()

    async def _ModelConfig(self, data, context):
        name = service_pb2.ModelConfigRequest.FromString(data).name
        config = model_config_pb2.ModelConfig(name=name, backend="python", max_batch_size=1)
        return service_pb2.ModelConfigResponse(config=config).SerializeToString()

    async def _ModelInfer(self, data, context):
        self.received.append(data)
        request = service_pb2.ModelInferRequest.FromString(data)
        if request.model_name not in self.models:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.model_name}'")
        whole = " ".join([text async for text in self.models[request.model_name](request)])
        answer = service_pb2.ModelStreamInferResponse.FromString(text_response(request, whole))
        return answer.infer_response.SerializeToString()


def stream(channel: grpc.Channel, *requests: bytes, timeout: float = 30, metadata=None) -> list[bytes]:
    """The bytes of all responses to requests sent on one stream."""
    return list(channel.stream_stream(STREAM)(iter(requests), timeout=timeout, metadata=metadata))


def decoded(responses: list[bytes]) -> list[service_pb2.ModelStreamInferResponse]:
    return [service_pb2.ModelStreamInferResponse.FromString(response) for response in responses]


def plan(*texts: str, users: int = 1) -> list[list[Request]]:
    """Each of `users` users asks all the texts in turn."""
    return [[Request(f"{u}-{t}", "d", text, len(text), 9) for t, text in enumerate(texts)] for u in range(users)]
