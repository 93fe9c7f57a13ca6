"""gRPC client over HTTP/2 for asyncio, made for thousands of streams in one process.

    async with Channel("127.0.0.1:8001") as channel:
        answer = await channel.unary("/test.Service/Ask", b"...", timeout=60)

        call = channel.begin("/test.Service/Talk", receiver, data=b"...")  # many responses
        await call.ended()                                                 # raises Failed, with gRPC's code

Messages are bytes. A response is pushed to the call's receiver when its bytes are read, with the time of the read:

    class Printed:
        paused = False                          # True: the server is held back, at most `window` bytes wait here
        def message(self, data: bytes, now: int): print(now, data)    # time.monotonic_ns()
        async def resumed(self): ...            # called when paused; returns when it no longer is

Without `data` a call sends the messages given to `call.send(message)` until `call.half_close()`. While `call.paused`,
`await call.resumed()`: the server accepts no more. `call.cancel()` ends the call. All writes within one turn of the
event loop are one system call.

A channel opens its one connection when a call needs it. Calls wait while the server accepts no more streams. A call is
sent again, whole and within its deadline, only if certainly no server has begun it: the stream was refused, the server
announced its end before it (GOAWAY), or nothing of it was written. Any other loss of the connection ends its calls with
UNAVAILABLE. A call is OK only after HTTP status 200, content type application/grpc, whole messages, and gRPC status 0
in the trailers.

Not supported: TLS, proxies, name resolution, load balancing, compressed messages, keepalive pings, a server. Frames are
RFC 9113's (`frames`, `connection`), header compression is the library hpack's (`headers`), calls are gRPC's (`calls`).
`channel` is the entry. tests/gateway/http2/test_rfc9113.py lists faults of servers and their outcomes.
"""

from erlab.gateway.wire.http2.channel import Channel
from erlab.gateway.wire.http2.headers import Failed

__all__ = ["Channel", "Failed"]
