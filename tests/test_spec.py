"""Tests of the specifications: contradictions raise with the parameter's name."""

import dataclasses

import pytest

from erlab import paper
from erlab.errors import ErlabError
from erlab.serving.profiles import PROFILES
from erlab.spec import FLOAT32, FP8, FP16, Expert, Lengths, Model, System, Workload

TINY = Model("tiny", 64, 2, 4, 2, 128, 260)


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: Model("m", 64, 2, 3, 1, 128, 260), "heads"),
        (lambda: Model("m", 64, 2, 4, 3, 128, 260), "kv_heads"),
        (lambda: Model("m", 64, 0, 4, 2, 128, 260), "layers"),
        (lambda: Expert(paper.LLAMA_3_70B, FP16, tensor_parallel=16), "tensor_parallel"),
        (lambda: Expert(TINY, FLOAT32, tensor_parallel=2, cores=1), "tensor_parallel"),
        (lambda: Expert(TINY, FLOAT32, cores=0), "cores"),
        (lambda: Expert(TINY, FLOAT32, max_batch_size=0), "max_batch_size"),
        (lambda: Expert(TINY, FLOAT32, max_output_tokens=9000), "max_output_tokens"),
        (lambda: Expert(TINY, FLOAT32, kv_tokens=2047), "kv_tokens"),
        (lambda: System("X", "v3", Expert(TINY, FP8), 1, False), "paper"),
        (lambda: System("X", "v2", Expert(TINY, FP8), 0, False), "count"),
        (lambda: Lengths(10, 1, 20, 30), "median"),
        (lambda: Lengths(10, 1, 0, 30), "minimum"),
        (lambda: Lengths(10, -1, 1, 30), "sigma"),
        (lambda: Workload(Lengths(10, 1, 1, 30), Lengths(10, 1, 1, 30), turns=0), "turns"),
        (lambda: dataclasses.replace(PROFILES["laptop"], loads=(4, 1)), "loads"),
        (lambda: dataclasses.replace(PROFILES["laptop"], batch_limits=()), "batch_limits"),
        (lambda: dataclasses.replace(PROFILES["laptop"], clusters=0), "clusters"),
    ],
)
def test_contradiction_raises_with_the_parameter(make, named):
    with pytest.raises(ErlabError, match=f"'{named}' parameter"):
        make()


def test_parameters_equal_a_count_by_hand():
    # embeddings and head 2*260*64; per layer: q and o 2*64*64, k and v 2*64*32, SwiGLU 3*64*128, two norms of 64
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    assert TINY.parameters == 2 * 260 * 64 + 2 * layer + 64


@pytest.mark.parametrize(
    "model, billions",
    [(paper.LLAMA_3_8B, 8.03), (paper.LLAMA_3_70B, 70.6), (paper.LLAMA_2_13B, 13.0), (paper.LLAMA_2_70B, 69.0)],
)
def test_parameters_match_the_published_sizes(model, billions):
    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_few_users_make_more_requests_each():
    workload = Workload(Lengths(10, 1, 1, 30), Lengths(10, 1, 1, 30), turns=2, least_requests=9)
    assert [workload.turns_for(n) for n in (1, 2, 4, 5, 100)] == [9, 5, 3, 2, 2]


def test_scaled_lengths_keep_their_shape():
    scaled = Lengths(200, 0.9, 8, 1024).scaled(1 / 4)
    assert (scaled.median, scaled.sigma, scaled.minimum, scaled.maximum) == (50, 0.9, 2, 256)
