"""The paper's machine beside what was measured: which step times, kept records, what their machine says."""

import sys
from dataclasses import replace

import pytest

from erlab import fullscale, paper, profiles
from erlab.deployment import Folders
from erlab.simulation import Setup, simulate

SMALL = replace(profiles.profile("smoke"), simulated_loads=(1, 4))


def test_without_measured_kernels_the_roofline_stands_in_and_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "aiconfigurator", None)  # as if it were not installed
    said = []
    monkeypatch.setattr(fullscale, "report", lambda done, total, what: said.append(what))
    found = fullscale.simulate("baselines", SMALL, Folders(tmp_path))
    assert set(found.requests.machine) == {"DGX H100 (simulated, roofline limit)"}
    roof = simulate(paper.SYSTEMS["v2"]["A"], 4, setup=Setup(steps="roofline", era=None)).requests
    mine = found.requests.query("system == 'A' and users == 4").reset_index(drop=True)
    assert mine.t_last.equals(roof.t_last)
    assert said[0].startswith("baselines: simulated with the roofline, the limit, without measured step times")


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
