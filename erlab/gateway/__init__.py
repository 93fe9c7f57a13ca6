"""The routing gateway: to any KServe v2 client a Triton server, to any OpenAI client a server of its kind, with one
more model: `router`.

Where the CPU time of a relayed response goes (medians of four alternating repeats in one run on two busy cores, 20
streams, a response every 20 ms each; ratios hold better than microseconds; the benchmarks measure anew):

| OpenAI face, HTTP expert | us | what it is |
|---|---|---|
| SGLang's router 0.3.2 (Rust) | 30 | the target |
| a relay of bare bytes in asyncio, in uvloop | 23, 16 | receive, send, a turn of the loop: the least Python can do |
| ours | 30 | on uvloop |
| … on asyncio's loop | 32 | |
| … through aiohttp's client and response, a task woken for each piece | 54 | as it was |

So it needs as much as SGLang's router: that one's cost over ours was 0.98 in this run's median (0.94 to 1.18), 0.96 and
1.07 in two others. An expert's pieces are pushed from the HTTP/1.1 client (`http1`) through the dispatcher into the
client's connection, past aiohttp's response, without a task or a generator between. By samples, half of what is left
are the two system calls, and a quarter is our own Python: parsing, signs of life, framing, whether the client keeps up.
A request adds 0.3 ms (SGLang's router: 0.2).

On the gRPC face (one run on two busy cores, three rounds that took turns, the least of each; an echo behind it gives
all users a response at the same moments, one every 20 ms; requests have one token):

| gRPC face, Triton's protocol behind it | us a response, 20 users | 200 users | us a request | what it is |
|---|---|---|---|---|
| a relay of bytes by grpc.aio | 80 | 50 | 463 | no decision, no count: the least that grpc.aio can do |
| the gateway as it was, on grpc.aio | 96 | 67 | 771 | half of it two system calls a response |
| the gateway on `erlab.http2` | 16 | 7 | 156 | what comes in one turn of the loop goes out in one call |

One user's responses come alone, each to a process that slept: 210 us (520 to 710 on grpc.aio), nearly all of it
waking up. Of a request's 156 us 60 were its decision, which takes 25 (of a wave) to 70 (alone) since its words are
counted faster; after a pause of 0.1 s that alone takes about 400.
"""

from erlab.gateway.limits import Limits
from erlab.gateway.process import Gateway

__all__ = ["Gateway", "Limits"]
