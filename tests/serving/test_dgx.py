"""The paper's own machine without it: plan, what is missing, and notebook 01 with stand-ins for NVIDIA's programs."""

import json
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from fake_triton import COURT, KITCHEN
from packaging.requirements import Requirement
from typer.testing import CliRunner

from erlab import machine, paper, paths, provenance, users
from erlab.commands import app
from erlab.errors import ErlabError
from erlab.experiments import cell, live
from erlab.gateway import kserve
from erlab.paths import Folders
from erlab.prompts.workload import Request
from erlab.routing import PromptRouter
from erlab.serving import deployment, nvidia, profiles, scaling
from erlab.serving.engines import one_gpu, tensorrt_llm
from erlab.study import environment, notebook, plan

DGX = profiles.profile("dgx-h100")
H100 = "NVIDIA H100 80GB HBM3, 81559, 9.0"


def smi(gpus) -> str:
    """Substitute for nvidia-smi: all of its lines if the compute capability is queried, else the names."""
    lines = "".join(f"echo '{gpu}'\n" for gpu in gpus)
    return f'#!/bin/bash\n{{ {lines} }} | if [[ "$1" == *compute_cap* ]]; then cat; else cut -d, -f1; fi\n'


# Inside the container: notes its arguments, and writes what TensorRT-LLM would.
TOOL = """#!/bin/bash
printf '%s ' "$(basename "$0")" "$@" >> "$NOTES"; echo >> "$NOTES"
all="$*"
while [ $# -gt 0 ]; do case "$1" in --output_dir) out=$2;; --workers|--tp_size) ranks=$2;; esac; shift; done
mkdir -p "$out"
case "$all" in *"$FAILS"*) [ -n "$FAILS" ] && echo "CUDA out of memory" && exit 1;; esac
for ((i = 0; i < ranks; i++)); do echo engine > "$out/rank$i.engine"; done
echo '{"version": "1.2.1"}' > "$out/config.json"
"""
TRITON = f"""#!{sys.executable}
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from fake_triton import FakeTriton, count
options = [a.partition("=")[::2] for a in sys.argv[1:]]
port = int(dict(options)["--grpc-port"])
with FakeTriton({{value: count for name, value in options if name == "--load-model"}}, port=port):
    time.sleep(600)
"""
MPIRUN = '#!/bin/sh\nshift 3\nexec "$@"\n'
DOCKER = """#!/bin/bash
[ "$1" = run ] || exit 0
while [ "$1" != "IMAGE" ]; do shift; done; shift
PATH="$TOOLS:$PATH" exec "$@"
""".replace("IMAGE", nvidia.IMAGE)


@pytest.fixture
def dgx(tmp_path, monkeypatch):
    """Eight H100s, room on the disk, and docker with NVIDIA's container, all of it stand-ins."""
    for folder, programs in {
        "bin": {"docker": DOCKER, "nvidia-smi": smi([H100] * 8)},
        "inside": {"python3": TOOL, "trtllm-build": TOOL, "mpirun": MPIRUN, "tritonserver": TRITON},
    }.items():
        (tmp_path / folder).mkdir()
        for name, script in programs.items():
            (tmp_path / folder / name).write_text(script)
            (tmp_path / folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("TOOLS", str(tmp_path / "inside"))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("FAILS", "")
    return tmp_path


def test_the_plan_holds_every_command_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    folders = Folders(tmp_path / "results")
    lines = [line.strip() for line in plan.text(DGX, folders).splitlines()]
    built = [
        str(command)
        for expert in scaling.experts(DGX)
        for command in tensorrt_llm.commands(expert, deployment.engine_folder(expert, DGX, folders))
    ]
    assert len(built) == len(set(built)) == 2 * 3 * 6  # three batch limits: 70B FP8 on 1, 4, 8, FP16 on 4, 8; 8B FP16
    assert set(built) <= set(lines) and not folders.root.exists()
    for key, system in paper.SYSTEMS["v2"].items():
        models = system.model_names(key)
        [started] = [line for line in lines if f"load-model={models[-1]} " in line and line.startswith("TRTLLM_ORCH")]
        assert started.startswith("TRTLLM_ORCHESTRATOR=1 mpirun ")
        assert [a for a in shlex.split(started) if "--load-model" in a] == [f"--load-model={m}" for m in models]
        assert any(line.startswith("docker") and f"load-model={models[-1]} " in line for line in lines)
        assert all(f"{model}  GPUs " in " ".join(lines) for model in models)


def test_the_dry_run_shows_steps_hours_and_plan_without_a_gpu(tmp_path):
    options = ["reproduce", "--profile", "dgx-h100", "--results", str(tmp_path / "r"), "--dry-run"]
    done = CliRunner().invoke(app.app, options)
    assert done.exit_code == 0, done.output
    assert "03_preliminary" in done.stdout and "5.8 h" in done.stdout and "nothing was written" in done.stdout
    assert "Engines: 18 of 18 are to be built" in done.stdout and "trtllm-build --model_config" in done.stdout
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["dgx-h100", "gpu-tensorrt-llm"])
def test_the_stated_hours_are_those_of_the_commands(name, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    to = profiles.profile(name)
    planned = [c for expert in scaling.experts(to) for c in tensorrt_llm.commands(expert, "e")]
    assert to.minutes["01_build_engines"] == pytest.approx(sum(c.minutes for c in planned), rel=0.002)
    needed = sum(c.disk_bytes for c in planned) / 1e6
    assert environment.plan(name).loc["01_build_engines", "disk MB"] == pytest.approx(needed, abs=2)


def test_the_plan_of_one_gpu(tmp_path, monkeypatch):
    """What TensorRT-LLM will run on one GPU: three systems, on GPU 0 alone, and nothing of the five on eight."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    done = CliRunner().invoke(
        app.app, ["reproduce", "--profile", "gpu-tensorrt-llm", "--dry-run", "--results", str(tmp_path / "r")]
    )
    assert done.exit_code == 0, done.output
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "Engines: 6 of 6 are to be built, about 0.4 h and 279 GB." in lines
    assert [line for line in lines if line.endswith(("experts", "expert", "replica")) and "/  " in line] == [
        "A/  Llama 3 70B FP8, TP 1, 1 replica", "D/  Llama 3 70B FP8, TP 1, 1 expert",
        "E/  Llama 3 8B BF16, TP 1, 2 experts",
    ]  # fmt: skip
    assert not any("memory-pool-byte-size=1:0" in line for line in lines) and not (tmp_path / "r").exists()
    [first] = [line for line in lines if line.startswith("mkdir -p ")]
    folder = shlex.split(first)[2]
    assert f"--mount type=bind,src={folder},dst={folder} " in first
    assert Path(folder).parent == tmp_path / "r" / "engines"


def test_missing_requirements_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ErlabError) as refused:
        environment.require_ready("dgx-h100", tmp_path)
    said = str(refused.value)
    assert "GPUs: none answer (nvidia-smi); needs 8 GPUs of compute capability 8.9 or more" in said
    assert "TensorRT-LLM with its Triton: neither its programs nor docker or podman; install docker" in said
    assert "\n" not in said


@pytest.mark.parametrize(("gpus", "ok"), [([H100] * 8, True), ([H100] * 4, False), (["A100, 81920, 8.0"] * 8, False)])
def test_requirements_depend_on_the_gpus(dgx, gpus, ok):
    (dgx / "bin" / "nvidia-smi").write_text(smi(gpus))
    found = {check.name: check for check in environment.inspect(dgx / "results", "dgx-h100")}
    assert found["GPUs"].ok is ok and found["GPUs"].value == f"{len(gpus)} x {gpus[0].split(',')[0]}"
    assert found["TensorRT-LLM"].value == f"in {nvidia.IMAGE}, by docker"


@pytest.fixture
def roomy(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 10**13, "total": 10**13}))


def test_engines_are_built_once_checked_first_and_go_on_where_they_stopped(dgx, roomy, monkeypatch):
    folders = Folders(dgx / "results")
    monkeypatch.setenv("FAILS", "tp8-batch64/engine")
    with pytest.raises(ErlabError, match="trtllm-build failed with status 1, saying: CUDA out of memory. Its log"):
        deployment.build_engines(DGX, folders, 0)
    first = (dgx / "notes").read_text().splitlines()
    monkeypatch.setenv("FAILS", "")
    table = deployment.build_engines(DGX, folders, 0)
    again = (dgx / "notes").read_text().splitlines()[len(first) :]
    assert len(table) == 18 and len(first) + len(again) == 2 * 18 + 1  # only the failed command ran twice
    assert again[0] == first[-1]
    rows = deployment.write_repositories(DGX, folders)
    for key in paper.SYSTEMS["v2"]:
        assert len(list((folders.models / key).iterdir())) == 4 * len(rows[rows.system == key])
    assert list(rows[rows.system == "A"].GPUs) == ["0, 1, 2, 3", "4, 5, 6, 7"]
    (dgx / "bin" / "nvidia-smi").write_text(smi(["NVIDIA H200, 143771, 9.0"]))
    with pytest.raises(ErlabError, match="built for NVIDIA H100 80GB HBM3, but this machine has NVIDIA H200"):
        deployment.write_repositories(DGX, folders)
    with pytest.raises(ErlabError, match="must be at most this machine's 1 GPUs. Got 4"):
        deployment.build_engines(DGX, folders, 0)  # before the first one is built
    assert len((dgx / "notes").read_text().splitlines()) == len(first) + len(again)


def test_notebook_01_builds_engines_and_repositories(dgx, tmp_path, monkeypatch):
    """As `erlab reproduce` runs it, without the check of disk space, which is too small here for the real engines."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import shutil\nshutil.disk_usage = lambda path: type('', (), {'free': 10**13, 'total': 10**13})\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{site}:{paths.ROOT}")
    values = {"profile": "dgx-h100", "results": str(tmp_path / "results")}
    source, executed = paths.NOTEBOOKS / "01_build_engines.ipynb", tmp_path / "01.ipynb"
    notebook.run(source, executed, values, {}, lambda *_: None)
    text = json.dumps(json.loads(executed.read_text()))
    assert "llama-3-70b-fp8-tp1-batch256" in text and "D-expert-7" in text
    assert "first token ms" in text  # system C answered
    assert len(list((tmp_path / "results" / "engines").glob("*/engine/rank0.engine"))) == 18
    assert len(list((tmp_path / "results" / "models").glob("*/*/config.pbtxt"))) == 4 * (2 + 2 + 1 + 8 + 8)


def test_a_system_is_served_from_its_own_engine_alone(dgx, roomy):
    folders = Folders(dgx / "results")
    with live.serve("C", DGX, folders) as running:
        assert running.models == ("C-replica-0",)
        assert list(kserve.generate(running.address, "C-replica-0", "hello", 3, timeout=60)) == ["0", "1", "2"]
    assert [folder.name for folder in folders.engines.iterdir()] == ["llama-3-70b-fp16-tp8-batch256"]
    options = ["serve", "--profile", "dgx-h100", "--results", str(folders.root), "--container", "print"]
    printed = CliRunner().invoke(app.app, [*options, "--system", "C"])
    assert printed.exit_code == 0, printed.output
    argv = shlex.split(printed.stdout)
    inside = argv[argv.index(nvidia.IMAGE) + 1 :]
    assert argv[:2] == ["docker", "run"] and inside[0] == "mpirun" and "--load-model=C-replica-0" in inside
    assert "--allow-http=false" in inside and any(a.startswith("--grpc-restricted-protocol=") for a in inside)
    mounted = {argv[i + 1].split(",")[1].removeprefix("src=") for i, word in enumerate(argv) if word == "--mount"}
    assert mounted == {str(folders.models / "C"), str(folders.engines / "llama-3-70b-fp16-tp8-batch256")}
    refused = CliRunner().invoke(app.app, [*options, "--system", "B"])
    assert refused.exit_code == 2  # no engine yet
    assert "run notebook 01_build_engines first (erlab reproduce --profile dgx-h100 --only 01)" in refused.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"container": "lxc"}, "'container' parameter of serve must be one of docker, podman. Got 'lxc'"),
        ({"container": "podman"}, "podman is not installed here"),
        ({"apart": True}, "'models' parameter of ServersApart must take one GPU each. Got 'C-replica-0 on 0,1,2,3,4"),
    ],
)
def test_contradictory_options_are_one_line(dgx, roomy, options, said):
    with pytest.raises(ErlabError, match=said):
        with live.serve("C", DGX, Folders(dgx / "results"), **options):
            pass


@pytest.mark.parametrize("apart", [False, True], ids=["one server", "a server a GPU"])
def test_users_reach_the_eight_experts_through_the_gateway(dgx, roomy, apart):
    """System D as it is served on the DGX H100: users, gateway and Triton's protocol are real, the engines are not."""
    folders = Folders(dgx / "results")
    prompts = KITCHEN + COURT
    router = PromptRouter(clusters=8).fit(prompts)
    router.save(folders.router)
    plan = [[Request(str(i), "d", text, len(text) + 1, 3)] for i, text in enumerate(prompts)]
    with live.serve("D", DGX, folders, apart=apart) as running:
        assert running.models == ("router",) and running.failure() is None
        rows = users.run(running.address, running.models, plan, timeout=60)
    assert [row["status"] for row in rows] == ["ok"] * 10
    found = {row["prompt_id"]: row["expert"].rpartition("/")[2] for row in rows}
    assert found == {str(i): f"D-expert-{cluster}" for i, cluster in enumerate(router.predict(prompts))}
    assert len(set(found.values())) > 2


def test_one_gpu_with_docker_has_tensorrt_llms_experts_too(dgx, roomy):
    """Profile gpu with the default engine: the container is found, and its substitutes build, serve and answer."""
    (dgx / "bin" / "nvidia-smi").write_text(smi(["NVIDIA H200, 143771, 9.0"]))
    for name in ("nvidia-ctk", "vllm"):
        (dgx / "bin" / name).write_text("#!/bin/sh\n")
        (dgx / "bin" / name).chmod(0o755)
    one_gpu._devices.cache_clear()
    to, folders = profiles.profile("gpu"), Folders(dgx / "results")
    plan = [[Request(str(i), "d", "What is a watt?", 16, 3)] for i in range(2)]
    with live.serve("A", to, folders) as running:
        rows = users.run(running.address, running.models, plan, timeout=60)
    one_gpu._devices.cache_clear()
    assert [row["status"] for row in rows] == ["ok"] * 2 and running.models == ("A-replica-0",)
    built = (dgx / "notes").read_text().splitlines()
    assert [line.split()[0] for line in built] == ["python3", "trtllm-build"] and "--tp_size 1" in built[0]
    assert (folders.engines / "llama-3-70b-fp8-tp1-batch256" / "engine" / "rank0.engine").is_file()


def test_records_name_the_gpus(dgx):
    system = scaling.scale(paper.SYSTEMS["v2"]["A"], DGX, 8)
    run = cell.describe("baselines", "A", system, DGX, 10, 0, Folders(dgx))
    assert run["machine"] == "8 x NVIDIA H100 80GB HBM3" and run["source"] == "measured" and run["cores"] is None
    assert machine.title() != run["machine"]


def test_the_extra_holds_the_last_releases_with_engines():
    extras = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [wanted] = map(Requirement, extras["tensorrt-llm"])
    assert [v for v in ("0.21.0", "1.0.0", "1.2.1", "1.3.0") if v in wanted.specifier] == ["1.0.0", "1.2.1"]
    assert wanted.marker is None  # pip reports that it is unavailable instead of skipping it
    assert "tensorrt-llm" not in {r.name for r in provenance.requirements()}  # it is not reported as missing


def test_weights_are_found_by_the_models_name(dgx, roomy):
    with pytest.raises(ErlabError, match="weights/llama-3-70b: no folder of Hugging Face weights"):
        deployment.build_engines(DGX, Folders(dgx / "results"), 0, weights=dgx / "weights")
    assert not (dgx / "notes").exists()


def test_a_router_system_needs_its_router_before_triton_starts(dgx):
    system = scaling.scale(paper.SYSTEMS["v2"]["D"], DGX, 8)
    with pytest.raises(ErlabError, match="No router in"), deployment.serve("D", system, DGX, Folders(Path(dgx))):
        pass
    assert scaling.preliminary_systems(DGX)["P-all-FP8-b64"].count == 1
