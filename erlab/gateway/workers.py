"""Several gateway processes on one port: the kernel distributes connections over them.

Each worker is a complete gateway with its own limits, queues and health checks. The parent process only starts, reloads
and stops them; if one ends by itself, all end.
"""

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace

from erlab.errors import ErlabError
from erlab.gateway.fleet import FleetConfig
from erlab.gateway.server import cannot_listen

_LINE_BYTES = 2**26  # of the longest line that a worker prints


@asynccontextmanager
async def working(config: FleetConfig, stop: asyncio.Event) -> AsyncIterator["Workers"]:
    """Run `config.workers` gateway processes, and stop them on exit.

    Args:
        config: Description of the gateway.
        stop: Set when a process ends by itself.

    Raises:
        ErlabError: A worker does not start.
    """
    with ExitStack() as stack:
        held = {"port": config.port, "http_port": config.http_port}
        for name, port in held.items():
            if port is not None:
                held[name] = stack.enter_context(hold(config.host, port)).getsockname()[1]
        counted = stack.enter_context(tempfile.TemporaryDirectory())
        variables = os.environ | {"PROMETHEUS_MULTIPROC_DIR": counted}  # shared by their metrics
        pipe, processes = asyncio.subprocess.PIPE, []
        try:
            for _ in range(config.workers):
                command = [sys.executable, "-m", "erlab.gateway", "--worker"]
                options = {"env": variables, "stdin": pipe, "stdout": pipe, "limit": _LINE_BYTES}
                processes.append(await asyncio.create_subprocess_exec(*command, **options))
            workers = Workers(processes, held)
            answers = await workers.tell(replace(config, **held))
            watches = [asyncio.create_task(_watch(process, stop)) for process in processes]
            workers.addresses = answers[0]
            yield workers
            for watch in watches:
                watch.cancel()
        finally:
            for process in processes:
                if process.returncode is None:
                    process.terminate()
            await asyncio.gather(*(process.wait() for process in processes))


class Workers:
    """Running workers; `addresses` as of `server.Service`."""

    def __init__(self, processes: list[asyncio.subprocess.Process], ports: dict[str, int | None]):
        self._processes, self._ports = processes, ports
        self.addresses: dict[str, str] = {}

    async def tell(self, config: FleetConfig) -> list[dict]:
        """Send a description to all workers and return their answers; raises ErlabError with the first error."""
        for process in self._processes:
            process.stdin.write(config.json().encode() + b"\n")
        lines = [await process.stdout.readline() for process in self._processes]
        answers = [json.loads(line) if line else {"error": "A worker of the gateway ended."} for line in lines]
        if errors := [answer["error"] for answer in answers if "error" in answer]:
            raise ErlabError(errors[0])
        return answers

    async def reload(self, config: FleetConfig) -> None:
        """Let all workers change to a description, as `server.Service.reload`."""
        await self.tell(replace(config, **self._ports))


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
