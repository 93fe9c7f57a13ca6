"""Table I on this machine: batch limits from the preliminary experiments, and the systems that have them."""

import json

from erlab import textfiles
from erlab.errors import ErlabError
from erlab.paths import Folders
from erlab.results import metrics
from erlab.results.records import Records
from erlab.serving import external, profiles
from erlab.spec import Profile, System


def choose_batch_limits(preliminary: Records, profile: Profile) -> dict[str, int]:
    """Choose the batch limit of each system: lowest median response time at the highest load.

    A, B and C are chosen among the preliminary runs of their precision and share of the devices. D and E take the
    limits of A and B, which have their precision. Systems without measurements have the profile's largest limit.

    Raises:
        ErlabError: There are records, but none of a system's precision and share.
    """
    requests, runs, largest = preliminary.requests, preliminary.runs, max(profile.batch_limits)
    if requests.empty:  # nothing could be measured on this machine
        return dict.fromkeys(profile.systems, largest)
    top = requests[(requests.users == requests.users.max()) & (requests.status == "ok")]
    median = metrics.e2e(top).groupby(top.run_id).median()
    runs = runs.assign(median=runs.run_id.map(median)).dropna(subset="median")
    limits = {}
    for name, half, precision in (("A", "half", "FP8"), ("B", "half", "FP16"), ("C", "all", "FP16")):
        if name not in profile.systems:
            continue
        rows = runs[(runs.half == half) & (runs.precision == profile.precisions[precision].name)]
        if rows.empty:
            baseline = f"baseline {name} ({half} of the cores, {precision})"
            raise ErlabError(f"No preliminary runs for {baseline}: run 03_preliminary.")
        limits[name] = int(rows.sort_values(["median", "max_batch_size"]).max_batch_size.iloc[0])
    limits |= {"D": limits.get("A", largest), "E": limits.get("B", largest)}
    return {name: limits[name] for name in profile.systems}


def save(limits: dict[str, int], folders: Folders) -> None:
    """Write the batch limits for the notebooks after 03."""
    textfiles.save(folders.table1, json.dumps(limits, indent=1))


def systems(profile: Profile, folders: Folders, triton: str | None = None) -> dict[str, System]:
    """Return the systems A to E as they run here, with the saved batch limits.

    Raises:
        ErlabError: No batch limits are saved.
    """
    if not folders.table1.is_file():
        raise ErlabError(f"No {folders.table1}: run notebook 03_preliminary first (erlab reproduce --only 03).")
    limits, originals = json.loads(folders.table1.read_text()), profiles.systems(profile)
    return {name: external.scale(s, profile, triton, limits[name]) for name, s in originals.items()}
