"""Routing gateway: one more model, `router`, in front of the experts' servers.

KServe v2 clients see a Triton server, OpenAI clients an OpenAI-compatible server. `core` is the paper's gateway and
names no transport; `wire` holds the protocols around it.

| part | implementation | reason |
|---|---|---|
| gRPC face (`wire.kserve_face` on `wire.grpc_server`) | grpcio's server | untrusted clients meet widely used code |
| HTTP face (`wire.openai_face`) | aiohttp's server | the same |
| core (`core`, `classify`, `health`) | asyncio | no transport |
| to Triton (`wire.triton_upstream`) | own HTTP/2 client (`wire.http2`) | messages stay bytes; batched system calls |
| to HTTP servers (`wire.openai_upstream`) | own HTTP/1.1 client (`wire.http1`) | pieces are pushed on as they arrive |

A piece of an answer is pushed from the client that received it through the core to the face: it is not decoded again,
and no task or generator wakes for it. The gRPC face writes pieces from the call's own task, one write at a time, as
grpcio requires.

Benchmarks compare it with a bare grpcio relay (tests/benchmarks/test_gateway_grpc.py) and with SGLang's router and
LiteLLM (test_gateway.py), and measure its memory (test_gateway_memory.py). Step 05 of the study measures the latency it
adds up to 1,000 users.
"""

from erlab.gateway.limits import Limits
from erlab.gateway.process import Gateway

__all__ = ["Gateway", "Limits"]
