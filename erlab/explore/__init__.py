"""Settings and widgets of the notebook `explore`, and the gateway of the notebook `gateway`."""

from erlab import submodules

__all__ = ["panel", "settings", "trial"]
__getattr__, __dir__ = submodules(__name__, __all__)
