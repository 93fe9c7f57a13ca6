"""Selection of records by experiment, version of the paper and validity."""

import functools
from collections.abc import Collection, Iterable

import pandas as pd

from erlab import paper
from erlab.errors import ErlabError
from erlab.results.records import Records
from erlab.spec import require

_PRELIMINARY = r"^P-(?P<half>half|all)-(?P<precision>.+)-b(?P<max_batch_size>\d+)$"


def runs(records: Records) -> pd.DataFrame:
    """Return the descriptions of the runs, indexed by run_id."""
    if "run_id" not in records.runs:
        return pd.DataFrame(index=pd.Index([], name="run_id"))
    return records.runs.drop_duplicates("run_id", keep="last").set_index("run_id")


def described(records: Records, requests: pd.DataFrame, field: str) -> pd.Series:
    """Return a field of each request's run description, None if unknown."""
    descriptions = runs(records)
    if field not in descriptions:
        return pd.Series(None, index=requests.index, dtype=object)
    run, ids = pd.factorize(requests["run_id"])  # a run has thousands of requests
    values = descriptions[field].astype(object).reindex(ids).to_numpy()
    return pd.Series(values[run], index=requests.index, dtype=object)


def of_paper(records: Records, version: str) -> Records:
    """Return records of a version of the paper, or without version."""
    check_version(version)
    requests = records.requests[records.requests["paper"].fillna(version) == version]
    descriptions = records.runs
    if "paper" in descriptions:
        descriptions = descriptions[descriptions["paper"].fillna(version) == version]
    return Records(requests, descriptions)


def main_version(records: Records) -> str | None:
    """Return the version of the paper that the study shows: v2 if the records have it, None if they have none."""
    versions = set(records.requests["paper"].dropna().unique())
    return next((version for version in paper.SYSTEMS if version in versions), None)


def only(records: Records, source: str | None = None, names: Collection[str] = ()) -> Records:
    """Return the requests of a source and of some systems (none named: all)."""
    requests = records.requests
    if source:
        requests = requests[requests["source"] == source]
        if requests.empty:
            raise ErlabError(f"No request is {source}.")
    known = sorted(requests["system"].unique())
    if unknown := [name for name in names if name not in known]:
        raise ErlabError(f"--system must be one of {', '.join(known)}. Got {unknown[0]!r}.")
    return Records(requests[requests["system"].isin(names)] if names else requests, records.runs)


def check_version(version: str) -> None:
    """Raise ErlabError unless `version` is a version of the paper."""
    require(version in tuple(paper.SYSTEMS), "paper", "notebook 06", f"be one of {', '.join(paper.SYSTEMS)}", version)


def died(records: Records) -> list[str]:
    """Return the runs whose system died, which are not evaluated."""
    descriptions = runs(records)
    return list(descriptions.index[descriptions["invalid"].notna()]) if "invalid" in descriptions else []


def marked(records: Records) -> list[str]:
    """Return the runs with too much client-side latency.

    They are evaluated, with a warning. `erlab.experiments.clients` marks them.
    """
    descriptions = runs(records)
    slow = "client_invalid" in descriptions
    return list(descriptions.index[descriptions["client_invalid"].notna()]) if slow else []


def of_attached(records: Records, requests: pd.DataFrame) -> pd.Series:
    """Return each request's model where one model stands for all experts.

    Such runs used an external server of the user; None for other runs.
    """
    attached = described(records, requests, "attached") == True  # noqa: E712  (None if unknown)
    return described(records, requests, "model").where(attached, None)


def by_one(models: pd.Series) -> str:
    """Format the models of `of_attached` as a suffix of `basis`.

    >>> by_one(pd.Series(["llama", None])), by_one(pd.Series([None]))
    (' (llama for all experts)', '')
    """
    names = sorted(models.dropna().unique())
    return f" ({', '.join(names)} for all experts)" if names else ""


def warning(run_ids: Iterable[str], marked: Iterable[str]) -> str:
    """Return a warning if some runs are marked, else "".

    >>> warning(["a", "b", "b", "c"], ["b"])
    'in 1 of 3 runs the client-side latency is too large a share of the measured latency'
    """
    run_ids = set(pd.unique(pd.Series(run_ids)))
    if not (slow := len(run_ids & set(marked))):
        return ""
    return f"in {slow} of {len(run_ids)} runs the client-side latency is too large a share of the measured latency"


@functools.lru_cache(maxsize=2)
def systems(records: Records) -> pd.DataFrame:
    """Return the requests to systems of Table I.

    These are all but requests to preliminary systems and to emulated experts. Cached, since nearly every figure and
    claim uses it. Raises ErlabError if there are none.
    """
    requests = _valid(records)
    chosen = requests[~_is_preliminary(records, requests) & ~_is_emulated(requests)]
    if chosen.empty:
        raise ErlabError("No records of any system but the preliminary ones.")
    return chosen


def preliminary_requests(records: Records) -> pd.DataFrame:
    """Return the requests of the preliminary experiments.

    Columns half, precision and max_batch_size are added. Raises ErlabError if there are none.
    """
    requests = _valid(records)
    chosen = requests[_is_preliminary(records, requests)]
    for field, from_name in _read_names(chosen["system"]).items():
        known = described(records, chosen, field)
        chosen = chosen.assign(**{field: known.where(known.notna(), from_name)})
    chosen = chosen.dropna(subset=["half", "precision", "max_batch_size"])
    if chosen.empty:
        raise ErlabError("No records of the preliminary experiments (systems P-half-... and P-all-...).")
    return chosen.assign(max_batch_size=chosen["max_batch_size"].astype(int))


def router_systems(requests: pd.DataFrame) -> set[str]:
    """Return the systems whose requests have a cluster."""
    return set(requests.loc[requests["cluster"].notna(), "system"].unique())


def basis(source: str, machines: pd.Series) -> str:
    """Return source and machines as text: ``simulated on DGX H100``."""
    names = sorted({name.removesuffix(f" ({source})") for name in machines.dropna().unique()})
    return f"{source} on {', '.join(names) or 'an unnamed machine'}"


def _valid(records: Records) -> pd.DataFrame:
    return records.requests[~records.requests["run_id"].isin(died(records))]


def _is_emulated(requests: pd.DataFrame) -> pd.Series:
    names = requests["system"].dropna().unique()
    return requests["system"].isin([name for name in names if name.startswith("emulated-")]).astype(bool)


def _is_preliminary(records: Records, requests: pd.DataFrame) -> pd.Series:
    experiment = described(records, requests, "experiment")
    by_name = _read_names(requests["system"])["half"].notna()
    return (experiment == "preliminary").where(experiment.notna(), by_name).astype(bool)


def _read_names(systems: pd.Series) -> pd.DataFrame:
    """Return half, precision and max_batch_size as names of preliminary systems have them, null for other names.

    Records of older versions, and of other tools, may lack these fields in their runs' descriptions.
    """
    index, names = pd.factorize(systems)  # a system has thousands of requests
    fields = pd.Series(names, dtype="string").str.extract(_PRELIMINARY).astype(object)
    return fields.reindex(index).set_axis(systems.index)
