"""Prompts as one `datasets.Dataset`, whatever they come from: the project's own, files, or a Hugging Face dataset.

Columns: `id` (unique), `domain`, `text` (unique), `split`: ``train`` for the router, ``held_back`` for the users. The
split is a hash of the text, so that a text stays on its side whatever else is loaded, and no file can leak into it.

>>> prompts = load(per_domain=10)
>>> prompts.num_rows, sorted(set(prompts["split"]))
(80, ['held_back', 'train'])
"""

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
from huggingface_hub import HfApi

from erlab import parquet, paths, textfiles
from erlab.errors import ErlabError
from erlab.prompts import grammar as own
from erlab.prompts.grammar import Prompt
from erlab.spec import require

MAX_CHARACTERS = 100_000  # of one prompt
MAX_LABEL = 1_000  # of an id or a domain
HELD_BACK = 0.2  # share of the texts that the router never sees
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")
_SHARD = re.compile(r"-\d+-of-\d+$")
_FEATURES = datasets.Features({name: datasets.Value("string") for name in ("id", "domain", "text", "split")})


def load(
    source: str | Path | None = None, *, seed: int = 0, per_domain: int | None = None, text: str | None = None
) -> datasets.Dataset:
    """Load prompts, strip them, drop duplicate texts, and draw at most `per_domain` of each domain with `seed`.

    `source` is None for the project's own prompts (`per_domain` of each, 500 where None), a .jsonl, .parquet or .csv
    file (UTF-8, a header; commas, semicolons or tabs), a folder that holds such files at any depth, or
    ``owner/name[@revision]`` on Hugging Face. In a folder .csv files count only where there are no others: beside them
    they tend to be a list of the files.
    A revision of Hugging Face, such as a branch, stands for its commit at the time of the call, which `inputs` tells
    and the manifest keeps: name that commit as the revision to load the same again.
    `text` names the column that holds the prompts. Where it is None, that is "text", else the only column of
    conversations, else the only column of strings beside "id" and "domain" if none is nested. Conversations are lists
    of objects with `role` and `content`, or `from` and `value`: the user's first turn is the prompt.
    A row without a domain takes its file's name up to "__", or the Hugging Face dataset's.
    Rows come in an order drawn with `seed`, which is that of the texts' hashes and not of the files.

    Raises ErlabError, naming file and line, for anything that can't be read as prompts.
    """
    if per_domain is not None:
        require(per_domain >= 1, "per_domain", "load", "be at least 1", per_domain)
    found = own.generate(per_domain or own.PER_DOMAIN, seed) if source is None else _read(source, text)
    first = {}
    for prompt in found:
        first.setdefault(prompt.text, prompt)
    if not first:
        raise ErlabError(f"{source}: holds no prompts.")
    ordered = sorted(first.values(), key=lambda p: _digest(f"{seed}/{p.text}"))
    return _dataset(_at_most(ordered, per_domain) if per_domain else ordered)


def inputs(source: str | Path | None = None) -> dict[str, str | None]:
    """What `load(source)` depends on: each file's path, from the source's own name on, and SHA-256.

    A Hugging Face dataset has its commit instead, or None where Hugging Face's offline mode hides it.
    """
    if source is None:
        return {own.GRAMMAR.relative_to(paths.ROOT).as_posix(): _file_digest(own.GRAMMAR)}
    path = Path(source).expanduser()
    if not path.exists():
        return {str(source): _commit(str(source))}
    return {file.relative_to(path.parent).as_posix(): _file_digest(file) for file in _files(path)}


def _at_most(prompts: Iterable[Prompt], per_domain: int) -> Iterator[Prompt]:
    taken = Counter()
    for prompt in prompts:
        taken[prompt.domain] += 1
        if taken[prompt.domain] <= per_domain:
            yield prompt


def _dataset(prompts: Iterable[Prompt]) -> datasets.Dataset:
    """The table; an id that came before gets its text's hash appended, which makes it unique."""
    columns, seen = {name: [] for name in _FEATURES}, set()
    for prompt in prompts:
        digest = _digest(prompt.text)
        name = f"{prompt.id}-{digest[:12]}" if prompt.id in seen else prompt.id
        seen.add(name)
        held_back = int(digest[:16], 16) < HELD_BACK * 2**64
        for column, value in zip(columns, (name, prompt.domain, prompt.text, "held_back" if held_back else "train")):
            columns[column].append(value)
    return datasets.Dataset.from_dict(columns, features=_FEATURES)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file_digest(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as e:
        raise ErlabError(f"{file}: can't be read ({e.strerror}).") from None


def _read(source: str | Path, text: str | None) -> Iterator[Prompt]:
    path = Path(source).expanduser()
    if not path.exists():
        yield from _read_hub(str(source), text)
        return
    for file in _files(path):
        yield from _READERS[file.suffix](file, text)


def _files(path: Path) -> list[Path]:
    """The files of prompts at `path`, sorted; hidden ones are left out."""
    if path.is_file():
        if path.suffix not in _READERS:
            raise ErlabError(f"{path}: a file of prompts must end in .jsonl, .parquet or .csv.")
        return [path]
    if not os.access(path, os.R_OK | os.X_OK):
        raise ErlabError(f"{path}: can't be read (Permission denied).")
    inside = [f for suffix in _READERS for f in path.rglob(f"*{suffix}") if f.is_file()]
    files = sorted(f for f in inside if not any(part.startswith(".") for part in f.relative_to(path).parts))
    if not files:
        raise ErlabError(f"{path}: the folder holds no prompts (.jsonl, .parquet or .csv files).")
    return [f for f in files if f.suffix != ".csv"] or files


def _read_jsonl(file: Path, text: str | None) -> Iterator[Prompt]:
    rows = list(_json_lines(file))
    if rows:
        line, first = rows[0]
        column = text or _text_column({name: _kind(value) for name, value in first.items()}, f"{file}:{line}")
        yield from _prompts(((f"{file}:{n}", n, row) for n, row in rows), column, file.stem, file.stem.split("__")[0])


def _json_lines(file: Path) -> Iterator[tuple[int, dict]]:
    """Yield the number, from 1, and the object of each line that is not blank."""
    for number, line in enumerate(textfiles.lines(textfiles.read(file)), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise ErlabError(f"{file}:{number}: must be one JSON object ({getattr(e, 'msg', e)}).") from None
        if not isinstance(row, dict):
            raise ErlabError(f"{file}:{number}: must be one JSON object. Got {_short(row)}.")
        yield number, row


def _kind(value: object) -> str | None:
    """What a value of JSON may be: a text, a conversation, nested otherwise; None for the rest."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and _speech(value[0].keys()):
        return "conversation"
    return "text" if isinstance(value, str) else "nested" if isinstance(value, list | dict) else None


def _read_csv(file: Path, text: str | None) -> Iterator[Prompt]:
    rows = _csv_rows(file)
    if rows:
        (line, columns), *rows = rows
        if len(set(columns)) < len(columns):
            raise ErlabError(f"{file}:{line}: must name each column once. Got {_names(columns)}.")
        column = text or _text_column(dict.fromkeys(columns, "text"), f"{file}:{line}")
        for number, row in rows:
            if len(row) != len(columns):
                raise ErlabError(f"{file}:{number}: must have {len(columns)} fields, as the header. Got {len(row)}.")
        named = ((f"{file}:{number}", number, dict(zip(columns, row))) for number, row in rows)
        yield from _prompts(named, column, file.stem, file.stem.split("__")[0])


def _csv_rows(file: Path) -> list[tuple[int, list[str]]]:
    """The number of the first line, from 1, and the fields of each row that is not blank."""
    content, delimiter, rows, first = textfiles.read(file), ",", [], 1
    limit = csv.field_size_limit(textfiles.MAX_BYTES)  # no field is too long for a column that nobody reads
    try:
        delimiter = _delimiter(content)
        reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
        for row in reader:
            if any(field.strip() for field in row):
                rows.append((first, row))
            first = reader.line_num + 1
    except csv.Error as e:
        raise ErlabError(f"{file}:{first}: must be values separated by {delimiter!r} ({e}).") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _delimiter(content: str) -> str:
    """The separator that makes most fields of the header: a comma, a semicolon or a tab."""
    header = next((line for line in io.StringIO(content) if line.strip()), "")
    return max(",;\t", key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter))))


def _read_parquet(file: Path, text: str | None) -> Iterator[Prompt]:
    table = parquet.read(file, lambda schema: _wanted(schema, text, str(file)))
    stem = _SHARD.sub("", file.stem)
    yield from _table_prompts(table, text, str(file), stem, stem.split("__")[0])


_READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".csv": _read_csv}


def _read_hub(source: str, text: str | None) -> Iterator[Prompt]:
    name, _, revision = source.partition("@")
    commit = _commit(source)
    try:
        splits = datasets.load_dataset(name, revision=commit or revision or None)
    except Exception as e:  # whatever the client and the formats behind it raise, the reader can only mend the source
        raise ErlabError(f"{source}: can't be loaded from Hugging Face ({_reason(e)}).") from None
    stem = name.rpartition("/")[2]
    for split, rows in splits.items():
        yield from _table_prompts(rows.with_format("arrow")[:], text, f"{source} ({split})", f"{stem}-{split}", stem)


def _commit(source: str) -> str | None:
    """The commit that a Hugging Face name stands for now; asked first because a load without a network retries long."""
    if not _HUB_NAME.fullmatch(source):
        raise ErlabError(f"{source}: no such file or folder (nor a Hugging Face name, owner/name[@revision]).")
    if datasets.config.HF_HUB_OFFLINE:
        return None
    name, _, revision = source.partition("@")
    try:
        return HfApi().dataset_info(name, revision=revision or None, timeout=10).sha
    except Exception as e:  # also the HTTP library's own errors
        raise ErlabError(f"{source}: no such file or folder, and not found on Hugging Face ({_reason(e)}).") from None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _table_prompts(table: pa.Table, text: str | None, origin: str, stem: str, domain: str) -> Iterator[Prompt]:
    """A table's rows as prompts, for `_prompts` to check."""
    *_, column = wanted = _wanted(table.schema, text, origin)
    try:
        rows = table.select(wanted).to_pylist()
    except UnicodeDecodeError as e:
        raise ErlabError(f"{origin}: must be UTF-8 text. Got the byte 0x{e.object[e.start]:02x}.") from None
    yield from _prompts(((f"{origin}: row {n}", n, row) for n, row in enumerate(rows, 1)), column, stem, domain)


def _wanted(schema: pa.Schema, text: str | None, origin: str) -> list[str]:
    """The columns of a table that are read; the last one holds the prompts."""
    column = text or _text_column({field.name: _column_kind(field.type) for field in schema}, origin)
    if column not in schema.names:
        raise ErlabError(f"{origin}: has no column {column!r}, only {_names(schema.names)}.")
    return [name for name in ("id", "domain") if name in schema.names and name != column] + [column]


def _column_kind(kind: pa.DataType) -> str | None:
    """As `_kind`, of a column's type."""
    if parquet.is_text(kind):
        return "text"
    if not pa.types.is_nested(kind):
        return None
    element = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    spoken = element is not None and pa.types.is_struct(element) and _speech([field.name for field in element])
    return "conversation" if spoken else "nested"


def _text_column(kinds: dict[str, str | None], where: str) -> str:
    """The column of prompts, where there is only one it can be, given the kind of each column."""
    if "text" in kinds:
        return "text"
    conversations = [name for name, kind in kinds.items() if kind == "conversation"]
    others = [name for name, kind in kinds.items() if kind and name not in ("id", "domain")]
    candidates = conversations or others
    if len(candidates) != 1 or kinds[candidates[0]] == "nested":
        raise ErlabError(
            f"{where}: has no column 'text'; name the prompts' one with the 'text' parameter, "
            f"out of {_names(kinds)} (--text NAME)."
        )
    return candidates[0]


def _speech(names: Iterable[str]) -> tuple[str, str] | None:
    """The fields of a conversation's turn that hold speaker and text, out of its fields; None where it has neither."""
    return next((pair for pair in (("role", "content"), ("from", "value")) if set(pair) <= set(names)), None)


def _prompt_text(value: object) -> object:
    """The first thing that a user says in a conversation; None where none does. Other values as they are."""
    if _kind(value) != "conversation":
        return value
    speaker, content = _speech(value[0].keys())
    turns = [turn.get(content) for turn in value if isinstance(turn, dict) and turn.get(speaker) in ("user", "human")]
    if turns and isinstance(turns[0], list):  # parts, of which some may be images
        parts = [part.get("text") for part in turns[0] if isinstance(part, dict) and part.get("type") == "text"]
        return "\n".join(part for part in parts if isinstance(part, str))
    return turns[0] if turns else None


def _prompts(rows: Iterable[tuple[str, int, dict]], column: str, stem: str, domain: str) -> Iterator[Prompt]:
    """Check rows, each with where it stands and its number; `stem` and `domain` serve rows without their own."""
    for where, number, row in rows:
        if column not in row:
            raise ErlabError(f"{where}: has no field {column!r}, only {_names(row)}.")
        text = _prompt_text(row[column])
        if not isinstance(text, str):
            allowed = "have a turn of the user's" if _kind(row[column]) == "conversation" else "be a string"
            raise ErlabError(f"{where}: the field {column!r} must {allowed}. Got {_short(row[column])}.")
        text = text.strip()
        if not text:
            raise ErlabError(f"{where}: the field {column!r} must not be empty.")
        if len(text) > MAX_CHARACTERS:
            raise ErlabError(
                f"{where}: the field {column!r} must have at most {MAX_CHARACTERS:,} characters. Got {len(text):,}."
            )
        yield Prompt(
            _label(row, "id", where) or f"{stem}-{number}", _label(row, "domain", where) or domain, _valid(text, where)
        )


def _label(row: dict, field: str, where: str) -> str:
    """An id or a domain as a string, empty where there is none."""
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str | int):
        raise ErlabError(f"{where}: the field {field!r} must be a string. Got {_short(value)}.")
    label = _valid(str(value).strip(), where)
    if len(label) > MAX_LABEL:
        allowed = f"have at most {MAX_LABEL:,} characters"
        raise ErlabError(f"{where}: the field {field!r} must {allowed}. Got {len(label):,}.")
    return label


def _valid(text: str, where: str) -> str:
    """`text`, where it can be written as UTF-8; JSON's escapes can spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ErlabError(f"{where}: must be valid Unicode. Got the lone surrogate {e.object[e.start]!r}.") from None
    return text


def _names(columns: Iterable[str]) -> str:
    """The columns' names on one line, as many as are readable there."""
    return textfiles.printable(", ".join(columns) or "none")[:300]


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
