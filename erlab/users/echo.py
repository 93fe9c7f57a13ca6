"""Echo server: answers at a steady pace with time stamps, to measure the latency of its users.

    python -m erlab.users.echo 0.2 0.05 60    # time to first token, time per output token, users' deadline; seconds

As an engine with in-flight batching does, it sends all streams of a model their tokens at the same moments, one per
gap; models are out of phase. A response's text is its number, from 0, and two time.monotonic_ns() of this machine: when
the request arrived and when the response was handed to grpcio.

The server is grpcio's on asyncio, which accepts requests one by one, so those of a burst wait. That wait is not the
users': it follows from their deadline, which grpcio counts from when it read a request's headers. The process prints
its address and, after its stdin has closed, one line of JSON with percentiles of that wait (`wait_p50`, `wait_p99`,
ms). `erlab.users.selftest.Echo` starts and stops it.
"""

import asyncio
import json
import sys
import time
from asyncio import Future

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

try:
    from uvloop import new_event_loop
except ImportError:  # it isn't made for every platform
    from asyncio import new_event_loop

_DIGITS = 20  # per number, so that all responses of a model have the same size
_CLOCK_NS = 2_000_000  # resolution of grpcio's deadlines; a shorter wait counts as none
_WAITING = 100_000  # calls that may wait to be accepted; grpcio's default refuses some of a burst of 1,000
_OPTIONS = [("grpc.so_reuseport", 0), ("grpc.http2.bdp_probe", 0)]
_OPTIONS += [(f"grpc.server.max_pending_requests{limit}", _WAITING) for limit in ("", "_hard_limit")]


class _Model:
    """A model whose streams get their tokens at the moments `phase` + n * `gap` ns."""

    def __init__(self, name: str, phase: int, gap: int):
        self._phase, self._gap = phase, gap
        self._moments: dict[int, Future[None]] = {}  # in the future
        blank = b"#" * (3 * _DIGITS + 2)
        answer = service_pb2.ModelInferResponse(model_name=name, model_version="1")
        answer.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1])
        answer.raw_output_contents.append(serialize_byte_tensor(np.array([blank], dtype=object)).item())
        whole = service_pb2.ModelStreamInferResponse(infer_response=answer).SerializeToString()
        self._head, self._tail = whole.split(blank)

    async def answer(self, context: grpc.aio.ServicerContext, tokens: int, arrived: int, due: int) -> None:
        """Send `tokens` responses to a call, the first when it is due (`arrived`, `due`: monotonic ns)."""
        moment = -((self._phase - due) // self._gap)
        for number in range(tokens):
            await self._until(moment + number)
            text = b" ".join(b"%0*d" % (_DIGITS, n) for n in (number, arrived, time.monotonic_ns()))
            await context.write(self._head + text + self._tail)

    async def _until(self, moment: int) -> None:
        """Wait for the model's moment of this number."""
        if moment not in self._moments:
            wait = self._phase + moment * self._gap - time.monotonic_ns()
            if wait <= 0:
                return
            loop = asyncio.get_running_loop()
            self._moments[moment] = loop.create_future()
            loop.call_later(wait / 1e9, lambda: self._moments.pop(moment).set_result(None))
        await asyncio.shield(self._moments[moment])  # shared with other streams


class _Service(grpc.GenericRpcHandler):
    """Service; `first`, `gap`: time to first token and per output token, ns; `patience`: users' deadline, s."""

    def __init__(self, first: int, gap: int, patience: float):
        self._first, self._gap, self._patience = first, gap, patience
        self._models: dict[str, _Model] = {}
        self.waits: list[int] = []  # ns

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        if details.method.endswith("/ModelStreamInfer"):
            return grpc.unary_stream_rpc_method_handler(self._answer)
        return grpc.unary_unary_rpc_method_handler(self._live)

    async def _live(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return service_pb2.ServerLiveResponse(live=True).SerializeToString()

    async def _answer(self, data: bytes, context: grpc.aio.ServicerContext) -> None:
        wait = self._wait(context.time_remaining())
        self.waits.append(wait)
        arrived = time.monotonic_ns() - wait
        request = service_pb2.ModelInferRequest.FromString(data)
        names = [tensor.name for tensor in request.inputs]
        tokens = int(np.frombuffer(request.raw_input_contents[names.index("max_tokens")], np.int32)[0])
        name = request.model_name
        if name not in self._models:
            # Multiples of the golden ratio spread evenly over the gap for any number of models.
            phase = int(len(self._models) * 0.6180339887 % 1 * self._gap)
            self._models[name] = _Model(name, phase, self._gap)
        await self._models[name].answer(context, tokens, arrived, arrived + self._first)

    def _wait(self, remaining: float | None) -> int:
        """Return how long a call has waited here, ns, from the rest of its deadline, s."""
        wait = 0 if remaining is None else int((self._patience - remaining) * 1e9)
        return wait if wait > _CLOCK_NS else 0


async def _serve(first: float, gap: float, patience: float) -> None:
    service = _Service(int(first * 1e9), int(gap * 1e9), patience)
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers([service])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the parent ends
    await server.stop(None)
    p50, p99 = np.percentile(service.waits or [0], [50, 99]) / 1e6
    print(json.dumps({"wait_p50": round(p50, 4), "wait_p99": round(p99, 4)}), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(*map(float, sys.argv[1:])))
