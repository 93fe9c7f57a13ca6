"""A request's record from what came and when: arithmetic."""

import asyncio
import time

import pytest
from fake_triton import text_response
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from erlab.errors import reason
from erlab.gateway import kserve
from erlab.users.loop import Ask, Finished, record, user
from erlab.users.wire import Responses

ASKED = service_pb2.ModelInferRequest(model_name="expert_0")
DECISION = {"erlab_expert": "expert_1", "erlab_policy": "nearest"}
NUMBERS = {"erlab_cluster": 3, "erlab_classify_ns": 2, "erlab_queue_ns": 4}
DISTANCES = {"erlab_distance": 0.5, "erlab_margin": 0.25}


def answers(*texts):
    return [text_response(ASKED, text) for text in texts]


def mark(routed):
    """What a gateway adds to its first response."""
    response = service_pb2.ModelInferResponse()
    for name, value in DECISION.items():
        response.parameters[name].string_param = value
    for name, value in (NUMBERS | {"erlab_routed_ns": routed}).items():
        response.parameters[name].int64_param = value
    for name, value in DISTANCES.items():
        response.parameters[name].double_param = value
    return service_pb2.ModelStreamInferResponse(infer_response=response).SerializeToString()


def error(message):
    return service_pb2.ModelStreamInferResponse(error_message=message).SerializeToString()


def test_times_count_from_the_start_and_only_responses_with_text():
    row = record(1100, [1110, 1120, 1130, 1145], answers("", "a", "b", ""), "ok", None, 1150, start=1000)
    assert row == {
        "output_tokens": 2,
        "cluster": None,
        "expert": None,
        "distance": None,
        "margin": None,
        "policy": None,
        "classify_ns": None,
        "queue_ns": None,
        "t_submit": 100,
        "t_routed": None,
        "t_first": 120,
        "t_last": 130,
        "token_times": [120, 130],
        "status": "ok",
        "error": None,
    }


@pytest.mark.parametrize("routed, t_routed", [(1099, None), (1100, 100), (1110, 110), (1111, None)])
def test_the_gateways_time_counts_only_between_submit_and_first_response(routed, t_routed):
    first, second = answers("a", "b")
    first += mark(routed)
    row = record(1100, [1110, 1120], [first, second], "ok", None, 1150, start=1000)
    assert row["t_routed"] == t_routed
    assert (row["expert"], row["cluster"], row["distance"], row["margin"]) == ("expert_1", 3, 0.5, 0.25)
    assert row["policy"] == "nearest" and row["output_tokens"] == 2
    assert (row["classify_ns"], row["queue_ns"]) == (2, 4)


LATE = "DEADLINE_EXCEEDED: late"


@pytest.mark.parametrize(
    "times, got, status, failure, expected",
    [
        ([], [], "ok", None, ("error", "The stream ended without an answer.", None, 150, 0)),
        ([], [], "timeout", LATE, ("timeout", LATE, None, 150, 0)),
        ([1110], answers("a"), "timeout", LATE, ("timeout", LATE, 110, 150, 1)),
        ([1110, 1120], answers("a") + [error("no memory")], "ok", None, ("error", "no memory", 110, 150, 1)),
        ([1110], answers(""), "ok", None, ("error", "no text in the answer", None, 150, 0)),
        ([1110], [error("x" * 5000)], "ok", None, ("error", "x" * 1000, None, 150, 0)),
    ],
)
def test_a_failed_request_keeps_its_received_part_and_its_end_time(times, got, status, failure, expected):
    row = record(1100, times, got, status, failure, 1150, start=1000)
    assert tuple(row[k] for k in ("status", "error", "t_first", "t_last", "output_tokens")) == expected


@given(st.lists(st.binary(max_size=20), max_size=3))
def test_text_counts_as_the_client_reads_it(texts):
    answer = service_pb2.ModelInferResponse()
    answer.outputs.add(name="text_output", datatype="BYTES", shape=[1, len(texts)])
    answer.raw_output_contents.append(b"".join(len(text).to_bytes(4, "little") + text for text in texts))
    data = service_pb2.ModelStreamInferResponse(infer_response=answer).SerializeToString()
    row = record(1100, [1110], [data], "ok", None, 1150, start=1000)
    assert row["output_tokens"] == bool(kserve.text(answer)) == (row["status"] == "ok")


@pytest.mark.parametrize("texts, tokens", [([b"a"], 1), ([b"", b"b"], 1), ([b""], 0), ([], 0)])
def test_typed_contents_are_read_as_raw_ones_are(texts, tokens):
    answer = service_pb2.ModelInferResponse()
    answer.outputs.add(name="other", datatype="INT32", shape=[1]).contents.int_contents.append(3)
    answer.outputs.add(name="text_output", datatype="BYTES", shape=[1, len(texts)])
    answer.outputs[1].contents.bytes_contents.extend(texts)
    data = service_pb2.ModelStreamInferResponse(infer_response=answer).SerializeToString()
    row = record(1100, [1110], [data], "ok", None, 1150, start=1000)
    assert (row["output_tokens"], row["status"]) == (tokens, "ok" if tokens else "error")


STAMPED = {"added_ns": [5, 5], "expert_ns": 3, "added_ttft_ns": 7, "disordered": 0}
NOTHING = {"added_ns": [], "expert_ns": None, "added_ttft_ns": None, "disordered": 0}


@pytest.mark.parametrize(
    "got, status, said, stamps",
    [
        (answers("0 1102 1105", "1 1102 1115"), "ok", None, STAMPED),
        (answers("0 1102 1105", "1 1102 1115") + [error("expert gone")], "error", "expert gone", STAMPED),
        ([error("expert gone")], "error", "expert gone", NOTHING),
        (answers("", "0 1102 1115"), "ok", None, NOTHING | {"added_ns": [5], "expert_ns": 13, "added_ttft_ns": 7}),
        (answers("hello"), "error", "invalid literal", NOTHING),
        (answers("1 2"), "error", "not enough values", NOTHING),
        (answers("0 1105 1102"), "error", "stamped with rising times. Got '0 1105 1102'", NOTHING),
        (answers("9" * 9999), "error", "Exceeds the limit", NOTHING),
        ([b"\xff"], "error", "cannot be decoded", NOTHING),
        ([], "error", "without an answer", NOTHING),
    ],
)
def test_a_stamped_request_that_fails_has_a_row(got, status, said, stamps):
    times = [1110, 1120, 1130][: len(got)]
    answer = Responses(times, got)
    row = Finished(Ask({"user": 1}, b""), 0, 1090, 1100, answer, 1150).row(1000, stamped=True)
    assert row["status"] == status and {name: row[name] for name in stamps} == stamps
    assert row["error"] is None if said is None else said in row["error"]


def test_the_error_is_the_exceptions_message():
    inner = ValueError("not enough values to unpack\n(expected 3, got 0)")
    group = ExceptionGroup("unhandled errors in a TaskGroup", [ExceptionGroup("more", [inner]), KeyError("x")])
    assert reason(group) == "not enough values to unpack (expected 3, got 0)"
    assert reason(TimeoutError()) == "TimeoutError" and len(reason(ValueError("x" * 5000))) == 1000


def test_an_exception_in_a_request_is_that_requests_error():
    class Broken:
        async def ask(self, data):
            if data == b"bad":
                raise ExceptionGroup("unhandled errors in a TaskGroup", [RuntimeError("no more streams")])
            return Responses([time.monotonic_ns()], answers("a"))

    async def scenario():
        finished = asyncio.Queue()
        await user(Broken(), [Ask({}, data) for data in (b"good", b"bad", b"good")], 0, None, finished)
        return [finished.get_nowait().row(0, False) for _ in range(3)]

    rows = asyncio.run(scenario())
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert rows[1]["error"] == "INTERNAL: no more streams"


@given(st.binary(max_size=60))
def test_any_bytes_give_a_row(garbage):
    row = record(1100, [1110, 1120], answers("a") + [garbage], "ok", None, 1150, start=1000)
    assert row["status"] in ("ok", "error") and (row["error"] is None) == (row["status"] == "ok")
