"""Tests of simulated systems: conservation, determinism, queueing theory, routing, records."""

import sys
from dataclasses import replace
from unittest.mock import Mock

import distributed
import numpy as np
import pytest

from erlab import paper
from erlab.errors import ErlabError
from erlab.results import metrics, records
from erlab.simulation import Batching, Setup, fixed_lengths, open_loop, preliminary_systems, simulate, sweep, validation
from erlab.prompts.traffic import closed_loop
from erlab.spec import Lengths, Workload

ROOF = Setup(steps="roofline", era=None)
SHORT = Workload(Lengths(60, 0.8, 4, 400), Lengths(20, 0.7, 1, 100), turns=3)
A, D, E = (paper.SYSTEMS["v2"][k] for k in "ADE")


@pytest.mark.parametrize("system", [A, D, E])
@pytest.mark.parametrize("users", [1, 7, 300])
def test_every_request_is_answered_in_the_order_of_its_session(system, users):
    found = simulate(system, users, workload=SHORT, setup=ROOF).requests
    assert len(found) == users * SHORT.turns_for(users)
    assert (found["t_submit"] < found["t_first"]).all() and (found["t_first"] <= found["t_last"]).all()
    one = found["output_tokens"] == 1
    assert (found["t_first"] == found["t_last"]).eq(one).all()
    later = found["turn"] > 0
    assert (found["t_submit"] == found["t_last"].shift())[later].all()  # no pause between requests
    assert (found.loc[~later, "t_submit"] == 0).all()


def test_requests_in_flight_equal_users_until_the_first_user_finishes():
    users = 40
    found = simulate(E, users, workload=SHORT, setup=ROOF).requests
    last = found.groupby("user")["t_last"].max().min()
    moments = np.linspace(1, last - 1, 200)
    in_flight = [((found["t_submit"] <= t) & (found["t_last"] > t)).sum() for t in moments]
    assert set(in_flight) == {users}


def test_more_users_have_more_requests_in_flight():
    few, many = (simulate(D, n, workload=SHORT, setup=ROOF).requests for n in (50, 400))
    in_flight = lambda r: (r["t_last"] - r["t_submit"]).sum() / r["t_last"].max()  # noqa: E731 (Little's law)
    assert in_flight(many) > in_flight(few)


def test_all_systems_get_the_same_requests_at_a_load():
    lengths = [simulate(s, 20, workload=SHORT, setup=ROOF).requests[["input_tokens", "output_tokens"]] for s in (A, E)]
    assert lengths[0].equals(lengths[1])
    other = simulate(A, 20, workload=SHORT, setup=ROOF, seed=1).requests
    assert not other["input_tokens"].equals(lengths[0]["input_tokens"])


def test_identities_of_queueing_theory():
    found = validation.identities(ROOF).set_index("identity")["ratio"]
    assert found.iloc[0] == 1.0
    assert found.iloc[1] == pytest.approx(1, abs=0.02)
    assert found.iloc[2] == pytest.approx(1, abs=0.05)


def test_the_gateway_delays_router_systems_only():
    found = simulate(E, 5, workload=SHORT, setup=replace(ROOF, gateway=0.004)).requests
    assert ((found["t_routed"] - found["t_submit"]) == 4_000_000).all()
    assert (found["t_first"] > found["t_routed"]).all()
    assert simulate(A, 5, workload=SHORT, setup=ROOF).requests["t_routed"].isna().all()
    measured = (0.001, 0.003, 0.009)
    delays = simulate(E, 50, workload=SHORT, setup=replace(ROOF, gateway=measured)).requests
    assert set((delays["t_routed"] - delays["t_submit"]) / 1e9) == set(measured)


def test_prompts_follow_the_cluster_shares():
    shares = [0.5, 0.3, 0.2] + [0.0] * 5
    found = simulate(E, 400, workload=SHORT, setup=ROOF, shares=shares).requests
    observed = found["cluster"].value_counts(normalize=True)
    assert set(observed.index) == {0, 1, 2}
    assert observed[0] == pytest.approx(0.5, abs=0.06)
    assert (found["expert"] == "E-expert-" + found["cluster"].astype(str)).all()


def test_imbalance_reduces_throughput():
    even, skewed = (
        metrics.output_throughput(simulate(D, 400, workload=SHORT, setup=ROOF, shares=s).requests)
        for s in (None, [0.65] + [0.05] * 7)
    )
    assert skewed < 0.7 * even


def test_decisions_of_a_router_are_drawn_with_their_distances():
    from erlab.routing.compiled import Row

    orders = [tuple(np.roll(range(16), -c)) for c in range(16)]
    rows = [Row(cluster=o[0], distance=o[0] / 10, margin=0.1, runner_up=o[1], order=o) for o in orders]
    found = simulate(E, 100, workload=SHORT, setup=ROOF, decisions=rows).requests
    assert np.allclose(found["distance"].astype(float), found["cluster"] / 10)
    experts = "E-expert-" + (found["cluster"] % 8).astype(str)
    assert (found["expert"] == experts).all()


def test_baselines_spread_users_over_replicas_evenly():
    """Two replicas serve twice as many users as one, request for request as fast."""
    one = simulate(replace(A, count=1), traffic=fixed_lengths(30, 3, 50, 20), setup=ROOF).requests
    two = simulate(replace(A, count=2), traffic=fixed_lengths(60, 3, 50, 20), setup=ROOF).requests
    assert sorted(two["t_last"]) == sorted([*one["t_last"], *one["t_last"]])


def test_records_have_the_schema_of_a_measured_run(tmp_path):
    found = simulate(E, 10, workload=SHORT, setup=ROOF)
    assert list(found.requests.columns) == records.SCHEMA.names
    records.save(tmp_path / "e.parquet", found)
    again = records.read(tmp_path / "e.parquet")
    assert again.requests.equals(found.requests)
    assert again.runs.loc[0, "machine"] == "DGX H100 (simulated, roofline limit)"
    assert again.runs.loc[0, "kv_tokens"] == paper.kv_pool_tokens(E.expert)
    assert metrics.summarise(again.requests)["failed"].item() == 0


def test_sweep_does_not_depend_on_the_number_of_processes():
    systems = {"D": D, "E": E}
    serial = sweep(systems, (1, 30), workload=SHORT, setup=ROOF, jobs=1)
    parallel = sweep(systems, (1, 30), workload=SHORT, setup=ROOF, jobs=2)
    assert serial.requests.equals(parallel.requests) and serial.runs.equals(parallel.runs)
    assert serial.requests["run_id"].nunique() == 4


def test_sweep_on_a_local_dask_cluster_is_the_same():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, protocol="tcp") as cluster:
        spread = sweep({"E": E}, (1, 30), workload=SHORT, setup=ROOF, cluster=f"dask:{cluster.scheduler_address}")
    assert spread.requests.equals(sweep({"E": E}, (1, 30), workload=SHORT, setup=ROOF).requests)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:99999999"])
def test_missing_ray_cluster_raises_with_its_address(monkeypatch, address):
    """Ray is not a dependency, so a mock is imported; its own client would try for minutes."""
    for name in ("ray", "ray.util", "ray.util.joblib"):
        monkeypatch.setitem(sys.modules, name, Mock())
    with pytest.raises(ErlabError, match=f"^No Ray cluster answers at {address}: "):
        sweep({"E": E}, (1,), workload=SHORT, setup=ROOF, cluster=f"ray:{address}")


def test_preliminary_systems_are_those_of_fig_3():
    from erlab.results import selection

    found = sweep(preliminary_systems(limits=(8, 64)), (1, 20), workload=SHORT, setup=ROOF)
    chosen = selection.preliminary_requests(found)
    assert len(chosen) == len(found.requests)
    assert set(chosen["half"]) == {"half", "all"} and set(chosen["max_batch_size"]) == {8, 64}
    waits = metrics.e2e(chosen).groupby([chosen["half"], chosen["max_batch_size"], chosen["users"]]).median()
    assert waits["half", 8, 20] > waits["half", 64, 20]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(users=0), "'users' parameter of Workload must be at least 1. Got 0"),
        (dict(), "'users' parameter of simulate must be given, or else traffic, not both. Got None"),
        (dict(users=3, traffic=fixed_lengths(1, 1, 5, 5)), "must be given, or else traffic, not both. Got 3"),
        (dict(users=2.5), "'users' parameter of simulate must be a whole number. Got 2.5"),
        (dict(users=3, seed=-1), "'seed' parameter of simulate must be a whole number from 0. Got -1"),
        (dict(users=3, policy="luck"), "'policy' parameter of simulate must be one of nearest"),
        (dict(users=3, shares=[0.5, 0.5]), "'shares' parameter of simulate must be at least 8 shares"),
        (dict(users=3, shares=[-1, 2, *[0] * 6]), "'shares' parameter .* at least 8 shares, none negative"),
        (dict(users=3, decisions=[]), "'decisions' parameter of simulate must hold at least one decision"),
    ],
)
def test_invalid_input_raises(given, message):
    with pytest.raises(ErlabError, match=message):
        simulate(E, given.pop("users", None), workload=SHORT, setup=ROOF, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(era="0.9"), "'era' parameter of Setup must be None or one of 0.13. Got '0.9'"),
        (dict(era=(1.0,)), r"'era' parameter of Setup must be a name, None or two factors above 0. Got \(1.0,\)"),
        (dict(reserve_gib=-1), "'reserve_gib' parameter of Setup must be at least 0. Got -1"),
        (dict(free_fraction=1.5), r"'free_fraction' parameter of Setup must lie in \(0, 1\]. Got 1.5"),
        (dict(prefill_overhead=-1), "'prefill_overhead' parameter of Setup must be at least 0 seconds. Got -1"),
    ],
)
def test_invalid_setup_raises_at_construction(change, message):
    with pytest.raises(ErlabError, match=message):
        Setup(**change)


def test_policy_for_a_baseline_and_incomplete_traffic_raise():
    with pytest.raises(ErlabError, match="'policy' parameter of simulate must be left out for a baseline"):
        simulate(A, 3, policy="spill", setup=ROOF)
    with pytest.raises(ErlabError, match="'input_tokens' .* Traffic must have an entry for each of 2 .* Got 1"):
        open_loop([0, 1], [5], [5, 5])
    with pytest.raises(ErlabError, match="'at' parameter of Traffic must have an entry for each of 2 .* Got 1"):
        replace(fixed_lengths(2, 1, 5, 5), at=np.zeros(1))


def test_unordered_trace_raises_with_the_index():
    with pytest.raises(ErlabError, match=r"The load trace must rise from 0 s. Got 1.5 s after 2.0 s at request 2."):
        open_loop([0.0, 2.0, 1.5], [5] * 3, [5] * 3)
    with pytest.raises(ErlabError, match=r"Got -1.0 s after 0.0 s at request 0"):
        open_loop([-1.0, 2.0], [5] * 2, [5] * 2)
    with pytest.raises(ErlabError, match="Got nan s after 1.0 s at request 1"):
        open_loop([1.0, float("nan"), 2.0], [5] * 3, [5] * 3)
    found = simulate(E, traffic=open_loop([0.0, 1.0, 1.0], [5] * 3, [5] * 3), setup=ROOF).requests
    assert found["t_submit"].tolist() == [0, 10**9, 10**9]


def test_system_that_does_not_fit_raises():
    with pytest.raises(ErlabError, match="The KV pool of Llama 3 70B FP8 on 1 H100 holds"):
        simulate(D, 3, workload=SHORT, setup=replace(ROOF, reserve_gib=11.9))
    with pytest.raises(ErlabError, match="longest prompt"):
        simulate(E, 100, setup=replace(ROOF, batching=Batching(300)))


def test_closed_loop_is_deterministic():
    a, b = closed_loop(SHORT, 30, 5), closed_loop(SHORT, 30, 5)
    assert (a.input_tokens == b.input_tokens).all() and (a.output_tokens == b.output_tokens).all()
