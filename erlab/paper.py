"""The paper, arXiv 2404.15153, as data.

Systems, loads, workload, assumptions and claims of both versions. Facts name their source. *stated*: in the abstract, a
caption or a summary of the paper. *reported*: in a third party's review of the text. *assumed*: unknown; a parameter
with this default, marked as an assumption wherever it appears.
"""

from dataclasses import dataclass

from erlab.spec import FP8, FP16, GIB, INT8, Expert, Lengths, Model, System, Workload

ARXIV = "2404.15153"
TITLE = {
    "v1": "Expert Router: Orchestrating Efficient Language Model Inference through Prompt Classification",
    "v2": "Performance Characterization of Expert Router for Scalable LLM Inference",
}
GPUS = 8  # one DGX H100 (stated)

LLAMA_3_8B = Model("Llama 3 8B", 4096, 32, 32, 8, 14336, 128256)
LLAMA_3_70B = Model("Llama 3 70B", 8192, 80, 64, 8, 28672, 128256)
LLAMA_2_13B = Model("Llama 2 13B", 5120, 40, 40, 40, 13824, 32000, 10_000.0, 4096)
LLAMA_2_70B = Model("Llama 2 70B", 8192, 80, 64, 8, 28672, 32000, 10_000.0, 4096)


def _baseline(name: str, paper: str, model: Model, precision, tp: int) -> System:
    return System(name, paper, Expert(model, precision, tp), GPUS // tp, router=False)


def _router(name: str, paper: str, model: Model, precision) -> System:
    return System(name, paper, Expert(model, precision), GPUS, router=True)


SYSTEMS = {
    "v2": {
        "A": _baseline("A", "v2", LLAMA_3_70B, FP8, 4),
        "B": _baseline("B", "v2", LLAMA_3_70B, FP16, 4),
        "C": _baseline("C", "v2", LLAMA_3_70B, FP16, 8),
        "D": _router("D", "v2", LLAMA_3_70B, FP8),
        "E": _router("E", "v2", LLAMA_3_8B, FP16),
    },
    "v1": {
        "TP8": _baseline("TP8", "v1", LLAMA_2_70B, FP16, 8),
        "70B-INT8": _router("70B-INT8", "v1", LLAMA_2_70B, INT8),
        "13B-FP16": _router("13B-FP16", "v1", LLAMA_2_13B, FP16),
        "13B-FP8": _router("13B-FP8", "v1", LLAMA_2_13B, FP8),
    },
}

LOADS = (1, 10, 50, 100, 200, 400, 600, 800, 1000)  # to 1,000 stated, the grid assumed
BATCH_LIMITS = (64, 128, 256)  # preliminary sweep; assumed
WORKLOAD = Workload(Lengths(190.0, 0.95, 8, 1023), Lengths(240.0, 0.75, 3, 1023), turns=5)


@dataclass(frozen=True)
class Assumption:
    """Detail that the paper leaves open, with value and reason."""

    id: str
    value: str
    why: str


ASSUMPTIONS = {
    "v2": (
        Assumption("baselines", "A = TP4 FP8, B = TP4 FP16, C = TP8 FP16", "C pays the most communication (Fig. 5)"),
        Assumption("replicas", "8 // TP copies of a baseline", "every system uses all eight GPUs"),
        Assumption("D-precision", "FP8 weights and KV cache", "70B on one 80 GB GPU needs quantized weights"),
        Assumption("E-precision", "FP16", "8B fits one GPU unquantized"),
        Assumption("loads", ", ".join(map(str, LOADS)), "up to 1,000 users is stated, the grid is not"),
        Assumption("max-batch", "256; preliminary sweep 64, 128, 256", "common values of the time"),
        Assumption(
            "input-length", "log-normal, median 190, sigma 0.95, cut at 1,024 tokens",
            "MLPerf's Llama 2 70B set is stated (Fig. 2); its input mean is documented nowhere",
        ),
        Assumption(
            "output-length", "log-normal, median 240, sigma 0.75, cut at 1,024 tokens",
            "its mean then lies near the 294.45 tokens of MLPerf's reference run",
        ),
        Assumption("clusters", "8, one per expert", "one expert per GPU"),
        Assumption(
            "kv-pool",
            "90 % of the memory that weights and a reserve of 4 GiB for activations leave of 80 GB",
            "TensorRT-LLM's default share",
        ),
        Assumption("figures-6-7", "end-to-end response time and system throughput", "their captions are not known"),
    ),
    "v1": (
        Assumption("replicas", "one TP8 engine", "every system uses all eight GPUs"),
        Assumption("loads", ", ".join(map(str, LOADS)), "up to 1,000 users is stated, the grid is not"),
    ),
}

GPU_MEMORY = 81_559 * 2**20  # bytes an H100 80 GB reports
RESERVE = 4 * GIB  # activations, runtime, CUDA context; assumed
FREE_FRACTION = 0.9  # TensorRT-LLM's kv_cache_free_gpu_mem_fraction


def weight_bytes(expert: Expert) -> int:
    """Return the bytes of an engine's weights over all GPUs.

    Embeddings and output head have at least 16 bits.
    """
    model = expert.model
    bits = expert.precision.weight_bits
    body = model.parameters - model.embedding_parameters
    return (body * bits + model.embedding_parameters * max(16, bits)) // 8


def kv_bytes_per_token(expert: Expert) -> int:
    """Return the bytes of one token's KV cache over all GPUs."""
    model = expert.model
    return 2 * model.layers * model.kv_heads * model.head_dim * expert.precision.kv_bits // 8


def kv_pool_tokens(
    expert: Expert, memory: int = GPU_MEMORY, reserve: float = RESERVE, free_fraction: float = FREE_FRACTION
) -> int:
    """Return the tokens that an engine's paged KV cache holds.

    0 if the weights do not fit.

    Args:
        expert: Engine; its `kv_tokens` is ignored.
        memory: Memory of each GPU, bytes.
        reserve: Memory kept free on each GPU, bytes.
        free_fraction: Share of the remaining memory that the KV cache takes.
    """
    free = expert.tensor_parallel * (memory - reserve) - weight_bytes(expert)
    return int(max(0, free_fraction * free) // kv_bytes_per_token(expert))


@dataclass(frozen=True)
class Claim:
    """Statement of the paper that is tested on request records."""

    id: str
    paper: str
    statement: str
    source: str


CLAIMS = (
    Claim(
        "v2-ttft-baselines", "v2",
        "The tensor-parallel baselines A, B and C have a lower median time to first token than D", "Fig. 4",
    ),  # fmt: skip
    Claim("v2-ttft-8b", "v2", "E's time to first token is similar to the tensor-parallel baselines'", "Fig. 4"),
    Claim(
        "v2-ttft-overhead", "v2",
        "The router systems' minimum time to first token is higher: the gateway's extra latency", "Fig. 4",
    ),  # fmt: skip
    Claim("v2-tpot-8b", "v2", "E has the lowest time per output token", "Fig. 5"),
    Claim("v2-tpot-comm", "v2", "C has a higher time per output token than A and B", "Fig. 5"),
    Claim(
        "v2-overhead-minimal", "v2",
        "The gateway's latency overhead is minimal; the experts' configuration dominates the outcome", "abstract",
    ),  # fmt: skip
    Claim("v2-70b-moderate", "v2", "D keeps throughput and latency stable under moderate concurrency", "abstract"),
    Claim(
        "v2-8b-wide", "v2",
        "E stays competitive over a wider range of concurrency than the tensor-parallel baselines", "abstract",
    ),  # fmt: skip
    Claim(
        "v1-throughput", "v1",
        "The router keeps throughput comparable to the TP8 baseline and beats it at high load", "abstract, summary",
    ),  # fmt: skip
    Claim("v1-size", "v1", "Larger quantized experts cost no system throughput", "summary"),
)
