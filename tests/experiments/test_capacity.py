"""Policies, autoscaling, cost and limits of the simulated machine, against arithmetic on small inputs."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from erlab import paper, simulation
from erlab.errors import ErlabError
from erlab.experiments import capacity, fullscale, robustness
from erlab.figures import simulation as pictures
from erlab.figures.simulation import PLOTS
from erlab.paths import Folders
from erlab.results import claims
from erlab.serving import profiles
from erlab.simulation import Setup
from erlab.simulation.assumptions import Variation

ROOF = Setup(steps="roofline", era=None)
SMOKE = replace(profiles.profile("smoke"), simulated_loads=(1, 4), explored_loads=(1, 4))


def deciding(*clusters):
    """Return decisions for these clusters, out of two."""
    return [SimpleNamespace(cluster=c, order=(c, 1 - c), distance=0.1, margin=0.1) for c in clusters]


@pytest.fixture
def roofline(monkeypatch, tmp_path):
    """The simulation without kernel tables."""
    monkeypatch.setattr(fullscale, "setup", lambda folders: ROOF)
    return Folders(tmp_path)


def test_shares_count_decisions_and_missing_clusters_are_empty():
    assert capacity.shares(deciding(0, 1, 1, 1), least=2) == [0.25, 0.75]
    assert capacity.shares(deciding(0, 1), least=4) == [0.5, 0.5, 0.0, 0.0]


def test_a_clusterers_imbalance_costs_throughput_unless_the_policy_ignores_it(roofline):
    decided = {"even": deciding(0, 1), "skewed": deciding(0, 0, 0, 1)}
    simulated = capacity.policies(SMOKE, roofline, decided, "E", loads=[1200])
    assert simulated.groupby("clusterer")["largest cluster"].first().to_dict() == {"even": 0.5, "skewed": 0.75}
    table = capacity.policy_table(simulated).loc[1200]
    assert table.loc["skewed", "nearest"] < 0.8 * table.loc["even", "nearest"]
    assert table.loc["skewed", "round_robin"] == pytest.approx(table.loc["even", "round_robin"], rel=1e-6)
    with pytest.raises(ErlabError, match="must be one of D, E, 70B-INT8, 13B-FP16, 13B-FP8. Got 'A'"):
        capacity.policies(SMOKE, roofline, decided, "A")


def test_cost_and_goodput_of_simulated_requests():
    requests = simulation.sweep({k: paper.SYSTEMS["v2"][k] for k in "CE"}, (1, 4), setup=ROOF).requests
    cost = capacity.economics(requests, dollars_per_gpu_hour=4.5)
    per_token = cost["gpus"] * 4.5 / 3600 / cost["output_throughput"].astype(float)
    assert cost["dollars_per_million_tokens"].tolist() == pytest.approx((1e6 * per_token).tolist())
    assert set(cost["paper"]) == {"v2"} and set(cost["gpus"]) == {8}
    best = capacity.cheapest(cost)
    assert len(best) == 2 and best["dollars_per_million_tokens"].is_monotonic_increasing
    good = capacity.goodput(requests)
    assert len(good) == 2 * 2 * 2 and good["holds"].all(), "few users are served in time"


def test_largest_loads_cover_every_system_and_both_limits(roofline):
    table = capacity.largest_loads(replace(SMOKE, simulated_loads=(1, 2)), roofline, deciding(0, 1))
    assert len(table) == 2 * len(capacity.SYSTEMS) and set(table["paper"]) == {"v1", "v2"}
    assert table["users"].between(0, 8).all() and (table["users"] == 8).any()


def test_survival_is_counted_against_the_default(monkeypatch, roofline):
    """A gateway of half a second turns the claim about the router systems' first token."""
    only = {k: paper.SYSTEMS["v2"][k] for k in "ABCDE"}
    setups = {"": ROOF, "0 ms": replace(ROOF, gateway=0.0), "500 ms": replace(ROOF, gateway=0.5)}
    cases = [Variation("gateway delay" if name else "default", name, only, setup) for name, setup in setups.items()]
    monkeypatch.setattr(robustness.simulation, "variations", lambda version, *_, **__: cases)
    monkeypatch.setattr(robustness.paper, "SYSTEMS", {"v2": paper.SYSTEMS["v2"]})
    judged = robustness.sensitivity(SMOKE, roofline, deciding(0, 1))
    assert set(judged["paper"]) == {"v2"} and len(judged) == 3 * 8
    verdicts = judged.set_index(["id", "value"])["verdict"]
    assert verdicts["v2-ttft-overhead", "500 ms"] == claims.HOLDS
    assert verdicts["v2-overhead-minimal", "500 ms"] == claims.FAILS
    table = robustness.survival(judged).set_index("claim")
    assert table.loc["v2-tpot-8b", ["survives", "flips at"]].tolist() == ["all 2", "nothing"]
    for claim, row in table.iterrows():
        changed = (verdicts[claim].iloc[1:] != verdicts[claim].iloc[0]).sum()
        assert row["survives"] == (f"{2 - changed} of 2" if changed else "all 2")
        assert ("500 ms" in row["flips at"]) == (verdicts[claim, "500 ms"] != verdicts[claim, ""])
    assert PLOTS["sensitivity"](judged)


def test_results_are_saved_as_table_and_figure(tmp_path):
    rows = [("fixed", 10.0, 0.9), ("fixed", 20.0, 0.5), ("reactive", 10.0, 0.95), ("reactive", 20.0, 0.8)]
    frame = pd.DataFrame(rows, columns=["controller", "rate", "within"]).assign(system="D", cold_start_s=60.0)
    pictures.show(tmp_path, "autoscaling", frame)
    assert pd.read_csv(tmp_path / "autoscaling.csv").equals(frame)
    assert (tmp_path / "autoscaling.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "autoscaling.pdf").read_bytes().startswith(b"%PDF")


def test_a_study_without_simulated_records_says_what_to_run(tmp_path):
    with pytest.raises(ErlabError, match="run notebooks 04 and 05 first"):
        capacity.simulated(Folders(tmp_path))
