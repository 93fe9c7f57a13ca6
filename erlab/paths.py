"""Paths of the repository's folders and of a study's files. Nothing is created."""

from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
RESULTS = DATA / "results"
FIGURES = ROOT / "figures"


def results(profile: str, folder: str | Path | None = None) -> Path:
    """Return the results folder of a profile: `folder` if given, else ``data/results/PROFILE``."""
    return Path(folder).expanduser().resolve() if folder else RESULTS / profile


def figures(folder: str | Path | None = None) -> Path:
    """Return the folder of figures: `folder` if given, else ``figures``."""
    return Path(folder).expanduser().resolve() if folder else FIGURES


def names(files: Sequence[Path]) -> list[str]:
    """Return a different short name for each file: its name, or its path where two have the same name."""
    short = [file.stem for file in files]
    return short if len(set(short)) == len(short) else [str(file.with_suffix("")) for file in files]


class Folders:
    """Generated files of a study, under the results folder `root`."""

    def __init__(self, root: Path):
        self.root = root
        self.engines = root / "engines"
        self.models = root / "models"
        self.router = root / "router"
        self.router_summary = self.router / "summary.json"
        self.routing = root / "routing"  # comparison of routing recipes
        self.prompts = root / "prompts.parquet"
        self.origins = root / "datasets.json"  # datasets of the prompts, each an `erlab.prompts.lists.Origin`
        self.table1 = root / "table1.json"
        self.records = root / "records"
        self.client = root / "client.json"  # client-side latency per load
        self.infrastructure = root / "infrastructure"  # metrics of servers and GPUs, sampled during measurements
        self.set_aside = root / "set-aside"  # finished cells of loads that the last sweep did not include

    @classmethod
    def of(cls, profile: str, folder: str | Path | None = None) -> "Folders":
        """Return the folders of a profile (see `results`)."""
        return cls(results(profile, folder))

    @property
    def overhead(self) -> "Folders":
        """Folders of the gateway's overhead on emulated experts, separate from the study's records."""
        return Folders(self.root / "overhead")
