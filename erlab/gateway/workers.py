"""Several gateway processes on one port: the kernel distributes connections over them.

Each worker is a complete gateway with its own limits, queues and health checks. The parent process only starts and
stops them; if one ends by itself, all end.
"""

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from erlab.errors import ErlabError
from erlab.gateway.server import cannot_listen


@asynccontextmanager
async def working(
    arguments: list[str], count: int, host: str, ports: list[int | None], stop: asyncio.Event
) -> AsyncIterator[dict[str, str]]:
    """Run `count` gateway processes; yields their addresses, and stops the processes on exit.

    Args:
        arguments: Command line of a gateway.
        count: Number of processes.
        host: Address to listen on.
        ports: Ports of the gRPC and the HTTP face; 0 for any, None for no such face.
        stop: Set when a process ends by itself.

    Raises:
        ErlabError: A worker does not start.
    """
    with ExitStack() as stack:
        held = [p if p is None else stack.enter_context(hold(host, p)).getsockname()[1] for p in ports]
        command = [sys.executable, "-m", "erlab.gateway", *arguments, "--workers", "1", "--shared"]
        command += ["--until-stdin-closes", "--port", str(held[0])]  # the last of two equal options counts
        command += ["--http-port", str(held[1])] if held[1] is not None else []
        counted = stack.enter_context(tempfile.TemporaryDirectory())
        variables = os.environ | {"PROMETHEUS_MULTIPROC_DIR": counted}  # shared by their metrics
        pipe = asyncio.subprocess.PIPE
        processes = []
        try:
            for _ in range(count):
                started = asyncio.create_subprocess_exec(*command, env=variables, stdin=pipe, stdout=pipe)
                processes.append(await started)
            lines = [await process.stdout.readline() for process in processes]
            if not all(lines):
                raise ErlabError("A worker did not start.")
            watches = [asyncio.create_task(_watch(process, stop)) for process in processes]
            yield json.loads(lines[0])
            for watch in watches:
                watch.cancel()
        finally:
            for process in processes:
                if process.returncode is None:
                    process.terminate()
            await asyncio.gather(*(process.wait() for process in processes))


async def _watch(process: asyncio.subprocess.Process, stop: asyncio.Event) -> None:
    await process.wait()
    stop.set()


def hold(host: str, port: int) -> socket.socket:
    """Bind a port for the workers to share; the socket never listens. Raises ErlabError if the port is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as alone:  # without SO_REUSEPORT, so that a port in use is noticed
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
            port = alone.getsockname()[1]
        held = socket.socket(family)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
        return held
    except OSError as e:
        raise cannot_listen(host, port, e) from None
