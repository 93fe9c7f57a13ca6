"""Tests of `PromptRouter`: compiled decisions against scikit-learn's pipeline, bad input, estimator interface."""

import re
from copy import copy

import numpy as np
import pytest
from domain_prompts import DOMAINS, SHARED
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.metrics import euclidean_distances
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils import estimator_checks

from erlab.errors import ErlabError
from erlab.routing import PromptRouter
from erlab.routing.text import CONSIDERED, top_terms, words


@pytest.fixture(scope="module")
def router(texts):
    return PromptRouter(clusters=6, dimensions=20, seed=3).fit(texts)


class NumberNormalizing(TfidfVectorizer):
    """c-BTM's recipe with scikit-learn's documented means: tokens that begin with a digit become one stop word."""

    def build_tokenizer(self):
        tokenize = super().build_tokenizer()
        return lambda text: ["#NUMBER" if t[0].isdigit() else t for t in tokenize(text)]


@pytest.mark.filterwarnings("ignore:Your stop_words may be inconsistent")
def test_default_recipe_matches_the_published_one(texts, router):
    stop_words = [*ENGLISH_STOP_WORDS, "#NUMBER"]
    published = make_pipeline(
        NumberNormalizing(stop_words=stop_words),
        TruncatedSVD(20, random_state=3),
        Normalizer(copy=False),
        KMeans(6, n_init=10, random_state=3),
    )
    assert (published.fit_predict(texts) == router.labels_).all()
    np.testing.assert_allclose(published.transform(texts), router.transform(texts), atol=1e-9)


known = st.sampled_from([*sum(DOMAINS.values(), SHARED), "²x", "3d", "the"])
mixed = st.lists(known | st.text(max_size=12), max_size=30).map(" ".join)


@given(st.lists(mixed, min_size=1, max_size=5))
@example([""])
@example([" \n\t", "PASTA pasta\0pasta", "🍝 🎵", "律師 和 法院", "oven " * 5000])
@example(["oven " * 1600 + "pasta lawyer " * 90_000, "İ" * CONSIDERED + "oven"])
def test_compiled_decisions_equal_the_pipeline(router, batch):
    routing = router.route(batch)
    vectors = router.features_.transform(batch)
    np.testing.assert_allclose(router.embed(batch), vectors, atol=1e-9)
    assert (routing.cluster == euclidean_distances(vectors, router.centers_).argmin(axis=1)).all()


@given(st.lists(mixed, min_size=1, max_size=5))
def test_routing_fields_are_consistent(router, batch):
    routing = router.route(batch)
    ordered = np.sort(routing.costs, axis=1)
    assert np.isfinite(routing.costs).all()
    assert (routing.cluster == routing.costs.argmin(axis=1)).all()
    assert (routing.distance == ordered[:, 0]).all()
    assert (routing.margin == ordered[:, 1] - ordered[:, 0]).all()
    assert (routing.runner_up != routing.cluster).all()
    for i, text in enumerate(batch):
        row = routing.row(i)
        assert row.order[:2] == (row.cluster, row.runner_up) and sorted(row.order) == list(range(6))
        np.testing.assert_allclose(router.route([text]).costs[0], routing.costs[i], atol=1e-12)


def test_long_prompts_are_decided_by_their_beginning(router):
    assert router.predict(["the 12 " + "pasta oven " * 90_000])[0] == router.predict(["pasta oven"])[0]
    beginning = ("pasta oven " * CONSIDERED)[:CONSIDERED]
    np.testing.assert_array_equal(router.embed([beginning + " court" * 180_000]), router.embed([beginning]))


def test_empty_batches_give_empty_results(router):
    assert len(router.route([])) == 0 and router.transform([]).shape == (0, 6)


def test_routers_with_equal_seeds_are_equal(texts, router):
    again = clone(router).fit(texts)
    np.testing.assert_array_equal(again.centers_, router.centers_)


def test_dimensions_are_limited_by_the_features():
    router = PromptRouter(clusters=2).fit(["apple pear", "apple", "pear plum", "plum"])
    assert router.dimensions_ == 3
    assert router.embed(["apple", "the"]).shape == (2, 3)


def test_one_cluster_has_no_runner_up(texts):
    routing = PromptRouter(clusters=1).fit(texts).route(["pasta", ""])
    assert routing.cluster.tolist() == [0, 0] and routing.runner_up.tolist() == [-1, -1]
    assert np.isinf(routing.margin).all() and np.isfinite(routing.distance).all()
    assert routing.row(0).order == (0,)


@pytest.mark.parametrize(
    "parameters, texts, message",
    [
        ({"clusters": 0}, ["a cat"], "'clusters' parameter of PromptRouter must be at least 1. Got 0."),
        ({"clusters": 2.5}, ["a cat"], "'clusters' parameter of PromptRouter must be at least 1. Got 2.5."),
        ({"clusters": 3}, ["cat", "dog", "cat"], "must be at most the 2 distinct prompts. Got 3."),
        ({"clusters": 2}, ["cat dog 1", "cat dog 2", "the dog cat"], "must be at most 1, the prompts that differ"),
        ({"clusters": 1}, ["", "the 12"], "The 2 prompts hold fewer than two different words besides stop"),
        ({"clusters": 1}, ["cat", "the cat"], "The 2 prompts hold fewer than two different words"),
        ({"clusters": 1}, [], "must be at most the 0 distinct prompts"),
        ({"clusters": 1}, "one text", "must be a list of prompts"),
        ({"clusters": 1}, ["cat", None], "must hold text. Got None at 1."),
        ({"clusters": 1, "dimensions": 0}, ["cat"], "'dimensions' parameter"),
        ({"clusters": 1, "restarts": 0}, ["cat"], "'restarts' parameter"),
    ],
)
def test_bad_input_is_refused(parameters, texts, message):
    with pytest.raises(ErlabError, match=re.escape(message)):
        PromptRouter(**parameters).fit(texts)


def test_single_domain_and_constant_features_give_finite_distances():
    router = PromptRouter(clusters=1).fit(["cat dog"] * 5)
    assert router.route(["dog cat"]).distance[0] == pytest.approx(0)
    router = PromptRouter(clusters=3, dimensions=5).fit([f"cat {w}" for w in DOMAINS["cooking"]])
    assert np.isfinite(router.transform(["cat", "dog"])).all()


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_valid_tag_types,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learn_estimator_checks(check):
    check("PromptRouter", PromptRouter())


def test_fit_predict_returns_the_labels(texts):
    router = PromptRouter(clusters=3)
    np.testing.assert_array_equal(router.fit_predict(texts), router.labels_)
    np.testing.assert_array_equal(router.labels_, router.predict(texts))


def test_words_drop_stop_words_and_numbers():
    assert words("The CAT, a 3rd cat; ²x 42 naïve _9 I x") == ["cat", "cat", "naïve", "_9"]


def test_top_terms_distinguish_clusters():
    texts = ["red car", "red bus", "red car now", "red boat"]
    assert top_terms(texts, [0, 0, 0, 1], 3) == [["car"], [], []]  # bus, boat: one prompt; red: everywhere


def test_prompts_without_known_features_are_outliers(router, texts, tmp_path):
    """The vector is zero, so the score depends only on the norms of the centres and the mean."""
    router, unknown = copy(router), ["", "qqq zzz www", "the of and"]
    assert not router.embed(unknown).any()
    score = router.outlier_score_
    to_clusters, to_all = ((score.centers @ score.within) ** 2).sum(axis=1), ((score.mean @ score.around) ** 2).sum()
    assert router.outlier_scores(unknown) == pytest.approx([to_clusters.min() - to_all] * 3)
    before = router.route([*texts, *unknown])
    assert not before.outlier.any(), "no outliers before calibration"
    router.threshold_ = float(max(router.outlier_scores([*texts[20:], *unknown])))  # above their scores
    saved = PromptRouter.load(router.save(tmp_path / "router"))
    pipeline = router.decide(router.features_.transform([*texts, *unknown]))
    for routing in (router.route([*texts, *unknown]), saved.route([*texts, *unknown]), pipeline):
        assert routing.outlier[-3:].all()
        assert (routing.outlier[:-3] == (router.outlier_scores(texts) > router.threshold_)).all()
        assert (routing.cluster == before.cluster).all()
