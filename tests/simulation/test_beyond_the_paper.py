"""Tests of goodput, largest loads, cost, policies, sensitivity and autoscaling."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from erlab import paper
from erlab.errors import ErlabError
from erlab.results import metrics
from erlab.routing.policies import POLICIES
from erlab.simulation import Setup, beyond, sensitivity, simulate, variations
from erlab.simulation import autoscaling as auto
from erlab.simulation.assumptions import Variation, with_kv_pool, zipf
from erlab.simulation.system import simulated_policies
from erlab.spec import Lengths, Workload

ROOF = Setup(steps="roofline", era=None)
SHORT = Workload(Lengths(60, 0.8, 4, 400), Lengths(20, 0.7, 1, 100), turns=3)
D, E = paper.SYSTEMS["v2"]["D"], paper.SYSTEMS["v2"]["E"]
LIMITS = beyond.LatencyLimits("test", 0.1, 20.0)


def rows(*times):
    """Return finished requests of 11 tokens, submitted at 0, by the times (ms) of first and last token."""
    records = [
        dict(run_id="r", status="ok", t_submit=0, t_first=a * 10**6, t_last=b * 10**6, output_tokens=11)
        for a, b in times
    ]  # fmt: skip
    return pd.DataFrame(records).convert_dtypes()


def test_goodput_counts_requests_within_both_limits():
    requests = rows((50, 200), (150, 200), (50, 500), (100, 300))  # good, slow first token, slow tokens, just good
    assert beyond.within(requests, LIMITS).tolist() == [True, False, False, True]
    assert beyond.goodput(requests, LIMITS) == pytest.approx(2 / 0.5)
    single = rows((50, 50)).assign(output_tokens=1)
    assert beyond.within(single, LIMITS).all()
    assert not beyond.within(rows((50, 200)).assign(status="timeout"), LIMITS).any()


def test_largest_load_meets_the_limits_and_one_more_user_does_not():
    limits = beyond.LatencyLimits("tight", 0.05, 8.0)
    most = beyond.largest_load(D, limits, setup=ROOF, workload=SHORT)
    good = lambda n: beyond.holds(simulate(D, n, setup=ROOF, workload=SHORT).requests, limits)  # noqa: E731
    assert most == 0 or good(most)
    assert not good(most + 1)
    assert beyond.largest_load(D, beyond.LatencyLimits("never", 1e-9, 1e-9), setup=ROOF, workload=SHORT) == 0
    assert beyond.largest_load(E, beyond.LatencyLimits("always", 1e9, 1e9), setup=ROOF, workload=SHORT, most=37) == 37


def test_cost_and_energy_are_gpus_times_price_or_power_over_throughput():
    summary = pd.DataFrame({"system": ["A", "D"], "users": [5, 5], "output_throughput": [1000.0, 4000.0]})
    systems = {"A": replace(paper.SYSTEMS["v2"]["A"], count=1), "D": D}
    found = beyond.economics(summary, systems, dollars_per_gpu_hour=3.6)
    assert found["gpus"].tolist() == [4, 8]
    assert found["dollars_per_million_tokens"].tolist() == pytest.approx([4.0, 2.0])  # 0.001 $ per GPU second
    assert found["joules_per_token"].tolist() == pytest.approx([2.8, 1.4])  # 700 W per GPU


def test_load_aware_routing_compensates_imbalance():
    found = beyond.policies(
        D, [400], ["nearest", "least_outstanding"], {"skewed": zipf(8, 1.5)}, setup=ROOF, workload=SHORT
    ).set_index("policy")
    assert found.loc["least_outstanding", "largest share"] < 0.2 < found.loc["nearest", "largest share"]
    assert found.loc["least_outstanding", "output_throughput"] > 1.3 * found.loc["nearest", "output_throughput"]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_compared_unless_it_equals_nearest(name):
    """Without a generalist and a strong expert, `outlier` and `strong_weak` choose the nearest cluster's expert."""
    routed, nearest = (
        simulate(D, 60, setup=ROOF, workload=SHORT, shares=zipf(8, 1.0), policy=policy).requests["expert"]
        for policy in (name, "nearest")
    )
    assert (name in simulated_policies()) == (name == "nearest" or not routed.equals(nearest))


def test_all_simulated_policies_are_compared_by_default():
    compared = beyond.policies(D, [2], setup=ROOF, workload=SHORT)
    assert tuple(compared["policy"]) == simulated_policies()


def test_zipf_shares_are_proportional_to_a_power_of_the_rank():
    shares = zipf(4, 1.0)
    assert sum(shares) == pytest.approx(1)
    assert shares[0] / shares[3] == pytest.approx(4)
    assert zipf(5, 0) == pytest.approx([0.2] * 5)


def test_given_kv_pool_replaces_the_computed_one():
    small = with_kv_pool(D, 3.5)
    assert small.expert.kv_tokens == int(3.5 * 2**30) // paper.kv_bytes_per_token(D.expert)
    with pytest.raises(ErlabError, match="must hold one request of 2048 tokens"):
        with_kv_pool(D, 0.2)


def test_one_assumption_is_varied_at_a_time():
    cases = variations(measured_shares={"k-means": zipf(8, 0.3)})
    default = cases[0]
    assert default.assumption == "default"
    for case in cases[1:]:
        changed = [
            case.setup != default.setup,
            case.workload != default.workload,
            dict(case.systems) != dict(default.systems),
            dict(case.options) != {},
        ]
        assert sum(changed) == 1, case
    assert {c.assumption for c in cases} >= {
        "KV pool of 70B on one GPU", "software era", "replicas of a baseline", "cluster shares", "median input length",
        "gateway delay",
    }  # fmt: skip
    v1 = variations("v1")
    assert set(v1[0].systems) == set(paper.SYSTEMS["v1"])


def test_sensitivity_judges_the_records_of_each_variation():
    setups = {g: replace(ROOF, gateway=g) for g in (0.0, 0.5)}
    cases = [Variation("gateway delay", f"{g} s", {"E": E}, s, SHORT) for g, s in setups.items()]
    found = sensitivity(cases=cases, loads=(2,))
    assert found["value"].tolist() == ["0.0 s", "0.5 s"]
    assert found["ttft_median_s"].iloc[1] == pytest.approx(found["ttft_median_s"].iloc[0] + 0.5, abs=0.05)
    counted = sensitivity(lambda r: pd.DataFrame({"n": [len(r.requests)]}), cases, (2, 3))
    assert counted["n"].tolist() == [SHORT.turns_for(2) * 2 + SHORT.turns_for(3) * 3] * 2


# ---- autoscaling


def test_forecast_follows_a_linear_trend_and_is_never_negative():
    assert auto.demand([2.0 * i for i in range(20)], 5, True) == pytest.approx(48)
    assert auto.demand([9.0, 5.0, 1.0], 10, True) == 0.0
    assert auto.demand([9.0, 5.0, 1.0], 10, False) == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_moves_go_to_overloaded_experts_and_overload_no_giver(seed):
    rng = np.random.default_rng(seed)
    wanted, have = rng.uniform(0, 300, 5).tolist(), rng.integers(1, 4, 5).tolist()
    after = list(have)
    for giver, taker in auto.moves(wanted, have, 50):
        assert wanted[taker] > 50 * after[taker]
        after[giver] -= 1
        after[taker] += 1
        assert wanted[giver] <= 50 * after[giver]
    assert sum(after) == sum(have) and min(after) >= 1


def test_shares_of_a_shifting_load_follow_the_sine():
    load, chosen = auto.shifting_load(2, 1000, 40, swing=1.0, workload=SHORT, seed=1)
    assert (np.diff(load.at) >= 0).all()
    assert len(chosen) == pytest.approx(40_000, rel=0.05)
    quarter = np.abs(load.at / 1000 - 0.25) < 0.02
    assert (chosen[quarter] == 0).mean() > 0.97  # sin = 1 for expert 0, -1 for the other
    assert (chosen == 0).mean() == pytest.approx(0.5, abs=0.02)


def test_replicas_follow_demand():
    load, chosen = auto.shifting_load(2, 300, 60, swing=1.0, workload=SHORT)
    small = replace(D, count=4, expert=replace(D.expert, max_batch_size=8))
    setup = replace(ROOF, gateway=0.0)
    found = {
        kind: auto.simulate_autoscaled(small, 2, load, chosen, auto.Controller(kind, 8, 1.0, 3.0), setup)
        for kind in ("fixed", "reactive", "forecasting")
    }
    for records in found.values():
        assert len(records.requests) == len(chosen)
        assert (records.requests["t_submit"] < records.requests["t_first"]).all()
        assert (records.requests["cluster"].to_numpy() == chosen).all()
    assert found["fixed"].runs["moves"].item() == 0 < found["reactive"].runs["moves"].item()
    wait = {kind: metrics.percentile(metrics.ttft(r.requests), 90) for kind, r in found.items()}
    assert wait["reactive"] < 0.7 * wait["fixed"]


def test_constant_load_moves_no_replica():
    load, chosen = auto.shifting_load(4, 60, 20, swing=0.0, workload=SHORT)
    setup = replace(ROOF, gateway=0.0)
    reactive = auto.simulate_autoscaled(E, 4, load, chosen, auto.Controller("reactive"), setup)
    fixed = auto.simulate_autoscaled(E, 4, load, chosen, auto.Controller("fixed"), setup)
    assert reactive.runs["moves"].item() == 0
    assert (reactive.requests["t_last"] == fixed.requests["t_last"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: auto.Controller("magic"), "'kind' parameter of Controller must be one of fixed, reactive"),
        (lambda: auto.Controller(interval=0), "'interval' parameter of Controller must be above 0 seconds"),
        (lambda: auto.shifting_load(2, 10, 1, swing=2), "'swing' parameter of shifting_load must lie in"),
    ],
)
def test_invalid_controllers_raise(make, message):
    with pytest.raises(ErlabError, match=message):
        make()
