"""A user: sends a prompt, reads the whole answer, thinks, sends the next.

Each request is its own stream with its own deadline, so that neither a lost answer nor a lost server blocks the user.
Responses are kept as bytes with their arrival times, and decoded after the user has gone on.
"""

import asyncio
import itertools
import struct
import time
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from erlab.errors import REASON, reason
from erlab.gateway import kserve
from erlab.users.wire import Responses, UserChannel

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_SIZE = struct.Struct("<I")
_AFTER_FAILURE = 1_000_000_000  # ns
_STATUS = {"OK": "ok", "DEADLINE_EXCEEDED": "timeout", "CANCELLED": "cancelled"}


@dataclass(frozen=True)
class Ask:
    """A request ready to send.

    Attributes:
        record: Known part of its record.
        message: Request on the wire.
        pause: Time between the answer before and the request, s.
        at: Earliest time to send it, s after the common start.
    """

    record: dict
    message: bytes
    pause: float = 0.0
    at: float = 0.0


@dataclass(frozen=True)
class Finished:
    """A finished request of a user's turn, with the times (monotonic ns) at which it was due, sent and ended."""

    ask: Ask
    turn: int
    due: int
    submitted: int
    answer: Responses
    ended: int

    def row(self, start: int, stamped: bool) -> dict:
        """Return its record, with times since `start`; `stamped`: the server stamps its answers (`added`)."""
        answer, status = self.answer, _STATUS.get(self.answer.code, "error")
        error = None if status == "ok" else f"{answer.code}: {answer.details}"
        row = self.ask.record | {"turn": self.turn, "late_ns": max(0, self.submitted - self.due)}
        row |= record(self.submitted, answer.times, answer.messages, status, error, self.ended, start)
        if not stamped:
            return row
        try:
            return row | added(self.submitted, answer.times, answer.messages)
        except Exception as e:  # an invalid stamp is this request's error
            return row | added(self.submitted, [], []) | {"status": "error", "error": row["error"] or reason(e)}


async def user(
    channel: UserChannel, asks: list[Ask], start: int, until: float | None, finished: asyncio.Queue[Finished | None]
) -> None:
    """Make the requests one after the other, put each in `finished`, and None at the end.

    Args:
        start: Common start, monotonic ns.
        until: The requests are made again and again until this time, s after the start; None for once. A user whose
            request failed then waits a second, so that a dead server is not flooded.
    """
    due = start
    for turn, ask in enumerate(asks if until is None else itertools.cycle(asks)):
        due = max(due + int(ask.pause * 1e9), start + int(ask.at * 1e9))
        if until is not None and due >= start + until * 1e9:
            break
        if (early := due - time.monotonic_ns()) > 0:
            await asyncio.sleep(early / 1e9)
        submitted = time.monotonic_ns()
        # One request, many responses: on the wire the same as a stream of one request.
        try:
            answer = await channel.ask(ask.message)
        except Exception as e:  # ends only this request
            answer = Responses(code="INTERNAL", details=reason(e))
        ended = time.monotonic_ns()
        finished.put_nowait(Finished(ask, turn, due, submitted, answer, ended))
        due = ended + (_AFTER_FAILURE if until is not None and _failed(answer) else 0)
    finished.put_nowait(None)


def _failed(answer: Responses) -> bool:
    """Whether a request failed: a bad status, no response, or a last one whose first field is `error_message`."""
    return answer.code != "OK" or not answer.messages or answer.messages[-1].startswith(b"\x0a")


def record(
    submitted: int, times: list[int], answers: list[bytes], status: str, error: str | None, ended: int, start: int
) -> dict:
    """Compute the measured part of a request's record from its responses and their arrival times (monotonic ns).

    `t_first`, `t_last` and `token_times` count responses with text, and so does `output_tokens`, unless the gateway
    reports an OpenAI-compatible server's token count (`erlab_output_tokens`). An answer without text is an error, since
    every request asks for a token. `t_last` of a failed request is when its user stopped waiting.
    """
    try:
        responses = [service_pb2.ModelStreamInferResponse.FromString(answer) for answer in answers]
        texts = [_carries_text(response.infer_response) for response in responses]
    except (DecodeError, struct.error) as e:
        responses, texts, status, error = [], [], "error", f"The answer cannot be decoded: {e}"
    refusals = [r.error_message for r in responses if r.error_message]
    if refusals:
        status, error = "error", refusals[0]
    elif status == "ok" and not responses:
        status, error = "error", "The stream ended without an answer."
    elif status == "ok" and not any(texts):
        status, error = "error", "no text in the answer"
    tokens = [t for t, text in zip(times, texts) if text]
    last = tokens[-1] if tokens and status == "ok" else ended
    return {
        "output_tokens": _counted(responses) or len(tokens),
        **_routing(responses, submitted, times[0] if times else ended, start),
        "t_submit": submitted - start,
        "t_first": tokens[0] - start if tokens else None,
        "t_last": last - start,
        "token_times": [t - start for t in tokens],
        "status": status,
        "error": error and error[:REASON],
    }


def added(submitted: int, times: list[int], answers: list[bytes]) -> dict:
    """Compute the latency between user and a server that stamps its answers (`erlab.users.echo`, emulated experts).

    A stamp is a response's text: its number, from 0, and the ns at which the request arrived and the response was sent.
    Responses without text, such as errors, have no stamp.

    Returns:
        `added_ns`: from sending each response to its receipt. `expert_ns`: from the request's arrival to the first
        response. `added_ttft_ns`: the rest of the time to first token. `disordered`: responses out of order.

    Raises:
        ValueError: A text is not a stamp.
    """
    responses = (service_pb2.ModelStreamInferResponse.FromString(answer).infer_response for answer in answers)
    stamped = [(came, _stamp(text)) for came, response in zip(times, responses) if (text := kserve.text(response))]
    if not stamped:
        return {"added_ns": [], "expert_ns": None, "added_ttft_ns": None, "disordered": 0}
    stamps = [stamp for _, stamp in stamped]
    first, (_, arrived, sent) = stamped[0]
    return {
        "added_ns": [came - sent for came, (_, _, sent) in stamped],
        "expert_ns": sent - arrived,
        "added_ttft_ns": (first - submitted) - (sent - arrived),
        "disordered": sum(number != place for place, (number, _, _) in enumerate(stamps)),
    }


def _stamp(text: str) -> tuple[int, int, int]:
    """Parse a stamp: response number, arrival of the request, sending of the response."""
    number, arrived, sent = map(int, text.split())
    if not 0 <= arrived <= sent < 2**62:
        raise ValueError(f"an answer must be stamped with rising times. Got {text!r:.60}.")
    return number, arrived, sent


def _carries_text(response: service_pb2.ModelInferResponse) -> bool:
    """Whether `kserve.text` is not empty, computed faster; raises struct.error if the text's lengths are wrong."""
    raw = response.raw_output_contents
    for i, tensor in enumerate(response.outputs):
        if tensor.name == "text_output":
            if i >= len(raw):  # a server may send typed contents instead
                return any(tensor.contents.bytes_contents)
            content, at, sizes = raw[i], 0, 0
            while at < len(content):
                size = _SIZE.unpack_from(content, at)[0]
                at, sizes = at + 4 + size, sizes + size
            if at > len(content):
                raise struct.error(f"a text of {at} bytes in {len(content)}")
            return sizes > 0
    return False


def _counted(responses: list[service_pb2.ModelStreamInferResponse]) -> int | None:
    parameters = responses[-1].infer_response.parameters if responses else {}
    return parameters["erlab_output_tokens"].int64_param if "erlab_output_tokens" in parameters else None


def _routing(responses: list[service_pb2.ModelStreamInferResponse], submitted: int, first: int, start: int) -> dict:
    """Read the gateway's parameters of the first response; all None without a gateway."""
    parameters = responses[0].infer_response.parameters if responses else {}
    routed = parameters["erlab_routed_ns"].int64_param if "erlab_routed_ns" in parameters else None
    # A time outside of this span is of another machine's clock.
    comparable = routed is not None and submitted <= routed <= first
    return {
        "cluster": parameters["erlab_cluster"].int64_param if "erlab_cluster" in parameters else None,
        "expert": parameters["erlab_expert"].string_param if "erlab_expert" in parameters else None,
        "distance": parameters["erlab_distance"].double_param if "erlab_distance" in parameters else None,
        "margin": parameters["erlab_margin"].double_param if "erlab_margin" in parameters else None,
        "policy": parameters["erlab_policy"].string_param if "erlab_policy" in parameters else None,
        "classify_ns": parameters["erlab_classify_ns"].int64_param if "erlab_classify_ns" in parameters else None,
        "queue_ns": parameters["erlab_queue_ns"].int64_param if "erlab_queue_ns" in parameters else None,
        "t_routed": routed - start if comparable else None,
    }
