"""Run the routing gateway in front of expert models.

    python -m erlab.gateway --router DIR --upstream HOST:PORT --experts expert_0,expert_1

Cluster c of the router goes to expert c modulo the number of experts. When the gateway listens, it prints its addresses
as one line of JSON. KServe v2 clients ask the model `router` at `address`; OpenAI clients ask it at `http`, if
--http-port is given.

SIGTERM or SIGINT stops it: it accepts nothing new and lets requests in flight end for a few seconds. If the environment
variable ERLAB_API_KEY is set, clients must send it as a bearer token.
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
from erlab.routing.policies import POLICIES, SIMULATED
from erlab.spec import require

EXPERTS = "one or more: models of --upstream, grpc://HOST:PORT/MODEL or http://HOST:PORT/v1#MODEL (OpenAI-compatible)"
EXAMPLES = """\
examples:
  two experts on one Triton server, OpenAI-compatible face on port 8080:
    python -m erlab.gateway --router results/laptop/router --upstream 127.0.0.1:8001 \\
        --experts expert_0,expert_1 --port 9001 --http-port 8080
  two OpenAI-compatible servers (vLLM, trtllm-serve, NIM):
    python -m erlab.gateway --router results/laptop/router --http-port 8080 \\
        --experts http://10.0.0.1:8000/v1#llama,http://10.0.0.2:8000/v1#qwen
  then ask it:
    curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' \\
        -d '{"model": "router", "prompt": "How do I salt pasta water?", "max_tokens": 64}'
"""
LIMITS = {
    "in_flight": "requests that an expert works on concurrently",
    "queue": "requests that wait for an expert; more are refused",
    "seconds": "deadline of a request, s",
    "stall_seconds": "silence after which an expert is probed, s; more than the longest time to first token",
    "message_bytes": "largest request, bytes",
    "header_bytes": "largest headers of a request, bytes",
    "connections": "open connections per face; more are closed",
    "calls": "unfinished gRPC calls; more are refused",
    "header_seconds": "time for a new connection to send its first headers, s",
    "idle_seconds": "time after which a connection without a request is closed, s",
    "keepalive_seconds": "silence after which a gRPC connection is pinged, and the time to answer, s",
}


def _arguments() -> argparse.Namespace:
    about = __doc__.partition("\n\n    python")[0] + "\n\n" + __doc__.split("\n\n", 2)[2]
    parser = argparse.ArgumentParser("python -m erlab.gateway", description=about, epilog=EXAMPLES)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--router", metavar="DIR", help="folder of a saved PromptRouter")
    mode.add_argument("--names", metavar="A,B,...", help="no routing: serve each expert under its own of these names")
    experts = parser.add_argument_group("experts and policy")
    experts.add_argument("--upstream", metavar="HOST:PORT", help="gRPC address of the Triton server")
    experts.add_argument("--experts", required=True, metavar="A,B,...", help=EXPERTS)
    policies = ", ".join(name for name in POLICIES if name not in SIMULATED)
    experts.add_argument("--policy", default="nearest", help=f"routing policy: {policies} (default nearest)")
    experts.add_argument("--generalist", metavar="MODEL", help="expert for outliers (policy outlier)")
    experts.add_argument("--strong", metavar="MODEL", help="expert for difficult prompts (policy strong_weak)")
    threshold = "difficulty from which --strong serves a prompt, 0 to 1 (default 0.5)"
    experts.add_argument("--threshold", type=float, help=threshold)
    listen = parser.add_argument_group("addresses")
    listen.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    listen.add_argument("--port", default=0, type=int, help="port of the gRPC face (default 0: chosen by the system)")
    http_port = "port of the OpenAI-compatible face, 0 for any (default: no such face)"
    listen.add_argument("--http-port", type=int, help=http_port)
    hosts = "host names that the HTTP face answers to beside loopback's (default: all, or none on loopback)"
    listen.add_argument("--hosts", default="", metavar="A,B,...", help=hosts)
    listen.add_argument("--workers", default=1, type=int, help="gateway processes that share the ports (default 1)")
    listen.add_argument("--shared", action="store_true", help="let other processes listen on the same ports")
    until = "stop when standard input closes, as when the parent process ends"
    listen.add_argument("--until-stdin-closes", action="store_true", help=until)
    limits = parser.add_argument_group("limits, of each worker")
    for field in fields(Limits):
        flag, help = f"--{field.name.replace('_', '-')}", f"{LIMITS[field.name]} (default {field.default:g})"
        limits.add_argument(flag, default=field.default, type=type(field.default), metavar="N", help=help)
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
    # BLAS would wake one thread per core for every small product, and each spins: several times the CPU, no faster.
    with threadpool_limits(1, user_api="blas"):
        await _until(stop, gateway)


async def _until(stop: asyncio.Event, gateway: AbstractAsyncContextManager[dict[str, str]]) -> None:
    async with gateway as addresses:
        gc.collect()
        gc.freeze()  # objects as old as the process are never scanned again
        print(json.dumps(addresses), flush=True)
        await stop.wait()


def _settings(arguments: argparse.Namespace) -> Settings:
    values = vars(arguments)
    return Settings(
        arguments.upstream,
        tuple(arguments.experts.split(",")),
        arguments.policy,
        Limits(**{field.name: values[field.name] for field in fields(Limits)}),
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
