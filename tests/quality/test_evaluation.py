"""Evaluation: every prompt unseen, measures that agree with arithmetic, incomplete tables, figures and commands."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from erlab.commands.app import app
from erlab.errors import ErlabError
from erlab.figures import quality as pictures
from erlab.quality import evaluation, importers, measures, outcomes, routers
from erlab.routing import CompiledRouter


def of(*rows, columns=("text", "expert", "score")):
    return outcomes.of_frame(pd.DataFrame(rows, columns=list(columns)))


def test_the_table_has_every_router_with_its_decision_latency(judged):
    rows = judged.table().set_index("router")
    assert list(rows.index) == [*routers.BASELINES, *routers.RULES]
    assert (rows.loc[list(routers.RULES), "decision_ms"] > 0).all()
    assert rows.loc[list(routers.BASELINES), "decision_ms"].isna().all()
    assert (rows["prompts"] == 300).all()
    assert (rows["accuracy"] <= rows.loc["oracle", "accuracy"]).all()
    assert rows.loc["oracle", ["gap_recovered", "regret"]].tolist() == [1, 0]
    assert rows.loc["best_single", ["gain", "gain_low", "gain_high", "gap_recovered"]].tolist() == [0, 0, 0, 0]
    assert rows.loc["cheapest", "cost"] == rows["cost"].min()
    assert rows.loc["random", ["apgr", "cpt_50", "cpt_80"]].tolist() == pytest.approx([0.5, 0.5, 0.8])
    modem = rows.loc["modem"]
    assert modem["accuracy"] == pytest.approx(rows.loc["best_per_task", "accuracy"], abs=0.02)  # tasks are easy to tell
    assert modem["apgr"] > 0.55 and modem["cpt_50"] < 0.5 and modem["calibration_error"] < 0.15
    gained = modem["accuracy"] - rows.loc["best_single", "accuracy"]
    assert modem["gain"] == pytest.approx(gained) and modem["gain_low"] <= gained <= modem["gain_high"]
    assert modem["regret"] == pytest.approx(rows.loc["oracle", "accuracy"] - modem["accuracy"])


def test_no_router_was_trained_on_the_prompts_that_it_decides(example, monkeypatch):
    trained = []
    monkeypatch.setattr(
        routers, "encode", lambda *a, encode=routers.encode: trained.append(set(a[0].texts)) or encode(*a)
    )
    doubled = outcomes.of_frame(
        pd.DataFrame(
            [(t, task, e, s) for t, row in zip(example.texts[:60], example.scores) for task in ("a", "b")
             for e, s in zip(example.experts, row)], columns=["text", "task", "expert", "score"],
        )
    )  # fmt: skip
    judged = evaluation.evaluate(doubled, ["polyrouter_knn"], folds=3, training=30)
    folds = outcomes.folds(doubled.texts, 3)
    for fold, texts in enumerate(trained):
        assert texts and not texts & set(doubled.texts[folds == fold]) and len(texts) <= 30
    assert (judged.choices["polyrouter_knn"] == judged.choices["polyrouter_knn"]).all()
    assert np.isfinite(judged.predicted["polyrouter_knn"]).all()


def test_the_oracle_prefers_the_cheaper_of_equal_answers(judged):
    scores, costs = judged.outcomes.scores, judged.outcomes.mean_costs()
    for row, choice in zip(scores, judged.choices["oracle"]):
        assert choice == min(np.flatnonzero(row == row.max()), key=costs.__getitem__)


def test_quality_cost_curves_go_from_the_cheapest_expert_to_the_best_prediction(judged):
    costs = judged.outcomes.mean_costs()
    for name in ("polyrouter_ridge", "expert_router", "modem"):
        curve = judged.curve(name)
        assert curve["cost"].iloc[0] == pytest.approx(costs.min())
        chosen = measures.chosen(judged.outcomes.scores, judged.choices[name]).mean()
        assert chosen in curve["accuracy"].to_numpy()
    cascade = judged.curve("cascade")
    assert cascade["cost"].iloc[-1] == pytest.approx(costs.sum())  # it asks all experts
    row = judged.table().set_index("router").loc["cascade"]
    asked = judged.asked["cascade"]
    assert row["cost"] == pytest.approx((asked * judged.outcomes.costs).sum(axis=1).mean())
    assert (asked[np.arange(300), judged.choices["cascade"]]).all()
    assert judged.curve("best_single") is None


def test_shares_and_tasks_add_up(judged):
    shares = judged.shares()
    assert shares.groupby("router")["share"].sum().to_numpy() == pytest.approx(1)
    tasks, rows = judged.tasks(), judged.table().set_index("router")["accuracy"]
    for name, group in tasks.groupby("router"):
        assert np.average(group["accuracy"], weights=group["prompts"]) == pytest.approx(rows[name])


def test_online_regret_grows_more_slowly_while_a_bandit_learns(judged):
    assert judged.online.keys() == {"linucb", "thompson"}
    for stream in judged.online.values():
        assert (stream["best"] >= stream["score"]).all()


def test_pairs_without_a_score_are_left_out(example):
    holes = example.scores.copy()
    holes[::4, example.experts.index("generalist")] = np.nan
    judged = evaluation.evaluate(replace(example, scores=holes), ["polyrouter_ridge"], folds=2)
    rows = judged.table().set_index("router")
    assert rows.loc["best_single", "prompts"] == 225 and rows.loc["oracle", "prompts"] == 300
    assert rows.loc["polyrouter_ridge", "accuracy"] > 0 and pd.isna(rows.loc["polyrouter_ridge", "aiq"])
    assert judged.deferral("polyrouter_ridge")["share"].iloc[-1] == 1


def test_equal_scores_everywhere_have_no_gap_to_recover():
    rows = [(f"prompt number {i}", e, 1.0) for i in range(40) for e in "xy"]
    judged = evaluation.evaluate(of(*rows), folds=2)
    rows = judged.table().set_index("router")
    assert (rows["accuracy"] == 1).all() and (rows["regret"] == 0).all() and (rows["gain"] == 0).all()
    assert rows[["gap_recovered", "apgr", "cpt_50", "cost", "aiq"]].isna().all().all()


def test_a_task_with_one_prompt_and_unknown_costs(example):
    tasks = example.tasks.copy()
    tasks[0] = "alone"
    judged = evaluation.evaluate(replace(example, tasks=tasks, costs=example.costs * np.nan), ["modem"], folds=2)
    by_task = judged.tasks()
    assert by_task.loc[by_task["task"] == "alone", "prompts"].unique().tolist() == [1]
    rows = judged.table().set_index("router")
    assert "cheapest" not in rows.index and rows["cost"].isna().all() and judged.curve("modem") is None
    assert judged.pair == (example.experts.index("generalist"), int(example.mean_scores().argmin()))


def test_what_cannot_be_evaluated_is_one_line(example):
    one = replace(example, experts=("cook",), scores=example.scores[:, :1], costs=example.costs[:, :1])
    same = of(("same", "x", 1.0), ("same", "y", 0.0))
    for judged, parameters, message in (
        (one, {}, "at least two experts"),
        (same, {}, "hold different prompts for at least 2 of 5 folds. Got '1 prompts'"),
        (example, {"names": ["magic"]}, "'router' parameter of quality must be one of"),
        (example, {"folds": 1}, "'folds' parameter"),
    ):
        with pytest.raises(ErlabError, match=message):
            evaluation.evaluate(judged, **parameters)


def test_a_sample_of_prompts_is_stated(example):
    judged = evaluation.evaluate(example, [], folds=2, prompts=100)
    assert len(judged.outcomes) == 100
    assert judged.outcomes.notes == ("100 of 300 prompts are used, chosen by the hash of their text",)


def test_every_picture_is_drawn_or_says_what_is_missing(judged):
    assert all(isinstance(pictures.show(name, judged), Figure) for name in pictures.PICTURES)
    frontier = pictures.PICTURES["frontier"].data(judged)
    assert {("expert", "cook"), ("router", "polyrouter_ridge")} <= set(zip(frontier["kind"], frontier["router"]))
    blind = replace(judged.outcomes, costs=judged.outcomes.costs * np.nan)
    without = evaluation.Evaluation(blind, judged.pair, 1, judged.choices, judged.predicted)
    assert pictures.show("frontier", without) == (
        "frontier is left out: needs the score and cost of every prompt and expert."
    )


@pytest.fixture
def erlab(tmp_path, monkeypatch, capsys):
    """Runs `erlab outcomes` in this process; returns its output, or the error line if it exits with 2."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=0):
        with pytest.raises(SystemExit) as ended:
            app(["outcomes", *map(str, arguments)], prog_name="erlab")
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == status, out + err
        return out if status == 0 else err

    return run


def test_the_commands_import_evaluate_and_train(example, erlab, tmp_path):
    rows = [{"prompt": t, "task": k, "scores": dict(zip(example.experts, s.tolist()))}
            for t, k, s in zip(example.texts, example.tasks, example.scores)]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = erlab("import", "a.jsonl", "--out", "o.parquet")
    assert out == "o.parquet: 300 prompts, 3 experts, 3 tasks\n"
    out = erlab("evaluate", "o.parquet", "--router", "modem", "--folds", 2, "--out", "q")
    assert "300 unseen prompts, 3 experts" in out and "best_per_task" in out and "decision_ms" in out
    assert {"routers.csv", "tasks.csv", "tasks.pdf", "shares.png"} <= {file.name for file in (tmp_path / "q").iterdir()}
    assert (tmp_path / "q" / "accuracy.png").is_file() and not (tmp_path / "q" / "frontier.png").exists()
    out = erlab("train", "o.parquet", "--router", "modem", "--out", "r")
    assert out == "r: modem for the experts cook, generalist, lawyer\n"
    assert CompiledRouter.load(tmp_path / "r").experts_ == example.experts
    assert erlab(status=2) == ""  # the help is on standard output
    help = "".join(erlab("import", "--help").split())
    assert all(name in help for name in importers.IMPORTERS) and "erlaboutcomesimport" in help
    line = erlab("train", "o.parquet", "--router", "x", "--out", "r", status=2)
    assert line.startswith("erlab: --router must be one of expert_router, modem") and line.count("\n") == 1
    line = erlab("import", "none.json", "--out", "n.parquet", status=2)
    assert line.startswith("erlab: none.json: cannot be read") and not (tmp_path / "n.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--range", "5"), "--range must be LOW,HIGH"),
        (("--range", "5,1"), "--range must be LOW,HIGH"),
        (("--column", "score"), "--column must be TABLE_COLUMN=FILE_COLUMN"),
        (("--column", "x=y"), "--column must be TABLE_COLUMN=FILE_COLUMN with a TABLE_COLUMN out of prompt, text"),
        (("--format", "x"), "--format must be one of helm, lm-eval"),
    ],
)
def test_wrong_options_are_one_line(arguments, message, erlab):
    line = erlab("import", "a.json", "--out", "o.parquet", *arguments, status=2)
    assert line.startswith(f"erlab: {message}") and line.count("\n") == 1


def test_nine_real_models_are_routed_better_than_the_best_single_one(real):
    judged = evaluation.evaluate(
        real("llmrouter_9models.jsonl"), ["expert_router"], folds=2, prompts=1200, dimensions=50
    )
    rows = judged.table().set_index("router")
    assert 0.6 < rows.loc["best_single", "accuracy"] < 0.65 and 0.78 < rows.loc["oracle", "accuracy"] < 0.82
    assert rows.loc["expert_router", "gain"] > 0


def test_mmlu_with_at_most_1500_labelled_questions_recovers_as_much_as_routellm_states(real):
    judged = evaluation.evaluate(
        real("routellm_mmlu.jsonl"), ["routellm"], folds=2, training=1500, prompts=2400, dimensions=50
    )
    rows = judged.table().set_index("router")
    assert rows.loc["routellm", "apgr"] >= 0.57
    assert rows.loc["oracle", "apgr"] > 1.2  # beyond the strong expert's own accuracy
