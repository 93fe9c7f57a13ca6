"""The DGX H100 that is not there: measured kernel times, in-flight batching and closed-loop users in virtual time.

>>> from erlab import paper
>>> found = simulate(paper.SYSTEMS["v2"]["E"], users=2, setup=Setup(steps="roofline", era=None))
>>> found.requests.status.unique().tolist()
['ok']
"""

from erlab.simulation.engine import Batching
from erlab.simulation.assumptions import of_paper, sensitivity, variations
from erlab.simulation.sweeps import preliminary, sweep
from erlab.simulation.system import Setup, Traffic, closed_loop, fixed_lengths, simulate, trace
from erlab.simulation.validation import validate_h200, validate_published

__all__ = [
    "Batching", "Setup", "Traffic", "closed_loop", "fixed_lengths", "of_paper", "preliminary", "sensitivity",
    "simulate", "sweep", "trace", "validate_h200", "validate_published", "variations",
]  # fmt: skip
