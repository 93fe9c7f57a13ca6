"""The DGX H100 that is not there: measured kernel times, in-flight batching and closed-loop users in virtual time.

>>> from erlab import paper
>>> found = simulate(paper.SYSTEMS["v2"]["E"], users=2, setup=Setup(steps="roofline", era=None))
>>> found.requests.status.unique().tolist()
['ok']

How fast it is (``python -m pytest -s tests/benchmarks/test_simulation.py``; two cores of a busy machine, ratios by CPU
time in one run, the best of a few runs; where ten other jobs shared the cores, in brackets):

| what                                                         | target   | reached                        |
|--------------------------------------------------------------|----------|--------------------------------|
| v2 sweep: 5 systems, 9 loads, 79,060 requests                | <= 30 s  | 1.4 s (5.6 s)                  |
| requests/s over a plain iteration-by-iteration loop's, total | >= 20 x  | 25 x (25 x)                    |
| - at 1, 16, 64, 256 users                                    |          | 69, 26, 19, 27 x               |
| 1,000 requests on 8 experts                                  | <= 0.2 s | 14 ms (63 ms)                  |
| memory of a process that simulates a million requests        | <= 1 GB  | 0.82 GB (0.85 GB)              |

At 64 users every fifth iteration follows an event (a sequence begins or ends), which bounds what jumping over the
others can gain.
"""

from erlab.simulation.assumptions import of_paper, sensitivity, variations
from erlab.simulation.engine import Batching
from erlab.simulation.sweeps import preliminary, sweep
from erlab.simulation.system import Setup, Traffic, closed_loop, fixed_lengths, simulate, trace
from erlab.simulation.validation import validate_h200, validate_published

__all__ = [
    "Batching", "Setup", "Traffic", "closed_loop", "fixed_lengths", "of_paper", "preliminary", "sensitivity",
    "simulate", "sweep", "trace", "validate_h200", "validate_published", "variations",
]  # fmt: skip
