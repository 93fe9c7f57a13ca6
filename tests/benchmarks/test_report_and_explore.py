"""How long readers wait: the report from a study's records, explore's first picture and a changed control.

Targets on two cores: the report from records in 10 s; explore's first picture 3 s after Run All, a change in 1 s. What is
asserted are ratios within one run: other jobs on the machine lengthen wall time, and threads CPU time.
"""

import json
import subprocess
import sys

import pytest
import synthetic

from erlab import figures, paper, simulation
from erlab.results import records

_CLOCKS = """
import json, sys, time
def clocks(): return time.process_time(), time.perf_counter()
def since(start): return [now - then for now, then in zip(clocks(), start)]
start = clocks()
"""
_REPORT = """
from pathlib import Path
from erlab import report
from erlab.results import claims, records
folder = Path(sys.argv[1])
found = records.read(folder / "records")
ledger = claims.ledger(found)
first, start = since(start), clocks()
report.build(folder, found, folder / "figures", ledger, {})
print(json.dumps([first, since(start)]))
"""
_EXPLORE = """
from erlab.explore import panel, settings
shown = panel.Panel(*(settings.Setting(system=name, steps="roofline") for name in "DE"))
first, start = since(start), clocks()
shown.controls[0].controls["gateway_ms"].value = 50.0
print(json.dumps([first, since(start)]))
"""


def spent(code: str, *arguments) -> list[tuple[float, float]]:
    """(CPU, wall) seconds of each part of a fresh process, imports included, as it printed them."""
    done = subprocess.run([sys.executable, "-c", _CLOCKS + code, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with the main job's number of simulated requests, and some made up for measured ones."""
    folder = tmp_path_factory.mktemp("study")
    setup = simulation.Setup(steps="roofline", era=None)
    swept = [simulation.sweep(s, setup=setup, seed=seed) for s in paper.SYSTEMS.values() for seed in range(5)]
    found = records.join(*swept, simulation.sweep(simulation.preliminary_systems(), setup=setup), synthetic.make())
    records.save(folder / "records" / "all.parquet", found)
    figures.save_all(figures.data(synthetic.make()), folder / "figures")
    return folder


def test_the_report_takes_a_few_times_as_long_as_its_ledger(study, record_property):
    (ledger, _), (report, _) = spent(_REPORT, str(study))
    print(f"CPU: imports, records and ledger {ledger:.1f} s, report {report:.1f} s")
    record_property("report_cpu_s", round(ledger + report, 1))
    assert report < 3 * ledger


def test_a_change_in_explore_is_drawn_sooner_than_the_first_picture(record_property):
    (first, first_wall), (change, change_wall) = spent(_EXPLORE)
    print(f"first picture: {first:.1f} s CPU, {first_wall:.1f} s wall; a change: {change:.2f} and {change_wall:.2f} s")
    record_property("first_picture_cpu_s", round(first, 1))
    assert change < 0.5 * first
