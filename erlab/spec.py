"""What is served and measured, as frozen dataclasses that refuse contradictions when made.

A `Model` is an architecture, a `Precision` the width of its weights and cache, an `Expert` one engine,
a `System` a row of Table I, a `Workload` what users send, a `Profile` where and how large it all runs.

>>> from erlab.paper import LLAMA_3_8B
>>> Expert(LLAMA_3_8B, FP16, tensor_parallel=3)
Traceback (most recent call last):
    ...
erlab.errors.ErlabError: The 'tensor_parallel' parameter of Expert must divide the 8 KV heads of Llama 3 8B. Got 3.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from erlab.errors import ErlabError

GIB = 2**30
MOST_USERS = 100_000  # of one load: a hundred times the paper's, and more than a machine has ports for


def require(condition: bool, parameter: str, owner: str, allowed: str, got: object) -> None:
    """Refuse a bad parameter by name: what is allowed and what came."""
    if not condition:
        raise ErlabError(f"The {parameter!r} parameter of {owner} must {allowed}. Got {got!r}.")


def is_number(value: object) -> bool:
    """Whether it is a finite number, as a parameter of a notebook has to be where a command line may give anything."""
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
        """Parameters of the input embedding and the output head, which quantization leaves alone."""
        return 2 * self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * self.head_dim
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.embedding_parameters + self.layers * layer + self.hidden


@dataclass(frozen=True)
class Precision:
    """Bits of a weight, of a cached key or value, and of an activation."""

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
    """One engine: a model at a precision, on `tensor_parallel` GPUs or, on the laptop, on `cores` CPU cores.

    `kv_tokens` bounds the KV cache, counted in tokens; None leaves it to the engine.
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
        return self.max_input_tokens + self.max_output_tokens


@dataclass(frozen=True)
class System:
    """A row of Table I: `count` engines of one expert, behind the router or as equal replicas of a baseline.

    A router system's engines are distinct experts and the gateway chooses among them; a baseline's engines hold
    the same weights and user i always asks replica i mod count.
    """

    name: str
    paper: str
    expert: Expert
    count: int
    router: bool

    def __post_init__(self):
        require(self.count >= 1, "count", "System", "be at least 1", self.count)
        require(self.paper in ("v1", "v2"), "paper", "System", "be v1 or v2", self.paper)

    @property
    def title(self) -> str:
        """One line for legends and tables, such as ``Llama 3 70B FP8, TP 4, 2 replicas``."""
        e = self.expert
        width = f"{e.cores} core{'s' * (e.cores > 1)}" if e.cores else f"TP {e.tensor_parallel}"
        count = f"{self.count} expert" if self.router else f"{self.count} replica"
        return f"{e.model.name} {e.precision.name}, {width}, {count}{'s' * (self.count > 1)}"

    def model_names(self, key: str) -> tuple[str, ...]:
        """The names of the system's engines in Triton, where the system is called `key`: ``E-expert-0`` and so on."""
        kind = "expert" if self.router else "replica"
        return tuple(f"{key}-{kind}-{i}" for i in range(self.count))


@dataclass(frozen=True)
class Lengths:
    """Token lengths: log-normal with this median and shape, redrawn outside [minimum, maximum]."""

    median: float
    sigma: float
    minimum: int
    maximum: int

    def __post_init__(self):
        require(1 <= self.minimum <= self.maximum, "minimum", "Lengths", f"be 1 to {self.maximum}", self.minimum)
        require(self.minimum <= self.median <= self.maximum, "median", "Lengths", "lie within the limits", self.median)
        require(self.sigma >= 0, "sigma", "Lengths", "be at least 0", self.sigma)

    def scaled(self, factor: float) -> "Lengths":
        """The same shape with every length multiplied by `factor`."""
        low, high = max(1, round(self.minimum * factor)), max(1, round(self.maximum * factor))
        return Lengths(min(max(self.median * factor, low), high), self.sigma, low, high)


@dataclass(frozen=True)
class Workload:
    """What users send: lengths, and how many requests each user makes at each load.

    A user makes `turns` requests, more where few users would leave fewer than `least_requests` in all.
    """

    input_tokens: Lengths
    output_tokens: Lengths
    turns: int = 3
    least_requests: int = 12

    def __post_init__(self):
        require(self.turns >= 1, "turns", "Workload", "be at least 1", self.turns)
        require(self.least_requests >= 1, "least_requests", "Workload", "be at least 1", self.least_requests)

    def turns_for(self, users: int) -> int:
        require(users >= 1, "users", "Workload", "be at least 1", users)
        return max(self.turns, -(-self.least_requests // users))


@dataclass(frozen=True)
class Emulation:
    """Emulated experts: under which loads, how many times slower than the engines they stand for, and asked for what.

    By default a quarter of the paper's input lengths and short answers, so that 1,000 users are answered within seconds,
    and a scale at which two cores that do nothing else carry them, Triton and the gateway.
    """

    loads: tuple[int, ...] = (1, 10, 100, 1000)
    time_scale: float = 12.0
    workload: Workload = Workload(Lengths(47.5, 0.95, 2, 256), Lengths(5.0, 0.75, 1, 24), turns=2, least_requests=6)

    def __post_init__(self):
        ordered = bool(self.loads) and min(self.loads) >= 1 and list(self.loads) == sorted(set(self.loads))
        require(ordered, "loads", "Emulation", "be rising numbers from 1", self.loads)
        require(self.time_scale > 0, "time_scale", "Emulation", "be above 0", self.time_scale)
        # each user's first request is a warm-up
        require(self.workload.turns >= 2, "workload", "Emulation", "have at least 2 turns", self.workload.turns)


@dataclass(frozen=True)
class Profile:
    """Where and how large the study runs: which models play the paper's, on how many devices, under which loads."""

    name: str
    description: str
    models: dict[str, Model]
    precisions: dict[str, Precision]
    workload: Workload
    loads: tuple[int, ...]
    preliminary_loads: tuple[int, ...]
    simulated_loads: tuple[int, ...]
    batch_limits: tuple[int, ...]
    engine: str = "tiny"  # one of `engines.kinds.ENGINE_KINDS`
    systems: tuple[str, ...] = ("A", "B", "C", "D", "E")  # of Table I, those that fit the machine
    gpus: int = 0  # GPUs that the engines share; 0: the CPU cores compute
    deadline: float = 60.0  # seconds a user waits for a whole answer
    minutes: dict[str, float] = field(default_factory=dict)  # expected of a step, where the laptop's tell nothing
    clusters: int = 8
    prompts_per_domain: int = 500
    emulation: Emulation = Emulation()
    simulated_seeds: int = 5  # times that Table I's systems are simulated, each with a seed and so with users of its own
    explored_loads: tuple[int, ...] = (1, 50, 200, 600, 1000)  # where assumptions and policies are varied
    explored_rates: tuple[float, ...] = (18, 20, 22, 24)  # requests/s under which replicas follow demand
    compared_sizes: tuple[int, ...] = (1, 2, 4, 8)  # tensor-parallel sizes of the published cells compared with
    compared_recipes: tuple[str, ...] = (  # names of `routing.evaluation.RECIPES` that notebook 02 compares by default
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
    """The loads in rising order, each once; ErlabError, by the parameter's name, for anything else."""
    numbers = tuple(loads) if isinstance(loads, Iterable) else ()
    if not numbers or not all(type(n) is int and 1 <= n <= MOST_USERS for n in numbers):
        allowed = f"be a list of whole numbers of users from 1 to {MOST_USERS}"
        raise ErlabError(f"The {name!r} parameter must {allowed}. Got {loads!r}.")
    return tuple(sorted(set(numbers)))
