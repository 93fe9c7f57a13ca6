"""What aiohttp's client and response cost the gateway beside parts that bypass them, in alternating rounds of one run.

The rule: a part of our own has to win by more than 1.5 times. CPU time is compared, so that a busy machine tells about
the same.
"""

import asyncio
import json
import statistics
from contextlib import ExitStack
from pathlib import Path

import pytest
from fake_triton import COURT, KITCHEN
from processes import STUB, cpu_seconds, script

from erlab.routing import PromptRouter

PARTS = Path(__file__).parent / "gateway_parts.py"
BODY = {"model": "router", "stream": True, "messages": [{"role": "user", "content": "salt the pasta"}]}


async def streams(port, count, tokens):
    """Median seconds to the first event of so many concurrent streams."""

    async def stream():
        body = json.dumps(BODY | {"max_tokens": tokens}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        start = asyncio.get_running_loop().time()
        writer.write(head.encode() + body)
        await reader.readuntil(b"data: {")
        first = asyncio.get_running_loop().time() - start
        assert (await reader.read()).count(b"data: {") == tokens - 1
        writer.close()
        return first

    return statistics.median(await asyncio.gather(*(stream() for _ in range(count))))


# Streams, tokens of each, seconds between them: about 1,000 events a second.
@pytest.mark.parametrize("count, tokens, pace", [(1, 300, 0.001), (20, 40, 0.02), (200, 10, 0.1), (1000, 4, 0.5)])
def test_aiohttps_parts_cost_little_more_than_direct_ones(tmp_path, record_property, count, tokens, pace):
    router = PromptRouter(clusters=2).fit(KITCHEN + COURT).save(tmp_path / "router")
    with ExitStack() as stack:
        _, port = stack.enter_context(script(STUB, pace))
        expert = f"http://127.0.0.1:{port}/v1#m"
        gateways = {
            part: stack.enter_context(script(PARTS, part, router, expert)) for part in ("none", "client", "response")
        }

        def measured(part):
            gateway, port = gateways[part]
            before = cpu_seconds(gateway.pid)
            first = asyncio.run(streams(int(port), count, tokens))
            return (cpu_seconds(gateway.pid) - before) / (count * tokens), first

        for part in gateways:
            measured(part)
        rounds = [{part: measured(part) for part in gateways} for _ in range(3)]
    for part in ("client", "response"):
        ratio = statistics.median(round["none"][0] / round[part][0] for round in rounds)
        us = [statistics.median(round[each][0] for round in rounds) * 1e6 for each in ("none", part)]
        first = [statistics.median(round[each][1] for round in rounds) * 1e3 for each in ("none", part)]
        print(f"{count} streams: {us[0]:.0f} us an event, with a direct {part} {us[1]:.0f}: {ratio:.2f} times as much")
        print(f"    to the first event: {first[0]:.1f} ms, with a direct {part} {first[1]:.1f} ms")
        record_property(f"aiohttp_over_direct_{part}", f"{ratio:.2f}")
        assert ratio < 3, part
