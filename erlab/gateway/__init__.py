"""Routing gateway: one more model, `router`, in front of the experts' servers.

KServe v2 clients see a Triton server, OpenAI clients an OpenAI-compatible server. `core` is the paper's gateway and
names no transport; `wire` holds the protocols around it. `fleet` describes a gateway, `prepare` trains its router and
checks its experts, `process` runs it in processes of its own, and `deploy` prints what other machines need.

| part | implementation | reason |
|---|---|---|
| gRPC face (`wire.kserve_face` on `wire.grpc_server`) | grpcio's server | widely used code for untrusted clients |
| HTTP face (`wire.openai_face`) | aiohttp's server | widely used code for untrusted clients |
| core (`core`, `classify`, `health`) | asyncio | independent of protocols |
| Triton upstream (`wire.triton_upstream`) | own HTTP/2 client (`wire.http2`) | undecoded messages, few system calls |
| HTTP upstream (`wire.openai_upstream`) | own HTTP/1.1 client (`wire.http1`) | forwards chunks as they arrive |

The client that receives a chunk of an answer passes it through the core to the face by function calls: it is not
decoded again, and no task or generator is scheduled for it. The gRPC face writes chunks from the call's own task, one
write at a time, as grpcio requires.

Benchmarks compare it with a bare grpcio relay (tests/benchmarks/test_gateway_grpc.py) and with SGLang's router and
LiteLLM (test_gateway.py), and measure its memory (test_gateway_memory.py). Step 05 of the study measures the latency it
adds up to 1,000 users.
"""

from erlab.gateway.limits import Limits
from erlab.gateway.process import Gateway

__all__ = ["Gateway", "Limits"]
