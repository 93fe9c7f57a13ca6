"""A server that answers at a steady pace and stamps each answer with the time, so that its users can be measured.

    python -m erlab.users.echo 0.2 0.05    # seconds to the first token and between two; prints its address

Like an engine with in-flight batching it gives all streams of a model their tokens at the same moments, one every `gap`
seconds; models differ in when. A response's text is two times.monotonic_ns() of this machine: when the request arrived
and when the response was handed to gRPC. It ends when its stdin does; `erlab.users.selftest.Echo` starts and stops it.
"""

import asyncio
import sys
import time

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from erlab.triton import client

_DIGITS = 20  # of a stamp, so that all responses of a model have the same size


class _Service(grpc.GenericRpcHandler):
    def __init__(self, first: float, gap: float):
        self._first, self._gap = int(first * 1e9), int(gap * 1e9)
        self._models: dict[str, tuple[int, list[bytes]]] = {}  # when it ticks, ns within a gap; a response's parts

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method.endswith("/ModelStreamInfer"):
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if details.method.endswith("/ServerLive"):
            return grpc.unary_unary_rpc_method_handler(self._live)
        return None

    async def _live(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return service_pb2.ServerLiveResponse(live=True).SerializeToString()

    async def _stream(self, requests, context: grpc.aio.ServicerContext) -> None:
        async for data in requests:
            arrived = time.monotonic_ns()
            request = service_pb2.ModelInferRequest.FromString(data)
            names = [tensor.name for tensor in request.inputs]
            tokens = int(np.frombuffer(request.raw_input_contents[names.index("max_tokens")], np.int32)[0])
            phase, (head, tail) = self._model(request.model_name)
            due = arrived + self._first
            due += (phase - due) % self._gap  # the next of the model's moments
            for _ in range(tokens):
                if (early := due - time.monotonic_ns()) > 0:
                    await asyncio.sleep(early / 1e9)
                await context.write(head + b"%0*d %0*d" % (_DIGITS, arrived, _DIGITS, time.monotonic_ns()) + tail)
                due += self._gap

    def _model(self, name: str) -> tuple[int, list[bytes]]:
        if name not in self._models:
            blank = b"#" * (2 * _DIGITS + 1)
            answer = service_pb2.ModelInferResponse(model_name=name, model_version="1")
            answer.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1])
            answer.raw_output_contents.append(serialize_byte_tensor(np.array([blank], dtype=object)).item())
            whole = service_pb2.ModelStreamInferResponse(infer_response=answer).SerializeToString()
            # The golden ratio's multiples spread over the gap, however many models there are.
            phase = int(len(self._models) * 0.6180339887 % 1 * self._gap)
            self._models[name] = phase, whole.split(blank)
        return self._models[name]


async def _serve(first: float, gap: float) -> None:
    server = grpc.aio.server(options=client.CHANNEL_OPTIONS)
    server.add_generic_rpc_handlers([_Service(first, gap)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the parent is gone
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1]), float(sys.argv[2])))
