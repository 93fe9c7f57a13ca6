"""GPUs of simulated machines, and their KV cache capacity.

Memory is what the driver reports; bandwidth, FLOP rates and board power are from NVIDIA's data sheets (H100 SXM,
H200 SXM; dense, without sparsity).

>>> gpu("H100").bandwidth
3350000000000.0
"""

from dataclasses import dataclass

from erlab import paper
from erlab.errors import ErlabError
from erlab.spec import GIB, Expert, Precision, require


@dataclass(frozen=True)
class Gpu:
    """Data sheet of one GPU.

    Attributes:
        memory: Bytes.
        bandwidth: Memory bandwidth, bytes/s.
        flops16: Dense FLOP/s at 16 bits.
        flops8: Dense FLOP/s at 8 bits.
        nvlink: NVLink bandwidth in one direction, bytes/s.
        power: Board power, W.
    """

    name: str
    memory: int
    bandwidth: float
    flops16: float
    flops8: float
    nvlink: float
    power: float


GPUS = {
    "H100": Gpu("H100", paper.GPU_MEMORY, 3.35e12, 989e12, 1979e12, 450e9, 700.0),
    "H200": Gpu("H200", 143_771 * 2**20, 4.8e12, 989e12, 1979e12, 450e9, 700.0),
}
_ARITHMETIC = {(16, 16): "FP16", (8, 8): "FP8", (8, 16): "INT8"}  # (weight bits, activation bits)


def gpu(name: str) -> Gpu:
    """Return a GPU by name; ErlabError if it is unknown."""
    if name not in GPUS:
        raise ErlabError(f"The 'gpu' parameter must be one of {', '.join(GPUS)}. Got {name!r}.")
    return GPUS[name]


def arithmetic(precision: Precision) -> str:
    """Return the kernels of a precision: FP16, FP8 or INT8.

    FP16 includes BF16, which is as fast; INT8 is weight-only.

    Raises:
        ErlabError: No kernel was measured for these bit widths.
    """
    bits = precision.weight_bits, precision.activation_bits
    if bits not in _ARITHMETIC or precision.kv_bits not in (8, 16):
        raise ErlabError(
            "The 'precision' parameter must have weights and activations of 16 and 16, 8 and 8 or 8 and 16 bits and a "
            f"KV cache of 8 or 16. Got {precision.name}: {bits[0]}, {bits[1]} and {precision.kv_bits}."
        )
    return _ARITHMETIC[bits]


def free_gib(expert: Expert, gpu: Gpu, reserve_gib: float) -> float:
    """Return GiB left by weights and reserve over all GPUs."""
    return expert.tensor_parallel * (gpu.memory / GIB - reserve_gib) - paper.weight_bytes(expert) / GIB


def kv_pool_tokens(
    expert: Expert, gpu: Gpu, reserve_gib: float = paper.RESERVE / GIB, free_fraction: float = paper.FREE_FRACTION
) -> int:
    """Return the tokens that a KV cache holds, checked to suffice.

    The result is the expert's `kv_tokens` where set, else `paper.kv_pool_tokens` on this GPU.

    Args:
        gpu: GPU of which it has `tensor_parallel`.
        reserve_gib: Memory kept free on each GPU for activations, runtime and CUDA context, GiB.
        free_fraction: Share of the remaining memory that the KV cache takes, in (0, 1].

    Raises:
        ErlabError: The weights do not fit, or the pool holds less than one request of the expert's maximum length.
    """
    require(reserve_gib >= 0, "reserve_gib", "the KV pool", "be at least 0", reserve_gib)
    require(0 < free_fraction <= 1, "free_fraction", "the KV pool", "lie in (0, 1]", free_fraction)
    free, weights = free_gib(expert, gpu, reserve_gib), paper.weight_bytes(expert) / GIB
    name = f"{expert.model.name} {expert.precision.name}"
    machine = f"{expert.tensor_parallel} {gpu.name}{'s' * (expert.tensor_parallel > 1)}"
    if free <= 0:
        have = f"weights {weights:.1f} GiB, memory after reserve {weights + free:.1f} GiB"
        raise ErlabError(f"{name} does not fit {machine}: {have}.")
    pool = expert.kv_tokens or paper.kv_pool_tokens(expert, gpu.memory, reserve_gib * GIB, free_fraction)
    if pool < expert.max_sequence_tokens:
        raise ErlabError(
            f"The KV pool of {name} on {machine} holds {pool} tokens, fewer than one request of "
            f"{expert.max_sequence_tokens} (input {expert.max_input_tokens} + output {expert.max_output_tokens}): "
            f"{free:.2f} GiB free, {paper.kv_bytes_per_token(expert)} bytes per token."
        )
    return pool
