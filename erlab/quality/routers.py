"""Rules that train a router on outcomes, and baselines. `RULES` and `BASELINES` are the registries.

A rule fits a head (`erlab.routing.heads.ExpertScores`) that predicts every expert's score for a prompt's vector.
scikit-learn does the fitting; the trained router is a `CompiledRouter` with one cluster per expert, which is saved,
loaded and served like every other router.

>>> from erlab.quality import examples
>>> router = train("expert_router", examples.outcomes(seed=0), clusters=4)
>>> router.experts_[router.route(["how long does the rice simmer"]).cluster[0]]
'cook'
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import logit
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neural_network import MLPRegressor
from threadpoolctl import threadpool_limits

from erlab.errors import ErlabError
from erlab.quality.outcomes import Outcomes
from erlab.routing import heads
from erlab.routing.clusterers import CLUSTERERS, fit_supervised
from erlab.routing.compiled import CompiledRouter
from erlab.routing.features import FEATURES
from erlab.routing.scores import OutlierScore
from erlab.routing.text import top_terms
from erlab.spec import require

CLUSTERS, CLUSTERER, FEATURE, DIMENSIONS = 32, "kmeans", "characters", 100
_RESTARTS = 3
_PRIOR = 10  # prompts with the expert's overall mean score that are added to each cluster: few prompts say little
_NEIGHBOURS = 80
_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # of the ridge penalty, chosen by leave-one-out validation
_HIDDEN = 32
_CONFIDENCE = 0.5  # predicted score from which a cascade stops
_EXPLORATION = 0.3  # standard deviations that LinUCB adds, and by which Thompson sampling varies
_SHARE = 0.5  # of the training prompts that go to the strong expert (RouteLLM's calibration of the threshold)


@dataclass(frozen=True)
class Training:
    """What a rule is fitted to.

    Attributes:
        vectors: (n, d), of length one or zero.
        scores: (n, e); NaN where unknown.
        costs: Mean cost of each expert, dollars, (e,); NaN where unknown.
        tasks: (n,).
        clusters, clusterer: Of the Expert Router.
        seed: Random seed.
    """

    vectors: np.ndarray
    scores: np.ndarray
    costs: np.ndarray
    tasks: np.ndarray
    clusters: int = CLUSTERS
    clusterer: str = CLUSTERER
    seed: int = 0

    def means(self) -> np.ndarray:
        """Return the mean score of each expert, (e,); 0 without answers."""
        known = ~np.isnan(self.scores)
        return np.where(known, self.scores, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)

    def filled(self) -> np.ndarray:
        """Return the scores with the expert's mean where they are unknown."""
        return np.where(np.isnan(self.scores), self.means(), self.scores)


Maker = Callable[..., heads.ExpertScores]  # makes the head from its centres and prices


@dataclass(frozen=True)
class Rule:
    """A way to train a router.

    Attributes:
        fit: Fits the head's maker; with `online`, also the expert that was chosen for each training prompt in turn.
        about: What it is, with its source.
        pair: Whether it decides between two experts only, the strong and the weak one.
        calibrated: Whether it predicts scores, not only their order.
        cascade: Whether a prompt asks all cheaper experts before the chosen one, so that their costs add up.
        online: Whether it learns prompt by prompt from the answer of the expert that it chose.
    """

    fit: Callable[[Training], Maker | tuple[Maker, np.ndarray]]
    about: str
    pair: bool = False
    calibrated: bool = True
    cascade: bool = False
    online: bool = False


def fit_clusters(training: Training) -> Maker:
    """Cluster the prompts; an expert's predicted score is its smoothed mean in the prompt's cluster."""
    k = min(training.clusters, len(np.unique(training.vectors.round(9), axis=0)))
    labels, head = CLUSTERERS[training.clusterer](training.vectors, k, _RESTARTS, training.seed)
    return _by_cluster(training, labels, head)


def fit_domains(training: Training) -> Maker:
    """Classify the prompt's task; an expert's predicted score is its smoothed mean on the task."""
    tasks, labels = np.unique(training.tasks.astype(str), return_inverse=True)
    if len(tasks) == 1:
        return _by_cluster(training, labels, heads.Centers(training.vectors.mean(axis=0, keepdims=True)))
    return _by_cluster(training, labels, fit_supervised(training.vectors, labels))


def _by_cluster(training: Training, labels: np.ndarray, head: heads.Centers) -> Maker:
    table = np.array([_smoothed(training.scores[labels == c], training.means()) for c in range(len(head.centers))])
    clusters = {f"clusters.{name}": array for name, array in head.arrays().items()}
    return partial(heads.ClusterScores, table=table, **clusters)


def _smoothed(scores: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return each expert's mean score over prompts and `_PRIOR` more of its overall mean."""
    known = ~np.isnan(scores)
    return (np.where(known, scores, 0).sum(axis=0) + _PRIOR * means) / (known.sum(axis=0) + _PRIOR)


def fit_ridge(training: Training) -> Maker:
    """Predict each expert's score by ridge regression."""
    weights, bias = zip(*(_ridge(training.vectors, column) for column in training.scores.T))
    return partial(heads.LinearScores, weights=np.array(weights).T, bias=np.array(bias))


def _ridge(vectors: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, float]:
    known = ~np.isnan(scores)
    if known.sum() < 2:
        return np.zeros(vectors.shape[1]), float(scores[known].mean()) if known.any() else 0.0
    model = RidgeCV(_STRENGTHS).fit(vectors[known], scores[known])
    return model.coef_, float(model.intercept_)


def fit_logistic(training: Training, head: type = heads.LogisticScores, **parts: np.ndarray) -> Maker:
    """Predict each expert's score by logistic regression; a score between 0 and 1 counts as a weighted mix of both."""
    weights, bias = zip(*(_logistic(training.vectors, column) for column in training.scores.T))
    return partial(head, weights=np.array(weights).T, bias=np.array(bias), **parts)


def _logistic(vectors: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, float]:
    known = ~np.isnan(scores)
    vectors, scores = vectors[known], scores[known]
    if not len(scores) or scores.min() == scores.max() in (0, 1):
        mean = (scores.sum() + 0.5) / (len(scores) + 1)
        return np.zeros(vectors.shape[1]), float(logit(mean))
    right, wrong = scores > 0, scores < 1
    labels = np.repeat([1, 0], [right.sum(), wrong.sum()])
    weights = np.concatenate([scores[right], 1 - scores[wrong]])
    model = LogisticRegression(max_iter=500).fit(np.concatenate([vectors[right], vectors[wrong]]), labels, weights)
    return model.coef_[0], float(model.intercept_[0])


def fit_neighbours(training: Training) -> Maker:
    """Predict each expert's score by its mean over the nearest training prompts."""
    count = np.array([float(min(_NEIGHBOURS, len(training.vectors)))])
    return partial(heads.NeighbourScores, examples=training.vectors, table=training.filled(), neighbours=count)


def fit_network(training: Training) -> Maker:
    """Predict all experts' scores by a network with one hidden layer."""
    stop = len(training.vectors) >= 100
    model = MLPRegressor(
        hidden_layer_sizes=(_HIDDEN,),
        alpha=1e-3,
        learning_rate_init=5e-3,
        early_stopping=stop,
        max_iter=100,
        random_state=training.seed,
    )
    targets = training.filled()
    model.fit(training.vectors, targets if targets.shape[1] > 1 else targets[:, 0])
    (hidden, weights), (hidden_bias, bias) = model.coefs_, model.intercepts_
    return partial(heads.NetworkScores, hidden=hidden, hidden_bias=hidden_bias, weights=weights, bias=bias)


def fit_cascade(training: Training) -> Maker:
    """Predict each expert's confidence by logistic regression."""
    return fit_logistic(training, heads.CascadeScores, threshold=np.array([_CONFIDENCE]))


def fit_win(training: Training) -> Maker:
    """Predict the probability that the strong expert (column 1) beats the weak one; a tie counts half."""
    return _thresholded(training, (1 + training.scores[:, 1] - training.scores[:, 0]) / 2)


def fit_need(training: Training) -> Maker:
    """Predict the probability that the weak expert (column 0) is worse than the strong one."""
    gap = training.scores[:, 1] - training.scores[:, 0]
    return _thresholded(training, np.where(np.isnan(gap), np.nan, gap > 0))


def _thresholded(training: Training, labels: np.ndarray) -> Maker:
    """Score of the strong expert is the probability of the label, that of the weak one the threshold."""
    weights, bias = _logistic(training.vectors, labels)
    threshold = float(np.quantile(training.vectors @ weights + bias, 1 - _SHARE))
    return partial(
        heads.LogisticScores,
        weights=np.stack([np.zeros_like(weights), weights], axis=1),
        bias=np.array([threshold, bias]),
    )


def fit_ratio(training: Training) -> Maker:
    """Compare the experts by the ratio of their predicted scores."""
    return fit_logistic(training, heads.LogScores)


def fit_linucb(training: Training) -> tuple[Maker, np.ndarray]:
    """Choose the highest upper confidence bound of a linear score, prompt by prompt (Li et al. 2010)."""

    def bounds(means, inverses, vector, rng):
        return means @ vector + _EXPLORATION * np.sqrt(np.einsum("i,eij,j->e", vector, inverses, vector))

    return _bandit(training, bounds)


def fit_thompson(training: Training) -> tuple[Maker, np.ndarray]:
    """Choose the highest score of a model drawn from the posterior, prompt by prompt (Agrawal and Goyal 2013)."""

    def draws(means, inverses, vector, rng):  # the score of a drawn model is normal: its variance is that of the bound
        spread = np.sqrt(np.einsum("i,eij,j->e", vector, inverses, vector))
        return means @ vector + _EXPLORATION * spread * rng.standard_normal(len(means))

    return _bandit(training, draws)


def _bandit(training: Training, index: Callable) -> tuple[Maker, np.ndarray]:
    """Learn a linear score per expert from the answers of the chosen experts only.

    The regularised least-squares solution of each expert is updated by the Sherman-Morrison formula.

    Args:
        training: Prompts, taken in the given order.
        index: Values of the experts from coefficients, inverse matrices, vector and generator; the highest is chosen.
    """
    vectors = np.column_stack([training.vectors, np.ones(len(training.vectors))])
    (n, d), e = vectors.shape, training.scores.shape[1]
    inverses, sums, means = np.tile(np.eye(d), (e, 1, 1)), np.zeros((e, d)), np.zeros((e, d))
    rng, choices = np.random.default_rng(training.seed), np.empty(n, dtype=int)
    for i, vector in enumerate(vectors):
        values = np.where(np.isnan(training.scores[i]), -np.inf, index(means, inverses, vector, rng))
        choices[i] = expert = int(values.argmax())
        along = inverses[expert] @ vector
        inverses[expert] -= np.outer(along, along) / (1 + vector @ along)
        sums[expert] += training.scores[i, expert] * vector
        means[expert] = inverses[expert] @ sums[expert]
    return partial(heads.LinearScores, weights=means[:, :-1].T, bias=means[:, -1].copy()), choices


RULES: dict[str, Rule] = {
    "expert_router": Rule(fit_clusters, "clusters, each to the expert that does best on it (Expert Router)"),
    "modem": Rule(fit_domains, "supervised domains, each to its best expert (MoDEM, arXiv 2410.07490)"),
    "routellm": Rule(fit_win, "threshold on P(strong wins) (RouteLLM, arXiv 2406.18665)", pair=True, calibrated=False),
    "hybrid_llm": Rule(
        fit_need, "threshold on P(weak is worse) (Hybrid LLM, arXiv 2404.14618)", pair=True, calibrated=False
    ),
    "hybrid_llm_ratio": Rule(fit_ratio, "threshold on the ratio of predicted scores", pair=True, calibrated=False),
    "polyrouter_ridge": Rule(
        fit_ridge, "predicted score - weight x cost, ridge regression (PolyRouter, arXiv 2408.12320)"
    ),
    "polyrouter_logistic": Rule(fit_logistic, "the same, logistic regression"),
    "polyrouter_knn": Rule(fit_neighbours, "the same, nearest training prompts"),
    "polyrouter_network": Rule(fit_network, "the same, a network with one hidden layer"),
    "cascade": Rule(
        fit_cascade,
        "cheapest expert first, on if its predicted score is low (FrugalGPT, arXiv 2305.05176)",
        cascade=True,
    ),
    "linucb": Rule(fit_linucb, "contextual bandit, upper confidence bound (Li et al. 2010)", online=True),
    "thompson": Rule(fit_thompson, "contextual bandit, Thompson sampling (Agrawal and Goyal 2013)", online=True),
}


@dataclass(frozen=True)
class Encoded:
    """Training prompts as vectors: shared by all rules that use the same features."""

    outcomes: Outcomes
    encoder: object
    vectors: np.ndarray


def encode(outcomes: Outcomes, features: str = FEATURE, dimensions: int = DIMENSIONS, seed: int = 0) -> Encoded:
    """Fit features (`erlab.routing.features.FEATURES`) to the prompts."""
    require(features in FEATURES, "features", "a router", f"be one of {', '.join(FEATURES)}", features)
    transformer = FEATURES[features](dimensions, seed)
    with threadpool_limits(1):  # more threads spin on busy cores
        vectors = transformer.fit_transform(list(outcomes.texts))
    return Encoded(outcomes, transformer.encoder_, vectors)


def strong_and_weak(outcomes: Outcomes, strong: str | None = None, weak: str | None = None) -> tuple[int, int]:
    """Return the indices of the strong and the weak expert.

    Args:
        outcomes: Outcomes of at least two experts.
        strong: Name; None for the expert of the highest mean score.
        weak: Name; None for the cheapest of the others, or of lowest mean score where a cost is unknown.
    """
    means, costs = outcomes.mean_scores(), outcomes.mean_costs()
    for parameter, name in ("strong", strong), ("weak", weak):
        allowed = f"be one of {', '.join(outcomes.experts)}"
        require(name is None or name in outcomes.experts, parameter, "a router", allowed, name)
    require(strong is None or strong != weak, "weak", "a router", "differ from the strong expert", weak)
    others = [i for i in range(len(means)) if outcomes.experts[i] != weak]
    s = outcomes.experts.index(strong) if strong else max(others, key=means.__getitem__)
    worth = costs if np.isfinite(costs).all() else means
    others = [i for i in range(len(means)) if i != s]
    return s, outcomes.experts.index(weak) if weak else min(others, key=worth.__getitem__)


def fit(
    name: str,
    encoded: Encoded,
    pair: tuple[int, int],
    weight: float = 0.0,
    clusters: int = CLUSTERS,
    clusterer: str = CLUSTERER,
    seed: int = 0,
) -> tuple[CompiledRouter, np.ndarray | None]:
    """Fit a rule.

    Args:
        name: Name in RULES.
        encoded: Training prompts.
        pair: Indices of the strong and the weak expert, see `strong_and_weak`.
        weight: Score that one dollar is worth.
        clusters, clusterer: Of the Expert Router.
        seed: Random seed.

    Returns:
        The router, without the words that describe its clusters, and the choices during learning of an online rule.
    """
    rule, outcomes = RULES[name], encoded.outcomes
    columns = list(pair[::-1]) if rule.pair else list(range(len(outcomes.experts)))
    costs = outcomes.mean_costs()[columns]
    scores = outcomes.scores[:, columns]
    training = Training(encoded.vectors, scores, costs, outcomes.tasks, clusters, clusterer, seed)
    with threadpool_limits(1):
        maker = rule.fit(training)
    maker, online = maker if rule.online else (maker, None)
    prices = _prices(rule, training, weight)
    draft = maker(np.zeros((len(columns), encoded.vectors.shape[1])), prices)
    labels = draft.costs(encoded.vectors, None).argmin(axis=1)
    outliers = OutlierScore.fit(encoded.vectors, labels, len(columns))
    router = CompiledRouter()
    router.encoder_, router.head_ = encoded.encoder, maker(outliers.centers, prices)
    router.experts_ = tuple(outcomes.experts[c] for c in columns)
    router.outlier_score_, router.threshold_, router.difficulty_ = outliers, None, None
    router.terms_ = [[] for _ in columns]
    return router, None if online is None else np.asarray(columns)[online]


def _prices(rule: Rule, training: Training, weight: float) -> np.ndarray:
    """Return the prices of the experts in units of score; of a cascade, what orders them."""
    known = np.isfinite(training.costs).all()
    if rule.cascade:
        return training.costs if known else training.means()
    if weight and not known:
        raise ErlabError(f"The 'weight' parameter of a router must be 0 where costs are unknown. Got {weight:g}.")
    return weight * training.costs if weight else np.zeros(len(training.costs))


def train(
    name: str,
    outcomes: Outcomes,
    features: str = FEATURE,
    dimensions: int = DIMENSIONS,
    weight: float = 0.0,
    clusters: int = CLUSTERS,
    clusterer: str = CLUSTERER,
    strong: str | None = None,
    weak: str | None = None,
    seed: int = 0,
) -> CompiledRouter:
    """Train a router on all outcomes, to be saved and served.

    Args:
        name: Name in RULES.
        outcomes: Outcomes of at least two experts.
        features: Name in `erlab.routing.features.FEATURES`.
        dimensions: Dimensions of the vectors.
        weight: Score that one dollar is worth; 0 ignores costs.
        clusters, clusterer: Of the Expert Router.
        strong, weak: Experts of rules for two, see `strong_and_weak`.
        seed: Random seed.

    Raises:
        ErlabError: A parameter is not allowed, or there is one expert only.
    """
    check(outcomes, [name], clusters, clusterer)
    encoded = encode(outcomes, features, dimensions, seed)
    pair = strong_and_weak(outcomes, strong, weak)
    router, _ = fit(name, encoded, pair, weight, clusters, clusterer, seed)
    labels = router.decide(encoded.vectors).cluster
    router.terms_ = top_terms(outcomes.texts, labels, len(router.experts_))
    return router


def check(outcomes: Outcomes, names: list[str], clusters: int = CLUSTERS, clusterer: str = CLUSTERER) -> None:
    """Raise ErlabError for parameters that `train` rejects."""
    for name in names:
        require(name in RULES, "router", "quality", f"be one of {', '.join(RULES)}", name)
    require(clusters >= 1, "clusters", "a router", "be at least 1", clusters)
    require(clusterer in CLUSTERERS, "clusterer", "a router", f"be one of {', '.join(CLUSTERERS)}", clusterer)
    require(len(outcomes.experts) > 1, "outcomes", "a router", "hold at least two experts", outcomes.experts)


Decided = tuple[np.ndarray, np.ndarray | None]  # choices (n,), and predicted scores (n, e) if there are


def best_single(train: Outcomes, test: Outcomes, seed: int) -> Decided:
    """Choose the expert of the highest mean score on the training prompts for all prompts."""
    return np.full(len(test), train.mean_scores().argmax()), None


def cheapest(train: Outcomes, test: Outcomes, seed: int) -> Decided | None:
    """Choose the expert of the lowest mean cost for all prompts; None if costs are unknown."""
    costs = train.mean_costs()
    return (np.full(len(test), costs.argmin()), None) if np.isfinite(costs).all() else None


def random(train: Outcomes, test: Outcomes, seed: int) -> Decided:
    """Choose a random expert for each prompt; its predicted scores are equal."""
    choices = np.random.default_rng(seed).integers(0, len(test.experts), len(test))
    return choices, np.zeros(test.scores.shape)


def best_per_task(train: Outcomes, test: Outcomes, seed: int) -> Decided:
    """Choose the best expert of the prompt's task, which it is told; for an unknown task the best single one."""
    means = train.mean_scores()
    table = {task: _smoothed(train.scores[train.tasks == task], means) for task in np.unique(train.tasks)}
    predicted = np.array([table.get(task, means) for task in test.tasks])
    return predicted.argmax(axis=1), predicted


def oracle(train: Outcomes, test: Outcomes, seed: int) -> Decided:
    """Choose the best answer of each prompt, the one of the lowest mean cost among equals: no router does better."""
    scores = np.where(np.isnan(test.scores), -np.inf, test.scores)
    order = np.argsort(np.nan_to_num(train.mean_costs(), nan=np.inf), kind="stable")
    return order[scores[:, order].argmax(axis=1)], test.scores


BASELINES: dict[str, Callable[[Outcomes, Outcomes, int], Decided | None]] = {
    baseline.__name__: baseline for baseline in (best_single, cheapest, random, best_per_task, oracle)
}
