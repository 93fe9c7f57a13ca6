"""When users begin: rates, traces and pauses, by arithmetic and by their distributions."""

import numpy as np
import pytest
from fake_triton import plan
from scipy import stats

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
