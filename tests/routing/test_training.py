"""Tests of the training of a study's router."""

import json

import numpy as np
import pandas as pd
import pytest

from erlab.paths import Folders
from erlab.routing import PromptRouter, training
from erlab.serving import profiles


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folders, profile = Folders(tmp_path_factory.mktemp("study")), profiles.profile("smoke")
    prompts = training.prepare_prompts(profile, folders, seed=1)
    return folders, prompts, *training.train_router(profile, folders, prompts, clusters=5, seed=1)


def test_the_papers_recipe_is_trained_on_training_prompts(study):
    folders, prompts, router, summary = study
    rows = prompts.to_pandas()
    train = rows["text"][rows["split"] == "train"]
    assert (router.features, router.clusterer, router.clusters) == ("words", "kmeans", 5)
    assert (PromptRouter(5, seed=1).fit(train).centers_ == router.centers_).all()
    assert summary["prompts"] == {"train": len(train), "held_back": len(rows) - len(train)}
    assert json.loads(folders.router_summary.read_text()) == summary


def test_five_percent_of_held_back_prompts_are_outliers(study):
    folders, prompts, _, _ = study
    rows = prompts.to_pandas()
    held = rows["text"][rows["split"] == "held_back"]
    outlier = PromptRouter.load(folders.router).route(held).outlier
    assert outlier.mean() == pytest.approx(0.05, abs=1 / len(held))


def test_the_text_column_can_be_named(tmp_path):
    frame = pd.DataFrame({"question": [f"why {i}" for i in range(9)], "answer": "so"})
    frame.to_csv(tmp_path / "q.csv", index=False)
    folders, profile = Folders(tmp_path / "study"), profiles.profile("smoke")
    prompts = training.prepare_prompts(profile, folders, tmp_path / "q.csv", text="question")
    assert set(prompts["text"]) == set(frame["question"])
    assert np.array_equal(pd.read_parquet(folders.prompts)["text"], prompts["text"])
