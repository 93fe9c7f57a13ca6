"""Prompts: the project's own grammar, domain datasets, and the lengths of a workload."""

from erlab import submodules

__all__ = ["datasets", "loads", "traces", "traffic", "workload"]
__getattr__, __dir__ = submodules(__name__, __all__)
