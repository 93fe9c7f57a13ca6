"""Specifications of models, engines, systems, workloads and profiles, validated on construction.

A `Model` is an architecture, a `Precision` the bit widths of weights and KV cache, an `Expert` one engine, a `System` a
row of Table I, a `Workload` the requests of users, a `Profile` the machine and the size of the study.

>>> from erlab.paper import LLAMA_3_8B
>>> Expert(LLAMA_3_8B, FP16, tensor_parallel=3)
Traceback (most recent call last):
    ...
erlab.errors.ErlabError: The 'tensor_parallel' parameter of Expert must divide the 8 KV heads of Llama 3 8B. Got 3.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from erlab.errors import ErlabError

GIB = 2**30
MOST_USERS = 100_000  # per load: more than a machine has ports for


def require(condition: bool, parameter: str, owner: str, allowed: str, got: object) -> None:
    """Raise ErlabError for a parameter that is not allowed."""
    if not condition:
        raise ErlabError(f"The {parameter!r} parameter of {owner} must {allowed}. Got {got!r}.")


def is_number(value: object) -> bool:
    """Return whether a value of any type is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Model:
    """A Llama architecture (RMSNorm, RoPE, grouped-query attention, SwiGLU), untied embeddings."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    rope_theta: float = 500_000.0
    max_positions: int = 8192

    def __post_init__(self):
        for name in ("hidden", "layers", "heads", "kv_heads", "intermediate", "vocab", "max_positions"):
            require(getattr(self, name) >= 1, name, "Model", "be at least 1", getattr(self, name))
        require(self.hidden % self.heads == 0, "heads", "Model", f"divide hidden = {self.hidden}", self.heads)
        require(self.heads % self.kv_heads == 0, "kv_heads", "Model", f"divide heads = {self.heads}", self.kv_heads)

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def embedding_parameters(self) -> int:
        """Parameters of embedding and output head, which are not quantized."""
        return 2 * self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * self.head_dim
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.embedding_parameters + self.layers * layer + self.hidden


@dataclass(frozen=True)
class Precision:
    """Bit widths of weights, KV cache and activations."""

    name: str
    weight_bits: int
    kv_bits: int
    activation_bits: int = 16


FP16 = Precision("FP16", 16, 16)
BF16 = Precision("BF16", 16, 16)
FP8 = Precision("FP8", 8, 8, 8)
INT8 = Precision("INT8", 8, 8)
FLOAT32 = Precision("float32", 32, 32, 32)
INT8_CPU = Precision("int8", 8, 32, 8)


@dataclass(frozen=True)
class Expert:
    """One engine: a model at a precision on GPUs or cores.

    Attributes:
        tensor_parallel: GPUs; divides the model's KV heads. 1 on CPU cores.
        cores: CPU cores; None on GPUs.
        kv_tokens: Tokens that the KV cache holds; None leaves it to the engine.
    """

    model: Model
    precision: Precision
    tensor_parallel: int = 1
    cores: int | None = None
    max_batch_size: int = 256
    max_input_tokens: int = 1024
    max_output_tokens: int = 1024
    kv_tokens: int | None = None

    def __post_init__(self):
        for name in ("tensor_parallel", "max_batch_size", "max_input_tokens", "max_output_tokens"):
            require(getattr(self, name) >= 1, name, "Expert", "be at least 1", getattr(self, name))
        kv_heads, tp = self.model.kv_heads, self.tensor_parallel
        allowed = f"divide the {kv_heads} KV heads of {self.model.name}"
        require(kv_heads % tp == 0, "tensor_parallel", "Expert", allowed, tp)
        if self.cores is not None:
            require(self.cores >= 1, "cores", "Expert", "be at least 1", self.cores)
            require(tp == 1, "tensor_parallel", "Expert", "be 1 where CPU cores compute", tp)
        require(
            self.max_sequence_tokens <= self.model.max_positions,
            "max_output_tokens",
            "Expert",
            f"keep input + output within the {self.model.max_positions} positions of {self.model.name}",
            self.max_output_tokens,
        )
        if self.kv_tokens is not None:
            allowed = f"hold one request of {self.max_sequence_tokens} tokens"
            require(self.kv_tokens >= self.max_sequence_tokens, "kv_tokens", "Expert", allowed, self.kv_tokens)

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens of the longest request, input and output."""
        return self.max_input_tokens + self.max_output_tokens


@dataclass(frozen=True)
class System:
    """Row of Table I: experts behind a router, or equal replicas.

    The engines of a router system are distinct experts, among which the gateway chooses. The engines of a baseline have
    the same weights, and user i always uses replica i mod `count`.

    Attributes:
        paper: Version of the paper, v1 or v2.
        share: Share of the machine's devices, "half" or "all", of a preliminary system (Fig. 3); None for Table I.
    """

    name: str
    paper: str
    expert: Expert
    count: int
    router: bool
    share: str | None = None

    def __post_init__(self):
        require(self.count >= 1, "count", "System", "be at least 1", self.count)
        require(self.paper in ("v1", "v2"), "paper", "System", "be v1 or v2", self.paper)
        require(self.share in (None, "half", "all"), "share", "System", "be half, all or None", self.share)

    def preliminary(self, share: str) -> "System":
        """Return the preliminary system that has one of these engines on half or all of the devices."""
        name = f"P-{share}-{self.expert.precision.name}-b{self.expert.max_batch_size}"
        return replace(self, name=name, count=1, share=share)

    @property
    def title(self) -> str:
        """Description such as ``Llama 3 70B FP8, TP 4, 2 replicas``."""
        e = self.expert
        width = f"{e.cores} core{'s' * (e.cores > 1)}" if e.cores else f"TP {e.tensor_parallel}"
        count = f"{self.count} expert" if self.router else f"{self.count} replica"
        return f"{e.model.name} {e.precision.name}, {width}, {count}{'s' * (self.count > 1)}"

    def model_names(self, key: str) -> tuple[str, ...]:
        """Return the engines' names in Triton, such as ``E-expert-0``."""
        kind = "expert" if self.router else "replica"
        return tuple(f"{key}-{kind}-{i}" for i in range(self.count))


@dataclass(frozen=True)
class Lengths:
    """Log-normal distribution of token lengths, redrawn outside the limits.

    Attributes:
        median: Tokens, within the limits.
        sigma: Standard deviation of the logarithm.
        minimum: Tokens, at least 1.
    """

    median: float
    sigma: float
    minimum: int
    maximum: int

    def __post_init__(self):
        require(1 <= self.minimum <= self.maximum, "minimum", "Lengths", f"be 1 to {self.maximum}", self.minimum)
        require(self.minimum <= self.median <= self.maximum, "median", "Lengths", "lie within the limits", self.median)
        require(self.sigma >= 0, "sigma", "Lengths", "be at least 0", self.sigma)

    def scaled(self, factor: float) -> "Lengths":
        """Return the distribution of the lengths multiplied by `factor`."""
        low, high = max(1, round(self.minimum * factor)), max(1, round(self.maximum * factor))
        return Lengths(min(max(self.median * factor, low), high), self.sigma, low, high)


@dataclass(frozen=True)
class Workload:
    """Requests of closed-loop users: token lengths and requests per user.

    Attributes:
        turns: Requests per user.
        least_requests: Least requests of a load; with few users, each makes more than `turns`.
    """

    input_tokens: Lengths
    output_tokens: Lengths
    turns: int = 3
    least_requests: int = 12

    def __post_init__(self):
        require(self.turns >= 1, "turns", "Workload", "be at least 1", self.turns)
        require(self.least_requests >= 1, "least_requests", "Workload", "be at least 1", self.least_requests)

    def turns_for(self, users: int) -> int:
        """Return the requests per user at this load."""
        require(users >= 1, "users", "Workload", "be at least 1", users)
        return max(self.turns, -(-self.least_requests // users))


@dataclass(frozen=True)
class Emulation:
    """Load test of emulated experts for the gateway's overhead.

    With the defaults, a quarter of the paper's input lengths and short answers, requests of 1,000 users finish within
    seconds, and two idle cores suffice for users, gateway and Triton.

    Attributes:
        loads: Numbers of concurrent users, ascending.
        time_scale: Factor by which an emulated expert is slower than the engine it emulates.
        workload: Token lengths and turns; at least 2 turns, since each user's first request is a warm-up.
    """

    loads: tuple[int, ...] = (1, 10, 100, 1000)
    time_scale: float = 12.0
    workload: Workload = Workload(Lengths(47.5, 0.95, 2, 256), Lengths(5.0, 0.75, 1, 24), turns=2, least_requests=6)

    def __post_init__(self):
        ordered = bool(self.loads) and min(self.loads) >= 1 and list(self.loads) == sorted(set(self.loads))
        require(ordered, "loads", "Emulation", "be rising numbers from 1", self.loads)
        require(self.time_scale > 0, "time_scale", "Emulation", "be above 0", self.time_scale)
        require(self.workload.turns >= 2, "workload", "Emulation", "have at least 2 turns", self.workload.turns)


@dataclass(frozen=True)
class Profile:
    """Machine and size of a study.

    Attributes:
        name: Value of ``--profile``.
        models: Models that stand for the paper's, by the name of the paper's.
        precisions: Precisions that stand for the paper's, by the name of the paper's.
        loads: Measured numbers of concurrent users, ascending.
        preliminary_loads: Those of the preliminary experiments.
        simulated_loads: Those of the simulation.
        batch_limits: Batch limits of the preliminary experiments, ascending.
        engine: Engine family, a name in `erlab.serving.engines.kinds.ENGINE_KINDS`.
        systems: Systems of Table I that fit the machine.
        gpus: GPUs that the engines share; 0 for CPU cores.
        deadline: Seconds that a user waits for a whole answer.
        minutes: Expected duration of steps whose duration does not scale with the laptop's.
        emulation: Load test of emulated experts.
        simulated_seeds: Repetitions of the simulation of Table I's systems, each with its own seed.
        explored_loads: Loads at which assumptions and policies are varied.
        explored_rates: Arrival rates of the autoscaling study, requests/s.
        compared_sizes: Tensor-parallel sizes of the published cells that are compared, ascending.
        compared_recipes: Names in `erlab.routing.evaluation.RECIPES` that notebook 02 compares by default.
    """

    name: str
    description: str
    models: dict[str, Model]
    precisions: dict[str, Precision]
    workload: Workload
    loads: tuple[int, ...]
    preliminary_loads: tuple[int, ...]
    simulated_loads: tuple[int, ...]
    batch_limits: tuple[int, ...]
    engine: str = "tiny"
    systems: tuple[str, ...] = ("A", "B", "C", "D", "E")
    gpus: int = 0
    deadline: float = 60.0
    minutes: dict[str, float] = field(default_factory=dict)
    clusters: int = 8
    prompts_per_domain: int = 500
    emulation: Emulation = Emulation()
    simulated_seeds: int = 5
    explored_loads: tuple[int, ...] = (1, 50, 200, 600, 1000)
    explored_rates: tuple[float, ...] = (18, 20, 22, 24)
    compared_sizes: tuple[int, ...] = (1, 2, 4, 8)
    compared_recipes: tuple[str, ...] = (
        "paper",
        "words, balanced",
        "characters, balanced",
        "static, balanced",
        "static, supervised",
        "MiniLM, balanced",
    )

    def __post_init__(self):
        rising = ("loads", "preliminary_loads", "simulated_loads", "batch_limits", "explored_loads", "compared_sizes")
        for name in rising:
            values = getattr(self, name)
            ordered = bool(values) and min(values) >= 1 and list(values) == sorted(set(values))
            require(ordered, name, "Profile", "be rising numbers from 1", values)
        for name in ("clusters", "prompts_per_domain", "simulated_seeds"):
            require(getattr(self, name) >= 1, name, "Profile", "be at least 1", getattr(self, name))
        require(self.gpus >= 0, "gpus", "Profile", "be at least 0", self.gpus)
        require(self.deadline > 0, "deadline", "Profile", "be above 0", self.deadline)


def checked_loads(loads: Iterable[int], name: str = "loads") -> tuple[int, ...]:
    """Return the loads in ascending order without duplicates.

    Args:
        loads: Numbers of concurrent users, 1 to `MOST_USERS`.
        name: Parameter that an error names.
    """
    numbers = tuple(loads) if isinstance(loads, Iterable) else ()
    if not numbers or not all(type(n) is int and 1 <= n <= MOST_USERS for n in numbers):
        allowed = f"be a list of whole numbers of users from 1 to {MOST_USERS}"
        raise ErlabError(f"The {name!r} parameter must {allowed}. Got {loads!r}.")
    return tuple(sorted(set(numbers)))
