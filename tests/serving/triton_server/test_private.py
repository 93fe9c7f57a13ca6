"""Servers in folders with any name, and what is left where a server's owners were killed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from erlab import paths, spec
from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.serving import nvidia
from erlab.serving.engines import tiny, tiny_kind
from erlab.serving.triton import Server, private, repository
from erlab.serving.triton import server as module
from erlab.study import environment

needs_triton = pytest.mark.skipif(bool(module.available()), reason=f"no embedded Triton: {module.available()}")
NAMES = {  # folders in folders, and the locale in which they are served
    "a b/it's/q\"q/My Projects": "C.UTF-8",
    "a&b/p(1)/$HOME x/s;s/$(touch marker)": "C",
    "back`touch marker`/naïve (copy)/日本": "C.UTF-8",
    "hash#1/per%20/star*/co:lon,comma/naïve": "C",
}


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def answer(server, model="echo"):
    return list(kserve.generate(server.grpc, model, "a b", 2, timeout=30))


@needs_triton
@pytest.mark.parametrize(("name", "language"), NAMES.items())
def test_repository_engine_and_temporary_files_may_be_anywhere(echo, tmp_path, monkeypatch, name, language):
    """The model reads a file beside its code and one in the folder that its parameters name."""
    folder = tmp_path / name
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "words").write_text("c d")
    monkeypatch.setenv("LC_ALL", language)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(folder)  # where `touch marker` would write
    (folder / "json.py").write_text("raise RuntimeError('a module of the folder where erlab was started')")
    code = (echo / "echo" / "1" / "model.py").read_text()
    code += """
import json, os
with open(os.path.join(os.path.dirname(__file__), "beside")) as file:
    assert file.read() == "beside"


class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        assert os.path.isfile(os.path.join(args["model_repository"], "config.pbtxt"))
        folder = json.loads(args["model_config"])["parameters"]["engine_dir"]["string_value"]
        with open(os.path.join(folder, "words")) as file:
            assert file.read() == "c d"
"""
    model = repository.text_model("echo", {"engine_dir": str(folder / "engine")})
    written = repository.write(folder / "models", model, code)
    (written / "1" / "beside").write_text("beside")
    with Server(folder / "models", log=folder / "triton.log") as server:
        assert answer(server) == ["a", "b"] and set(server._stubs().values()) == {"echo"}
        assert private.harmless(server._folder)
        left = server._folder
    assert list(tmp_path.rglob("marker")) == [] and not left.exists()


@needs_triton
def test_a_tiny_engine_is_served_from_a_folder_with_an_umlaut(tmp_path):
    model = spec.Model("test", hidden=64, layers=1, heads=2, kv_heads=1, intermediate=96, vocab=260)
    folder = tmp_path / "My Projects" / "naïve (copy)"
    engine = tiny.build(folder / "engine", model, spec.FLOAT32, seed=1)
    expert = spec.Expert(model, spec.FLOAT32, max_batch_size=2, max_input_tokens=32, max_output_tokens=32)
    tiny_kind.write_tiny(folder / "models", "expert", engine, expert, ())
    with Server(folder / "models") as server:
        assert len(answer(server, "expert")) == 2


@needs_triton
@pytest.mark.parametrize("language", ["C", "C.UTF-8"])
def test_python_and_the_package_may_be_anywhere(echo, tmp_path, language):
    """A virtual environment and a clone in odd folders; models import the clone's package."""
    folder = tmp_path / "My Projects" / "naïve (copy): 1"
    folder.mkdir(parents=True)
    (folder / "venv").symlink_to(sys.prefix)
    (folder / "clone").mkdir()
    (folder / "clone" / "erlab").symlink_to(paths.ROOT / "erlab")
    code = "import erlab.errors\n" + (echo / "echo" / "1" / "model.py").read_text()
    repository.write(folder / "models", repository.text_model("echo", {}), code)
    script = (
        "from erlab.gateway import kserve\n"
        "from erlab.serving.triton import Server\n"
        "with Server('models') as server:\n"
        "    print(list(kserve.generate(server.grpc, 'echo', 'a b', 2, timeout=30)))\n"
    )
    variables = os.environ | {"LC_ALL": language, "PYTHONPATH": str(folder / "clone")}
    command = [folder / "venv" / "bin" / "python", "-c", script]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=200)
    assert done.stdout == "['a', 'b']\n", done.stderr


@needs_triton
def test_a_model_with_shell_characters_in_its_name_is_refused(echo, tmp_path):
    (tmp_path / "my model" / "1").mkdir(parents=True)
    (tmp_path / "my model" / "config.pbtxt").write_text((echo / "echo" / "config.pbtxt").read_text())
    with pytest.raises(ErlabError, match="'models' parameter of Server must have names of letters.*Got 'my model'"):
        Server(tmp_path)


def test_paths_are_changed_only_where_they_must_be(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "b d"
    parameters = {"gpt_model_path": str(bad), "tokenizer_dir": str(good), "note": "a b"}
    repository.write(tmp_path / "models", repository.text_model("one", parameters), "code")
    repository.write(tmp_path / "models", repository.text_model("two", parameters), "code")
    repository.write(tmp_path / "models", repository.text_model("three", {"tokenizer_dir": str(good)}), "code")
    for linked in (True, False):
        to = tmp_path / f"private-{linked}"
        assert private.copy_models(tmp_path / "models", ("one", "two", "three"), to, linked) == {to / "places/0": bad}
        for name, path in (("one", to / "places/0"), ("two", to / "places/0"), ("three", None)):
            config = text_format.Parse((to / "models" / name / "config.pbtxt").read_text(), ModelConfig())
            found = {key: value.string_value for key, value in config.parameters.items()}
            assert found.get("gpt_model_path") == (path and str(path)) and found["tokenizer_dir"] == str(good)
            assert (to / "models" / name / "1" / "model.py").read_text() == "code"
        assert (to / "models" / "three" / "config.pbtxt").is_symlink() is linked
    with pytest.raises(ErlabError, match="four: no such model folder"):
        private.copy_models(tmp_path / "models", ("four",), tmp_path / "private")


def test_a_missing_temporary_folder_is_reported(tmp_path, monkeypatch):
    odd = tmp_path / "a b"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    assert private.place() == Path("/tmp")
    monkeypatch.setattr(private, "_ELSEWHERE", (str(tmp_path / "missing"), str(odd)))
    with pytest.raises(ErlabError, match="TMPDIR must be a writable folder whose path has only letters.*a b"):
        private.place()
    found = {check.name: check for check in environment.inspect(tmp_path, "smoke")}["temporary folder"]
    assert found.ok is False and "TMPDIR must be" in found.advice


def test_containers_mount_folders_of_any_name():
    command = nvidia.contained("docker", ("true",), "n", {"/in": "/a:b", "/of": 'q"q,c'})
    mounts = [value for option, value in zip(command, command[1:]) if option == "--mount"]
    assert mounts == ["type=bind,src=/a:b,dst=/in,readonly", 'type=bind,"src=q""q,c",dst=/of,readonly']


# ---- what is left where owners were killed

HOLDER = """
import sys, time
from pathlib import Path
from erlab.serving.triton import private
with private.folder(sys.argv[1]) as (folder, lock):
    folder.with_suffix(".log").write_text("log")
    Path("/dev/shm", folder.name + "-x").write_text("shared")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.mark.parametrize("prefix", ["erlab-triton-", "erlab-llm-", "erlab-openai-"])
def test_only_folders_without_owner_are_swept(temporary, prefix):
    def start():
        command = [sys.executable, "-c", HOLDER, prefix]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return process, Path(process.stdout.readline().strip())

    def traces(folder):
        files = (folder, folder.with_suffix(".log"), Path("/dev/shm", f"{folder.name}-x"))
        return [file for file in files if file.exists()]

    (gone, left), (alive, kept) = start(), start()
    (temporary / f"{prefix}kept.log").write_text("of a server that did not start")
    (temporary / f"{prefix}file").write_text("not a folder")
    (temporary / "mine").mkdir()
    (temporary / f"{prefix}link").symlink_to(temporary / "mine")
    try:
        gone.kill()
        gone.wait()
        assert len(traces(left)) == 3
        with private.folder(prefix) as (mine, _):
            assert traces(left) == [] and len(traces(kept)) == 3 and mine.is_dir()
        assert private.sweep(prefix) == [mine.name], "its lock is gone with the block"
        names = {f"{prefix}kept.log", f"{prefix}file", f"{prefix}link", "mine", kept.name, f"{kept.name}.log"}
        assert {file.name for file in temporary.iterdir()} == names
    finally:
        alive.kill()
        alive.wait()
    assert private.sweep(prefix) == [kept.name] and traces(kept) == []
    for process in (gone, alive):
        process.stdout.close()


@needs_triton
def test_a_later_server_removes_what_killed_owners_left(echo, temporary):
    script = (
        "import sys\nfrom erlab.serving.triton import Server\n"
        f"with Server({str(echo)!r}) as server:\n"
        "    print(server._keeper.pid, server._folder, flush=True)\n    sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as parent:
        pid, folder = parent.stdout.readline().split()
        keeper = psutil.Process(int(pid))
        processes = keeper.children(recursive=True)
        parent.send_signal(signal.SIGSTOP)  # or it would tidy up itself
        keeper.kill()
        parent.kill()
    keeper.wait(60)  # it holds the folder's lock until its end
    assert Path(folder).is_dir() and Path(f"{folder}.log").is_file()
    with Server(echo, ["echo"]) as server:
        assert answer(server) == ["a", "b"]
        assert not Path(folder).exists() and not Path(f"{folder}.log").exists()
        assert not list(Path("/dev/shm").glob(f"{Path(folder).name}*"))
        assert psutil.wait_procs(processes, timeout=60)[1] == []
    assert list(temporary.iterdir()) == []


# ---- models whose process ends before they are ready

AT_IMPORT = "import os, sys\nprint('no such engine: blue', file=sys.stderr, flush=True)\nos._exit(3)\n"


@needs_triton
@pytest.mark.parametrize(
    ("code", "stub", "words"),
    [
        ("raise ValueError('at import')", None, "'dead'.*ValueError: at import"),
        (AT_IMPORT, None, "'dead_0_0' is not healthy; a model's process ended with status 3; .*no such engine: blue"),
        ("", "echo 'cannot open shared object' >&2; exit 127", "ended with status 127; .*cannot open shared object"),
        ("", "kill -9 $$", "a model's process ended with status -9"),
    ],
    ids=["raises", "exits", "does not start", "killed"],
)
def test_a_model_process_that_ends_is_reported(tmp_path, temporary, monkeypatch, code, stub, words):
    if stub:
        program = tmp_path / "triton_python_backend_stub"
        program.write_text(f"#!/bin/bash\n{stub}\n")
        program.chmod(0o755)
        monkeypatch.setattr(module, "_stub", lambda wheel: program)
    repository.write(tmp_path / "models", repository.text_model("dead", {}), code)
    with pytest.raises(ErlabError, match=f"^Triton did not start: .*{words}") as error:
        with Server(tmp_path / "models", timeout=100):
            pytest.fail("a server without its model must not start")
    assert "\n" not in str(error.value)
    [log] = temporary.iterdir()  # the folder is gone
    assert str(error.value).endswith(f"Its log: {log}.")
