"""The gateway's process.

    python -m erlab.gateway --router DIR --upstream HOST:PORT --experts expert_0,expert_1 [--policy nearest] [--port 0]

Cluster c of the router goes to expert c modulo their number. Prints one line of JSON with its addresses once it listens
(on loopback unless told otherwise). SIGTERM and SIGINT end it: nothing new is accepted, requests in flight get some
seconds to end. The environment variable ERLAB_API_KEY, if set, is what clients must bring.
"""

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from contextlib import AbstractAsyncContextManager
from dataclasses import fields

from threadpoolctl import threadpool_limits

try:
    from uvloop import new_event_loop
except ImportError:  # it isn't made for every platform
    from asyncio import new_event_loop

from erlab.errors import ErlabError
from erlab.gateway.limits import Limits
from erlab.gateway.passthrough import passing
from erlab.gateway.server import Settings, serving
from erlab.gateway.workers import working
from erlab.routing import CompiledRouter
from erlab.spec import require

EXPERTS = "models of --upstream, grpc://HOST:PORT/MODEL or http://HOST:PORT/v1#MODEL (OpenAI-compatible), one or more"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m erlab.gateway", description=__doc__.splitlines()[0])
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--router", metavar="DIR", help="folder of a saved PromptRouter")
    asked.add_argument("--names", metavar="A,B,...", help="no routing: what each of the experts is called")
    parser.add_argument("--upstream", metavar="HOST:PORT", help="Triton's gRPC address")
    parser.add_argument("--experts", required=True, metavar="A,B,...", help=EXPERTS)
    parser.add_argument("--policy", default="nearest", help="a name in erlab.routing.policies")
    parser.add_argument("--generalist", metavar="MODEL", help="expert of what fits no cluster, with --policy outlier")
    parser.add_argument("--strong", metavar="MODEL", help="expert of difficult prompts, with --policy strong_weak")
    parser.add_argument("--threshold", type=float, help="from which difficulty on it is asked, 0 to 1; 0.5 by default")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", default=0, type=int, help="0: chosen by the system")
    parser.add_argument("--http-port", type=int, help="where the OpenAI-compatible face listens, if anywhere")
    parser.add_argument("--hosts", default="", metavar="A,B,...", help="host names its HTTP face answers to")
    parser.add_argument("--workers", default=1, type=int, help="processes that share the ports")
    parser.add_argument("--shared", action="store_true", help="share the ports, as workers do")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that holds stdin")
    for field in fields(Limits):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, default=field.default, type=type(field.default), help="see erlab.gateway.limits")
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace) -> None:
    require(arguments.workers >= 1, "--workers", "the gateway", "be at least 1", arguments.workers)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if arguments.until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), stop.set)
    if arguments.workers > 1:
        ports = [arguments.port, arguments.http_port]
        async with working(sys.argv[1:], arguments.workers, arguments.host, ports, stop) as addresses:
            print(json.dumps(addresses), flush=True)
            await stop.wait()
        return
    settings = _settings(arguments)
    if arguments.router:
        gateway = serving(CompiledRouter.load(arguments.router), settings)
    else:
        gateway = passing(tuple(arguments.names.split(",")), settings)
    # BLAS would wake a thread a core for every small product, and each spins: several times the CPU, and no faster.
    with threadpool_limits(1, user_api="blas"):
        await _until(stop, gateway)


async def _until(stop: asyncio.Event, gateway: AbstractAsyncContextManager[dict[str, str]]) -> None:
    async with gateway as addresses:
        gc.collect()
        gc.freeze()  # what lives as long as the process is never looked through again
        print(json.dumps(addresses), flush=True)
        await stop.wait()


def _settings(arguments: argparse.Namespace) -> Settings:
    given = vars(arguments)
    return Settings(
        arguments.upstream,
        tuple(arguments.experts.split(",")),
        arguments.policy,
        Limits(**{field.name: given[field.name] for field in fields(Limits)}),
        arguments.host,
        arguments.port,
        arguments.http_port,
        os.environ.get("ERLAB_API_KEY"),
        arguments.shared,
        arguments.generalist,
        arguments.strong,
        arguments.threshold,
        tuple(filter(None, arguments.hosts.split(","))),
    )


if __name__ == "__main__":
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_serve(_arguments()))
    except ErlabError as error:
        sys.exit(f"erlab: {error}")
