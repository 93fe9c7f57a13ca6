"""What stops a command: its terminal is closed, SIGTERM, SIGHUP under nohup; nothing that it started stays."""

import fcntl
import io
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from test_pipeline import STOPPED, gone, write_notebook

from erlab.errors import ErlabError
from erlab.study import pipeline
from erlab.study.pipeline import Study
from erlab.study.steps import Step
from erlab.study.terminal import Display

ERLAB = Path(sys.executable).with_name("erlab")


def reproduces(folder):
    """A command that runs one step until it is stopped."""
    write_notebook(folder / "notebooks/00_a.ipynb", STOPPED.format(before=""))
    script = f"""
        from pathlib import Path
        from erlab import paths
        from erlab.study import steps
        paths.NOTEBOOKS = Path({str(folder / "notebooks")!r})
        steps.STEPS = (steps.Step("00_a", writes=("00_a",)),)
        from erlab.commands.app import main
        main()
    """
    options = ["--results", folder / "results", "--figures", folder / "figures", "--profile", "smoke"]
    return [sys.executable, "-c", textwrap.dedent(script), "reproduce", *map(str, options)]


def controlling():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def until(ready, process, seconds=60.0):
    """Wait until a function returns something, while the process runs."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_a_closed_terminal_stops_the_study(tmp_path):
    """Without a terminal nothing can be printed: the kernel cleans up, and the exit status gives the reason."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200", "TMPDIR": str(temporary)}
    options = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True, "env": environment}
    with subprocess.Popen(reproduces(tmp_path), preexec_fn=controlling, **options) as run:
        os.close(theirs)
        shown = b""
        while b"child " not in shown or b" of " not in shown.rpartition(b"child ")[2]:
            shown += os.read(ours, 4096)
        started = psutil.Process(run.pid).children(recursive=True)
        os.close(ours)
        assert run.wait(60) == 129
    assert len(started) >= 2 and all(gone(process.pid) for process in started)
    assert (tmp_path / "results/cleaned").is_file() and list(temporary.iterdir()) == []


def test_under_nohup_a_closed_terminal_stops_nothing(tmp_path):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    with subprocess.Popen(reproduces(tmp_path), preexec_fn=ignore, **options) as run:
        next(line for line in run.stdout if "child" in line)
        (ignored,) = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{run.pid}/status").read_text(), re.MULTILINE)
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=60)
    assert int(ignored, 16) & 1 << signal.SIGHUP - 1
    assert run.returncode == 130 and (tmp_path / "results/cleaned").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 130), (signal.SIGHUP, 129)])
def test_users_are_stopped_with_their_processes(tmp_path, number, status):
    """While they wait for a server that takes connections and never answers."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "127.0.0.1:{}".format(silent.getsockname()[1])
        command = [ERLAB, "users", "--address", address, "--users", "2", "--out", tmp_path / "users.parquet"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=os.environ | {"TMPDIR": str(temporary)}, **options) as run:
            workers = until(lambda: [p for p in psutil.Process(run.pid).children() if is_worker(p)], run)
            silent.settimeout(60)
            silent.accept()
            run.send_signal(number)
            _, errors = run.communicate(timeout=60)
    assert (run.returncode, errors) == (status, "erlab: Stopped.\n")
    assert all(gone(worker.pid) for worker in workers) and not (tmp_path / "users.parquet").exists()
    assert list(temporary.iterdir()) == []


def is_worker(process):
    try:
        return "erlab.users.worker" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def full(tmp_path):
    """A file system of 64 KiB; where none may be mounted, there is nothing to be seen."""
    folder = tmp_path / "full"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_records_that_do_not_fit_on_the_disk(full):
    command = [ERLAB, "simulate", "--system", "D", "--users", "1000", "--steps", "roofline", "--out", full / "x.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done
    assert done.stderr.startswith(f"erlab: {full}/x.parquet: ") and "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1 and list(full.iterdir()) == []


@pytest.mark.parametrize(
    ("cell", "named"),
    [
        ("from erlab import textfiles\ntextfiles.save(f'{results}/00_a', 'x' * 10**6)", "00_a'"),
        ("import pyarrow as pa\nfrom pathlib import Path\nfrom erlab import parquet\n"
         "parquet.save(pa.table({'a': range(10**6)}), Path(results) / '00_a')", "00_a'"),
        ("from safetensors.numpy import save_file\nimport numpy\n"
         "save_file({'a': numpy.zeros(10**6)}, f'{results}/00_a')", "I/O error: No space left"),
        ("import os\ntry:\n    open(f'{results}/00_a', 'w').write('x' * 10**6)\n"
         "except OSError as e:\n    os.remove(f'{results}/00_a')\n    raise RuntimeError('not saved.') from e",
         "00_a.ipynb: not saved: no space left in "),
        ("print('x' * 10**6)", ""),  # the executed notebook itself
    ],
)  # fmt: skip
def test_a_study_that_does_not_fit_on_the_disk(tmp_path, full, cell, named):
    write_notebook(tmp_path / "notebooks/00_a.ipynb", cell)
    places = {"results": full, "figures": tmp_path, "notebooks": tmp_path / "notebooks"}
    made = Study("smoke", steps=(Step("00_a", writes=("00_a",)),), **places)
    with pytest.raises(ErlabError, match="00_a") as e:
        pipeline.reproduce(made, show=Display(1, Console(file=io.StringIO())))
    assert named in str(e.value) and "o space left " in str(e.value) and "\n" not in str(e.value)
    assert str(full) in str(e.value), "where it is full"
