"""The study: its notebooks and report, run in order and only if a result could differ."""

from erlab import submodules

__all__ = ["environment", "pipeline", "steps"]
__getattr__, __dir__ = submodules(__name__, __all__)
