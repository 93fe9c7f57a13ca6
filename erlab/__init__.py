"""Reproduction of the paper Expert Router (arXiv 2404.15153); README.md is the introduction.

`dir(erlab)` lists what there is to explore (`erlab.api`); it is imported on first use:

    import erlab
    erlab.summarise(erlab.simulate("E", users=[1, 100]))

Notebooks import packages and their modules, which are not listed:

    from erlab import figures, paths
    from erlab.results import claims, records

    study = records.read(paths.RESULTS / "laptop" / "records")
    claims.ledger(study)
    figures.show("fig4", figures.data(study))

>>> import erlab
>>> erlab.simulate.__module__
'erlab.api'
>>> erlab.results.claims.HOLDS
'holds'
"""

from collections.abc import Callable as _Callable
from collections.abc import Sequence as _Sequence
from importlib import import_module as _import_module

__all__ = [
    "PromptRouter", "ask", "claims", "figure", "import_results", "load_prompts", "load_test", "read_records", "serve",
    "simulate", "start_gateway", "summarise", "systems",
]  # fmt: skip
_PACKAGES = (
    "experiments", "explore", "figures", "gateway", "paper", "paths", "prompts", "quality", "results", "routing",
    "serving", "simulation", "spec", "study", "users",
)  # fmt: skip


def submodules(package: str, names: _Sequence[str]) -> tuple[_Callable, _Callable]:
    """Make the `__getattr__` and `__dir__` of a package whose modules are imported on first use.

    They are imported by relative names, so that a module does not depend on its neighbours (`erlab.fingerprint`).
    """

    def load(name: str):
        if name in names:
            return _import_module(f".{name}", package)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load, lambda: sorted(names)


_load, _ = submodules(__name__, _PACKAGES)


def __getattr__(name: str):
    return getattr(_import_module(".api", __name__), name) if name in __all__ else _load(name)


def __dir__() -> list[str]:
    return sorted(__all__)
