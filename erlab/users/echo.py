"""A server that answers at a steady pace and stamps each answer with the time, so that its users can be measured.

    python -m erlab.users.echo 0.2 0.05    # seconds to the first token and between two; prints its address

Like an engine with in-flight batching it gives all streams of a model their tokens at the same moments, one every gap;
models differ in when. A response's text is its number, from 0, and two times.monotonic_ns() of this machine: when
the request arrived and when the response was handed to the socket. It speaks as much gRPC as `erlab.users.wire` does, relies on its users to take
whatever is sent, and ends when its stdin does; `erlab.users.selftest.Echo` starts and stops it.
"""

import asyncio
import sys
import time
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from erlab.users import wire

_DIGITS = 20  # of a number, so that all responses of a model have the same size
_HEADERS = wire.block((":status", "200"), ("content-type", "application/grpc"))
_TRAILERS = wire.block(("grpc-status", "0"))


@dataclass(eq=False)
class _Stream:
    user: "_User"
    number: int
    left: int  # tokens
    arrived: int
    due: int  # ns, of the next token
    given: int = 0  # tokens


class _Model:
    """Gives its streams their tokens, all at the moments `phase` + n * `gap` ns."""

    def __init__(self, name: str, phase: int, gap: int):
        self.streams: dict[tuple["_User", int], _Stream] = {}
        self._phase, self._gap = phase, gap
        self._timer: asyncio.TimerHandle | None = None
        blank = b"#" * (3 * _DIGITS + 2)
        answer = service_pb2.ModelInferResponse(model_name=name, model_version="1")
        answer.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1])
        answer.raw_output_contents.append(serialize_byte_tensor(np.array([blank], dtype=object)).item())
        whole = wire.message(service_pb2.ModelStreamInferResponse(infer_response=answer).SerializeToString())
        self._head, self._tail = whole.split(blank)

    def add(self, stream: _Stream) -> None:
        stream.due += (self._phase - stream.due) % self._gap
        self.streams[stream.user, stream.number] = stream
        if self._timer is None:
            self._wait()

    def _wait(self) -> None:
        now = time.monotonic_ns()
        self._timer = asyncio.get_running_loop().call_later(((self._phase - now) % self._gap) / 1e9, self._tick)

    def _tick(self) -> None:
        moment = time.monotonic_ns()
        for key, stream in list(self.streams.items()):
            # Timers may be early by a clock's tick; a late one gives what has become due.
            while stream.left and stream.due <= moment + 1_000_000:
                text = b" ".join(b"%0*d" % (_DIGITS, n) for n in (stream.given, stream.arrived, time.monotonic_ns()))
                stream.left -= 1
                stream.given += 1
                stream.due += self._gap
                stream.user.write(wire.frame(wire.DATA, 0, stream.number, self._head + text + self._tail))
            if not stream.left:
                stream.user.end(stream.number)
                del self.streams[key]
        self._timer = None
        if self.streams:
            self._wait()


class _User(wire.Frames):
    """A connection of users."""

    def __init__(self, models: dict[str, _Model], first: int, gap: int):
        super().__init__()
        self._models, self._first, self._gap = models, first, gap
        self._greeting = len(wire.PREFACE)  # bytes of it still to come
        self._requests: dict[int, tuple[str, bytes]] = {}  # method and what has come of the message

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.open(b"")

    def connection_lost(self, exception: Exception | None) -> None:
        for model in self._models.values():
            for key in [key for key in model.streams if key[0] is self]:
                del model.streams[key]

    def data_received(self, data: bytes) -> None:
        skipped = min(self._greeting, len(data))
        self._greeting -= skipped
        super().data_received(data[skipped:])

    def on_headers(self, stream: int, headers: dict[str, str], ends: bool) -> None:
        self._requests[stream] = (headers[":path"], b"")

    def on_data(self, stream: int, data: bytes, ends: bool, now: int) -> None:
        method, before = self._requests[stream]
        self._requests[stream] = (method, before + data)
        if not ends:
            return
        data = self._requests.pop(stream)[1][5:]
        self.write(wire.frame(wire.HEADERS, wire.END_HEADERS, stream, _HEADERS))
        if not method.endswith("/ModelStreamInfer"):
            live = service_pb2.ServerLiveResponse(live=True).SerializeToString()
            self.write(wire.frame(wire.DATA, 0, stream, wire.message(live)))
            self.end(stream)
            return
        request = service_pb2.ModelInferRequest.FromString(data)
        names = [tensor.name for tensor in request.inputs]
        tokens = int(np.frombuffer(request.raw_input_contents[names.index("max_tokens")], np.int32)[0])
        name = request.model_name
        if name not in self._models:
            # The golden ratio's multiples spread over the gap, however many models there are.
            self._models[name] = _Model(name, int(len(self._models) * 0.6180339887 % 1 * self._gap), self._gap)
        self._models[name].add(_Stream(self, stream, tokens, now, now + self._first))

    def on_reset(self, stream: int, code: int) -> None:
        for model in self._models.values():
            model.streams.pop((self, stream), None)

    def end(self, stream: int) -> None:
        self.write(wire.frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, stream, _TRAILERS))


async def _serve(first: float, gap: float) -> None:
    loop, models = asyncio.get_running_loop(), {}
    pace = int(first * 1e9), int(gap * 1e9)
    server = await loop.create_server(lambda: _User(models, *pace), "127.0.0.1", 0, backlog=1024)
    print("127.0.0.1:{}".format(server.sockets[0].getsockname()[1]), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until the parent is gone


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1]), float(sys.argv[2])))
