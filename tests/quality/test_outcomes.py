"""Outcome tables: schema, splits, incomplete and contradicting data."""

import hashlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erlab.errors import ErlabError
from erlab.quality import examples, outcomes

COLUMNS = ["text", "expert", "score"]


def of(*rows, columns=COLUMNS):
    return outcomes.of_frame(pd.DataFrame(rows, columns=columns))


def test_a_saved_table_is_read_back(tmp_path):
    frame = examples.frame(30)
    before = outcomes.of_frame(frame)
    outcomes.save(tmp_path / "o.parquet", outcomes.conformed(frame, "example"))
    assert pq.read_schema(tmp_path / "o.parquet").equals(outcomes.SCHEMA)
    after = outcomes.read(tmp_path / "o.parquet")
    assert after.experts == before.experts == ("cook", "generalist", "lawyer")
    for name in ("prompts", "texts", "tasks", "scores", "costs"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    expected = frame.groupby("expert")["score"].mean()
    assert before.mean_scores() == pytest.approx(expected.loc[list(before.experts)])


def test_missing_pairs_stay_unknown_and_are_stated():
    table = of(("a", "x", 1.0), ("a", "y", None), ("b", "x", 0.0), ("c", "y", float("nan")))
    assert table.texts.tolist() == ["a", "b"] and np.isnan(table.scores[:, 1]).all()
    assert table.notes == (
        "1 of 3 prompts have no score and are left out",
        "2 of 4 pairs of prompt and expert have no score",
    )


def test_several_scores_of_a_pair_are_averaged_and_stated():
    table = of(("a", "x", 1.0), ("a", "x", 0.0), ("a", "x", 0.5), ("a", "y", 1.0), ("a", "y", 1.0))
    assert table.scores.tolist() == [[0.5, 1.0]]
    assert table.notes == ("2 pairs of prompt and expert occur more than once: their mean counts",)


def test_a_text_of_two_tasks_is_two_prompts_on_the_same_side_of_a_split():
    table = of(("a", "t1", "x", 1.0), ("a", "t2", "x", 0.0), columns=["text", "task", "expert", "score"])
    assert len(table) == 2
    assert len(set(outcomes.folds(table.texts, 1000))) == 1


def test_folds_follow_the_hash_of_the_text():
    texts = [f"prompt {i}" for i in range(2000)]
    expected = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "big") % 5 for t in texts]
    folds = outcomes.folds(texts, 5)
    assert folds.tolist() == expected
    assert np.bincount(folds).min() > 300


def test_costs_that_are_not_known_are_unknown_not_zero():
    table = of(("a", "x", 1.0, None), ("b", "x", 0.0, 0.5), ("a", "y", 1.0, float("nan")), columns=[*COLUMNS, "cost"])
    assert table.mean_costs()[0] == 0.5 and np.isnan(table.mean_costs()[1])


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [("a", "x", 1.5)],
            COLUMNS,
            r"prompt '\w+', expert 'x': the score must be from 0 to 1; .*--range.* Got 1\.5\.",
        ),
        ([("a", "x", -0.1)], COLUMNS, r"the score must be from 0 to 1"),
        ([("a", "x", 1, -2)], [*COLUMNS, "cost"], r"the cost must be a number from 0\. Got -2\."),
        ([("a", "x", 1, np.inf)], [*COLUMNS, "cost"], r"the cost must be a number from 0\. Got inf\."),
        ([("a", "x", None)], COLUMNS, "must hold scores"),
        ([], COLUMNS, "must hold outcomes"),
        ([("a", None, 1)], COLUMNS, "the column 'expert' must hold a text in every row"),
        ([("a", "x", "good")], COLUMNS, "the column 'score' must be double"),
        ([("p", "a", "x", 1), ("p", "b", "y", 1)], ["prompt", *COLUMNS], "the prompt 'p' must have one text"),
        ([("a", 1.0)], ["text", "score"], "must have the column 'expert'"),
    ],
)
def test_wrong_values_are_one_line(rows, columns, message):
    with pytest.raises(ErlabError, match=message) as caught:
        of(*rows, columns=columns)
    assert "\n" not in str(caught.value)


def test_files_without_the_columns_are_refused(tmp_path):
    pq.write_table(pa.table({"n": [1]}), tmp_path / "n.parquet")
    with pytest.raises(ErlabError, match="must have the columns text, expert, score. It has no text"):
        outcomes.read(tmp_path / "n.parquet")
    (tmp_path / "t.parquet").write_text("no parquet")
    with pytest.raises(ErlabError, match="no readable parquet"):
        outcomes.read(tmp_path / "t.parquet")


def test_texts_that_repeat_for_every_expert_stand_once_in_the_file(tmp_path):
    prompts, experts = 2_000, 33
    prompt, expert = np.divmod(np.arange(prompts * experts), experts)
    texts = np.array([f"prompt {i} " + "word " * 100 for i in range(prompts)])
    names = np.array([f"model {e}" for e in range(experts)])
    frame = pd.DataFrame({"text": texts[prompt], "expert": names[expert], "score": (prompt * 7 + expert * 3) % 5 / 4})
    outcomes.save(tmp_path / "o.parquet", outcomes.conformed(frame, "table"))
    assert (tmp_path / "o.parquet").stat().st_size < 20 * prompts * experts < frame["text"].str.len().sum()
    read = outcomes.read(tmp_path / "o.parquet")
    rows = pd.Series(np.arange(prompts), index=texts)[read.texts]
    columns = [int(name.split()[1]) for name in read.experts]
    assert (read.scores == (rows.to_numpy()[:, None] * 7 + np.array(columns) * 3) % 5 / 4).all()
