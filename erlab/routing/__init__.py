"""Routing: which expert a prompt belongs to, decided in microseconds.

>>> from erlab.routing import PromptRouter
>>> router = PromptRouter(clusters=2).fit(["boil the pasta", "salt the pasta", "sue the landlord", "landlord law"])
>>> pasta, law = router.predict(["fresh pasta", "my landlord"])
>>> bool(pasta != law)
True
"""

from erlab import submodules
from erlab.routing.compiled import CompiledRouter, Routing

__all__ = ["CompiledRouter", "PromptRouter", "Routing", "clusterers", "evaluation", "policies", "training"]
_load, __dir__ = submodules(__name__, __all__)


def __getattr__(name: str):
    """`PromptRouter`, imported on first use: scikit-learn takes a second to import, and deciding needs none."""
    if name == "PromptRouter":
        from erlab.routing.router import PromptRouter

        return PromptRouter
    return _load(name)
