"""What a measured cell depends on: the code that serves and measures it, and no code beside that."""

import shutil

import pytest

from erlab import fingerprint
from erlab.experiments import cells
from erlab.serving import profiles

LAPTOP = profiles.profile("laptop")
CODE = "\nADDED = 1\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package whose files a test may change."""
    copy = tmp_path / "erlab"
    shutil.copytree(fingerprint.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)
    return copy


@pytest.mark.parametrize("router", [False, True])
@pytest.mark.parametrize(
    "module",
    ["experiments/cell", "users/loop", "serving/engines/tiny_engine", "gateway/server", "prompts/workload"],
)
def test_a_cell_depends_on_the_code_that_measures_it_by_its_meaning(package, module, router):
    before, file = cells.code(LAPTOP, router), package / f"{module}.py"
    text = file.read_text()
    file.write_text(text.replace('"""', '"""Reworded. ', 1) + "# a comment\n")
    assert cells.code(LAPTOP, router) == before, "a docstring and a comment"
    file.write_text(text + CODE)
    assert cells.code(LAPTOP, router) != before, "a line of code"


@pytest.mark.parametrize(
    "module",
    [
        "commands/study",
        "study/pipeline",
        "explore/settings",
        "report/__init__",
        "figures/style",
        "figures/fig3",
        "experiments/overviews",
        "experiments/table1",
        "experiments/capacity",
        "results/metrics",
        "results/claims",
        "simulation/system",
        "serving/engines/emulated",
        "serving/engines/one_gpu",
    ],
)
def test_a_cell_does_not_depend_on_what_plans_shows_or_simulates(package, module):
    before, file = [cells.code(LAPTOP, router) for router in (False, True)], package / f"{module}.py"
    file.write_text(file.read_text() + CODE)
    assert [cells.code(LAPTOP, router) for router in (False, True)] == before


def test_routing_code_concerns_router_systems_only(package):
    before = {router: cells.code(LAPTOP, router) for router in (False, True)}
    file = package / "routing" / "policies.py"
    file.write_text(file.read_text() + CODE)
    assert {router: cells.code(LAPTOP, router) == code for router, code in before.items()} == {False: True, True: False}
