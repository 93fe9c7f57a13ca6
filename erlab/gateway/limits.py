"""What bounds a gateway, and the one error by which it refuses or ends a request.

>>> raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "expert_0 is full.")
Traceback (most recent call last):
    ...
erlab.gateway.limits.Refused: expert_0 is full.
"""

from dataclasses import dataclass

import grpc

from erlab.errors import ErlabError
from erlab.spec import require

DRAIN_SECONDS = 5.0  # that requests in flight get to end in when a gateway is to stop


@dataclass(frozen=True)
class Limits:
    """The gateway's bounds; each holds for one gateway process.

    in_flight, queue: requests that one expert works on at a time, and that wait for it; more are refused.
    seconds: the longest a request may take. stall_seconds: an expert that leaves a request without a sign of life for
    so long is probed, and has so long to answer the probe; a stream to which it is silent even then has been lost and
    ends, so this should be more than a prompt may take to its first token. message_bytes, header_bytes: the largest
    request and its headers. header_seconds, idle_seconds: how long an HTTP connection may take to its first request's
    whole head, and be without a request after an answer. connections: of the HTTP face; more are turned away.
    """

    in_flight: int = 1024
    queue: int = 1024
    seconds: float = 600.0
    stall_seconds: float = 10.0
    message_bytes: int = 4 * 2**20
    header_bytes: int = 16 * 2**10
    header_seconds: float = 10.0
    idle_seconds: float = 75.0
    connections: int = 8192

    def __post_init__(self):
        for name in ("in_flight", "message_bytes", "header_bytes", "connections"):
            require(getattr(self, name) >= 1, name, "Limits", "be at least 1", getattr(self, name))
        require(self.queue >= 0, "queue", "Limits", "be at least 0", self.queue)
        for name in ("seconds", "stall_seconds", "header_seconds", "idle_seconds"):
            require(getattr(self, name) > 0, name, "Limits", "be more than 0", getattr(self, name))


class Refused(ErlabError):
    """A request that the gateway or its expert ends with an error: its kind, as gRPC calls it, and a sentence.

    `again`: whether another expert may do better. `routed`: how far the request had come, where it had been decided.
    """

    def __init__(self, code: grpc.StatusCode, message: str, again: bool = False):
        super().__init__(message)
        self.code, self.again, self.routed = code, again, None
