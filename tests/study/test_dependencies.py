"""Which steps become stale when a module of the package changes."""

import re
import shutil

import pytest

from erlab import fingerprint
from erlab.study import steps
from erlab.study.pipeline import Study

SERVES = {"00_environment", "01_build_engines", "03_preliminary", "04_baselines", "05_router"}
DRAWS = {"02_train_router", "04_baselines", "05_router", "06_figures", "08_beyond", "09_validation", "report"}
SIMULATES = {"05_router", "08_beyond", "09_validation"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package, whose modules are hashed instead of the package's own."""
    folder = tmp_path / "erlab"
    shutil.copytree(fingerprint.PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "PACKAGE", folder)
    return folder


def code(profile="laptop", **options):
    """The modules that each step depends on, and their hashes."""
    study = Study(profile, **options)
    return {step.name: study.dependencies(step)["code"] for step in study.steps}


@pytest.fixture(scope="module")
def before():
    return code()


def change(file, pattern, replacement):
    text, count = re.subn(pattern, replacement, file.read_text(), count=1)
    assert count == 1, file
    file.write_text(text)


@pytest.mark.parametrize(
    ("module", "pattern", "replacement", "stale"),
    [
        ("serving/deployment.py", r'\A"""', '"""Reworded. ', set()),
        ("experiments/cells.py", r"\n\n\ndef ", "\n\n\n# A comment.\ndef ", set()),
        ("figures/style.py", "#0072B2", "#0072B3", DRAWS),
        ("report/report.html.j2", "<main>", "<main >", {"report"}),
        ("serving/engines/tiny_engine.py", r"\Z", "\nADDED = 1\n", SERVES),
        ("serving/engines/tensorrt_llm.py", r"\Z", "\nADDED = 1\n", set()),
        ("routing/policies.py", r"\Z", "\nADDED = 1\n", SIMULATES),
        ("commands/app.py", r"\Z", "\nADDED = 1\n", set()),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" in value else "",
)
def test_a_change_makes_stale_only_steps_whose_result_it_can_change(
    before, package, module, pattern, replacement, stale
):
    change(package / module, pattern, replacement)
    after = code()
    assert {name for name in before if before[name] != after[name]} == stale


def test_an_engine_counts_for_the_profiles_that_use_it(package):
    before = code("dgx-h100")
    change(package / "serving/engines/tensorrt_llm.py", r"\Z", "\nADDED = 1\n")
    after = code("dgx-h100")
    assert {name for name in before if before[name] != after[name]} == SERVES


def test_figures_claims_and_report_depend_on_no_server(before):
    servers = ("erlab.experiments", "erlab.users", "erlab.gateway", "erlab.simulation", "erlab.routing")
    for step in ("06_figures", "07_claims", "report"):
        assert not [name for name in before[step] if name.startswith((*servers, "erlab.serving.engines"))], step


def test_a_measured_cell_depends_on_nothing_that_only_presents():
    presents = ("erlab.figures", "erlab.report", "erlab.explore", "erlab.commands", "erlab.study")
    assert not [name for name in fingerprint.code_of("import erlab.experiments.cells") if name.startswith(presents)]


def test_an_attached_server_brings_the_code_that_talks_to_it(before):
    assert "erlab.serving.external" not in before["04_baselines"]
    assert "erlab.serving.external" in code(triton="localhost:1")["04_baselines"]


def test_every_module_that_a_step_leaves_out_exists():
    for step in steps.STEPS:
        assert all(fingerprint.code_of(f"import {name}") for name in step.without), step.name


if __name__ == "__main__":  # number of modules that each step depends on
    for name, modules in code().items():
        print(f"{name:18}{len(modules):4}")
