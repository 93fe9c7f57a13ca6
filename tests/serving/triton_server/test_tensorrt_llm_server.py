"""Servers of TensorRT-LLM models, with stand-ins for NVIDIA's programs: commands, start, failures, and the end.

The stand-in for tritonserver is a KServe server that answers for the ensembles it is told to load.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from erlab import paper
from erlab.errors import ErlabError
from erlab.experiments import overviews, telemetry
from erlab.gateway import kserve
from erlab.serving import nvidia
from erlab.serving.triton import private, repository, tensorrt_llm_server

EXPERT, BASELINE = paper.SYSTEMS["v2"]["D"].expert, paper.SYSTEMS["v2"]["A"].expert
TRITON = f"""#!{sys.executable}
import json, os, sys, time
options = [a.partition("=")[::2] for a in sys.argv[1:]]
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps([sys.argv[1:], os.environ.get("TRTLLM_ORCHESTRATOR")]) + "\\n")
if os.environ.get("FAILS"):
    print("I0101 all is well"); print("E0101 failed to load 'x': unexpected engine version"); sys.exit(1)
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import http.server, threading
from fake_triton import FakeTriton, echo
ports = {{name: int(dict(options)[f"--{{name}}-port"]) for name in ("grpc", "metrics")}}
models = [value for name, value in options if name == "--load-model"]
class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        for model in models:
            text = 'nv_trt_llm_request_metrics{{model="%s-tensorrt_llm",request_type="scheduled",version="1"}} 2\\n'
            self.wfile.write((text % model).encode())
metrics = http.server.ThreadingHTTPServer(("127.0.0.1", ports["metrics"]), Metrics)
threading.Thread(target=metrics.serve_forever, daemon=True).start()
with FakeTriton({{model: echo for model in models}}, port=ports["grpc"]):
    time.sleep(600)
"""
MPIRUN = '#!/bin/sh\nshift 3\n"$@"\n'  # not exec: the server is its child, as it is mpirun's
DOCKER = """#!/bin/bash
echo "[[\\"docker $1\\"], null]" >> "$NOTES"
[ "$1" = run ] || exit 0
while [ "$1" != "IMAGE" ]; do [ "$1" = -e ] && export "$2"; shift; done; shift
PATH="$TOOLS:$PATH" exec "$@"
""".replace("IMAGE", nvidia.IMAGE)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of eight GPUs with a tritonserver, all of it stand-ins; put(name, script) changes one."""
    tools = tmp_path / "opt" / "bin"
    (tmp_path / "opt" / "backends" / "tensorrtllm").mkdir(parents=True)
    tools.mkdir()

    def put(name, script):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)

    put("tritonserver", TRITON)
    put("mpirun", MPIRUN)
    put("nvidia-smi", "#!/bin/sh\n" + "echo NVIDIA H100 80GB HBM3\n" * 8)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the log of one that does not start stays
    return put


@pytest.fixture
def models(tmp_path):
    """A repository with eight experts of a GPU each and a baseline of four."""
    for name in ("engine", "tokenizer"):
        (tmp_path / name).mkdir()
    folders = {"engine": tmp_path / "engine", "tokenizer": tmp_path / "tokenizer"}
    for i in range(8):
        repository.write_trtllm(tmp_path / "models", f"D-expert-{i}", expert=EXPERT, gpus=(i,), **folders)
    repository.write_trtllm(tmp_path / "models", "A-replica-1", expert=BASELINE, gpus=(4, 5, 6, 7), **folders)
    return tmp_path / "models"


EXPERTS = tuple(f"D-expert-{i}" for i in range(8))


def started(tmp_path) -> list:
    return [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]


def answer(address, model):
    return " ".join(kserve.generate(address, model, "one two", 2, timeout=60))


def test_one_server_holds_eight_experts_and_ends_with_its_block(tmp_path, machine, models):
    with tensorrt_llm_server.TensorRTLLMServer(models, EXPERTS) as server:
        assert [answer(server.grpc, model) for model in EXPERTS] == ["one two"] * 8
        assert server.alive() and server.upstreams == EXPERTS
        children = psutil.Process(server._keeper.pid).children(recursive=True)
        assert len(children) == 2
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in children)
    assert not server.alive() and not server.log.exists()
    [(argv, orchestrator)] = started(tmp_path)
    assert orchestrator == "1" and "--allow-http=false" in argv
    [restricted] = [a for a in argv if a.startswith("--grpc-restricted-protocol=model-repository,shared-memory,")]
    assert len(restricted.rpartition("=")[2]) > 40, "a random key"
    [repository] = [Path(a.partition("=")[2]) for a in argv if a.startswith("--model-repository=")]
    assert private.harmless(repository) and not repository.exists()
    assert [a for a in argv if a.startswith("--load-model")] == [f"--load-model={m}" for m in EXPERTS]
    pools = [f"--cuda-memory-pool-byte-size={i}:0" for i in range(8)]
    assert [a for a in argv if a.startswith("--cuda-memory")] == pools
    assert {a.partition("=")[2] for a in argv if "-address" in a} == {"127.0.0.1"}


def test_servers_apart_look_like_one_server_to_the_gateway(tmp_path, machine, models):
    with tensorrt_llm_server.ServersApart(models, EXPERTS[:2]) as servers:
        addresses = [upstream.removeprefix("grpc://").split("/") for upstream in servers.upstreams]
        assert [model for _, model in addresses] == ["D-expert-0", "D-expert-1"]
        assert len({address for address, _ in addresses}) == 2 and servers.alive()
        assert [answer(*asked) for asked in addresses] == ["one two"] * 2
        with telemetry.sampled(servers.metrics, tmp_path / "told" / "D-0001users.parquet", every=3600):
            pass
    assert not servers.alive()
    samples = pd.read_parquet(tmp_path / "told" / "D-0001users.parquet")
    told = samples[samples.source != "nvml"]
    assert {(row.source, json.loads(row.labels)["model"]) for row in told.itertuples()} == {
        (model, f"{model}-tensorrt_llm") for model in EXPERTS[:2]
    }
    assert overviews.telemetry(tmp_path / "told").loc[("D", 1), "running"] == 4  # two on each server
    assert sorted((o, [a for a in argv if "load-model=" in a]) for argv, o in started(tmp_path)) == [
        (None, ["--load-model=D-expert-0"]),
        (None, ["--load-model=D-expert-1"]),
    ]
    with pytest.raises(ErlabError, match="parameter of ServersApart must take one GPU each. Got 'A-replica-1 on 4,5"):
        tensorrt_llm_server.ServersApart(models, ["A-replica-1"])


def test_the_container_serves_on_the_loopback_with_the_engines_mounted(tmp_path, machine, models, monkeypatch):
    machine("docker", DOCKER)
    for name in ("tritonserver", "mpirun"):
        inside = tmp_path / "inside" / name
        inside.parent.mkdir(exist_ok=True)
        (tmp_path / "opt" / "bin" / name).rename(inside)
    monkeypatch.setenv("TOOLS", str(tmp_path / "inside"))
    with tensorrt_llm_server.TensorRTLLMServer(models, ("A-replica-1",)) as server:
        assert answer(server.grpc, "A-replica-1") == "one two"
        port = int(server.grpc.rpartition(":")[2])
        [argv] = server.commands(port - 1)
        assert server.log.parent == tmp_path
    options = argv[: argv.index(nvidia.IMAGE)]
    assert options[:2] == ("docker", "run") and f"127.0.0.1:{port}:{port}" in options
    mounts = {f"type=bind,src={folder},dst={folder},readonly" for folder in (models, tmp_path)}
    assert mounts | {"TRTLLM_ORCHESTRATOR=1"} <= set(options)
    assert options[options.index("--gpus") + 1] == "all" and "--shm-size=16g" in options
    calls = started(tmp_path)
    assert [argv[0] for argv, _ in calls if argv[0].startswith("docker")] == ["docker info", "docker run", "docker rm"]
    [(argv, orchestrator)] = [call for call in calls if not call[0][0].startswith("docker")]
    assert orchestrator == "1" and "--grpc-address=0.0.0.0" in argv and "--cuda-memory-pool-byte-size=4:0" in argv


@pytest.mark.parametrize("container", [None, "docker"])
def test_engines_and_repositories_may_be_in_folders_of_any_name(tmp_path, machine, monkeypatch, container):
    """The server and its container get harmless paths that lead to the real folders."""
    folder = tmp_path / "My Projects, 1:2" / "naïve (copy)"
    for name in ("engine", "tokenizer"):
        (folder / name).mkdir(parents=True)
    folders = {"engine": folder / "engine", "tokenizer": folder / "tokenizer"}
    repository.write_trtllm(folder / "models", "A-replica-1", expert=BASELINE, gpus=(4, 5, 6, 7), **folders)
    machine("docker", DOCKER)
    monkeypatch.setenv("TOOLS", str(tmp_path / "opt" / "bin"))
    with tensorrt_llm_server.TensorRTLLMServer(folder / "models", ("A-replica-1",), container=container) as server:
        assert answer(server.grpc, "A-replica-1") == "one two"
        command = psutil.Process(server._keeper.pid).cmdline()
        [models] = [Path(part.partition("=")[2]) for part in command if part.startswith("--model-repository=")]
        named = {}
        for part, key in (("tensorrt_llm", "gpt_model_path"), ("preprocessing", "tokenizer_dir")):
            file = models / f"A-replica-1-{part}" / "config.pbtxt"
            named[key] = Path(text_format.Parse(file.read_text(), ModelConfig()).parameters[key].string_value)
        real = {"gpt_model_path": folder / "engine", "tokenizer_dir": folder / "tokenizer"}
        assert all(map(private.harmless, [models, *named.values()]))
        if container:
            mounts = [mount for option, mount in zip(command, command[1:]) if option == "--mount"]
            assert f"type=bind,src={models},dst={models},readonly" in mounts and len(mounts) == 3
            for key, path in named.items():
                assert f'type=bind,"src={real[key]}",dst={path},readonly' in mounts
            assert not any(file.is_symlink() for file in models.rglob("*")), "links lead nowhere in a container"
        else:
            assert {key: path.resolve() for key, path in named.items()} == real
        with pytest.raises(ErlabError, match="naïve .*must have only letters"):
            server.commands()


def test_a_container_whose_owners_were_killed_is_removed_by_the_next_server(tmp_path, machine, models):
    machine("docker", DOCKER)
    (tmp_path / "erlab-llm-left").mkdir()
    with tensorrt_llm_server.TensorRTLLMServer(models, EXPERTS[:1]) as server:
        assert server.alive() and not (tmp_path / "erlab-llm-left").exists()
    assert [argv for argv, _ in started(tmp_path) if argv[0].startswith("docker")] == [["docker rm"]]


def test_a_port_taken_after_it_was_chosen_is_given_up(machine, models, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, real, calls = other.getsockname()[1], tensorrt_llm_server.free_ports, []

        def ports(asked):
            calls.append(asked)
            return [taken, *real(asked)[1:]] if len(calls) == 1 else real(asked)

        monkeypatch.setattr(tensorrt_llm_server, "free_ports", ports)
        with tensorrt_llm_server.TensorRTLLMServer(models, ["D-expert-0"]) as server:
            assert answer(server.grpc, "D-expert-0") and server.grpc != f"127.0.0.1:{taken}"
    assert len(calls) == 2


def test_start_failures_are_reported_with_the_servers_errors(machine, models, monkeypatch):
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(ErlabError, match="did not start: E0101 failed to load 'x': unexpected engine version. Its log"):
        tensorrt_llm_server.TensorRTLLMServer(models, EXPERTS).__enter__()
    monkeypatch.delenv("FAILS")
    machine("tritonserver", "#!/bin/sh\nsleep 600\n")
    with pytest.raises(ErlabError, match="D-expert-0 was not ready within 0.5 s: it wrote no log"):
        tensorrt_llm_server.TensorRTLLMServer(models, EXPERTS, timeout=0.5).__enter__()


def test_missing_requirements_are_reported_before_the_start(tmp_path, machine, models):
    with pytest.raises(ErlabError, match="no TensorRT-LLM model E-expert-0 there"):
        tensorrt_llm_server.TensorRTLLMServer(models, ["E-expert-0"])
    (tmp_path / "opt" / "bin" / "mpirun").unlink()
    with pytest.raises(ErlabError, match="neither tritonserver with TensorRT-LLM's backend, nor docker or podman"):
        tensorrt_llm_server.TensorRTLLMServer(models, EXPERTS).__enter__()
    machine("podman", "#!/bin/sh\necho 'Error: no user namespaces' >&2; exit 125\n")
    with pytest.raises(ErlabError, match="podman is installed but cannot be reached: Error: no user namespaces"):
        tensorrt_llm_server.TensorRTLLMServer(models, EXPERTS).__enter__()
    machine("nvidia-smi", "#!/bin/sh\n" + "echo NVIDIA H100 80GB HBM3\n" * 4)
    with pytest.raises(ErlabError, match="The models are for GPUs 4, 5, 6, 7, and 4 are here"):
        tensorrt_llm_server.TensorRTLLMServer(models, ["A-replica-1"]).__enter__()
    (tmp_path / "opt" / "bin" / "nvidia-smi").unlink()
    with pytest.raises(ErlabError, match="Triton cannot run here: no GPU answers"):
        tensorrt_llm_server.TensorRTLLMServer(models, EXPERTS).__enter__()
    assert not (tmp_path / "notes").exists()


def test_a_server_whose_parent_is_killed_ends_and_leaves_nothing(tmp_path, machine, models):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = f"""if True:
        import time
        from erlab.serving.triton import tensorrt_llm_server
        with tensorrt_llm_server.TensorRTLLMServer({str(models)!r}, {EXPERTS[:1]}) as server:
            print(server.grpc, flush=True)
            time.sleep(600)
    """
    environment = os.environ | {"TMPDIR": str(scratch)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    address = parent.stdout.readline().strip()
    assert answer(address, EXPERTS[0]) == "one two"
    served = psutil.Process(parent.pid).children(recursive=True)
    assert len(list(scratch.iterdir())) == 2  # its folder and its log
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in served) or any(scratch.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.stdout.close()
