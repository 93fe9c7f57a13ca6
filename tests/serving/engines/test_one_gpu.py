"""Which engine serves one GPU and why, and how the paper's systems share it."""

import stat

import pytest

from erlab import paper
from erlab.errors import ErlabError
from erlab.experiments import gpu
from erlab.machine import gpus
from erlab.serving import profiles, scaling
from erlab.serving.engines import one_gpu, openai_models
from erlab.serving.engines.kinds import kind
from erlab.spec import GIB
from erlab.study import environment

GPU = profiles.profile("gpu")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with these programs on PATH, nvidia-smi telling of one GPU of so many MiB."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(openai_models, "_importable", lambda: False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "backends" / "tensorrtllm").mkdir(parents=True)

    def install(*programs, mib=143_771, name="NVIDIA H200", capability=9.0):
        for program in programs:
            file = tmp_path / "bin" / program
            row = f"{name}, {mib}, {capability}"
            driver = f'case "$1" in *memory*) echo "{row}";; *) echo "{name}";; esac'
            file.write_text(f"#!/bin/sh\n{driver if program == 'nvidia-smi' else 'true'}\n")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)

    one_gpu._devices.cache_clear()
    yield install
    one_gpu._devices.cache_clear()


def test_without_a_gpu_there_is_no_engine(machine):
    assert one_gpu.choose() == one_gpu.Choice(None, "no GPU answers (nvidia-smi)")
    with pytest.raises(ErlabError, match="Nothing here can serve experts on a GPU: no GPU answers"):
        one_gpu.OneGPU().check([])
    assert one_gpu.gpu().name == "H100"  # what plans are made for


def test_the_first_available_engine_is_chosen_with_reasons(machine):
    machine("nvidia-smi", "vllm")
    assert gpus() == ("NVIDIA H200",)
    chosen = one_gpu.choose()
    assert chosen.name == "vllm"
    native = "trtllm-build is not here, nor docker or podman"
    assert f"no tensorrt-llm: {native}; no trtllm-serve: trtllm-serve is not on PATH" == chosen.why
    machine("trtllm-serve")
    assert one_gpu.choose().name == "trtllm-serve"
    machine("trtllm-build", "tritonserver", "mpirun")
    assert one_gpu.choose() == one_gpu.Choice("tensorrt-llm", "the first in order")
    assert one_gpu.choose("vllm") == one_gpu.Choice("vllm", "chosen by name (vllm)")
    assert one_gpu.choose("embedded").name is None  # this machine's PyTorch sees no GPU
    with pytest.raises(ErlabError, match="'engine' parameter of one GPU must be one of tensorrt-llm, .* Got 'sglang'"):
        one_gpu.choose("sglang")


def test_without_tensorrt_llm_its_container_comes_before_other_servers(machine, tmp_path):
    machine("nvidia-smi", "vllm", "podman")
    chosen = one_gpu.choose()
    assert chosen.name == "vllm" and "podman has no NVIDIA container toolkit (nvidia-ctk)" in chosen.why
    by_name = one_gpu.choose("tensorrt-llm")  # as on systems that give GPUs without it
    assert (by_name.name, by_name.container) == ("tensorrt-llm", "podman")
    machine("nvidia-ctk")
    chosen = one_gpu.choose()
    assert (chosen.name, chosen.container) == ("tensorrt-llm", "podman")
    assert chosen.why == "the first in order; in NVIDIA's container, by podman"
    assert one_gpu.choose("vllm").name == "vllm"
    (tmp_path / "bin" / "podman").write_text("#!/bin/sh\necho 'no user namespaces' >&2; exit 125\n")
    chosen = one_gpu.choose()
    assert chosen.name == "vllm" and "podman is installed but cannot be reached: no user namespaces" in chosen.why


@pytest.mark.parametrize("mib, count", [(143_771, 4), (81_559, 2), (40_960, 1)])
def test_as_many_experts_share_the_gpu_as_have_room_for_a_batch(machine, mib, count):
    machine("nvidia-smi", mib=mib)
    system = scaling.scale(paper.SYSTEMS["v2"]["E"], GPU, 1)
    expert = system.expert
    assert system.count == count and expert.precision.name == "BF16" and expert.model == paper.LLAMA_3_8B
    each = paper.weight_bytes(expert) + paper.RESERVE + expert.kv_tokens * paper.kv_bytes_per_token(expert)
    assert count * each <= mib * 2**20
    assert expert.kv_tokens >= 16 * expert.max_sequence_tokens or count == 1
    more = mib * 2**20 / (2 * count) - paper.weight_bytes(expert) - paper.RESERVE  # with twice as many
    assert count == 4 or 0.9 * more < 16 * expert.max_sequence_tokens * paper.kv_bytes_per_token(expert)


def test_a_70b_expert_has_the_pool_of_an_h100_and_stands_for_all(machine):
    machine("nvidia-smi")
    system = scaling.scale(paper.SYSTEMS["v2"]["D"], GPU, 1)
    assert system.count == 1 and system.expert.kv_tokens == paper.kv_pool_tokens(paper.SYSTEMS["v2"]["D"].expert)
    pool = system.expert.kv_tokens * paper.kv_bytes_per_token(system.expert) / GIB
    assert 7 < pool < 9  # of the H200's 140 GiB
    assert scaling.scale(paper.SYSTEMS["v2"]["A"], GPU, 1).expert == system.expert  # the same without the gateway
    machine("nvidia-smi", mib=49_140)
    one_gpu._devices.cache_clear()
    with pytest.raises(ErlabError, match="Llama 3 70B FP8 does not fit"):
        scaling.scale(paper.SYSTEMS["v2"]["D"], GPU, 1)


def test_experts_that_a_gpu_cannot_serve_are_refused_before_the_build(machine, tmp_path, monkeypatch):
    machine("nvidia-smi", "vllm", name="NVIDIA A100-SXM4-80GB", mib=81_920, capability=8.0)
    said = "FP8 needs a GPU of compute capability 8.9 or more. NVIDIA A100-SXM4-80GB has 8.0"
    with pytest.raises(ErlabError, match=said):
        scaling.scale(paper.SYSTEMS["v2"]["A"], GPU, 1)
    found = {check.name: check for check in environment.inspect(tmp_path / "r", "gpu")}
    assert [(found[f"system {key}"].ok, found[f"system {key}"].value) for key in "AD"] == [(False, said)] * 2
    assert found["system E"].ok and found["disk"].ok
    assert list(gpu.systems(GPU)) == ["8B", "8B-shared"]  # all that fit
    with pytest.raises(ErlabError, match=said):
        gpu.systems(GPU, ["70B-FP8"])
    expert = scaling.scale(paper.SYSTEMS["v2"]["E"], GPU, 1).expert
    weights = tmp_path / "llama-3-8b"
    with pytest.raises(ErlabError, match="llama-3-8b: no folder of Hugging Face weights with a config.json"):
        one_gpu.OneGPU().plan(expert, tmp_path / "e", weights)
    weights.mkdir()
    (weights / "config.json").write_text('{"hidden_size": 5120}')
    with pytest.raises(ErlabError, match="hidden_size must be 4096 for Llama 3 8B. Got 5120"):
        one_gpu.OneGPU().plan(expert, tmp_path / "e", weights)
    monkeypatch.setattr(one_gpu, "_chosen", lambda engine: "embedded")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 10**10}))
    with pytest.raises(ErlabError, match="building needs 16.1 GB of disk, 10.0 GB are free"):
        one_gpu.OneGPUEmbedded().check([(expert, tmp_path / "e", ())])


def test_profiles_of_one_gpu_serve_what_fits_it(machine):
    assert list(profiles.systems(GPU)) == ["A", "D", "E"]
    assert {name.partition("-b")[0] for name in scaling.preliminary_systems(GPU)} == {"P-half-FP8"}
    assert scaling.preliminary_systems(profiles.profile("gpu-embedded")) == {}
    for name in ("vllm", "trtllm-serve", "tensorrt-llm", "embedded"):
        assert kind(profiles.profile(f"gpu-{name}")).devices == "GPUs"
