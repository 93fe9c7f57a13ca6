"""Importers of other evaluations' results as outcome tables. `IMPORTERS` is the registry.

An importer recognizes a file by its content and yields one dictionary per prompt and expert with columns of
`outcomes.SCHEMA`; what it does not know is absent. Files are untrusted: they are read as data only, within the bounds
of `erlab.textfiles` and `erlab.parquet`, and never unpickled.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyarrow as pa

from erlab import parquet, textfiles
from erlab.errors import ErlabError, reason
from erlab.quality import outcomes

PICKLES = (".pkl", ".pickle", ".joblib")
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)
_PER = 1_000_000  # tokens that a price counts
_ANSWERS = {"true": 1.0, "false": 0.0, "": math.nan, "nan": math.nan, "none": math.nan, "null": math.nan}


@dataclass(frozen=True)
class Options:
    """What an importer cannot know from the file.

    Attributes:
        columns: Column of the file for each column of `outcomes.SCHEMA`, where the names differ.
        experts: Score columns of a wide table; empty for all other numeric ones.
        expert: Name of the expert that a file of one expert's answers belongs to.
        metric: Name of the metric that is the score (lm-evaluation-harness, HELM).
        range: Lowest and highest value of the file's scores.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    experts: tuple[str, ...] = ()
    expert: str | None = None
    metric: str | None = None
    range: tuple[float, float] = (0.0, 1.0)

    def column(self, name: str) -> str:
        return self.columns.get(name, name)


class Source:
    """A file, with its rows read once."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def rows(self) -> list[dict]:
        """Rows of a JSONL, JSON, CSV or parquet file."""
        reader = _READERS.get(self.path.suffix.lower())
        if reader is None:
            allowed = f"{', '.join(_READERS)}, or a folder of such files"
            raise ErlabError(
                f"{self.path}: must be a file of outcomes: {allowed}. Got {self.path.suffix or 'no ending'}."
            )
        rows = reader(self.path)
        if not rows or not rows[0] or not all(isinstance(row, dict) for row in rows):
            got = "others" if any(rows) else "none"
            raise ErlabError(f"{self.path}: must hold rows with named columns. Got {got}.")
        return rows

    @property
    def columns(self) -> set[str]:
        return set(self.rows[0])

    @property
    def names(self) -> str:
        """Names of the columns, for errors."""
        return ", ".join(sorted(map(str, self.columns)))[:200]


def _jsonl(path: Path) -> list:
    rows = []
    for number, line in enumerate(textfiles.lines(textfiles.read(path)), 1):
        if line.strip():
            rows.append(_parsed(line, f"{path}:{number}"))
    return rows


def _json(path: Path) -> list:
    content = _parsed(textfiles.read(path), str(path))
    if isinstance(content, dict):
        lists = [
            value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        content = lists[0] if len(lists) == 1 else [content]
    return content if isinstance(content, list) else [content]


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ErlabError(f"{where}: must be JSON ({getattr(e, 'msg', type(e).__name__)}).") from None


def _csv(path: Path) -> list[dict]:
    limit = csv.field_size_limit(parquet.MAX_TEXT)
    try:
        reader = csv.DictReader(io.StringIO(textfiles.read(path), newline=""), strict=True)
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise ErlabError(f"{path}: must name each column once. Got {', '.join(names)[:200]}.")
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise ErlabError(f"{path}:{reader.line_num}: must have {len(names)} fields, as the header.")
            rows.append(row)
        return rows
    except csv.Error as e:
        raise ErlabError(f"{path}: must be values separated by commas ({e}).") from None
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> list[dict]:
    def flat(schema: pa.Schema) -> list[str]:
        unused = "|model_response"  # of RouterBench: long texts
        plain = (f for f in schema if not pa.types.is_nested(f.type) and not pa.types.is_binary(f.type))
        return [f.name for f in plain if not f.name.endswith(unused)]

    return parquet.read(path, flat).to_pylist()


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}


def _number(value: object) -> float:
    """Return a score, cost or count; NaN for none. Raises ValueError for anything else."""
    if value is None or isinstance(value, str) and value.strip().lower() in _ANSWERS:
        return math.nan if value is None else _ANSWERS[value.strip().lower()]
    if isinstance(value, dict | list):
        raise ValueError(f"a number must be given. Got {value!r:.60}")
    return float(value)


def _count(value: object) -> int | None:
    return None if value is None or math.isnan(number := _number(value)) else int(number)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} must be text. Got {value!r:.60}")
    return value


def of_llmrouter(source: Source, options: Options) -> Iterator[dict]:
    """LLMRouter: rows with `scores` by expert, or one row per answer with `model_name` and `performance`."""
    for row in source.rows:
        text = next((row[name] for name in ("prompt", "question", "query", "text") if name in row), None)
        about = {"text": _text(text, "the prompt"), "task": row.get("task") or row.get("task_name")}
        if "scores" in row:
            for expert, score in row["scores"].items():
                yield {**about, "expert": expert, "score": _number(score)}
        else:
            tokens = {name: _count(row.get(name)) for name in ("input_tokens", "output_tokens")}
            yield {**about, "expert": row["model_name"], "score": _number(row["performance"]), **tokens}


def of_routellm(source: Source, options: Options) -> Iterator[dict]:
    """RouteLLM: a CSV file per subject with the column `prompt` and one column of True and False per model."""
    task = source.path.stem.removeprefix("mmlu_")
    for row in source.rows:
        for expert, right in row.items():
            if expert != "prompt":
                yield {"text": row["prompt"], "task": task, "expert": expert, "score": _number(right)}


def of_routerbench(source: Source, options: Options) -> Iterator[dict]:
    """RouterBench: a wide table with `sample_id`, `prompt`, `eval_name`, and MODEL and MODEL|total_cost per model."""
    experts = [name.removesuffix(_COST) for name in source.rows[0] if name.endswith(_COST)]
    for row in source.rows:
        about = {"prompt": str(row["sample_id"]), "text": _prompt_of_list(row["prompt"]), "task": row["eval_name"]}
        for expert in experts:
            yield {**about, "expert": expert, "score": _number(row[expert]), "cost": _number(row[expert + _COST])}


_COST = "|total_cost"


def _prompt_of_list(text: str) -> str:
    """Return the prompt of a column that holds a list with one text, as RouterBench writes it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return content[0] if isinstance(content, list) and len(content) == 1 and isinstance(content[0], str) else text


def of_routerarena(source: Source, options: Options) -> Iterator[dict]:
    """RouterArena: a JSON list of predictions, each the answer of the model that a router chose."""
    for row in source.rows:
        usage = (row.get("generated_result") or {}).get("token_usage") or {}
        index = str(row.get("global index", row.get("global_index")))
        yield {
            "prompt": index,
            "text": _text(row["prompt"], "the prompt"),
            "task": index.rpartition("_")[0] or None,
            "expert": row["prediction"],
            "score": _number(row.get("accuracy")),
            "cost": _number(row.get("cost")),
            "input_tokens": _count(usage.get("input_tokens")),
            "output_tokens": _count(usage.get("output_tokens")),
        }


def of_lm_eval(source: Source, options: Options) -> Iterator[dict]:
    """lm-evaluation-harness: `samples_TASK_TIME.jsonl` in a folder named after the model, joined by document hash."""
    task = source.path.stem.removeprefix("samples_").rpartition("_")[0] or source.path.stem
    expert = options.expert or source.path.parent.name
    metric = options.metric
    for row in source.rows:
        if metric is None:
            metric = next((name for name in _METRICS if name in row), None)
        if metric not in row:
            numeric = ", ".join(k for k, v in row.items() if isinstance(v, int | float) and k != "doc_id")
            raise ErlabError(f"{source.path}: --metric must be one of {numeric or 'none'}. Got {options.metric!r}.")
        yield {
            "prompt": f"{task}/{row['doc_hash']}",
            "text": _asked(row),
            "task": task,
            "expert": expert,
            "score": _number(row[metric]),
        }


_METRICS = "acc", "exact_match", "em", "f1", "pass@1", "acc_norm"


def _asked(row: dict) -> str:
    """Return the prompt of a sample: the question of its document, else the text that the model was given."""
    document = row.get("doc")
    if isinstance(document, dict):
        for name in ("question", "query", "prompt", "problem", "text", "input"):
            if isinstance(document.get(name), str) and document[name]:
                return document[name]
    given = row["arguments"]
    while not isinstance(given, str):
        given = next(iter(given.values())) if isinstance(given, dict) else given[0]
    return given


def of_helm(source: Source, options: Options) -> Iterator[dict]:
    """HELM: `per_instance_stats.json` of a run, beside its `instances.json` and `run_spec.json`."""
    folder = source.path.parent
    texts = {row["id"]: row["input"]["text"] for row in Source(folder / "instances.json").rows}
    (spec,) = Source(folder / "run_spec.json").rows
    metric = options.metric or "exact_match"
    for row in source.rows:
        values = {s["name"]["name"]: s["sum"] / s["count"] for s in row["stats"] if s.get("count")}
        if metric not in values:
            known = ", ".join(sorted(values))[:200] or "none"
            raise ErlabError(f"{source.path}: --metric must be one of {known}. Got {metric!r}.")
        yield {
            "prompt": f"{spec['name'].partition(':')[0]}/{row['instance_id']}",
            "text": texts[row["instance_id"]],
            "task": spec["name"].partition(":")[0],
            "expert": options.expert or spec["adapter_spec"]["model"],
            "score": _number(values[metric]),
            "input_tokens": _count(values.get("num_prompt_tokens")),
            "output_tokens": _count(values.get("num_output_tokens")),
        }


def of_long(source: Source, options: Options) -> Iterator[dict]:
    """One row per prompt and expert, with the columns of an outcome table or others that are named."""
    _check_columns(source, options, ("text", "score") if options.expert else outcomes.REQUIRED)
    for row in source.rows:
        given = {name: row.get(options.column(name)) for name in outcomes.SCHEMA.names}
        given["prompt"] = None if given["prompt"] is None else str(given["prompt"])
        yield {
            **given,
            "expert": options.expert or given["expert"],
            "score": _number(given["score"]),
            "cost": _number(given["cost"]),
            "input_tokens": _count(given["input_tokens"]),
            "output_tokens": _count(given["output_tokens"]),
        }


def of_wide(source: Source, options: Options) -> Iterator[dict]:
    """One row per prompt, with one column of scores per expert."""
    known = {options.column(name) for name in ("prompt", "text", "task", "source")}
    experts = options.experts or tuple(name for name in source.rows[0] if name not in known and _is_score(source, name))
    _check_columns(source, options, ("text",))
    if missing := [name for name in experts if name not in source.columns] or ([] if experts else ["none"]):
        raise ErlabError(f"{source.path}: --experts must name columns out of {source.names}. Got {missing[0]!r}.")
    for row in source.rows:
        about = {name: row.get(options.column(name)) for name in ("prompt", "text", "task")}
        about["prompt"] = None if about["prompt"] is None else str(about["prompt"])
        for expert in experts:
            yield {**about, "expert": expert, "score": _number(row[expert])}


def _check_columns(source: Source, options: Options, required: Iterable[str]) -> None:
    for name in (*required, *options.columns):
        if (column := options.column(name)) not in source.columns:
            raise ErlabError(f"{source.path}: --column {name}=NAME must name one of {source.names}. Got {column!r}.")


def _is_score(source: Source, name: str) -> bool:
    try:
        return all(math.isfinite(value) or math.isnan(value) for value in map(_number, (r[name] for r in source.rows)))
    except (KeyError, TypeError, ValueError):
        return False


@dataclass(frozen=True)
class Importer:
    """An importer.

    Attributes:
        read: Yields the rows of a source.
        recognizes: Whether a source has this format.
        about: What it reads.
        takes: Attributes of `Options` that it uses beside `range`; others are refused.
    """

    read: Callable[[Source, Options], Iterable[dict]]
    recognizes: Callable[[Source, Options], bool]
    about: str
    takes: tuple[str, ...] = ()


def _is_routellm(source: Source, options: Options) -> bool:
    others = [value for row in source.rows[:100] for name, value in row.items() if name != "prompt"]
    return source.path.suffix == ".csv" and "prompt" in source.columns and set(others) <= {"True", "False", ""}


# The first importer that recognizes a file reads it: more specific ones come first, `wide` takes any file and is last.
IMPORTERS: dict[str, Importer] = {
    "helm": Importer(
        of_helm, lambda s, o: s.path.name == "per_instance_stats.json", "HELM run folders", ("expert", "metric")
    ),
    "lm-eval": Importer(
        of_lm_eval,
        lambda s, o: {"doc_hash", "doc_id"} <= s.columns,
        "lm-evaluation-harness samples_*.jsonl",
        ("expert", "metric"),
    ),
    "routerbench": Importer(
        of_routerbench, lambda s, o: any(str(c).endswith(_COST) for c in s.columns), "RouterBench, parquet or CSV"
    ),
    "routerarena": Importer(
        of_routerarena, lambda s, o: {"prediction", "generated_result"} <= s.columns, "RouterArena predictions, JSON"
    ),
    "llmrouter": Importer(
        of_llmrouter,
        lambda s, o: "scores" in s.columns or {"model_name", "performance"} <= s.columns,
        "LLMRouter, JSON or JSONL",
    ),
    "routellm": Importer(of_routellm, _is_routellm, "RouteLLM responses, a CSV file per subject"),
    "long": Importer(
        of_long,
        lambda s, o: o.column("score") in s.columns and bool(o.expert or o.column("expert") in s.columns),
        "one row per prompt and expert: CSV, JSON, JSONL or parquet",
        ("columns", "expert"),
    ),
    "wide": Importer(
        of_wide, lambda s, o: True, "one row per prompt, one column of scores per expert", ("columns", "experts")
    ),
}
_OPTIONS = {"--column": "columns", "--experts": "experts", "--expert": "expert", "--metric": "metric"}
_BESIDE = ("instances.json", "run_spec.json")  # files of a HELM run that are read with another


def read(
    paths: Sequence[str | Path],
    format: str | None = None,
    options: Options = Options(),
    prices: Mapping[str, Mapping[str, float]] | None = None,
) -> pa.Table:
    """Read results as one table of `outcomes.SCHEMA`.

    Args:
        paths: Files, or folders whose files are read in the order of their names.
        format: Name in IMPORTERS; None recognizes it for each file.
        options: What the files do not say.
        prices: See `read_prices`; gives costs that the files lack.

    Raises:
        ErlabError: A file is missing, has no known format or wrong values, or holds a pickle.
    """
    frames = [_frame(file, format, options) for path in map(Path, paths) for file in _files(path)]
    if not frames:
        raise ErlabError(f"{', '.join(map(str, paths))}: must hold files of outcomes. Got none.")
    frame = pd.concat(frames, ignore_index=True)
    if prices:
        frame = _priced(frame, prices)
    table = outcomes.conformed(frame, str(paths[0]))
    outcomes.of_table(table, str(paths[0]))  # raises for wrong values
    return table


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _READERS)
    helm = {file.parent for file in found if file.name == "per_instance_stats.json"}
    lm_eval = {file.parent for file in found if file.name.startswith("samples_")}
    return [
        file
        for file in found
        if (file.parent not in helm or file.name == "per_instance_stats.json")
        and (file.parent not in lm_eval or file.name.startswith("samples_"))
    ]


def _frame(path: Path, format: str | None, options: Options) -> pd.DataFrame:
    if path.suffix.lower() in PICKLES:
        raise ErlabError(
            f"{path}: a pickle runs code when it is read and is refused. Convert it where you trust it: python -c "
            f"\"import pandas; pandas.read_pickle('{path.name}').to_parquet('{path.stem}.parquet')\""
        )
    source = Source(path)
    try:
        name = format or next(name for name, importer in IMPORTERS.items() if importer.recognizes(source, options))
        for option, attribute in _OPTIONS.items():
            takers = ", ".join(other for other, importer in IMPORTERS.items() if attribute in importer.takes)
            if getattr(options, attribute) and attribute not in IMPORTERS[name].takes:
                raise ErlabError(f"{path}: {option} must stand only for files of {takers}. This one is read as {name}.")
        frame = pd.DataFrame(list(IMPORTERS[name].read(source, options)))
    except _MALFORMED as e:
        known = format or "known format"
        raise ErlabError(f"{path}: no result of {known} ({type(e).__name__}: {reason(e)[:200]}).") from None
    low, high = options.range
    if "score" in frame:
        frame["score"] = (frame["score"] - low) / (high - low)
    return frame.assign(source=f"{name}: {path.name}")


def read_prices(path: str | Path) -> dict[str, dict[str, float]]:
    """Read prices by expert: dollars per million tokens (`input`, `output`) and per request (`request`).

    Args:
        path: JSON {expert: {"input": 0.2, "output": 0.2}}, also with LLMRouter's `input_price` and `output_price`, or
            CSV with the columns expert, input, output and request.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        table = {row.get("expert"): row for row in _csv(path)}
    else:
        table = _parsed(textfiles.read(path), str(path))
    prices = {}
    for expert, row in table.items() if isinstance(table, dict) else ():
        known = {key: row.get(key, row.get(f"{key}_price")) for key in _PRICES} if isinstance(row, dict) else {}
        try:
            prices[expert] = {key: _number(value) for key, value in known.items() if value not in (None, "")}
        except ValueError:
            prices[expert] = {"input": math.nan}
        if not expert or not prices[expert] or not all(0 <= price < math.inf for price in prices[expert].values()):
            allowed = f"give numbers from 0 for some of {', '.join(_PRICES)}"
            raise ErlabError(f"{path}: expert {expert!r:.60} must {allowed}. Got {row!r:.80}.")
    if not prices:
        raise ErlabError(f"{path}: must hold prices by expert. Got none.")
    return prices


_PRICES = ("input", "output", "request")


def _priced(frame: pd.DataFrame, prices: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Fill costs that are unknown from prices; they stay unknown where tokens are unknown that have a price."""
    total = pd.Series(0.0, index=frame.index)
    for kind in _PRICES:
        price = frame["expert"].map({expert: row.get(kind, 0.0) for expert, row in prices.items()})
        tokens = (
            pd.to_numeric(frame[f"{kind}_tokens"]) if f"{kind}_tokens" in frame else pd.Series(math.nan, frame.index)
        )
        amount = pd.Series(1.0, frame.index) if kind == "request" else tokens / _PER
        total += (price * amount).where(price != 0, 0.0)
    known = frame["cost"] if "cost" in frame else pd.Series(math.nan, index=frame.index)
    return frame.assign(cost=pd.to_numeric(known).fillna(total))
