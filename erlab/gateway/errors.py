"""Errors by which the gateway ends a request, independent of any protocol.

>>> raise RequestError(Kind.RESOURCE_EXHAUSTED, "expert_0 is full.")
Traceback (most recent call last):
    ...
erlab.gateway.errors.RequestError: expert_0 is full.
"""

from enum import StrEnum, auto

from erlab.errors import ErlabError


class Kind(StrEnum):
    """Kinds of request errors. Faces translate them; metrics and OpenAI's `code` show them as they are."""

    INVALID_ARGUMENT = auto()
    UNAUTHENTICATED = auto()
    PERMISSION_DENIED = auto()
    NOT_FOUND = auto()
    UNIMPLEMENTED = auto()
    RESOURCE_EXHAUSTED = auto()
    UNAVAILABLE = auto()
    DEADLINE_EXCEEDED = auto()
    INTERNAL = auto()
    UNKNOWN = auto()


class RequestError(ErlabError):
    """A request that the gateway or its expert ends with an error.

    Args:
        kind: Kind of error.
        message: One sentence for the client.
        retriable: Whether another expert may succeed.

    Attributes:
        routed: The request's `erlab.gateway.core.Routed`, once an expert was chosen, else None.
    """

    def __init__(self, kind: Kind, message: str, retriable: bool = False):
        super().__init__(message)
        self.kind, self.retriable, self.routed = kind, retriable, None
