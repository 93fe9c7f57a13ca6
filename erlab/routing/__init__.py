"""Routing: classify prompts by clusters and choose the expert that answers.

`PromptRouter` learns the clusters; `CompiledRouter` loads a saved router for a gateway and decides in microseconds.

>>> from erlab.routing import PromptRouter
>>> prompts = ["boil the pasta", "salt the pasta", "sue the landlord", "landlord law"]
>>> router = PromptRouter(clusters=2).fit(prompts)
>>> pasta, law = router.predict(["fresh pasta", "my landlord"])
>>> bool(pasta != law)
True

A feature, a clusterer or a policy is one entry in a registry; every command, notebook and table reads the registry:

- feature, `features.FEATURES`: a subclass of `features.Features` whose `encoder_` is one of `encoders.ENCODERS`
- clusterer, `clusterers.CLUSTERERS`: a function that returns labels and one of the heads in `heads.HEADS`
- policy, `policies.POLICIES`: a function of decision, fleet and ticket that returns the index of an expert
- recipe, `evaluation.RECIPES`: a feature with a clusterer, compared with the others in notebook 02

>>> from sklearn.cluster import BisectingKMeans
>>> from erlab.routing.clusterers import CLUSTERERS
>>> from erlab.routing.features import FEATURES, CharacterFeatures
>>> from erlab.routing.heads import Centers
>>> from erlab.routing.policies import POLICIES, FleetState, nearest
>>> class ShortCharacterFeatures(CharacterFeatures):
...     sizes = (2, 3)
>>> def fit_bisecting(vectors, k, restarts, seed):
...     kmeans = BisectingKMeans(k, n_init=restarts, random_state=seed).fit(vectors)
...     return kmeans.labels_, Centers(kmeans.cluster_centers_)
>>> def farthest(row, fleet, ticket=0):
...     return nearest(row._replace(order=row.order[::-1]), fleet)
>>> FEATURES["short characters"] = ShortCharacterFeatures
>>> CLUSTERERS["bisecting"] = fit_bisecting
>>> POLICIES["farthest"] = farthest
>>> router = PromptRouter(2, features="short characters", clusterer="bisecting").fit(prompts)
>>> row = router.route(["fresh pasta"]).row(0)
>>> fleet = FleetState(experts=[0, 1], outstanding=[0, 0], up=[True, True])
>>> POLICIES["farthest"](row, fleet, 0) == row.order[-1]
True

An added entry is removed like one of any dictionary:

>>> del FEATURES["short characters"], CLUSTERERS["bisecting"], POLICIES["farthest"]
"""

from erlab import submodules
from erlab.routing.compiled import CompiledRouter, Routing

__all__ = ["CompiledRouter", "PromptRouter", "Routing", "clusterers", "evaluation", "features", "policies", "training"]
_load, __dir__ = submodules(__name__, __all__)


def __getattr__(name: str):
    """`PromptRouter`, imported on first use: scikit-learn takes a second to import, and deciding needs none."""
    if name == "PromptRouter":
        from erlab.routing.router import PromptRouter

        return PromptRouter
    return _load(name)
