"""Reproduces the paper Expert Router (arXiv 2404.15153): see README.md.

>>> import erlab
>>> erlab.simulate.__module__
'erlab.simulation.system'
"""


def __getattr__(name: str):
    """`erlab.simulate`, loaded when it is asked for: it brings pandas and pyarrow."""
    if name == "simulate":
        from erlab.simulation import simulate

        return simulate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
