"""Experiments: sweeps over loads, measured or simulated, and what surrounds a measurement."""

from erlab import submodules

__all__ = ["accuracy", "capacity", "cells", "fullscale", "gpu", "overhead", "overhead_tables", "overviews"]
__all__ += ["recipes", "robustness", "table1", "telemetry"]
__getattr__, __dir__ = submodules(__name__, __all__)
