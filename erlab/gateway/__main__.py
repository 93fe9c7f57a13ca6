"""Run a gateway process, which other programs start (`erlab.gateway.process`); users start `erlab gateway`.

    python -m erlab.gateway [--worker]

The first line of standard input describes the gateway as JSON (`erlab.gateway.fleet`). When the gateway listens, it
prints its addresses as one line of JSON. Each further line of input is another description, to which the gateway
changes; it prints `{}` when it has, or an error. It stops on SIGTERM, SIGINT and at the end of the input: it accepts
nothing new and lets requests in flight end.
"""

import asyncio
import gc
import json
import signal
import sys
from contextlib import AsyncExitStack

from threadpoolctl import threadpool_limits

try:
    from uvloop import new_event_loop
except ImportError:  # it isn't made for every platform
    from asyncio import new_event_loop

from erlab.errors import ErlabError
from erlab.gateway import fleet
from erlab.gateway.server import serving
from erlab.gateway.workers import working

_LINE_BYTES = 2**26  # of the longest line of input


async def _serve(worker: bool) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    lines = asyncio.StreamReader(_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    if not (line := await lines.readline()):
        return
    config = fleet.from_json(line)
    # BLAS would wake one thread per core for every small product, and each spins: several times the CPU, no faster.
    with threadpool_limits(1, user_api="blas"):
        async with AsyncExitStack() as stack:
            if config.workers > 1 and not worker:
                service = await stack.enter_async_context(working(config, stop))
            else:
                service = await stack.enter_async_context(serving(config, shared=worker))
            gc.collect()
            gc.freeze()  # objects as old as the process are never scanned again
            _tell(service.addresses)
            ended, reloads = asyncio.create_task(stop.wait()), asyncio.create_task(_reload(lines, service))
            await asyncio.wait([ended, reloads], return_when=asyncio.FIRST_COMPLETED)
            reloads.cancel()


async def _reload(lines: asyncio.StreamReader, service) -> None:
    """Change to each further description until the input ends."""
    while line := await lines.readline():
        try:
            await service.reload(fleet.from_json(line))
            _tell({})
        except ErlabError as e:
            _tell({"error": str(e)})


def _tell(content: dict) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_serve("--worker" in sys.argv[1:]))
    except ErlabError as error:
        _tell({"error": str(error)})
        sys.exit(1)
