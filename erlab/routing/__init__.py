"""Routing: which expert a prompt belongs to, decided in microseconds.

>>> from erlab.routing import PromptRouter
>>> router = PromptRouter(clusters=2).fit(["boil the pasta", "salt the pasta", "sue the landlord", "landlord law"])
>>> pasta, law = router.predict(["fresh pasta", "my landlord"])
>>> bool(pasta != law)
True
"""

from erlab.routing.compiled import CompiledRouter, Routing

__all__ = ["CompiledRouter", "PromptRouter", "Routing"]


def __getattr__(name: str):
    """`PromptRouter`, loaded when it is asked for: scikit-learn takes a second to import, and deciding needs none."""
    if name == "PromptRouter":
        from erlab.routing.router import PromptRouter

        return PromptRouter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
