"""The study on one GPU, whole path: users, gateway, OpenAI-compatible servers; a tiny engine replaces vLLM."""

import json
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
from typer.testing import CliRunner

from erlab import figures as paper_figures
from erlab import paper, paths, report, users
from erlab.commands import app
from erlab.errors import ErlabError
from erlab.experiments import cells, gpu, gpu_comparison, live, overviews, table1
from erlab.paths import Folders
from erlab.prompts.workload import Request
from erlab.results import claims, records
from erlab.routing import training
from erlab.serving import deployment, profiles, scaling
from erlab.serving.engines import one_gpu, openai_models, tiny
from erlab.serving.engines.openai_server import OpenAIServer
from erlab.simulation.measured import COMPARED
from erlab.spec import FLOAT32, Model
from erlab.study import notebook
from erlab.users import OwnLatency

FAKE = Path(__file__).parents[1] / "serving" / "engines" / "fake_vllm.py"
SMALL = Model("tiny", hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96, vocab=260, max_positions=4096)
GPU = replace(
    profiles.profile("gpu"),
    workload=replace(
        paper.WORKLOAD,
        input_tokens=paper.WORKLOAD.input_tokens.scaled(1 / 4),
        output_tokens=paper.WORKLOAD.output_tokens.scaled(1 / 16),
        turns=2,
        least_requests=4,
    ),
    loads=(3,),
    prompts_per_domain=40,
)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A machine with an H200 and vLLM; returns what vLLM was called with so far."""
    program = f"#!/bin/sh\nexec {sys.executable} {FAKE} \"$@\"\n"
    driver = "#!/bin/sh\ncase \"$1\" in *memory*) echo 'NVIDIA H200, 143771, 9.0';; *) echo 'NVIDIA H200';; esac\n"
    (tmp_path / "bin").mkdir()
    for name, script in (("vllm", program), ("nvidia-smi", driver)):
        file = tmp_path / "bin" / name
        file.write_text(script)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("FAKE_VLLM_CALLS", str(tmp_path / "calls.jsonl"))
    engine = tiny.build(tmp_path / "tiny", SMALL, FLOAT32, seed=3)
    monkeypatch.setenv("FAKE_VLLM_ENGINE", str(engine))
    monkeypatch.setattr(users, "self_test", lambda *_, **__: OwnLatency(1.5, 1.9, 0.5, 0.9, 0.0, 0.0, 100.0))
    one_gpu._devices.cache_clear()
    yield lambda: [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    one_gpu._devices.cache_clear()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folders = Folders(tmp_path_factory.mktemp("trained"))
    prompts = training.prepare_prompts(GPU, folders)
    training.train_router(GPU, folders, prompts)
    table1.save(dict.fromkeys(GPU.systems, 64), folders)
    return folders.root


@pytest.fixture
def folders(tmp_path, trained):
    return Folders(shutil.copytree(trained, tmp_path / "results"))


def test_baseline_and_experts_answer_through_the_same_translation(calls, folders):
    before = set(psutil.Process().children(recursive=True))
    systems = table1.systems(GPU, folders)
    engines = deployment.build_engines(GPU, folders, seed=0)
    assert set(engines["in the paper"]) == {"Llama 3 70B", "Llama 3 8B"} and engines["weights MB"].max() < 30
    baseline = cells.measure("baselines", {"A": systems["A"]}, GPU, folders)
    routed = cells.measure("router", {"E": systems["E"]}, GPU, folders)
    for found in (baseline, routed):
        requests = found.requests
        assert len(requests) == 6 and set(requests.status) == {"ok"}, requests.error.tolist()
        assert (requests.output_tokens >= 1).all() and (requests.token_times.map(len) == requests.output_tokens).all()
        assert set(requests.machine) == {"1 x NVIDIA H200"}
    assert baseline.requests.expert.isna().all() and (routed.requests.t_routed > 0).all()
    assert set(routed.requests.expert) <= {f"E-expert-{i}" for i in range(4)}
    assert set(routed.runs.engine) == {"vllm"} and routed.runs.plays.item().startswith("Llama 3 8B FP16")
    told = overviews.telemetry(folders.infrastructure / "router").reset_index()
    assert told[["system", "users"]].values.tolist() == [["E", 3]]
    assert 0 <= told.running.item() <= 3 and told["KV unit"].item() == "tokens"
    asked = [(argv[1], dict(zip(argv[2::2], argv[3::2]))) for argv in calls()]
    assert [flags["--served-model-name"] for _, flags in asked] == ["A-replica-0", *(f"E-expert-{i}" for i in range(4))]
    assert all((Path(model) / "config.json").is_file() and flags["--load-format"] == "dummy" for model, flags in asked)
    assert sum(float(flags["--gpu-memory-utilization"]) for _, flags in asked[1:]) <= 1
    assert int(asked[0][1]["--num-gpu-blocks-override"]) * 16 <= paper.kv_pool_tokens(paper.SYSTEMS["v2"]["D"].expert)
    assert not set(psutil.Process().children(recursive=True)) - before
    cells.measure("router", {"E": systems["E"]}, GPU, folders)
    assert len(calls()) == 5, "finished cells start no server"


def test_the_gpu_command_measures_compares_and_saves_a_summary(calls, folders, tmp_path, monkeypatch):
    monkeypatch.setitem(profiles.PROFILES, "gpu", GPU)
    options = ("--case", "8B", "--results", str(folders.root), "--out", str(tmp_path / "out"))
    done = CliRunner().invoke(app.app, ["gpu", *options])
    assert done.exit_code == 0, done.output
    found = pd.read_csv(tmp_path / "out" / "1-x-nvidia-h200.csv").set_index("case")
    about = json.loads((tmp_path / "out" / "1-x-nvidia-h200.json").read_text())
    assert found.users.tolist() == [3] and (found.failed == 0).all() and (found.requests == 6).all()
    # A tiny model answers in the 8B's place, so only what was measured can be checked, against the requests themselves.
    requests = records.read(folders.records / "gpu").requests
    seconds = (requests.t_last.max() - requests.t_submit.min()) / 1e9
    assert found.throughput["8B"] == pytest.approx(requests.output_tokens.sum() / seconds, rel=1e-3)
    assert found.throughput_predicted["8B"] > 0 and found.bandwidth_share["8B"] > 0
    compared = [f"{name}{part}" for name in COMPARED for part in ("", "_predicted", "_ratio")]
    assert [*found] == ["served", "users", "requests", "failed", *compared, "bandwidth_share"]
    assert found.ttft_s_ratio["8B"] == pytest.approx(found.ttft_s_predicted["8B"] / found.ttft_s["8B"], rel=1e-4)
    assert found.served["8B"] == about["served"]["8B"] == "Llama 3 8B BF16, TP 1, 1 expert"
    assert about["predicted by"] == "simulation of vllm 0.22.0 on one H200"
    assert bool(about["doubt"]) == ("Doubtful" in done.output) == (found.bandwidth_share["8B"] > 1)
    assert about["engines"] == ["vllm"] and about["machine"] == "1 x NVIDIA H200"
    cases = gpu.systems(GPU)
    assert [system.count for system in cases.values()] == [1, 4, 1]
    alone, shared = (cases[name].expert for name in ("8B", "8B-shared"))
    assert about["KV tokens"]["8B"] == alone.kv_tokens == paper.kv_pool_tokens(alone) > shared.kv_tokens


def test_without_a_gpu_the_command_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    done = CliRunner().invoke(app.app, ["gpu", "--results", str(tmp_path)])
    assert done.exit_code == 2 and "erlab: Nothing here can serve experts on a GPU: no GPU answers" in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.fixture
def theirs(calls, tmp_path):
    """An OpenAI-compatible server that the user runs, with one model, as its URL."""
    expert = scaling.scale(paper.SYSTEMS["v2"]["E"], GPU, 1).expert
    folder = openai_models.build("vllm", expert, tmp_path / "8b", seed=0)
    openai_models.write(tmp_path / "theirs", "my-model", folder, expert, one_gpu.gpu())
    with OpenAIServer(tmp_path / "theirs" / "my-model") as server:
        yield server.base


def test_the_study_on_an_external_server_names_its_model(theirs, calls, folders, tmp_path):
    """Notebook 04 as `erlab reproduce --profile gpu --upstream` runs it, then D and E; then figures, claims, report."""
    values = {"profile": "gpu", "results": str(folders.root), "loads": [1], "papers": ["v1"], "triton": theirs}
    executed = tmp_path / "04.ipynb"
    notebook.run(paths.NOTEBOOKS / "04_baselines.ipynb", executed, values, {}, lambda *_: None)
    assert "my-model, one running server for all" in executed.read_text()
    assert "Llama 3 70B FP8, TP 1" not in executed.read_text()
    systems = table1.systems(GPU, folders, theirs)
    found = cells.measure("router", {k: systems[k] for k in "DE"}, GPU, folders, [1], triton=theirs)
    assert set(found.requests.status) == {"ok"} and set(found.requests.expert) == {"my-model"} and len(calls()) == 1
    assert not list(folders.root.rglob("server.json"))  # nothing was built or started

    files = [str(folders.records / name) for name in ("baselines", "router")]
    found = records.read(*files)
    mine = found.runs
    assert set(mine.system) == {"A", "D", "E"} and set(mine.title) == {"my-model, one running server for all"}
    assert set(mine.model) == {"my-model"} and set(mine.machine) == {"1 x NVIDIA H200"}
    assert mine[["precision", "tensor_parallel", "cores", "max_batch_size", "kv_tokens"]].isna().all(axis=None)
    told = overviews.telemetry(folders.infrastructure / "router").reset_index()
    assert told.system.tolist() == ["D", "E"] and set(told["KV unit"]) == {"tokens"}

    done = CliRunner().invoke(app.app, ["figures", *files, "--out", str(tmp_path / "figures"), "--format", "png"])
    assert done.exit_code == 0, done.output
    assert {f.stem for f in (tmp_path / "figures").glob("*.png")} == {*paper_figures.FIGURES} - {"fig3"}
    assert "fig3: left out, No records of the preliminary experiments" in done.output
    shown = (tmp_path / "figures" / "table1.md").read_text()
    assert shown.count("| my-model, one running server for all | measured |") == 3
    done = CliRunner().invoke(app.app, ["claims", "--paper", "v2", *files])
    assert done.exit_code == 0, done.output
    ledger = claims.ledger(found, resamples=20)
    assert set(ledger.verdict) == {"not runnable here"}
    reasons = ledger.set_index("id").reason
    assert reasons["v2-overhead-minimal"] == "measured: one model, my-model, answered for D and E alike"
    assert reasons["v2-ttft-8b"] == "measured: no finished requests of B, C"
    page = report.build(folders.root, found, tmp_path / "figures", ledger, {}).read_text()
    assert "Profile gpu, with an attached server that erlab did not start (my-model for all experts)." in page
    assert "my-model, one running server for all" in page and profiles.PROFILES["gpu"].description not in page


def test_with_an_external_server_no_engine_is_planned(tmp_path):
    options = ["reproduce", "--profile", "gpu", "--upstream", "http://127.0.0.1:9", "--results", str(tmp_path / "r")]
    done = CliRunner().invoke(app.app, [*options, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "http://127.0.0.1:9 serves the models: no engine is built" in done.stdout and "vllm" not in done.stdout
    with pytest.raises(ErlabError, match="'weights' .* must be None, since a server that runs has its own"):
        deployment.build_engines(GPU, Folders(tmp_path), 0, tmp_path, triton="http://127.0.0.1:9")
    assert not (tmp_path / "r").exists()


def test_a_system_is_served_by_an_external_server(theirs, calls, folders):
    plan = [[Request("p", "d", "What is a watt?", 16, 3)] for _ in range(2)]
    with live.serve("E", GPU, folders, triton=theirs) as running:
        rows = users.run(running.address, running.models, plan, timeout=60)
    assert [row["status"] for row in rows] == ["ok"] * 2 and len(calls()) == 1
    with pytest.raises(ErlabError, match="No OpenAI-compatible server answers at http://127.0.0.1:9/v1"):
        with live.serve("E", GPU, folders, triton="http://127.0.0.1:9"):
            pass


def test_the_gpu_command_compares_an_external_server_with_the_case_it_stands_for(theirs, folders, tmp_path, monkeypatch):
    monkeypatch.setitem(profiles.PROFILES, "gpu", GPU)
    options = ["gpu", "--upstream", theirs, "--results", str(folders.root), "--out", str(tmp_path / "out")]
    for given, came in (((), "''"), (("--case", "8B", "--case", "70B-FP8"), "'8B, 70B-FP8'")):
        done = CliRunner().invoke(app.app, [*options, *given])
        said = f"'case' parameter of gpu must be the one that the server at {theirs} stands for, 8B or 70B-FP8. Got {came}."
        assert done.exit_code == 2 and said in done.stderr
    done = CliRunner().invoke(app.app, [*options, "--case", "8B"])
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "out" / "1-x-nvidia-h200.json").read_text())
    assert about["served"] == {"8B": "my-model, one running server for all"} and about["KV tokens"] == {"8B": None}
    assert about["simulated"]["8B"].startswith("Llama 3 8B BF16")
    assert "8B: my-model, one running server for all" in done.stdout
    assert "predicted: simulation of vllm 0.22.0 on one H200" in done.stdout


def test_what_is_faster_than_the_memory_is_doubted():
    summary = pd.DataFrame({"case": ["8B", "8B", "8B-shared"], "served": "my-model", "users": [1, 2, 1]})
    summary["bandwidth_share"] = [0.7, 0.9, pd.NA]
    assert gpu_comparison.doubt(summary) is None
    assert gpu_comparison.doubt(summary.drop(columns="bandwidth_share")) is None
    summary["bandwidth_share"] = [0.7, 1.2, pd.NA]
    message = "faster than the memory allows an expert of case 8B: what answered (my-model)"
    assert gpu_comparison.doubt(summary).startswith(message)
