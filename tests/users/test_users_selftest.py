"""What the users add: by arithmetic on stamped answers, and against the real echo process."""

import time

import psutil
import pytest
from fake_triton import plan, text_response
from tritonclient.grpc import service_pb2

from erlab import users
from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.users.loop import added
from erlab.users.selftest import Echo, OwnLatency

ASKED = service_pb2.ModelInferRequest(model_name="echo-0")
MS = 1_000_000


def test_client_latency_is_the_time_that_the_echo_did_not_take():
    # Sent at 100, there at 130, answered at 180 and 200, received at 190 and 270.
    answers = [text_response(ASKED, "0 130 180"), text_response(ASKED, "1 130 200")]
    found = {"added_ns": [10, 70], "expert_ns": 50, "added_ttft_ns": 90 - 50, "disordered": 0}
    assert added(100, [190, 270], answers) == found
    assert added(100, [190, 270], answers[::-1])["disordered"] == 2
    assert added(100, [190], answers[1:])["disordered"] == 1, "one is lost"
    assert added(100, [], []) == {"added_ns": [], "expert_ns": None, "added_ttft_ns": None, "disordered": 0}


def test_the_echo_keeps_its_pace_and_stamps_it():
    with Echo(first=0.1, gap=0.02) as echo:
        began = time.monotonic_ns()
        texts = list(kserve.generate(echo.address, "echo-0", "hello", 5, timeout=20))
        ended = time.monotonic_ns()
    stamps = [tuple(map(int, text.split())) for text in texts]
    arrived, sent = {a for _, a, _ in stamps}, [s for _, _, s in stamps]
    assert [number for number, _, _ in stamps] == list(range(5))
    assert len(sent) == 5
    (came,) = arrived
    assert began <= came and sent[-1] <= ended
    assert all(at >= came + (100 + 20 * i - 1) * MS for i, at in enumerate(sent))  # never ahead, but by a clock's tick
    assert sent == sorted(sent)


def measured(ttft=1000.0, tpot=20.0, late=0.0):
    """Rows of a run with these latencies, ms."""
    first, last = int(ttft * MS), int((ttft + 10 * tpot) * MS)
    row = {"status": "ok", "t_submit": 0, "t_first": first, "t_last": last, "output_tokens": 11}
    return [row | {"late_ns": int(late * MS)}] * 5


def own(ttft_p50=0.0, ttft_p99=0.0, response_p50=0.0):
    return OwnLatency(ttft_p50, ttft_p99, response_p50, 0.0, 0.0, 0.0, 100.0)


@pytest.mark.parametrize(
    "rows, latency, said",
    [
        (measured(), own(99, 99, 1.9), None),
        (measured(), own(ttft_p50=101), "median time to first token, 1000.00 ms: more than 10%"),
        (measured(), own(ttft_p99=101), "99th percentile"),
        (measured(), own(response_p50=2.1), "time per output token"),
        (measured(late=99), own(), None),
        (measured(late=101), own(), "101.00 ms late"),
        ([{"status": "error", "t_first": None, "late_ns": None}], own(50, 50, 50), None),
    ],
)
def test_a_run_is_invalid_where_its_users_add_more_than_a_tenth(rows, latency, said):
    why = users.invalid(rows, latency)
    assert why is None if said is None else said in why


def test_the_share_is_a_parameter():
    assert users.invalid(measured(), own(ttft_p50=60), share=0.05) and not users.invalid(measured(), own(ttft_p50=60))
    with pytest.raises(ErlabError, match="'share'"):
        users.invalid(measured(), own(), share=1)


def test_the_self_test_leaves_nothing_behind():
    requests = plan("warm up", "hello", "and on", users=12)
    rows = measured(ttft=100.0, tpot=20.0)
    found = users.self_test(requests, users.pace(rows), engines=2, processes=2, warmup=1, seconds=2)
    assert 0 < found.response_p50 <= found.response_p99 < 10_000  # ms
    assert 0 < found.ttft_p50 <= found.ttft_p99 < 10_000
    # 12 users get 9 tokens each in about 0.1 s + 8 * 20 ms, and none comes faster than the pace
    assert 12 * 9 / 30 < found.responses_per_second < 12 * 9 / (8 * 0.02)
    assert not [p for p in psutil.Process().children() if "erlab.users.echo" in p.cmdline()]


def test_a_run_in_which_all_failed_has_no_pace():
    with pytest.raises(ErlabError, match="none of its requests ended well"):
        users.pace([{"status": "error", "t_first": None}])
