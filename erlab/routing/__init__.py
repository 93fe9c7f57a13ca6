"""Routing: which expert a prompt belongs to, decided in microseconds.

>>> router = PromptRouter(clusters=2).fit(["boil the pasta", "salt the pasta", "sue the landlord", "landlord law"])
>>> pasta, law = router.predict(["fresh pasta", "my landlord"])
>>> bool(pasta != law)
True
"""

from erlab.routing.router import PromptRouter, Routing

__all__ = ["PromptRouter", "Routing"]
