"""Simulation of the paper's DGX H100 in virtual time.

It combines measured kernel times, in-flight batching and closed-loop users.

>>> from erlab import paper
>>> records = simulate(paper.SYSTEMS["v2"]["E"], users=2, setup=Setup(steps="roofline", era=None))
>>> records.requests.status.unique().tolist()
['ok']

``python -m pytest -s tests/benchmarks/test_simulation.py`` measures its speed against a plain loop over iterations.
"""

from erlab.prompts.traffic import Traffic, closed_loop, fixed_lengths, open_loop
from erlab.simulation.assumptions import of_paper, sensitivity, variations
from erlab.simulation.engine import Batching
from erlab.simulation.replay import replay
from erlab.simulation.sweeps import preliminary_systems, sweep
from erlab.simulation.system import Setup, simulate
from erlab.simulation.validation import validate_h200, validate_published

__all__ = [
    "Batching", "Setup", "Traffic", "closed_loop", "fixed_lengths", "of_paper", "open_loop", "preliminary_systems",
    "replay", "sensitivity", "simulate", "sweep", "validate_h200", "validate_published", "variations",
]  # fmt: skip
