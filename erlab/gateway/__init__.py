"""The routing gateway: to any KServe v2 client a Triton server, to any OpenAI client a server of its kind, with one
more model: `router`."""

from erlab.gateway.limits import Limits
from erlab.gateway.process import Gateway

__all__ = ["Gateway", "Limits"]
