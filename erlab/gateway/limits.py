"""Limits of a gateway: bounds on concurrency, time and size."""

from dataclasses import dataclass

from erlab.spec import require


@dataclass(frozen=True)
class Limits:
    """Bounds of one gateway process; several workers have them each.

    Attributes:
        in_flight: Requests that an expert works on concurrently (default 1024).
        queue: Requests that wait for an expert; more are refused (default 1024).
        seconds: Deadline of a request, and of a gRPC stream without a request, s (default 600).
        stall_seconds: Silence after which an expert is probed, and the time it has to answer the probe, s; a stream
            that is silent even then ends, so use more than the longest time to first token (default 10).
        message_bytes: Largest request, bytes (default 4 MiB).
        header_bytes: Largest headers of a request, bytes (default 16 KiB).
        connections: Open connections per face; more are closed (default 16384).
        calls: Unfinished gRPC calls; more are refused (default 4096).
        header_seconds: Time for a new connection to send its first headers, s (default 10).
        idle_seconds: Time after which a connection without a request is closed, s (default 300).
        drain_seconds: Time for requests in flight to end when the gateway stops, s (default 30).
        keepalive_seconds: Silence after which a gRPC connection is pinged, and the time to answer, s (default 30).

    Raises:
        ErlabError: A value is out of range; the message names it.
    """

    in_flight: int = 1024
    queue: int = 1024
    seconds: float = 600.0
    stall_seconds: float = 10.0
    message_bytes: int = 4 * 2**20
    header_bytes: int = 16 * 2**10
    connections: int = 16_384
    calls: int = 4096
    header_seconds: float = 10.0
    idle_seconds: float = 300.0
    drain_seconds: float = 30.0
    keepalive_seconds: float = 30.0

    def __post_init__(self):
        for name in ("in_flight", "message_bytes", "header_bytes", "connections", "calls"):
            require(getattr(self, name) >= 1, name, "[limits]", "be at least 1", getattr(self, name))
        require(self.queue >= 0, "queue", "[limits]", "be at least 0", self.queue)
        require(self.drain_seconds >= 0, "drain_seconds", "[limits]", "be at least 0", self.drain_seconds)
        for name in ("seconds", "stall_seconds", "header_seconds", "idle_seconds", "keepalive_seconds"):
            require(getattr(self, name) > 0, name, "[limits]", "be more than 0", getattr(self, name))
