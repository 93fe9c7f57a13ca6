"""Paths of the repository's folders and of a study's files. Nothing is created."""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Folders:
    """Generated files of a study, under the results folder `root`."""

    root: Path

    @classmethod
    def of(cls, profile: str, folder: str | Path | None = None) -> "Folders":
        """Return the folders of a profile (see `results`)."""
        return cls(results(profile, folder))

    @property
    def engines(self) -> Path:
        return self.root / "engines"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def router(self) -> Path:
        return self.root / "router"

    @property
    def router_summary(self) -> Path:
        return self.router / "summary.json"

    @property
    def routing(self) -> Path:
        """Comparison of routing recipes."""
        return self.root / "routing"

    @property
    def prompts(self) -> Path:
        return self.root / "prompts.parquet"

    @property
    def table1(self) -> Path:
        return self.root / "table1.json"

    @property
    def records(self) -> Path:
        return self.root / "records"

    @property
    def overhead(self) -> "Folders":
        """Folders of the gateway's overhead on emulated experts, separate from the study's records."""
        return Folders(self.root / "overhead")

    @property
    def client(self) -> Path:
        """Client-side latency overhead per load."""
        return self.root / "client.json"

    @property
    def infrastructure(self) -> Path:
        """Metrics of servers and GPUs, sampled during measurements."""
        return self.root / "infrastructure"

    @property
    def set_aside(self) -> Path:
        """Finished cells of loads that the last sweep did not include."""
        return self.root / "set-aside"
