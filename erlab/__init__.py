"""Reproduces the paper Expert Router (arXiv 2404.15153): see README.md.

>>> import erlab
>>> erlab.simulate.__module__
'erlab.simulation.system'

What else a notebook needs, it imports by module: `from erlab import figures, records`.
"""

from importlib import import_module

__all__ = ["simulate"]


def __getattr__(name: str):
    """`erlab.simulate`, loaded when it is asked for: it brings pandas and pyarrow.

    Loaded by a relative name, so that what merely lies in this package is not taken to depend on it (`fingerprint`).
    """
    if name == "simulate":
        return import_module(".simulation", __name__).simulate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
