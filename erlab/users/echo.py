"""A server that answers at a steady pace and stamps each answer with the time, so that its users can be measured.

    python -m erlab.users.echo 0.2 0.05    # seconds to the first token and between two; prints its address

Like an engine with in-flight batching it gives all streams of a model their tokens at the same moments, one every gap;
models differ in when. A response's text is its number, from 0, and two times.monotonic_ns() of this machine: when
the request arrived and when the response was handed to the socket. It relies on its users to take whatever is sent,
and ends when its stdin does; `erlab.users.selftest.Echo` starts and stops it.
"""

import asyncio
import sys
import time
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from erlab.http2 import Server
from erlab.http2.headers import Code
from erlab.http2.server import Call

_DIGITS = 20  # of a number, so that all responses of a model have the same size


@dataclass(eq=False)
class _Stream:
    call: Call
    ended: asyncio.Future
    left: int  # tokens
    arrived: int
    due: int  # ns, of the next token
    given: int = 0  # tokens


class _Model:
    """Gives its streams their tokens, all at the moments `phase` + n * `gap` ns."""

    def __init__(self, name: str, phase: int, gap: int):
        self._streams: dict[_Stream, None] = {}  # in the order in which they came
        self._phase, self._gap = phase, gap
        self._timer: asyncio.TimerHandle | None = None
        blank = b"#" * (3 * _DIGITS + 2)
        answer = service_pb2.ModelInferResponse(model_name=name, model_version="1")
        answer.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1])
        answer.raw_output_contents.append(serialize_byte_tensor(np.array([blank], dtype=object)).item())
        whole = service_pb2.ModelStreamInferResponse(infer_response=answer).SerializeToString()
        self._head, self._tail = whole.split(blank)

    async def answer(self, call: Call, tokens: int, arrived: int, due: int) -> None:
        """Give a call that arrived at this moment (monotonic ns) so many tokens, the first when it is due."""
        due += (self._phase - due) % self._gap
        stream = _Stream(call, asyncio.get_running_loop().create_future(), tokens, arrived, due)
        self._streams[stream] = None
        if self._timer is None:
            self._wait()
        try:
            await stream.ended
        finally:
            self._streams.pop(stream, None)

    def _wait(self) -> None:
        now = time.monotonic_ns()
        self._timer = asyncio.get_running_loop().call_later(((self._phase - now) % self._gap) / 1e9, self._tick)

    def _tick(self) -> None:
        moment = time.monotonic_ns()
        for stream in list(self._streams):
            # Timers may be early by a clock's tick; a late one gives what has become due.
            while stream.left and stream.due <= moment + 1_000_000:
                text = b" ".join(b"%0*d" % (_DIGITS, n) for n in (stream.given, stream.arrived, time.monotonic_ns()))
                stream.left -= 1
                stream.given += 1
                stream.due += self._gap
                stream.call.send(self._head + text + self._tail)
            if not stream.left and not stream.ended.done():
                stream.call.finish(Code.OK, "")  # with the last token, not a turn of the event loop later
                stream.ended.set_result(None)
        self._timer = None
        if self._streams:
            self._wait()


async def _answer(call: Call, models: dict[str, _Model], first: int, gap: int) -> None:
    data = await call.only()
    if not call.request.method.endswith("/ModelStreamInfer"):
        call.send(service_pb2.ServerLiveResponse(live=True).SerializeToString())
        return
    request = service_pb2.ModelInferRequest.FromString(data)
    names = [tensor.name for tensor in request.inputs]
    tokens = int(np.frombuffer(request.raw_input_contents[names.index("max_tokens")], np.int32)[0])
    name = request.model_name
    if name not in models:
        # The golden ratio's multiples spread over the gap, however many models there are.
        models[name] = _Model(name, int(len(models) * 0.6180339887 % 1 * gap), gap)
    await models[name].answer(call, tokens, call.arrived, call.arrived + first)


async def _serve(first: float, gap: float) -> None:
    loop, models = asyncio.get_running_loop(), {}
    pace = int(first * 1e9), int(gap * 1e9)
    server = Server(lambda call: _answer(call, models, *pace))
    print(f"127.0.0.1:{await server.listen('127.0.0.1', 0)}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until the parent is gone


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1]), float(sys.argv[2])))
