"""The routing gateway: to any KServe v2 client a Triton server, to any OpenAI client a server of its kind, with one
more model: `router`.

Where the CPU time of a relayed response goes (medians of four alternating repeats in one run on two busy cores, 20
streams, a response every 20 ms each; ratios hold better than microseconds; the benchmarks measure anew):

| OpenAI face, HTTP expert | us | what it is |
|---|---|---|
| SGLang's router 0.3.2 (Rust) | 30 | the target |
| a relay of bare bytes in asyncio, in uvloop | 23, 16 | receive, send, a turn of the loop: the least that Python can do |
| ours | 30 | on uvloop |
| … on asyncio's loop | 32 | |
| … through aiohttp's client and response, a task woken for each piece | 54 | as it was |

So it needs as much as SGLang's router: that one's cost over ours was 0.98 in this run's median (0.94 to 1.18), 0.96 and
1.07 in two others. An expert's pieces are pushed from the HTTP/1.1 client (`http1`) through the dispatcher into the
client's connection, past aiohttp's response, without a task or a generator between. By samples, half of what is left
are the two system calls, and a quarter is our own Python: parsing, signs of life, framing, whether the client keeps up.
A request adds 0.3 ms (SGLang's router: 0.2).

On the gRPC face a response costs 100 to 140 us, nearly all within grpc.aio: half of it are two system calls a
response, one to send it alone, one to wake the thread that polls; the side of the clients takes three times that of
the expert. HTTP/2 frames relayed as they are on both sides (the users' own client, `erlab.users.wire`, needs 13 to
24 us a response) would change that; on the expert's side alone they would save a quarter at most.
"""

from erlab.gateway.limits import Limits
from erlab.gateway.process import Gateway

__all__ = ["Gateway", "Limits"]
