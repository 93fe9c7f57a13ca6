"""Deployment of systems: profiles, engines, Triton, and external servers."""

from erlab import submodules

__all__ = ["deployment", "external", "profiles", "scaling"]
__getattr__, __dir__ = submodules(__name__, __all__)
