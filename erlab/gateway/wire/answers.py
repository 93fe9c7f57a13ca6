"""Completeness of experts' answers, and the errors of OpenAI-compatible servers.

`whole` runs at the end of every answer, for either face and either kind of upstream.

>>> whole("expert_0", answered=True, ended=False)
Traceback (most recent call last):
    ...
erlab.gateway.errors.RequestError: expert_0 ended its answer too early
"""

import html
import json
import re

from erlab.gateway.errors import Kind, RequestError
from erlab.gateway.wire.openai import StatusError

_KINDS = {
    401: Kind.PERMISSION_DENIED,
    403: Kind.PERMISSION_DENIED,
    404: Kind.NOT_FOUND,
    408: Kind.UNAVAILABLE,
    429: Kind.RESOURCE_EXHAUSTED,
}
_RETRIABLE = (408, 429)  # client errors that another expert may not return
_OWN_FAULTS = ("invalid_request_error", "BadRequestError", "context_length_exceeded")
_TITLE = re.compile(r"<title[^>]*>\s*([^<\n]+)", re.IGNORECASE)
_UNFINISHED = (b'"finish_reason": null', b'"finish_reason":null')  # as servers write it
_FIELD = re.compile(rb"\s*(data|event|id|retry)?:")  # of an event
_CHARACTERS = 2_000  # of a server's error message that are relayed


def whole(expert: str, answered: bool, ended: bool = True) -> None:
    """Raise RequestError unless an answer that has ended is complete.

    Args:
        expert: Name for the message.
        answered: Whether a part of an answer arrived; a finish reason without a token counts.
        ended: Whether the expert marked the end of its answer.
    """
    if not answered:
        raise RequestError(Kind.UNAVAILABLE, f"{expert} ended the stream without an answer", retriable=True)
    if not ended:
        raise RequestError(Kind.UNAVAILABLE, f"{expert} ended its answer too early", retriable=True)


class Completion:
    """State of a streamed completion.

    Args:
        expert: Name for messages.
        choices: Number of choices of the answer.

    Attributes:
        done: Whether the stream has sent [DONE].
        usage: The reported usage.
        going_on: Bytes that mark an event in the middle of the answer, which needs no decoding; None until known.
    """

    def __init__(self, expert: str, choices: int):
        self.done, self.usage = False, {}
        self._expert, self._choices = expert, choices
        self._answered, self._finished = False, set()
        self.going_on: bytes | None = None

    def read(self, data: bytes) -> str:
        """Return the text in one event's data; raises RequestError if that is an error or not JSON."""
        if data == b"[DONE]":
            self.done = True
        if self.done or not data:
            return ""
        try:
            event = json.loads(data.decode(errors="replace")) or {}
            failed = _error(event)
            choices = event.get("choices") or ()
            text = "".join(choice.get("text") or "" for choice in choices)
            self.usage.update(event.get("usage") or {})
            for choice in choices:
                delta = choice.get("delta") or {}
                self._answered |= any(value for key, value in delta.items() if key != "role")
                if choice.get("finish_reason"):
                    self._finished.add(choice.get("index"))
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise RequestError(Kind.INTERNAL, "An expert sent an event that is no completion", retriable=True) from None
        if failed:
            raise _failure(_status(failed), failed, "An expert sent an error without a message")
        self._answered |= bool(text)
        if self._answered and self.going_on is None:
            self.going_on = next((form for form in _UNFINISHED if form in data), None)
        return text

    def check(self, rest: bytes = b"") -> None:
        """Raise RequestError unless the ended stream is a complete answer; `rest`: bytes after its last event."""
        answered = self._answered or bool(self._finished)
        if not answered and rest.strip() and not _FIELD.match(rest):  # another document instead of a stream
            raise no_completion(self._expert, rest)
        whole(self._expert, answered, self.done or len(self._finished) >= self._choices)


def completion(expert: str, answer: bytes) -> bytes:
    """Return the answer if it is a complete completion in JSON; raises RequestError otherwise."""
    try:
        choices = json.loads(answer)["choices"]
        whole(expert, answered=all(isinstance(choice, dict) for choice in choices) and len(choices) > 0)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise no_completion(expert, answer) from None
    return answer


def no_completion(expert: str, answer: bytes) -> RequestError:
    """Return the error for an answer with status 200 that is no completion."""
    content = _decoded(answer)
    if isinstance(content, dict) and (failed := _error(content)):
        return _failure(_status(failed), failed, f"{expert} sent an error without a message")
    if isinstance(content, str) and content.lstrip().startswith("{"):
        return RequestError(Kind.UNAVAILABLE, f"{expert} ended its answer too early", retriable=True)
    came = (_words(content) or "nothing") if isinstance(content, str) else "other JSON"
    return RequestError(Kind.UNAVAILABLE, f"{expert} sent no completion, but {came}", retriable=True)


def http_error(expert: str, status: int, answer: bytes) -> StatusError:
    """Return the error for an HTTP status other than 200."""
    return _failure(status, _decoded(answer), f"{expert} answered with HTTP status {status}")


def _failure(status: int, content: object, silent: str) -> StatusError:
    """Return the error in `content`, with the message `silent` if it has none."""
    error = _error(content) if isinstance(content, dict) else content
    about = error if isinstance(error, dict) else content if isinstance(content, dict) else {}
    message = _words(error) or silent
    server = not 400 <= status < 500
    kind = _KINDS.get(status, Kind.UNAVAILABLE if server else Kind.INVALID_ARGUMENT)
    fields = {key: about.get(key) for key in ("type", "code", "param")}
    fields["type"] = fields["type"] or about.get("error_type")
    shown = status if not server else 502 if status < 500 else 503
    return StatusError(kind, message, server or status in _RETRIABLE, shown, fields)


def _error(content: dict) -> object:
    """Return the error in a JSON object, in any format that servers use, or None."""
    if content.get("error"):
        return content["error"]
    if "choices" in content:
        return None
    return content if any(content.get(key) for key in ("detail", "message")) else None


def _status(error: object) -> int:
    """The HTTP status of an error that came with status 200."""
    if isinstance(error, dict):
        number = str(error.get("code") or error.get("status_code") or "")
        if number.isdecimal() and 400 <= int(number) < 600:
            return int(number)
        if error.get("type") in _OWN_FAULTS or error.get("code") in _OWN_FAULTS:
            return 400
    return 502


def _words(error: object) -> str:
    """Return an error's message, shortened; empty if it has none."""
    if isinstance(error, dict):
        return next(filter(None, (_words(error.get(key)) for key in ("message", "detail", "msg", "error"))), "")
    if isinstance(error, list):
        return "; ".join(filter(None, map(_located, error)))[:_CHARACTERS]
    if not isinstance(error, str):
        return ""
    text = error.strip()
    if text.startswith("<"):
        title = _TITLE.search(text)
        text = html.unescape(title[1]).strip() if title else "HTML"
    return text[:_CHARACTERS].encode(errors="replace").decode()  # a lone surrogate could not go on


def _located(item: object) -> str:
    """Format one of FastAPI's details: location and message."""
    place = item.get("loc") if isinstance(item, dict) else None
    words = _words(item)
    return f"{'.'.join(map(str, place))}: {words}" if isinstance(place, list) and words else words


def _decoded(answer: bytes) -> object:
    """Decode an answer as JSON, or as text if it is none."""
    text = answer.decode("utf-8-sig", errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
