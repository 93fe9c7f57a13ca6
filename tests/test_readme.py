"""README: its commands, notebooks, times and verdicts agree with the package."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from typer.main import get_command

from erlab import paper, paths, simulation
from erlab.commands.app import app
from erlab.paper import CLAIMS
from erlab.prompts import datasets
from erlab.results import claims
from erlab.routing import PromptRouter
from erlab.serving import profiles, scaling
from erlab.serving.engines.kinds import kind
from erlab.simulation.components import unavailable
from erlab.spec import FP8, Expert, System
from erlab.study import environment

README = (paths.ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "".join(re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)).splitlines()
PAPERMILL = [line for line in SHELL if line.startswith("papermill ")]

simulates = pytest.mark.skipif(bool(unavailable()), reason=f"no step times to simulate with: {unavailable()}")


def table(first_column: str) -> list[list[str]]:
    """Return the rows of README's table whose first column has this name."""
    lines = README.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 : end]]


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_continuous_integration_runs_the_test_command_of_readme():
    script = paths.ROOT / ".ci" / "run"
    if not script.is_file():
        pytest.skip("not a clone of the repository")
    assert any(script.read_text().splitlines()[-1] == line.partition("#")[0].strip() for line in SHELL)


def test_commands_have_the_options_shown():
    commands = get_command(app).commands
    lines = [line for line in SHELL if line.startswith("erlab ")]
    assert len(lines) >= 12
    for line in lines:
        _, name, *rest = shlex.split(line, comments=True)
        command = commands[name]
        command = command.commands[rest[0]] if hasattr(command, "commands") else command
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, line


def test_every_notebook_is_listed():
    listed = {name for row in table("notebook") for name in re.findall(r"`(\w+)`", row[0])}
    assert listed == {notebook.stem for notebook in paths.NOTEBOOKS.glob("*.ipynb")}


@pytest.mark.parametrize("row", table("profile"), ids=lambda row: row[0].strip("`"))
def test_times_and_disk_of_profiles_are_those_of_the_plan(row, tmp_path):
    plan = environment.plan(row[0].strip("`"), tmp_path)
    time, unit = re.fullmatch(r"([\d.]+) (minutes|hours)", row[3]).groups()
    minutes = float(time) * {"minutes": 1, "hours": 60}[unit]
    assert plan.minutes.sum() == pytest.approx(minutes, rel=0.1)
    gigabytes = float(row[4].removesuffix(" GB").replace(",", ""))
    assert plan["disk MB"].sum() / 1e3 == pytest.approx(gigabytes, rel=0.1, abs=0.1)


def test_the_time_of_the_study_is_that_of_the_plan(tmp_path):
    minutes = int(re.search(r"takes about (\d+) minutes", README).group(1))
    assert environment.plan("laptop", tmp_path).minutes.sum() == pytest.approx(minutes, rel=0.2)


def test_verdicts_name_claims_of_the_paper():
    assert len(table("claim of the paper")) == 5
    for statement, *verdicts in table("claim of the paper"):
        assert statement in {claim.statement for claim in CLAIMS}
        assert {verdict.removesuffix(f", {claims.NOISE}") for verdict in verdicts} <= {claims.HOLDS, claims.FAILS}


@simulates
def test_simulated_verdicts_are_those_of_the_simulation():
    """Without a study's router and gateway: clusters of equal size, the default time of the gateway."""
    simulated = simulation.sweep(paper.SYSTEMS["v2"], paper.LOADS, seed=0)
    shown = {statement: verdict for statement, _, verdict in table("claim of the paper")}
    ids = [claim.id for claim in CLAIMS if claim.statement in shown]
    ledger = claims.ledger(simulated, ids, resamples=0)
    assert dict(zip(ledger.statement, ledger.verdict)) == shown


@simulates
@pytest.mark.parametrize("line", PAPERMILL)
def test_papermill_examples_run(line, tmp_path):
    """As README shows them, but with outputs in a temporary folder."""
    _, notebook, output, *parameters = shlex.split(line)
    command = [sys.executable, "-m", "papermill", notebook, str(tmp_path / output), *parameters]
    command += ["-p", "results", str(tmp_path / "results"), "--no-progress-bar"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / output).is_file()
    if "extend" in notebook:
        check_extensions(tmp_path / "results")


def check_extensions(folder):
    """Check the files of extend.ipynb: each extension has its effect."""
    system = System("F", "v2", Expert(paper.LLAMA_3_8B, FP8, 2), count=4, router=True)
    mine = replace(profiles.profile("smoke"), name="mine")
    kind(mine).build(scaling.scale(system, mine, 2).expert, folder / "plain", 1, None)
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("engine", "plain")]
    assert weights[0] != weights[1]
    router = PromptRouter.load(folder / "router")
    longest = max(datasets.load(per_domain=50)["text"], key=len)
    short, long = router.route(["salt?", longest]).difficulty
    assert 0 < short < long < 1 and len(router.centers_) == 8
    assert pd.read_csv(folder / "figures" / "fig8.csv").ttft_p99_s.notna().all()
    assert (folder / "figures" / "fig8.pdf").is_file()
    assert len((folder / "prompts" / "sums.jsonl").read_text().splitlines()) == 40


def test_both_ways_of_giving_parameters_are_shown():
    assert len(PAPERMILL) == 2 and " -p " in PAPERMILL[0] and " -y " in PAPERMILL[1]
