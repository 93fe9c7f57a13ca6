"""The study: its notebooks run in order by papermill, and only those whose result could differ."""

from erlab import submodules

__all__ = ["environment", "pipeline", "steps"]
__getattr__, __dir__ = submodules(__name__, __all__)
