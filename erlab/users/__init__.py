"""The user simulator: closed-loop users of any KServe v2 gRPC server, one request record a request."""

from erlab.users.processes import run

__all__ = ["run"]
