"""What notebook `explore` tries out: one system of the paper with parts of it changed, on the simulated DGX H100.

A `Setting` is data; the functions here turn it into curves, a picture, the GPUs it would take, and files that make it
again. `erlab.explore.panel` puts widgets in front of them.

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
from erlab.simulation.system import SIMULATED_POLICIES
from erlab.spec import FP8, FP16, INT8, Expert, Model, Precision, System, require

PRECISIONS = {precision.name: precision for precision in (FP16, FP8, INT8)}
SIZES = (1, 2, 4, 8)  # tensor parallelism
POLICIES = SIMULATED_POLICIES
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
    """A system of the paper, and what is changed in it; None leaves the paper's or the study's value.

    `users`: the largest load. `kv_gib`: KV cache on each GPU. `clusterer`: what sorts `prompts` (as in
    `datasets.load`; None: the project's own) into eight clusters; None: clusters of equal size. `gateway_ms`: what the
    gateway takes. `steps`: measured (kernels) or roofline (the limit); None: measured where that can be had.

    Raises ErlabError for a value that is not allowed, and for a router's options on a baseline.
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
        one_of("policy", POLICIES)
        one_of("steps", (None, "measured", "roofline"))
        whole = isinstance(self.users, int) and self.users >= 1
        require(whole, "users", "a setting", "be a whole number from 1", self.users)
        require(self.gateway_ms >= 0, "gateway_ms", "a setting", "be at least 0", self.gateway_ms)
        if not the_paper.SYSTEMS[self.paper][self.system].router:
            require(self.clusterer is None, "clusterer", f"baseline {self.system}", "be None", self.clusterer)
            require(self.policy == "nearest", "policy", f"baseline {self.system}", "be nearest", self.policy)


def step_source(setting: Setting) -> str:
    """Where iteration times come from: measured or roofline."""
    return setting.steps or ("roofline" if components.unavailable() else "measured")


def setup(setting: Setting) -> simulation.Setup:
    """The simulated machine."""
    steps = step_source(setting)
    era = None if steps == "roofline" else simulation.Setup.era
    return simulation.Setup(steps=steps, era=era, gateway=setting.gateway_ms / 1e3)


def system(setting: Setting) -> System:
    """The changed system on eight GPUs; ErlabError where it cannot be served there."""
    found = the_paper.SYSTEMS[setting.paper][setting.system]
    expert = found.expert
    if setting.precision:
        expert = replace(expert, precision=PRECISIONS[setting.precision])
    if setting.tensor_parallel is not None:
        size = setting.tensor_parallel
        expert = replace(expert, tensor_parallel=size)
        require(the_paper.GPUS % size == 0, "tensor_parallel", "a setting", f"divide {the_paper.GPUS} GPUs", size)
        found = replace(found, count=the_paper.GPUS // size)
    found = replace(found, expert=expert)
    machine = setup(setting)
    machine.pool(expert)
    if setting.kv_gib is None:
        return found
    left = free_gib(expert, gpu(machine.gpu), machine.reserve_gib) / expert.tensor_parallel
    allowed = f"be at most the {left:.2f} GiB that weights and reserve leave on each {machine.gpu}"
    require(setting.kv_gib <= left, "kv_gib", "a setting", allowed, setting.kv_gib)
    return assumptions.with_kv_pool(found, setting.kv_gib)


def loads(setting: Setting) -> list[int]:
    """The paper's loads below `users`, and `users`."""
    return [n for n in the_paper.LOADS if n < setting.users] + [setting.users]


def simulate(setting: Setting, users: Sequence[int] | None = None, count: int | None = None) -> pd.DataFrame:
    """Request records of the setting under its `loads`, or of `users`; with `count` engines where that is given."""
    found = system(setting)
    if count is not None:
        found = replace(found, count=count)
    routing = {"policy": setting.policy} if found.router else {}
    if setting.clusterer:
        routing["decisions"] = decisions(setting.clusterer, setting.prompts, setting.seed)
    options = routing | {"setup": setup(setting), "seed": setting.seed}
    parts = [simulation.simulate(found, n, **options).requests for n in users or loads(setting)]
    return pd.concat(parts, ignore_index=True)


@lru_cache(maxsize=512)
def summary(setting: Setting) -> pd.DataFrame:
    """`metrics.summarise` of the setting, a row a load; kept, so that a setting seen before costs nothing."""
    return metrics.summarise(simulate(setting))


@lru_cache(maxsize=32)
def decisions(clusterer: str, prompts: str | None = None, seed: int = 0) -> tuple:
    """What the paper's recipe with this clusterer decides on held-back prompts (rows of `routing.compiled.Row`)."""
    from threadpoolctl import threadpool_limits

    from erlab.prompts import datasets
    from erlab.routing import PromptRouter

    rows = datasets.load(prompts, seed=seed).to_pandas()
    train, held_back = (rows["text"][rows["split"] == split].tolist() for split in ("train", "held_back"))
    with threadpool_limits(1):  # OpenMP's threads spin where cores are busy
        routing = PromptRouter(the_paper.GPUS, clusterer=clusterer, seed=seed).fit(train).route(held_back)
    return tuple(routing.row(i) for i in range(len(held_back)))


def label(setting: Setting) -> str:
    """One line that says all that is not as in the paper."""
    parts = [f"{setting.system}: {system(setting).title}"]
    if setting.kv_gib is not None:
        parts.append(f"KV {setting.kv_gib:g} GiB a GPU")
    if the_paper.SYSTEMS[setting.paper][setting.system].router:
        parts += [f"{setting.clusterer or 'equal'} clusters", setting.policy, f"gateway {setting.gateway_ms:g} ms"]
    return ", ".join(parts)


def picture(first: Setting | None, second: Setting | None = None) -> Figure:
    """The curves over users of one setting (solid lines), of another (dashed), or of both; one panel a metric."""
    shown = [(setting, look) for setting, look in zip((first, second), _LOOKS) if setting]
    require(bool(shown), "first", "picture", "be a setting where second is none", first)
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


_LOOKS = (style.Look("#D55E00", "o", "-"), style.Look("#0072B2", "s", (0, (4, 1.5))))  # the first's, the second's


def provenance(*settings: Setting) -> str:
    """The line under a picture: on what, from which iteration times, at which commit."""
    names = {"measured": "measured H100 kernels", "roofline": "the roofline, the limit that no kernel beats"}
    sources = " and ".join(dict.fromkeys(names[step_source(s)] for s in settings))
    commit = (manifest.commit() or "unknown")[:7]
    return f"medians, simulated on a DGX H100; iteration times: {sources} · commit {commit}"


def numbers(*settings: Setting) -> pd.DataFrame:
    """The curves' values at each setting's largest load, a column a setting."""
    names = {"users": "Concurrent users"} | CURVES
    columns = {label(s): summary(s).iloc[-1][list(names)].astype(float) for s in settings}
    return pd.DataFrame(columns).rename(index=names).round(3)


def what_it_takes(setting: Setting, users: int, ttft_s: float, tpot_ms: float, most: int = 32) -> pd.DataFrame:
    """The fewest GPUs, up to `most`, that hold `users` closed-loop users with 99th percentiles within the limits.

    A row a tensor-parallel size: engines, GPUs, both percentiles there, and why not where there is no such number.
    All else is the setting's. Every number of engines is tried in turn, so nothing is assumed of how they add up.
    """
    limits = beyond.LatencyLimits("asked for", ttft_s, tpot_ms)
    require(ttft_s > 0 and tpot_ms > 0, "limits", "what_it_takes", "be above 0", (ttft_s, tpot_ms))
    rows = []
    for size in SIZES:
        row = {"tensor parallelism": size, "engines": None, "GPUs": None, "p99 TTFT (s)": None, "p99 TPOT (ms)": None}
        try:
            for count in range(1, most // size + 1):
                found = _simulated(replace(setting, tensor_parallel=size), users, count)
                if beyond.holds(found, limits):
                    row |= {"engines": count, "GPUs": count * size}
                    row["p99 TTFT (s)"] = metrics.percentile(metrics.ttft(found), 99)
                    row["p99 TPOT (ms)"] = metrics.percentile(metrics.tpot(found), 99)
                    rows.append(row | {"why not": ""})
                    break
            else:
                rows.append(row | {"why not": f"not within the limits with {most} GPUs"})
        except ErlabError as e:
            rows.append(row | {"why not": str(e)})
    return pd.DataFrame(rows).astype({"engines": "Int64", "GPUs": "Int64"}).round(3)


def answer(found: pd.DataFrame) -> str:
    """What `what_it_takes` found, as a sentence."""
    if found["GPUs"].isna().all():
        return "No number of GPUs tried holds this load within these limits."
    best = found.loc[found["GPUs"].idxmin()]
    return f"GPUs needed: {best['GPUs']} (engines: {best['engines']}, each on {best['tensor parallelism']})."


@lru_cache(maxsize=256)
def _simulated(setting: Setting, users: int, count: int) -> pd.DataFrame:
    return simulate(setting, [users], count)


def spec(of: System) -> str:
    """A system as JSON, of which `from_spec` makes it again."""
    return json.dumps(asdict(of), indent=1)


def from_spec(text: str) -> System:
    """The system that `spec` wrote; ErlabError where the text is no such JSON or contradicts itself."""
    try:
        found = json.loads(text)
        expert = found["expert"]
        parts = {"model": Model(**expert["model"]), "precision": Precision(**expert["precision"])}
        return System(**found | {"expert": Expert(**expert | parts)})
    except (ValueError, KeyError, TypeError) as e:
        raise ErlabError(f"This is no system as explore.spec writes it: {type(e).__name__}: {e}") from None


def parameters(setting: Setting, other: Setting | None = None) -> str:
    """The settings as JSON, for ``papermill notebooks/explore.ipynb OUT.ipynb -f FILE``."""
    return json.dumps(asdict(setting) | {"other": asdict(other) if other else None}, indent=1)


def command(setting: Setting) -> str:
    """The `erlab reproduce` line for what the study's own notebooks know of a setting: 08 for a router system, 04 for
    a baseline."""
    if the_paper.SYSTEMS[setting.paper][setting.system].router:
        clusterers = [setting.clusterer] if setting.clusterer else []
        values = {"system": setting.system, "loads": [setting.users], "clusterers": clusterers}
        given = ["--only", "08"]
    else:
        values, given = {"papers": [setting.paper]}, ["--only", "04"]
    for name, value in values.items():
        given += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"]
    given += ["--seed", str(setting.seed)] if setting.seed else []
    given += ["--prompts", setting.prompts] if setting.prompts else []
    return shlex.join(["erlab", "reproduce", *given])


def save(folder: str | Path, setting: Setting, other: Setting | None = None) -> list[Path]:
    """Write the setting's parameters, spec, curves and picture into `folder`; return the files."""
    shown = [setting] + [other] * (other is not None)
    curves = pd.concat([summary(s).assign(setting=label(s)) for s in shown], ignore_index=True)
    contents = {
        "parameters.json": parameters(setting, other),
        "system.json": spec(system(setting)),
        "curves.csv": curves[["setting", "users", *CURVES]].to_csv(index=False),
    }
    contents |= {f"curves.{kind}": style.render(picture(setting, other), kind) for kind in ("png", "pdf")}
    return [textfiles.save(Path(folder) / name, content) for name, content in contents.items()]
