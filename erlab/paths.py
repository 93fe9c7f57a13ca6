"""Where things are. Nothing is created on import."""

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
