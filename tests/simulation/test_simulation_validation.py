"""Tests of the simulation against published and measured data; the targets are the project's own."""

from dataclasses import replace

import pandas as pd
import pytest

from erlab.errors import ErlabError
from erlab.simulation import era, validation
from erlab.simulation.validation import BENCHMARK

pytest.importorskip("aiconfigurator")


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return replace(BENCHMARK, tables=tmp_path_factory.mktemp("steptimes"))


def cells(path, query):
    """Write the published cells that `query` selects."""
    pd.read_csv(validation.PUBLISHED).query(query).to_csv(path, index=False)
    return path


def test_saturation_throughput_of_version_1_0_is_within_ten_percent_untuned(tmp_path, setup):
    path = cells(tmp_path / "c.csv", "version == '1.0' and isl < 20000")
    found = validation.validate_published("1.0", path, setup, jobs=1)
    assert len(found) == 18
    assert (found["ratio"] - 1).abs().median() < 0.10
    assert (found["ratio"] - 1).abs().max() < 0.25


def test_version_0_13_is_within_fifteen_percent_with_factors_fitted_on_other_lengths(tmp_path, setup):
    path = cells(tmp_path / "c.csv", "version == '0.13.0' and model == 'LLaMA v3.1 70B' and tp == 4 and isl < 20000")
    found = validation.validate_published("0.13", path, setup, jobs=1)
    errors = validation.summary(found).set_index("cells").loc["all"]
    assert errors["error fitted"] < 0.15 < errors["error"]
    assert found.groupby("quant").size().eq(8).all()


def test_era_fit_recovers_known_factors(tmp_path, setup):
    """Cells computed by the simulation, with decoding 1.5 x and prefilling 0.9 x as long."""
    path = cells(tmp_path / "c.csv", "version == '0.13.0' and model == 'LLaMA v3.1 8B' and tp == 1 and isl < 9000")
    found = validation.validate_published("0.13", path, setup, jobs=1)
    synthetic = found.assign(published_s=1.5 * found["decode_s"] + 0.9 * found["prefill_s"])
    assert validation.fit_era(synthetic)["FP8", 1] == pytest.approx((1.5, 0.9), rel=1e-3)


def test_era_factors_cover_the_systems_of_the_paper():
    assert set(era.FACTORS["0.13"]) == {(p, tp) for p in ("FP16", "FP8") for tp in (1, 2, 4, 8)}


def test_measured_h200_is_within_the_targets(monkeypatch, tmp_path):
    monkeypatch.setattr(validation, "_VLLM", replace(validation._VLLM, tables=tmp_path))
    found = validation.validate_h200()
    error = lambda name: (found[f"{name}_ratio"] - 1).abs().median()  # noqa: E731
    assert found["users"].tolist() == [1, 4, 16, 32, 64, 128, 256]
    assert error("throughput") < 0.10 and error("tpot_ms") < 0.10 and error("ttft_s") < 0.25
    with monkeypatch.context() as patch:
        batching = replace(validation._VLLM.batching, schedules_ahead=False)
        patch.setattr(validation, "_VLLM", replace(validation._VLLM, batching=batching))
        early = (validation.validate_h200()["ttft_s_ratio"] - 1).abs().median()
    assert error("ttft_s") < early / 2, "batches chosen ahead explain the time to first token"
    with pytest.raises(ErlabError, match="'model' column must hold one of"):
        other = tmp_path / "other.parquet"
        pd.read_parquet(validation.H200).assign(model="13b").to_parquet(other)
        validation.validate_h200(other)


def test_fitted_host_time_is_the_one_in_use(monkeypatch, tmp_path):
    """The committed measurements give the constant again; on loads outside the fit both meet the targets."""
    monkeypatch.setattr(validation, "_VLLM", replace(validation._VLLM, tables=tmp_path))
    fit = validation.fit_host().set_index("value")
    assert fit["host_us_per_layer"]["in use"] == pytest.approx(validation.HOST_PER_LAYER * 1e6)
    assert fit["host_us_per_layer"]["fitted"] == pytest.approx(fit["host_us_per_layer"]["in use"], rel=0.03)
    assert (fit["throughput error"] < 0.10).all() and (fit["tpot_ms error"] < 0.10).all()
    assert (fit["ttft_s error"] < 0.25).all()


def test_gpu_of_a_cell_selects_the_machine_and_unknown_values_raise(tmp_path, setup):
    """A 70B model in FP8 on one GPU: an H100 has a few GiB for KV, an H200 sixty more."""
    one = "version == '0.13.0' and model == 'LLaMA v2 70B' and tp == 1 and isl == 128 and osl == 128"
    path = cells(tmp_path / "c.csv", one)
    table = pd.read_csv(path)
    pd.concat([table, table.assign(gpu="H200-SXM-141GB")]).to_csv(path, index=False)
    found = validation.validate_published("0.13", path, setup, jobs=1)
    assert found["predicted"].iloc[1] > 1.1 * found["predicted"].iloc[0]
    for change, message in (
        (dict(gpu="A100-SXM-80GB"), "'gpu' parameter must be one of H100, H200. Got 'A100'"),
        (dict(isl=77), "'isl' parameter of the published cells must hold input/output lengths .* Got '77/128'"),
        (dict(quant="fp4"), "'quant' parameter of the published cells must hold one of fp16, fp8. Got 'fp4'"),
    ):
        table.assign(**change).to_csv(path, index=False)
        with pytest.raises(ErlabError, match=message):
            validation.validate_published("0.13", path, setup, jobs=1)


def test_version_without_cells_raises():
    with pytest.raises(ErlabError, match="no cells of version 7"):
        validation.validate_published("7")


def test_published_cells_of_70b_on_one_gpu_imply_a_kv_pool(tmp_path, setup):
    path = cells(tmp_path / "c.csv", "model == 'LLaMA v3.1 70B' and tp == 1 and osl == 128")
    found = validation.implied_kv_pool(file=path, setup=setup, reserves=(4, 7, 9)).set_index("reserve_gib")
    assert found["pool_gib"].is_monotonic_decreasing and found["ratio"].is_monotonic_decreasing
    assert found["error"].idxmin() == 7
    assert found.loc[7, "pool_gib"] == pytest.approx(0.95 * (81_559 / 1024 - 7 - 67.67), abs=0.1)
