"""The paper's machine beside what was measured: which step times, kept records, what their machine says."""

import sys
from dataclasses import replace

import pytest

from erlab import paper
from erlab.experiments import fullscale
from erlab.paths import Folders
from erlab.serving import profiles
from erlab.simulation import Setup, simulate

SMALL = replace(profiles.profile("smoke"), simulated_loads=(1, 4), simulated_seeds=3)


def test_without_measured_kernels_the_roofline_stands_in_and_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "aiconfigurator", None)  # as if it were not installed
    said = []
    monkeypatch.setattr(fullscale, "report", lambda done, total, what: said.append(what))
    found = fullscale.simulate("baselines", SMALL, Folders(tmp_path))
    assert set(found.requests.machine) == {"DGX H100 (simulated, roofline limit)"}
    roof = simulate(paper.SYSTEMS["v2"]["A"], 4, setup=Setup(steps="roofline", era=None)).requests
    mine = found.requests.query("system == 'A' and users == 4 and run_id.str.endswith('-s0')").reset_index(drop=True)
    assert mine.t_last.equals(roof.t_last)
    assert said[0].startswith("baselines: simulated with the roofline, the limit, without measured step times")


def test_every_seed_is_a_run_of_its_own_with_other_users(monkeypatch, tmp_path):
    monkeypatch.setattr(fullscale, "machine", lambda: Setup(steps="roofline", era=None))
    found = fullscale.simulate("baselines", SMALL, Folders(tmp_path), seed=7)
    assert found.runs.groupby(["system", "users"]).seed.agg(list).tolist() == [[7, 8, 9]] * 6
    cell = found.requests.query("system == 'A' and users == 4").groupby("run_id")
    assert cell.size().nunique() == 1 and len(set(cell.input_tokens.agg(tuple))) == 3
    of_b = found.requests.query("system == 'B' and users == 4").groupby("run_id")
    assert of_b.input_tokens.agg(tuple).tolist() == cell.input_tokens.agg(tuple).tolist(), "same seed, same requests"
    early = fullscale.simulate("preliminary", SMALL, Folders(tmp_path), seed=7)
    assert set(early.runs.seed) == {7}


def test_more_seeds_are_simulated_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(fullscale, "machine", lambda: Setup(steps="roofline", era=None))
    one = replace(SMALL, simulated_seeds=1)
    assert len(fullscale.simulate("baselines", one, Folders(tmp_path)).runs) == 6
    assert len(fullscale.simulate("baselines", SMALL, Folders(tmp_path)).runs) == 18


def test_records_are_kept_until_step_times_change(monkeypatch, tmp_path):
    def simulated():
        found = fullscale.simulate("baselines", SMALL, Folders(tmp_path))
        (file,) = tmp_path.rglob("*.parquet")
        return file.stat().st_mtime_ns, found.runs.setup[0]["steps"]

    monkeypatch.setattr(fullscale, "machine", lambda: Setup(steps="roofline", era=None))
    first = simulated()
    assert first[1] == "roofline" and simulated() == first
    pytest.importorskip("aiconfigurator")
    monkeypatch.setattr(fullscale, "machine", Setup)
    then, steps = simulated()
    assert steps == "measured" and then > first[0]
