"""Tests of the paper's data against published numbers, and of its scaled-down counterpart."""

from dataclasses import replace

import pytest

from erlab import paper
from erlab.errors import ErlabError
from erlab.serving import profiles, scaling
from erlab.serving.engines.kinds import kind
from erlab.spec import FP8, FP16, Expert


@pytest.mark.parametrize("model, kib", [(paper.LLAMA_3_8B, 128), (paper.LLAMA_2_13B, 800), (paper.LLAMA_3_70B, 320)])
def test_kv_bytes_per_token(model, kib):
    # 2 * layers * KV heads * 128 * 2 bytes
    assert paper.kv_bytes_per_token(Expert(model, FP16)) == kib * 1024


def test_70b_fits_one_gpu_only_when_quantized():
    assert paper.kv_pool_tokens(Expert(paper.LLAMA_3_70B, FP16)) == 0
    quantized = Expert(paper.LLAMA_3_70B, FP8)
    pool_gib = paper.kv_pool_tokens(quantized) * paper.kv_bytes_per_token(quantized) / 2**30
    assert 3.5 < pool_gib < 12  # implied by published throughput for 70B on one GPU


def test_every_system_uses_all_eight_gpus():
    for systems in paper.SYSTEMS.values():
        for system in systems.values():
            assert system.count * system.expert.tensor_parallel == paper.GPUS


def test_claim_ids_are_unique_and_each_version_has_claims():
    ids = [c.id for c in paper.CLAIMS]
    assert len(set(ids)) == len(ids) == 10
    assert {c.paper for c in paper.CLAIMS} == {"v1", "v2"}


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 8, 16])
def test_scaled_systems_use_their_cores(cores):
    laptop = profiles.profile("laptop")
    for name, original in paper.SYSTEMS["v2"].items():
        system = scaling.scale(original, laptop, cores)
        placed = scaling.placement(system, tuple(range(cores)))
        assert len(placed) == system.count
        used = [core for engine in placed for core in engine]
        assert len(used) == len(set(used)), "no two engines of a system share a core"
        if system.router:
            assert sorted(used) == list(range(cores)), f"{name}: one expert pinned to each core"
        else:
            assert system.expert.cores == max(1, cores * original.expert.tensor_parallel // 8)


def test_tiny_models_keep_the_ratio_of_sizes():
    laptop = profiles.profile("laptop")
    ratio = paper.LLAMA_3_70B.parameters / paper.LLAMA_3_8B.parameters
    scaled = laptop.models["Llama 3 70B"].parameters / laptop.models["Llama 3 8B"].parameters
    assert scaled == pytest.approx(ratio, rel=0.05)


def test_only_d_has_a_small_kv_cache():
    laptop = profiles.profile("laptop")
    for name, original in paper.SYSTEMS["v2"].items():
        expert = scaling.scale(original, laptop, 8).expert
        share = expert.kv_tokens / (expert.max_batch_size * expert.max_sequence_tokens)
        assert (share < 0.2) == (name == "D")


def test_unknown_profile_raises_with_the_allowed_ones():
    with pytest.raises(ErlabError, match="laptop, smoke.*'dgx'"):
        profiles.profile("dgx")


def test_systems_on_eight_gpus_are_those_of_the_paper():
    dgx = profiles.profile("dgx-h100")
    assert {k: scaling.scale(s, dgx, 8) for k, s in paper.SYSTEMS["v2"].items()} == paper.SYSTEMS["v2"]
    places = {k: scaling.placement(s, scaling.devices(dgx)) for k, s in paper.SYSTEMS["v2"].items()}
    assert places["A"] == places["B"] == ((0, 1, 2, 3), (4, 5, 6, 7)) and places["C"] == (tuple(range(8)),)
    assert places["D"] == places["E"] == tuple((i,) for i in range(8))
    with pytest.raises(ErlabError, match="'tensor_parallel' parameter of system C must be at most the 4 GPUs. Got 8"):
        scaling.scale(paper.SYSTEMS["v2"]["C"], dgx, 4)


def test_engine_family_of_every_profile_exists():
    for name, profile in profiles.PROFILES.items():
        assert kind(profile), name
    with pytest.raises(ErlabError, match="'engine' parameter of profile laptop must be one of tiny, .*Got 'onnx'"):
        kind(replace(profiles.profile("laptop"), engine="onnx"))
