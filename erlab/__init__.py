"""Reproduction of the paper Expert Router (arXiv 2404.15153); README.md is the introduction.

Notebooks import packages and their modules:

    from erlab import figures, paths
    from erlab.results import claims, records

    study = records.read(paths.RESULTS / "laptop" / "records")
    claims.ledger(study)
    figures.show("fig4", figures.data(study))

>>> import erlab
>>> erlab.simulate.__module__
'erlab.simulation.system'
>>> erlab.results.claims.HOLDS
'holds'
"""

from collections.abc import Callable, Sequence
from importlib import import_module

__all__ = [
    "experiments", "explore", "figures", "gateway", "paper", "paths", "prompts", "quality", "results", "routing",
    "serving", "simulate", "simulation", "spec", "study", "users",
]  # fmt: skip


def submodules(package: str, names: Sequence[str]) -> tuple[Callable, Callable]:
    """Make the `__getattr__` and `__dir__` of a package whose modules are imported on first use.

    They are imported by relative names, so that a module does not depend on its neighbours (`erlab.fingerprint`).
    """

    def load(name: str):
        if name in names:
            return import_module(f".{name}", package)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load, lambda: sorted(names)


_load, __dir__ = submodules(__name__, __all__)


def __getattr__(name: str):
    return import_module(".simulation", __name__).simulate if name == "simulate" else _load(name)
