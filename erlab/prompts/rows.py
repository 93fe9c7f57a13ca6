"""Rows of prompt files: the column of prompts, conversations, labels, and their checks."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from erlab import parquet, textfiles
from erlab.errors import ErlabError
from erlab.prompts.grammar import Prompt

MAX_CHARACTERS = 100_000  # of one prompt
MAX_LABEL = 1_000  # characters of an id or a domain


def prompts(rows: Iterable[tuple[str, int, dict]], column: str, stem: str, domain: str) -> Iterator[Prompt]:
    """Check rows and convert them to prompts.

    Args:
        rows: Origin for error messages, number, and columns of each row.
        column: Column of prompts.
        stem: Prefix of the ids of rows without id.
        domain: Domain of rows without domain.
    """
    for where, number, row in rows:
        if column not in row:
            raise ErlabError(f"{where}: has no field {column!r}, only {names(row)}.")
        text = _prompt_text(row[column])
        if not isinstance(text, str):
            allowed = "have a turn of the user" if kind(row[column]) == "conversation" else "be a string"
            raise ErlabError(f"{where}: the field {column!r} must {allowed}. Got {short(row[column])}.")
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


def columns(schema: pa.Schema, text: str | None, origin: str) -> list[str]:
    """Return the columns of a table to read; the last one holds the prompts."""
    column = text or text_column({field.name: _column_kind(field.type) for field in schema}, origin)
    if column not in schema.names:
        raise ErlabError(f"{origin}: has no column {column!r}, only {names(schema.names)}.")
    return [name for name in ("id", "domain") if name in schema.names and name != column] + [column]


def text_column(kinds: dict[str, str | None], where: str) -> str:
    """Return the column of prompts.

    Args:
        kinds: Kind of each column, see `kind`.
        where: Origin for the error message.

    Raises:
        ErlabError: There is no column "text", and none or several others may hold prompts.
    """
    if "text" in kinds:
        return "text"
    conversations = [name for name, kind in kinds.items() if kind == "conversation"]
    others = [name for name, kind in kinds.items() if kind and name not in ("id", "domain")]
    candidates = conversations or others
    if len(candidates) != 1 or kinds[candidates[0]] == "nested":
        raise ErlabError(
            f"{where}: has no column 'text'; name the prompts' one with the 'text' parameter, "
            f"out of {names(kinds)} (--text NAME)."
        )
    return candidates[0]


def kind(value: object) -> str | None:
    """Return the kind of a JSON value: text, conversation, otherwise nested, or None."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and _speech(value[0].keys()):
        return "conversation"
    return "text" if isinstance(value, str) else "nested" if isinstance(value, list | dict) else None


def _column_kind(column: pa.DataType) -> str | None:
    """Return the kind of a column by its type, as `kind`."""
    if parquet.is_text(column):
        return "text"
    if not pa.types.is_nested(column):
        return None
    element = column.value_type if pa.types.is_list(column) or pa.types.is_large_list(column) else None
    is_conversation = element is not None and pa.types.is_struct(element) and _speech([field.name for field in element])
    return "conversation" if is_conversation else "nested"


def _speech(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the fields of a conversation's turn that hold speaker and text, None if it has neither."""
    return next((pair for pair in (("role", "content"), ("from", "value")) if set(pair) <= set(names)), None)


def _prompt_text(value: object) -> object:
    """Return the user's first turn of a conversation, None if there is none; other values unchanged."""
    if kind(value) != "conversation":
        return value
    speaker, content = _speech(value[0].keys())
    turns = [turn.get(content) for turn in value if isinstance(turn, dict) and turn.get(speaker) in ("user", "human")]
    if turns and isinstance(turns[0], list):  # parts, of which some may be images
        parts = [part.get("text") for part in turns[0] if isinstance(part, dict) and part.get("type") == "text"]
        return "\n".join(part for part in parts if isinstance(part, str))
    return turns[0] if turns else None


def _label(row: dict, field: str, where: str) -> str:
    """Return an id or a domain as a string, empty if there is none."""
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str | int):
        raise ErlabError(f"{where}: the field {field!r} must be a string. Got {short(value)}.")
    label = _valid(str(value).strip(), where)
    if len(label) > MAX_LABEL:
        allowed = f"have at most {MAX_LABEL:,} characters"
        raise ErlabError(f"{where}: the field {field!r} must {allowed}. Got {len(label):,}.")
    return label


def _valid(text: str, where: str) -> str:
    """Return the text; raise ErlabError for half a surrogate pair, which JSON escapes can contain."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ErlabError(f"{where}: must be valid Unicode. Got the lone surrogate {e.object[e.start]!r}.") from None
    return text


def names(columns: Iterable[str]) -> str:
    """Return column names on one line of at most 300 characters."""
    return textfiles.printable(", ".join(columns) or "none")[:300]


def short(value: object) -> str:
    """Return a value as text of at most 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
