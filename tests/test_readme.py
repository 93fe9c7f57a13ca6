"""What the readme shows can be run: its Python examples one after the other, and its commands' options exist."""

import re
import shlex

import pandas as pd
import pytest
from typer.main import get_command

from erlab import figures, paths
from erlab.commands.app import app
from erlab.routing import PromptRouter
from erlab.routing.clusterers import CLUSTERERS
from erlab.routing.policies import POLICIES
from erlab.serving import profiles, scaling
from erlab.serving.engines.kinds import ENGINE_KINDS, kind
from erlab.simulation.components import unavailable

README = (paths.ROOT / "README.md").read_text(encoding="utf-8")
TABLES = (ENGINE_KINDS, profiles.PROFILES, CLUSTERERS, POLICIES, figures.FIGURES)


@pytest.fixture
def tables():
    """What the examples add to; as before afterwards."""
    before = [dict(table) for table in TABLES]
    yield
    for table, kept in zip(TABLES, before):
        table.clear()
        table.update(kept)


@pytest.mark.skipif(bool(unavailable()), reason="no step times can be had here, so the examples cannot simulate")
def test_the_examples_of_how_to_add_things_run(tmp_path, monkeypatch, tables, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    examples = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert len(examples) == 5
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    assert (names["found"].requests.status == "ok").all() and names["found"].requests.expert.nunique() == 4
    made = kind(profiles.profile("mine"))
    expert = scaling.scale(names["system"], profiles.profile("mine"), 2).expert
    for folder, build in (("mine", made.build), ("tiny", kind(profiles.profile("laptop")).build)):
        build(expert, tmp_path / folder, 0, None)
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("mine", "tiny")]
    assert weights[0] != weights[1]
    assert set(names["router"].labels_) == set(range(8))
    short, long = PromptRouter.load("my_router").route(["salt?", max(names["prompts"]["text"], key=len)]).difficulty
    assert 0 < short < long < 1
    assert pd.read_csv("my_figures/fig8.csv").ttft_p99_s.notna().all() and (tmp_path / "my_figures/fig8.pdf").is_file()
    assert names["mine"].num_rows == 40


def test_the_commands_shown_have_the_options_shown():
    commands = get_command(app).commands
    scripts = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    shown = [line for script in scripts for line in script.splitlines() if line.startswith("erlab ")]
    assert len(shown) >= 12
    for line in shown:
        _, name, *rest = shlex.split(line, comments=True)
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, line
