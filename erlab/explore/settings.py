"""Settings of the notebook `explore`: changed systems of the paper.

A setting is simulated on a DGX H100. The functions compute its curves, figure, required number of GPUs, and files that
reproduce it. `erlab.explore.panel` has the widgets.

>>> setting = Setting(system="D", users=10, steps="roofline")
>>> summary(setting).users.tolist(), round(summary(setting).ttft_median_s.iloc[0], 2) < 1
([1, 10], True)
>>> system(Setting(system="C", tensor_parallel=4)).title
'Llama 3 70B FP16, TP 4, 2 replicas'
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from erlab import paper as the_paper
from erlab import provenance as manifest
from erlab import simulation, textfiles
from erlab.errors import ErlabError
from erlab.figures import style
from erlab.results import metrics
from erlab.simulation import assumptions, beyond, components
from erlab.simulation.hardware import free_gib, gpu
from erlab.simulation.system import simulated_policies
from erlab.spec import FP8, FP16, INT8, Expert, Model, Precision, System, require

PRECISIONS = {precision.name: precision for precision in (FP16, FP8, INT8)}
SIZES = (1, 2, 4, 8)  # tensor parallelism
CURVES = {  # column of `metrics.summarise`: axis label
    "ttft_median_s": "Time to first token (s)",
    "tpot_median_ms": "Time per output token (ms)",
    "e2e_median_s": "Response time (s)",
    "output_throughput": "Output tokens per second",
}


def clusterers() -> tuple[str, ...]:
    """Return the names of all clusterers."""
    from erlab.routing.clusterers import CLUSTERERS  # scikit-learn takes a second to import

    return tuple(CLUSTERERS)


@dataclass(frozen=True)
class Setting:
    """System of the paper with changes.

    Attributes:
        paper: Version of the paper: v2 or v1.
        users: Largest number of concurrent users, at least 1.
        precision: One of PRECISIONS; None for the paper's.
        tensor_parallel: GPUs per engine, a divisor of 8; None for the paper's.
        kv_gib: KV cache per GPU in GiB; None for all memory that weights and the reserve leave.
        clusterer: Clusterer of the prompts; None for eight clusters of equal size. Router systems only.
        gateway_ms: Delay of the gateway in ms, at least 0.
        steps: Iteration times: measured (kernels) or roofline; None for measured if available.

    Raises:
        ErlabError: A value is not allowed, or a baseline has options of a router.
    """

    paper: str = "v2"
    system: str = "D"
    users: int = 1000
    precision: str | None = None
    tensor_parallel: int | None = None
    kv_gib: float | None = None
    clusterer: str | None = None
    policy: str = "nearest"
    gateway_ms: float = 2.0
    prompts: str | None = None
    steps: str | None = None
    seed: int = 0

    def __post_init__(self):
        def one_of(name: str, known: Sequence) -> None:
            value = getattr(self, name)
            require(value in known, name, "a setting", f"be one of {', '.join(map(str, known))}", value)

        one_of("paper", tuple(the_paper.SYSTEMS))
        one_of("system", tuple(the_paper.SYSTEMS[self.paper]))
        one_of("precision", (None, *PRECISIONS))
        if self.clusterer is not None:
            one_of("clusterer", (None, *clusterers()))
        one_of("policy", simulated_policies())
        one_of("steps", (None, "measured", "roofline"))
        whole = isinstance(self.users, int) and self.users >= 1
        require(whole, "users", "a setting", "be a whole number from 1", self.users)
        require(self.gateway_ms >= 0, "gateway_ms", "a setting", "be at least 0", self.gateway_ms)
        if not the_paper.SYSTEMS[self.paper][self.system].router:
            require(self.clusterer is None, "clusterer", f"baseline {self.system}", "be None", self.clusterer)
            require(self.policy == "nearest", "policy", f"baseline {self.system}", "be nearest", self.policy)


def step_source(setting: Setting) -> str:
    """Return the source of iteration times: measured or roofline."""
    return setting.steps or ("roofline" if components.unavailable() else "measured")


def setup(setting: Setting) -> simulation.Setup:
    """Return the simulated machine."""
    steps = step_source(setting)
    era = None if steps == "roofline" else simulation.Setup.era
    return simulation.Setup(steps=steps, era=era, gateway=setting.gateway_ms / 1e3)


def system(setting: Setting) -> System:
    """Return the changed system on eight GPUs."""
    system = the_paper.SYSTEMS[setting.paper][setting.system]
    expert = system.expert
    if setting.precision:
        expert = replace(expert, precision=PRECISIONS[setting.precision])
    if setting.tensor_parallel is not None:
        size = setting.tensor_parallel
        expert = replace(expert, tensor_parallel=size)
        require(the_paper.GPUS % size == 0, "tensor_parallel", "a setting", f"divide {the_paper.GPUS} GPUs", size)
        system = replace(system, count=the_paper.GPUS // size)
    system = replace(system, expert=expert)
    machine = setup(setting)
    machine.pool(expert)
    if setting.kv_gib is None:
        return system
    left = free_gib(expert, gpu(machine.gpu), machine.reserve_gib) / expert.tensor_parallel
    allowed = f"be at most the {left:.2f} GiB that weights and reserve leave on each {machine.gpu}"
    require(setting.kv_gib <= left, "kv_gib", "a setting", allowed, setting.kv_gib)
    return assumptions.with_kv_pool(system, setting.kv_gib)


def loads(setting: Setting) -> list[int]:
    """Return the paper's loads below `users`, and `users`."""
    return [n for n in the_paper.LOADS if n < setting.users] + [setting.users]


def simulate(setting: Setting, users: Sequence[int] | None = None, count: int | None = None) -> pd.DataFrame:
    """Simulate a setting."""
    changed = system(setting)
    if count is not None:
        changed = replace(changed, count=count)
    routing = {"policy": setting.policy} if changed.router else {}
    if setting.clusterer:
        routing["decisions"] = decisions(setting.clusterer, setting.prompts, setting.seed)
    options = routing | {"setup": setup(setting), "seed": setting.seed}
    parts = [simulation.simulate(changed, n, **options).requests for n in users or loads(setting)]
    return pd.concat(parts, ignore_index=True)


@lru_cache(maxsize=512)
def summary(setting: Setting) -> pd.DataFrame:
    """Summarise a simulated setting (`metrics.summarise`), one row per load; cached."""
    return metrics.summarise(simulate(setting))


@lru_cache(maxsize=32)
def decisions(clusterer: str, prompts: str | None = None, seed: int = 0) -> tuple:
    """Route held-back prompts with a clusterer; cached.

    Returns:
        Decisions (`routing.compiled.Row`) of the paper's router, trained with the clusterer.
    """
    from threadpoolctl import threadpool_limits  # slow to import, like scikit-learn below

    from erlab.prompts import datasets
    from erlab.routing import PromptRouter

    rows = datasets.load(prompts, seed=seed).to_pandas()
    train, held_back = (rows["text"][rows["split"] == split].tolist() for split in ("train", "held_back"))
    with threadpool_limits(1):  # more OpenMP threads spin on busy cores
        routed = PromptRouter(the_paper.GPUS, clusterer=clusterer, seed=seed).fit(train).route(held_back)
    return tuple(routed.row(i) for i in range(len(held_back)))


def label(setting: Setting) -> str:
    """Describe a setting in one line."""
    parts = [f"{setting.system}: {system(setting).title}"]
    if setting.kv_gib is not None:
        parts.append(f"KV {setting.kv_gib:g} GiB per GPU")
    if the_paper.SYSTEMS[setting.paper][setting.system].router:
        parts += [f"{setting.clusterer or 'equal'} clusters", setting.policy, f"gateway {setting.gateway_ms:g} ms"]
    return ", ".join(parts)


def picture(first: Setting | None, second: Setting | None = None) -> Figure:
    """Draw the curves of one or two settings over users, one panel per metric."""
    shown = [(setting, look) for setting, look in zip((first, second), _LOOKS) if setting]
    require(bool(shown), "first", "picture", "be a setting if second is None", first)
    tables = [summary(setting) for setting, _ in shown]
    with style.context():
        fig = style.figure(style.DOUBLE, 4.4)
        for ax, (column, name) in zip(fig.subplots(2, 2).flat, CURVES.items()):
            for (_, look), table in zip(shown, tables):
                values = table[column].to_numpy(float, na_value=float("nan"))
                ax.plot(table["users"], values, color=look.color, marker=look.marker, linestyle=look.dash)
            style.users_axis(ax, sorted({n for table in tables for n in table["users"]}))
            style.log_values(ax)
            ax.set_ylabel(name)
        style.legend(fig, [style.handle(look, label(setting)) for setting, look in shown], columns=1)
        style.note(fig, provenance(*(setting for setting, _ in shown)))
    return fig


_LOOKS = (style.Look("#D55E00", "o", "-"), style.Look("#0072B2", "s", (0, (4, 1.5))))  # first, second


def provenance(*settings: Setting) -> str:
    """Describe how the curves were obtained: machine, source of iteration times and commit."""
    names = {"measured": "measured H100 kernels", "roofline": "the roofline, the limit that no kernel beats"}
    sources = " and ".join(dict.fromkeys(names[step_source(s)] for s in settings))
    commit = (manifest.commit() or "unknown")[:7]
    return f"medians, simulated on a DGX H100; iteration times: {sources} · commit {commit}"


def numbers(*settings: Setting) -> pd.DataFrame:
    """Return the values of the curves at each setting's largest load, one column per setting."""
    names = {"users": "Concurrent users"} | CURVES
    columns = [summary(s).iloc[-1][list(names)].astype(float) for s in settings]
    return pd.DataFrame(columns, index=[label(s) for s in settings]).T.rename(index=names).round(3)


def what_it_takes(setting: Setting, users: int, ttft_s: float, tpot_ms: float, most: int = 32) -> pd.DataFrame:
    """Find the fewest GPUs that serve a load within latency limits.

    Every number of engines is tried in turn, so no scaling is assumed.

    Args:
        ttft_s: Limit of the 99th percentile of the time to first token in seconds, above 0.
        tpot_ms: Limit of the 99th percentile of the time per output token in ms, above 0.

    Returns:
        One row per tensor-parallel size: engines, GPUs, both percentiles, and the reason where there is no solution.
    """
    limits = beyond.LatencyLimits("given", ttft_s, tpot_ms)
    require(ttft_s > 0 and tpot_ms > 0, "limits", "what_it_takes", "be above 0", (ttft_s, tpot_ms))
    rows = []
    for size in SIZES:
        row = {"tensor parallelism": size, "engines": None, "GPUs": None, "p99 TTFT (s)": None, "p99 TPOT (ms)": None}
        try:
            for count in range(1, most // size + 1):
                requests = _simulated(replace(setting, tensor_parallel=size), users, count)
                if beyond.holds(requests, limits):
                    row |= {"engines": count, "GPUs": count * size}
                    row["p99 TTFT (s)"] = metrics.percentile(metrics.ttft(requests), 99)
                    row["p99 TPOT (ms)"] = metrics.percentile(metrics.tpot(requests), 99)
                    rows.append(row | {"why not": ""})
                    break
            else:
                rows.append(row | {"why not": f"not within the limits with {most} GPUs"})
        except ErlabError as e:
            rows.append(row | {"why not": str(e)})
    return pd.DataFrame(rows).astype({"engines": "Int64", "GPUs": "Int64"}).round(3)


def answer(table: pd.DataFrame) -> str:
    """Summarise the table of `what_it_takes` in a sentence."""
    if table["GPUs"].isna().all():
        return "No number of GPUs tried serves this load within these limits."
    best = table.loc[table["GPUs"].idxmin()]
    return f"GPUs needed: {best['GPUs']} (engines: {best['engines']}, GPUs per engine: {best['tensor parallelism']})."


@lru_cache(maxsize=256)
def _simulated(setting: Setting, users: int, count: int) -> pd.DataFrame:
    return simulate(setting, [users], count)


def spec(system: System) -> str:
    """Serialise a system as JSON for `from_spec`."""
    return json.dumps(asdict(system), indent=1)


def from_spec(text: str) -> System:
    """Create a system from the JSON of `spec`."""
    try:
        fields = json.loads(text)
        expert = fields["expert"]
        parts = {"model": Model(**expert["model"]), "precision": Precision(**expert["precision"])}
        return System(**fields | {"expert": Expert(**expert | parts)})
    except (ValueError, KeyError, TypeError) as e:
        raise ErlabError(f"Not a system as written by settings.spec: {type(e).__name__}: {e}") from None


def parameters(setting: Setting, other: Setting | None = None) -> str:
    """Serialise settings as JSON for ``papermill notebooks/explore.ipynb OUT.ipynb -f FILE``."""
    return json.dumps(asdict(setting) | {"other": asdict(other) if other else None}, indent=1)


def command(setting: Setting) -> str:
    """Return the `erlab reproduce` command closest to a setting.

    It runs notebook 08 for router systems and 04 for baselines.
    """
    if the_paper.SYSTEMS[setting.paper][setting.system].router:
        clusterers = [setting.clusterer] if setting.clusterer else []
        values = {"system": setting.system, "loads": [setting.users], "clusterers": clusterers}
        options = ["--only", "08"]
    else:
        values, options = {"papers": [setting.paper]}, ["--only", "04"]
    for name, value in values.items():
        options += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"]
    options += ["--seed", str(setting.seed)] if setting.seed else []
    options += ["--prompts", setting.prompts] if setting.prompts else []
    return shlex.join(["erlab", "reproduce", *options])


def save(folder: str | Path, setting: Setting, other: Setting | None = None) -> list[Path]:
    """Write parameters, system, curves and figure into a folder; return the files."""
    shown = [setting] + [other] * (other is not None)
    curves = pd.concat([summary(s).assign(setting=label(s)) for s in shown], ignore_index=True)
    contents = {
        "parameters.json": parameters(setting, other),
        "system.json": spec(system(setting)),
        "curves.csv": curves[["setting", "users", *CURVES]].to_csv(index=False),
    }
    contents |= {f"curves.{kind}": style.render(picture(setting, other), kind) for kind in ("png", "pdf")}
    return [textfiles.save(Path(folder) / name, content) for name, content in contents.items()]
