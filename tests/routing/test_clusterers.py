"""Tests of clusterers: balanced assignment against scipy's optimum, heads against independent computations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score, euclidean_distances

from erlab.errors import ErlabError
from erlab.routing import clusterers
from erlab.routing.balanced import assign
from erlab.routing.clusterers import CLUSTERERS, fit_supervised
from erlab.routing.heads import Centers, Posterior


@st.composite
def problems(draw):
    n, k = draw(st.integers(1, 60)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    costs = rng.random((n, k)) ** draw(st.sampled_from([0.3, 1, 4]))
    costs[:, 0] -= draw(st.sampled_from([0, 1]))  # the cheapest column for most rows
    ties = draw(st.booleans())
    return np.round(costs, 1) if ties else costs, draw(st.sampled_from([0.0, 1.0])) * rng.normal(size=k)


@given(problems())
def test_assignment_has_the_lowest_cost_within_capacity(problem):
    costs, prices = problem
    n, k = costs.shape
    labels, learned = assign(costs, prices)
    capacity = -(-n // k)
    assert np.bincount(labels, minlength=k).max() <= capacity
    slots = np.repeat(costs, capacity, axis=1)
    rows, columns = linear_sum_assignment(slots)
    assert costs[np.arange(n), labels].sum() == pytest.approx(slots[rows, columns].sum(), abs=1e-9)
    priced = costs + learned
    assert (priced[np.arange(n), labels] <= priced.min(axis=1) + 1e-9).all()


@pytest.fixture(scope="module")
def blobs():
    """Vectors of four groups of unequal sizes around corners of a simplex, and their groups."""
    rng = np.random.default_rng(5)
    domains = np.repeat([0, 1, 2, 3], [120, 40, 80, 60])
    vectors = np.eye(8)[domains] + rng.normal(scale=0.12, size=(300, 8))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), domains


def decide(head, vectors):
    return head.costs(vectors, head.distances(vectors)).argmin(axis=1)


@pytest.mark.parametrize("name", ["kmeans", "spherical", "ward", "gaussian"])
def test_clusterers_find_separate_groups(name, blobs):
    vectors, domains = blobs
    labels, head = CLUSTERERS[name](vectors, 4, 5, 0)
    assert adjusted_rand_score(domains, labels) > 0.95
    assert (decide(head, vectors) == labels).mean() > 0.99
    assert head.centers.shape == (4, 8)


@pytest.mark.parametrize("name", CLUSTERERS)
def test_same_seed_same_clusters(name, blobs):
    first, second = (CLUSTERERS[name](blobs[0], 5, 2, 7) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1].centers, second[1].centers)


@pytest.mark.parametrize("name", ["balanced", "capacity"])
def test_balanced_clusters_have_equal_sizes(name, blobs):
    labels, _ = CLUSTERERS[name](blobs[0], 4, 3, 0)
    assert np.bincount(labels).tolist() == [75] * 4


def test_prices_balance_unseen_vectors(blobs):
    vectors, _ = blobs
    train, unseen = vectors[::2], vectors[1::2]
    plain, priced = (clusterers.CLUSTERERS[n](train, 4, 3, 0)[1] for n in ("balanced", "capacity"))
    fullest = [np.bincount(decide(head, unseen), minlength=4).max() for head in (plain, priced)]
    assert fullest[1] < fullest[0]
    labels, head = clusterers.fit_capacity(train, 4, 3, 0)
    assert (decide(head, train) == labels).mean() > 0.97  # ties may be broken either way


def test_gaussian_head_costs_are_the_negative_log_posterior():
    rng = np.random.default_rng(1)
    shares, means, variances = np.array([0.2, 0.8]), rng.normal(size=(2, 3)), rng.uniform(0.5, 2, (2, 3))
    head, points = Posterior.of_gaussians(shares, means, variances), rng.normal(size=(20, 3))
    densities = [multivariate_normal(m, np.diag(v)).pdf(points) for m, v in zip(means, variances, strict=True)]
    joint = shares * np.stack(densities, axis=1)
    expected = -np.log(joint / joint.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(head.costs(points, head.distances(points)), expected)


@pytest.mark.parametrize("classes", [2, 4])
def test_supervised_head_costs_are_the_classifiers_log_probabilities(blobs, classes):
    from sklearn.linear_model import LogisticRegression

    vectors, domains = blobs
    domains = domains % classes
    expected = LogisticRegression(C=10.0, max_iter=2000).fit(vectors, domains).predict_log_proba(vectors)
    head = fit_supervised(vectors, domains)
    np.testing.assert_allclose(head.costs(vectors, head.distances(vectors)), -expected, atol=1e-8)


@given(st.integers(0, 1000))
def test_distances_are_euclidean(seed):
    rng = np.random.default_rng(seed)
    centers, vectors = rng.normal(size=(4, 6)), rng.normal(size=(5, 6))
    np.testing.assert_allclose(Centers(centers).distances(vectors), euclidean_distances(vectors, centers), atol=1e-7)
    assert Centers(centers).distances(centers).diagonal() == pytest.approx(0, abs=1e-6)


def test_ward_limits_the_number_of_prompts(monkeypatch, blobs):
    monkeypatch.setattr(clusterers, "WARD_LIMIT", 299)
    with pytest.raises(ErlabError, match="'texts' parameter of the ward clusterer must be at most 299. Got 300"):
        clusterers.fit_ward(blobs[0], 4, 1, 0)
