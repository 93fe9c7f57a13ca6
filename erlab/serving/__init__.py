"""Systems made ready for requests: profiles, engines, Triton, external servers."""

from erlab import submodules

__all__ = ["deployment", "external", "profiles", "scaling"]
__getattr__, __dir__ = submodules(__name__, __all__)
