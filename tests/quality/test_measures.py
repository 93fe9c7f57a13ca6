"""Measures by arithmetic."""

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve

from erlab.quality import measures

STRONG = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 0], float)  # 0.7
WEAK = np.array([1, 1, 0, 0, 0, 1, 1, 0, 0, 0], float)  # 0.4: four prompts gain, one loses, five are equal


def test_the_random_router_recovers_half_of_the_gap():
    curve = measures.deferral(STRONG, WEAK, np.zeros(10))
    assert curve["share"].tolist() == [0, 1] and curve["accuracy"].tolist() == pytest.approx([0.4, 0.7])
    assert measures.apgr(curve) == 0.5
    assert measures.cpt(curve, 0.5) == 0.5 and measures.cpt(curve, 0.8) == 0.8


def test_the_oracle_by_arithmetic():
    """It gains 0.4 over a share of 0.4, keeps 0.8 over 0.5, and loses 0.1 over the last 0.1."""
    curve = measures.deferral(STRONG, WEAK, STRONG - WEAK)
    assert curve["share"].tolist() == pytest.approx([0, 0.4, 0.9, 1])
    assert curve["accuracy"].tolist() == pytest.approx([0.4, 0.8, 0.8, 0.7])
    area = 0.4 * 0.6 + 0.5 * 0.8 + 0.1 * 0.75
    assert measures.apgr(curve) == pytest.approx((area - 0.4) / 0.3)
    assert measures.cpt(curve, 0.5) == pytest.approx(0.15) and measures.cpt(curve, 1) == pytest.approx(0.3)


def test_the_worst_router_needs_the_strong_expert_for_almost_all():
    curve = measures.deferral(STRONG, WEAK, WEAK - STRONG)
    assert measures.apgr(curve) < 0 and measures.cpt(curve, 0.5) > 0.7


def test_equal_experts_have_no_gap():
    curve = measures.deferral(WEAK, WEAK, np.arange(10.0))
    assert measures.apgr(curve) is None and measures.cpt(curve, 0.5) is None
    assert measures.gap_recovered(0.4, 0.4, 0.4) is None
    assert measures.gap_recovered(0.65, 0.6, 0.8) == pytest.approx(0.25)


def test_the_hull_leaves_out_what_a_mix_of_others_exceeds():
    costs, qualities = np.array([1.0, 2, 3, 4, 5, 2]), np.array([0.2, 0.3, 0.8, 0.7, 0.9, 0.1])
    x, y = measures.hull(costs, qualities)
    assert x.tolist() == [1, 3, 5] and y.tolist() == [0.2, 0.8, 0.9]
    assert measures.aiq(costs, qualities, 1, 5) == pytest.approx((2 * 0.5 + 2 * 0.85) / 4)
    assert measures.aiq(costs, qualities, 1, 9) == pytest.approx((2 * 0.5 + 2 * 0.85 + 4 * 0.9) / 8)
    assert measures.aiq(costs, qualities, 1, 1) is None


def test_the_interval_is_that_of_the_normal_approximation():
    values = np.sort(np.random.default_rng(0).random(5000))  # whatever their order
    got = measures.interval(values)
    half = 1.96 * values.std() / np.sqrt(5000)
    assert got.mean == values.mean()
    assert (got.low, got.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert measures.interval(np.array([np.nan, 1.0])) == (1, 1, 1)
    assert measures.interval(np.array([np.nan])) is None


def test_pairing_narrows_the_interval_of_a_difference():
    rng = np.random.default_rng(0)
    hard = rng.random(2000)
    a, b = (hard + 0.01 * rng.random(2000) for _ in range(2))
    paired, alone = measures.interval(a - b), measures.interval(a)
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)


def test_shares_imbalance_and_regret():
    choices = np.array([0, 0, 0, 1])
    share = measures.shares(choices, 4)
    assert share.tolist() == [0.75, 0.25, 0, 0] and measures.imbalance(share) == 3
    scores = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0.5, np.nan, 1, 0], [0, 0, 0, 0]])
    assert measures.regret(scores, choices).tolist() == [0, 1, 0.5, 0]


def test_calibration_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    predicted = rng.random(4000)
    observed = (rng.random(4000) < predicted**2).astype(float)
    bins = measures.calibration(predicted, observed)
    true, mean = calibration_curve(observed, predicted, n_bins=10)
    np.testing.assert_allclose(bins[["observed", "predicted"]].to_numpy().T, [true, mean])
    assert bins["pairs"].sum() == 4000
    assert measures.calibration_error(bins) == pytest.approx(1 / 6, abs=0.02)  # the mean of p - p²
    exact = pd.DataFrame({"predicted": [0.2, 0.7], "observed": [0.3, 0.7], "pairs": [1, 3]})
    assert measures.calibration_error(exact) == pytest.approx(0.025)
