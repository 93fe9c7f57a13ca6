"""In-flight batching of a tiny Llama on CPU cores: requests join and leave between steps, the answer stays the same.

On a GPU (`device="cuda"`) the same code computes models of any size, correctly and far from fast: attention a request
at a time leaves most of a GPU idle.

Greedy tokens equal those of transformers' `generate` for the same prompt, whatever else is in the batch. Attention is
therefore computed a request at a time, with the very call that transformers makes (`scaled_dot_product_attention` on
exactly that request's keys and values); everything else is computed a token, over all tokens of the step at once:
one per running request and the whole prompts of those just admitted. Int8 engines agree bit for bit. Float32 matrix
products round differently with the number of rows, which moves logits by about a millionth of their spread, and so
flips the choice between the best two about once in half a million tokens. (transformers' own continuous batching
agrees as well, but was seen at half the speed, with a first batch of 13 to 20 s.)

Only the projections are split among threads, the stand-in for tensor parallelism: the rest is so small that threads
would cost more in waiting for each other than they save, and its rounding would depend on where work is split.

>>> import tempfile
>>> from erlab.serving.engines import tiny
>>> from erlab.spec import FLOAT32, Model
>>> model = Model("tiny", hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96, vocab=260)
>>> engine = Engine(tiny.build(Path(tempfile.mkdtemp()) / "e", model, FLOAT32, seed=1), 8, max_sequence_tokens=64)
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
from erlab.serving.engines.batching import Batch, Sequence
from erlab.spec import Model, require


@dataclass(eq=False, kw_only=True)
class _Request(Sequence):
    prompt: list[int]
    slot: int = -1
    cached: int = 0  # tokens whose keys and values are in the cache
    token: int = -1  # the last one generated


class Engine(Batch):
    """One model that computes the tokens of a `Batch` (see there for the bounds). Not thread-safe.

    Projections are computed by `threads` threads; everything else, and torch's own setting after a step, by one.
    `device`: where torch computes, "cpu" or "cuda". There int8 engines are refused: their product needs a CPU.
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
        """Queue a request. Raises ErlabError where it can never run; ids of requests in flight must differ."""
        self.queue(_Request(request_id, len(prompt_ids), max_tokens, prompt=prompt_ids))

    def step(self) -> list[tuple[Hashable, int, bool]]:
        """Admit what fits, then give every running request one token: (request id, token id, whether its last)."""
        self.admit()
        running = self._running.copy()
        if not running:
            return []
        chosen = self._network.next_tokens([(r.slot, r.cached, [r.token] if r.tokens else r.prompt) for r in running])
        for request, token in zip(running, chosen, strict=True):
            request.cached += 1 if request.tokens else len(request.prompt)
            request.token = token
        return [(i, token, last) for (i, _, last), token in zip(self.tokens(), chosen, strict=True)]

    def enter(self, sequence: _Request) -> None:
        super().enter(sequence)
        sequence.slot = heapq.heappop(self._free_slots)

    def leave(self, sequence: _Request) -> None:
        super().leave(sequence)
        heapq.heappush(self._free_slots, sequence.slot)


class _Layer(NamedTuple):
    """A decoder layer's weights, projections of the same input joined; a projection is (weight, scale or None)."""

    attention_norm: torch.Tensor
    qkv: tuple
    out: tuple
    mlp_norm: torch.Tensor
    gate_up: tuple
    down: tuple
    keys: torch.Tensor  # [slots * slot_tokens, kv_heads, head_dim], like values; the system commits what is touched
    values: torch.Tensor


class _Network:
    """LlamaForCausalLM's forward pass, operation for operation, over tokens of many requests."""

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
        """The greedy next token of each request, given as (slot, tokens cached, new tokens to cache)."""
        torch.set_num_threads(1)
        m = self.model
        sizes = [len(new) for _, _, new in requests]
        spans = [(slot * self.slot_tokens, cached + len(new)) for slot, cached, new in requests]  # first row, length
        ids = torch.tensor([t for _, _, new in requests for t in new], device=self.device)
        positions = torch.tensor([cached + i for _, cached, new in requests for i in range(len(new))], device=self.device)
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
        """Attention of each request over its own keys and values; queries [tokens, heads, head_dim]."""
        keys, values = layer.keys.transpose(0, 1)[None], layer.values.transpose(0, 1)[None]
        attended = [
            scaled_dot_product_attention(
                query, keys.narrow(2, *span), values.narrow(2, *span), is_causal=size > 1, enable_gqa=True
            )
            for query, size, span in zip(queries.transpose(0, 1)[None].split(sizes, 2), sizes, spans)
        ]
        return torch.cat(attended, 2)[0].transpose(0, 1).flatten(1)


def _rotary(model: Model, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [positions, 1, head_dim] of rotary position embedding, as transformers computes them."""
    steps = torch.arange(0, model.head_dim, 2, dtype=torch.float) / model.head_dim
    angles = torch.arange(positions).float()[:, None] * (1.0 / model.rope_theta**steps)
    angles = torch.cat((angles, angles), -1)[:, None]
    return angles.cos(), angles.sin()
