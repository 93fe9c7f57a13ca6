"""Experiments: sweeps over loads, measured or simulated, and what surrounds a measurement."""

from erlab import submodules

__all__ = ["cells", "fullscale", "gpu", "overhead", "recipes", "studies", "telemetry"]
__getattr__, __dir__ = submodules(__name__, __all__)
