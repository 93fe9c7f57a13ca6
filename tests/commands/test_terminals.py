"""Every command in terminals of any encoding and width, names that a terminal would act on, and full disks."""

import errno
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic
from typer.testing import CliRunner

from erlab.commands.app import app
from erlab.results import records
from erlab.routing import PromptRouter
from erlab.study import ends, pipeline

ERLAB = Path(sys.executable).with_name("erlab")
OLD = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "America/New_York"}
COMMANDS = ("reproduce", "figures", "claims", "doctor", "serve", "gpu", "route", "users", "simulate", "gateway")
TEXTS = ["boil the größe", "salt the größe", "bake the größe", "sue the landlord", "landlord law", "a landlord"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records and a router in a folder whose name no old terminal can show."""
    folder = tmp_path_factory.mktemp("größe → 日本")
    records.save(folder / "all.parquet", synthetic.make(loads=(1, 4)))
    PromptRouter(clusters=2).fit(TEXTS).save(folder / "router")
    return folder


def erlab(encoding, *arguments, **options):
    environment = os.environ | OLD | {"PYTHONIOENCODING": encoding} | options.pop("environment", {})
    command = [ERLAB, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, timeout=200, **options)


ROUTE = ("route", "die größe → 日本", "--router", "{}/router")
SHOWN = {  # arguments of a command, and a part of its output
    ("doctor", "--profile", "smoke", "--results", "{}"): "Profiles that can run here: ",
    ("simulate", "--system", "D", "--users", 2, "--steps", "roofline", "--out", "{}/sïm.parquet"): "ttft_median_s",
    ROUTE: " cluster ",
    ("claims", "--records", "{}/all.parquet", "--id", "v2-8b-wide", "--rows"): "v2-8b-wide depends on the assumptions",
    ("figures", "--records", "{}/all.parquet", "--out", "{}/fïg", "--format", "png"): "fig2.csv",
}
CASES = [("ascii", *shown) for shown in SHOWN.items()]
CASES += [
    ("ascii", ("reproduce", "--dry-run", "--profile", "smoke", "--results", "{}/ü"), "00_environment"),
    ("latin-1", ("reproduce", "--dry-run", "--profile", "dgx-h100", "--results", "{}/ü"), "trtllm-build"),
    ("latin-1", ROUTE, " cluster "),
]
CASES += [("ascii", (command, "--help"), f"erlab {command}") for command in COMMANDS]


@pytest.mark.parametrize(("encoding", "arguments", "says"), CASES, ids=str)
def test_a_command_prints_in_any_encoding(folder, encoding, arguments, says):
    done = erlab(encoding, *(str(word).format(folder) for word in arguments))
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert says in text and b"Traceback" not in done.stdout + done.stderr
    if "größe" in " ".join(map(str, arguments)):
        assert ("[größe]" if encoding == "latin-1" else "[gr??e]") in text


@pytest.mark.parametrize("columns", [1, 17, 80])
def test_a_narrow_terminal_that_knows_ascii_only(folder, columns):
    """In a terminal proper, where tables and bars are drawn to its width."""
    ours, theirs = pty.openpty()
    options = {"environment": {"TERM": "xterm", "COLUMNS": str(columns)}}
    command = [ERLAB, "route", "die größe \x1b[31m→ 日本", "--router", folder / "router"]
    environment = os.environ | OLD | {"PYTHONIOENCODING": "ascii"} | options["environment"]
    with subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while chunk := read(ours):
            shown += chunk
    os.close(ours)
    assert process.returncode == 0 and shown and shown.isascii() and b"Traceback" not in shown, shown


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side has closed it
        return b""


def test_a_mistake_is_one_line_in_any_encoding(folder):
    done = erlab("ascii", "claims", "--records", folder / "日本 \x1b[31m.parquet")
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert b"\x1b" not in done.stderr and b"no such file" in done.stderr


def test_terminal_escapes_in_terms_and_names_are_not_printed(folder, tmp_path):
    """A stranger's router whose terms clear the screen, set the title and ring."""
    hostile = "\x1b[2J\x1b]0;owned\x07\x9b31m"
    router = PromptRouter(clusters=2).fit(TEXTS)
    router.terms_ = [[f"{hostile}größe"], [f"{hostile}landlord"]]
    router.save(tmp_path / f"router {hostile}")
    file = tmp_path / f"prompts {hostile}.txt"
    file.write_text(f"größe {hostile}\n", encoding="utf-8")
    for arguments in ([f"größe {hostile}"], ["--file", str(file)]):
        done = CliRunner().invoke(app, ["route", *arguments, "--router", str(tmp_path / f"router {hostile}")])
        assert done.exit_code == 0 and "gr" in done.output, done.output
        assert not {"\x1b", "\x07", "\x9b"} & set(done.output)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full, a disk that is always full")
def test_output_that_cannot_be_written_is_one_line(folder):
    command = [ERLAB, "claims", "--records", folder / "all.parquet"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "erlab: the output: No space left on device\n"


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")


def wrapped(error):
    try:
        raise RuntimeError("the notebook could not be saved") from error
    except RuntimeError as e:
        return e


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FULL, "/data/x: No space left on device"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/data/x"), "/data/x: Disk quota exceeded"),
        (wrapped(FULL), "/data/x: No space left on device"),
        (ExceptionGroup("several", [ValueError("a"), wrapped(FULL)]), "/data/x: No space left on device"),
        (ValueError("IoError(Os { code: 28, message: \"No space left on device\" })"), "No space left on device"),
    ],
    ids=repr,
)
def test_a_full_disk_is_one_line_whatever_wraps_it(monkeypatch, error, line):
    def fail(*_):
        raise error

    monkeypatch.setattr(pipeline, "reproduce", fail)
    done = CliRunner().invoke(app, ["reproduce"])
    assert done.exit_code == 2 and line in done.stderr and done.stderr.count("\n") == 1


def test_an_error_that_was_dealt_with_is_not_taken_for_a_full_disk():
    try:
        try:
            raise FULL
        except OSError:
            raise ValueError("another") from None
    except ValueError as e:
        assert ends.full(e) is None and ends.full(wrapped(e)) is None


@pytest.mark.parametrize("way", ["records", "figures"])
def test_the_file_that_did_not_fit_is_named(folder, tmp_path, monkeypatch, way):
    """Writing fails without a name: neither write(2) nor pyarrow tells one."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("erlab.parquet.pq.write_table", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    if way == "records":
        arguments = ["simulate", "--system", "D", "--users", "2", "--steps", "roofline", "--out", tmp_path / "x.parquet"]
    else:
        arguments = ["figures", "--records", folder / "all.parquet", "--out", tmp_path, "--format", "png"]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 2 and done.stderr.startswith(f"erlab: {tmp_path}/"), (done.stderr, done.exception)
    assert done.stderr.endswith(": No space left on device\n") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
