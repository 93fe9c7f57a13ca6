"""What `import erlab` offers: light to import, listed, documented by examples that run as doctests, safe to display."""

import doctest
import subprocess
import sys

import pandas as pd
import pytest

import erlab
from erlab.errors import ErlabError


def test_the_import_loads_nothing_heavy():
    script = "import sys, erlab; dir(erlab); print(*{'numpy', 'pandas', 'grpc', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "\n"


def test_its_names_have_examples():
    assert 12 <= len(dir(erlab)) <= 15 and not set(dir(erlab)) & set(erlab._PACKAGES)
    parser = doctest.DocTestParser()
    for name in dir(erlab):
        described = getattr(erlab, name).__doc__
        assert parser.get_examples(described), name


def test_records_are_displayed_as_a_table_of_text():
    records = erlab.simulate("E", users=[1, 10], steps="roofline")
    records.requests["system"] = pd.array(["<script>$x$"] * len(records.requests), dtype="string")
    shown = records._repr_html_()
    assert "62 requests" in shown and "&lt;script&gt;$x$" in shown and "mathjax_ignore" in shown
    assert "<script" not in shown


MINE = """
[systems."F $x_1$"]
model = "My 3B"
precision = "FP16"
router = true

[systems.G]
model = "Llama 3 70B"
precision = "FP8"
tensor_parallel = 2

[models."My 3B"]
hidden = 3072
layers = 28
heads = 24
kv_heads = 8
intermediate = 8192
vocab = 128256
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.toml").write_text(MINE)
    return tmp_path / "mine.toml"


def test_systems_of_a_file_are_listed_simulated_and_drawn(mine):
    table = erlab.systems(mine).set_index("system")
    assert table.loc["F $x_1$", ["engines", "gpus", "router"]].tolist() == [8, 8, True]
    assert table.loc["G", ["engines", "gpus", "router"]].tolist() == [4, 8, False]
    # 2 * 128256 * 3072 + 28 * (2 * 3072^2 + 2 * 3072 * 1024 + 3 * 3072 * 8192 + 2 * 3072) + 3072 parameters of 2 bytes
    assert table.loc["F $x_1$", "weights_gib"] == round(2 * 3_606_752_256 / 2**30, 1)
    records = erlab.simulate("F $x_1$", users=[2, 9], file=mine, steps="roofline")
    assert records.requests["expert"].nunique() == 8 and set(records.requests["paper"]) == {"v2"}
    assert set(erlab.summarise(records)["system"]) == {"F $x_1$"}
    assert "F $x_1$ (router)" in {text.get_text() for text in erlab.figure("fig4", records).legends[0].get_texts()}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("heads = 24", "hed = 24", "models.My 3B: must not have the key 'hed'; did you mean 'heads'?"),
        ("layers = 28", "", "models.My 3B: must have the key 'layers'."),
        ("layers = 28", "layers = 2.5", "models.My 3B: 'layers' must be a whole number. Got 2.5."),
        ("heads = 24", "heads = 0", "models.My 3B: The 'heads' parameter of Model must be at least 1. Got 0."),
        ('precision = "FP8"', 'precision = "FP9"', "systems.G: 'precision' is unknown: 'FP9'; did you mean 'FP"),
        ('"Llama 3 70B"', '"Llama 3 7B"', "systems.G: 'model' is unknown: 'Llama 3 7B'; did you mean 'Llama 3 "),
        ("tensor_parallel = 2", "count = 9", "systems.G: 'count' must be 1 to 8 with 1 of the 8 GPUs each. Got 9."),
        ("tensor_parallel = 2", "tensor_parallel = 3", "must divide the 8 KV heads of Llama 3 70B. Got 3."),
        ("systems.G", "systems.A", "systems.A: must have a name that no system of the paper has."),
        (MINE, "", "must have the key 'systems'."),
        (MINE, "systems = 3", "'systems' must be a table. Got 3."),
        (MINE, "[systems", "must be TOML ("),
    ],
)
def test_a_wrong_file_of_systems_is_one_line(mine, old, new, message):
    mine.write_text(MINE.replace(old, new, 1))
    with pytest.raises(ErlabError) as caught:
        erlab.systems(mine)
    assert str(mine) in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)
