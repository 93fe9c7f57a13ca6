"""Engine that serves a tiny Llama on CPU cores with in-flight batching.

On a GPU (`device="cuda"`) the same code computes models of any size, correctly but slowly, since attention is computed
per request.

Greedy tokens equal those of transformers' `generate` for the same prompt, whatever else is in the batch. Attention is
therefore computed per request, with the call that transformers makes (`scaled_dot_product_attention` on the keys and
values of that request). All other operations run over all tokens of the step: one token per running request and the
prompts of the admitted requests. Int8 engines agree bit for bit. Float32 matrix products round differently with the
number of rows, which moves logits by about a millionth of their spread and rarely changes the greedy choice.

Only the projections are split among threads, the counterpart of tensor parallelism: for all other operations threads
would wait longer for each other than they save, and rounding would depend on the split.

>>> import tempfile
>>> from erlab.serving.engines import tiny
>>> from erlab.spec import FLOAT32, Model
>>> model = Model("tiny", hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96, vocab=260)
>>> engine = TinyEngine(tiny.build(Path(tempfile.mkdtemp()) / "e", model, FLOAT32, seed=1), 8, max_sequence_tokens=64)
>>> engine.submit("a", tiny.encode("Hello"), max_tokens=2)
>>> [(request, last) for _ in range(2) for request, token, last in engine.step()]
[('a', False), ('a', True)]
"""

import heapq
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from erlab.serving.engines import tiny
from erlab.serving.engines.batching import Batch, BatchedSequence
from erlab.spec import Model, require


@dataclass(eq=False, kw_only=True)
class _TinySequence(BatchedSequence):
    prompt: list[int]
    slot: int = -1
    cached: int = 0  # tokens in the KV cache
    token: int = -1  # the last one generated


class TinyEngine(Batch):
    """Engine that computes the tokens of a `Batch`. Not thread-safe.

    Args:
        threads: Threads of the projections; all other operations use one.
        device: "cpu" or "cuda"; int8 engines need "cpu".
    """

    def __init__(
        self,
        folder: Path,
        max_batch_size: int,
        max_sequence_tokens: int,
        kv_tokens: int | None = None,
        max_num_tokens: int = 2048,
        threads: int = 1,
        device: str = "cpu",
    ):
        super().__init__(max_batch_size, max_sequence_tokens, kv_tokens, max_num_tokens)
        require(threads >= 1, "threads", "Engine", "be at least 1", threads)
        self._network = _Network(folder, max_batch_size, max_sequence_tokens, threads, torch.device(device))
        self._free_slots = list(range(max_batch_size))  # a heap: the lowest first, so that little memory is touched

    def submit(self, request_id: Hashable, prompt_ids: list[int], max_tokens: int) -> None:
        """Queue a request; ErlabError where it exceeds the limits. Ids of requests in flight must differ."""
        self.queue(_TinySequence(request_id, len(prompt_ids), max_tokens, prompt=prompt_ids))

    def step(self) -> list[tuple[Hashable, int, bool]]:
        """Admit requests and compute one token of each running one: (request id, token id, whether it is the last)."""
        self.admit()
        running = self._running.copy()
        if not running:
            return []
        chosen = self._network.next_tokens([(r.slot, r.cached, [r.token] if r.tokens else r.prompt) for r in running])
        for request, token in zip(running, chosen, strict=True):
            request.cached += 1 if request.tokens else len(request.prompt)
            request.token = token
        return [(i, token, last) for (i, _, last), token in zip(self.tokens(), chosen, strict=True)]

    def enter(self, sequence: _TinySequence) -> None:
        super().enter(sequence)
        sequence.slot = heapq.heappop(self._free_slots)

    def leave(self, sequence: _TinySequence) -> None:
        super().leave(sequence)
        heapq.heappush(self._free_slots, sequence.slot)


class _Layer(NamedTuple):
    """Weights and KV cache of a decoder layer; a projection is (weight, scale or None)."""

    attention_norm: torch.Tensor
    qkv: tuple
    out: tuple
    mlp_norm: torch.Tensor
    gate_up: tuple
    down: tuple
    keys: torch.Tensor  # [slots * slot_tokens, kv_heads, head_dim], like values; the system commits what is touched
    values: torch.Tensor


class _Network:
    """Forward pass of LlamaForCausalLM, operation for operation, over the tokens of many requests."""

    def __init__(self, folder: Path, slots: int, slot_tokens: int, threads: int, device: torch.device):
        self.model, precision, weights = tiny.load(folder)
        fits = device.type == "cpu" or precision.name != "int8"
        require(fits, "device", "an int8 engine", "be cpu", device.type)
        weights = {name: weight.to(device) for name, weight in weights.items()}
        self.slot_tokens, self.threads, self.device = slot_tokens, threads, device
        self.embedding = weights["model.embed_tokens.weight"]
        self.norm = weights["model.norm.weight"]
        self.head = weights["lm_head.weight"]
        self.cos, self.sin = (part.to(self.embedding) for part in _rotary(self.model, slot_tokens))
        cache = (slots * slot_tokens, self.model.kv_heads, self.model.head_dim)

        def join(layer: str, *names: str) -> tuple:
            weight = torch.cat([weights[f"{layer}.{n}.weight"] for n in names])
            scales = [weights[s] for n in names if (s := f"{layer}.{n}.weight_scale") in weights]
            return weight, torch.cat(scales) if scales else None

        self.layers = [
            _Layer(
                weights[f"{layer}.input_layernorm.weight"],
                join(layer, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                join(layer, "self_attn.o_proj"),
                weights[f"{layer}.post_attention_layernorm.weight"],
                join(layer, "mlp.gate_proj", "mlp.up_proj"),
                join(layer, "mlp.down_proj"),
                self.embedding.new_empty(cache),
                self.embedding.new_empty(cache),
            )
            for layer in (f"model.layers.{i}" for i in range(self.model.layers))
        ]

    @torch.inference_mode()
    def next_tokens(self, requests: list[tuple[int, int, list[int]]]) -> list[int]:
        """Return the greedy next token of each request, given as (slot, cached tokens, new tokens to cache)."""
        torch.set_num_threads(1)
        m = self.model
        sizes = [len(new) for _, _, new in requests]
        spans = [(slot * self.slot_tokens, cached + len(new)) for slot, cached, new in requests]  # first row, length
        ids = torch.tensor([t for _, _, new in requests for t in new], device=self.device)
        places = [cached + i for _, cached, new in requests for i in range(len(new))]
        positions = torch.tensor(places, device=self.device)
        slots = torch.tensor([slot for slot, _, new in requests for _ in new], device=self.device)
        rows = slots * self.slot_tokens + positions
        cos, sin = self.cos[positions], self.sin[positions]
        x = self.embedding[ids]
        for layer in self.layers:
            qkv = self._project(rms_norm(x, (m.hidden,), layer.attention_norm, tiny.EPSILON), layer.qkv)
            qk, v = qkv.view(len(ids), -1, m.head_dim).split([m.heads + m.kv_heads, m.kv_heads], 1)
            left, right = qk.chunk(2, -1)
            qk = (qk * cos) + (torch.cat((-right, left), -1) * sin)
            layer.keys.index_copy_(0, rows, qk[:, m.heads :])
            layer.values.index_copy_(0, rows, v)
            x = x + self._project(self._attend(layer, qk[:, : m.heads], sizes, spans), layer.out)
            gate, up = self._project(rms_norm(x, (m.hidden,), layer.mlp_norm, tiny.EPSILON), layer.gate_up).chunk(2, -1)
            x = x + self._project(silu(gate) * up, layer.down)
        last = torch.tensor(sizes, device=self.device).cumsum(0) - 1
        hidden = rms_norm(x[last], (m.hidden,), self.norm, tiny.EPSILON)
        return [int(linear(row, self.head).argmax()) for row in hidden.split(1)]

    def _project(self, x: torch.Tensor, projection: tuple) -> torch.Tensor:
        weight, scale = projection
        torch.set_num_threads(self.threads)  # takes 0.1 us
        out = linear(x, weight) if scale is None else tiny.int8_linear(x, weight, scale)
        torch.set_num_threads(1)
        return out

    def _attend(self, layer: _Layer, queries: torch.Tensor, sizes: list[int], spans: list[tuple]) -> torch.Tensor:
        """Compute attention of each request over its own keys and values; queries [tokens, heads, head_dim]."""
        keys, values = layer.keys.transpose(0, 1)[None], layer.values.transpose(0, 1)[None]
        attended = [
            scaled_dot_product_attention(
                query, keys.narrow(2, *span), values.narrow(2, *span), is_causal=size > 1, enable_gqa=True
            )
            for query, size, span in zip(queries.transpose(0, 1)[None].split(sizes, 2), sizes, spans)
        ]
        return torch.cat(attended, 2)[0].transpose(0, 1).flatten(1)


def _rotary(model: Model, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute cosines and sines [positions, 1, head_dim] of rotary position embedding as transformers does."""
    steps = torch.arange(0, model.head_dim, 2, dtype=torch.float) / model.head_dim
    angles = torch.arange(positions).float()[:, None] * (1.0 / model.rope_theta**steps)
    angles = torch.cat((angles, angles), -1)[:, None]
    return angles.cos(), angles.sin()
