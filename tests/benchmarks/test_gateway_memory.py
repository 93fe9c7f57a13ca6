"""How large the gateway's process is: with 1,000 streams open, and over 100,000 requests.

The size is the resident set; what Python and its allocators keep for later is part of it.
"""

import asyncio
import json
import resource

import numpy as np
import psutil
import pytest
from fake_triton import COURT, KITCHEN
from processes import STUB, script

from erlab.gateway import Gateway, kserve
from erlab.routing import PromptRouter
from erlab.users.loop import METHOD
from erlab.users.selftest import Echo
from erlab.users.wire import UserChannel

STREAMS, TOKENS = 1000, 8
REQUESTS, USERS, EVERY = 100_000, 32, 1000  # in all, at a time, and between two looks at the size


@pytest.fixture(scope="module")
def prompts_and_router(tmp_path_factory):
    """A prompt of each of two clusters, and the folder of their router."""
    router = PromptRouter(clusters=2).fit(KITCHEN + COURT)
    homes = {int(router.predict([prompt])[0]): prompt for prompt in (KITCHEN[0], COURT[0])}
    return homes, router.save(tmp_path_factory.mktemp("memory") / "router")


class Connection:
    """A client of the OpenAI-compatible face that keeps its connection, as the `openai` package does."""

    def __init__(self, url, text, tokens):
        self._port = int(url.rpartition(":")[2])
        body = json.dumps({"prompt": text, "max_tokens": tokens, "stream": True}).encode()
        self._request = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._request += b"Content-Length: %d\r\n\r\n" % len(body) + body

    async def __aenter__(self):
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_):
        self._writer.close()

    async def ask(self):
        """The number of tokens of a streamed answer."""
        self._writer.write(self._request)
        answer = await self._reader.readuntil(b"data: [DONE]\n\n")
        await self._reader.readuntil(b"0\r\n\r\n")
        return answer.count(b'"text"')


@pytest.mark.parametrize("face", ["grpc", "http"])
def test_memory_of_1000_streams(prompts_and_router, face, record_property):
    homes, folder = prompts_and_router

    async def grpc_user(gateway, tokens):
        message = kserve.request("router", homes[0], tokens).SerializeToString()
        async with UserChannel(gateway.address, METHOD, 120) as channel:
            return len((await channel.ask(message)).messages)

    async def http_user(gateway, tokens):
        async with Connection(gateway.http, homes[1], tokens) as connection:
            return await connection.ask()

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    user = grpc_user if face == "grpc" else http_user
    with Echo(first=0.5, gap=0.5) as echo, script(STUB, 0.5) as (_, stub):
        experts = (f"grpc://{echo.address}/echo-0", f"http://127.0.0.1:{stub}/v1#m")
        with Gateway.of(folder, None, experts, http_port=0) as gateway:
            size = psutil.Process(gateway.pid).memory_info

            async def load(count, tokens):
                answers = asyncio.gather(*(user(gateway, tokens) for _ in range(count)))
                sizes = []
                while not answers.done():
                    sizes.append(size().rss)
                    await asyncio.sleep(0.1)
                assert set(await answers) == {tokens}
                return max(sizes)

            asyncio.run(load(10, 1))
            idle = size().rss
            busy = asyncio.run(load(STREAMS, TOKENS))
    print(f"memory, {face}: idle {idle / 1e6:.0f} MB, {STREAMS} streams +{(busy - idle) / 1e6:.0f} MB")
    record_property("mb_at_1000_streams", round((busy - idle) / 1e6))
    assert busy - idle <= 300e6


def test_memory_over_100_000_requests(prompts_and_router, record_property):
    """Half of them on each face, each with experts of its own protocol; the first quarter fills caches and heaps."""
    homes, folder = prompts_and_router
    message = kserve.request("router", homes[0], 2).SerializeToString()
    sizes = []
    with Echo(first=0.0, gap=0.001) as echo, script(STUB, 0) as (_, stub):
        experts = (f"grpc://{echo.address}/echo-0", f"http://127.0.0.1:{stub}/v1#m")
        with Gateway.of(folder, None, experts, http_port=0) as gateway:
            size = psutil.Process(gateway.pid).memory_info
            left = iter(range(REQUESTS // 2))

            async def both():
                grpc, http = UserChannel(gateway.address, METHOD, 60), Connection(gateway.http, homes[1], 2)
                async with grpc, http:
                    for i in left:
                        answer, events = await asyncio.gather(grpc.ask(message), http.ask())
                        assert answer.code == "OK" and len(answer.messages) == events == 2
                        if i % (EVERY // 2) == 0:
                            sizes.append(size().rss)

            async def load():
                await asyncio.gather(*(both() for _ in range(USERS)))

            asyncio.run(load())
    later = np.array(sizes[len(sizes) // 4 :])
    grown = np.polyfit(np.arange(len(later)) * EVERY, later, 1)[0]
    print(f"MB over {REQUESTS} requests: {np.round(np.array(sizes[::10]) / 1e6, 1)}, {grown:.0f} bytes a request")
    record_property("bytes_a_request", round(grown))
    assert grown <= 50  # 5 MB in 100,000: less than the least that a leaked request could be
