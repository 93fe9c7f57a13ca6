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
import pyarrow.parquet as pq
from huggingface_hub import HfApi

from erlab import paths
from erlab import prompts as own
from erlab.errors import ErlabError
from erlab.prompts import Prompt
from erlab.spec import require

MAX_CHARACTERS = 100_000  # of one prompt
HELD_BACK = 0.2  # share of the texts that the router never sees
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")
_SHARD = re.compile(r"-\d+-of-\d+$")
_FEATURES = datasets.Features({name: datasets.Value("string") for name in ("id", "domain", "text", "split")})


def load(
    source: str | Path | None = None, *, seed: int = 0, per_domain: int | None = None, text: str | None = None
) -> datasets.Dataset:
    """Load prompts, strip them, drop duplicate texts, and draw at most `per_domain` of each domain with `seed`.

    `source` is None for the project's own prompts (`per_domain` of each, 500 where None), a .jsonl, .parquet or .csv
    file (commas, a header, UTF-8), a folder that holds such files at any depth, or ``owner/name[@revision]`` on Hugging
    Face. In a folder .csv files count only where there are no others: beside them they tend to be a list of the files.
    A revision of Hugging Face, such as a branch, stands for its commit at the time of the call, which `inputs` tells
    and the manifest keeps: name that commit as the revision to load the same again.
    `text` names the column that holds the prompts where it is neither "text" nor the only column of strings beside
    "id" and "domain". A row without a domain takes its file's name up to "__", or the Hugging Face dataset's.
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
        strings = [name for name, value in first.items() if isinstance(value, str)]
        column = text or _text_column(list(first), strings, f"{file}:{line}")
        yield from _prompts(((f"{file}:{n}", n, row) for n, row in rows), column, file.stem, file.stem.split("__")[0])


def _json_lines(file: Path) -> Iterator[tuple[int, dict]]:
    """Yield the number, from 1, and the object of each line that is not blank."""
    for number, line in enumerate(_content(file).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as e:
            raise ErlabError(f"{file}:{number}: must be UTF-8. Got the byte 0x{line[e.start]:02x}.") from None
        except (ValueError, RecursionError) as e:
            raise ErlabError(f"{file}:{number}: must be one JSON object ({getattr(e, 'msg', e)}).") from None
        if not isinstance(row, dict):
            raise ErlabError(f"{file}:{number}: must be one JSON object. Got {_short(row)}.")
        yield number, row


def _content(file: Path) -> bytes:
    """A file's bytes without UTF-8's mark at their beginning."""
    try:
        return file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as e:
        raise ErlabError(f"{file}: can't be read ({e.strerror}).") from None


def _read_csv(file: Path, text: str | None) -> Iterator[Prompt]:
    rows = list(_csv_rows(file))
    if rows:
        (line, columns), *rows = rows
        if len(set(columns)) < len(columns):
            raise ErlabError(f"{file}:{line}: must name each column once. Got {', '.join(columns)}.")
        column = text or _text_column(columns, columns, f"{file}:{line}")
        for number, row in rows:
            if len(row) != len(columns):
                raise ErlabError(f"{file}:{number}: must have {len(columns)} fields, as the header. Got {len(row)}.")
        named = ((f"{file}:{number}", number, dict(zip(columns, row))) for number, row in rows)
        yield from _prompts(named, column, file.stem, file.stem.split("__")[0])


def _csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line, from 1, and the fields of each row that is not blank."""
    content = _content(file)
    try:
        reader = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        raise ErlabError(f"{file}:{line}: must be UTF-8. Got the byte 0x{content[e.start]:02x}.") from None
    first = 1
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield first, row
            first = reader.line_num + 1
    except csv.Error as e:
        raise ErlabError(f"{file}:{first}: must be comma-separated values ({e}).") from None


def _read_parquet(file: Path, text: str | None) -> Iterator[Prompt]:
    try:
        table = pq.read_table(file, partitioning=None)
    except (OSError, UnicodeError, pa.ArrowException) as e:  # pyarrow takes no name that is not UTF-8
        raise ErlabError(f"{file}: no readable parquet file ({str(e).splitlines()[0]}).") from None
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
    strings = [f.name for f in table.schema if _is_string(f.type)]
    column = text or _text_column(table.column_names, strings, origin)
    if column not in table.column_names:
        raise ErlabError(f"{origin}: has no column {column!r}, only {', '.join(table.column_names)}.")
    wanted = [c for c in dict.fromkeys(("id", "domain", column)) if c in table.column_names]
    rows = enumerate(table.select(wanted).to_pylist(), 1)
    yield from _prompts(((f"{origin}: row {n}", n, row) for n, row in rows), column, stem, domain)


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # pandas' categories
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _text_column(columns: list[str], strings: list[str], where: str) -> str:
    """The column of prompts, where there is only one it can be."""
    candidates = [c for c in strings if c not in ("id", "domain")]
    if "text" in columns:
        return "text"
    if len(candidates) != 1:
        raise ErlabError(
            f"{where}: has no column 'text'; name the prompts' one with the 'text' parameter, "
            f"out of {', '.join(columns) or 'none'}."
        )
    return candidates[0]


def _prompts(rows: Iterable[tuple[str, int, dict]], column: str, stem: str, domain: str) -> Iterator[Prompt]:
    """Check rows, each with where it stands and its number; `stem` and `domain` serve rows without their own."""
    for where, number, row in rows:
        if column not in row:
            raise ErlabError(f"{where}: has no field {column!r}, only {', '.join(row) or 'an empty object'}.")
        text = row[column]
        if not isinstance(text, str):
            raise ErlabError(f"{where}: the field {column!r} must be a string. Got {_short(text)}.")
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
    return _valid(str(value).strip(), where)


def _valid(text: str, where: str) -> str:
    """`text`, where it can be written as UTF-8; JSON's escapes can spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ErlabError(f"{where}: must be valid Unicode. Got the lone surrogate {e.object[e.start]!r}.") from None
    return text


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
