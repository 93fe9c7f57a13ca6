"""Which rows of the records a figure or a claim is about: the systems of Table I or the preliminary experiments."""

import functools
import re
from collections.abc import Iterable

import pandas as pd

from erlab import paper
from erlab.errors import ErlabError
from erlab.results.records import Records
from erlab.spec import require

_PRELIMINARY = r"^P-(?P<half>half|all)-(?P<precision>.+)-b(?P<max_batch_size>\d+)$"  # a preliminary system's name


def runs(records: Records) -> pd.DataFrame:
    """The described runs, indexed by run_id; empty where the records come without descriptions."""
    if "run_id" not in records.runs:
        return pd.DataFrame(index=pd.Index([], name="run_id"))
    return records.runs.drop_duplicates("run_id", keep="last").set_index("run_id")


def described(records: Records, requests: pd.DataFrame, field: str) -> pd.Series:
    """A field of each request's run description, aligned with `requests`; None where it isn't known."""
    found = runs(records)
    if field not in found:
        return pd.Series(None, index=requests.index, dtype=object)
    run, ids = pd.factorize(requests["run_id"])  # a run has thousands of requests
    values = found[field].astype(object).reindex(ids).to_numpy()
    return pd.Series(values[run], index=requests.index, dtype=object)


def of_paper(records: Records, version: str) -> Records:
    """The records of one version of the paper, and those of none."""
    check_version(version)
    requests = records.requests[records.requests["paper"].fillna(version) == version]
    found = records.runs
    if "paper" in found:
        found = found[found["paper"].fillna(version) == version]
    return Records(requests, found)


def check_version(version: str) -> None:
    """Refuse what is no version of the paper."""
    require(version in tuple(paper.SYSTEMS), "paper", "notebook 06", f"be one of {', '.join(paper.SYSTEMS)}", version)


def died(records: Records) -> list[str]:
    """The runs that count nowhere because their system died on the way."""
    found = runs(records)
    return list(found.index[found["invalid"].notna()]) if "invalid" in found else []


def marked(records: Records) -> list[str]:
    """The runs whose users were too slow for what they measured (`erlab.experiments.clients`); they count, and it is said."""
    found = runs(records)
    return list(found.index[found["client_invalid"].notna()]) if "client_invalid" in found else []


def of_attached(records: Records, requests: pd.DataFrame) -> pd.Series:
    """The model that answered each request, where a server of the user's had one for all (`attached`), else None."""
    attached = described(records, requests, "attached") == True  # noqa: E712  (None where it isn't known)
    return described(records, requests, "model").where(attached, None)


def by_one(models: pd.Series) -> str:
    """Which models of servers of the user's answered (`of_attached`), after what they were measured on.

    >>> by_one(pd.Series(["llama", None])), by_one(pd.Series([None]))
    (' (llama for all experts)', '')
    """
    names = sorted(models.dropna().unique())
    return f" ({', '.join(names)} for all experts)" if names else ""


def warning(runs: Iterable[str], marked: Iterable[str]) -> str:
    """What is to be said of these runs where some are marked, else nothing.

    >>> warning(["a", "b", "b", "c"], ["b"])
    "in 1 of 3 runs the users' own latency is too large a share of what they measured"
    """
    runs = set(pd.unique(pd.Series(runs)))
    if not (slow := len(runs & set(marked))):
        return ""
    return f"in {slow} of {len(runs)} runs the users' own latency is too large a share of what they measured"


@functools.lru_cache(maxsize=2)
def systems(records: Records) -> pd.DataFrame:
    """The requests to the systems of Table I: all but those to preliminary systems and to emulated experts.

    Kept, since nearly everything asks for it.
    """
    requests = _valid(records)
    found = requests[~_is_preliminary(records, requests) & ~_is_emulated(requests)]
    if found.empty:
        raise ErlabError("No records of any system but the preliminary ones.")
    return found


def preliminary_requests(records: Records) -> pd.DataFrame:
    """The requests of the preliminary experiments with the columns half, precision and max_batch_size added."""
    requests = _valid(records)
    found = requests[_is_preliminary(records, requests)]
    which, names = pd.factorize(found["system"])
    named = pd.Series(names, dtype="string").str.extract(_PRELIMINARY).take(which).set_axis(found.index)
    for field in named:
        known = described(records, found, field)
        found = found.assign(**{field: known.where(known.notna(), named[field].astype(object))})
    found = found.dropna(subset=list(named.columns))
    if found.empty:
        raise ErlabError("No records of the preliminary experiments (systems P-half-... and P-all-...).")
    return found.assign(max_batch_size=found["max_batch_size"].astype(int))


def router_systems(requests: pd.DataFrame) -> set[str]:
    """The systems whose requests a router placed: those with a cluster."""
    return set(requests.loc[requests["cluster"].notna(), "system"].unique())


def basis(source: str, machines: pd.Series) -> str:
    """How and on what numbers came about: ``simulated on DGX H100``."""
    names = sorted({name.removesuffix(f" ({source})") for name in machines.dropna().unique()})
    return f"{source} on {', '.join(names) or 'an unnamed machine'}"


def _valid(records: Records) -> pd.DataFrame:
    return records.requests[~records.requests["run_id"].isin(died(records))]


def _is_emulated(requests: pd.DataFrame) -> pd.Series:
    return _named(requests, r"^emulated-")


def _is_preliminary(records: Records, requests: pd.DataFrame) -> pd.Series:
    experiment = described(records, requests, "experiment")
    by_name = _named(requests, _PRELIMINARY)
    return (experiment == "preliminary").where(experiment.notna(), by_name).astype(bool)


def _named(requests: pd.DataFrame, pattern: str) -> pd.Series:
    """Which requests are to a system whose name matches; names are few, requests many."""
    names = requests["system"].dropna().unique()
    return requests["system"].isin([name for name in names if re.match(pattern, name)]).astype(bool)
