"""When users begin: rates, traces and pauses, by arithmetic and by their distributions."""

import time
from pathlib import Path

import numpy as np
import pytest
from fake_triton import plan
from scipy import stats

from erlab import paths
from erlab.errors import ErlabError
from erlab.users import load


def test_poisson_arrivals_are_a_poisson_process():
    times = load.poisson(20.0, 5000, seed=1)
    gaps = np.diff(times, prepend=0.0)
    assert stats.kstest(gaps, "expon", args=(0, 1 / 20)).pvalue > 0.01
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.05
    assert (load.poisson(20.0, 5000, seed=1) == times).all() and (load.poisson(20.0, 5000, seed=2) != times).all()


def test_constant_arrivals_are_evenly_spaced():
    assert load.constant(4.0, 5).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:46.6805900,879,55
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 3000, "input_length": 7319, "output_length": 490, "hash_ids": [0]}
{"timestamp": 3000, "input_length": 7236, "output_length": 794, "hash_ids": [2]}
"""


def test_traces_are_read(tmp_path):
    (tmp_path / "a.csv").write_text(AZURE)
    (tmp_path / "m.jsonl").write_text(MOONCAKE)
    assert load.trace(tmp_path / "a.csv").tolist() == pytest.approx([0, 4.314579, 60])
    assert load.trace(tmp_path / "m.jsonl", speed=2).tolist() == [0, 1.5, 1.5]


TIMES = {
    "2023-11-16 18:15:46.6805900": 0.68059,
    "2023-11-16 18:15:46.5+00:00": 0.5,
    "2023-11-16 18:15:46": 0,
    "2023-11-16T18:15:46Z": 0,
    "2023-11-16 18:15:46.000001Z": 0.000001,
    "2023-11-16 19:15:46.25+01:00": 0.25,
    "2023-11-16 13:15:46.1234567-05:00": 0.123456,
    " 2023-11-16 18:15:46,5 ": 0.5,
}


@pytest.mark.parametrize("text", TIMES)
def test_fractions_and_zones_are_optional(tmp_path, text):
    (tmp_path / "a.csv").write_text(f'TIMESTAMP\n2023-11-16 18:15:46\n"{text}"\n')
    assert load.trace(tmp_path / "a.csv").tolist() == pytest.approx([0, TIMES[text]], abs=1e-6)


@pytest.fixture
def new_york(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


def test_naive_times_are_utc_so_that_no_hour_is_added_or_lost(tmp_path, new_york):
    for day in ("2024-03-10", "2024-11-03"):  # daylight-saving time begins and ends there
        times = [f"{day} {hour}" for hour in ("00:30:00.0", "01:30:00.5", "02:30:00", "03:30:00")]
        (tmp_path / "a.csv").write_text("\n".join(["TIMESTAMP", *times]))
        assert load.trace(tmp_path / "a.csv").tolist() == [0, 3600.5, 7200, 10800]


def test_a_trace_may_have_a_byte_order_mark_blank_lines_and_odd_characters(tmp_path):
    text = '\ufeff{"timestamp": 0, "text_input": "one\u2028two\x85"}\r\n\r\n{"session_id": "a", "timestamp": 5}\r\n'
    (tmp_path / "m.jsonl").write_bytes(text.encode())
    assert load.trace(tmp_path / "m.jsonl").tolist() == [0, 0.005]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + AZURE.replace("\n", "\r\n").encode())
    assert len(load.trace(tmp_path / "a.csv")) == 3


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"timestamp": 1}\n{"timestamp": NaN}', "t:2: no trace, `timestamp` must be a number of ms. Got nan."),
        ('{"timestamp": 1e999}', "t:1: no trace, `timestamp` must be a number of ms. Got inf."),
        ('{"timestamp": null}', "t:1: no trace, `timestamp` must be a number of ms. Got None."),
        ('{"timestamp": 1}\n\n{"timestamp": 0}', "t:3: the times of a trace must rise. Got one 0.001 s earlier."),
        ('{"timestamp": 1}\n{"delay": 2, "input_length": 9}', "t:2: a trace of AIPerf's conversations"),
        ('{"session_id": "a", "input_length": 9}', "t:1: a trace of AIPerf's conversations"),
        ('{"session_id": "a", "turns": [{"text": "x", "delay": 2}]}', "t:1: a trace of AIPerf's conversations"),
        ("{" + '"a":{' * 100_000, "t:1: no trace, a line must be one JSON object ("),
        ("Timestamp,Model\n5,ChatGPT\n", "must have the column TIMESTAMP. Got Timestamp, Model."),
        ("TIMESTAMP\n2023-11-16 18:15:46\n2023-11-16 18:15:61\n", "t:3: no trace, TIMESTAMP must be a date and time"),
        ("ContextTokens,TIMESTAMP\n5\n", "t:2: no trace, TIMESTAMP must be a date and time"),
        ('TIMESTAMP\n"open', "t: no trace, it must be comma-separated values (unexpected end of data)."),
        ("TIMESTAMP\n", "t: the trace holds no times."),
    ],
)
def test_what_is_wrong_with_a_trace_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "t").write_text(text)
    with pytest.raises(ErlabError) as caught:
        load.trace(tmp_path / "t")
    assert said in str(caught.value) and "\n" not in str(caught.value)


SHARED = Path(paths.ROOT).parent / "shared" / "traces"


@pytest.mark.skipif(not SHARED.is_dir(), reason="no collection of real traces beside the repository")
@pytest.mark.parametrize("name, count", [("azure_llm_code_2023.csv", 8819), ("mooncake_synthetic.jsonl", 3993)])
def test_real_traces_are_all_read(name, count):
    times = load.trace(SHARED / name)
    assert len(times) == count and times[0] == 0 and 600 < times[-1] < 7200


@pytest.mark.parametrize("text", ["", "hello", '{"time": 3}', '{"timestamp": 3}\n{"timestamp": 2}', "TIMESTAMP\nnoon"])
def test_a_file_that_is_no_trace_is_one_line(tmp_path, text):
    (tmp_path / "t").write_text(text)
    with pytest.raises(ErlabError, match="trace") as caught:
        load.trace(tmp_path / "t")
    assert "\n" not in str(caught.value)


def test_apart_takes_all_first_turns_then_all_second():
    requests = plan("a", "b", users=2)
    assert [[r.prompt_id for r in mine] for mine in load.apart(requests)] == [["0-0"], ["1-0"], ["0-1"], ["1-1"]]
    assert [mine[0].prompt_id for mine in load.apart(requests, 5)] == ["0-0", "1-0", "0-1", "1-1", "0-0"]


def test_answers_have_the_length_asked_for():
    requests = plan("a", "b", users=2)
    fixed = load.answers(requests, 77)
    assert [[(r.prompt_id, r.max_tokens) for r in mine] for mine in fixed] == [
        [("0-0", 77), ("0-1", 77)],
        [("1-0", 77), ("1-1", 77)],
    ]


def test_pauses_are_exponential_and_the_first_is_none():
    pauses = load.pauses(0.5, [1001] * 5, seed=3)
    assert all(mine[0] == 0 for mine in pauses)
    assert stats.kstest([p for mine in pauses for p in mine[1:]], "expon", args=(0, 0.5)).pvalue > 0.01
    assert load.pauses(0.0, [3], seed=3) == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "wrong", [lambda: load.poisson(0, 1, 0), lambda: load.constant(-1, 1), lambda: load.answers([], 0)]
)
def test_bad_parameters_are_named(wrong):
    with pytest.raises(ErlabError, match="'rate'|'tokens'"):
        wrong()
