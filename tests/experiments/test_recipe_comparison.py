"""Tests of the comparison of recipes in notebook 02: prompts, recipes, targets, files."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from erlab.errors import ErlabError
from erlab.experiments import recipes
from erlab.figures import routing, style
from erlab.paths import Folders
from erlab.routing.evaluation import RECIPES
from erlab.routing.features import FEATURES, CharacterFeatures
from erlab.serving import profiles

SMOKE = profiles.profile("smoke")
WORDS = {
    "cooking": "pasta oven salt pan stir sauce garlic flour bake".split(),
    "law": "court tenant statute appeal clause verdict judge deed".split(),
    "music": "album playlist song guitar chord tempo tempo2 melody".split(),
}


def rows(domain: str, count: int, words=None) -> list[dict]:
    rng = np.random.default_rng(len(domain))
    words = words or WORDS.get(domain, [f"{domain}{i}" for i in range(9)])
    texts = (f"{' '.join(rng.choice(words, 5))} number{i}" for i in range(count))
    return [
        {"id": f"{domain}{i}", "domain": domain, "text": text, "split": "held_back" if i % 5 == 0 else "train"}
        for i, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def prompts():
    return Dataset.from_list([row for domain in WORDS for row in rows(domain, 130)] + rows("unknown", 30))


@pytest.fixture(scope="module")
def table(prompts, tmp_path_factory):
    return recipes.compare(SMOKE, Folders(tmp_path_factory.mktemp("study")), prompts)


def test_unknown_prompts_are_separated(prompts):
    known, unknown = recipes.select_prompts(prompts)
    assert set(known["domain"]) == set(WORDS) and len(known) == 390 and len(unknown) == 30
    few, same = recipes.select_prompts(prompts, per_domain=20)
    assert few.to_pandas()["domain"].value_counts().to_dict() == dict.fromkeys(WORDS, 20) and same == unknown
    first = known.to_pandas().groupby("domain").head(20)
    assert list(few["text"]) == list(first["text"]), "the order of the prompts stays"


def test_other_domains_are_left_out_if_all_core_domains_are_present():
    core = [row for domain in recipes.CORE for row in rows(domain, 5)]
    both, _ = recipes.select_prompts(Dataset.from_list(core + rows("trivia", 5)))
    assert set(both["domain"]) == set(recipes.CORE)
    some, _ = recipes.select_prompts(Dataset.from_list(core[:-5] + rows("trivia", 5)))
    assert set(some["domain"]) == {*recipes.CORE[:-1], "trivia"}


def test_domains_without_training_prompts_are_left_out():
    held = [row | {"split": "held_back"} for row in rows("late", 3)]
    known, _ = recipes.select_prompts(Dataset.from_list(rows("law", 10) + held))
    assert set(known["domain"]) == {"law"}
    alone, unknown = recipes.select_prompts(Dataset.from_list(rows("unknown", 10)))
    assert len(alone) == 10 and unknown == []


def test_the_profiles_recipes_are_compared_and_saved(table, prompts, tmp_path):
    assert tuple(table.index) == SMOKE.compared_recipes
    folders = Folders(tmp_path)
    named = recipes.compare(SMOKE, folders, prompts, ["words, balanced"], seeds=1, other=None)
    kept = pd.read_csv(folders.routing / "comparison.csv", index_col="recipe")
    assert list(kept.index) == ["words, balanced"] and kept["stability"].isna().all()
    assert kept["unseen"].item() == pytest.approx(named["unseen"].item())
    shown = recipes.shown(named)
    assert "stability" not in shown and shown["accuracy, unseen"].item() == round(named["unseen"].item(), 3)


def test_prompts_from_other_sources_are_compared(prompts, tmp_path):
    pd.DataFrame(rows("law", 20) + rows("elsewhere", 20)).drop(columns="split").to_parquet(tmp_path / "o.parquet")
    other = dict(recipes=["paper"], seeds=1, other=tmp_path / "o.parquet")
    table = recipes.compare(SMOKE, Folders(tmp_path / "study"), prompts, **other)
    assert table["other"].item() > 0.9
    pd.DataFrame(rows("elsewhere", 20)).to_parquet(tmp_path / "o.parquet")
    with pytest.raises(ErlabError, match="o.parquet: holds no prompts of the domains cooking, law, music"):
        recipes.compare(SMOKE, Folders(tmp_path / "study"), prompts, **other)


def test_a_single_domain_is_compared_without_supervised_recipes(tmp_path):
    one = Dataset.from_list(rows("law", 60))
    found = recipes.compare(SMOKE, Folders(tmp_path), one, ["paper", "characters, supervised"], seeds=1, clusters=3)
    assert list(found.index) == ["paper"] and found["unseen"].item() == 1
    assert found["load"].item() >= 1 and np.isfinite(found["p50_ms"].item())


@pytest.mark.parametrize("bad", [dict(recipes="best"), dict(recipes=[]), dict(recipes=["paper", 3]), dict(seeds=0)])
def test_invalid_parameters_are_reported(bad, prompts, tmp_path):
    (name,) = bad
    with pytest.raises(ErlabError, match=f"The '{name}' parameter of notebook 02 must be"):
        recipes.compare(SMOKE, Folders(tmp_path), prompts, **bad)


def test_prompts_without_held_back_split_are_refused(tmp_path):
    train = Dataset.from_list([row | {"split": "train"} for row in rows("law", 10) + rows("music", 10)])
    with pytest.raises(ErlabError, match="None of the 20 prompts is held back"):
        recipes.compare(SMOKE, Folders(tmp_path), train)


def test_every_profiles_recipes_exist():
    for profile in profiles.PROFILES.values():
        assert set(profile.compared_recipes) <= set(RECIPES)


def scores(**columns) -> pd.DataFrame:
    balanced = (f"{features}, balanced" for features in ("words", "characters", "static", "MiniLM"))
    names = ["paper", *balanced]
    names.insert(3, "static, k-means")
    return pd.DataFrame(columns, index=names).rename_axis("recipe")


def test_targets_use_the_best_balanced_recipe_of_each_family():
    found = scores(
        unseen=[0.99, 0.80, 0.86, 0.99, 0.92, 0.97],
        exact=[0.99, 0.80, 0.86, 0.99, 0.92, 0.976],
        p50_ms=[1, 1, 0.4, 1, 0.05, 8.0],
        load=[1, 1, 1.3, 1, 1.31, 1.2],
        outliers=[None] * 6,
        stability=[1, 1, 0.95, 1, 0.8, 1],
    )
    core = Dataset.from_list([row for domain in recipes.CORE for row in rows(domain, 1)])
    targets = recipes.targets(found, core).set_index(["recipe", "measure"])
    assert list(dict.fromkeys(targets.index.get_level_values(0))) == [
        "characters, balanced", "static, balanced", "MiniLM, balanced",
    ]
    assert not targets.index.get_level_values(1).isin(["outlier AUROC"]).any(), "no target without a value"
    met = targets["met"].to_dict()
    accuracy, decision = "macro routing accuracy, unseen prompts", "one decision, p50 (ms)"
    assert met["characters, balanced", accuracy] == "yes" and met["characters, balanced", decision] == "no"
    assert met["static, balanced", accuracy] == "no" and met["static, balanced", decision] == "yes"
    assert met["characters, balanced", "largest / mean load, unseen prompts"] == "yes"
    assert met["static, balanced", "largest / mean load, unseen prompts"] == "no"
    assert met["MiniLM, balanced", decision] == "yes"
    assert targets.loc[("MiniLM, balanced", "accuracy that 8-bit weights cost")].tolist()[1:] == [
        "≤ 0.005", pytest.approx(0.006), "no",
    ]


def test_targets_include_added_recipes(monkeypatch):
    monkeypatch.setitem(FEATURES, "short", type("ShortFeatures", (CharacterFeatures,), {"sizes": (2, 3)}))
    monkeypatch.setitem(RECIPES, "short, balanced", {"features": "short", "clusterer": "balanced"})
    core = Dataset.from_list([row for domain in recipes.CORE for row in rows(domain, 1)])
    columns = dict.fromkeys(("unseen", "exact", "p50_ms", "load", "outliers", "stability"), 0.9)
    table = pd.DataFrame(columns, index=["short, balanced"])
    assert set(recipes.targets(table, core)["features"]) == {"TF-IDF"}


def test_targets_need_all_core_domains(table, prompts):
    assert list(recipes.targets(table, prompts).columns) == ["left out"]


def test_figures_show_each_recipe_and_domain_and_are_saved(table, prompts, tmp_path):
    found = recipes.confusions(table, prompts)
    assert "paper" in found and 1 <= len(found) <= 2
    for shares in found.values():
        assert set(shares.index) == set(WORDS) and shares.sum(axis=1).to_numpy() == pytest.approx(1)
    heats = routing.confusions(found).axes
    assert [a.get_title() for a in heats] == list(found)
    frontier = style.save(routing.frontier(table), Folders(tmp_path).routing, "frontier")
    names = {text.get_text().rpartition("  ")[0] for text in frontier.axes[0].texts}
    assert names == set(table.index)
    assert {f.name for f in (tmp_path / "routing").iterdir()} == {"frontier.pdf", "frontier.png"}
