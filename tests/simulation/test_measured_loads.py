"""Tests of the comparison of measured loads with the simulation, and of the bandwidth share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from erlab import paper
from erlab.errors import ErlabError
from erlab.serving.engines import openai_models
from erlab.simulation import measured, validation
from erlab.simulation.hardware import gpu
from erlab.spec import BF16, Expert, System

EXPERT = Expert(paper.LLAMA_3_8B, BF16, 1, None, 256, 512, 128, 57_661 * 16)
ALONE = System("8B", "v2", EXPERT, 1, router=False)


@pytest.fixture(scope="module")
def h200():
    """Return the measurements of the H200 as request records."""
    rows = pd.read_parquet(validation.H200)
    names = ["t_submit", "t_first", "t_last"]
    times = (rows[["submit", "first", "last"]] * 1e9).astype("int64").set_axis(names, axis=1)
    known = {"user": rows["user"], "turn": rows["k"], "input_tokens": rows["isl"], "output_tokens": rows["osl"]}
    return times.assign(**known, users=rows["users"], system="8B", status="ok", run_id=rows["users"].astype(str))


def test_comparison_agrees_with_the_validation(h200):
    chosen = h200[h200.users.isin([1, 16, 128])]
    host = {"prefill_overhead": validation.HOST_PER_LAYER * EXPERT.model.layers}
    found = measured.compare(chosen, ALONE, measured.vllm("H200", **host)).set_index("users")
    expected = validation.validate_h200().set_index("users").loc[[1, 16, 128]]
    for name in ("throughput", "tpot_ms", "ttft_s"):
        for column, within in ((name, 1e-6), (f"{name}_ratio", 0.02)):
            assert found[column].astype(float).tolist() == pytest.approx(expected[column].tolist(), rel=within)
    assert 0.55 < found.bandwidth_share[1] < 0.7  # 15.0 GB in 4.98 ms of 4.8 TB/s: 0.63
    assert found.bandwidth_share.max() < 1


def test_engines_that_share_a_gpu_have_no_prediction(h200):
    four = replace(ALONE, count=4, router=True)
    found = measured.compare(h200[h200.users == 4], four, measured.vllm("H200"))
    assert found.throughput.iloc[0] > 0
    assert found.throughput_predicted.isna().all() and found.bandwidth_share.isna().all()
    mixed = h200.assign(system=np.where(h200.user > 0, "a", "b"))
    with pytest.raises(ErlabError, match="'requests' parameter of compare must be of one system"):
        measured.compare(mixed, ALONE, measured.vllm("H200"))


def test_bandwidth_share_is_bytes_over_time():
    row = {"user": 0, "turn": 0, "status": "ok", "run_id": "r", "users": 1}
    row |= {"input_tokens": 100, "output_tokens": 101, "t_submit": 0, "t_first": 0, "t_last": 10**9}  # 10 ms per token
    weights = paper.weight_bytes(EXPERT) - 128256 * 4096 * 2
    expected = (weights + 150.5 * 131_072) / 4.8e12 / 0.01
    frame = pd.DataFrame([row]).convert_dtypes()
    assert measured.bandwidth_share(frame, EXPERT, gpu("H200")) == pytest.approx(expected)


def test_vllm_servers_are_started_with_the_batching_that_is_simulated():
    batching, expert = measured.VLLM.batching, replace(EXPERT, kv_tokens=160 * measured.VLLM.batching.block_tokens)
    command = openai_models.vllm(expert, Path("/m"), "m", 0.5, dummy=True)
    flags = dict(zip(command, command[1:]))
    assert flags["--max-num-batched-tokens"] == str(batching.max_num_tokens)
    assert flags["--num-gpu-blocks-override"] == "160"


def test_failed_requests_are_counted_and_not_simulated(h200):
    rows = h200[h200.users == 4].copy()
    rows.loc[rows.index[-1], "status"] = "error"
    found = measured.compare(rows, ALONE, measured.vllm("H200", steps="roofline")).iloc[0]
    assert (found.requests, found.failed) == (len(rows), 1) and found.throughput_predicted > 0
