"""What notebooks 08 and 09 work out, against arithmetic, on small inputs."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from erlab import paper, simulation
from erlab.errors import ErlabError
from erlab.experiments import studies
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
    """Decisions for these clusters, of two."""
    return [SimpleNamespace(cluster=c, order=(c, 1 - c), distance=0.1, margin=0.1) for c in clusters]


@pytest.fixture
def roofline(monkeypatch):
    """The simulation without kernel tables."""
    monkeypatch.setattr(studies.fullscale, "setup", lambda folders: ROOF)
    return Folders(None)


def test_shares_are_counted_and_missing_clusters_are_empty():
    assert studies.shares(deciding(0, 1, 1, 1), least=2) == [0.25, 0.75]
    assert studies.shares(deciding(0, 1), least=4) == [0.5, 0.5, 0.0, 0.0]


def test_a_clusterers_imbalance_costs_throughput_unless_the_policy_ignores_it(roofline):
    decided = {"even": deciding(0, 1), "skewed": deciding(0, 0, 0, 1)}
    found = studies.policies(SMOKE, roofline, decided, "E", loads=[1200])
    assert found.groupby("clusterer")["largest cluster"].first().to_dict() == {"even": 0.5, "skewed": 0.75}
    table = studies.policy_table(found).loc[1200]
    assert table.loc["skewed", "nearest"] < 0.8 * table.loc["even", "nearest"]
    assert table.loc["skewed", "round_robin"] == pytest.approx(table.loc["even", "round_robin"], rel=1e-6)
    with pytest.raises(ErlabError, match="must be one of D, E, 70B-INT8, 13B-FP16, 13B-FP8. Got 'A'"):
        studies.policies(SMOKE, roofline, decided, "A")


def test_cost_and_goodput_of_what_was_simulated():
    requests = simulation.sweep({k: paper.SYSTEMS["v2"][k] for k in "CE"}, (1, 4), setup=ROOF).requests
    cost = studies.economics(requests, dollars_per_gpu_hour=4.5)
    per_token = cost["gpus"] * 4.5 / 3600 / cost["output_throughput"].astype(float)
    assert cost["dollars_per_million_tokens"].tolist() == pytest.approx((1e6 * per_token).tolist())
    assert set(cost["paper"]) == {"v2"} and set(cost["gpus"]) == {8}
    best = studies.cheapest(cost)
    assert len(best) == 2 and best["dollars_per_million_tokens"].is_monotonic_increasing
    good = studies.goodput(requests)
    assert len(good) == 2 * 2 * 2 and good["holds"].all(), "few users are served in time"


def test_largest_loads_cover_every_system_and_both_limits(roofline):
    found = studies.largest_loads(replace(SMOKE, simulated_loads=(1, 2)), roofline, deciding(0, 1))
    assert len(found) == 2 * len(studies.SYSTEMS) and set(found["paper"]) == {"v1", "v2"}
    assert found["users"].between(0, 8).all() and (found["users"] == 8).any()


def test_what_survives_is_counted_against_the_default(monkeypatch, roofline):
    """A gateway of half a second turns the claim about the router systems' first token."""
    only = {k: paper.SYSTEMS["v2"][k] for k in "ABCDE"}
    setups = {"": ROOF, "0 ms": replace(ROOF, gateway=0.0), "500 ms": replace(ROOF, gateway=0.5)}
    cases = [Variation("gateway delay" if name else "default", name, only, setup) for name, setup in setups.items()]
    monkeypatch.setattr(studies.simulation, "variations", lambda version, *_, **__: cases)
    monkeypatch.setattr(studies.paper, "SYSTEMS", {"v2": paper.SYSTEMS["v2"]})
    found = studies.sensitivity(SMOKE, roofline, deciding(0, 1))
    assert set(found["paper"]) == {"v2"} and len(found) == 3 * 8
    verdicts = found.set_index(["id", "value"])["verdict"]
    assert verdicts["v2-ttft-overhead", "500 ms"] == claims.HOLDS
    assert verdicts["v2-overhead-minimal", "500 ms"] == claims.FAILS
    table = studies.survival(found).set_index("claim")
    assert table.loc["v2-tpot-8b", ["survives", "flips at"]].tolist() == ["all 2", "nothing"]
    for claim, row in table.iterrows():
        changed = (verdicts[claim].iloc[1:] != verdicts[claim].iloc[0]).sum()
        assert row["survives"] == (f"{2 - changed} of 2" if changed else "all 2")
        assert ("500 ms" in row["flips at"]) == (verdicts[claim, "500 ms"] != verdicts[claim, ""])
    assert PLOTS["sensitivity"](found)


def test_residuals_are_medians_by_lengths_and_kind_in_order_of_length():
    rows = [("fp8", 1, 2048, 128, 0.9), ("fp8", 1, 128, 128, 1.1), ("fp8", 1, 128, 128, 1.3), ("fp16", 8, 128, 128, 2.0)]
    found = studies.residuals(pd.DataFrame(rows, columns=["quant", "tp", "isl", "osl", "judged"]))
    assert found["input/output"].tolist() == ["128/128", "2048/128"]
    assert found["fp8 TP 1"].tolist() == [1.2, 0.9]
    assert found["fp16 TP 8"].iloc[0] == 2.0 and pd.isna(found["fp16 TP 8"].iloc[1])


def test_targets_are_met_by_the_median_of_absolute_errors():
    new = pd.DataFrame({"judged": [0.95, 1.02, 1.3]})  # median 5 %
    old = pd.DataFrame({"judged": [0.8, 1.2, None]})  # 20 %
    h200 = pd.DataFrame({f"{name}_ratio": [1.0, 1.5, 1.0] for name in ("throughput", "tpot_ms", "ttft_s")})
    found = studies.targets(new, old, h200).set_index("against")
    assert found["met"].tolist() == ["yes", "no", "yes", "yes", "yes", "no", "no", "no"]
    assert found["reached"].tolist() == pytest.approx([0.05, 0.2, 0, 0, 0, 0.5, 0.5, 0.5])
    assert found["compared"].tolist() == [3, 2, 3, 3, 3, 1, 1, 1]


def test_what_is_shown_is_kept_as_table_and_picture(tmp_path):
    rows = [("fixed", 10.0, 0.9), ("fixed", 20.0, 0.5), ("reactive", 10.0, 0.95), ("reactive", 20.0, 0.8)]
    frame = pd.DataFrame(rows, columns=["controller", "rate", "within"]).assign(system="D", cold_start_s=60.0)
    pictures.show(tmp_path, "autoscaling", frame)
    assert pd.read_csv(tmp_path / "autoscaling.csv").equals(frame)
    assert (tmp_path / "autoscaling.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "autoscaling.pdf").read_bytes().startswith(b"%PDF")


def test_a_study_without_simulated_records_says_what_to_run(tmp_path):
    with pytest.raises(ErlabError, match="run notebooks 04 and 05 first"):
        studies.simulated(Folders(tmp_path))
