"""Importers, on files of each format and on damaged and hostile ones."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest

from erlab.errors import ErlabError
from erlab.quality import importers, outcomes
from erlab.quality.importers import Options


def read(path, *more, **options):
    prices = options.pop("prices", None)
    format = options.pop("format", None)
    return outcomes.of_table(importers.read([path, *more], format, Options(**options), prices), "test")


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def saved(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_llmrouter(tmp_path):
    file = saved(tmp_path / "train.json", [{"question": "1+1?", "scores": {"small": 0.0, "large": 1.0}}])
    got = read(file)
    assert (got.experts, got.scores.tolist(), got.tasks.tolist()) == (("large", "small"), [[1, 0]], ["all"])
    rows = [
        {"query": "1+1?", "task_name": "math", "model_name": m, "performance": p, "input_tokens": 4, "output_tokens": 9}
        for m, p in (("a", 1.0), ("b", 0.25))
    ]
    table = importers.read([lines(tmp_path / "routing.jsonl", *rows)])
    assert table["output_tokens"].to_pylist() == [9, 9] and table["task"].to_pylist() == ["math"] * 2
    assert outcomes.of_table(table, "x").scores.tolist() == [[1, 0.25]]


def test_routellm_has_a_file_per_subject(tmp_path):
    for subject in ("anatomy", "virology"):
        (tmp_path / f"mmlu_{subject}.csv").write_text(
            f'prompt,weak,strong\n"What,\n{subject}?",False,True\nB?,True,True\n'
        )
    got = read(tmp_path)
    assert sorted(set(got.tasks)) == ["anatomy", "virology"] and len(got) == 4
    assert got.mean_scores().tolist() == [1, 0.5] and "What,\nanatomy?" in got.texts


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_routerbench(tmp_path, ending):
    frame = pd.DataFrame(
        {
            "sample_id": ["m.1", "m.2"],
            "prompt": ['["What is 2+2?"]', "['kept as it is']"],
            "eval_name": "math",
            "a": [1.0, 0.0],
            "b": [0.5, 1.0],
            "a|model_response": "x",
            "a|total_cost": [0.1, 0.3],
            "b|total_cost": [0.01, 0.01],
            "oracle_model_to_route_to": ["a", "b"],
        }
    )
    path = tmp_path / f"wide.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_csv(path, index=False)
    got = read(path)
    assert (got.experts, got.prompts.tolist()) == (("a", "b"), ["m.1", "m.2"])
    assert got.texts.tolist() == ["What is 2+2?", "['kept as it is']"]
    assert got.scores.tolist() == [[1, 0.5], [0, 1]] and got.mean_costs() == pytest.approx([0.2, 0.01])


def test_a_pickle_is_refused_before_it_is_read(tmp_path):
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return ran.touch, ()

    (tmp_path / "routerbench_0shot.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ErlabError, match=r"a pickle runs code .*read_pickle\('routerbench_0shot.pkl'\).to_parquet"):
        read(tmp_path / "routerbench_0shot.pkl")
    assert not ran.exists()


def test_routerarena(tmp_path):
    def prediction(index, model, accuracy, cost):
        usage = {"token_usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}, "success": True}
        about = {"global index": index, "prompt": f"prompt {index}", "prediction": model, "generated_result": usage}
        return {**about, "accuracy": accuracy, "cost": cost}

    a = saved(tmp_path / "a.json", [prediction("ArcMMLU_1", "x", 1.0, 0.5), prediction("AIME_7", "y", None, None)])
    b = saved(tmp_path / "b.json", [prediction("ArcMMLU_1", "y", 0.0, 0.1), prediction("AIME_7", "x", 0.5, 0.2)])
    got = read(a, b)
    assert dict(zip(got.prompts, got.tasks)) == {"ArcMMLU_1": "ArcMMLU", "AIME_7": "AIME"}
    assert np.nansum(got.scores) == 1.5 and got.notes == ("1 of 4 pairs of prompt and expert have no score",)


def sample(number, **metrics):
    doc = {"question": f"question {number}"}
    return {"doc_id": number, "doc": doc, "doc_hash": f"h{number}", "arguments": [[f"Q: {number}", " A"]], **metrics}


def test_lm_evaluation_harness_joins_runs_by_document(tmp_path):
    name = "samples_arc_easy_2026-01-01T00-00-00.0.jsonl"
    lines(tmp_path / "org__small" / name, sample(2, acc=1.0, acc_norm=1.0), sample(1, acc=0.0, acc_norm=1.0))
    lines(tmp_path / "org__large" / name, sample(1, acc=1.0, acc_norm=0.0), sample(2, acc=1.0, acc_norm=0.0))
    saved(tmp_path / "org__large" / "results_2026.json", {"results": {}})
    got = read(tmp_path)
    assert got.experts == ("org__large", "org__small") and got.prompts.tolist() == ["arc_easy/h1", "arc_easy/h2"]
    assert got.scores.tolist() == [[1, 0], [1, 1]] and got.texts.tolist() == ["question 1", "question 2"]
    assert read(tmp_path, metric="acc_norm").scores.tolist() == [[0, 1], [0, 1]]
    with pytest.raises(ErlabError, match="--metric must be one of acc, acc_norm. Got 'f1'"):
        read(tmp_path, metric="f1")


def test_helm(tmp_path):
    for model, right in ("org/a", 1), ("org/b", 0):
        run = tmp_path / f"mmlu:subject=law,model={model.replace('/', '_')}"
        saved(run / "instances.json", [{"id": "id7", "input": {"text": "Who sues?"}, "references": []}])
        saved(run / "run_spec.json", {"name": f"mmlu:subject=law,model={model}", "adapter_spec": {"model": model}})
        stats = [
            {"name": {"name": n}, "count": 2, "sum": v}
            for n, v in (("exact_match", 2 * right), ("num_prompt_tokens", 8))
        ]
        saved(run / "per_instance_stats.json", [{"instance_id": "id7", "train_trial_index": 0, "stats": stats}])
    table = importers.read([tmp_path])
    assert table["input_tokens"].to_pylist() == [4, 4]
    got = outcomes.of_table(table, "x")
    assert (got.experts, got.scores.tolist(), got.texts.tolist()) == (("org/a", "org/b"), [[1, 0]], ["Who sues?"])


def test_a_wrong_column_is_refused_and_never_makes_another_format(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "p", "expert": "m", "score": 1, "cost": 0.5}\n')
    for name in ("score", "expert", "cost"):
        said = f"--column {name}=NAME must name one of cost, expert, score, text. Got 'no'"
        with pytest.raises(ErlabError, match=said):
            read(tmp_path / "a.jsonl", columns={name: "no"})


def test_an_option_that_a_format_does_not_use_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "p", "expert": "m", "score": 1}\n')
    for option, value in (("experts", ("m",)), ("metric", "acc")):
        with pytest.raises(ErlabError, match=f"--{option} must stand only for files of .* This one is read as long."):
            read(tmp_path / "a.jsonl", **{option: value})


def test_long_and_wide_tables_with_named_columns(tmp_path):
    (tmp_path / "long.csv").write_text("id,question,model,grade,usd\n7,why?,a,7,0.5\n7,why?,b,10,\n")
    columns = {"prompt": "id", "text": "question", "expert": "model", "score": "grade", "cost": "usd"}
    got = read(tmp_path / "long.csv", columns=columns, range=(1, 10))
    assert got.scores.tolist() == [pytest.approx([6 / 9, 1])] and got.costs[0, 0] == 0.5 and np.isnan(got.costs[0, 1])
    lines(
        tmp_path / "wide.jsonl",
        {"q": "why?", "kind": "x", "a": 1, "b": True},
        {"q": "how?", "kind": "y", "a": None, "b": 0},
    )
    got = read(tmp_path / "wide.jsonl", columns={"text": "q", "task": "kind"})
    assert got.experts == ("a", "b") and sorted(set(got.tasks)) == ["x", "y"] and np.nansum(got.scores) == 2
    assert read(tmp_path / "wide.jsonl", columns={"text": "q"}, experts=("a",)).experts == ("a",)
    (tmp_path / "one.csv").write_text("text,score\nwhy?,1\n")
    assert read(tmp_path / "one.csv", expert="mine").experts == ("mine",)


def test_prices_fill_costs_that_are_not_there(tmp_path):
    rows = [
        {"text": "t", "expert": e, "score": 1, "input_tokens": i, "output_tokens": 10}
        for e, i in (("a", 100), ("b", None))
    ]
    file = lines(tmp_path / "long.jsonl", *rows, {"text": "t", "expert": "c", "score": 1, "cost": 0.7})
    given = {"a": {"input_price": 0.2, "output_price": 2.0}, "b": {"input": 1}, "c": {"request": 9}}
    prices = importers.read_prices(saved(tmp_path / "prices.json", given))
    costs = read(file, prices=prices).costs[0]
    assert costs[0] == pytest.approx((100 * 0.2 + 10 * 2) / 1e6) and np.isnan(costs[1]) and costs[2] == 0.7
    (tmp_path / "prices.csv").write_text("expert,input,output,request\na,,,0.01\nb,0,0,0\n")
    costs = read(file, prices=importers.read_prices(tmp_path / "prices.csv")).costs[0]
    assert costs.tolist() == [0.01, 0.0, 0.7]
    for wrong in ({"a": {"input": -1}}, {"a": {}}, {"a": 3}, [], {"a": {"input": "much"}}):
        with pytest.raises(ErlabError, match="prices"):
            importers.read_prices(saved(tmp_path / "prices.json", wrong))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"\n', r"a\.jsonl:1: must be JSON"),
        ("a.json", "[" * 100_000, r"a\.json: must be JSON"),
        ("a.json", "[1, 2]", "must hold rows with named columns"),
        ("a.json", "[]", "must hold rows with named columns. Got none"),
        ("a.json", "{}", "must hold rows with named columns. Got none"),
        ("a.jsonl", '{"text": "a", "expert": "x", "score": [1]}', r"no result of known format \(ValueError: a number"),
        ("a.jsonl", '{"text": "a", "expert": "x", "score": NaN}', "must hold scores"),
        ("a.jsonl", '{"text": "a", "expert": "x", "score": 1e400}', "the score must be from 0 to 1"),
        ("a.jsonl", '{"text": "a", "expert": "x", "score": 1, "input_tokens": 1e400}', "no result of known format"),
        ("a.jsonl", '{"text": "a", "expert": "x", "score": 1, "input_tokens": 1e30}', "'input_tokens' must be int64"),
        ("a.jsonl", '{"text": "\\ud800", "expert": "x", "score": 1}', "surrogates not allowed"),
        ("a.jsonl", '{"text": "a", "expert": null, "score": 1}', "'expert' must hold a text in every row. Got null"),
        ("a.jsonl", '{"text": "a", "expert": {"x": 1}, "score": 1}', "the column 'expert' must be string"),
        ("a.jsonl", '{"prompt": 5, "scores": {"x": 1}}', "the prompt must be text. Got 5"),
        ("a.jsonl", '{"prompt": "p", "scores": 5}', "no result of known format"),
        ("a.jsonl", '{"question": "p", "x": 1}', "--column text=NAME must name one of"),
        ("a.jsonl", '{"text": "p", "x": "good"}', "--experts must name columns out of"),
        ("a.csv", "text,expert,score\na,x\n", r"a\.csv:2: must have 3 fields"),
        ("a.csv", "text,text\na,x\n", "must name each column once"),
        ("a.csv", 'text,score\n"a,1\n', "must be values separated by commas"),
        ("a.csv", "a\0b", "a.csv"),
        ("a.txt", "text", "must be a file of outcomes"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ErlabError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_without_results_and_a_missing_file(tmp_path):
    with pytest.raises(ErlabError, match="must hold files of outcomes"):
        read(tmp_path)
    with pytest.raises(ErlabError, match="cannot be read"):
        read(tmp_path / "none.json")
    with pytest.raises(ErlabError, match="no such file"):
        read(tmp_path / "none.parquet")
