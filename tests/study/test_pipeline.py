"""The pipeline on small notebooks run for real: what is skipped and why, resuming, Ctrl-C, locks, bad input."""

import dataclasses
import errno
import io
import json
import os
import signal
import subprocess
import sys
import textwrap

import nbformat
import psutil
import pytest
from rich.console import Console

from erlab import fingerprint, paths
from erlab.errors import ErlabError
from erlab.study import cache, notebook, pipeline, steps
from erlab.study.pipeline import Study
from erlab.study.steps import Step
from erlab.study.terminal import Display

PARAMETERS = "seed = 0\nresults = None\nloads = None"
WRITE = """
from erlab import errors
with open(f"{{results}}/{name}", "a") as file:
    file.write("x")
"""


def write_notebook(path, *cells, parameters=PARAMETERS, prose="Prose."):
    made = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "P", "language": "python"}}
    )
    made.metadata["language_info"] = {"name": "python"}
    made.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    made.cells += [nbformat.v4.new_markdown_cell(prose)] + [nbformat.v4.new_code_cell(c) for c in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, path)


def study(folder, names, **options):
    """Steps that write a file each, named like the step, and read the one before's."""
    made = tuple(
        Step(name, reads=tuple(names[max(0, i - 1) : i]), writes=(name,), minutes=1) for i, name in enumerate(names)
    )
    places = {"results": folder / "results", "figures": folder / "figures", "notebooks": folder / "notebooks"}
    return Study("smoke", steps=made, **(places | options))


def states(found):
    return {s.step.name: s.state for s in found}


@pytest.fixture
def quiet():
    return lambda: Display(1, Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One step that has run: its study."""
    folder = tmp_path_factory.mktemp("finished")
    write_notebook(folder / "notebooks" / "00_one.ipynb", WRITE.format(name="00_one"))
    (folder / "data").write_text("1")
    one = Step("00_one", reads=("../data",), writes=("00_one",))
    made = Study(
        "smoke", results=folder / "results", figures=folder / "figures", steps=(one,), notebooks=folder / "notebooks"
    )
    ended = pipeline.reproduce(made, show=Display(1, Console(file=io.StringIO())))
    assert states(ended) == {"00_one": "ran"}
    return made


def test_a_finished_step_leaves_its_notebook_marker_and_manifest(finished):
    results = finished.results_folder
    executed = nbformat.read(results / "notebooks" / "00_one.ipynb", as_version=4)
    assert f"results = {str(results)!r}".replace("'", '"') in executed.cells[1].source
    assert "Prose." in (results / "notebooks" / "00_one.html").read_text()
    found = json.loads((results / "manifest.json").read_text())
    assert [(s["name"], s["state"]) for s in found["steps"]] == [("00_one", "ran")]
    assert list(found["inputs"].values()) == [fingerprint.of_text("1")]
    assert found["seed"] == 0 and found["parameters"]["profile"] == "smoke"
    assert not list(results.rglob("*.running.ipynb"))


def test_unchanged_is_cached_without_a_kernel(finished, monkeypatch, quiet):
    monkeypatch.setattr(notebook, "run", lambda *a: pytest.fail("ran"))
    assert states(pipeline.reproduce(finished, show=quiet())) == {"00_one": "cached"}


def rewrite(**changes):
    def change(path):
        found = nbformat.read(path, as_version=4)
        if "code" in changes:
            found.cells[2].source += changes["code"]
        if "prose" in changes:
            found.cells[1].source = changes["prose"]
        if "tags" in changes:
            found.cells[2].metadata["tags"] = changes["tags"]
        if "output" in changes:
            found.cells[2].outputs = [nbformat.v4.new_output("stream", text=changes["output"])]
            found.cells[2].execution_count = 7
        nbformat.write(found, path)

    return change


NOTEBOOK = "../notebooks/00_one.ipynb"


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        (NOTEBOOK, rewrite(prose="Other prose."), None),
        (NOTEBOOK, rewrite(tags=["hide"]), None),
        (NOTEBOOK, rewrite(output="printed"), None),
        (NOTEBOOK, rewrite(code="\n1 + 1"), "the notebook's code changed"),
        ("../data", lambda path: path.write_text("2"), "input ../data changed"),
        ("00_one", lambda path: path.unlink(), "output 00_one is missing"),
        ("00_one", lambda path: path.write_text("other"), "output 00_one was changed"),
        ("steps/00_one.json", lambda path: path.write_text("{half"), "has not finished yet"),
    ],
)
def test_what_makes_a_step_run_again(finished, file, change, reason):
    path = finished.results_folder / file
    before, when = path.read_bytes(), os.stat(path)
    change(path)
    try:
        (found,) = pipeline.survey(finished)
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
    if reason is None:
        assert (found.state, found.reason) == ("cached", "")
    else:
        assert found.state != "cached"
        assert found.reason.replace(str(finished.results_folder / ".."), "..") == reason
    assert pipeline.survey(finished)[0].state == "cached"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"seed": 1}, "parameter seed was 0, is 1"),
        ({"extra": {"loads": [1, 8]}}, "parameter loads was None, is [1, 8]"),
        ({"triton": "localhost:1"}, None),  # this notebook doesn't declare it
    ],
)
def test_parameters_count_where_they_are_declared(finished, options, reason):
    (found,) = pipeline.survey(dataclasses.replace(finished, **options))
    assert (found.state, found.reason) == (("stale", reason) if reason else ("cached", ""))


def test_prompts_of_other_sources_count_with_their_contents(tmp_path, quiet, monkeypatch):
    """Notebook 02's parameter `other`, given relative to where the command runs."""
    monkeypatch.chdir(tmp_path)
    cell = WRITE.format(name="00_a") + "\nassert open(other + '/law.jsonl').read()"
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", cell, parameters=PARAMETERS + "\nother = None")
    made = study(tmp_path, ("00_a",), extra={"other": "elsewhere"})
    file = tmp_path / "elsewhere" / "law.jsonl"
    file.parent.mkdir()
    file.write_text('{"text": "sue the landlord"}\n')
    assert states(pipeline.reproduce(made, show=quiet())) == {"00_a": "ran"}
    assert pipeline.survey(dataclasses.replace(made))[0].state == "cached"
    file.write_text('{"text": "sue the tenant"}\n')
    (found,) = pipeline.survey(dataclasses.replace(made))
    assert (found.state, found.reason) == ("stale", "input other/elsewhere/law.jsonl changed")


@pytest.mark.parametrize(("module", "state"), [("errors", "stale"), ("spec", "cached")])
def test_only_reachable_code_counts(finished, tmp_path, monkeypatch, module, state):
    for name in ("__init__", "errors", "spec"):
        (tmp_path / "erlab").mkdir(exist_ok=True)
        (tmp_path / "erlab" / f"{name}.py").write_text((fingerprint.PACKAGE / f"{name}.py").read_text())
    monkeypatch.setattr(fingerprint, "PACKAGE", tmp_path / "erlab")
    assert pipeline.survey(finished)[0].state == "cached"
    with (tmp_path / "erlab" / f"{module}.py").open("a") as file:
        file.write("\nADDED = 1\n")
    (found,) = pipeline.survey(finished)
    assert found.state == state
    assert found.reason == ("erlab.errors changed" if state == "stale" else "")


def test_resume_after_failure_then_force(tmp_path, quiet):
    """A failed step keeps the finished ones; fixed, it runs; what depends on it follows; force begins anew."""
    names = ("00_a", "01_b", "02_c")
    for name in names:
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", WRITE.format(name=name))
    write_notebook(tmp_path / "notebooks" / "01_b.ipynb", WRITE.format(name="01_b"), "1 / 0")
    made = study(tmp_path, names)
    with pytest.raises(notebook.NotebookError, match="^01_b.ipynb, cell 4: ZeroDivisionError: division by") as e:
        pipeline.reproduce(made, show=quiet())
    kept = made.results_folder / "notebooks" / "01_b.failed.ipynb"
    assert str(kept) in str(e.value) and kept.is_file() and "\n" not in str(e.value)
    assert states(pipeline.survey(made)) == {"00_a": "cached", "01_b": "missing", "02_c": "missing"}

    write_notebook(tmp_path / "notebooks" / "01_b.ipynb", WRITE.format(name="01_b"))
    fixed = study(tmp_path, names)
    assert states(pipeline.reproduce(fixed, show=quiet())) == {"00_a": "cached", "01_b": "ran", "02_c": "ran"}
    assert not kept.exists()
    assert (made.results_folder / "01_b").read_text() == "xx"  # what the failed run left is there for it to go on

    only = steps.select(fixed.steps, ("01",))
    assert states(pipeline.reproduce(fixed, only, force=True, show=quiet())) == {"01_b": "ran"}
    assert (made.results_folder / "01_b").read_text() == "x"
    assert states(pipeline.survey(fixed))["02_c"] == "stale"  # "xx" became "x"


def test_a_step_whose_inputs_may_change_says_so(finished):
    """A step that reads nothing yet is finished, too, and then the one before it has to run."""
    folder = finished.results_folder
    (one,) = finished.steps
    made = dataclasses.replace(finished, steps=(Step("00_zero", writes=("../data",)), one))
    write_notebook(folder / "../notebooks/00_zero.ipynb", "1")
    first, second = pipeline.survey(made)
    assert (first.state, second.state) == ("missing", "maybe")
    assert second.reason == "00_zero may change its inputs"


def test_dry_run_writes_nothing(tmp_path):
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", "1")
    made = study(tmp_path, ("00_a",))
    before = sorted(tmp_path.rglob("*"))
    (found,) = pipeline.survey(made)
    assert (found.state, found.minutes) == ("missing", 1)
    assert sorted(tmp_path.rglob("*")) == before


def test_minutes_of_an_attached_server_are_unknown_before_its_first_run(tmp_path, quiet):
    declared = PARAMETERS + "\ntriton = None"
    for name in ("00_a", "03_b"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", WRITE.format(name=name), parameters=declared)
    (tmp_path / "results/engines").mkdir(parents=True)
    made = (Step("00_a", writes=("00_a",), minutes=1), Step("03_b", ("engines",), ("03_b",), minutes=3))
    ours = dataclasses.replace(study(tmp_path, ()), steps=made)
    theirs = dataclasses.replace(ours, triton="http://127.0.0.1:1")
    assert [s.minutes for s in pipeline.survey(ours)] == [1, 3]
    assert [s.minutes for s in pipeline.survey(theirs)] == [1, None]
    ended = pipeline.reproduce(theirs, show=quiet())
    assert [s.minutes for s in pipeline.survey(theirs)] == [pytest.approx(s.minutes, abs=0.01) for s in ended]
    assert pipeline.survey(ours)[1].minutes == 3


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"lods": 1}, "No notebook of 00_a has a parameter 'lods'. --set may name there: loads."),
        ({"seed": 1}, "The parameter 'seed' has an option of its own: --seed, not --set seed=..."),
    ],
)
def test_unknown_parameters_are_refused_by_name(tmp_path, extra, message):
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", "1")
    with pytest.raises(ErlabError) as e:
        pipeline.reproduce(study(tmp_path, ("00_a",), extra=extra))
    assert str(e.value) == message
    assert not (tmp_path / "results").exists()


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(ErlabError, match="must be one of laptop, smoke"):
        Study("desktop")


@pytest.mark.parametrize(
    ("cell", "error", "message"),
    [
        ("from erlab.errors import ErlabError\nraise ErlabError('k must be 1. Got 0.')", ErlabError, "k must be 1"),
        pytest.param(
            "with open('/dev/full', 'w') as file:\n    file.write('x')",
            ErlabError,
            r"00_a.ipynb: \[Errno 28\] No space left on device",
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full, a disk that is always full"),
        ),
        ("import os\nos._exit(1)", notebook.NotebookError, "00_a.ipynb: its kernel died"),
    ],
)
def test_errors_in_a_notebook_are_one_line(tmp_path, quiet, cell, error, message):
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", cell)
    with pytest.raises(error, match=message) as e:
        pipeline.reproduce(study(tmp_path, ("00_a",)), show=quiet())
    assert "\n" not in str(e.value)
    assert (tmp_path / "results" / "notebooks" / "00_a.failed.ipynb").is_file()


def test_a_disk_that_fills_while_a_notebook_is_saved_is_one_line(tmp_path, quiet, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", WRITE.format(name="00_a"))
    monkeypatch.setattr("papermill.iorw.LocalHandler.write", full)
    with pytest.raises(ErlabError, match=f"^00_a: No space left on device, in {tmp_path / 'results'} or .*to resume"):
        pipeline.reproduce(study(tmp_path, ("00_a",)), show=quiet())
    assert not (tmp_path / "results" / "notebooks" / "00_a.ipynb").exists()


def test_a_notebook_that_writes_nothing_is_not_finished(tmp_path, quiet):
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", "1")
    with pytest.raises(ErlabError, match="00_a.ipynb ended without making"):
        pipeline.reproduce(study(tmp_path, ("00_a",)), show=quiet())
    assert cache.load(tmp_path / "results", "00_a") is None


def test_a_step_alone_says_which_step_makes_its_input(tmp_path, quiet):
    for name in ("00_a", "01_b"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", "1")
    made = study(tmp_path, ("00_a", "01_b"))
    with pytest.raises(ErlabError, match=r"01_b needs .*00_a: run 00_a first \(erlab reproduce --from 00_a\)\."):
        pipeline.reproduce(made, steps.select(made.steps, ("01",)), show=quiet())


def test_a_folder_in_use_is_refused_and_a_dead_users_lock_is_not(tmp_path, quiet):
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", WRITE.format(name="00_a"))
    made = study(tmp_path, ("00_a",))
    with pipeline._locked(made.results_folder):
        with pytest.raises(ErlabError, match=rf"is in use by another erlab \(process {os.getpid()}\)"):
            pipeline.reproduce(made, show=quiet())
    (made.results_folder / ".lock").write_text("999999")  # left by a process that is gone
    assert states(pipeline.reproduce(made, show=quiet())) == {"00_a": "ran"}


@pytest.mark.parametrize("which", ["results", "figures"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, quiet, which):
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", "1")
    (tmp_path / "file").write_text("")
    made = study(tmp_path, ("00_a",), **{which: tmp_path / "file" / "below"})
    with pytest.raises(ErlabError, match=f"below: not writable .*Choose another folder with --{which}"):
        pipeline.reproduce(made, show=quiet())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path, quiet):
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", "1")
    (tmp_path / "results").mkdir(mode=0o500)
    with pytest.raises(ErlabError, match="not writable"):
        pipeline.reproduce(study(tmp_path, ("00_a",)), show=quiet())


def test_select():
    def names(*options):
        return [s.name[:2] for s in steps.select(steps.STEPS, *options)]

    assert names() == [*(f"{i:02d}" for i in range(10)), "re"]
    assert names(("4", "06_figures"), None) == ["04", "06"]
    assert names(("baselines",), "03") == ["04"]
    assert names((), "06") == ["06", "07", "08", "09", "re"]
    assert names(("report",)) == ["re"]
    with pytest.raises(ErlabError, match="--only must name one of 00_environment, .* Got '10'"):
        names(("10",))
    with pytest.raises(ErlabError, match="No step is left"):
        names(("01",), "03")


def test_every_input_of_the_study_is_made_by_an_earlier_step():
    made = Study("smoke")
    for i, step in enumerate(steps.STEPS):
        assert step.function or (paths.NOTEBOOKS / step.notebook).is_file()
        for place in made.places(step.reads):
            assert place.name == steps.MANIFEST or place.exists() or any(pipeline._makes(made, s, place) for s in steps.STEPS[:i]), (step.name, place)


def gone(pid):
    """Return whether a process has ended, even if its status has not been collected yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_steps_that_measure_time_or_need_one_another_run_alone():
    together = [[step.name[:2] for step in group] for group in pipeline._together(Study("smoke"), steps.STEPS)]
    assert together == [["00"], ["01"], ["02"], ["03"], ["04"], ["05"], ["06", "07", "08", "09"], ["re"]]
    needs = (Step("00_a", writes=("a",), untimed=True), Step("01_b", reads=("a",), untimed=True))
    assert pipeline._together(Study("smoke"), needs) == [[needs[0]], [needs[1]]]


MEET = """
import os, time
end = time.monotonic() + 60
open(f"{{results}}/{name}", "w").close()
while not os.path.exists(f"{{results}}/{other}"):
    assert time.monotonic() < end
    time.sleep(0.01)
open(f"{{results}}/{name}_in_" + os.path.basename(os.getcwd()), "w").close()
"""


def beside(folder, *names):
    """Steps that may run side by side, each of which writes a file named like it."""
    made = tuple(Step(name, writes=(name,), untimed=True) for name in names)
    return dataclasses.replace(study(folder, ()), steps=made)


def test_independent_steps_run_in_parallel(tmp_path, quiet, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.chdir(tmp_path)
    for name, other in (("00_a", "01_b"), ("01_b", "00_a")):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", MEET.format(name=name, other=other))
    ended = pipeline.reproduce(beside(tmp_path, "00_a", "01_b"), show=quiet())
    assert [(s.step.name, s.state) for s in ended] == [("00_a", "ran"), ("01_b", "ran")]
    assert all((tmp_path / "results" / f"{name}_in_notebooks").exists() for name in ("00_a", "01_b"))
    assert os.getcwd() == str(tmp_path)


class Telling(Display):
    """Says in a file that a step has failed."""

    def __init__(self, folder):
        super().__init__(1, Console(file=io.StringIO()))
        self.folder = folder

    def end(self, step, text):
        super().end(step, text)
        (self.folder / f"{step} {text}").touch()


def test_parallel_steps_finish_after_a_failure_and_no_other_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    fails = MEET.format(name="00_a", other="01_b") + "raise ErlabError('k must be 1. Got 0.')"
    goes_on = MEET.format(name="01_b", other="00_a failed")
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", "from erlab.errors import ErlabError\n" + fails)
    write_notebook(tmp_path / "notebooks" / "01_b.ipynb", goes_on)
    write_notebook(tmp_path / "notebooks" / "02_c.ipynb", WRITE.format(name="02_c"))
    made = beside(tmp_path, "00_a", "01_b", "02_c")
    with pytest.raises(ErlabError, match="k must be 1. Got 0."):
        pipeline.reproduce(made, show=Telling(tmp_path / "results"))
    assert states(pipeline.survey(made)) == {"00_a": "missing", "01_b": "cached", "02_c": "missing"}
    assert not (tmp_path / "results" / "02_c").exists()


STOPPED = """
import os, signal, subprocess, sys, time
from erlab.progress import report
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
{before}
try:
    report(0, 1, f"child {{child.pid}} of {{os.getpid()}}")
    time.sleep(600)
finally:
    open(os.path.join(results, "cleaned"), "w").close()
"""


@pytest.mark.parametrize(
    ("before", "cleaned", "number", "status"),
    [
        ("", True, signal.SIGINT, 130),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)", False, signal.SIGINT, 130),  # to be killed after GRACE
        ("", True, signal.SIGHUP, 129),
    ],
)
def test_ctrl_c_leaves_no_process_and_keeps_what_is_finished(tmp_path, before, cleaned, number, status):
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", WRITE.format(name="00_a"))
    write_notebook(tmp_path / "notebooks" / "01_b.ipynb", STOPPED.format(before=before))
    script = f"""
        import sys
        from pathlib import Path
        from erlab import paths
        from erlab.study import notebook, steps
        paths.NOTEBOOKS = Path({str(tmp_path / "notebooks")!r})
        steps.STEPS = (steps.Step("00_a", writes=("00_a",)), steps.Step("01_b", ("00_a",), ("01_b",)))
        notebook.GRACE = {20 if cleaned else 1}
        from erlab.commands.app import main
        main()
    """
    options = ["--results", tmp_path / "results", "--figures", tmp_path / "figures", "--profile", "smoke"]
    command = [sys.executable, "-c", textwrap.dedent(script), "reproduce", *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        line = next((line for line in run.stdout if "child" in line), None)
        if line is None:
            pytest.fail(run.stderr.read())
        child, kernel = (int(word) for word in line.split() if word.isdigit())
        run.send_signal(number)
        rest, errors = run.communicate(timeout=60)
    assert run.returncode == status
    assert errors == "erlab: Stopped in 01_b. Finished work is kept: run the same command again to resume.\n"
    assert gone(child) and gone(kernel)
    results = tmp_path / "results"
    assert (results / "cleaned").exists() == cleaned
    assert (results / "notebooks" / "01_b.failed.ipynb").is_file()
    assert states(pipeline.survey(study(tmp_path, ("00_a", "01_b")))) == {"00_a": "cached", "01_b": "missing"}


def test_ctrl_c_stops_all_parallel_steps(tmp_path):
    for name in ("00_a", "01_b"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", STOPPED.format(before=""))
    script = f"""
        import os
        from pathlib import Path
        from erlab import paths
        from erlab.study import steps
        paths.NOTEBOOKS = Path({str(tmp_path / "notebooks")!r})
        steps.STEPS = tuple(steps.Step(name, writes=(name,), untimed=True) for name in ("00_a", "01_b"))
        os.cpu_count = lambda: 2
        from erlab.commands.app import main
        main()
    """
    options = ["--results", tmp_path / "results", "--figures", tmp_path / "figures", "--profile", "smoke"]
    command = [sys.executable, "-c", textwrap.dedent(script), "reproduce", *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        said = (line for line in run.stdout if "child" in line)
        processes = [int(word) for line in (next(said), next(said)) for word in line.split() if word.isdigit()]
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and errors.startswith("erlab: Stopped in 00_a.")
    assert len(processes) == 4 and all(map(gone, processes))
    assert all((tmp_path / "results" / "notebooks" / f"{name}.failed.ipynb").is_file() for name in ("00_a", "01_b"))


MEASURED = """
from pathlib import Path
from erlab.results import claims, records
row = dict(run_id="r", paper="v2", system="C", source="measured", machine="m", users=1, user=0, turn=0, status="ok")
times = dict(input_tokens=3, output_tokens=2, t_submit=0, t_first=10, t_last=30)
records.write(Path(results) / "records" / "r.parquet", [row | times], {"run_id": "r", "commit": "abc1234"})
claims.save(claims.ledger(records.read(Path(results) / "records")), results)
"""


def test_the_report_is_a_step_that_is_cached(tmp_path, quiet):
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", MEASURED)
    made = study(tmp_path, ("00_a",))
    made = dataclasses.replace(made, steps=(Step("00_a", writes=("records", "claims.csv")), steps.STEPS[-1]))
    assert states(pipeline.reproduce(made, show=quiet())) == {"00_a": "ran", "report": "ran"}
    report = made.results_folder / "report.html"
    assert "00_a" in report.read_text()
    before = report.stat().st_mtime_ns
    assert states(pipeline.reproduce(made, show=quiet())) == {"00_a": "cached", "report": "cached"}
    assert report.stat().st_mtime_ns == before
    report.unlink()
    alone = steps.select(made.steps, ("report",))
    assert states(pipeline.reproduce(made, alone, show=quiet())) == {"report": "ran"}
    assert report.is_file()
    (made.results_folder / "claims.csv").unlink()
    with pytest.raises(ErlabError, match="^report needs .*claims.csv: run 00_a first"):
        pipeline.reproduce(made, alone, show=quiet())


def stranger(folder, name):
    """A file that no run of a step made."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("precious")
    return file


MAKE = """
import pathlib
for name in ("made", "kept/made"):
    file = pathlib.Path(results) / "out" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(file.read_text() + "x" if file.is_file() else "x")
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_force_removes_what_a_step_made_and_nothing_else(tmp_path, quiet, stopped):
    """Files of others stay, in the results folder and behind links, whether the step was finished or stopped."""
    results, store = tmp_path / "results", tmp_path / "store"
    note, stored = stranger(results / "out", "notes.txt"), stranger(store, "model.bin")
    (results / "out/link").symlink_to(store)
    cells = [MAKE, "1 / 0"] if stopped else [MAKE]
    write_notebook(tmp_path / "notebooks/00_a.ipynb", *cells)
    made = dataclasses.replace(study(tmp_path, ("00_a",)), steps=(Step("00_a", writes=("out",)),))
    if stopped:
        with pytest.raises(notebook.NotebookError):
            pipeline.reproduce(made, show=quiet())
        write_notebook(tmp_path / "notebooks/00_a.ipynb", MAKE)
    else:
        pipeline.reproduce(made, show=quiet())
    for _ in range(2):
        shown = io.StringIO()
        pipeline.reproduce(dataclasses.replace(made), force=True, show=Display(1, Console(file=shown, width=500)))
        assert (results / "out/made").read_text() == (results / "out/kept/made").read_text() == "x", "made anew"
        assert note.read_text() == stored.read_text() == "precious"
        assert "00_a: kept, behind links or not made by this step: out/notes.txt" in shown.getvalue()


def test_force_removes_nothing_behind_a_link(tmp_path, quiet):
    """Where the step's folder is a link itself, what lies there stays though the step wrote it."""
    store = tmp_path / "store"
    precious = stranger(store, "precious")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/out").symlink_to(store)
    write_notebook(tmp_path / "notebooks/00_a.ipynb", MAKE)
    made = dataclasses.replace(study(tmp_path, ("00_a",)), steps=(Step("00_a", writes=("out",)),))
    for text in ("x", "xx"):
        pipeline.reproduce(dataclasses.replace(made), force=True, show=quiet())
        assert precious.read_text() == "precious" and (store / "made").read_text() == text


@pytest.mark.parametrize("name", ["../precious", "out/../../precious", "{absolute}", "out"])
def test_a_foreign_marker_does_not_remove_other_files(tmp_path, quiet, name):
    precious = stranger(tmp_path, "precious")
    write_notebook(tmp_path / "notebooks/00_a.ipynb", MAKE)
    made = dataclasses.replace(study(tmp_path, ("00_a",)), steps=(Step("00_a", writes=("out",)),))
    pipeline.reproduce(made, show=quiet())
    marker = cache.marker(made.results_folder, "00_a")
    told = json.loads(marker.read_text())
    told["outputs"][name.format(absolute=precious)] = "0"
    marker.write_text(json.dumps(told))
    pipeline.reproduce(dataclasses.replace(made), force=True, show=quiet())
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("name", ["{x}", "{0}", "{", "}{seed", "a#1 50% (b) 'c' \"d\" $(e) `f` ü 日本"])
def test_the_results_folder_may_have_any_name(tmp_path, quiet, name):
    write_notebook(tmp_path / name / "notebooks/00_a.ipynb", WRITE.format(name="00_a"))
    made = study(tmp_path / name, ("00_a",))
    assert states(pipeline.reproduce(made, show=quiet())) == {"00_a": "ran"}
    assert (tmp_path / name / "results/00_a").read_text() == "x"
    assert (tmp_path / name / "results/notebooks/00_a.html").is_file()
    assert [file.name for file in tmp_path.iterdir()] == [name]


def spoiled(**changes):
    found = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "P"}})
    found.metadata["language_info"] = {"name": "python"}
    found.cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    return json.dumps(json.loads(nbformat.writes(found)) | changes)


FORMAT_3 = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": []}]}
CELL = {"cell_type": "code", "source": "1", "outputs": [], "execution_count": None, "id": "a"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "not a Jupyter notebook (JSONDecodeError"),
        ("[]", "not a Jupyter notebook (it names no format)"),
        ("[" * 100_000, "not a Jupyter notebook (RecursionError"),
        ("\xff", "must be UTF-8 text"),
        (json.dumps(FORMAT_3), "its nbformat must be 4; convert it with: jupyter nbconvert --to notebook"),
        (spoiled(nbformat=5), "its nbformat must be 4"),
        (spoiled(nbformat="4"), "it names no format"),
        (spoiled(metadata={}), "its metadata name no kernel or language: open it in JupyterLab, choose a Python 3"),
        (spoiled(metadata=None), "no notebook of format 4 (None is not of type 'object'): open it in JupyterLab"),
        (spoiled(metadata={"kernelspec": None}), "no notebook of format 4 (None is not of type 'object')"),
        (spoiled(metadata={"kernelspec": {"name": "ir", "display_name": "R"}}), "name no kernel or language"),
        (spoiled(cells=None), "not a Jupyter notebook (TypeError"),
        (spoiled(cells=[{}]), "not a Jupyter notebook (KeyError"),
        (spoiled(cells=[CELL]), "no notebook of format 4 ('metadata' is a required property)"),
        (spoiled(cells=[CELL | {"metadata": {"tags": None}}]), "no notebook of format 4 (None is not of type 'array')"),
        (spoiled(cells=[CELL | {"metadata": {}}]), "no cell is tagged 'parameters', so --profile, --results, --figures"),
        (None, "must have at most"),
    ],
)
def test_what_is_no_notebook_of_the_study_is_one_line(tmp_path, content, message):
    file = tmp_path / "notebooks/00_a.ipynb"
    file.parent.mkdir()
    if content is None:
        with open(file, "wb") as sparse:
            sparse.truncate(2**40)
    else:
        file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ErlabError) as e:
        pipeline.reproduce(study(tmp_path, ("00_a",)))
    assert str(e.value).startswith(str(file)) and message in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "results").exists()


def test_a_notebook_without_parameters_runs_where_none_is_set(tmp_path, quiet, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "data")
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    file = tmp_path / "notebooks/00_a.ipynb"
    file.parent.mkdir()
    file.write_text(spoiled(cells=[CELL | {"metadata": {}}]))
    made = Study(steps=(Step("00_a"),), notebooks=tmp_path / "notebooks")
    assert states(pipeline.reproduce(made, show=quiet())) == {"00_a": "ran"}
    for options, named in (({"seed": 3}, "--seed"), ({"extra": {"loads": [1]}}, "--set loads")):
        with pytest.raises(ErlabError, match=f"no cell is tagged 'parameters', so {named} would be ignored"):
            pipeline.survey(dataclasses.replace(made, **options))
