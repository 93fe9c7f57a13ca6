"""Where the study runs: each profile is data, and `scale` turns a row of the paper's Table I into what runs there.

On the laptop every CPU core plays an equal share of the paper's eight GPUs: a baseline computes with as large a share
of the cores as its tensor parallelism takes of the GPUs, and a router system has one expert pinned to each core. The
tiny models keep the paper's ratio of sizes (70B : 8B), float32 plays FP16 and int8 plays FP8: wide and narrow weights.
The KV pool keeps its ratio to what a full batch of the longest requests would need.
"""

from dataclasses import replace

from erlab import paper
from erlab.errors import ErlabError
from erlab.spec import BF16, FLOAT32, FP8, FP16, INT8_CPU, Emulation, Model, Profile, System

SMALL = Model("tiny 8B", 256, 4, 4, 2, 544, 260, max_positions=2048)
BIG = Model("tiny 70B", 512, 8, 8, 2, 1408, 260, max_positions=2048)

_LAPTOP = Profile(
    name="laptop",
    description="CPU only: tiny experts served for real, each core plays a GPU",
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
_GPU = Profile(
    name="gpu",
    description="one NVIDIA GPU: the paper's models on the first engine there is",
    models={model.name: model for model in (paper.LLAMA_3_8B, paper.LLAMA_3_70B)},
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
    minutes={  # the simulation's own times on an H100, and 2 minutes a server's start
        "03_preliminary": 17,
        "04_baselines": 13,
        "05_router": 19,
    },
)

PROFILES = {
    "laptop": _LAPTOP,
    "smoke": replace(
        _LAPTOP,
        name="smoke",
        description="the laptop's path with two loads and few short requests, for tests",
        loads=(1, 4),
        preliminary_loads=(1, 4),
        simulated_loads=(1, 10, 100),
        simulated_seeds=2,
        explored_loads=(1, 100),
        explored_rates=(18, 24),
        compared_sizes=(2,),
        compared_recipes=("paper", "characters, balanced"),
        batch_limits=(8,),  # more than its users, so that a smaller one would change nothing
        workload=replace(
            _LAPTOP.workload,
            input_tokens=_LAPTOP.workload.input_tokens.scaled(1 / 2),
            output_tokens=_LAPTOP.workload.output_tokens.scaled(1 / 3),
            turns=1,
            least_requests=4,
        ),
        prompts_per_domain=100,
        emulation=Emulation((1, 8), 2.0, replace(Emulation().workload, least_requests=4)),
    ),
    "dgx-h100": Profile(
        name="dgx-h100",
        description="the paper's machine and models: TensorRT-LLM on eight H100 GPUs",
        models={model.name: model for model in (paper.LLAMA_3_8B, paper.LLAMA_3_70B)},
        precisions={precision.name: precision for precision in (FP16, FP8)},
        workload=paper.WORKLOAD,
        loads=paper.LOADS,
        preliminary_loads=paper.LOADS,
        simulated_loads=paper.LOADS,
        batch_limits=paper.BATCH_LIMITS,
        engine="tensorrt-llm",
        gpus=paper.GPUS,
        deadline=600.0,
        minutes={
            "01_build_engines": 99.2,  # as `tensorrt_llm.commands` estimates
            "03_preliminary": 345,  # these and the next: the simulation's own times, and 4 minutes a server's start
            "04_baselines": 60,
            "05_router": 30,
        },
    ),
    "gpu": _GPU,
    "gpu-tensorrt-llm": replace(
        _GPU,
        name="gpu-tensorrt-llm",
        description="one NVIDIA GPU: tensorrt-llm",
        engine="gpu-tensorrt-llm",
        minutes=_GPU.minutes | {"01_build_engines": 24.3},  # as above
    ),
    **{
        f"gpu-{engine}": replace(
            _GPU, name=f"gpu-{engine}", description=f"one NVIDIA GPU: {engine}", engine=f"gpu-{engine}"
        )
        for engine in ("trtllm-serve", "vllm")
    },
    "gpu-embedded": replace(
        _GPU,
        name="gpu-embedded",
        description="one NVIDIA GPU: the laptop's engine on CUDA, correct and slow",
        engine="gpu-embedded",
        systems=("E",),  # its product of small integers needs a CPU
        loads=(1, 8, 32),
    ),
}


def profile(name: str) -> Profile:
    if name not in PROFILES:
        raise ErlabError(f"The 'profile' parameter must be one of {', '.join(PROFILES)}. Got {name!r}.")
    return PROFILES[name]


def systems(to: Profile) -> dict[str, System]:
    """The rows of Table I that the profile serves."""
    return {name: system for name, system in paper.SYSTEMS["v2"].items() if name in to.systems}
