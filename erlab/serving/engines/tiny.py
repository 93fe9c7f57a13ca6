"""Engine folder of a tiny Llama: seeded dummy weights and a byte-level tokenizer.

A folder holds `config.json` and `model.safetensors` as transformers writes them for a LlamaForCausalLM, and
`engine.json`, the specification it was built from. `tiny_engine` serves it with in-flight batching; `reference` loads
it into transformers.

Tokens are bytes: ids 0 to 255, then BOS, EOS and a pad id. The output head's rows are random for the 95 printable
ASCII characters and zero for every other id. The greedy choice is then a printable character unless all 95 random
logits are at most 0, which for independent rows has probability 2^-95. So one token is one readable character, the
end-of-sequence id is never chosen, and every answer has exactly `max_tokens` tokens.

Weights are float32, or int8 with one scale per output channel. Int8 layers also quantize their input, one scale per
token, and multiply integers: sums of integers are exact in any order, so a token's result does not depend on the batch
around it. Embeddings, norms, attention, cache and output head stay float32. BF16 engines are bfloat16 throughout.

>>> import tempfile
>>> from erlab.spec import FLOAT32, Model
>>> model = Model("tiny", hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96, vocab=260)
>>> folder = build(Path(tempfile.mkdtemp()) / "engine", model, FLOAT32, seed=1)
>>> prompt = torch.tensor([encode("Hello")])
>>> len(decode(reference(folder).generate(prompt, max_new_tokens=5, do_sample=False)[0, prompt.shape[1] :].tolist()))
5
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from erlab.errors import ErlabError
from erlab.spec import Model, Precision, require

BOS, EOS, PAD = 256, 257, 258
VOCAB = 259  # ids the tokenizer knows; a model may round up
PRINTABLE = range(32, 127)
FORMAT = 1  # of the folder; increase when the same specification gives other files
EPSILON = 1e-5  # of the RMSNorms
LANES = 32  # float32 numbers of a vector instruction; see build()
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PRECISIONS = {"float32": torch.float32, "int8": torch.float32, "BF16": torch.bfloat16}  # of all but the projections
_FILES = ("config.json", "model.safetensors", "engine.json")


def encode(text: str) -> list[int]:
    """Return the token ids of a prompt: BOS, then its UTF-8 bytes."""
    return [BOS, *text.encode()]


def decode(tokens: list[int]) -> str:
    """Return the text of generated tokens, all of them bytes."""
    return bytes(tokens).decode(errors="replace")


def build(folder: Path, model: Model, precision: Precision, seed: int) -> Path:
    """Write the engine folder of a model unless it exists with the same content.

    An interrupted build leaves no engine.

    Args:
        model: Sizes of the model; hidden, intermediate and head size must be multiples of `LANES`.
        seed: Random seed of the weights, which are the same before rounding in every precision.

    Raises:
        ErlabError: The model cannot be served, or the folder has other files.
    """
    folder = Path(folder)
    allowed = f"be one of {', '.join(_PRECISIONS)}"
    require(precision.name in _PRECISIONS, "precision", "a tiny engine", allowed, precision.name)
    require(model.vocab >= VOCAB, "vocab", "a tiny engine", f"be at least {VOCAB}", model.vocab)
    for name in ("hidden", "intermediate", "head_dim"):
        # An incomplete vector may round differently, and its position depends on the batch.
        size = getattr(model, name)
        require(size % LANES == 0, name, "a tiny engine", f"be a multiple of {LANES}", size)
    made_from = {"format": FORMAT, "model": asdict(model), "precision": asdict(precision), "seed": seed}
    if _is_complete(folder, made_from):
        return folder
    if folder.exists() and (others := {p.name for p in folder.iterdir()} - set(_FILES)):
        raise ErlabError(f"{folder}: not an engine folder (it holds {sorted(others)[0]}). Choose another.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        (aside / "config.json").write_text(json.dumps(config(model, precision), indent=2) + "\n")
        save_file(_weights(model, precision, seed), aside / "model.safetensors", metadata={"format": "pt"})
        made_from["sha256"] = _sha256(aside / "model.safetensors")
        (aside / "engine.json").write_text(json.dumps(made_from, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def load(folder: Path) -> tuple[Model, Precision, dict[str, torch.Tensor]]:
    """Load an engine folder.

    Returns:
        Model, precision, and weights by their names in transformers; int8 projections also have a `weight_scale`.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / "engine.json").read_text())
        weights = load_file(folder / "model.safetensors")
    except (OSError, ValueError) as e:
        raise ErlabError(f"{folder}: no complete engine ({e}). Run 01_build_engines again.") from None
    if about.get("format") != FORMAT:
        raise ErlabError(f"{folder}: engine format {about.get('format')}, not {FORMAT}. Run 01_build_engines again.")
    return Model(**about["model"]), Precision(**about["precision"]), weights


def reference(folder: Path):
    """Return the engine as a LlamaForCausalLM of transformers, ready to `generate`.

    The projections of an int8 engine are modules that compute `int8_linear`.
    """
    # Imported here: an engine does not need transformers, which takes seconds to import.
    from transformers import LlamaConfig, LlamaForCausalLM

    _, precision, weights = load(folder)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder)).to(_PRECISIONS[precision.name]).eval()
    if precision.name == "int8":
        for layer in model.model.layers:
            for block in (layer.self_attn, layer.mlp):
                for name, linear in list(block.named_children()):
                    if name in PROJECTIONS:
                        setattr(block, name, _Int8Linear(linear.in_features, linear.out_features))
    model.load_state_dict(weights)
    return model


def int8_linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiply by int8 weights.

    Each token is rounded to int8 at its own scale (largest magnitude 127); the integer product is exact.

    Args:
        x: float32, [tokens, in].
        weight: int8, [out, in].
        scale: float32, [out].

    Returns:
        float32, [tokens, out].
    """
    peak = x.abs().amax(-1, keepdim=True).clamp_min_(1e-20)
    rounded = (x * (127 / peak)).round_().to(torch.int8)
    return torch._int_mm(rounded, weight.t()) * (peak / 127) * scale


class _Int8Linear(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.register_buffer("weight", torch.empty(outputs, inputs, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return int8_linear(x.flatten(0, -2), self.weight, self.weight_scale).unflatten(0, x.shape[:-1])


def _weights(model: Model, precision: Precision, seed: int) -> dict[str, torch.Tensor]:
    """Draw dummy weights that keep activations at unit size, so that every layer affects the answer.

    numpy's generator gives the same numbers on every machine; torch's may not.
    """
    rng, dtype = np.random.default_rng(seed), _PRECISIONS[precision.name]

    def normal(*shape: int, std: float) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).mul_(std).to(dtype)

    hidden, key_size = model.hidden, model.kv_heads * model.head_dim
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key_size, hidden),
        "self_attn.v_proj": (key_size, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (model.intermediate, hidden),
        "mlp.up_proj": (model.intermediate, hidden),
        "mlp.down_proj": (hidden, model.intermediate),
    }
    head = torch.zeros(model.vocab, hidden, dtype=dtype)
    head[PRINTABLE.start : PRINTABLE.stop] = normal(len(PRINTABLE), hidden, std=hidden**-0.5)
    weights = {
        "model.embed_tokens.weight": normal(model.vocab, hidden, std=1.0),
        "model.norm.weight": 1 + normal(hidden, std=0.1),
        "lm_head.weight": head,
    }
    for i in range(model.layers):
        layer = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{norm}.weight"] = 1 + normal(hidden, std=0.1)
        for name, (outputs, inputs) in shapes.items():
            weight = normal(outputs, inputs, std=inputs**-0.5)
            if precision.name == "int8":
                scale = weight.abs().amax(1) / 127
                weights[f"{layer}.{name}.weight_scale"] = scale
                weight = (weight / scale[:, None]).round().to(torch.int8)
            weights[f"{layer}.{name}.weight"] = weight
    return weights


def config(model: Model, precision: Precision) -> dict:
    """Return a model's ``config.json`` with the names of transformers' LlamaConfig."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": str(_PRECISIONS.get(precision.name, torch.bfloat16)).removeprefix("torch."),
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.max_positions,
        "rms_norm_eps": EPSILON,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }


def _is_complete(folder: Path, made_from: dict) -> bool:
    try:
        about = json.loads((folder / "engine.json").read_text())
        sha256 = about.pop("sha256")
        return about == made_from and (folder / "config.json").exists() and sha256 == _sha256(folder / _FILES[1])
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
