"""The claims ledger: value and verdict of each claim.

The claims of `paper.CLAIMS` are tested on request records, each by its entry in `checks.CHECKS`. A claim that does not
hold is a finding; a claim whose systems or loads are missing is "not runnable here". Each source (measured, simulated)
is judged separately, at the loads that all systems of a claim share. A verdict is "within noise" if too few bootstrap
samples agree with it or one repetition contradicts it.

    from erlab.results import claims, records
    study = records.read("data/results/laptop/records")
    claims.save(claims.ledger(study), "data/results/laptop")
    claims.cells(study, "v2-ttft-8b")       # the metrics behind one verdict
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
from erlab.results.checks import CHECKS, Cells, ClaimCheck, Unknown
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
class Evidence:
    """Data that claims are tested on.

    Attributes:
        cells: `metrics.summarise` of all cells.
        repeated: The same per repetition; None without resamples.
        draws: Function from a cell to its bootstrap samples.
    """

    runs: pd.DataFrame
    cells: pd.DataFrame
    repeated: pd.DataFrame | None
    draws: Callable[[pd.Series], dict]

    def where(self, condition: Callable[[pd.DataFrame], pd.Series]) -> "Evidence":
        """Return the rows of all tables that meet a condition."""
        return replace(self, **{n: t[condition(t)] for n, t in vars(self).items() if isinstance(t, pd.DataFrame)})


def ledger(
    records: Records, only: Iterable[str] | None = None, resamples: int = confidence.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Test claims on request records.

    Args:
        resamples: Bootstrap samples; 0 for none.

    Returns:
        One row per claim and source that has any of its systems, with the columns `COLUMNS`; `reason` says why a claim
        is not runnable. `margin` is the ratio by which the threshold is met (1 or more holds), `margin_low` to
        `margin_high` its 95 % bootstrap interval (see `confidence`), and `covers` what the interval covers. `agree` is
        the share of bootstrap samples with the same verdict, `repeats` the repetitions with the same verdict ("3 of 3";
        NA without repetitions). `confidence` is "clear" if `agree` is at least 95 % and all repetitions agree, else
        "within noise"; NA without resamples.
    """
    chosen, requests = _chosen(only), _requests(records)
    runs = requests[[*metrics.CELL, "run_id", "machine"]].drop_duplicates()
    runs = runs.assign(
        marked=runs["run_id"].isin(selection.marked(records)), model=selection.of_attached(records, runs)
    )
    used = sorted({metric for claim in chosen for metric in CHECKS[claim.id].metrics})
    # Filtered often: pandas is fast for few columns of plain types.
    table = _summary(records)[[*metrics.CELL, "requests", "failed", "runs", *used]]
    evidence = Evidence(_plain(runs), _plain(table), None, lambda cell: {})
    if resamples:
        requests = requests.assign(repeat=confidence.repeats(requests))
        repeated = metrics.summarise(requests, [*metrics.CELL, "repeat"])
        draws = _draws(requests, repeated, resamples, seed)
        evidence = replace(evidence, repeated=repeated[[*metrics.CELL, "repeat", *used]], draws=draws)
    rows = [row for claim in chosen for row in _test(claim, evidence)]
    return pd.DataFrame(rows, columns=COLUMNS).convert_dtypes()


def rows(records: Records, claim: str) -> Records:
    """Return the records behind a claim's verdict.

    These are the records of its systems at the loads that all of them have.
    """
    requests, runs = _requests(records), records.runs
    used = pd.MultiIndex.from_frame(cells(records, claim)[["source", "system", "users"]])
    requests = requests[requests["paper"] == _CLAIMS[claim].paper]
    requests = requests[pd.MultiIndex.from_frame(requests[["source", "system", "users"]]).isin(used)]
    return Records(requests, runs[runs["run_id"].isin(requests["run_id"].unique())] if "run_id" in runs else runs)


def cells(records: Records, claim: str) -> pd.DataFrame:
    """Return the metrics behind a claim's verdict, one row per (source, system, users)."""
    (tested,), check = _chosen([claim]), CHECKS[claim]
    table = _summary(records)
    table = table[table["system"].isin(check.systems) & (table["paper"] == tested.paper)]
    ended = table[table["requests"] > table["failed"]].groupby(["source", "users"])["system"].nunique()
    shared = ended.index[ended == len(check.systems)]
    table = table[pd.MultiIndex.from_frame(table[["source", "users"]]).isin(shared)]
    columns = ["source", "system", "users", "requests", "failed", "runs", *check.metrics]
    return table[columns].sort_values(["source", "users", "system"], ignore_index=True)


def verdict_text(row) -> str:
    """Return verdict and confidence of a ledger's row as text.

    For example ``holds, within noise (margin 1.05, 0.67 to 1.40 over …)``.
    """
    if pd.isna(row.confidence):
        return row.verdict
    noise = f", {NOISE}" if row.confidence == NOISE else ""
    repeats = "" if pd.isna(row.repeats) else f"; the same in {row.repeats} repetitions"
    spread = f"{row.margin_low:.2f} to {row.margin_high:.2f} over {row.covers}"
    return f"{row.verdict}{noise} (margin {row.margin:.2f}, {spread}{repeats})"


def shown(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a ledger that are shown to readers."""
    table = verdicts.assign(
        verdict=[verdict_text(row) for row in verdicts.itertuples()],
        statement=verdicts["statement"] + " (" + verdicts["source"] + ")",
        on=verdicts["basis"].astype(object).fillna(verdicts["reason"]),
    )
    columns = {"id": "claim", "value": "found"}
    return table.rename(columns=columns)[["claim", "statement", "test", "tolerance", "found", "verdict", "on"]]


def save(verdicts: pd.DataFrame, folder: str | Path, records: Records | None = None) -> list[Path]:
    """Write a ledger as claims.md and claims.csv.

    With records, also write each claim's `cells` as claims/ID.csv.
    """
    folder = Path(folder)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in verdicts["verdict"].value_counts().items())
    rounded = verdicts.round({"margin": 2, "margin_low": 2, "margin_high": 2, "agree": 3})
    text = f"# Claims\n\n{counts}.\n\n{tables.markdown(rounded)}"
    contents = {"claims.md": text, "claims.csv": verdicts.to_csv(index=False)}
    for claim in verdicts["id"].unique() if records else ():
        contents[f"claims/{claim}.csv"] = cells(records, claim).to_csv(index=False)
    return [textfiles.save(folder / name, content) for name, content in contents.items()]


def read(folder: str | Path) -> pd.DataFrame:
    """Read the ledger that `save` wrote into a folder."""
    file = Path(folder) / "claims.csv"
    return pd.read_csv(file, keep_default_na=False, na_values=[""], float_precision="round_trip").convert_dtypes()


def select(version: str | None = None, only: Iterable[str] | None = None) -> list[str]:
    """Return the ids of a version's claims, out of `only`."""
    versions = list(dict.fromkeys(claim.paper for claim in CLAIMS))
    require(version in (None, *versions), "paper", "claims", f"be one of {', '.join(versions)}", version)
    return [claim.id for claim in _chosen(only) if version in (None, claim.paper)]


def _chosen(only: Iterable[str] | None) -> list[Claim]:
    chosen = list(_CLAIMS) if only is None else list(only)
    for claim in chosen:
        require(claim in _CLAIMS, "id", "claims", f"be one of {', '.join(_CLAIMS)}", claim)
    return [_CLAIMS[claim] for claim in chosen]


def _requests(records: Records) -> pd.DataFrame:
    """Return requests to Table I's systems; names imply missing versions."""
    try:
        requests = selection.systems(records)
    except ErlabError:
        requests = records.requests.iloc[:0]
    return requests.assign(paper=requests["paper"].fillna(requests["system"].map(_VERSION)))


def _draws(requests: pd.DataFrame, repeated: pd.DataFrame, resamples: int, seed: int) -> Callable[[pd.Series], dict]:
    """Return a function from a cell to its bootstrap samples.

    The samples do not depend on the claims that are tested.
    """
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
    """Summarise the requests of all claims, cached."""
    return metrics.summarise(_requests(records))


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Convert a table to objects, with None for unknown values."""
    return table.astype(object).where(table.notna(), None)


def _test(claim: Claim, evidence: Evidence) -> list[dict]:
    check = CHECKS[claim.id]
    evidence = evidence.where(lambda t: t["system"].isin(check.systems) & (t["paper"] == claim.paper))
    sources = sorted(evidence.cells["source"].unique())
    rows = [_judge(check, evidence.where(lambda t, name=name: t["source"] == name), name) for name in sources]
    rows = rows or [_not_runnable(f"no records of {_names(check.systems)}")]
    common = {"id": claim.id, "paper": claim.paper, "statement": claim.statement, "source": claim.source}
    common |= {"figure": check.figure, "test": check.words, "tolerance": check.tolerance}
    common |= {"assumptions": _names(check.assumptions)}
    return [common | row for row in rows]


def _judge(check: ClaimCheck, evidence: Evidence, source: str) -> dict:
    """Return the verdict and its confidence for one source."""
    ended = evidence.cells[evidence.cells["requests"] > evidence.cells["failed"]]
    loads = {s: set(ended.loc[ended["system"] == s, "users"]) for s in check.systems}
    if absent := [s for s in check.systems if not loads[s]]:
        return _not_runnable(f"{source}: no finished requests of {_names(absent)}")
    common = set.intersection(*loads.values())
    if len(common) < check.least_loads:
        shared = f"loads that {_names(check.systems)} share, has {len(common)}"
        return _not_runnable(f"{source}: needs {check.least_loads} {shared}")
    evidence = evidence.where(lambda t: t["users"].isin(common))
    used, runs = evidence.cells.sort_values("users"), evidence.runs
    answered = runs.drop_duplicates("system").dropna(subset="model")
    if (alike := answered[answered["model"].duplicated(keep=False)]).size:
        model = alike["model"].iloc[0]
        alike = alike.loc[alike["model"] == model, "system"].sort_values()
        return _not_runnable(f"{source}: one model, {model}, answered for {' and '.join(alike)} alike")
    try:
        with np.errstate(all="ignore"):  # zero times give infinite or undefined ratios
            margins, value = check.judge(_with_draws(check, used, evidence.draws))
    except Unknown as e:
        return _not_runnable(f"{source}: {e}")
    holds, total, failed = bool(margins[0] >= 1), int(used["requests"].sum()), int(used["failed"].sum())
    if failed:
        value += f" ({failed} of {total} requests failed and count in no latency)"
    basis = selection.basis(source, runs["machine"]) + selection.by_one(runs["model"])
    if warning := selection.warning(runs["run_id"], runs.loc[runs["marked"], "run_id"]):
        basis += f"; {warning}"
    verdict = {"value": value, "verdict": HOLDS if holds else FAILS, "basis": basis, "rows": total}
    return verdict | {"margin": float(margins[0])} | _confidence(check, evidence, holds, margins[1:])


def _with_draws(check: ClaimCheck, used: pd.DataFrame, draws: Callable) -> Cells:
    """Return the observed cells, each followed by its bootstrap samples."""
    values = {(metric, system): [] for metric in check.metrics for system in check.systems}
    for _, cell in used.iterrows():
        samples = draws(cell)
        for metric in check.metrics:
            values[metric, cell["system"]].append(np.append(_number(cell[metric]), samples.get(metric, [])))
    return Cells(_loads(used), {name: np.stack(loads, axis=-1) for name, loads in values.items()})


def _confidence(check: ClaimCheck, evidence: Evidence, holds: bool, margins: np.ndarray) -> dict:
    if not len(margins):
        return {}
    agree = float(np.mean((margins >= 1) == holds))
    low, high = _interval(margins)
    same = _repeats_agree(check, evidence.repeated, holds)
    clear = agree >= confidence.LEVEL and all(same)
    repeats = f"{sum(same)} of {len(same)}" if same else pd.NA
    interval = {"margin_low": float(low), "margin_high": float(high), "covers": _covers(evidence.cells["runs"])}
    return interval | {"agree": agree, "repeats": repeats, "confidence": CLEAR if clear else NOISE}


def _interval(margins: np.ndarray) -> np.ndarray:
    """Compute the central bootstrap interval of the margins.

    A bound between infinite margins (all tokens received at once) is infinite; numpy's interpolation gives NaN there.
    """
    tail = (1 - confidence.LEVEL) / 2
    with np.errstate(invalid="ignore"):
        bounds = np.quantile(margins, [tail, 1 - tail])
    return bounds if np.isnan(margins).any() else np.where(np.isnan(bounds), np.inf, bounds)


def _covers(runs: pd.Series) -> str:
    """Return in words what the bootstrap covers."""
    least, most = int(runs.min()), int(runs.max())
    if most == 1:
        return "the requests of one run per load"
    return f"{least if least == most else f'{least} to {most}'} runs per load and their requests"


def _repeats_agree(check: ClaimCheck, repeated: pd.DataFrame, holds: bool) -> list[bool]:
    """Return whether each common repetition gives the same verdict."""
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
