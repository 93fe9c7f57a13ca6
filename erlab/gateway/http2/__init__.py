"""A gRPC client over HTTP/2 for asyncio, for whoever relays or measures thousands of streams in one process.

    async with Channel("127.0.0.1:8001") as channel:
        answer = await channel.unary("/test.Service/Ask", b"...", timeout=60)

        call = channel.begin("/test.Service/Talk", receiver, data=b"...")  # many responses
        await call.ended()                                                 # raises Failed, with gRPC's code

Messages are bytes. A response is pushed to the call's receiver as soon as its bytes are read, with the time at which
they left the socket:

    class Printed:
        paused = False                          # True: the server is held back, at most `window` bytes wait here
        def message(self, data: bytes, now: int): print(now, data)    # time.monotonic_ns()
        async def resumed(self): ...            # called when paused; returns when it no longer is

Without `data` a call sends what is given to `call.send(message)` until `call.half_close()`; `call.paused` says when to
`await call.resumed()` because the server takes no more, and `call.cancel()` ends it. All that calls write in one turn
of the event loop is one system call.

A channel has one connection, made when a call needs it. Calls wait while the server takes no more streams. A call is
sent again, whole and within its time limit, only if it is certain that no server has begun it: the stream was refused,
the server went away before it (GOAWAY), or nothing of it was written. Any other end of a connection ends its calls with
UNAVAILABLE. An answer is checked before it counts as OK: HTTP status 200, content type application/grpc, whole
messages, gRPC status 0 in the trailers.

Not here: TLS, proxies, name resolution and load balancing, compressed messages, keepalive pings, a server. Frames
are RFC 9113's (`frames`, `connection`, `stream`), header compression is the library hpack's (`headers`), calls are
gRPC's (`client`). Servers may be faulty: tests/http2/test_rfc9113.py lists what they may do and what becomes of it.
"""

from erlab.gateway.http2.client import Channel
from erlab.gateway.http2.headers import Failed

__all__ = ["Channel", "Failed"]
