"""Servers that somebody else runs and a study asks instead of its own: Triton at HOST:PORT, or an OpenAI-compatible
one at http://HOST:PORT, whose one model stands for all.

Nothing is built for them and no batch limit of theirs can be varied. What they compute is known only as far as they
say, so that what they answered is described by `description` and never as the profile's models.
"""

import ipaddress
from contextlib import AbstractContextManager
from dataclasses import replace
from urllib.parse import urlsplit

from erlab import machine
from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.serving import scaling
from erlab.serving.triton import Server
from erlab.spec import Profile, System


def checked(address: str) -> str:
    """The address as `attach` takes it; ErlabError for what is none."""
    if "://" not in address:
        return kserve.address(address)
    from erlab.serving.engines import openai_server

    openai_server.base(address)
    return address


def attach(address: str, models: tuple[str, ...], port: int | None = None) -> AbstractContextManager[Server]:
    """The server at this address, to be entered; it has the interface of one of ours. It is left running.

    `port`: where a gateway without a router listens that translates to an OpenAI-compatible one.
    """
    if "://" not in address:
        return Server.attach(address, models)
    from erlab.serving.engines.openai_server import Attached

    return Attached(address, models, port)


def model(address: str) -> str | None:
    """The one model that an OpenAI-compatible server says it has, None for Triton, which has one of each asked name.

    Raises ErlabError where no such server answers.
    """
    if "://" not in address:
        return None
    from erlab.serving.engines import openai_server

    return openai_server.served(openai_server.base(address))


def scale(system: System, to: Profile, address: str, max_batch_size: int) -> System:
    """What stands for a row of Table I at this address: one model of unknown size, or Triton's models of the names that
    this machine's own would have."""
    if "://" in address:
        return replace(system, count=1)
    return scaling.scale(system, to, len(scaling.devices(to)), max_batch_size)


def title(address: str) -> str:
    """What answers at this address, for legends and tables; ErlabError where an OpenAI-compatible server doesn't."""
    served = model(address)
    return f"{served}, one running server for all" if served else "unknown models, a running Triton server"


def description(address: str, to: Profile) -> dict:
    """What of a run's description (`experiments.describe`) a server of somebody else's makes different."""
    unknown = ("precision", "tensor_parallel", "cores", "max_batch_size", "kv_tokens")
    known = {"title": title(address), "model": model(address), "attached": True, "machine": _machine(address, to)}
    return dict.fromkeys(unknown) | known


def check(address: str) -> tuple[str, str, bool, str]:
    """Whether a server answers, as `environment.Check` has it; Triton's models are first asked for when they serve."""
    try:
        served = model(address)
    except ErlabError as e:
        return "server", str(e).rstrip("."), False, "start it first, or name another"
    return "server", f"{address} serves {served or 'the models'}", True, ""


def _machine(address: str, to: Profile) -> str:
    """This machine where the server is on it; else the server's host, of which nothing more is known."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname or address
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    return machine.title(on_gpus=to.gpus > 0) if here else f"{host}, asked from {machine.title()}"
