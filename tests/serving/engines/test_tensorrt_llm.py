"""TensorRT-LLM's commands against what its programs accept, and builds with stand-ins for these programs.

The stand-ins are shell scripts on PATH: they note their arguments and write files where TensorRT-LLM would, or fail,
hang or stop half-way.
"""

import ast
import json
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from erlab import machine as outside
from erlab import paper, spec
from erlab.errors import ErlabError
from erlab.serving import nvidia
from erlab.serving.engines import tensorrt_llm, tensorrt_llm_build
from erlab.simulation import hardware
from erlab.simulation.engine import Batching

FLAGS = json.loads(Path(__file__).with_name("trtllm_flags.json").read_text())
SMALL = spec.Expert(paper.LLAMA_3_8B, spec.FP16, max_batch_size=64)
EXPERTS = {f"{version} {key}": s.expert for version, all in paper.SYSTEMS.items() for key, s in all.items()}
EXPERTS |= {"8B BF16": replace(SMALL, precision=spec.BF16), "70B BF16": replace(EXPERTS["v2 C"], precision=spec.BF16)}


def parse(command) -> tuple[str, dict]:
    """A command's program and its flags, each known to it, with a value it accepts; AssertionError otherwise."""
    argv = [*command.argv]
    if argv[0] == "python3":
        argv.pop(0)
    name = Path(argv.pop(0)).name
    flags, found = FLAGS[name]["flags"], {}
    while argv:
        flag = argv.pop(0)
        assert flag in flags and flag not in found, f"{name} has no {flag}, or has it twice"
        kind = flags[flag]
        found[flag] = True if kind == "switch" else argv.pop(0)
        assert isinstance(kind, str) or found[flag] in kind, f"{name} {flag} takes {kind}, not {found[flag]}"
        if kind in ("int", "float"):
            found[flag] = {"int": int, "float": float}[kind](found[flag])
    return name, found


@pytest.mark.parametrize("weights", [None, "/weights"])
@pytest.mark.parametrize("expert", EXPERTS.values(), ids=EXPERTS)
def test_every_command_is_one_the_programs_accept(expert, weights):
    first, second = (parse(c) for c in tensorrt_llm.commands(expert, "/engines/e", weights))
    model, tp = expert.model, expert.tensor_parallel
    name, flags = first
    assert flags["--tp_size"] == tp and flags["--output_dir"] == "/engines/e/checkpoint"
    if weights is None:
        assert name == "convert_checkpoint.py" and "--model_dir" not in flags  # then it writes only a config.json
        sizes = ("n_embd", "n_layer", "n_head", "n_kv_head", "inter_size", "vocab_size", "rotary_base", "n_positions")
        assert [flags[f"--{size}"] for size in sizes] == [
            model.hidden, model.layers, model.heads, model.kv_heads,
            model.intermediate, model.vocab, model.rope_theta, model.max_positions,
        ]  # fmt: skip
    else:
        assert flags["--model_dir"] == "/weights" and "--n_layer" not in flags
        assert name == ("convert_checkpoint.py" if expert.precision.weight_bits == 16 else "quantize.py")
    name, flags = second
    assert name == "trtllm-build" and flags["--output_dir"] == "/engines/e/engine"
    assert ("--model_config" in flags, "--checkpoint_dir" in flags) == (weights is None, weights is not None)
    assert flags["--max_batch_size"] == expert.max_batch_size and flags["--workers"] == tp
    assert flags["--max_seq_len"] == expert.max_input_tokens + expert.max_output_tokens
    assert flags["--max_input_len"] <= flags["--max_num_tokens"] == Batching().max_num_tokens  # as it is simulated


API = FLAGS["tensorrt_llm._tensorrt_engine"]


@pytest.mark.parametrize("weights", [None, "/weights"])
@pytest.mark.parametrize("expert", EXPERTS.values(), ids=EXPERTS)
def test_the_python_api_builds_the_same_engine(expert, weights):
    """The script's calls, read as Python: only names and arguments the API has, with the commands' values."""
    [command] = tensorrt_llm.api_commands(expert, "/engines/e", weights)
    assert command.argv == ("python3", "/engines/e/build.py") and command.writes == Path("/engines/e/engine")
    tree = ast.parse(command.script)
    imported = {n.module: {a.name for a in n.names} for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported.keys() == API["names"].keys()
    assert all(names <= set(API["names"][module]) for module, names in imported.items())
    calls = {n.func.id: n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    given = {name: {k.arg: k.value for k in call.keywords} for name, call in calls.items()}
    assert all(set(arguments) <= set(API["arguments"][name]) for name, arguments in given.items())
    built = {name: ast.literal_eval(value) for name, value in given["BuildConfig"].items()}
    first, second = (parse(c)[1] for c in tensorrt_llm.commands(expert, "/engines/e", weights))
    assert built == {name: second[f"--{name}"] for name in built} and len(built) == 4
    llm = given["LLM"]
    assert ast.literal_eval(llm["tensor_parallel_size"]) == first["--tp_size"]
    assert ast.literal_eval(llm["dtype"]) == first["--dtype"]
    assert ast.literal_eval(llm["load_format"]) == ("auto" if weights else "dummy")
    assert ast.literal_eval(llm["model"]) == (weights or "/engines/e/model")
    quantized = [ast.unparse(value) for value in given.get("QuantConfig", {}).values()]
    algorithms = {(8, 8): ["QuantAlgo.FP8", "QuantAlgo.FP8"], (8, 16): ["QuantAlgo.W8A16", "QuantAlgo.INT8"]}
    assert quantized == algorithms.get((expert.precision.weight_bits, expert.precision.activation_bits), [])
    [saved] = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "llm.save"]
    assert ast.literal_eval(saved.args[0]) == "/engines/e/engine"


@pytest.mark.parametrize(
    ("precision", "dummy", "real", "paged", "fp8_attention"),
    [
        (spec.FP16, {"--dtype": "float16"}, {"--dtype": "float16"}, "enable", "disable"),
        (spec.BF16, {"--dtype": "bfloat16"}, {"--dtype": "bfloat16"}, "enable", "disable"),
        (
            spec.FP8,
            {"--use_fp8": True, "--fp8_kv_cache": True},
            {"--qformat": "fp8", "--kv_cache_dtype": "fp8"},
            "enable",
            "enable",
        ),
        (
            spec.INT8,
            {"--use_weight_only": True, "--weight_only_precision": "int8", "--int8_kv_cache": True},
            {"--qformat": "int8_wo", "--kv_cache_dtype": "int8"},
            "disable",  # trtllm-build: "Paged Context FMHA doesn't work with int8 kv cache currently."
            "disable",
        ),
    ],
    ids=lambda p: getattr(p, "name", None),
)
def test_a_precision_becomes_its_flags(precision, dummy, real, paged, fp8_attention):
    every = {"--use_fp8", "--fp8_kv_cache", "--use_weight_only", "--weight_only_precision", "--int8_kv_cache"}
    every |= {"--qformat", "--kv_cache_dtype"}
    for weights, expected in ((None, dummy), ("/weights", real)):
        first, second = tensorrt_llm.commands(replace(SMALL, precision=precision), "/e", weights)
        flags = parse(first)[1]
        assert expected.items() <= flags.items() and every & flags.keys() == every & expected.keys()
        flags = parse(second)[1]
        assert (flags["--use_paged_context_fmha"], flags["--use_fp8_context_fmha"]) == (paged, fp8_attention)


def test_no_expert_of_other_precisions_or_of_cores_is_planned():
    with pytest.raises(ErlabError, match="'precision' .* FP16, BF16, FP8, INT8. Got 'int8'"):
        tensorrt_llm.commands(replace(SMALL, precision=spec.INT8_CPU), "/e")
    with pytest.raises(ErlabError, match="'cores'"):
        tensorrt_llm.commands(replace(SMALL, cores=1), "/e")
    long = replace(paper.LLAMA_3_8B, max_positions=32768)
    with pytest.raises(ErlabError, match="'max_input_tokens' .* 8192"):
        tensorrt_llm.commands(spec.Expert(long, spec.FP16, max_input_tokens=8193), "/e")


def test_memory_is_the_arithmetic_of_the_architecture():
    """Llama 3 70B, FP8, on 4 GPUs, by hand: 8192 wide, 80 layers, 8 KV heads of 128, 28672 in the MLP, 128256 words."""
    layer = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
    weights = (80 * layer + 8192) + 2 * 128256 * 8192 * 2  # bytes: one a weight, two in the embeddings
    memory = tensorrt_llm.memory(paper.SYSTEMS["v2"]["A"].expert)
    assert memory.weights == weights // 4
    assert memory.activations == 8192 * (2 * 8192 + 3 * 28672 // 4) * 2 + 256 * 128256 * 4
    assert memory.reserve == 4 * 2**30
    pool = 0.9 * 4 * (81559 * 2**20 - memory.reserve - weights / 4) / (2 * 80 * 8 * 128)
    assert memory.kv_tokens == pytest.approx(pool, abs=1) and memory.kv == memory.kv_tokens * 2 * 80 * 8 * 128 // 4


@pytest.mark.parametrize("expert", EXPERTS.values(), ids=EXPERTS)
def test_memory_agrees_with_the_simulators(expert):
    memory, gpu = tensorrt_llm.memory(expert), hardware.gpu("H100")
    assert memory.kv_tokens == hardware.kv_pool_tokens(expert, gpu) == paper.kv_pool_tokens(expert)
    assert memory.weights + memory.kv + memory.reserve <= gpu.memory
    assert memory.reserve >= memory.activations


def test_what_does_not_fit_is_refused_with_the_numbers(tmp_path):
    with pytest.raises(ErlabError, match="Llama 3 70B FP16 does not fit 1 .*weights 131.4 GiB"):
        tensorrt_llm_build.plan(replace(SMALL, model=paper.LLAMA_3_70B), tmp_path / "e")
    with pytest.raises(ErlabError, match="KV cache 122.1 "):
        tensorrt_llm_build.plan(replace(SMALL, kv_tokens=1_000_000), tmp_path / "e")


# Stand-ins. Each notes its arguments in $NOTES, one line a call.
PRELUDE = """#!/bin/bash
[ "$1" = -c ] && exit 1  # no Python package tensorrt_llm
printf '%s ' "$(basename "$0")" "$@" >> "$NOTES"; echo >> "$NOTES"
while [ $# -gt 0 ]; do case "$1" in --output_dir) out=$2;; --workers|--tp_size) ranks=$2;; esac; shift; done
mkdir -p "$out"
"""
CHECKPOINT = PRELUDE + """echo '{"dtype": "float16"}' > "$out/config.json"\n"""
BUILD = PRELUDE + """
for ((i = 0; i < ranks; i++)); do echo engine > "$out/rank$i.engine"; done
echo '{"version": "1.2.1"}' > "$out/config.json"
"""
FAIL = PRELUDE + """
echo half > "$out/rank0.engine"
for i in 1 2 3 4; do echo "line $i" ; done; echo "CUDA out of memory" >&2; exit 3
"""
HALF = BUILD + """: > "$out/rank$((ranks - 1)).engine"\n"""
HANG = PRELUDE + """
echo half > "$out/rank0.engine"; echo timing kernels
sleep 600 & echo $! > "$NOTES.worker"; wait
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with eight H100s and TensorRT-LLM, all of it stand-ins; put(name, script) changes one."""
    return Machine(tmp_path, monkeypatch)


class Machine:
    def __init__(self, root, monkeypatch):
        self.bin, self.notes = root / "bin", root / "notes"
        self.folder, self.examples = root / "build", root / "examples"
        self.bin.mkdir()
        script = self.examples / "models/core/llama/convert_checkpoint.py"
        script.parent.mkdir(parents=True)
        script.write_text("")
        self.put("python3", CHECKPOINT)
        self.put("trtllm-build", BUILD)
        self.gpus(["NVIDIA H100 80GB HBM3, 81559, 9.0"] * 8)
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")
        monkeypatch.setenv("NOTES", str(self.notes))

    def put(self, name, script):
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def gpus(self, lines):
        self.put("nvidia-smi", "#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))

    def build(self, expert=SMALL, **options):
        return tensorrt_llm_build.build(expert, self.folder, examples=self.examples, **options)

    def plan(self, expert=SMALL, **options):
        return tensorrt_llm_build.plan(expert, self.folder, examples=self.examples, **options)

    def ran(self):
        """The programs that were called since the last time, by name."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        self.notes.unlink(missing_ok=True)
        return [line.split()[0] for line in lines]

    def left(self):
        return sorted(p.name for p in self.folder.iterdir()) if self.folder.exists() else []


WHOLE = ["build.log", "checkpoint", "checkpoint.json", "engine", "engine.json", "tokenizer"]


def test_a_build_runs_what_was_planned_and_only_once(machine):
    expert = replace(SMALL, tensor_parallel=4)
    planned = machine.plan(expert)
    assert machine.left() == [] and machine.ran() == []
    assert machine.build(expert) == planned == tensorrt_llm.commands(expert, machine.folder, examples=machine.examples)
    called = [line.split() for line in machine.notes.read_text().splitlines()]
    assert called == [list(command.argv) for command in planned]
    assert machine.left() == WHOLE
    machine.ran()
    assert machine.plan(expert) == () and machine.build(expert) == () and machine.ran() == []
    assert tensorrt_llm_build.load(machine.folder, expert) == machine.folder / "engine"
    assert machine.build(replace(expert, kv_tokens=4096)) == ()  # chosen when it is served
    assert len(machine.plan(replace(expert, max_batch_size=128))) == 1  # the same checkpoint
    assert len(machine.plan(replace(expert, precision=spec.FP8))) == 2


def test_a_failed_build_shows_the_tools_last_lines_and_goes_on_where_it_stopped(machine):
    machine.put("trtllm-build", FAIL)
    last = r"trtllm-build failed with status 3, saying: line 3 \| line 4 \| CUDA out of memory\."
    with pytest.raises(ErlabError, match=last):
        machine.build()
    assert machine.left() == ["build.log", "checkpoint", "checkpoint.json"]
    assert machine.ran() == ["python3", "trtllm-build"]
    with pytest.raises(ErlabError, match="no complete TensorRT-LLM engine"):
        tensorrt_llm_build.load(machine.folder, SMALL)
    machine.put("trtllm-build", BUILD)
    machine.build()
    assert machine.ran() == ["trtllm-build"] and machine.left() == WHOLE
    assert "CUDA out of memory" in (machine.folder / "build.log").read_text()


def test_an_incomplete_engine_is_refused(machine):
    machine.put("trtllm-build", HALF)
    with pytest.raises(ErlabError, match="trtllm-build ended without .*engine/rank3.engine"):
        machine.build(replace(SMALL, tensor_parallel=4))
    assert "engine" not in machine.left() and "engine.json" not in machine.left()
    machine.put("trtllm-build", BUILD)
    machine.build()
    machine.ran()
    (machine.folder / "engine" / "rank0.engine").unlink()
    machine.build()
    assert machine.ran() == ["trtllm-build"]


def test_a_build_that_hangs_is_ended_with_its_workers(machine):
    machine.put("trtllm-build", HANG)
    with pytest.raises(ErlabError, match="trtllm-build did not end within 3 s, saying: timing kernels"):
        machine.build(timeout=3)
    worker = int(Path(f"{machine.notes}.worker").read_text())
    deadline = time.monotonic() + 20
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
    assert machine.left() == ["build.log", "checkpoint", "checkpoint.json"]


def test_an_interrupted_build_leaves_no_partial_engine(machine, monkeypatch):
    def interrupted(command, *_):
        command.writes.mkdir()
        (command.writes / "rank0.engine").write_text("half")
        raise KeyboardInterrupt

    machine.build()
    (machine.folder / "engine.json").unlink()
    monkeypatch.setattr(tensorrt_llm_build, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        machine.build()
    assert machine.left() == ["build.log", "checkpoint", "checkpoint.json", "tokenizer"]


def test_missing_requirements_are_reported_before_anything_runs(machine, monkeypatch):
    machine.gpus([])
    with pytest.raises(ErlabError, match="No GPU answers"):
        machine.build()
    machine.gpus(["NVIDIA H100 80GB HBM3, 81559, 9.0"] * 2)
    with pytest.raises(ErlabError, match="'tensor_parallel' .* at most this machine's 2 GPUs. Got 4"):
        machine.build(replace(SMALL, tensor_parallel=4))
    machine.gpus(["NVIDIA A100-SXM4-80GB, 81920, 8.0"])
    with pytest.raises(ErlabError, match="FP8 needs .* 8.9 or more. NVIDIA A100-SXM4-80GB has 8.0"):
        machine.build(replace(SMALL, precision=spec.FP8))
    machine.gpus(["NVIDIA L4, 23034, 8.9"])
    with pytest.raises(ErlabError, match="Llama 2 13B FP16 does not fit 1 NVIDIA L4: weights 24.2 GiB"):
        machine.build(paper.SYSTEMS["v1"]["13B-FP16"].expert)
    machine.gpus(["NVIDIA H100 80GB HBM3, 81559, 9.0"])
    (machine.bin / "trtllm-build").unlink()
    with pytest.raises(ErlabError, match="trtllm-build is not here: .* docker or podman, .*:25.12-trtllm-python-py3$"):
        machine.build()
    machine.put("trtllm-build", BUILD)
    with pytest.raises(ErlabError, match="convert_checkpoint.py is not here"):
        tensorrt_llm_build.build(SMALL, machine.folder, examples=machine.examples / "other")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("", (), {"free": 10**10}))
    with pytest.raises(ErlabError, match="building needs 16.9 GB of disk, 10.0 GB are free"):
        machine.build()
    assert machine.ran() == [] and machine.left() == []


def test_weights_of_another_shape_are_refused(machine, tmp_path):
    weights = tmp_path / "weights"
    with pytest.raises(ErlabError, match="no folder of Hugging Face weights"):
        machine.build(weights=weights)
    weights.mkdir()
    config = {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
    }  # fmt: skip
    (weights / "config.json").write_text(json.dumps(config))
    with pytest.raises(ErlabError, match="vocab_size must be 128256 for Llama 3 8B. Got 32000"):
        machine.build(weights=weights)
    (weights / "config.json").write_text(json.dumps(config | {"vocab_size": 128256}))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (weights / "model.safetensors.index.json").write_text(json.dumps(index))
    (weights / "model-1.safetensors").write_text("")
    (weights / "tokenizer.json").write_text("their tokenizer")
    with pytest.raises(ErlabError, match="model-2.safetensors is missing there"):
        machine.build(weights=weights)
    (weights / "model-2.safetensors").write_text("")
    assert machine.ran() == []
    machine.put("python3", CHECKPOINT + """echo weights > "$out/rank0.safetensors"\n""")
    assert len(machine.build(weights=weights)) == 2
    assert (machine.folder / "tokenizer" / "tokenizer.json").read_text() == "their tokenizer"
    assert machine.plan(weights=weights) == () and len(machine.build()) == 2


def test_an_engine_of_another_machine_version_or_expert_is_not_served(machine, monkeypatch):
    machine.build()
    with pytest.raises(ErlabError, match="another specification"):
        tensorrt_llm_build.load(machine.folder, replace(SMALL, max_batch_size=8))
    machine.gpus(["NVIDIA H200, 143771, 9.0"])
    with pytest.raises(ErlabError, match="built for NVIDIA H100 80GB HBM3, but this machine has NVIDIA H200"):
        tensorrt_llm_build.load(machine.folder, SMALL)
    assert len(machine.plan()) == 2
    machine.gpus([])  # served elsewhere
    assert tensorrt_llm_build.load(machine.folder, SMALL)
    monkeypatch.setattr(tensorrt_llm_build, "version", lambda name: {"tensorrt_llm": "1.0.0"}[name])
    with pytest.raises(ErlabError, match="built with TensorRT-LLM 1.2.1, but 1.0.0 is installed"):
        tensorrt_llm_build.load(machine.folder, SMALL)


def test_a_folder_with_other_files_is_left_unchanged(machine):
    machine.folder.mkdir()
    (machine.folder / "thesis.tex").write_text("all of it")
    with pytest.raises(ErlabError, match="it holds thesis.tex"):
        machine.build()
    assert (machine.folder / "thesis.tex").read_text() == "all of it"


def test_printed_commands_are_valid_shell(tmp_path):
    command = tensorrt_llm.commands(SMALL, tmp_path / "with space")[1]
    out = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == list(command.argv)


def test_without_conversion_scripts_the_python_api_builds(machine, tmp_path):
    """A TensorRT-LLM from a package index: python3 finds the package, and there are no examples."""
    (machine.bin / "trtllm-build").unlink()
    api = """[ "$1" = -c ] && exit 0
cp "$1" "$NOTES.py"; out="$(dirname "$1")/engine"; mkdir -p "$out"
echo engine > "$out/rank0.engine"; echo '{"version": "1.2.1"}' > "$out/config.json"
"""
    machine.put("python3", "#!/bin/bash\n" + api)
    [ran] = tensorrt_llm_build.build(SMALL, machine.folder, examples=tmp_path / "none")
    assert Path(f"{machine.notes}.py").read_text() == ran.script
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(machine.folder / "model")
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads, config.vocab_size)
    assert sizes == (4096, 32, 8, 128256) and config.model_type == "llama"
    assert len(transformers.AutoTokenizer.from_pretrained(machine.folder / "model")) == 128256
    assert tensorrt_llm_build.load(machine.folder, SMALL) == machine.folder / "engine"
    assert tensorrt_llm_build.build(SMALL, machine.folder, examples=tmp_path / "none") == ()


DOCKER = """#!/bin/bash
printf '%s ' docker "$@" >> "$NOTES"; echo >> "$NOTES"
[ "$1" = run ] || exit 0
while [ "$1" != "IMAGE" ]; do shift; done; shift
PATH="$TOOLS:$PATH" exec "$@"
""".replace("IMAGE", nvidia.IMAGE)


def test_where_the_programs_are_missing_the_container_runs_them(machine, monkeypatch):
    """The stand-in for docker runs what it is to run inside, with the programs that only the container has."""
    tools = machine.bin.with_name("tools")
    tools.mkdir()
    monkeypatch.setenv("TOOLS", str(tools))
    for name in ("python3", "trtllm-build"):
        (machine.bin / name).rename(tools / name)
    machine.put("docker", DOCKER)
    tensorrt_llm_build.build(SMALL, machine.folder)
    assert machine.left() == WHOLE
    started = [line.split() for line in machine.notes.read_text().splitlines() if line.startswith("docker run")]
    for argv, planned in zip(started, tensorrt_llm.commands(SMALL, machine.folder), strict=True):
        inside = argv.index(nvidia.IMAGE)
        assert tuple(argv[inside + 1 :]) == planned.argv
        options = argv[:inside]
        assert f"type=bind,src={machine.folder},dst={machine.folder}" in options
        assert options[options.index("--gpus") + 1] == "all"
    machine.ran()
    (tools / "trtllm-build").write_text(FAIL)
    with pytest.raises(ErlabError, match="CUDA out of memory"):
        tensorrt_llm_build.build(replace(SMALL, max_batch_size=8), machine.folder)
    removed = [line for line in machine.notes.read_text().splitlines() if line.startswith("docker rm")]
    assert len(removed) == 1 and "erlab-build-" in removed[0]


def test_a_container_engine_that_does_not_answer_is_reported(machine):
    (machine.bin / "trtllm-build").unlink()
    machine.put("docker", "#!/bin/sh\necho 'Cannot connect to the Docker daemon.' >&2; exit 1\n")
    with pytest.raises(ErlabError, match="docker is installed but cannot be reached: Cannot connect to the Docker"):
        machine.build()
    with pytest.raises(ErlabError, match="podman is not installed here"):
        nvidia.container("podman")


def test_programs_are_not_taken_from_this_virtual_environment(monkeypatch):
    monkeypatch.setattr("sys.prefix", "/venv")
    monkeypatch.setattr("sys.executable", "/venv/bin/python")
    monkeypatch.setenv("PATH", "/venv/bin:/usr/bin:/bin")
    monkeypatch.setenv("VIRTUAL_ENV", "/venv")
    assert outside.environment()["PATH"] == "/usr/bin:/bin" and "VIRTUAL_ENV" not in outside.environment()
