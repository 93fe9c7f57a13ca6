"""Tests of iteration times: stored tables, interpolation, roofline, INT8, era factors, KV pool."""

from dataclasses import replace

import numpy as np
import pytest

from erlab import paper
from erlab.errors import ErlabError
from erlab.simulation import components, era, hardware, validation
from erlab.simulation.components import BATCHES, CONTEXTS, TOKENS, Software, measured, roofline
from erlab.simulation.hardware import free_gib, gpu, kv_pool_tokens
from erlab.simulation.steptimes import StepTimes
from erlab.simulation.system import Setup, step_times
from erlab.spec import BF16, FLOAT32, FP8, FP16, Expert, Model, Precision

pytest.importorskip("aiconfigurator")
H100 = gpu("H100")
D, E = paper.SYSTEMS["v2"]["D"].expert, paper.SYSTEMS["v2"]["E"].expert


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return tmp_path_factory.mktemp("steptimes")


def test_table_is_computed_once_and_then_read(tables, monkeypatch):
    made = measured(E, H100, folder=tables)
    monkeypatch.setattr(components, "_tabulate", lambda *a: pytest.fail("computed again"))
    again = measured(E, H100, folder=tables)
    for name in ("body", "logits", "decode", "prefill", "prefix"):
        np.testing.assert_array_equal(getattr(made, name), getattr(again, name))
    assert [f.suffix for f in tables.iterdir()] == [".npz"] * len(list(tables.iterdir()))


def test_sum_of_the_parts_is_the_step_of_aiconfigurator(tables):
    """The undivided engine includes the output head in its decode step."""
    from aiconfigurator.sdk.engine import EngineHandle

    whole = EngineHandle.compile(
        "meta-llama/Meta-Llama-3.1-8B", "h100_sxm", "trtllm", backend_version="1.2.0rc5", tp_size=1,
        gemm_quant_mode="bfloat16", kvcache_quant_mode="bfloat16", fmha_quant_mode="bfloat16",
    )  # fmt: skip
    parts = components.engine_parts(E, H100, Software())
    for batch, context in ((1, 500), (64, 900), (256, 100)):
        ours = parts.body(batch) + parts.logits(batch) + parts.decode(batch, context)
        assert ours == pytest.approx(whole.predict_decode_latency(batch, context, 2), rel=1e-6)


def test_interpolation_is_accurate_at_random_points(tables):
    found = validation.interpolation(E, Setup(era=None, tables=tables), points=60)
    errors = (found["ratio"] - 1).abs()
    assert errors.median() < 0.01 and errors.quantile(0.95) < 0.05


def test_no_kernel_beats_the_roofline(tables):
    found = validation.bounds(Setup(era=None, tables=tables), {k: paper.SYSTEMS["v2"][k] for k in "DE"})
    assert (found["ratio"] >= 1).all()


def test_roofline_is_bytes_over_bandwidth_and_flop_over_peak():
    parts = roofline(E, H100)
    weights = E.model.parameters - E.model.embedding_parameters
    assert parts.body[0] == pytest.approx(2 * weights / 3.35e12)
    assert parts.body[-1] == pytest.approx(2 * weights * TOKENS[-1] / 989e12)
    b, c = list(BATCHES).index(64), list(CONTEXTS).index(1024)
    assert parts.decode[b, c] == pytest.approx(64 * 1024 * paper.kv_bytes_per_token(E) / 3.35e12)
    half = roofline(replace(D, tensor_parallel=2), H100)
    assert half.body[0] > roofline(D, H100).body[0] / 2  # all-reduces


def test_int8_takes_at_least_the_traffic_of_fp8_and_the_arithmetic_of_bf16(tables):
    int8 = measured(paper.SYSTEMS["v1"]["70B-INT8"].expert, H100, folder=tables)
    same = replace(paper.SYSTEMS["v1"]["70B-INT8"].expert, precision=FP8)
    fp8, wide = measured(same, H100, folder=tables), measured(replace(same, precision=FP16), H100, folder=tables)
    overhead = components.INT8_OVERHEAD
    np.testing.assert_allclose(int8.body[:10], overhead * fp8.body[:10])  # few tokens: weights decide
    assert int8.body[-1] == pytest.approx(overhead * wide.body[-1])  # many tokens: arithmetic decides


def test_bf16_equals_fp16_and_a_wide_kv_cache_changes_attention_only(tables):
    same = measured(replace(E, precision=BF16), H100, folder=tables)
    np.testing.assert_array_equal(same.body, measured(E, H100, folder=tables).body)
    narrow = measured(replace(E, precision=FP8), H100, folder=tables)
    wide = measured(replace(E, precision=Precision("FP8, 16-bit KV", 8, 16, 8)), H100, folder=tables)
    np.testing.assert_array_equal(narrow.body, wide.body)
    assert wide.decode[-5, -3] > 1.5 * narrow.decode[-5, -3]


def test_mixed_iterations_take_longer_than_their_decoding():
    times = StepTimes(roofline(E, H100), 2048)
    assert times.mixed(16, 500, 1, 200, (), 1) > times.decode(16, 500)
    assert times.mixed(16, 500, 2, 400, (), 2) > times.mixed(16, 500, 1, 200, (), 1)
    assert times.mixed(0, 0, 1, 64, (900,), 1) >= times.mixed(0, 0, 1, 64, (), 1)  # cached tokens are attended to


def test_era_scales_decoding_and_the_time_that_prefilling_adds():
    parts = roofline(E, H100)
    now, then = StepTimes(parts, 2048), StepTimes(parts, 2048, (2.0, 3.0))
    assert then.decode(8, 300) == pytest.approx(2 * now.decode(8, 300), abs=2)
    extra = now.mixed(8, 300, 1, 500, (), 1) - now.decode(8, 300)
    assert then.mixed(8, 300, 1, 500, (), 1) == pytest.approx(2 * now.decode(8, 300) + 3 * extra, abs=4)
    assert era.factors((1.5, 2.0), "FP8", 1) == (1.5, 2.0)
    assert era.factors("0.13", "INT8", 1) == era.factors("0.13", "FP16", 1)
    with pytest.raises(ErlabError, match="None or one of 0.13. Got '0.12'"):
        era.factors("0.12", "FP8", 1)


def test_kv_pool_is_the_memory_that_weights_and_reserve_leave():
    assert kv_pool_tokens(D, H100) == paper.kv_pool_tokens(D) == int(0.9 * (free_gib(D, H100, 4) * 2**30) / 163840)
    assert kv_pool_tokens(replace(D, kv_tokens=5000), H100) == 5000
    more = kv_pool_tokens(D, gpu("H200")) - kv_pool_tokens(D, H100)
    assert more == pytest.approx(0.9 * (gpu("H200").memory - H100.memory) / paper.kv_bytes_per_token(D), abs=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kv_pool_tokens(replace(D, precision=FP16), H100), "FP16 does not fit 1 H100: weights 131.4 GiB"),
        (lambda: kv_pool_tokens(D, H100, reserve_gib=11.9), r"holds \d+ tokens, fewer than one request of 2048"),
        (lambda: Expert(paper.LLAMA_3_70B, FP8, 3), "must divide the 8 KV heads of Llama 3 70B. Got 3"),
        (lambda: gpu("A100"), "'gpu' parameter must be one of H100, H200. Got 'A100'"),
        (lambda: roofline(replace(E, precision=FLOAT32), H100), "'precision' parameter must .* Got float32: 32, 32"),
        (lambda: hardware.arithmetic(Precision("FP4", 4, 8)), "'precision' parameter must .* Got FP4: 4, 16 and 8"),
        (lambda: Software("sglang"), "'backend' parameter of Software must be trtllm or vllm"),
        (lambda: components.engine_parts(E, H100, Software("trtllm", "9.9")), "No step times of Llama 3 8B .* 9.9"),
        (lambda: Setup(steps="guessed"), "'steps' parameter of Setup must be measured or roofline. Got 'guessed'"),
        (lambda: Setup(gateway=-1), "'gateway' parameter of Setup must be at least 0 seconds"),
    ],
)
def test_invalid_input_raises_with_the_numbers(make, message):
    with pytest.raises(ErlabError, match=message):
        make()


def test_any_llama_architecture_can_be_simulated(tables):
    odd = Expert(Model("odd", 2048, 4, 16, 4, 5632, 1000), FP16)
    assert step_times(odd, Setup(era=None, tables=tables)).decode(1, 10) > 0
