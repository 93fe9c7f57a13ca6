"""A request's record from what came and when: arithmetic."""

import pytest
from fake_triton import text_response
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from erlab.triton import client
from erlab.users.loop import record

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
        ([1110], answers(""), "ok", None, ("ok", None, None, 150, 0)),
    ],
)
def test_a_failed_request_keeps_what_came_and_ends_when_it_failed(times, got, status, failure, expected):
    row = record(1100, times, got, status, failure, 1150, start=1000)
    assert tuple(row[k] for k in ("status", "error", "t_first", "t_last", "output_tokens")) == expected


@given(st.lists(st.binary(max_size=20), max_size=3))
def test_text_counts_as_the_client_reads_it(texts):
    answer = service_pb2.ModelInferResponse()
    answer.outputs.add(name="text_output", datatype="BYTES", shape=[1, len(texts)])
    answer.raw_output_contents.append(b"".join(len(text).to_bytes(4, "little") + text for text in texts))
    data = service_pb2.ModelStreamInferResponse(infer_response=answer).SerializeToString()
    row = record(1100, [1110], [data], "ok", None, 1150, start=1000)
    assert row["output_tokens"] == bool(client.text(answer)) and row["status"] == "ok"


@given(st.binary(max_size=60))
def test_any_bytes_give_a_row(garbage):
    row = record(1100, [1110, 1120], answers("a") + [garbage], "ok", None, 1150, start=1000)
    assert row["status"] in ("ok", "error") and (row["error"] is None) == (row["status"] == "ok")
