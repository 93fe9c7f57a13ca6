"""Outcome tables: one row per prompt and expert, with the answer's score and cost.

>>> import pandas as pd
>>> rows = [("boil an egg", "small", 0.0), ("boil an egg", "large", 1.0), ("sue a landlord", "large", 1.0)]
>>> table = of_frame(pd.DataFrame(rows, columns=["text", "expert", "score"]))
>>> table.experts, table.scores.tolist()
(('large', 'small'), [[1.0, 0.0], [1.0, nan]])
>>> table.notes
('1 of 4 pairs of prompt and expert have no score',)
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from erlab import parquet
from erlab.errors import ErlabError

SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),  # id of the prompt
        ("text", pa.string()),
        ("task", pa.string()),  # or domain; null: unknown
        ("expert", pa.string()),
        ("score", pa.float64()),  # 0 to 1; null: no answer
        ("cost", pa.float64()),  # dollars; null: unknown
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("source", pa.string()),  # file or program that the row comes from
    ]
)
REQUIRED = ("text", "expert", "score")
NO_TASK = "all"
MAX_ROWS = 50_000_000
_TEXTS = ("prompt", "text", "task", "expert")
_ROW_GROUP, _DICTIONARY_BYTES = 2**20, 2**26  # texts repeat for every expert: keep them in the file's dictionaries


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Outcomes of n prompts and e experts.

    Attributes:
        prompts: Ids, (n,).
        texts: Prompts, (n,).
        tasks: Task of each prompt, (n,); NO_TASK where it is unknown.
        experts: Names, sorted.
        scores: (n, e), 0 to 1; NaN where there is no answer.
        costs: Dollars, (n, e); NaN where unknown.
        notes: What was left out or joined, one line each.
    """

    prompts: np.ndarray
    texts: np.ndarray
    tasks: np.ndarray
    experts: tuple[str, ...]
    scores: np.ndarray
    costs: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: np.ndarray) -> "Outcomes":
        """Return the outcomes of some prompts, given as indices or a mask."""
        parts = {name: getattr(self, name)[rows] for name in ("prompts", "texts", "tasks", "scores", "costs")}
        return replace(self, **parts)

    def sample(self, count: int) -> "Outcomes":
        """Return at most `count` prompts, chosen by the hash of their text."""
        if len(self) <= count:
            return self
        note = f"{count:,} of {len(self):,} prompts are used, chosen by the hash of their text"
        return replace(
            self.take(np.sort(np.argsort(hashes(self.texts), kind="stable")[:count])), notes=(*self.notes, note)
        )

    def mean_scores(self) -> np.ndarray:
        """Return the mean score of each expert over its answers, (e,); 0 without answers."""
        known = ~np.isnan(self.scores)
        return np.where(known, self.scores, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)

    def mean_costs(self) -> np.ndarray:
        """Return the mean cost of each expert, (e,); NaN where it is unknown."""
        known = ~np.isnan(self.costs)
        with np.errstate(invalid="ignore"):
            return np.where(known, self.costs, 0).sum(axis=0) / known.sum(axis=0)


def hashes(texts: Sequence[str]) -> np.ndarray:
    """Return 64 bits of the SHA-256 of each text, (n,) uint64."""
    digests = (hashlib.sha256(text.encode(errors="replace")).digest()[:8] for text in texts)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def folds(texts: Sequence[str], count: int) -> np.ndarray:
    """Return the fold of each text, 0 to count - 1, by its hash: equal texts are in one fold, whatever their task."""
    return (hashes(texts) % np.uint64(count)).astype(int)


def read(path: str | Path) -> Outcomes:
    """Read an outcome table.

    Args:
        path: Parquet file with the columns text, expert and score, and optionally others of `SCHEMA`.

    Raises:
        ErlabError: The file is missing, too large or no parquet, lacks a column, or a value is not allowed.
    """
    path = Path(path)
    return of_table(parquet.read(path, lambda schema: _columns(schema, path), most_rows=MAX_ROWS), str(path))


def _columns(schema: pa.Schema, path: Path) -> list[str]:
    if missing := [name for name in REQUIRED if name not in schema.names]:
        needed = ", ".join(REQUIRED)
        raise ErlabError(f"{path}: an outcome table must have the columns {needed}. It has no {', '.join(missing)}.")
    return [name for name in (*_TEXTS, "score", "cost") if name in schema.names]


def of_frame(frame: pd.DataFrame, origin: str = "table") -> Outcomes:
    """Make outcomes of a data frame with columns of `SCHEMA`; see `of_table`."""
    return of_table(conformed(frame, origin), origin)


def conformed(frame: pd.DataFrame, origin: str) -> pa.Table:
    """Return a data frame as a table of `SCHEMA`; unknown columns become null, a missing prompt id a hash.

    Raises:
        ErlabError: A required column is missing, or a column's values have another type.
    """
    if missing := [name for name in REQUIRED if name not in frame]:
        raise ErlabError(
            f"{origin}: must have the column {missing[0]!r}. Got {', '.join(map(str, frame.columns))[:300]}."
        )
    columns = {}
    for field in SCHEMA:
        values = frame[field.name] if field.name in frame else pd.Series([None] * len(frame), dtype=object)
        try:
            columns[field.name] = pa.array(values, from_pandas=True).cast(field.type)
        except (pa.ArrowException, OverflowError, UnicodeError) as e:
            raise ErlabError(
                f"{origin}: the column {field.name!r} must be {field.type} ({parquet.first_line(e)})."
            ) from None
    if columns["prompt"].null_count:
        tasks = columns["task"].fill_null(NO_TASK).to_pylist()
        texts = columns["text"].fill_null("").to_pylist()
        made = {key: _id(*key) for key in set(zip(tasks, texts))}
        columns["prompt"] = pc.coalesce(columns["prompt"], pa.array([made[key] for key in zip(tasks, texts)]))
    return pa.table(columns, schema=SCHEMA)


def _id(task: str, text: str) -> str:
    return hashlib.sha256(f"{task}\0{text}".encode(errors="replace")).hexdigest()[:16]


def save(path: str | Path, table: pa.Table) -> None:
    """Write a table of `SCHEMA` as parquet; after a failure, `path` has its former content."""
    order = pc.sort_indices(table, [("prompt", "ascending"), ("expert", "ascending")])
    options = {"row_group_size": _ROW_GROUP, "dictionary_pagesize_limit": _DICTIONARY_BYTES}
    parquet.save(table.take(order), Path(path), **options)


def of_table(table: pa.Table, origin: str) -> Outcomes:
    """Make outcomes of a table with columns of `SCHEMA`.

    A score or cost that is null or NaN is unknown. Several scores of a pair of prompt and expert are averaged; prompts
    without any score are left out. Both are stated in `notes`.

    Raises:
        ErlabError: The table is empty, a score is not from 0 to 1, a cost is negative or infinite, a text or expert is
            missing, or a prompt's id stands for several texts.
    """
    if not len(table):
        raise ErlabError(f"{origin}: must hold outcomes. Got none.")
    if "prompt" not in table.column_names:
        table = conformed(table.to_pandas(), origin)
    codes, names = zip(*(_encoded(table, name, origin) for name in _TEXTS))
    (prompt, text, task, expert), (prompts, texts, tasks, experts) = codes, names
    scores, costs = _numbers(table, "score", origin), _numbers(table, "cost", origin)
    for name, values, allowed, fits in (
        ("score", scores, "be from 0 to 1", (scores >= 0) & (scores <= 1)),
        ("cost", costs, "be a number from 0", (costs >= 0) & np.isfinite(costs)),
    ):
        if (wrong := ~(fits | np.isnan(values))).any():
            row = int(wrong.argmax())
            pair = f"prompt {prompts[prompt[row]]!r:.60}, expert {experts[expert[row]]!r:.60}"
            scale = "; erlab outcomes import --range LOW,HIGH rescales" if name == "score" else ""
            raise ErlabError(f"{origin}: {pair}: the {name} must {allowed}{scale}. Got {values[row]:g}.")
    first = np.empty(len(prompts), dtype=np.int64)
    first[prompt[::-1]] = np.arange(len(prompt))[::-1]
    if (differs := text != text[first[prompt]]).any():
        raise ErlabError(
            f"{origin}: the prompt {prompts[prompt[differs.argmax()]]!r:.60} must have one text. Got several."
        )
    order = np.argsort(experts)
    turn = np.empty(len(order), dtype=np.int64)
    turn[order] = np.arange(len(order))
    shape = len(prompts), len(experts)
    pair = prompt.astype(np.int64) * shape[1] + turn[expert]
    dense_scores, doubled = _dense(pair, scores, shape)
    dense_costs, _ = _dense(pair, costs, shape)
    outcomes = Outcomes(
        prompts, texts[text[first]], tasks[task[first]], tuple(experts[order]), dense_scores, dense_costs
    )
    return _noted(outcomes, doubled, origin)


def _noted(outcomes: Outcomes, doubled: int, origin: str) -> Outcomes:
    """Leave out prompts without scores, and state what is missing."""
    notes = [f"{doubled:,} pairs of prompt and expert occur more than once: their mean counts"] if doubled else []
    known = ~np.isnan(outcomes.scores)
    if not known.any():
        raise ErlabError(f"{origin}: must hold scores. Got none.")
    answered = known.any(axis=1)
    if not answered.all():
        notes.append(f"{(~answered).sum():,} of {len(answered):,} prompts have no score and are left out")
        outcomes, known = outcomes.take(answered), known[answered]
    if missing := known.size - known.sum():
        notes.append(f"{missing:,} of {known.size:,} pairs of prompt and expert have no score")
    return replace(outcomes, notes=tuple(notes))


def _encoded(table: pa.Table, name: str, origin: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes (rows,) and the distinct texts of a column."""
    if name not in table.column_names:
        return np.zeros(len(table), dtype=np.int32), np.array([NO_TASK], dtype=object)
    column = table[name]
    if not parquet.is_text(column.type):
        raise ErlabError(f"{origin}: the column {name!r} must be text. Got {column.type}.")
    if column.null_count:
        if name != "task":
            raise ErlabError(f"{origin}: the column {name!r} must hold a text in every row. Got null.")
        column = pc.fill_null(column.cast(pa.string()), NO_TASK)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries().combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return column.indices.to_numpy(zero_copy_only=False), column.dictionary.to_numpy(zero_copy_only=False).astype(
        object
    )


def _numbers(table: pa.Table, name: str, origin: str) -> np.ndarray:
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    kind = table[name].type
    if not (
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    ):
        raise ErlabError(f"{origin}: the column {name!r} must hold numbers. Got {kind}.")
    return table[name].cast(pa.float64()).to_numpy()


def _dense(pair: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Spread values over pairs; return them, (n, e), means of those that occur twice, and the number of such pairs."""
    known = ~np.isnan(values)
    dense = np.full(shape[0] * shape[1], np.nan)
    dense[pair[known]] = values[known]
    counts = np.bincount(pair[known], minlength=len(dense))
    if (several := counts > 1).any():
        sums = np.bincount(pair[known], values[known], minlength=len(dense))
        dense[several] = sums[several] / counts[several]
    return dense.reshape(shape), int(several.sum())
