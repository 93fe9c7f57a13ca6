"""Externally managed inference servers, which a study uses instead of its own.

An address is HOST:PORT of a Triton server, or http://HOST:PORT of an OpenAI-compatible server, whose one model stands
for all experts. Nothing is built for them, and their batch limits cannot be varied. Records describe them by
`description`, not by the profile's models.
"""

import ipaddress
from dataclasses import replace
from urllib.parse import urlsplit

from erlab import machine
from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.serving import scaling
from erlab.serving.engines import openai_server
from erlab.serving.servers import ModelServer
from erlab.serving.triton.external import ExternalTriton
from erlab.spec import Profile, System


def checked(address: str) -> str:
    """Return an address that `attach` takes; ErlabError for any other text."""
    if "://" not in address:
        return kserve.address(address)
    openai_server.base(address)
    return address


def attach(address: str, models: tuple[str, ...], port: int | None = None) -> ModelServer:
    """Return the server at an address, to be entered. It is left running.

    Args:
        models: Models that Triton must have, or names under which the model of an OpenAI-compatible server is served.
        port: Port of the gateway that translates KServe v2 for an OpenAI-compatible server; None: any.
    """
    if "://" not in address:
        return ExternalTriton(address, models)
    return openai_server.ExternalOpenAI(address, models, port)


def model(address: str) -> str | None:
    """Return the model of an OpenAI-compatible server, None for Triton; ErlabError where no such server answers."""
    if "://" not in address:
        return None
    return openai_server.served(openai_server.base(address))


def scale(system: System, profile: Profile, address: str | None, max_batch_size: int | None = None) -> System:
    """Return the counterpart of a system of Table I on this machine or, given an address, on an external server.

    It has one model of unknown size on an OpenAI-compatible server, and on Triton the models that this machine's own
    server would have.
    """
    if address and "://" in address:
        return replace(system, count=1)
    return scaling.scale(system, profile, max_batch_size=max_batch_size)


def title(address: str) -> str:
    """Return a server's label for legends and tables; ErlabError where an OpenAI-compatible server does not answer."""
    served = model(address)
    return f"{served}, one running server for all" if served else "unknown models, a running Triton server"


def description(address: str, profile: Profile) -> dict:
    """Return the fields of a run's description (`cells.describe`) that differ for an external server."""
    unknown = ("precision", "tensor_parallel", "cores", "max_batch_size", "kv_tokens")
    known = {"title": title(address), "model": model(address), "attached": True, "machine": _machine(address, profile)}
    return dict.fromkeys(unknown) | known


def check(address: str) -> tuple[str, str, bool, str]:
    """Return whether a server answers, as the fields of `environment.Check`.

    Triton is not contacted: its models are requested for the first time when they serve.
    """
    try:
        served = model(address)
    except ErlabError as e:
        return "server", str(e).rstrip("."), False, "start it first, or name another"
    return "server", f"{address} serves {served or 'the models'}", True, ""


def _machine(address: str, profile: Profile) -> str:
    """Return this machine's title for a loopback address, else the server's host."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname or address
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return machine.title(on_gpus=profile.gpus > 0) if local else f"{host}, queried from {machine.title()}"
