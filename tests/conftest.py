"""What every test shares: two workers, seeded generators, closed figures, the folder of real prompts, a whole study."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, settings
from leftovers import nobodys_shared_memory

from erlab import paths

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a model hub
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background starts us with Ctrl-C ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup with a hangup ignored
# The same examples every time, however long a busy machine takes for one.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

SHARED = paths.ROOT.parent / "shared"


def pytest_ignore_collect(collection_path, config):
    """Benchmarks measure and take minutes: they run when they are asked for (python -m pytest tests/benchmarks)."""
    if collection_path.name == "benchmarks" and not any("benchmarks" in argument for argument in config.args):
        return True


def pytest_xdist_auto_num_workers(config):
    """The whole suite runs on two workers, for two cores, a file at a time; what is asked for by name in this process."""
    return 2 if config.args_source is config.ArgsSource.TESTPATHS else 0


def pytest_collection_modifyitems(items):
    """The study takes longest, so it begins first."""
    items.sort(key=lambda item: item.path.name != "test_study.py")


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture
def real_prompts():
    folder = SHARED / "prompts"
    if not folder.is_dir():
        pytest.skip("the folder of real prompts is not beside the repository")
    return folder


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """The results folder of a whole study with profile smoke, made once by the worker that needs it first; copy it where
    something is to be changed."""
    from erlab.serving.triton import server

    if reason := server.available():
        pytest.skip(f"the embedded Triton cannot run here: {reason}")
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with open(base / "study.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "study" / "report.html").is_file():
            reproduce(base / "study")
    return base / "study"


def reproduce(folder: Path) -> None:
    """Run the study into `folder`; nothing of it is left behind."""
    before = nobodys_shared_memory()
    where = ("--profile", "smoke", "--results", str(folder), "--figures", str(folder / "figures"))
    command = [Path(sys.executable).with_name("erlab"), "reproduce", *where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    running = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or ())]
    assert not running, running
    deadline = time.monotonic() + 60
    while (left := nobodys_shared_memory() - before) and time.monotonic() < deadline:  # another test's server just ends
        time.sleep(0.2)
    assert not left, "shared memory is left behind"
