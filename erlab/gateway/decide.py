"""The gateway's decision: a prompt's cluster from the router, its expert from the policy.

    decide = Decider(PromptRouter.load(folder), ("expert_0", "expert_1", "expert_0"), "nearest")
    decide("How do I boil an egg?")  # Decision(expert="expert_1", cluster=1, ...)

A decision is taken when its request arrives, on the event loop: the compiled router needs about 0.1 ms a prompt.
"""

from dataclasses import dataclass

from erlab.routing import PromptRouter
from erlab.routing.policies import POLICIES, Fleet
from erlab.spec import require


@dataclass(frozen=True)
class Decision:
    """Where a prompt goes: the Triton model, the cluster, its distance and margin, the policy that chose."""

    expert: str
    cluster: int
    distance: float
    margin: float
    policy: str


class Decider:
    """Chooses among experts; `experts_of_clusters[c]` is the Triton model that serves the router's cluster c."""

    def __init__(self, router: PromptRouter, experts_of_clusters: tuple[str, ...], policy: str = "nearest"):
        clusters = len(router.centers_)
        allowed = f"name an expert for each of the router's {clusters} clusters"
        require(len(experts_of_clusters) == clusters, "experts_of_clusters", "Decider", allowed, experts_of_clusters)
        require(policy in POLICIES, "policy", "Decider", f"be one of {', '.join(POLICIES)}", policy)
        self.experts = tuple(dict.fromkeys(experts_of_clusters))
        self._router, self._policy, self._choose = router, policy, POLICIES[policy]
        self._indices = {name: i for i, name in enumerate(self.experts)}
        places = tuple(self._indices[name] for name in experts_of_clusters)
        self._fleet = Fleet(places, [0] * len(self.experts), [True] * len(self.experts))
        self._tickets = 0

    def __call__(self, text: str) -> Decision:
        """Choose, and count the request as outstanding until `done`. Raises ErlabError on text the router refuses."""
        row = self._router.route([text]).row(0)
        index = self._choose(row, self._fleet, self._tickets)
        self._tickets += 1
        self._fleet.outstanding[index] += 1
        return Decision(self.experts[index], row.cluster, row.distance, row.margin, self._policy)

    def done(self, decision: Decision) -> None:
        self._fleet.outstanding[self._indices[decision.expert]] -= 1
