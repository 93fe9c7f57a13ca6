"""Machine profiles: where a study runs and how large it is.

`scaling.scale` turns a system of the paper's Table I into its counterpart on a profile's machine. On CPU cores, each
core stands for an equal share of the paper's eight GPUs: a baseline has the share of the cores that its tensor
parallelism has of the GPUs, and a router system has one expert pinned to each core. The tiny models keep the paper's
size ratio (70B : 8B); float32 stands for FP16 and int8 for FP8. The KV pool keeps its ratio to a full batch of the
longest requests.

>>> profile("laptop").loads
(1, 2, 4, 8, 16, 32, 64)
"""

from dataclasses import replace

from erlab import paper
from erlab.errors import ErlabError
from erlab.spec import BF16, FLOAT32, FP8, FP16, INT8_CPU, Emulation, Model, Profile, System

SMALL = Model("tiny 8B", 256, 4, 4, 2, 544, 260, max_positions=2048)
BIG = Model("tiny 70B", 512, 8, 8, 2, 1408, 260, max_positions=2048)
_PAPER_MODELS = {model.name: model for model in (paper.LLAMA_3_8B, paper.LLAMA_3_70B)}

LAPTOP = Profile(
    name="laptop",
    description="CPU only: tiny expert models on a real server; each core stands for a GPU",
    models={"Llama 3 8B": SMALL, "Llama 3 70B": BIG},
    precisions={"FP16": FLOAT32, "FP8": INT8_CPU},
    workload=replace(
        paper.WORKLOAD,
        input_tokens=paper.WORKLOAD.input_tokens.scaled(1 / 4),
        output_tokens=paper.WORKLOAD.output_tokens.scaled(1 / 8),
        turns=2,
        least_requests=8,
    ),
    loads=(1, 2, 4, 8, 16, 32, 64),
    preliminary_loads=(1, 8, 32),
    simulated_loads=paper.LOADS,
    batch_limits=(8, 16, 32),
)
SMOKE = replace(
    LAPTOP,
    name="smoke",
    description="the laptop profile with two loads and few short requests, for tests",
    loads=(1, 4),
    preliminary_loads=(1, 4),
    simulated_loads=(1, 10, 100),
    simulated_seeds=2,
    explored_loads=(1, 100),
    explored_rates=(18, 24),
    compared_sizes=(2,),
    compared_recipes=("paper", "characters, balanced"),
    batch_limits=(8,),  # above its users: a lower limit would not change anything
    workload=replace(
        LAPTOP.workload,
        input_tokens=LAPTOP.workload.input_tokens.scaled(1 / 2),
        output_tokens=LAPTOP.workload.output_tokens.scaled(1 / 3),
        turns=1,
        least_requests=4,
    ),
    prompts_per_domain=100,
    emulation=Emulation((1, 8), 2.0, replace(Emulation().workload, least_requests=4)),
)
DGX_H100 = Profile(
    name="dgx-h100",
    description="the paper's machine and models: TensorRT-LLM on eight H100 GPUs",
    models=_PAPER_MODELS,
    precisions={precision.name: precision for precision in (FP16, FP8)},
    workload=paper.WORKLOAD,
    loads=paper.LOADS,
    preliminary_loads=paper.LOADS,
    simulated_loads=paper.LOADS,
    batch_limits=paper.BATCH_LIMITS,
    engine="tensorrt-llm",
    gpus=paper.GPUS,
    deadline=600.0,
    minutes={  # 01: estimate of `tensorrt_llm.commands`; others: simulated durations plus 4 minutes per server start
        "01_build_engines": 99.2,
        "03_preliminary": 345,
        "04_baselines": 60,
        "05_router": 30,
    },
)
GPU = Profile(
    name="gpu",
    description="one NVIDIA GPU: the paper's models on the first available engine",
    models=_PAPER_MODELS,
    precisions={"FP16": BF16, "FP8": FP8},
    workload=replace(paper.WORKLOAD, turns=3),
    loads=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    preliminary_loads=(1, 32, 128),
    simulated_loads=paper.LOADS,
    batch_limits=paper.BATCH_LIMITS,
    engine="gpu",
    systems=("A", "D", "E"),  # 70B in 16 bits, which B and C serve, needs two GPUs
    gpus=1,
    deadline=600.0,
    minutes={"03_preliminary": 17, "04_baselines": 13, "05_router": 19},  # simulated, plus 2 minutes per server start
)


def _on_one_gpu(engine: str, description: str, **changes) -> Profile:
    """Return the profile `GPU` with one engine, whatever else is installed."""
    name = f"gpu-{engine}"
    return replace(GPU, name=name, description=f"one NVIDIA GPU: {description}", engine=name, **changes)


PROFILES = {
    profile.name: profile
    for profile in (
        LAPTOP,
        SMOKE,
        DGX_H100,
        GPU,
        _on_one_gpu("tensorrt-llm", "tensorrt-llm", minutes=GPU.minutes | {"01_build_engines": 24.3}),
        _on_one_gpu("trtllm-serve", "trtllm-serve"),
        _on_one_gpu("vllm", "vllm"),
        _on_one_gpu(  # E only: the int8 product, which stands for FP8, needs a CPU
            "embedded", "the laptop's engine on CUDA, correct and slow", systems=("E",), loads=(1, 8, 32)
        ),
    )
}


def profile(name: str) -> Profile:
    """Return a profile by name; ErlabError if it is unknown."""
    if name not in PROFILES:
        raise ErlabError(f"The 'profile' parameter must be one of {', '.join(PROFILES)}. Got {name!r}.")
    return PROFILES[name]


def systems(profile: Profile) -> dict[str, System]:
    """Return the systems of Table I that a profile serves, by name."""
    return {name: system for name, system in paper.SYSTEMS["v2"].items() if name in profile.systems}
