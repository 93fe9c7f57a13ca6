"""User simulator: load of a KServe v2 gRPC server in closed or open loops, with one record per request."""

from erlab.users.processes import run
from erlab.users.selftest import OwnLatency, invalid, pace, self_test

__all__ = ["OwnLatency", "invalid", "pace", "run", "self_test"]
