"""Parquet files of anyone, read within bounds: a small file may stand for more rows and bytes than a machine has.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "a.parquet"
>>> pq.write_table(pa.table({"n": [1, 2], "more": [3, 4]}), path)
>>> read(path, lambda schema: ["n"]).to_pydict()
{'n': [1, 2]}
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from erlab import textfiles
from erlab.errors import ErlabError

MAX_ROWS = 10_000_000  # of one file
MAX_VALUES = 500_000_000  # in its columns of lists
MAX_BYTES = 4 * 2**30  # of all texts that are read, and of all columns as the file holds them, uncompressed
MAX_TEXT = 2**24  # bytes of one text


def read(
    file: Path, choose: Callable[[pa.Schema], list[str]], most_text: int = MAX_TEXT, most_rows: int | None = None
) -> pa.Table:
    """Read some columns of a file; columns of texts come as dictionaries, in which a text that repeats stands once.

    Args:
        file: A parquet file.
        choose: Returns the names of the columns to read, out of the file's schema; an error of its ends the reading.
        most_text: Bytes that one text may have.
        most_rows: Rows that the file may have (default: `MAX_ROWS`).

    Raises:
        ErlabError: The file is missing, is no parquet, or exceeds the bounds of this module.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe or a device would block, or never end
            raise ErlabError(f"{file}: must be a file. Got {'a folder' if file.is_dir() else 'something else'}.")
        with pq.ParquetFile(file) as parquet:
            _check_size(parquet.metadata, file, most_rows or MAX_ROWS)
            columns, texts = choose(parquet.schema_arrow), _texts_in(parquet.metadata.schema)
        with pq.ParquetFile(file, read_dictionary=texts) as parquet:
            table = parquet.read(columns).select(columns)
        _check_texts(table, file, most_text)
        return table
    except FileNotFoundError:
        raise ErlabError(f"{file}: no such file or folder.") from None
    except (OSError, ValueError, KeyError, OverflowError, pa.ArrowException) as e:  # KeyError: two columns of a name
        raise ErlabError(f"{file}: no readable parquet file ({first_line(e)}).") from None


def save(table: pa.Table, path: Path, **options: object) -> None:
    """Write a table; after a failure, `path` has its former content. `options` go to `pq.write_table`."""
    with textfiles.replacing(Path(path)) as aside:
        pq.write_table(table, aside, compression="zstd", **options)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts, as they are or as a dictionary (pandas' categories)."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def first_line(error: Exception) -> str:
    """What an error says, in one line of at most 200 characters."""
    return next(iter(str(error).strip("'\" \n").splitlines()), type(error).__name__)[:200]


def _check_size(about: pq.FileMetaData, file: Path, most_rows: int) -> None:
    """Refuse, by what its footer says, a file that is too large to be read."""
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    # pyarrow ends the process at a damaged entry for a column, so only those of lists are looked at.
    lists = [j for j in range(about.num_columns) if about.schema.column(j).max_repetition_level]
    for what, most, came in (
        ("rows", most_rows, about.num_rows),
        ("values in lists", MAX_VALUES, sum(group.column(j).num_values for group in groups for j in lists)),
        ("bytes, uncompressed", MAX_BYTES, sum(group.total_byte_size for group in groups)),
    ):
        if came > most:
            raise ErlabError(f"{file}: must have at most {most:,} {what}. Got {came:,}.")


def _texts_in(schema: pq.ParquetSchema) -> list[str]:
    """The paths of the columns of texts and bytes, those in lists and structures included."""
    columns = (schema.column(i) for i in range(len(schema)))
    return [c.path for c in columns if c.physical_type == "BYTE_ARRAY" and c.logical_type.type != "DECIMAL"]


def _check_texts(table: pa.Table, file: Path, most: int) -> None:
    """Refuse texts that are no UTF-8, or too large alone or together."""
    total = 0
    for name, column in zip(table.column_names, table.columns):
        for texts in (texts for chunk in column.chunks for texts in _dictionaries(chunk)):
            try:
                texts.validate(full=True)
            except pa.ArrowException:
                raise ErlabError(f"{file}: the column {name!r:.60} must be UTF-8 text.") from None
            sizes = pc.binary_length(texts.dictionary)
            if (size := pc.max(sizes).as_py() or 0) > most:
                allowed = f"have at most {most:,} bytes"
                raise ErlabError(f"{file}: a text of the column {name!r:.60} must {allowed}. Got {size:,}.")
            total += pc.sum(sizes.cast(pa.int64()).take(texts.indices)).as_py() or 0
    if total > MAX_BYTES:
        raise ErlabError(f"{file}: must have at most {MAX_BYTES:,} bytes of text. Got {total:,}.")


def _dictionaries(array: pa.Array) -> Iterator[pa.DictionaryArray]:
    """The dictionaries in an array, those in its lists and structures included."""
    if pa.types.is_dictionary(array.type):
        yield array
    elif pa.types.is_map(array.type):
        yield from _dictionaries(array.keys)
        yield from _dictionaries(array.items)
    elif pa.types.is_struct(array.type):
        for part in array.flatten():
            yield from _dictionaries(part)
    elif pa.types.is_nested(array.type):
        yield from _dictionaries(array.flatten())
