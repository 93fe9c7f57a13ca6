"""The command line: what it refuses and how, its exit statuses, and that asking for help is quick and teaches."""

import errno
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from erlab import notebook, pipeline
from erlab.cli import app
from erlab.errors import ErlabError


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


DESKTOP = "The 'profile' parameter must be one of laptop, smoke. Got 'desktop'."
COMMANDS = ("reproduce", "figures", "claims", "doctor", "serve", "users", "simulate")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    done = run(command, "--help")
    assert done.exit_code == 0 and f"erlab {command}" in done.output.replace("Usage: ", "", 1)


def test_asking_for_help_loads_nothing_heavy():
    script = (
        "import sys\nfrom erlab.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'pandas', 'torch', 'papermill', 'datasets', 'sklearn', 'grpc'}\n"
        "print('LOADED', *(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED"
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reproduce", "--profile", "desktop"), DESKTOP),
        (("doctor", "--profile", "desktop"), DESKTOP),
        (("reproduce", "--only", "12"), "--only must name one of 00_environment, "),
        (("reproduce", "--set", "loads"), "--set must be NAME=VALUE. Got 'loads'."),
        (("reproduce", "--list", "--set", "lods=3"), "has a parameter 'lods'. --set may name there: clusterers, clusters, "),
        (("serve", "--system", "F"), "must be one of A, B, C, D, E. Got 'F'."),
        (("claims", "--records", "/no/such.parquet"), "/no/such.parquet: no such file or folder."),
        (("figures", "--profile", "desktop"), DESKTOP),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("erlab: ") and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ErlabError("k must be\nat least 1"), 2, "erlab: k must be at least 1\n"),
        (notebook.NotebookError("00.ipynb, cell 2: ValueError"), 1, "erlab: 00.ipynb, cell 2: ValueError\n"),
        (KeyboardInterrupt(), 130, "erlab: Stopped.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 2, "erlab: /data/x: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "erlab: /x: Permission denied\n"),
    ],
)
def test_exit_statuses(monkeypatch, error, status, line):
    def fail(*_):
        raise error

    monkeypatch.setattr(pipeline, "reproduce", fail)
    done = run("reproduce")
    assert (done.exit_code, done.stderr) == (status, line)


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(pipeline, "reproduce", lambda *_: 1 / 0)
    assert isinstance(run("reproduce").exception, ZeroDivisionError)


def test_options_reach_the_pipeline(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(pipeline, "reproduce", lambda *arguments: asked.append(arguments))
    done = run(
        *("reproduce", "--profile", "smoke", "--prompts", tmp_path, "--seed", 3, "--results", tmp_path / "r"),
        *("--set", "loads=[1,8]", "--set", "note=plain text", "--from", "04", "--force"),
    )
    assert done.exit_code == 0, done.output
    ((study, selected, force),) = asked
    assert study.common | {"figures": None} == {
        "profile": "smoke",
        "prompts": str(tmp_path.resolve()),
        "seed": 3,
        "results": str((tmp_path / "r").resolve()),
        "figures": None,
        "triton": None,
    }
    assert study.extra == {"loads": [1, 8], "note": "plain text"}
    assert [s.name[:2] for s in selected] == ["04", "05", "06", "07", "08", "09"] and force is True


@pytest.mark.parametrize("option", ["--list", "--dry-run"])
def test_listing_shows_every_step_and_writes_nothing(tmp_path, option):
    done = run("reproduce", option, "--profile", "smoke", "--results", tmp_path / "r", "--figures", tmp_path / "f")
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in ("00_environment", "05_router", "07_claims", "has not finished yet"))
    assert list(tmp_path.iterdir()) == []
