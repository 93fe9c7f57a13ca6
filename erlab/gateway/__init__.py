"""The routing gateway: to any KServe v2 client a Triton server, to any OpenAI client a server of its kind, with one
more model: `router`.

| where | what does it | why |
|---|---|---|
| the gRPC door (`door`) | grpcio's server, on uvloop | strangers knock on what thousands of people maintain |
| the HTTP door (`web`) | aiohttp's server; pieces go past its response to the connection | the same |
| the core (`decide`, `dispatch`, `expert`) | asyncio without a transport | a request's way, read in one sitting |
| to Triton (`triton`) | our HTTP/2 client | messages stay bytes; a turn of the loop is one system call |
| to HTTP servers (`endpoint`) | our HTTP/1.1 client on llhttp | pieces are pushed on where they arrive |

A piece of an answer passes without being decoded again and without a task or a generator of its own: it is pushed from
the client that received it through the dispatcher to the door. The gRPC door writes it from the call's own task, one
write at a time, since that is what grpcio takes; there most of a response's CPU time is spent in grpcio.

Benchmarks measure it, each beside something that runs in the same minutes: tests/benchmarks/test_gateway_grpc.py a
response and a request beside a bare relay of grpcio, test_gateway.py an event over HTTP beside SGLang's router and
LiteLLM, test_gateway_memory.py the size of the process. Step 05 of the study measures the added time up to 1,000 users.
"""

from erlab.gateway.limits import Limits
from erlab.gateway.process import Gateway

__all__ = ["Gateway", "Limits"]
