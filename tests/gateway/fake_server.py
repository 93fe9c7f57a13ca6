"""A FakeTriton as a process of its own, to be killed or stopped: `python fake_server.py MODEL PACE`.

The model answers with as many tokens as `max_tokens` asks for, each after PACE seconds. Prints its address; ends with
its stdin.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from fake_triton import FakeTriton, count  # noqa: E402

MODEL, PACE = (sys.argv + ["", ""])[1:3]


async def paced(request):
    async for token in count(request):
        await asyncio.sleep(float(PACE))
        yield token


if __name__ == "__main__":
    with FakeTriton({MODEL: paced}) as fake:
        print(fake.address, flush=True)
        sys.stdin.read()
