"""Token lengths against scipy's log-normal, and the requests of users: same for all systems, exact in length."""

import time
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from erlab.errors import ErlabError
from erlab.paper import WORKLOAD
from erlab.prompts import datasets, workload
from erlab.spec import Lengths, Workload

INPUT, OUTPUT = WORKLOAD.input_tokens, WORKLOAD.output_tokens
LENGTHS = [INPUT, OUTPUT, INPUT.scaled(1 / 4), Lengths(300, 1.5, 250, 400)]


@pytest.fixture(scope="module")
def prompts():
    return datasets.load(per_domain=100)


def truncated(lengths: Lengths, x) -> np.ndarray:
    """The cumulated probability of a log-normal cut at the limits, by scipy."""
    whole = stats.lognorm(lengths.sigma, scale=lengths.median)
    low, high = whole.cdf([lengths.minimum, lengths.maximum])
    return np.clip((whole.cdf(x) - low) / (high - low), 0, 1)


def table(*rows: tuple[str, str, str]) -> Dataset:
    """Prompts of given domain, text and split."""
    domains, texts, splits = zip(*rows)
    ids = [f"p{i}" for i in range(len(rows))]
    return Dataset.from_dict({"id": ids, "domain": domains, "text": texts, "split": splits})


# Lengths


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_lengths_follow_the_truncated_log_normal(lengths):
    """Kolmogorov-Smirnov, with the rounding undone by spreading each length over its unit."""
    rng = np.random.default_rng(1)
    drawn = workload.sample(lengths, rng, 20_000)
    assert drawn.min() >= lengths.minimum and drawn.max() <= lengths.maximum and drawn.dtype == np.int64
    steps = np.arange(lengths.minimum, lengths.maximum) + 0.5
    shares = np.searchsorted(np.sort(drawn), steps) / len(drawn)
    assert np.abs(shares - truncated(lengths, steps)).max() < stats.kstwo.ppf(0.999, len(drawn))


def test_lengths_equal_redrawing():
    """The inverse of the distribution against what `Lengths` promises: draw again outside the limits."""
    lengths, rng = Lengths(100, 1.0, 50, 150), np.random.default_rng(2)
    free = rng.lognormal(np.log(100), 1.0, 200_000)
    kept = np.rint(free[(free >= 50) & (free <= 150)])
    drawn = workload.sample(lengths, rng, len(kept))
    assert np.allclose(np.quantile(drawn, [0.1, 0.5, 0.9]), np.quantile(kept, [0.1, 0.5, 0.9]), atol=1)


def test_lengths_without_spread():
    rng = np.random.default_rng(0)
    assert set(workload.sample(Lengths(70, 0.0, 1, 100), rng, 9)) == {70}
    assert set(workload.sample(Lengths(5, 1.0, 5, 5), rng, 9)) == {5}


# Requests


def test_every_system_gets_the_same_requests(prompts):
    assert workload.requests(prompts, WORKLOAD, 20, seed=3) == workload.requests(prompts, WORKLOAD, 20, seed=3)
    assert workload.requests(prompts, WORKLOAD, 20, seed=3) != workload.requests(prompts, WORKLOAD, 20, seed=4)
    asked = [
        [request.prompt_id for turns in workload.requests(prompts, WORKLOAD, users, seed=3)[:20] for request in turns]
        for users in (20, 21)
    ]
    assert asked[0] != asked[1], "another load, other prompts"


@pytest.mark.parametrize("users", [1, 2, 3, 50])
def test_each_user_has_the_workloads_number_of_turns(prompts, users):
    made = workload.requests(prompts, WORKLOAD, users, 0)
    assert [len(turns) for turns in made] == [WORKLOAD.turns_for(users)] * users


def test_requests_come_from_held_back_prompts_of_their_domain(prompts):
    by_id = {row["id"]: row for row in prompts}
    domains = {}
    for row in prompts:
        domains.setdefault(row["domain"], []).append(row["text"])
    for turns in workload.requests(prompts, WORKLOAD, 40, 0):
        for request in turns:
            source = by_id[request.prompt_id]
            assert source["split"] == "held_back" and source["domain"] == request.domain
            text = request.text.rstrip(".")
            assert text.startswith(source["text"].rstrip(".")) or source["text"].startswith(text)
            for whole in request.text.split("\n\n")[:-1] if len(source["text"]) < len(text) else []:
                assert any(whole in known for known in domains[request.domain])


def test_no_train_prompt_is_in_any_request():
    mixed = table(("a", "seen by the router", "train"), ("a", "fresh", "held_back"), ("b", "other", "held_back"))
    texts = [r.text for turns in workload.requests(mixed, WORKLOAD, 20, 0) for r in turns]
    assert not any("seen" in text for text in texts)
    assert not any("fresh" in text and "other" in text for text in texts)


def test_prompts_come_equally_often_and_so_do_domains_in_their_proportion():
    held = table(*[("a", f"a {i}", "held_back") for i in range(30)], *[("b", f"b {i}", "held_back") for i in range(10)])
    made = [r for turns in workload.requests(held, WORKLOAD, 16, 0) for r in turns]
    assert set(Counter(r.prompt_id for r in made).values()) == {2}
    assert Counter(r.domain for r in made) == {"a": 60, "b": 20}


def test_lengths_of_requests_follow_the_workload(prompts):
    made = [r for turns in workload.requests(prompts, WORKLOAD, 1000, 0) for r in turns]
    for lengths, tokens in (
        (INPUT, [r.input_tokens for r in made]),
        (OUTPUT, [r.max_tokens for r in made]),
    ):
        spread = np.array(tokens) + np.random.default_rng(0).uniform(-0.5, 0.5, len(tokens))
        assert stats.kstest(spread, lambda x, shape=lengths: truncated(shape, x)).pvalue > 0.01


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.text("aé日🙂 .", min_size=1).filter(str.strip), min_size=1, max_size=5),
    tokens=st.integers(2, 60),
    seed=st.integers(0, 2**32),
)
def test_a_text_has_exactly_its_number_of_tokens(texts, tokens, seed):
    """Whatever the alphabet: bytes plus the token that begins the sequence, valid UTF-8, never empty."""
    held = table(*[("d", text, "held_back") for text in texts])
    exact = Workload(Lengths(tokens, 0.0, tokens, tokens), Lengths(7, 0.0, 7, 7), turns=2)
    for turns in workload.requests(held, exact, 6, seed):
        for request in turns:
            assert len(request.text.encode("utf-8")) + 1 == request.input_tokens == tokens
            assert request.max_tokens == 7


def test_the_time_to_draw_requests_grows_linearly_with_the_users(prompts):
    def seconds(users: int) -> float:
        begin = time.process_time()
        workload.requests(prompts, WORKLOAD, users, 0)
        return time.process_time() - begin

    few, many = seconds(100), seconds(1000)
    assert many < 30 * few


def test_bad_arguments(prompts):
    with pytest.raises(ErlabError, match="None of the 1 prompts is held back for the users"):
        workload.requests(table(("a", "x", "train")), WORKLOAD, 1, 0)
    with pytest.raises(ErlabError, match=r"The 'seed' parameter of requests must be at least 0\. Got -1\."):
        workload.requests(prompts, WORKLOAD, 1, -1)
    with pytest.raises(ErlabError, match=r"The 'users' parameter of Workload must be at least 1\. Got 0\."):
        workload.requests(prompts, WORKLOAD, 0, 0)
