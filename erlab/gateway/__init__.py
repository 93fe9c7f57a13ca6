"""The routing gateway: to any KServe v2 client a Triton server with one more model, `router`."""

from erlab.gateway.process import Gateway

__all__ = ["Gateway"]
