"""The routing gateway: to any KServe v2 client a Triton server, to any OpenAI client a server of its kind, with one
more model: `router`.

Where the CPU time of a relayed response goes (one run on two busy cores, 20 streams, a response every 20 ms each;
ratios hold better than microseconds; the benchmarks measure anew):

| OpenAI face, HTTP expert | us | what it is |
|---|---|---|
| SGLang's router 0.3.2 (Rust) | 26 | the target |
| a relay of bare bytes in asyncio | 21 | receive, send, a turn of the loop for each: the least that Python can do |
| ours | 52 | 0.5 x the target |
| … with an HTTP/1.1 client of our own and chunks framed by hand | 38 | aiohttp's part is 14 |
| … that also pushes each piece on where it arrives | 29 | waking a task and its generators is 9 |

The last two were tried and not kept: as fast as SGLang's router (0.97 to 1.13 x) only with an HTTP client of our own
and writes that go past aiohttp's response. uvloop takes 4 us off the bare relay and nothing that showed off the rest.

On the gRPC face a response costs 100 to 140 us, nearly all within grpc.aio: half of it are two system calls a
response, one to send it alone, one to wake the thread that polls; the side of the clients takes three times that of
the expert. HTTP/2 frames relayed as they are on both sides (the users' own client, `erlab.users.wire`, needs 13 to
24 us a response) would change that; on the expert's side alone they would save a quarter at most.
"""

from erlab.gateway.limits import Limits
from erlab.gateway.process import Gateway

__all__ = ["Gateway", "Limits"]
