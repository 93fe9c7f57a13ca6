"""Settings and widgets of the notebook `explore`."""

from erlab import submodules

__all__ = ["panel", "settings"]
__getattr__, __dir__ = submodules(__name__, __all__)
