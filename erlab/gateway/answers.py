"""Whether an expert's answer is whole, and what an OpenAI-compatible server says where it is none.

`whole` decides at the end of every answer, whichever face it goes to and whichever protocol it came in.

>>> whole("expert_0", answered=True, ended=False)
Traceback (most recent call last):
    ...
erlab.gateway.limits.Refused: expert_0 ended its answer too early
"""

import html
import json
import re

import grpc

from erlab.gateway.limits import Refused
from erlab.gateway.openai import StatusError

_CODE = grpc.StatusCode
_CODES = {
    401: _CODE.PERMISSION_DENIED,
    403: _CODE.PERMISSION_DENIED,
    404: _CODE.NOT_FOUND,
    408: _CODE.UNAVAILABLE,
    429: _CODE.RESOURCE_EXHAUSTED,
}
_AGAIN = (408, 429)  # of the client's errors those that another expert may not have
_OWN_FAULTS = ("invalid_request_error", "BadRequestError", "context_length_exceeded")
_TITLE = re.compile(r"<title[^>]*>\s*([^<\n]+)", re.IGNORECASE)
_UNFINISHED = (b'"finish_reason": null', b'"finish_reason":null')  # as servers write it
_FIELD = re.compile(rb"\s*(data|event|id|retry)?:")  # of an event
_CHARACTERS = 2_000  # of a server's words that are handed on


def whole(expert: str, answered: bool, ended: bool = True) -> None:
    """Raise Refused unless an answer that is over is one.

    answered: whether anything of an answer came; a reason why it finished without a token is something. ended: whether
    the expert said that this is all.
    """
    if not answered:
        raise Refused(_CODE.UNAVAILABLE, f"{expert} ended the stream without an answer", again=True)
    if not ended:
        raise Refused(_CODE.UNAVAILABLE, f"{expert} ended its answer too early", again=True)


class Completion:
    """What an event stream has told of its answer so far.

    expert: its name. choices: how many of them the answer has. `done`: whether the stream has said that this is all.
    `usage`: what it told of its usage. `going_on`: what an event's data has where it surely changes nothing that is
    known, as most of an answer's: they need no decoding. None until that is known.
    """

    def __init__(self, expert: str, choices: int):
        self.done, self.usage = False, {}
        self._expert, self._choices = expert, choices
        self._answered, self._finished = False, set()
        self.going_on: bytes | None = None

    def read(self, data: bytes) -> str:
        """The text in one event's data; Refused where that is an error or no JSON."""
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
            raise Refused(_CODE.INTERNAL, "An expert sent an event that is no completion", again=True) from None
        if failed:
            raise _failure(_status(failed), failed, "An expert sent an error without words")
        self._answered |= bool(text)
        if self._answered and self.going_on is None:
            self.going_on = next((form for form in _UNFINISHED if form in data), None)
        return text

    def check(self, rest: bytes = b"") -> None:
        """Raise Refused unless the stream, which is over, is a whole answer. rest: what came after its last event."""
        answered = self._answered or bool(self._finished)
        if not answered and rest.strip() and not _FIELD.match(rest):  # another document instead of a stream
            raise none(self._expert, rest)
        whole(self._expert, answered, self.done or len(self._finished) >= self._choices)


def completion(expert: str, answer: bytes) -> bytes:
    """The answer, if it is a whole completion in one JSON document; raises Refused otherwise."""
    try:
        choices = json.loads(answer)["choices"]
        whole(expert, answered=all(isinstance(choice, dict) for choice in choices) and len(choices) > 0)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise none(expert, answer) from None
    return answer


def none(expert: str, answer: bytes) -> Refused:
    """What to raise where a server answered as if all were well, but with no completion."""
    content = _decoded(answer)
    if isinstance(content, dict) and (failed := _error(content)):
        return _failure(_status(failed), failed, f"{expert} sent an error without words")
    if isinstance(content, str) and content.lstrip().startswith("{"):
        return Refused(_CODE.UNAVAILABLE, f"{expert} ended its answer too early", again=True)
    came = (_words(content) or "nothing") if isinstance(content, str) else "other JSON"
    return Refused(_CODE.UNAVAILABLE, f"{expert} sent no completion, but {came}", again=True)


def refused(expert: str, status: int, answer: bytes) -> StatusError:
    """What to raise where a server answered with an HTTP status other than 200."""
    return _failure(status, _decoded(answer), f"{expert} answered with HTTP status {status}")


def _failure(status: int, content: object, silent: str) -> StatusError:
    """The error in `content`, or `silent` where it has no words."""
    error = _error(content) if isinstance(content, dict) else content
    about = error if isinstance(error, dict) else content if isinstance(content, dict) else {}
    message = _words(error) or silent
    server = not 400 <= status < 500
    code = _CODES.get(status, _CODE.UNAVAILABLE if server else _CODE.INVALID_ARGUMENT)
    kept = {key: about.get(key) for key in ("type", "code", "param")}
    kept["type"] = kept["type"] or about.get("error_type")
    shown = status if not server else 502 if status < 500 else 503
    return StatusError(code, message, server or status in _AGAIN, shown, kept)


def _error(content: dict) -> object:
    """The error in a decoded JSON object, in any of the forms that servers have for it; None where it has none."""
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
    """What an error says, shortened; empty where it says nothing."""
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
    """One of FastAPI's details: where, and what is wrong there."""
    place = item.get("loc") if isinstance(item, dict) else None
    words = _words(item)
    return f"{'.'.join(map(str, place))}: {words}" if isinstance(place, list) and words else words


def _decoded(answer: bytes) -> object:
    """The answer as JSON, or as text where it is none."""
    text = answer.decode("utf-8-sig", errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
