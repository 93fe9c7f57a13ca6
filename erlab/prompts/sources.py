"""Prompt files: .jsonl, .csv and .parquet files and folders of them."""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from erlab import parquet, textfiles
from erlab.errors import ErlabError
from erlab.prompts import rows
from erlab.prompts.grammar import Prompt

_SHARD = re.compile(r"-\d+-of-\d+$")


def read(path: Path, text: str | None) -> Iterator[Prompt]:
    """Yield the prompts of a file or folder; `text` as of `datasets.load`."""
    for file in files(path):
        yield from READERS[file.suffix](file, text)


def files(path: Path) -> list[Path]:
    """Return the prompt files at `path`, sorted, without hidden ones."""
    if path.is_file():
        if path.suffix not in READERS:
            raise ErlabError(f"{path}: a file of prompts must end in .jsonl, .parquet or .csv.")
        return [path]
    if not os.access(path, os.R_OK | os.X_OK):
        raise ErlabError(f"{path}: can't be read (Permission denied).")
    inside = [f for suffix in READERS for f in path.rglob(f"*{suffix}") if f.is_file()]
    visible = sorted(f for f in inside if not any(part.startswith(".") for part in f.relative_to(path).parts))
    if not visible:
        raise ErlabError(f"{path}: the folder holds no prompts (.jsonl, .parquet or .csv files).")
    return [f for f in visible if f.suffix != ".csv"] or visible


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as e:
        raise ErlabError(f"{file}: can't be read ({e.strerror}).") from None


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
    table = parquet.read(file, lambda schema: rows.columns(schema, text, str(file))[1])
    stem = _SHARD.sub("", file.stem)
    yield from table_prompts(table, text, str(file), stem, stem.split("__")[0])


def table_prompts(
    table: pa.Table, text: str | None, origin: str, stem: str, domain: str, unusable: list[str] | None = None
) -> Iterator[Prompt]:
    """Yield the rows of a table as prompts; other parameters as of `rows.prompts`, which checks them."""
    text, wanted = rows.columns(table.schema, text, origin)
    try:
        selected = table.select(wanted).to_pylist()
    except UnicodeDecodeError as e:
        raise ErlabError(f"{origin}: must be UTF-8 text. Got the byte 0x{e.object[e.start]:02x}.") from None
    located = ((f"{origin}: row {n}", n, row) for n, row in enumerate(selected, 1))
    yield from rows.prompts(located, text, stem, domain, unusable)


READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".csv": _read_csv}
