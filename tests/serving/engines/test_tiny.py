"""The tiny engine's folder: what is in it, that it is the same from the same seed, and when it is built again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from erlab.errors import ErlabError
from erlab.serving.engines import tiny
from erlab.spec import FLOAT32, FP8, INT8_CPU, Model

SMALL = Model("small", hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96, vocab=260, max_positions=128)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@given(st.text())
def test_a_prompt_is_its_utf8_bytes_after_the_start_token(text):
    start, *tokens = tiny.encode(text)
    assert start == tiny.BOS
    assert bytes(tokens) == text.encode()
    assert tiny.decode(tokens) == text


@pytest.mark.parametrize("precision", [FLOAT32, INT8_CPU], ids=lambda p: p.name)
def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path, precision):
    one, same, other = (
        contents(tiny.build(tmp_path / name, SMALL, precision, seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == same
    assert one["model.safetensors"] != other["model.safetensors"]


def test_transformers_loads_a_float32_folder_as_any_other_llama(tmp_path):
    folder = tiny.build(tmp_path / "e", SMALL, FLOAT32, 1)
    prompt = torch.tensor([tiny.encode("Hello")])
    plain = LlamaForCausalLM.from_pretrained(folder).eval()
    assert sum(p.numel() for p in plain.parameters()) == SMALL.parameters
    with torch.inference_mode():
        assert torch.equal(plain(prompt).logits, tiny.reference(folder)(prompt).logits)


def test_int8_weights_are_the_float32_ones_within_half_a_step(tmp_path):
    full = load_file(tiny.build(tmp_path / "f", SMALL, FLOAT32, 1) / "model.safetensors")
    small = load_file(tiny.build(tmp_path / "i", SMALL, INT8_CPU, 1) / "model.safetensors")
    scaled = [name for name in small if name.endswith("_scale")]
    assert len(scaled) == 7 * SMALL.layers
    for name in set(small) - set(scaled):
        if small[name].dtype == torch.int8:
            scale = small[f"{name}_scale"][:, None]
            assert ((small[name] * scale - full[name]).abs() <= scale * 0.5001).all()
            assert (small[name].abs().amax(1) == 127).all()
        else:
            assert torch.equal(small[name], full[name])


def test_int8_linear_is_integer_arithmetic():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((5, 64), dtype=np.float32), rng.integers(-127, 128, (96, 64), dtype=np.int8)
    scale = rng.random(96, dtype=np.float32)
    step = np.abs(x).max(1, keepdims=True).astype(np.float64) / 127
    expected = np.rint(x / step).astype(np.int64) @ weight.T.astype(np.int64) * step * scale
    got = tiny.int8_linear(*map(torch.from_numpy, (x, weight, scale)))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)


def test_int8_linear_gives_a_token_the_same_bits_in_any_batch():
    torch.manual_seed(0)
    x, scale = torch.randn(300, 384), torch.rand(512)
    weight = torch.randint(-127, 128, (512, 384), dtype=torch.int8)
    alone = torch.cat([tiny.int8_linear(row, weight, scale) for row in x.split(1)])
    for tokens in (2, 3, 8, 31, 32, 64, 255, 300):
        assert torch.equal(tiny.int8_linear(x[:tokens], weight, scale), alone[:tokens])


def test_a_zero_token_stays_zero_in_int8():
    weight = torch.full((32, 32), 5, dtype=torch.int8)
    assert (tiny.int8_linear(torch.zeros(2, 32), weight, torch.ones(32)) == 0).all()


def test_only_printable_characters_can_be_chosen(engine_folder):
    model = tiny.reference(engine_folder)
    prompts = torch.randint(0, 256, (40, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(prompts).logits
    chosen = set(logits.argmax(-1).flatten().tolist())
    assert chosen <= set(tiny.PRINTABLE)
    assert len(chosen) > 80  # of 95: what is written depends on what was read
    others = [i for i in range(logits.shape[-1]) if i not in tiny.PRINTABLE]
    assert (logits[..., others] == 0).all()


def test_a_complete_folder_is_left_as_is(tmp_path):
    folder = tiny.build(tmp_path / "e", SMALL, FLOAT32, 1)
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert tiny.build(folder, SMALL, FLOAT32, 1) == folder
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


def halve_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        halve_weights,
        lambda folder: (folder / "engine.json").unlink(),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "engine.json").write_text("{"),
        lambda folder: [p.unlink() for p in folder.iterdir()],
    ],
    ids=["half the weights", "no marker", "no config", "half a marker", "empty"],
)
def test_an_incomplete_folder_is_built_again(tmp_path, damage):
    folder = tiny.build(tmp_path / "e", SMALL, FLOAT32, 1)
    whole = contents(folder)
    damage(folder)
    tiny.build(folder, SMALL, FLOAT32, 1)
    assert contents(folder) == whole


def test_another_spec_replaces_the_engine(tmp_path):
    folder = tiny.build(tmp_path / "e", SMALL, FLOAT32, 1)
    tiny.build(folder, SMALL, INT8_CPU, 1)
    assert tiny.load(folder)[:2] == (SMALL, INT8_CPU)


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(ErlabError, match="thesis.tex"):
        tiny.build(tmp_path, SMALL, FLOAT32, 1)
    assert (tmp_path / "thesis.tex").read_text() == "dear"


@pytest.mark.parametrize(
    "model, precision, named",
    [
        (SMALL, FP8, "precision"),
        (replace(SMALL, vocab=258), FLOAT32, "vocab"),
        (replace(SMALL, intermediate=100), FLOAT32, "intermediate"),
        (replace(SMALL, heads=4), FLOAT32, "head_dim"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(tmp_path, model, precision, named):
    with pytest.raises(ErlabError, match=named):
        tiny.build(tmp_path / "e", model, precision, 1)
    assert list(tmp_path.iterdir()) == []


def test_loading_names_the_folder_and_what_to_do(tmp_path):
    folder = tiny.build(tmp_path / "e", SMALL, FLOAT32, 1)
    about = json.loads((folder / "engine.json").read_text())
    (folder / "engine.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(ErlabError, match="format 99"):
        tiny.load(folder)
    with pytest.raises(ErlabError, match="01_build_engines"):
        tiny.load(tmp_path / "nowhere")
