"""Rules: what they learn, that they decide as fitted after saving and loading, and that a gateway serves them."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import NearestNeighbors

from erlab.errors import ErlabError
from erlab.quality import outcomes, routers
from erlab.routing import CompiledRouter, PromptRouter, explain
from erlab.routing.heads import HEADS

PAIR = (1, 0)  # of the example: the generalist against the cook


@pytest.fixture(scope="module")
def encoded(example):
    return routers.encode(example, dimensions=20)


def scores(name, encoded, **parameters):
    router, _ = routers.fit(name, encoded, PAIR, **parameters)
    return router, router.head_.scores(encoded.vectors)


@pytest.mark.parametrize("name", routers.RULES)
def test_a_saved_router_decides_the_same(name, encoded, tmp_path):
    router, predicted = scores(name, encoded, clusters=6)
    loaded = CompiledRouter.load(router.save(tmp_path / "router"))
    assert loaded.experts_ == router.experts_ and loaded.head_.kind == router.head_.kind
    texts = [*encoded.outcomes.texts, "", "unknown ☃"]
    before, after = router.route(texts), loaded.route(texts)
    for part in ("cluster", "costs", "distance", "margin", "runner_up"):
        np.testing.assert_array_equal(getattr(before, part), getattr(after, part))
    np.testing.assert_array_equal(loaded.head_.scores(encoded.vectors), predicted)
    assert PromptRouter.load(tmp_path / "router").predict(texts).tolist() == before.cluster.tolist()
    decision = explain.explain(loaded, ["boil an egg"])[0]
    assert decision["expert"] == loaded.experts_[decision["cluster"]] and decision["expert"] in explain.title(decision)
    loaded.save(tmp_path / "again")
    assert {f.name: f.read_bytes() for f in (tmp_path / "again").iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "router").iterdir()
    }


def test_deciding_needs_no_scikit_learn(encoded, tmp_path):
    router, _ = scores("polyrouter_network", encoded)
    router.save(tmp_path / "router")
    code = (
        "import sys; from erlab.routing import CompiledRouter; CompiledRouter.load(sys.argv[1]).route(['boil an egg']);"
        "assert not {'sklearn', 'pickle5', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "router"], check=True)


def test_expert_router_sends_each_cluster_to_its_best_expert(encoded):
    router, predicted = scores("expert_router", encoded, clusters=3)
    inner = router.head_.clusters
    clusters = inner.costs(encoded.vectors, inner.distances(encoded.vectors)).argmin(axis=1)
    table = encoded.outcomes.scores
    for c in range(3):
        rows = table[clusters == c]
        smoothed = (rows.sum(axis=0) + routers._PRIOR * table.mean(axis=0)) / (len(rows) + routers._PRIOR)
        np.testing.assert_allclose(predicted[clusters == c], np.tile(smoothed, (len(rows), 1)))


def test_linear_rules_predict_as_scikit_learn_does(encoded):
    vectors, table = encoded.vectors, encoded.outcomes.scores
    _, ridge = scores("polyrouter_ridge", encoded)
    _, logistic = scores("polyrouter_logistic", encoded)
    _, ratio = scores("hybrid_llm_ratio", encoded)
    for e in range(3):
        model = RidgeCV((0.3, 1, 3, 10, 30)).fit(vectors, table[:, e])
        np.testing.assert_allclose(ridge[:, e], model.predict(vectors), atol=1e-9)
        model = LogisticRegression(max_iter=500).fit(vectors, table[:, e])
        np.testing.assert_allclose(logistic[:, e], model.predict_proba(vectors)[:, 1], atol=1e-3)
    np.testing.assert_allclose(ratio, np.log(logistic[:, [0, 1]]), atol=1e-9)


def test_neighbours_are_those_of_scikit_learn(encoded):
    _, predicted = scores("polyrouter_knn", encoded)
    nearest = (
        NearestNeighbors(n_neighbors=80).fit(encoded.vectors).kneighbors(encoded.vectors[:50], return_distance=False)
    )
    np.testing.assert_allclose(predicted[:50], encoded.outcomes.scores[nearest].mean(axis=1))


def test_fractional_scores_count_in_part(encoded):
    """Half a point for every prompt is the same to logistic regression as one for every other of equal prompts."""
    vectors = np.repeat(encoded.vectors[:40], 2, axis=0)
    weights, bias = routers._logistic(vectors, np.tile([0.0, 1.0], 40))
    assert vectors @ weights + bias == pytest.approx(np.zeros(80), abs=1e-3)
    weights, bias = routers._logistic(encoded.vectors, np.full(300, 0.5))
    assert encoded.vectors @ weights + bias == pytest.approx(np.zeros(300), abs=1e-3)


def test_half_of_the_training_prompts_go_to_the_strong_expert(encoded):
    for name in ("routellm", "hybrid_llm"):
        router, _ = scores(name, encoded)
        assert router.experts_ == ("cook", "generalist")
        assert router.decide(encoded.vectors).cluster.mean() == pytest.approx(0.5, abs=0.01)


def test_a_cascade_stops_at_the_first_confident_expert(encoded):
    router, predicted = scores("cascade", encoded)
    costs = encoded.outcomes.mean_costs()
    for chosen, row in zip(router.decide(encoded.vectors).cluster, predicted):
        confident = [e for e in costs.argsort() if row[e] >= 0.5]
        assert chosen == (confident[0] if confident else costs.argmax())


def test_the_weight_of_cost_moves_prompts_to_cheap_experts(encoded):
    shares = []
    for weight in (0.0, 5.0, 1e6):
        router, _ = scores("polyrouter_ridge", encoded, weight=weight)
        shares.append((router.decide(encoded.vectors).cluster == router.experts_.index("generalist")).mean())
    assert shares[0] > shares[1] > shares[2] == 0


def test_bandits_find_the_better_expert_and_see_only_their_own_answers():
    rng = np.random.default_rng(0)
    texts = [f"{rng.choice(['egg', 'rice', 'salt'])} {rng.choice(['boil', 'fry'])} {i}" for i in range(400)]
    rows = [(text, e, float(rng.random() < p)) for text in texts for e, p in (("bad", 0.2), ("good", 0.8))]
    table = outcomes.of_frame(pd.DataFrame(rows, columns=["text", "expert", "score"]))
    encoded = routers.encode(table, dimensions=5)
    for name in ("linucb", "thompson"):
        router, online = routers.fit(name, encoded, (1, 0))
        assert online[200:].mean() > 0.9 > online[:10].mean()
        assert router.decide(encoded.vectors).cluster.mean() > 0.95
        hidden = table.scores.copy()
        hidden[np.arange(400), 1 - online] = np.where(hidden[np.arange(400), 1 - online] > 0.5, 0.0, 1.0)  # not seen
        changed = routers.Encoded(replace(table, scores=hidden), encoded.encoder, encoded.vectors)
        assert routers.fit(name, changed, (1, 0))[1].tolist() == online.tolist()


def test_missing_pairs_and_an_expert_that_never_answered(example):
    holes = example.scores.copy()
    holes[::3, 0] = np.nan
    holes[:, 2] = np.nan
    encoded = routers.encode(replace(example, scores=holes), dimensions=10)
    for name in routers.RULES:
        router, predicted = scores(name, encoded, clusters=4)
        assert np.isfinite(predicted).all(), name
        if name not in ("cascade",):
            assert (np.asarray(router.experts_)[router.decide(encoded.vectors).cluster] != "lawyer").all(), name


def test_what_cannot_be_trained_is_one_line(example):
    one = replace(example, experts=("cook",), scores=example.scores[:, :1], costs=example.costs[:, :1])
    for table, parameters, message in (
        (one, {}, "'outcomes' parameter of a router must hold at least two experts. Got \\('cook',\\)"),
        (example, {"features": "smell"}, "'features' parameter of a router must be one of words"),
        (example, {"clusterer": "x"}, "'clusterer' parameter"),
        (example, {"clusters": 0}, "'clusters' parameter of a router must be at least 1"),
        (example, {"strong": "nobody"}, "'strong' parameter of a router must be one of cook, generalist, lawyer"),
        (example, {"strong": "cook", "weak": "cook"}, "differ from the strong expert"),
        (replace(example, costs=example.costs * np.nan), {"weight": 1}, "must be 0 where costs are unknown"),
    ):
        with pytest.raises(ErlabError, match=message):
            routers.train("expert_router", table, **parameters)
    with pytest.raises(ErlabError, match="must be one of expert_router, modem"):
        routers.train("magic", example)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": ["cook"]}, "the experts must be different names"),
        ({"experts": ["cook", "cook", "x"]}, "the experts must be different names"),
        ({"experts": "abc"}, "the experts must be different names"),
        ({"head": {"kind": "linear scores"}}, "not a complete router"),
        ({"head": {"kind": "neighbour scores"}}, "not a complete router"),
    ],
)
def test_damaged_routers_are_refused(change, message, encoded, tmp_path):
    router, _ = scores("expert_router", encoded, clusters=4)
    file = router.save(tmp_path / "router") / "router.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ErlabError, match=message):
        CompiledRouter.load(tmp_path / "router")


@pytest.mark.parametrize("kind", [kind for kind, head in HEADS.items() if hasattr(head, "parts")])
def test_arrays_of_other_shapes_are_refused(kind, encoded):
    name = next(n for n in routers.RULES if routers.fit(n, encoded, PAIR, clusters=4)[0].head_.kind == kind)
    arrays = routers.fit(name, encoded, PAIR, clusters=4)[0].head_.arrays()
    HEADS[kind].restore(arrays)
    for part in arrays:
        if part.startswith("clusters.") or part in ("centers", "examples", "threshold"):
            continue
        with pytest.raises((ValueError, IndexError)):
            HEADS[kind].restore(arrays | {part: arrays[part][..., :-1]})
