"""What every test shares: seeded generators, closed figures, the folder of real prompts."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from erlab import paths

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a model hub
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background starts us with Ctrl-C ignored

SHARED = paths.ROOT.parent / "shared"


def pytest_ignore_collect(collection_path, config):
    """Benchmarks measure and take minutes: they run when they are asked for (python -m pytest tests/benchmarks)."""
    if collection_path.name == "benchmarks" and not any("benchmarks" in argument for argument in config.args):
        return True


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
    """The results folder of a whole study with profile smoke, made once; copy it where something is to be changed."""
    from erlab.triton import server

    if reason := server.available():
        pytest.skip(f"the embedded Triton cannot run here: {reason}")
    folder = tmp_path_factory.mktemp("study")
    before = set(Path("/dev/shm").glob("erlab-*"))
    where = ("--profile", "smoke", "--results", str(folder), "--figures", str(folder / "figures"))
    command = [Path(sys.executable).with_name("erlab"), "reproduce", *where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not set(Path("/dev/shm").glob("erlab-*")) - before, "shared memory is left behind"
    return folder
