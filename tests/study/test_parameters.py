"""What notebooks would refuse in their parameters is refused by name before any runs, and what they take is not."""

import json
from pathlib import Path

import pandas as pd
import papermill
import pytest
from typer.testing import CliRunner

from erlab.commands.app import app
from erlab.errors import ErlabError
from erlab.paths import NOTEBOOKS
from erlab.serving import profiles
from erlab.study import parameters, pipeline, steps

STUDY = pipeline.Study("smoke")
LOADS = "must be a list of whole numbers of users from 1 to 100000. Got "
WRONG = {
    "01_build_engines": {
        "weights": [(3, "must be a folder's path. Got 3."), ("/no", "must be None (its weights are seeded dummies).")],
    },
    "02_train_router": {
        "clusters": [(0, "must be at least 1. Got 0."), ("8", "Got '8'."), (10**6, "distinct prompts. Got 1000000.")],
        "recipes": [("papr", "must be None, all or a list out of paper; "), (5, "Got 5."), ([], "[]"), ([[]], "[[]]")],
        "seeds": [(0, "must be a whole number from 1. Got 0."), (1.5, "Got 1.5."), ("2", "Got '2'.")],
        "other": [(7, "Got 7."), ("", "Got ''.")],
        "text": [(7, "must be a column's name. Got 7."), ("", "Got ''."), ([], "Got [].")],
        "skip_missing": [(v, f"must be True or False. Got {v!r}.") for v in (1, "yes", [])],
    },
    **dict.fromkeys(
        ("03_preliminary", "04_baselines", "05_router", "08_beyond"),
        {"loads": [(v, f"{LOADS}{v!r}.") for v in (8, 0, [], "8", [0], [1, -8], [1.5], [True], ["1"], [10**6], {})]},
    ),
    "06_figures": {"paper": [("v3", "must be one of v2, v1. Got 'v3'."), (2, "Got 2."), ([], "Got [].")]},
}
WRONG["04_baselines"] = WRONG["04_baselines"] | {
    "repeat": [(v, f"must be a whole number from 1 to 1000. Got {v!r}.") for v in (0, 1.5, "2", True)],
    "papers": [(v, f"must be a list of some of v2, v1. Got {v!r}.") for v in ("v2", [], ["v3"], 2, [["v2"]])]
}
WRONG["05_router"] = WRONG["04_baselines"] | {"emulated_loads": WRONG["03_preliminary"]["loads"]}
WRONG["08_beyond"] = WRONG["08_beyond"] | {
    "system": [("A", "must be one of D, E, "), ("", "Got ''."), ([], "Got [].")],
    "clusterers": [("ward", "must be a list out of kmeans, "), (["ward", "x"], "Got ['ward', 'x']."), (3, "Got 3.")],
    "dollars_per_gpu_hour": [(v, f"must be above 0. Got {v!r}.") for v in (0, -1, "2", True, float("inf"), [2.5])],
    "trace": [(3, "must be a file. Got 3."), ("/no/such.csv", "/no/such.csv: cannot be read")],
    "speed": [(v, f"must be a number above 0 and at most 1000000. Got {v!r}.") for v in (0, -1, "2", float("nan"))],
    "cold_start": [(v, f"must be at least 0 seconds. Got {v!r}.") for v in (-1, "x", float("nan"), float("inf"), [60])],
}
RIGHT = {
    "01_build_engines": {},
    "02_train_router": {"clusters": 4, "recipes": ["paper"], "seeds": 1, "text": "question", "skip_missing": True},
    "03_preliminary": {"loads": [8, 1]},
    "04_baselines": {"loads": (1,), "papers": ["v1"], "repeat": 2},
    "05_router": {"loads": [1], "emulated_loads": [10, 1000], "papers": ["v1", "v2"]},
    "06_figures": {"paper": "v1"},
    "08_beyond": {"system": "E", "clusterers": [], "loads": [100], "dollars_per_gpu_hour": 3, "cold_start": 0, "speed": 200},
}


def check(values, folder=Path("/no/results")):
    parameters.check(profiles.profile("smoke"), folder, {"seed": 0} | values)


@pytest.mark.parametrize(("step", "name"), [(step, name) for step, values in WRONG.items() for name in values])
def test_a_wrong_value_is_refused_by_its_name(step, name):
    for value, message in WRONG[step][name]:
        with pytest.raises(ErlabError) as e:
            check({name: value})
        assert name in str(e.value) and message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("step", RIGHT)
def test_what_a_notebook_takes_is_not_refused(step):
    check(RIGHT[step])


def test_every_parameter_of_the_notebooks_has_a_check():
    checked = {name for names in parameters.CHECKS for name in names}
    for step in steps.STEPS:
        own = STUDY.declared[step.name].keys() - STUDY.common.keys()
        assert own == WRONG.get(step.name, {}).keys() and own <= checked, step.name


def test_papermill_alone_refuses_the_same_values(tmp_path):
    """The notebook's own code calls the check, also where erlab does not run it."""
    values = {"profile": "smoke", "results": str(tmp_path), "paper": "v3"}
    with pytest.raises(papermill.PapermillExecutionError) as e:
        papermill.execute_notebook(NOTEBOOKS / "06_figures.ipynb", tmp_path / "ran.ipynb", values, progress_bar=False)
    assert e.value.ename == "ErlabError"
    with pytest.raises(ErlabError) as own:
        check({"paper": "v3"})
    assert e.value.evalue == str(own.value)


@pytest.mark.parametrize(("step", "name"), [(step, name) for step, values in WRONG.items() for name in values])
def test_none_is_taken_where_it_is_the_default_and_refused_elsewhere(tmp_path, step, name):
    """Before anything runs, also where a step before it takes None."""
    optional = STUDY.declared[step][name]
    done = reproduce(tmp_path, "--only", step, "--set", f"{name}=None", "--dry-run", status=0 if optional else 2)
    assert optional or done.stderr == f"erlab: The {name!r} parameter of {step}.ipynb must not be None. Got None.\n"
    assert list(tmp_path.iterdir()) == []


def test_which_parameters_may_be_none():
    found = {name for declared in STUDY.declared.values() for name, optional in declared.items() if not optional}
    assert found == {
        "profile", "seed", "skip_missing", "repeat", "papers", "paper", "system", "clusterers", "dollars_per_gpu_hour",
        "cold_start",
    }  # fmt: skip


@pytest.mark.parametrize("step", [step.name for step in steps.STEPS])
def test_an_unknown_parameter_is_refused(tmp_path, step):
    done = reproduce(tmp_path, "--only", step, "--set", "lods=1")
    assert f"No notebook of {step} has a parameter 'lods'. --set may name there: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_weights_are_no_parameter_of_a_server_that_runs():
    with pytest.raises(ErlabError, match="'weights' .* must be None, since a server that runs has its own. Got '/w'"):
        check({"weights": "/w", "triton": "localhost:1"})


def test_weights_are_checked_for_engines_that_use_them(tmp_path):
    with pytest.raises(ErlabError, match="weights/llama-3-.*: no folder of Hugging Face weights"):
        to = profiles.profile("dgx-h100")
        parameters.check(to, tmp_path, {"weights": str(tmp_path / "weights")})


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("few.jsonl", lines("one", "two"), "must be at most the 2 distinct prompts. Got 8."),
        ("empty.jsonl", b"", "--prompts: {}: holds no prompts."),
        ("bytes.jsonl", b'{"text": "\xff"}', "--prompts: {}: must be UTF-8 text. Got the byte 0xff at 10."),
        ("none.csv", b"question,answer\na,b\n", "--prompts: {}:1: has no column 'text'; "),
        ("broken.parquet", b"PAR1 no parquet", "--prompts: {}: no readable parquet file ("),
        ("prompts.txt", b"one\n", "--prompts: {}: a file of prompts must end in .jsonl, .parquet or .csv."),
    ],
)
@pytest.mark.parametrize("how", [("--dry-run",), ("--list",), ()])
def test_prompts_that_cannot_be_read_stop_the_study_before_it_begins(tmp_path, name, content, message, how):
    file = tmp_path / name
    file.write_bytes(content)
    done = reproduce(tmp_path, "--prompts", file, *how)
    assert message.format(file) in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("option", ["--prompts", "--set"])
def test_prompts_that_are_not_there_are_named_with_their_option(tmp_path, option):
    done = reproduce(tmp_path, option, "/no/such" if option == "--prompts" else "other=/no/such", "--dry-run")
    name = "--prompts" if option == "--prompts" else "--set other"
    assert done.stderr.startswith(f"erlab: {name}: /no/such: no such file or folder (")


def test_a_parquet_of_something_else_is_no_file_of_prompts(tmp_path):
    pd.DataFrame({"number": [1, 2]}).to_parquet(tmp_path / "numbers.parquet")
    done = reproduce(tmp_path, "--prompts", tmp_path / "numbers.parquet", "--dry-run")
    assert done.stderr.startswith("erlab: --prompts: ") and "has no column 'text'" in done.stderr


@pytest.mark.parametrize("value", ["{1, 8}", "b'8'", "1+8j", "{[]: 8}", "(" * 5000, "9" * 5000, "\0", "[1, 8"])
def test_what_is_no_plain_value_counts_as_text(tmp_path, value):
    done = reproduce(tmp_path, "--set", f"loads={value}", "--dry-run")
    assert f"{LOADS}{value!r}." in done.stderr and done.stderr.count("\n") == 1


def test_nothing_runs_where_the_last_step_would_refuse_its_parameter(tmp_path):
    done = reproduce(tmp_path, "--set", "cold_start=-1")
    assert "'cold_start'" in done.stderr and list(tmp_path.iterdir()) == []


def test_parameters_of_unselected_steps_are_not_checked(tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_bytes(lines("one"))
    done = reproduce(tmp_path, "--prompts", few, "--only", "03", "--dry-run", status=0)
    assert "03_preliminary" in done.output


def reproduce(folder, *options, status=2):
    places = ("--results", folder / "r", "--figures", folder / "f")
    done = CliRunner().invoke(app, list(map(str, ("reproduce", "--profile", "smoke", *places, *options))))
    assert done.exit_code == status, (done.output, done.exception)
    return done


def test_a_step_depends_on_the_content_of_its_trace(tmp_path, monkeypatch):
    """Also where the trace is given by a relative path, since notebooks run in another folder."""
    monkeypatch.chdir(tmp_path)
    step = next(step for step in steps.STEPS if step.name == "08_beyond")
    study, found = pipeline.Study("smoke", results=tmp_path, extra={"trace": "t.csv"}), []
    for text in ("one", "two"):
        Path("t.csv").write_text(text)
        assert study.values(step)["trace"] == str(tmp_path / "t.csv")
        found.append(study.dependencies(step)["inputs"]["trace/t.csv"])
    assert found[0] != found[1]
