"""Protocols of the gateway: faces towards clients, upstreams towards experts, and the clients that dial out.

Faces, which call `erlab.gateway.core.Dispatcher`:

- `kserve_face` on `grpc_server`: KServe v2 over gRPC, on grpcio's server.
- `openai_face`: OpenAI-compatible HTTP, on aiohttp's server.

Upstreams, which implement `interface.Upstream`:

- `triton_upstream` on `http2`: Triton's KServe v2 over gRPC.
- `openai_upstream` on `http1`: OpenAI-compatible servers (vLLM, trtllm-serve, NIM).

Formats: `messages` (KServe), `openai` (OpenAI in terms of KServe), `answers` (complete and failed answers), `events`
(server-sent events).
"""
