"""The command line: what it refuses and how, its exit statuses, and that asking for help is quick and teaches."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic
from typer.testing import CliRunner

from erlab import paths
from erlab.commands.app import app
from erlab.errors import ErlabError
from erlab.prompts.traces import TRACES
from erlab.results import records
from erlab.routing.policies import POLICIES, gateway_policies
from erlab.study import notebook, pipeline


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


DESKTOP = "The 'profile' parameter must be one of laptop, smoke, dgx-h100, gpu, gpu-tensorrt-llm, gpu-trtllm-serve, gpu-vllm, gpu-embedded. Got 'desktop'."
FILE = Path(__file__)
COMMANDS = ("reproduce", "figures", "claims", "doctor", "serve", "gpu", "route", "outcomes", "users", "simulate")
COMMANDS += ("import", "export", "gateway")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    done = run(command, "--help")
    assert done.exit_code == 0 and f"erlab {command}" in done.output.replace("Usage: ", "", 1)


def test_help_lists_the_names_in_registries():
    """A policy of the simulation alone is listed only where it can be used."""
    simulate, serve = (" ".join(run(name, "--help").output.replace("│", " ").split()) for name in ("simulate", "serve"))
    assert ", ".join(POLICIES) in simulate and ", ".join(TRACES) in simulate
    assert ", ".join(gateway_policies()) in serve and "longest_prefix" not in serve


def test_asking_for_help_loads_nothing_heavy():
    script = (
        "import sys\nfrom erlab.commands.app import app\ntry: app(['--help'])\nexcept SystemExit: pass\n"
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
        (("reproduce", "--from", ""), "--from must name one of 00_environment, "),
        (("reproduce", "--triton", "a:1", "--upstream", "http://a:1"), "--upstream must not stand beside --triton. "),
        (("reproduce", "--set", "loads"), "--set must be NAME=VALUE. Got 'loads'."),
        (("reproduce", "--set", "a=1", "--set", "a=2"), "--set must name each parameter once. Got a twice."),
        (("figures", "--overlay", FILE, FILE), "--overlay needs each of --records once. Got "),
        (("reproduce", "--list", "--set", "lods=3"), "has a parameter 'lods'. --set may name there: clusterers, clusters, "),
        (("gpu", "--case", "9B"), "'case' parameter of gpu must be one of 8B, 8B-shared, 70B-FP8. Got '9B'."),
        (("serve", "--system", "F"), "must be one of A, B, C, D, E. Got 'F'."),
        (("claims", "--records", "/no/such.parquet"), "/no/such.parquet: no such file or folder."),
        (("figures", "--profile", "desktop"), DESKTOP),
        (("route",), "Either PROMPT or --file must be given."),
        (("route", "pasta", "--file", "prompts.txt"), "Either PROMPT or --file must be given."),
        (("route", "pasta", "--router", "/no/such"), "No router in /no/such: erlab reproduce --only 02 trains one, "),
        (("route", "--file", "/no/such.txt"), "/no/such.txt: cannot be read (No such file or directory)."),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("erlab: ") and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("users", "--address", "a:1", "--users", "x"), "--users must be a whole number from 1 to 100000. Got 'x'."),
        (("users", "--address", "a:1", "--users", 10**30), f"a whole number from 1 to 100000. Got {10**30}."),
        (("users",), "--address HOST:PORT must be given. Help: erlab users --help"),
        (("serve",), "--system LETTER must be given. Help: erlab serve --help"),
        (("simulate", "--bogus"), "No such option: --bogus"),
        (("--bogus",), "No such option: --bogus. Help: erlab --help"),
        (("simulate", "--system"), "Option '--system' requires an argument. Help: erlab simulate --help"),
        (("doctor", "here"), "unexpected extra argument"),
        (("reproduce", "--force=3"), "Option '--force' does not take a value. Help: erlab reproduce --help"),
        (("bogus",), "outcomes. Help: erlab --help"),
        (("reproduce", "--prompts", ""), "--prompts must not be empty. Got ''."),
        (("serve", "--system", "E", "--container", "lxc"), "must be one of docker, podman, print. Got 'lxc'."),
    ],
)
def test_what_no_command_takes_is_one_line_too(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith("erlab: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_a_study_without_records_says_how_they_are_made(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    for command in ("claims", "figures"):
        done = run(command)
        assert done.exit_code == 2 and f"No records in {tmp_path}/laptop/records: erlab reproduce makes" in done.stderr


def test_a_current_folder_that_is_gone_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = run("users", "--address", "a:1")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1) and "current folder does not exist" in done.stderr


def test_a_name_that_is_not_utf_8_is_one_line(tmp_path):
    name = tmp_path / "no\udcff.parquet"
    name.write_bytes(b"")
    options = (("simulate", "--system", "D", "--out"), ("reproduce", "--prompts"), ("reproduce", "--results"))
    for arguments in (("claims", name), *((*option, name) for option in options)):
        done = run(*arguments)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.exception


def test_nothing_to_do_is_answered_with_help():
    assert "Usage: " in run().output and "Usage: " in run("--help").output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy", "nonsense"), "--policy must be one of nearest, outlier, "),
        (("--policy", "longest_prefix"), "--policy must be one of nearest, outlier, "),
        (("--policy", "outlier"), "'generalist' parameter of the gateway must name an expert where "),
        (("--policy", "strong_weak", "--strong", "E"), "'strong' parameter of serve must be one of E-expert-0"),
        (("--threshold", 0.3), "'threshold' parameter of the gateway must be from 0 to 1, and only where "),
        (("--threshold", 3), "--threshold must be a number from 0 to 1. Got 3.0."),
        (("--port", 65536), "--port must be a whole number from 1 to 65535. Got 65536."),
        ((), "No router in "),
    ],
)
def test_serve_refuses_a_wrong_value_before_it_misses_a_router_or_builds_an_engine(tmp_path, options, message):
    done = run("serve", "--system", "E", "--results", tmp_path / "r", *options)
    assert done.exit_code == 2 and done.stderr.startswith("erlab: ") and message in done.stderr, done.output
    assert list(tmp_path.iterdir()) == []


SERVE, USERS = ("serve", "--system", "A"), ("users", "--address", "localhost:1")
SIMULATE, CLAIM = ("simulate", "--system", "D"), ("claims", "--id", "v2-8b-wide")


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        *((command, "--seed", (-1, 2**32, "x")) for command in (("reproduce",), USERS, SIMULATE, ("gpu",))),
        *((command, "--users", (0, -3, 10**9, "1.5", "")) for command in (USERS, SIMULATE, ("gpu",))),
        *((command, "--triton", ("", "a", "a:0", "a:65536", "http://a:1")) for command in (("reproduce",), SERVE)),
        (("users",), "--address", ("", "a", "a:x", "http://a:1")),
        *((c, "--upstream", ("", "a:1", "http://", "ftp://a:1")) for c in (("reproduce",), SERVE, ("gpu",))),
        *((c, "--results", (FILE, FILE / "b")) for c in (("reproduce",), ("doctor",), SERVE, ("route", "x"), ("gpu",))),
        (("reproduce",), "--figures", (FILE,)),
        *((command, "--out", (FILE / "b",)) for command in (("figures",), CLAIM, ("gpu",), USERS, SIMULATE)),
        *((command, "--out", (FILE.parent, Path("/proc/new"))) for command in (CLAIM, USERS, SIMULATE)),
        (SIMULATE, "--kv-gib", (0.0, -1.0, 1e300, float("nan"), float("inf"), "4,5")),
        (SIMULATE, "--gateway-ms", (-1.0, float("nan"), float("inf"), "two")),
        (SIMULATE, "--replicas", (0, -1, "all")),
        (SERVE, "--port", (0, -1, 65536, "x")),
        (SERVE, "--threshold", (-0.1, 1.5, float("nan"), "x")),
        *((command, "--policy", ("", "best")) for command in (SERVE, SIMULATE)),
    ],
)
def test_an_option_is_refused_by_its_own_name(command, option, values):
    """Numbers out of range, no addresses, files for folders and folders for files: before anything is started."""
    for value in values:
        done = run(*command, option, value)
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith(f"erlab: {option} must be ") and done.stderr.count("\n") == 1
        assert done.stderr.endswith(f"Got {value if isinstance(value, Path) else repr(value)}.\n")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ErlabError("k must be\nat least 1"), 2, "erlab: k must be at least 1\n"),
        (notebook.NotebookError("00.ipynb, cell 2: ValueError"), 1, "erlab: 00.ipynb, cell 2: ValueError\n"),
        (KeyboardInterrupt(), 130, "erlab: Stopped.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 2, "erlab: /data/x: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "erlab: /x: Permission denied\n"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/y"), 2, "erlab: /x/y: Not a directory\n"),
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
    assert [s.name[:2] for s in selected] == ["04", "05", "06", "07", "08", "09", "re"] and force is True


@pytest.mark.parametrize("option", ["--list", "--dry-run"])
def test_listing_shows_every_step_and_writes_nothing(tmp_path, option):
    done = run("reproduce", option, "--profile", "smoke", "--results", tmp_path / "r", "--figures", tmp_path / "f")
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in ("00_environment", "05_router", "07_claims", "has not finished yet"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def router(tmp_path_factory):
    from erlab.routing import PromptRouter

    folder = tmp_path_factory.mktemp("study") / "router"
    texts = ["boil the pasta", "salt the pasta", "bake the pasta", "sue the landlord", "landlord law", "a landlord"]
    PromptRouter(clusters=2).fit(texts).save(folder)
    return folder


def test_route_says_where_a_prompt_goes_and_why(router):
    done = run("route", "fresh pasta", "my\nlandlord", "--results", router.parent)
    assert done.exit_code == 0, done.output
    pasta, landlord = re.findall(r"→ cluster (\d), margin \d", done.output)
    assert {pasta, landlord} == {"0", "1"} and "my landlord →" in done.output
    assert done.output.count("[pasta]") == 1 and done.output.count("[landlord]") == 1, "the words that decided"


def test_route_takes_any_file_of_prompts(router, tmp_path):
    """Other scripts, emoji, control characters, nothing known and a megabyte: each is a row, none a crash."""
    file = tmp_path / "prompts.txt"
    file.write_text("more pasta\n日本の首都\n🍝🍝\nnul\0 \x1b[31m\n" + "pasta " * 175_000 + "\n")
    done = run("route", "--file", file, "--router", router)
    assert done.exit_code == 0, done.output
    rows = [line for line in done.output.splitlines() if line.startswith("│")]
    assert len(rows) == 5 and sum("(none known)" in row for row in rows) == 3
    assert "\x1b[31m" not in done.output and "\0" not in done.output
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n')
    done = run("route", "--file", empty, "--router", router)
    assert done.exit_code == 0 and "(empty)" in done.output and "nan" not in done.output


def test_route_refuses_a_damaged_router(router, tmp_path):
    (tmp_path / "router.json").write_text((router / "router.json").read_text())
    done = run("route", "pasta", "--router", tmp_path)
    assert done.exit_code == 2 and ".safetensors: the router cannot be read" in done.stderr


def test_the_column_of_prompts_reaches_the_notebook(monkeypatch):
    asked = []
    monkeypatch.setattr(pipeline, "reproduce", lambda study, *_: asked.append(study))
    assert run("reproduce", "--text", "question").exit_code == 0
    (study,) = asked
    (step,) = (s for s in study.steps if s.name == "02_train_router")
    assert study.values(step)["text"] == "question"


def test_claims_are_judged_alone_and_on_their_own_rows(tmp_path):
    records.save(tmp_path / "all.parquet", synthetic.make(loads=(1, 4, 16)))
    done = run("claims", "--id", "v2-8b-wide", "--rows", tmp_path / "all.parquet", "--out", tmp_path / "its.parquet")
    assert done.exit_code == 0 and "output_throughput" in done.output and "v2-tpot-8b" not in done.output
    again = run("claims", "--id", "v2-8b-wide", "--records", tmp_path / "its.parquet")
    assert again.exit_code == 0 and again.output in done.output
    both = run("claims", "--paper", "v1", "--records", tmp_path / "all.parquet")
    assert both.exit_code == 0 and "v1-size" in both.output and "v2-" not in both.output


# Results of other clients, and records for other programs


def test_results_of_another_client_are_imported_drawn_and_exported(tmp_path):
    result = {"model_id": "m", "errors": ["", ""], "input_lens": [5, 5], "output_lens": [3, 3]}
    result |= {"ttfts": [0.5, 0.25], "itls": [[0.25, 0.25], [0.5, None]], "start_times": [1.0, 1.5]}
    (tmp_path / "r.json").write_text(json.dumps(result), encoding="utf-8")
    out = tmp_path / "r.parquet"
    done = run("import", tmp_path / "r.json", "--system", "$x_1^2$ 专家", "--machine", "a box", "--out", out)
    assert done.exit_code == 0 and "measured by vLLM bench serve" in done.output and str(out) in done.output
    assert set(records.read(out).requests["system"]) == {"$x_1^2$ 专家"}
    done = run("figures", out, "--out", tmp_path / "drawn", "--format", "png")
    assert done.exit_code == 0 and "$x_1^2$ 专家" in (tmp_path / "drawn" / "fig4.csv").read_text(encoding="utf-8")
    assert run("claims", out).exit_code == 0
    for name in ("csv", "jsonl", "parquet"):
        done = run("export", out, "--out", tmp_path / f"e.{name}")
        assert done.exit_code == 0 and done.output.strip().endswith(f"e.{name}")
    assert [json.loads(line)["token_times"] for line in (tmp_path / "e.jsonl").read_text().splitlines()][1] is None
    assert records.read(tmp_path / "e.parquet").requests.equals(records.read(out).requests)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\xff\xfe{", "must be UTF-8 text. Got the byte 0xff at 0."),
        (b'{"benchmarks": 3}', "no result of AIPerf, GuideLLM, "),
        (b'{"ttfts": [1e400], "itls": [[]], "model_id": "m"}', "(KeyError: 'errors')"),
    ],
)
def test_a_bad_result_is_one_line_and_leaves_no_records(tmp_path, content, message):
    (tmp_path / "r.json").write_bytes(content)
    done = run("import", tmp_path / "r.json", "--system", "x", "--machine", "y", "--out", tmp_path / "r.parquet")
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_a_loop_of_links_is_one_line(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refusals = {
        ("import", loop, "--system", "x", "--machine", "y"): "cannot be read (Too many levels of symbolic links).",
        ("claims", loop): "Too many levels of symbolic links",
        ("reproduce", "--list", "--results", loop): "--results must be a folder, ",
        ("export", "--out", loop / "x.csv"): "--out must be a file, ",
    }
    for arguments, message in refusals.items():
        done = run(*arguments)
        assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_records_are_written_as_parquet_only(tmp_path):
    for arguments in (("import", FILE, "--system", "x", "--machine", "y"), ("simulate", "--system", "D")):
        done = run(*arguments, "--out", tmp_path / "r.csv")
        assert done.exit_code == 2 and "--out must be a .parquet file, " in done.stderr
    assert not list(tmp_path.iterdir())
