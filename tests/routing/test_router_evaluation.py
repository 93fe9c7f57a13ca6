"""Tests of routing metrics, router summaries, the comparison of recipes and their figures."""

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from domain_prompts import DOMAINS, make_prompts

from erlab.errors import ErlabError
from erlab.figures import routing
from erlab.routing import PromptRouter, evaluation


def test_purity_is_the_share_of_majorities():
    clusters, domains = np.array([0, 0, 0, 1, 1]), np.array(list("aabbb"), dtype=object)
    assert evaluation.purity(clusters, domains) == 4 / 5


def test_top_domains_break_ties_by_name_and_leave_empty_clusters_unknown():
    clusters, domains = np.array([0, 0, 2]), np.array(["b", "a", "c"], dtype=object)
    assert evaluation.top_domains(clusters, domains, 4) == ["a", None, "c", None]


def test_macro_accuracy_weights_domains_equally():
    domains = np.array(["a"] * 8 + ["b"] * 2, dtype=object)
    clusters = np.array([0] * 8 + [1, 0])
    assert evaluation.macro_accuracy(clusters, domains, ["a", "b"]) == (1 + 0.5) / 2
    assert evaluation.macro_accuracy(clusters, domains, ["a", "a"]) == (1 + 0) / 2
    assert evaluation.macro_accuracy(clusters[:0], domains[:0], ["a", "b"]) is None


def test_largest_to_mean():
    assert evaluation.largest_to_mean(np.array([0, 0, 0, 1]), 4) == 3
    assert evaluation.largest_to_mean(np.array([1, 0]), 2) == 1
    assert evaluation.largest_to_mean(np.array([], dtype=int), 2) is None


def test_summary_of_separable_domains(prompts):
    train = prompts.filter(lambda s: s == "train", input_columns="split")
    router = PromptRouter(clusters=4).fit(train["text"])
    summary = evaluation.summary(router, prompts)
    assert sum(c["size"] for c in summary["clusters"]) == len(train) == summary["prompts"]["train"]
    assert sum(c["share"] for c in summary["clusters"]) == pytest.approx(1)
    for cluster in summary["clusters"]:
        assert sum(cluster["domains"].values()) == cluster["size"]
        assert cluster["purity"] == cluster["domains"][cluster["top_domain"]] / cluster["size"]
    assert summary["purity"] == sum(c["purity"] * c["share"] for c in summary["clusters"])
    assert summary["purity"] > 0.9 and summary["held_back_accuracy"] > 0.9 and summary["ari"] > 0.8
    for cluster in summary["clusters"]:
        assert set(cluster["terms"][:3]) <= set(DOMAINS[cluster["top_domain"]])
    assert {len(v) for v in summary["points"].values()} == {len(train)}


def test_summary_is_small_plain_json_and_deterministic():
    prompts = Dataset.from_list(make_prompts(2000, seed=2))
    router = PromptRouter(clusters=8, seed=5).fit(prompts["text"])
    text = json.dumps(evaluation.summary(router, prompts), allow_nan=False)
    assert len(text) < 40_000
    assert len(json.loads(text)["points"]["x"]) == 400
    assert text == json.dumps(evaluation.summary(router, prompts))


def test_summary_without_a_split(prompts):
    train = prompts.filter(lambda s: s == "train", input_columns="split")
    router = PromptRouter(clusters=2).fit(train["text"])
    summary = evaluation.summary(router, train)
    assert summary["held_back_accuracy"] is None and summary["largest_to_mean"]["held_back"] is None
    held_back = prompts.filter(lambda s: s == "held_back", input_columns="split")
    with pytest.raises(ErlabError, match="split 'train'"):
        evaluation.summary(router, held_back)


def test_random_clusters_score_at_chance_level():
    """The adjusted Rand index of random clusters is near 0, unlike their purity."""
    rows = make_prompts(400, seed=3)
    rng = np.random.default_rng(0)
    labels = dict(zip((r["text"] for r in rows), rng.integers(0, 4, 400), strict=True))
    random = SimpleNamespace(
        clusters=4,
        seed=0,
        dimensions_=2,
        terms_=[[]] * 4,
        predict=lambda texts: np.array([labels[t] for t in texts], dtype=int),
        embed=lambda texts: rng.normal(size=(len(texts), 2)),
    )
    summary = evaluation.summary(random, Dataset.from_list(rows))
    assert abs(summary["ari"]) < 0.05 and summary["purity"] < 0.45 and summary["held_back_accuracy"] < 0.5


def test_compare_measures_each_recipe(prompts):
    balanced = {"features": "characters", "clusterer": "balanced"}
    recipes = {"words, plain": {"clusterer": "kmeans"}, "characters, even": balanced}
    unknown = ["zebra giraffe elephant savanna", "quantum yacht", "gravel pit"] * 5
    table = evaluation.compare(prompts, recipes=recipes, clusters=4, seeds=[0, 1], other=prompts, unknown=unknown)
    assert list(table.index) == list(recipes)
    held = prompts.filter(lambda s: s == "held_back", input_columns="split")
    expected = []
    for seed in (0, 1):
        train = prompts.filter(lambda s: s == "train", input_columns="split")
        router = PromptRouter(4, "characters", "balanced", seed=seed).fit(train["text"])
        tops = evaluation.top_domains(router.labels_, np.array(train["domain"][:], dtype=object), 4)
        clusters = router.predict(held["text"])
        expected.append(evaluation.macro_accuracy(clusters, np.array(held["domain"][:], dtype=object), tops))
    assert table.loc["characters, even", "unseen"] == pytest.approx(np.mean(expected))
    assert table["stability"].between(0.5, 1).all() and table["outliers"].between(0.5, 1).all()
    assert (table[["p50_ms", "batch_ms", "fit_s", "size_mb"]] > 0).all().all()
    assert table["exact"].to_list() == table["unseen"].to_list(), "compiled tables decide like scikit-learn's pipeline"
    assert table["sent"].between(0, 1).all()
    plain = evaluation.compare(prompts, recipes={"paper": {}}, clusters=4, seeds=[0])
    assert plain[["other", "stability", "outliers"]].isna().all().all()
    axes = routing.frontier(table).axes[0]
    assert len(axes.collections[0].get_offsets()) == 2
    assert [b.get_width() for b in routing.loads(table).axes[0].patches] == sorted(table["load"])


def test_confusion_rows_are_shares_of_each_domain(prompts):
    rows = prompts.to_pandas()
    train, held = rows[rows["split"] == "train"], rows[rows["split"] == "held_back"]
    router = PromptRouter(clusters=3).fit(train["text"])  # fewer clusters than domains
    shares = evaluation.confusion(router, prompts)
    tops = evaluation.top_domains(router.labels_, train["domain"].to_numpy(), 3)
    assert set(shares.index) == set(DOMAINS) and set(shares.columns) <= set(tops)
    for domain, members in held.groupby("domain"):
        sent = [tops[c] for c in router.predict(members["text"])]
        assert shares.loc[domain].to_dict() == pytest.approx({d: sent.count(d) / len(sent) for d in shares.columns})
    right = [shares.loc[d].get(d, 0.0) for d in DOMAINS]
    accuracy = evaluation.macro_accuracy(router.predict(held["text"]), held["domain"].to_numpy(), tops)
    assert np.mean(right) == pytest.approx(accuracy)


def test_labels_of_close_points_do_not_overlap():
    """Labels keep the order of the points, keep a distance, and stay within the axes."""
    same = pd.DataFrame({"p50_ms": [0.05, 0.06, 0.05, 5.0], "unseen": [0.95, 0.95, 0.951, 0.4]}, index=list("abcd"))
    texts = routing.frontier(same).axes[0].texts
    heights = [text.xyann[1] for text in texts]
    assert [text.get_text()[0] for text in texts] == ["d", "a", "b", "c"] and heights == sorted(heights)
    assert min(np.diff(heights)) >= 0.0999 and 0 <= heights[0] and heights[-1] <= 1


def test_plots_show_every_cluster_and_domain(prompts):
    router = PromptRouter(clusters=5).fit(prompts["text"])
    summary = evaluation.summary(router, prompts)
    figure = routing.projection(summary)
    assert {t.get_text() for t in figure.axes[0].texts} == set("01234")
    assert {t.get_text() for t in figure.axes[0].get_legend().get_texts()} == set(DOMAINS)
    figure = routing.composition(summary)
    bars, heat = figure.axes
    assert sorted(p.get_height() for p in bars.patches) == sorted(c["size"] for c in summary["clusters"])
    assert {t.get_text() for t in heat.get_yticklabels()} == set(DOMAINS)
    plt.close("all")
