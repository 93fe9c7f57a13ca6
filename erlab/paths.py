"""Where things are: the repository's folders, and the files of a study. Nothing is created on import."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
RESULTS = DATA / "results"
FIGURES = ROOT / "figures"


def results(profile: str, folder: str | Path | None = None) -> Path:
    """The folder of a profile's generated files: `folder` if given, else ``data/results/<profile>``."""
    return Path(folder).expanduser().resolve() if folder else RESULTS / profile


def figures(folder: str | Path | None = None) -> Path:
    """The folder of the generated figures: `folder` if given, else ``figures``."""
    return Path(folder).expanduser().resolve() if folder else FIGURES


@dataclass(frozen=True)
class Folders:
    """Where a study keeps what it generates."""

    root: Path

    @classmethod
    def of(cls, profile: str, folder: str | Path | None = None) -> "Folders":
        """The folders of a profile, under `folder` if given."""
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
        """The comparison of routing recipes."""
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
        """What the gateway costs on emulated experts, apart from the study's own records."""
        return Folders(self.root / "overhead")

    @property
    def client(self) -> Path:
        """What the users themselves add, by load."""
        return self.root / "client.json"

    @property
    def infrastructure(self) -> Path:
        """What servers and GPUs told while records were made."""
        return self.root / "infrastructure"

    @property
    def set_aside(self) -> Path:
        """Finished cells of loads that the last sweep did not ask for."""
        return self.root / "set-aside"
