"""The machines that are simulated, as data: memory, bandwidth, arithmetic and power of a GPU.

Memory is what the driver reports; bandwidth, FLOP rates and board power are NVIDIA's data sheets (H100 SXM, H200 SXM:
dense, without sparsity).

>>> gpu("H100").bandwidth
3350000000000.0
"""

from dataclasses import dataclass

from erlab.errors import ErlabError
from erlab.paper import GPU_MEMORY, kv_bytes_per_token, weight_bytes
from erlab.spec import GIB, Expert, Precision, require


@dataclass(frozen=True)
class Gpu:
    """`memory` bytes, `bandwidth` bytes/s, dense FLOP/s at 16 and 8 bits, NVLink bytes/s one way, board power in W."""

    name: str
    memory: int
    bandwidth: float
    flops16: float
    flops8: float
    nvlink: float
    power: float


GPUS = {
    "H100": Gpu("H100", GPU_MEMORY, 3.35e12, 989e12, 1979e12, 450e9, 700.0),
    "H200": Gpu("H200", 143_771 * 2**20, 4.8e12, 989e12, 1979e12, 450e9, 700.0),
}
_ARITHMETIC = {(16, 16): "FP16", (8, 8): "FP8", (8, 16): "INT8"}  # bits of a weight and an activation


def gpu(name: str) -> Gpu:
    if name not in GPUS:
        raise ErlabError(f"The 'gpu' parameter must be one of {', '.join(GPUS)}. Got {name!r}.")
    return GPUS[name]


def arithmetic(precision: Precision) -> str:
    """Whose kernels a precision runs: FP16 (BF16 is as fast), FP8, or INT8 (weight-only)."""
    bits = precision.weight_bits, precision.activation_bits
    if bits not in _ARITHMETIC or precision.kv_bits not in (8, 16):
        raise ErlabError(
            "The 'precision' parameter must have weights and activations of 16 and 16, 8 and 8 or 8 and 16 bits and a "
            f"KV cache of 8 or 16. Got {precision.name}: {bits[0]}, {bits[1]} and {precision.kv_bits}."
        )
    return _ARITHMETIC[bits]


def kv_pool_tokens(expert: Expert, gpu: Gpu, reserve_gib: float = 4.0, free_fraction: float = 0.9) -> int:
    """Tokens the paged KV cache holds: `free_fraction` of what weights and a reserve a GPU (activations, runtime,
    CUDA context) leave, or `expert.kv_tokens` where that is stated.

    Raises ErlabError with the numbers where the weights don't fit or the pool can't hold one request of the longest
    length the expert allows.
    """
    require(reserve_gib >= 0, "reserve_gib", "the KV pool", "be at least 0", reserve_gib)
    require(0 < free_fraction <= 1, "free_fraction", "the KV pool", "lie in (0, 1]", free_fraction)
    need, have = weight_bytes(expert) / GIB, expert.tensor_parallel * (gpu.memory / GIB - reserve_gib)
    what = f"{expert.model.name} {expert.precision.name}"
    where = f"{expert.tensor_parallel} {gpu.name}{'s' * (expert.tensor_parallel > 1)}"
    if need >= have:
        raise ErlabError(f"{what} does not fit {where}: weights {need:.1f} GiB, memory after reserve {have:.1f} GiB.")
    pool = expert.kv_tokens
    if pool is None:
        pool = int(free_fraction * (have - need) * GIB // kv_bytes_per_token(expert))
    if pool < expert.max_sequence_tokens:
        raise ErlabError(
            f"The KV pool of {what} on {where} holds {pool} tokens, fewer than one request of "
            f"{expert.max_sequence_tokens} (input {expert.max_input_tokens} + output {expert.max_output_tokens}): "
            f"{have - need:.2f} GiB free, {kv_bytes_per_token(expert)} bytes a token."
        )
    return pool
