"""Evaluation of routers on an outcome table: every prompt is decided by a router that was not trained on its text.

Prompts are split into folds by the hash of their text. For each fold, every rule is fitted to the other folds and
decides the fold's prompts. Quality is that of the recorded answers; only the decision's latency is measured here.

>>> from erlab.quality import examples
>>> evaluation = evaluate(examples.outcomes(150), ["expert_router"], folds=2, clusters=6)
>>> evaluation.table()["router"].tolist()
['best_single', 'cheapest', 'random', 'best_per_task', 'oracle', 'expert_router']
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from erlab.quality import measures, routers
from erlab.quality import outcomes as outcome_tables
from erlab.quality.outcomes import Outcomes
from erlab.quality.routers import BASELINES, CLUSTERER, CLUSTERS, DIMENSIONS, FEATURE, RULES
from erlab.routing.evaluation import latency
from erlab.spec import require

FOLDS, TRAINING, PROMPTS = 5, 5_000, 20_000
RECOVERED = (0.5, 0.8)  # shares of the gap whose CPT is stated
_WEIGHTS = np.concatenate(
    [[0.0], np.geomspace(1e-3, 1e3, 39), [np.inf]]
)  # of cost, in units of score / spread of costs


@dataclass(eq=False)
class Evaluation:
    """Decisions of routers on prompts that they were not trained on.

    Attributes:
        outcomes: The n prompts and e experts.
        pair: Indices of the strong and the weak expert, for measures of two experts.
        training: Prompts that each router was trained on, at most.
        choices: Chosen expert of each prompt, (n,), by router.
        predicted: Predicted scores, (n, e), by router that predicts some; NaN for experts that it does not know.
        asked: Experts that each prompt asks, (n, e) bool, by cascading router.
        decision_ms: Median latency of a single decision, by router that is served.
        online: Score of each training prompt's choice while a bandit learned, and the highest score, by router.
    """

    outcomes: Outcomes
    pair: tuple[int, int]
    training: int
    choices: dict[str, np.ndarray] = field(default_factory=dict)
    predicted: dict[str, np.ndarray] = field(default_factory=dict)
    asked: dict[str, np.ndarray] = field(default_factory=dict)
    decision_ms: dict[str, float] = field(default_factory=dict)
    online: dict[str, pd.DataFrame] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Return one row per router.

        Columns (see `measures`; None where undefined or unknown):

        - router, prompts (whose chosen answer has a score)
        - accuracy, accuracy_low, accuracy_high: mean score and 95 % bootstrap interval
        - gain, gain_low, gain_high: over the best single expert, paired by prompt
        - gap_recovered, regret
        - cost: mean dollars per prompt; aiq
        - apgr, cpt_50, cpt_80: between the strong and the weak expert
        - largest_share, imbalance: of prompts over experts
        - calibration_error
        - decision_ms: median latency of one decision on this machine
        """
        return pd.DataFrame([self._row(name) for name in self.choices])

    def _row(self, name: str) -> dict:
        scores, choices = self.outcomes.scores, self.choices[name]
        mine, best = measures.chosen(scores, choices), measures.chosen(scores, self.choices["best_single"])
        accuracy, gain = measures.interval(mine), measures.interval(mine - best)
        known = ~np.isnan(mine)
        top, reference = np.nanmax(scores[known], axis=1).mean(), np.nanmean(best)
        share = measures.shares(choices, scores.shape[1])
        cost, curve, deferral = self._cost(name), self.curve(name), self.deferral(name)
        low, high = self._cost_range()
        bins = self.calibration(name)
        return {
            "router": name,
            "prompts": int(known.sum()),
            **_named("accuracy", accuracy),
            **_named("gain", gain),
            "gap_recovered": measures.gap_recovered(accuracy.mean, reference, top) if accuracy else None,
            "regret": float(np.nanmean(measures.regret(scores, choices))) if accuracy else None,
            "cost": cost,
            "aiq": None if curve is None else measures.aiq(curve["cost"], curve["accuracy"], low, high),
            "apgr": None if deferral is None else measures.apgr(deferral),
            **{f"cpt_{x:.0%}"[:-1]: None if deferral is None else measures.cpt(deferral, x) for x in RECOVERED},
            "largest_share": float(share.max()),
            "imbalance": measures.imbalance(share),
            "calibration_error": None if bins is None else measures.calibration_error(bins),
            "decision_ms": self.decision_ms.get(name),
        }

    def _cost(self, name: str) -> float | None:
        """Return the mean cost per prompt; None unless all of it is known."""
        costs = self.outcomes.costs
        total = np.where(self.asked[name], costs, 0).sum(axis=1) if name in self.asked else None
        total = measures.chosen(costs, self.choices[name]) if total is None else total
        return None if np.isnan(total).any() else float(total.mean())

    def _cost_range(self) -> tuple[float, float]:
        costs = self.outcomes.mean_costs()
        return float(costs.min()), float(costs.max())

    def curve(self, name: str) -> pd.DataFrame | None:
        """Return a router's quality-cost curve: mean cost and accuracy as the weight of cost grows.

        Each prompt goes to the expert of the highest predicted score - weight x mean cost of the expert; of a cascade,
        the threshold varies instead. None where costs are unknown or the router predicts no scores.
        """
        costs, scores = self.outcomes.costs, self.outcomes.scores
        if name not in self.predicted or np.isnan(costs).any() or np.isnan(scores).any():
            return None
        mean, predicted = self.outcomes.mean_costs(), self.predicted[name]
        known = np.where(np.isnan(predicted), -np.inf, predicted)
        rows = []
        if name in self.asked:
            for threshold in np.linspace(0, 1, len(_WEIGHTS)):
                asked = _asked(predicted, mean, threshold)
                last = np.where(asked, mean, -1).argmax(axis=1)
                rows.append(
                    (threshold, np.where(asked, costs, 0).sum(axis=1).mean(), measures.chosen(scores, last).mean())
                )
        else:
            spread = np.ptp(mean) or 1.0
            for weight in _WEIGHTS:
                by_cost = np.where(np.isfinite(known), -mean, -np.inf)
                value = known - weight / spread * mean if np.isfinite(weight) else by_cost
                choices = value.argmax(axis=1)
                rows.append(
                    (weight / spread, measures.chosen(costs, choices).mean(), measures.chosen(scores, choices).mean())
                )
        curve = pd.DataFrame(rows, columns=["weight", "cost", "accuracy"]).sort_values("cost", kind="stable")
        return curve.drop_duplicates(["cost", "accuracy"]).reset_index(drop=True)

    def deferral(self, name: str) -> pd.DataFrame | None:
        """Return a router's deferral curve (`measures.deferral`) on the prompts answered by both experts of `pair`."""
        if name not in self.predicted:
            return None
        strong, weak = (self.outcomes.scores[:, i] for i in self.pair)
        gap = self.predicted[name][:, self.pair[0]] - self.predicted[name][:, self.pair[1]]
        known = ~np.isnan(strong + weak + gap)
        return measures.deferral(strong[known], weak[known], gap[known]) if known.any() else None

    def calibration(self, name: str) -> pd.DataFrame | None:
        """Return predicted against observed scores (`measures.calibration`); None for rules that predict no scores."""
        if name in BASELINES or not RULES[name].calibrated:
            return None
        return measures.calibration(self.predicted[name], self.outcomes.scores)

    def shares(self) -> pd.DataFrame:
        """Return the share of prompts that each expert gets, one row per router and expert."""
        names = self.outcomes.experts
        rows = {name: measures.shares(choices, len(names)) for name, choices in self.choices.items()}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=list(names)).rename_axis("router")
        return table.reset_index().melt("router", var_name="expert", value_name="share")

    def tasks(self) -> pd.DataFrame:
        """Return the accuracy of each router on each task, one row per router and task."""
        frames = []
        for name, choices in self.choices.items():
            rows = pd.DataFrame(
                {"task": self.outcomes.tasks, "accuracy": measures.chosen(self.outcomes.scores, choices), "prompts": 1}
            )
            by_task = rows.groupby("task").agg({"accuracy": "mean", "prompts": "sum"}).reset_index()
            frames.append(by_task.assign(router=name))
        return pd.concat(frames, ignore_index=True)[["router", "task", "prompts", "accuracy"]]


def _named(name: str, interval: measures.Interval | None) -> dict:
    mean, low, high = interval or (None, None, None)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _asked(predicted: np.ndarray, costs: np.ndarray, threshold: float) -> np.ndarray:
    """Return the experts that a cascade asks, (n, e) bool: by cost up to the first that reaches the threshold."""
    order = np.argsort(costs, kind="stable")
    sure = predicted[:, order] >= threshold
    before = np.cumsum(sure, axis=1) - sure  # experts of lower cost that are sure
    asked = np.empty(predicted.shape, dtype=bool)
    asked[:, order] = before == 0
    return asked


def evaluate(
    outcomes: Outcomes,
    names: Sequence[str] = tuple(RULES),
    folds: int = FOLDS,
    training: int = TRAINING,
    prompts: int = PROMPTS,
    features: str = FEATURE,
    dimensions: int = DIMENSIONS,
    clusters: int = CLUSTERS,
    clusterer: str = CLUSTERER,
    strong: str | None = None,
    weak: str | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> Evaluation:
    """Evaluate rules and all baselines.

    Args:
        outcomes: Outcomes of at least two experts.
        names: Names in `routers.RULES`.
        folds: Number of folds, at least 2.
        training: Training prompts per fold, at most.
        prompts: Prompts that are evaluated, at most.
        features, dimensions: Of the prompts' vectors, see `routers.encode`.
        clusters, clusterer: Of the Expert Router.
        strong, weak: Experts of measures and rules for two, see `routers.strong_and_weak`.
        seed: Random seed.
        progress: Called with a description of each step.

    Raises:
        ErlabError: A parameter is not allowed, there is one expert only, or too few prompts differ.
    """
    names = list(dict.fromkeys(names))
    routers.check(outcomes, names, clusters, clusterer)
    require(folds >= 2, "folds", "evaluate", "be at least 2", folds)
    require(training >= 1, "training", "evaluate", "be at least 1", training)
    outcomes = outcomes.sample(prompts)
    outcomes = outcomes.take(np.argsort(outcome_tables.hashes(outcomes.texts), kind="stable"))  # for online rules
    pair = routers.strong_and_weak(outcomes, strong, weak)
    evaluation = Evaluation(outcomes, pair, training)
    fold = outcome_tables.folds(outcomes.texts, folds)
    used = np.unique(fold)
    allowed = f"hold different prompts for at least 2 of {folds} folds"
    require(len(used) > 1, "outcomes", "evaluate", allowed, f"{len(outcomes)} prompts")
    for number in used:
        rows = np.flatnonzero(fold == number)
        train, test = outcomes.take(fold != number).sample(training), outcomes.take(rows)
        for name, baseline in BASELINES.items():
            if (decided := baseline(train, test, seed + int(number))) is not None:
                _keep(evaluation, name, rows, range(len(outcomes.experts)), *decided)
        if not names:
            continue
        progress(f"fold {number + 1} of {folds}: features of {len(train):,} prompts")
        encoded = routers.encode(train, features, dimensions, seed)
        vectors = encoded.encoder.encode(list(test.texts))
        for name in names:
            progress(f"fold {number + 1} of {folds}: {name}")
            router, online = routers.fit(name, encoded, pair, 0.0, clusters, clusterer, seed)
            columns = [outcomes.experts.index(expert) for expert in router.experts_]
            predicted = router.head_.scores(vectors)
            _keep(evaluation, name, rows, columns, router.decide(vectors).cluster, predicted)
            if RULES[name].cascade:
                asked = evaluation.asked.setdefault(name, np.zeros(outcomes.scores.shape, dtype=bool))
                asked[rows] = _asked(predicted, router.head_.prices, float(router.head_.threshold[0]))
            if online is not None and number == used[0]:
                best = np.nanmax(train.scores, axis=1)
                evaluation.online[name] = pd.DataFrame({"score": measures.chosen(train.scores, online), "best": best})
            if number == used[0]:
                evaluation.decision_ms[name] = latency(router, test.texts)["p50_ms"]
    return evaluation


def _keep(evaluation: Evaluation, name: str, rows: np.ndarray, columns: Sequence[int], choices, predicted) -> None:
    """Record the decisions of a router that knows the experts `columns` on the prompts `rows`."""
    n, e = evaluation.outcomes.scores.shape
    evaluation.choices.setdefault(name, np.zeros(n, dtype=int))[rows] = np.asarray(list(columns))[choices]
    if predicted is not None:
        kept = evaluation.predicted.setdefault(name, np.full((n, e), np.nan))
        kept[np.ix_(rows, list(columns))] = predicted
