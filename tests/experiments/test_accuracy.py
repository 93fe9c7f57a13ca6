"""Accuracy of the simulation: residuals and targets, against arithmetic."""

import pandas as pd
import pytest

from erlab.experiments import accuracy


def test_residuals_are_medians_by_lengths_and_kind_in_order_of_length():
    rows = [("fp8", 1, 2048, 128, 0.9), ("fp8", 1, 128, 128, 1.1), ("fp8", 1, 128, 128, 1.3)]
    rows.append(("fp16", 8, 128, 128, 2.0))
    table = accuracy.residuals(pd.DataFrame(rows, columns=["quant", "tp", "isl", "osl", "judged"]))
    assert table["input/output"].tolist() == ["128/128", "2048/128"]
    assert table["fp8 TP 1"].tolist() == [1.2, 0.9]
    assert table["fp16 TP 8"].iloc[0] == 2.0 and pd.isna(table["fp16 TP 8"].iloc[1])


def test_targets_are_met_by_the_median_of_absolute_errors():
    new = pd.DataFrame({"judged": [0.95, 1.02, 1.3]})  # median 5 %
    old = pd.DataFrame({"judged": [0.8, 1.2, None]})  # 20 %
    h200 = pd.DataFrame({f"{name}_ratio": [1.0, 1.5, 1.0] for name in ("throughput", "tpot_ms", "ttft_s")})
    table = accuracy.targets(new, old, h200).set_index("against")
    assert table["met"].tolist() == ["yes", "no", "yes", "yes", "yes", "no", "no", "no"]
    assert table["reached"].tolist() == pytest.approx([0.05, 0.2, 0, 0, 0, 0.5, 0.5, 0.5])
    assert table["compared"].tolist() == [3, 2, 3, 3, 3, 1, 1, 1]
