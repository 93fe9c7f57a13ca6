"""The user simulator: users of any KServe v2 gRPC server, in closed or open loops; one request record a request."""

from erlab.users.processes import run
from erlab.users.selftest import OwnLatency, invalid, self_test

__all__ = ["OwnLatency", "invalid", "run", "self_test"]
