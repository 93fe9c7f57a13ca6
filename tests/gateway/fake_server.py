"""A FakeTriton as a process of its own, to be killed or stopped: `python fake_server.py MODEL PORT`.

The model answers with as many tokens as `max_tokens` asks for, 10 ms apart. Prints its address; ends with its stdin.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from fake_triton import FakeTriton, count  # noqa: E402


async def paced(request):
    async for token in count(request):
        await asyncio.sleep(0.01)
        yield token


if __name__ == "__main__":
    with FakeTriton({sys.argv[1]: paced}, int(sys.argv[2])) as fake:
        print(fake.address, flush=True)
        sys.stdin.read()
