"""Robustness of the claims to the simulation's assumptions, for notebook 08."""

from collections.abc import Sequence

import pandas as pd

from erlab import paper, simulation
from erlab.experiments import fullscale
from erlab.experiments.capacity import STUDYS_ROUTER, shares
from erlab.paths import Folders
from erlab.results import claims
from erlab.results.records import Records
from erlab.spec import Profile

_OPPOSITE = {claims.HOLDS: claims.FAILS, claims.FAILS: claims.HOLDS}


def sensitivity(profile: Profile, folders: Folders, decisions: Sequence, seed: int = 0) -> pd.DataFrame:
    """Judge each claim under each assumption (`simulation.sensitivity`), one row per claim and assumption."""
    measured = {STUDYS_ROUTER: shares(decisions)}
    parts = []
    for version in paper.SYSTEMS:

        def judge(records: Records, version=version) -> pd.DataFrame:
            return claims.ledger(records, [c.id for c in paper.CLAIMS if c.paper == version], resamples=0)

        cases = simulation.variations(version, fullscale.setup(folders), measured_shares=measured)
        parts.append(simulation.sensitivity(judge, cases, profile.explored_loads, seed))
    verdicts = pd.concat(parts, ignore_index=True)
    return verdicts.assign(loads=", ".join(map(str, profile.explored_loads)))


def survival(sensitivity: pd.DataFrame) -> pd.DataFrame:
    """Summarise which verdicts survive the other assumptions, one row per claim.

    Returns:
        The default verdict; under how many assumptions, varied one at a time, it survives; at which values it changes,
        with the verdict there unless it is the opposite.
    """
    rows = []
    for claim, verdicts in sensitivity.groupby("id", sort=False):
        default, others = verdicts.iloc[0], verdicts.iloc[1:]
        changed = others[others["verdict"] != default["verdict"]]
        flips = {}
        for assumption, value, verdict in zip(changed["assumption"], changed["value"], changed["verdict"]):
            suffix = "" if verdict == _OPPOSITE.get(default["verdict"]) else f" ({verdict})"
            flips.setdefault(assumption, []).append(f"{value}{suffix}")
        survives = f"all {len(others)}" if changed.empty else f"{len(others) - len(changed)} of {len(others)}"
        at = "; ".join(f"{assumption}: {', '.join(values)}" for assumption, values in flips.items())
        row = {"claim": claim, "statement": default["statement"], "by default": default["verdict"]}
        rows.append(row | {"survives": survives, "flips at": at or "nothing"})
    return pd.DataFrame(rows)
