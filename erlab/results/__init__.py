"""Request records and their evaluation: metrics, confidence intervals, claims."""

from erlab import submodules

__all__ = ["claims", "imports", "metrics", "records", "selection"]
__getattr__, __dir__ = submodules(__name__, __all__)
