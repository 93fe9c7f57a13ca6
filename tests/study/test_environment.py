"""Checks and description of this machine, compared with the standard library and git."""

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections import namedtuple

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from erlab import machine, paths, provenance
from erlab.errors import ErlabError
from erlab.serving import profiles
from erlab.study import environment, steps


def by_name(checks):
    return {check.name: check for check in checks}


def test_this_machine_is_described(tmp_path):
    found = by_name(environment.inspect(tmp_path, "smoke"))
    assert found["Python"].value == platform.python_version() and found["Python"].ok
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert f"{cores} cores" in found["CPU"].value
    assert found["results folder"].value == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
    shown = environment.table(environment.inspect(tmp_path, "smoke"))
    assert set(shown["ok"]) <= {"yes", "no", "in part"} and list(shown.columns) == ["value", "ok", "advice"]


def test_without_measured_kernels_the_roofline_stands_in(monkeypatch):
    assert by_name(environment.inspect(profile="smoke"))["step times"].value.startswith("measured kernels, aiconfigurator")
    monkeypatch.setitem(sys.modules, "aiconfigurator", None)  # as if it were not installed
    found = by_name(environment.inspect(profile="smoke"))["step times"]
    assert found.ok is None and "wheels for Linux only" in found.value and "roofline" in found.advice
    environment.require_ready("smoke")


def test_a_package_outside_its_range_is_named_with_its_remedy(monkeypatch):
    real = provenance.version
    monkeypatch.setattr(provenance, "version", lambda name: {"numpy": "2.1.0", "typer": None}.get(name, real(name)))
    found = by_name(environment.inspect(profile="smoke"))
    numpy, typer = found["package numpy"], found["package typer"]
    assert (numpy.value, numpy.ok, typer.value, typer.ok) == ("2.1.0", False, "missing", False)
    assert numpy.advice.startswith("python -m pip install 'numpy") and "<2" in numpy.advice
    with pytest.raises(ErlabError, match="^Profile smoke cannot run here. .*package numpy: 2.1.0; python -m pip"):
        environment.require_ready("smoke")


def test_an_external_server_replaces_missing_requirements(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no driver, no engines
    with pytest.raises(ErlabError, match="^Profile gpu cannot run here. GPU: none answers"):
        environment.require_ready("gpu", tmp_path)
    environment.require_ready("dgx-h100", tmp_path, "127.0.0.1:8001")  # no room for its engines is needed either
    found = by_name(environment.inspect(tmp_path, "gpu", "127.0.0.1:8001"))
    assert found["server"].value == "127.0.0.1:8001 serves the models" and "GPU" not in found
    with pytest.raises(ErlabError, match="server: No OpenAI-compatible server answers at .*; start it first"):
        environment.require_ready("gpu", tmp_path, "http://127.0.0.1:9")


def test_too_little_disk_is_refused(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, 50e6))
    with pytest.raises(ErlabError, match=r"disk: 50 MB free; 1\d\d MB are needed\."):
        environment.require_ready("smoke", tmp_path)
    assert environment.fitting(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(environment.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(ErlabError, match="results folder: .*Permission denied; not writable"):
        environment.require_ready("smoke", tmp_path)


def test_a_missing_server_or_gpu_is_no_reason_to_refuse(monkeypatch, tmp_path):
    from erlab.serving.triton import server

    monkeypatch.setattr(server, "available", lambda: "no wheel for this machine")
    monkeypatch.setattr(environment, "_memory", lambda: environment.Check("memory", "enough", True))
    found = by_name(environment.inspect(tmp_path, "smoke"))
    assert (found["Triton server"].ok, found["Triton server"].value) == (None, "no wheel for this machine")
    environment.require_ready("smoke", tmp_path)


def test_no_loopback_is_refused(monkeypatch):
    def refuse(address):
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket, "create_server", refuse)
    assert by_name(environment.inspect())["loopback ports"].ok is False


def test_the_plan_takes_the_last_runs_time_where_there_is_one(tmp_path):
    shown = environment.plan("laptop", tmp_path)
    assert set(shown["known from"]) == {"estimate"} and len(shown) == len(steps.STEPS)
    marker = {key: {} for key in ("notebook", "parameters", "code", "inputs", "outputs")} | {"seconds": 90}
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "04_baselines.json").write_text(json.dumps(marker))
    row = environment.plan("laptop", tmp_path).loc["04_baselines"]
    assert (row["minutes"], row["known from"]) == (1.5, "last run")
    assert environment.plan("smoke", tmp_path).loc["03_preliminary", "minutes"] < shown.loc["03_preliminary", "minutes"]


def test_the_plan_counts_the_engines_weights():
    to = profiles.profile("laptop")
    least = sum(model.parameters for model in to.models.values()) * (32 + 8) / 8 / 1e6
    assert least <= environment.plan("laptop").loc["01_build_engines", "disk MB"] <= least + 2


@pytest.fixture
def clone(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return git, tmp_path


def test_commit_and_dirty_flag(clone):
    git, folder = clone
    head = git("rev-parse", "HEAD")
    assert provenance.git() == {"commit": head, "dirty": False} and provenance.commit() == head[:7]
    (folder / "file").write_text("2")
    assert provenance.git() == {"commit": head, "dirty": True} and provenance.commit() == f"{head[:7]}+dirty"


def test_a_foreign_repository_is_ignored(clone, monkeypatch):
    _, folder = clone
    (folder / "site-packages").mkdir()
    monkeypatch.setattr(paths, "ROOT", folder / "site-packages")
    assert provenance.git() == {"commit": None, "dirty": None} and provenance.commit() is None


def test_unknown_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.git() == {"commit": None, "dirty": None}
    assert machine.hardware()["gpus"] is None


def test_manifest_is_plain_json_and_lists_every_dependency():
    made = provenance.manifest({"seed": 4, "profile": "smoke"}, {"a": "hash"}, None, [{"name": "s"}], "t0", "t1")
    assert json.loads(json.dumps(made)) == made
    assert made["seed"] == 4 and made["inputs"] == {"a": "hash"} and made["steps"] == [{"name": "s"}]
    assert made["packages"]["numpy"] == __import__("numpy").__version__
    assert made["hardware"]["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert made["machine"] == f"{made['hardware']['cores']}-core {made['hardware']['cpu']}"


def test_environment_yml_matches_the_dependencies():
    """conda brings a Python that the package allows, pip the rest, with an extra that there is."""
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
    python, _, last = environment["dependencies"]
    name, _, version = python.partition("=")
    assert name == "python" and version in SpecifierSet(project["requires-python"])
    requirement, extra = re.fullmatch(r"-e (.+)\[(\w+)\]", *last["pip"]).groups()
    assert requirement == "." and extra in project["optional-dependencies"]
