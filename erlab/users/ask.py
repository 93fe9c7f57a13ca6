"""One prompt to a running server: the answer, and where it went."""

import json
import struct
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from tritonclient.grpc import service_pb2_grpc

from erlab.errors import ErlabError, reason
from erlab.gateway import kserve

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # addresses are used as given


@dataclass(frozen=True)
class Answer:
    """Answer to one prompt.

    Attributes:
        text: Text of the answer.
        model: Model that was asked.
        expert: Expert that answered; None where the server does not say, like the next three.
        cluster: Cluster of the prompt.
        margin: Distance to the next cluster beyond that to the nearest.
        policy: Routing policy.
    """

    text: str
    model: str
    expert: str | None = None
    cluster: int | None = None
    margin: float | None = None
    policy: str | None = None

    def __str__(self) -> str:
        return self.text


def ask(prompt: str, address: str, model: str = "router", max_tokens: int = 64, timeout: float = 60.0) -> Answer:
    """Send one prompt to a running server or gateway.

    Args:
        prompt: Text.
        address: HOST:PORT of a KServe v2 gRPC server, or http://HOST:PORT of an OpenAI-compatible one.
        model: Model to ask.
        max_tokens: Most tokens of the answer.
        timeout: Deadline of the whole answer, seconds.

    Raises:
        ErlabError: The server cannot be reached, refuses, or does not answer in time.

    >>> from erlab.users.selftest import Echo
    >>> with Echo(first=0.01, gap=0.001) as server:
    ...     answer = ask("What is a watt?", server.address, model="m", max_tokens=3)
    >>> len(answer.text.split()), answer.expert
    (7, None)
    """
    how = _http if address.startswith(("http://", "https://")) else _grpc
    text, told = how(prompt, address, model, max_tokens, timeout)
    kinds = {"expert": str, "cluster": int, "margin": float, "policy": str}
    try:
        return Answer(text, model, **{name: kind(told[name]) for name, kind in kinds.items() if name in told})
    except (TypeError, ValueError) as e:
        raise ErlabError(f"{model} at {address}: sent an unreadable decision ({reason(e)})") from None


def _grpc(prompt: str, address: str, model: str, max_tokens: int, timeout: float) -> tuple[str, Mapping]:
    pieces, told = [], {}
    with grpc.insecure_channel(kserve.address(address), options=kserve.CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            for response in stub.ModelStreamInfer(iter([kserve.request(model, prompt, max_tokens)]), timeout=timeout):
                if response.error_message:
                    raise ErlabError(f"{model} at {address}: {response.error_message}")
                pieces.append(kserve.content(response.infer_response))
                for name, value in response.infer_response.parameters.items():
                    if kind := value.WhichOneof("parameter_choice"):
                        told[name.removeprefix("erlab_")] = getattr(value, kind)
        except struct.error:
            raise ErlabError(f"{model} at {address}: sent a text whose length is not that of its bytes") from None
        except grpc.RpcError as e:
            raise ErlabError(f"{model} at {address}: {e.code().name}: {e.details()}") from None
    return b"".join(pieces).decode(errors="replace"), told


def _http(prompt: str, address: str, model: str, max_tokens: int, timeout: float) -> tuple[str, Mapping]:
    body = {"model": model, "max_tokens": max_tokens, "messages": [{"role": "user", "content": prompt}]}
    url = f"{address.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with _OPENER.open(request, timeout=timeout) as response:
            headers = {name.lower().removeprefix("x-erlab-"): value for name, value in response.headers.items()}
            return json.load(response)["choices"][0]["message"]["content"] or "", headers
    except urllib.error.HTTPError as e:
        raise ErlabError(f"{model} at {address}: {e.code}: {e.read(1000).decode(errors='replace')}") from None
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise ErlabError(f"{model} at {address}: no answer ({reason(e)})") from None
