"""The gateway's process.

    python -m erlab.gateway --router DIR --upstream HOST:PORT --experts expert_0,expert_1 [--policy nearest] [--port 0]

Cluster c of the router goes to expert c modulo their number. Prints one line of JSON with its address once it listens
(on loopback only). SIGTERM and SIGINT end it: nothing new is accepted, requests in flight get some seconds to end.
"""

import argparse
import asyncio
import json
import signal
import sys

import grpc

from erlab.errors import ErlabError
from erlab.gateway.decide import Decider
from erlab.gateway.process import DRAIN_SECONDS
from erlab.gateway.service import RoutingService
from erlab.routing import PromptRouter
from erlab.spec import require
from erlab.triton import client


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m erlab.gateway", description=__doc__.splitlines()[0])
    parser.add_argument("--router", required=True, metavar="DIR", help="folder of a saved PromptRouter")
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT", help="Triton's gRPC address")
    parser.add_argument("--experts", required=True, metavar="A,B,...", help="Triton models, one or more")
    parser.add_argument("--policy", default="nearest", help="a name in erlab.routing.policies")
    parser.add_argument("--port", default=0, type=int, help="0: chosen by the system")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that holds stdin")
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace) -> None:
    router = PromptRouter.load(arguments.router)
    experts, clusters = arguments.experts.split(","), len(router.centers_)
    allowed = f"name 1 to {clusters} Triton models, as many as the router has clusters at most"
    require(all(experts) and len(experts) <= clusters, "--experts", "the gateway", allowed, arguments.experts)
    decide = Decider(router, tuple(experts[c % len(experts)] for c in range(clusters)), arguments.policy)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if arguments.until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), stop.set)
    async with grpc.aio.insecure_channel(client.address(arguments.upstream), options=client.CHANNEL_OPTIONS) as channel:
        # Without so_reuseport = 0, a second gateway would silently share a port in use.
        server = grpc.aio.server(options=(*client.CHANNEL_OPTIONS, ("grpc.so_reuseport", 0)))
        server.add_generic_rpc_handlers([RoutingService(decide, channel)])
        try:
            port = server.add_insecure_port(f"127.0.0.1:{arguments.port}")
        except RuntimeError:
            raise ErlabError(f"The gateway cannot listen on 127.0.0.1:{arguments.port}: the port is in use.") from None
        await server.start()
        print(json.dumps({"address": f"127.0.0.1:{port}"}), flush=True)
        await stop.wait()
        await server.stop(DRAIN_SECONDS)


if __name__ == "__main__":
    try:
        asyncio.run(_serve(_arguments()))
    except ErlabError as error:
        sys.exit(f"erlab: {error}")
