"""The claims ledger: each sentence of `paper.CLAIMS` tested on request records, with its value and verdict.

A claim that does not hold is a finding; one whose systems or loads aren't in the records is "not runnable here".
Comparisons are made at the loads that all of a claim's systems have, in each source (measured, simulated) for itself.
A verdict that too few resamples of its requests share, or that a repetition contradicts, is "within noise".

    from erlab import claims, records
    found = records.read("data/results/laptop/records")
    claims.save(claims.ledger(found), "data/results/laptop")
    claims.cells(found, "v2-ttft-8b")       # the numbers that one claim was computed from
"""

import functools
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from erlab import textfiles
from erlab.errors import ErlabError
from erlab.paper import CLAIMS, SYSTEMS, Claim
from erlab.results import confidence, metrics, selection, tables
from erlab.results.checks import CHECKS, Cells, Check, Unknown
from erlab.results.records import Records
from erlab.spec import require

HOLDS, FAILS, NOT_RUNNABLE = "holds", "does not hold", "not runnable here"
CLEAR, NOISE = "clear", "within noise"
COLUMNS = ["id", "paper", "statement", "source", "figure", "test", "tolerance", "value", "verdict"]
COLUMNS += ["confidence", "margin", "margin_low", "margin_high", "covers", "agree", "repeats"]
COLUMNS += ["basis", "reason", "assumptions", "rows"]
_VERSION = {system: version for version, systems in SYSTEMS.items() for system in systems}
_CLAIMS = {claim.id: claim for claim in CLAIMS}


@dataclass(frozen=True)
class Asked:
    """What claims are tested on: the runs, the summary of cells, each repetition's own (None without resamples), and a
    cell's bootstrap samples."""

    runs: pd.DataFrame
    cells: pd.DataFrame
    repeated: pd.DataFrame | None
    draws: Callable[[pd.Series], dict]

    def of(self, wanted: Callable[[pd.DataFrame], pd.Series]) -> "Asked":
        """The rows of all tables for which `wanted` is true."""
        return replace(self, **{n: t[wanted(t)] for n, t in vars(self).items() if isinstance(t, pd.DataFrame)})


def ledger(
    records: Records, only: Iterable[str] | None = None, resamples: int = confidence.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """A row a claim (of `only`, or all) and source that has any of its systems; it says why where that can't test it.

    COLUMNS: `margin` is how many times over the threshold is met (1 or more holds), from margin_low to margin_high in
    95 % of `resamples` bootstrap samples (see `confidence`); `covers` says in words what was drawn anew for them. `agree`
    is the share of them with the same verdict, and `repeats` in how many repetitions alone it is the same ("3 of 3"; NA
    where nothing was repeated). `confidence` is clear where at least 95 % agree and so does every repetition, else
    within noise; NA without resamples.
    """
    chosen, requests = _chosen(only), _requests(records)
    runs = requests[[*metrics.CELL, "run_id", "machine"]].drop_duplicates()
    runs = runs.assign(
        marked=runs["run_id"].isin(selection.marked(records)), model=selection.of_attached(records, runs)
    )
    used = sorted({metric for claim in chosen for metric in CHECKS[claim.id].metrics})
    # Both are cut often: of few columns, and of plain types, of which pandas cuts all columns at once.
    table = _summary(records)[[*metrics.CELL, "requests", "failed", "runs", *used]]
    asked = Asked(_plain(runs), _plain(table), None, lambda cell: {})
    if resamples:
        requests = requests.assign(repeat=confidence.repeats(requests))
        repeated = metrics.summarise(requests, [*metrics.CELL, "repeat"])
        draws = _draws(requests, repeated, resamples, seed)
        asked = replace(asked, repeated=repeated[[*metrics.CELL, "repeat", *used]], draws=draws)
    rows = [row for claim in chosen for row in _tested(claim, asked)]
    return pd.DataFrame(rows, columns=COLUMNS).convert_dtypes()


def rows(records: Records, claim: str) -> Records:
    """The records that a claim's verdict is computed from: those of its systems at the loads that all of them have."""
    requests, runs = _requests(records), records.runs
    at = pd.MultiIndex.from_frame(cells(records, claim)[["source", "system", "users"]])
    mine = requests[requests["paper"] == _CLAIMS[claim].paper]
    mine = mine[pd.MultiIndex.from_frame(mine[["source", "system", "users"]]).isin(at)]
    return Records(mine, runs[runs["run_id"].isin(mine["run_id"].unique())] if "run_id" in runs else runs)


def cells(records: Records, claim: str) -> pd.DataFrame:
    """What a claim's verdict is computed from: a row a (source, system, users), its requests and the metrics used."""
    (found,), check = _chosen([claim]), CHECKS[claim]
    table = _summary(records)
    mine = table[table["system"].isin(check.systems) & (table["paper"] == found.paper)]
    ended = mine[mine["requests"] > mine["failed"]].groupby(["source", "users"])["system"].nunique()
    shared = ended.index[ended == len(check.systems)]
    mine = mine[pd.MultiIndex.from_frame(mine[["source", "users"]]).isin(shared)]
    columns = ["source", "system", "users", "requests", "failed", "runs", *check.metrics]
    return mine[columns].sort_values(["source", "users", "system"], ignore_index=True)


def sureness(row) -> str:
    """A row's verdict with how sure it is, in words: ``holds, within noise (margin 1.05, 0.67 to 1.40)``."""
    if pd.isna(row.confidence):
        return row.verdict
    noise = f", {NOISE}" if row.confidence == NOISE else ""
    repeats = "" if pd.isna(row.repeats) else f"; the same in {row.repeats} repetitions"
    spread = f"{row.margin_low:.2f} to {row.margin_high:.2f} over {row.covers}"
    return f"{row.verdict}{noise} (margin {row.margin:.2f}, {spread}{repeats})"


def shown(found: pd.DataFrame) -> pd.DataFrame:
    """The ledger to be read: claim, statement, verdict with how sure it is, what was found, on what (or why not)."""
    table = found.assign(
        verdict=[sureness(row) for row in found.itertuples()],
        statement=found["statement"] + " (" + found["source"] + ")",
        on=found["basis"].astype(object).fillna(found["reason"]),
    )
    columns = {"id": "claim", "value": "found"}
    return table.rename(columns=columns)[["claim", "statement", "test", "tolerance", "found", "verdict", "on"]]


def save(found: pd.DataFrame, folder: str | Path, records: Records | None = None) -> list[Path]:
    """Write the ledger as claims.md and claims.csv, and with records each claim's `cells` as claims/ID.csv."""
    folder = Path(folder)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in found["verdict"].value_counts().items())
    shown = found.round({"margin": 2, "margin_low": 2, "margin_high": 2, "agree": 3})
    text = f"# Claims\n\n{counts}.\n\n{tables.markdown(shown)}"
    contents = {"claims.md": text, "claims.csv": found.to_csv(index=False)}
    for claim in found["id"].unique() if records else ():
        contents[f"claims/{claim}.csv"] = cells(records, claim).to_csv(index=False)
    return [textfiles.save(folder / name, content) for name, content in contents.items()]


def read(folder: str | Path) -> pd.DataFrame:
    """The ledger that `save` wrote into a folder."""
    file = Path(folder) / "claims.csv"
    return pd.read_csv(file, keep_default_na=False, na_values=[""], float_precision="round_trip").convert_dtypes()


def select(version: str | None = None, only: Iterable[str] | None = None) -> list[str]:
    """The claims of a version of the paper (None: of both), of `only` where that is given."""
    versions = list(dict.fromkeys(claim.paper for claim in CLAIMS))
    require(version in (None, *versions), "paper", "claims", f"be one of {', '.join(versions)}", version)
    return [claim.id for claim in _chosen(only) if version in (None, claim.paper)]


def _chosen(only: Iterable[str] | None) -> list[Claim]:
    chosen = list(_CLAIMS) if only is None else list(only)
    for claim in chosen:
        require(claim in _CLAIMS, "id", "claims", f"be one of {', '.join(_CLAIMS)}", claim)
    return [_CLAIMS[claim] for claim in chosen]


def _requests(records: Records) -> pd.DataFrame:
    """The requests to Table I's systems; where records don't name the paper's version, the systems' names do."""
    try:
        requests = selection.systems(records)
    except ErlabError:
        requests = records.requests.iloc[:0]
    return requests.assign(paper=requests["paper"].fillna(requests["system"].map(_VERSION)))


def _draws(requests: pd.DataFrame, repeated: pd.DataFrame, resamples: int, seed: int) -> Callable[[pd.Series], dict]:
    """A function that gives a cell's bootstrap samples: the same for every claim, whichever are tested."""
    cells = requests[[*metrics.CELL, "repeat"]].join(confidence.timed(requests)).groupby(metrics.CELL)
    runs = repeated.groupby(metrics.CELL)["output_throughput"]

    @functools.cache
    def drawn(key: tuple) -> dict:
        rng = np.random.default_rng([seed, zlib.crc32(repr(key).encode())])
        throughputs = runs.get_group(key).to_numpy(float, na_value=np.nan)
        repetitions = confidence.repetitions(len(throughputs), resamples, seed)
        return confidence.resample(cells.get_group(key), throughputs, repetitions, rng)

    return lambda cell: drawn(tuple(cell[name] for name in metrics.CELL))


@functools.lru_cache(maxsize=2)
def _summary(records: Records) -> pd.DataFrame:
    """Of all that claims are about; kept, since each of them asks for it."""
    return metrics.summarise(_requests(records))


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The same values as objects, unknown ones as None."""
    return table.astype(object).where(table.notna(), None)


def _tested(claim: Claim, asked: Asked) -> list[dict]:
    check = CHECKS[claim.id]
    mine = asked.of(lambda t: t["system"].isin(check.systems) & (t["paper"] == claim.paper))
    sources = sorted(mine.cells["source"].unique())
    found = [_judged(check, mine.of(lambda t, source=source: t["source"] == source), source) for source in sources]
    found = found or [_not_runnable(f"no records of {_names(check.systems)}")]
    common = {"id": claim.id, "paper": claim.paper, "statement": claim.statement, "source": claim.source}
    common |= {"figure": check.figure, "test": check.words, "tolerance": check.tolerance}
    common |= {"assumptions": _names(check.assumptions)}
    return [common | row for row in found]


def _judged(check: Check, asked: Asked, source: str) -> dict:
    """The verdict on one source's cells, and how sure it is."""
    ended = asked.cells[asked.cells["requests"] > asked.cells["failed"]]
    loads = {s: set(ended.loc[ended["system"] == s, "users"]) for s in check.systems}
    if absent := [s for s in check.systems if not loads[s]]:
        return _not_runnable(f"{source}: no finished requests of {_names(absent)}")
    common = set.intersection(*loads.values())
    if len(common) < check.least_loads:
        shared = f"loads that {_names(check.systems)} share, has {len(common)}"
        return _not_runnable(f"{source}: needs {check.least_loads} {shared}")
    asked = asked.of(lambda t: t["users"].isin(common))
    used, runs = asked.cells.sort_values("users"), asked.runs
    answered = runs.drop_duplicates("system").dropna(subset="model")
    if (alike := answered[answered["model"].duplicated(keep=False)]).size:
        model = alike["model"].iloc[0]
        alike = alike.loc[alike["model"] == model, "system"].sort_values()
        return _not_runnable(f"{source}: one model, {model}, answered for {' and '.join(alike)} alike")
    try:
        with np.errstate(all="ignore"):  # nothing was received: infinite or no ratios
            margins, value = check.judge(_drawn(check, used, asked.draws))
    except Unknown as e:
        return _not_runnable(f"{source}: {e}")
    holds, total, failed = bool(margins[0] >= 1), int(used["requests"].sum()), int(used["failed"].sum())
    if failed:
        value += f" ({failed} of {total} requests failed and count in no latency)"
    basis = selection.basis(source, runs["machine"]) + selection.by_one(runs["model"])
    if warning := selection.warning(runs["run_id"], runs.loc[runs["marked"], "run_id"]):
        basis += f"; {warning}"
    found = {"value": value, "verdict": HOLDS if holds else FAILS, "basis": basis, "rows": total}
    return found | {"margin": float(margins[0])} | _confidence(check, asked, holds, margins[1:])


def _drawn(check: Check, used: pd.DataFrame, draws: Callable) -> Cells:
    """The observed cells (ordered by load), each followed by its bootstrap samples."""
    found = {(metric, system): [] for metric in check.metrics for system in check.systems}
    for _, cell in used.iterrows():
        drawn = draws(cell)
        for metric in check.metrics:
            found[metric, cell["system"]].append(np.append(_number(cell[metric]), drawn.get(metric, [])))
    return Cells(_loads(used), {name: np.stack(loads, axis=-1) for name, loads in found.items()})


def _confidence(check: Check, asked: Asked, holds: bool, margins: np.ndarray) -> dict:
    if not len(margins):
        return {}
    agree = float(np.mean((margins >= 1) == holds))
    low, high = _range(margins)
    same = _repeated(check, asked.repeated, holds)
    sure = agree >= confidence.LEVEL and all(same)
    told = f"{sum(same)} of {len(same)}" if same else pd.NA
    spread = {"margin_low": float(low), "margin_high": float(high), "covers": _covers(asked.cells["runs"])}
    return spread | {"agree": agree, "repeats": told, "confidence": CLEAR if sure else NOISE}


def _range(margins: np.ndarray) -> np.ndarray:
    """Between which two the middle `confidence.LEVEL` of the margins lie; a bound between infinite ones (where tokens
    came at once, in no time at all) is infinite too, which numpy's interpolation would make unknown."""
    tail = (1 - confidence.LEVEL) / 2
    with np.errstate(invalid="ignore"):
        bounds = np.quantile(margins, [tail, 1 - tail])
    return bounds if np.isnan(margins).any() else np.where(np.isnan(bounds), np.inf, bounds)


def _covers(runs: pd.Series) -> str:
    """What the bootstrap of cells with so many runs each draws anew, in words."""
    least, most = int(runs.min()), int(runs.max())
    if most == 1:
        return "the requests of one run a load"
    return f"{least if least == most else f'{least} to {most}'} runs a load and their requests"


def _repeated(check: Check, repeated: pd.DataFrame, holds: bool) -> list[bool]:
    """Whether each repetition that all cells have gives the same verdict alone; nothing where none was repeated."""
    least = repeated.groupby(["system", "users"])["repeat"].max().min()
    if least < 1:
        return []
    table = repeated[repeated["repeat"] <= least].sort_values(["users", "repeat"])
    values = {
        (metric, system): rows[metric].map(_number).to_numpy(float).reshape(-1, least + 1).T
        for system, rows in table.groupby("system")
        for metric in check.metrics
    }
    try:
        with np.errstate(all="ignore"):
            margins, _ = check.judge(Cells(_loads(table), values))
    except Unknown:
        return []
    return [bool((margin >= 1) == holds) for margin in margins]


def _loads(rows: pd.DataFrame) -> tuple[int, ...]:
    return tuple(sorted(int(n) for n in rows["users"].unique()))


def _number(value) -> float:
    return np.nan if pd.isna(value) else float(value)


def _not_runnable(reason: str) -> dict:
    return {"verdict": NOT_RUNNABLE, "reason": reason, "rows": 0}


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
