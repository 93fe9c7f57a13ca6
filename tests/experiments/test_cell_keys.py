"""What a measured cell depends on: the code that serves and measures it, and no code beside that."""

import shutil

import pytest

from erlab import fingerprint
from erlab.experiments import cells
from erlab.serving import profiles

LAPTOP = profiles.profile("laptop")
GPU_ENGINES = {  # by profile: a module that serves its engines, and modules of other engines
    "dgx-h100": ("triton/tensorrt_llm_server", ("engines/one_gpu", "engines/tiny_engine", "engines/tiny_backend")),
    "gpu-vllm": ("engines/openai_server", ("engines/tiny_backend", "engines/tiny_kind", "engines/emulated")),
}
CODE = "\nADDED = 1\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package whose files a test may change."""
    copy = tmp_path / "erlab"
    shutil.copytree(fingerprint.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)
    return copy


SERVED_BY = ("experiments/cell", "users/loop", "serving/engines/tiny_engine", "gateway/server", "prompts/workload")
PRESENTED_BY = (
    *("commands/study", "study/pipeline", "explore/settings", "report/__init__", "figures/style", "figures/fig3"),
    *("experiments/overviews", "experiments/table1", "experiments/capacity", "results/metrics", "results/claims"),
    *("results/records", "simulation/system", "serving/engines/emulated", "serving/engines/one_gpu"),
)


@pytest.mark.parametrize("router", [False, True])
def test_a_cell_depends_on_the_code_that_measures_it_by_its_meaning(package, router):
    code = cells.code(LAPTOP, router)
    for file in (package / f"{module}.py" for module in SERVED_BY):
        file.write_text(file.read_text().replace('"""', '"""Reworded. ', 1) + "# a comment\n")
    assert cells.code(LAPTOP, router) == code, "docstrings and comments"
    for file in (package / f"{module}.py" for module in SERVED_BY):
        file.write_text(file.read_text() + CODE)
        before, code = code, cells.code(LAPTOP, router)
        assert code != before, file


def test_a_cell_does_not_depend_on_what_plans_shows_or_simulates(package):
    before = [cells.code(LAPTOP, router) for router in (False, True)]
    for file in (package / f"{module}.py" for module in PRESENTED_BY):
        file.write_text(file.read_text() + CODE)
    assert [cells.code(LAPTOP, router) for router in (False, True)] == before


def test_routing_code_concerns_router_systems_only(package):
    before = {router: cells.code(LAPTOP, router) for router in (False, True)}
    file = package / "routing" / "policies.py"
    file.write_text(file.read_text() + CODE)
    assert {router: cells.code(LAPTOP, router) == code for router, code in before.items()} == {False: True, True: False}


@pytest.mark.parametrize("profile", GPU_ENGINES)
def test_a_cell_on_gpus_depends_on_the_engines_of_its_profile_only(package, profile):
    (own, others), gpus = GPU_ENGINES[profile], profiles.profile(profile)
    before = cells.code(gpus, router=True)
    for file in (package / "serving" / f"{module}.py" for module in others):
        file.write_text(file.read_text() + CODE)
    assert cells.code(gpus, router=True) == before
    file = package / "serving" / f"{own}.py"
    file.write_text(file.read_text() + CODE)
    assert cells.code(gpus, router=True) != before
