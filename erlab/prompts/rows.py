"""Rows of prompt files: the column or template of prompts, conversations, labels, and their checks.

>>> [prompt.text for prompt in prompts([("f:1", 1, {"q": "Why?", "c": None})], "{q}\\n{c}", "f", "d")]
['Why?']
"""

import hashlib
import re
from collections.abc import Iterable, Iterator

import pyarrow as pa

from erlab import parquet, textfiles
from erlab.errors import ErlabError
from erlab.prompts.grammar import Prompt

MAX_CHARACTERS = 100_000  # of one prompt
MAX_LABEL = 1_000  # characters of an id or a domain
_FIELD = re.compile(r"\{([^{}]+)\}")  # column in a template


def prompts(
    rows: Iterable[tuple[str, int, dict]], text: str, stem: str, domain: str, unusable: list[str] | None = None
) -> Iterator[Prompt]:
    """Check rows and convert them to prompts.

    Args:
        rows: Origin for error messages, number, and columns of each row.
        text: Column of prompts, or a template with columns in braces (`fields`).
        stem: Prefix of the ids of rows without id.
        domain: Domain of rows without domain.
        unusable: Receives the origins of rows whose prompt is missing, empty or too long; None refuses such rows.
    """
    for where, number, row in rows:
        content, mistake = _content(row, text, where)
        if mistake and unusable is None:
            raise ErlabError(f"{where}: {mistake}")
        if mistake:
            unusable.append(where)
            continue
        yield Prompt(
            _label(row, "id", where) or f"{stem}-{number}",
            _label(row, "domain", where) or domain,
            _valid(content, where),
        )


def fields(text: str) -> list[str]:
    """Return the columns of a template, or the one column that `text` names.

    >>> fields("{question}\\n{context}"), fields("question")
    (['question', 'context'], ['question'])
    """
    return list(dict.fromkeys(_FIELD.findall(text))) or [text]


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _content(row: dict, text: str, where: str) -> tuple[str, str]:
    """Return the prompt of a row without surrounding blanks, and why it cannot be used, empty if it can."""
    named, is_template = fields(text), bool(_FIELD.search(text))
    if missing := [column for column in named if column not in row]:
        raise ErlabError(f"{where}: has no field {missing[0]!r}, only {names(row)}.")
    values = {column: _prompt_text(row[column]) for column in named}
    for column, value in values.items():
        if is_template and isinstance(value, int | float | None):
            value = values[column] = "" if value is None else str(value)
        if not isinstance(value, str):
            allowed = "have a turn of the user" if kind(row[column]) == "conversation" else "be a string"
            mistake = f"the field {column!r} must {allowed}. Got {short(row[column])}."
            if value is None:
                return "", mistake
            raise ErlabError(f"{where}: {mistake}")
    content = _FIELD.sub(lambda match: values[match[1]], text).strip() if is_template else values[text].strip()
    subject = f"the template {short(text)}" if is_template else f"the field {text!r}"
    if not any(value.strip() for value in values.values()):
        return "", f"{subject} must not be empty."
    if len(content) > MAX_CHARACTERS:
        return "", f"{subject} must have at most {MAX_CHARACTERS:,} characters. Got {len(content):,}."
    return content, ""


def columns(schema: pa.Schema, text: str | None, origin: str) -> tuple[str, list[str]]:
    """Return the column or template of prompts, by default the column that is guessed, and the columns to read."""
    text = text or text_column({field.name: _column_kind(field.type) for field in schema}, origin)
    for column in fields(text):
        if column not in schema.names:
            raise ErlabError(f"{origin}: has no column {column!r}, only {names(schema.names)}.")
    return text, list(dict.fromkeys([*(name for name in ("id", "domain") if name in schema.names), *fields(text)]))


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
