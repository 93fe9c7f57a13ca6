"""A Triton server that is managed elsewhere.

    with ExternalTriton("127.0.0.1:8001", ["E-expert-0"]) as server:
        print("".join(kserve.generate(server.grpc, "E-expert-0", "What is a watt?", 16, timeout=30)))
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.serving.servers import ModelServer
from erlab.spec import require


class ExternalTriton(ModelServer):
    """A running Triton server, which is left running."""

    def __init__(self, address: str, models: Sequence[str], timeout: float = 120.0):
        require(len(models) > 0, "models", "ExternalTriton", "name at least one model", models)
        self.grpc, self.models, self._timeout = kserve.address(address), tuple(models), timeout

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self._timeout
        for model in self.models:
            probe(self.grpc, model, deadline)
        return self

    def __exit__(self, *_) -> None:
        pass

    def alive(self) -> bool:
        with grpc.insecure_channel(self.grpc, options=kserve.CHANNEL_OPTIONS) as channel, suppress(grpc.RpcError):
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=min(5, self._timeout)).live
        return False


def probe(address: str, model: str, deadline: float) -> None:
    """Request one token of a model; ErlabError where none comes before the deadline (`time.monotonic`)."""
    try:
        for _ in kserve.generate(address, model, "ready?", 1, max(deadline - time.monotonic(), 0.1)):
            pass
    except ErlabError as e:
        raise ErlabError(f"The Triton model does not answer: {e}") from None
