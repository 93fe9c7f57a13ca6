"""Sources of prompts: .jsonl, .csv and .parquet files, folders, and Hugging Face datasets."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
from huggingface_hub import HfApi

from erlab import parquet, textfiles
from erlab.errors import ErlabError
from erlab.prompts import rows
from erlab.prompts.grammar import Prompt

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")
_SHARD = re.compile(r"-\d+-of-\d+$")


def read(source: str | Path, text: str | None) -> Iterator[Prompt]:
    """Yield the prompts of a source; parameters as of `datasets.load`."""
    path = Path(source).expanduser()
    if not path.exists():
        yield from _read_hub(str(source), text)
        return
    for file in files(path):
        yield from _READERS[file.suffix](file, text)


def files(path: Path) -> list[Path]:
    """Return the prompt files at `path`, sorted, without hidden ones."""
    if path.is_file():
        if path.suffix not in _READERS:
            raise ErlabError(f"{path}: a file of prompts must end in .jsonl, .parquet or .csv.")
        return [path]
    if not os.access(path, os.R_OK | os.X_OK):
        raise ErlabError(f"{path}: can't be read (Permission denied).")
    inside = [f for suffix in _READERS for f in path.rglob(f"*{suffix}") if f.is_file()]
    visible = sorted(f for f in inside if not any(part.startswith(".") for part in f.relative_to(path).parts))
    if not visible:
        raise ErlabError(f"{path}: the folder holds no prompts (.jsonl, .parquet or .csv files).")
    return [f for f in visible if f.suffix != ".csv"] or visible


def commit(source: str) -> str | None:
    """Return the current commit of a Hugging Face dataset, None in Hugging Face's offline mode.

    It is queried before loading, because loading without a network retries for long.
    """
    if not _HUB_NAME.fullmatch(source):
        raise ErlabError(f"{source}: no such file or folder (nor a Hugging Face name, owner/name[@revision]).")
    if datasets.config.HF_HUB_OFFLINE:
        return None
    name, _, revision = source.partition("@")
    try:
        return HfApi().dataset_info(name, revision=revision or None, timeout=10).sha
    except Exception as e:  # also the HTTP library's own errors
        raise ErlabError(f"{source}: no such file or folder, and not found on Hugging Face ({_reason(e)}).") from None


def _read_jsonl(file: Path, text: str | None) -> Iterator[Prompt]:
    lines = list(_json_lines(file))
    if lines:
        line, first = lines[0]
        column = text or rows.text_column({name: rows.kind(value) for name, value in first.items()}, f"{file}:{line}")
        located = ((f"{file}:{n}", n, row) for n, row in lines)
        yield from rows.prompts(located, column, file.stem, file.stem.split("__")[0])


def _json_lines(file: Path) -> Iterator[tuple[int, dict]]:
    """Yield number, from 1, and object of each line that is not blank."""
    for number, line in enumerate(textfiles.lines(textfiles.read(file)), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise ErlabError(f"{file}:{number}: must be one JSON object ({getattr(e, 'msg', e)}).") from None
        if not isinstance(row, dict):
            raise ErlabError(f"{file}:{number}: must be one JSON object. Got {rows.short(row)}.")
        yield number, row


def _read_csv(file: Path, text: str | None) -> Iterator[Prompt]:
    lines = _csv_rows(file)
    if lines:
        (line, columns), *lines = lines
        if len(set(columns)) < len(columns):
            raise ErlabError(f"{file}:{line}: must name each column once. Got {rows.names(columns)}.")
        column = text or rows.text_column(dict.fromkeys(columns, "text"), f"{file}:{line}")
        for number, row in lines:
            if len(row) != len(columns):
                raise ErlabError(f"{file}:{number}: must have {len(columns)} fields, as the header. Got {len(row)}.")
        located = ((f"{file}:{number}", number, dict(zip(columns, row))) for number, row in lines)
        yield from rows.prompts(located, column, file.stem, file.stem.split("__")[0])


def _csv_rows(file: Path) -> list[tuple[int, list[str]]]:
    """Return number of the first line, from 1, and fields of each row that is not blank."""
    content, delimiter, lines, first = textfiles.read(file), ",", [], 1
    limit = csv.field_size_limit(textfiles.MAX_BYTES)  # a column that is not read may have fields of any length
    try:
        delimiter = _delimiter(content)
        reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
        for row in reader:
            if any(field.strip() for field in row):
                lines.append((first, row))
            first = reader.line_num + 1
    except csv.Error as e:
        raise ErlabError(f"{file}:{first}: must be values separated by {delimiter!r} ({e}).") from None
    finally:
        csv.field_size_limit(limit)
    return lines


def _delimiter(content: str) -> str:
    """Return the separator with most fields in the header: comma, semicolon or tab."""
    header = next((line for line in io.StringIO(content) if line.strip()), "")
    return max(",;\t", key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter))))


def _read_parquet(file: Path, text: str | None) -> Iterator[Prompt]:
    table = parquet.read(file, lambda schema: rows.columns(schema, text, str(file)))
    stem = _SHARD.sub("", file.stem)
    yield from _table_prompts(table, text, str(file), stem, stem.split("__")[0])


def _read_hub(source: str, text: str | None) -> Iterator[Prompt]:
    name, _, revision = source.partition("@")
    revision = commit(source) or revision or None
    try:
        splits = datasets.load_dataset(name, revision=revision)
    except Exception as e:  # any error of the client and of the formats behind it concerns the source
        raise ErlabError(f"{source}: can't be loaded from Hugging Face ({_reason(e)}).") from None
    stem = name.rpartition("/")[2]
    for split, table in splits.items():
        yield from _table_prompts(table.with_format("arrow")[:], text, f"{source} ({split})", f"{stem}-{split}", stem)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _table_prompts(table: pa.Table, text: str | None, origin: str, stem: str, domain: str) -> Iterator[Prompt]:
    """Yield the rows of a table as prompts; `rows.prompts` checks them."""
    *_, column = wanted = rows.columns(table.schema, text, origin)
    try:
        selected = table.select(wanted).to_pylist()
    except UnicodeDecodeError as e:
        raise ErlabError(f"{origin}: must be UTF-8 text. Got the byte 0x{e.object[e.start]:02x}.") from None
    yield from rows.prompts(((f"{origin}: row {n}", n, row) for n, row in enumerate(selected, 1)), column, stem, domain)


_READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".csv": _read_csv}
