"""Dataset repositories in Hugging Face's format: on the Hub, or a local folder of the same shape.

Nothing is fetched unless a dataset is named. A streamed dataset is read in its files' own blocks (row groups of
parquet, some megabytes of JSON lines) up to the block that holds the last row asked for.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import datasets
from huggingface_hub import HfApi

from erlab.errors import ErlabError
from erlab.prompts import rows, sources
from erlab.prompts.grammar import Prompt

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SUFFIXES = (*sources.READERS, ".toml")  # of a missing file rather than of a dataset
_REPORT = 5_000  # rows between two reports of progress


class Missing(ErlabError):
    """A dataset cannot be had: not there, not reachable, or not readable."""


def is_name(text: str) -> bool:
    """Return whether a text may name a dataset on the Hub, owner/name."""
    return bool(_NAME.fullmatch(text)) and not text.endswith(_SUFFIXES)


def commit(name: str, revision: str | None = None) -> str | None:
    """Return the commit of a dataset on the Hub, None in Hugging Face's offline mode.

    It is queried before loading, because loading without a network retries for long. A revision that is a commit is
    returned unchanged.
    """
    if revision and _COMMIT.fullmatch(revision):
        return revision
    if datasets.config.HF_HUB_OFFLINE:
        return None
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=10).sha
    except Exception as e:  # also the HTTP library's own errors
        raise Missing(
            f"{name}: no such file or folder, and not found on Hugging Face ({_reason(e)}). "
            "Check the name, the revision and the network."
        ) from None


def read(
    repository: str | Path,
    *,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    text: str | None = None,
    first: int | None = None,
    seed: int = 0,
    unusable: list[str] | None = None,
    on_rows: Callable[[int], None] = lambda count: None,
) -> Iterator[Prompt]:
    """Yield the prompts of a dataset.

    Args:
        repository: Name on the Hub, or folder.
        config: Configuration; None for the only or default one.
        split: Split, such as "train"; None for all.
        revision: Commit, tag or branch on the Hub.
        text: Column or template, see `rows.prompts`.
        first: Streams the dataset and reads this many rows, of files in an order drawn with `seed`; None loads it all.
        seed: Seed of that order.
        unusable: Receives the origins of rows without a usable prompt.
        on_rows: Called with the number of rows that a stream has read.

    Raises:
        Missing: The dataset cannot be loaded.
        ErlabError: Its columns are not as stated.
    """
    name = Path(repository).name
    try:
        loaded = datasets.load_dataset(
            str(repository), config, split=split, revision=revision, streaming=first is not None
        )
    except Exception as e:  # any error of the client and of the formats behind it concerns the source
        raise _unreadable(repository, e) from None
    splits = loaded if split is None else {split: loaded}
    if first is not None:
        located = _streamed(repository, splits, first, seed, on_rows)
        yield from _stream_prompts(located, text, str(repository), name, unusable)
        return
    for part, table in splits.items():
        origin = f"{repository} ({part})"
        _, wanted = rows.columns(table.data.schema, text, origin)
        selected = table.select_columns(wanted).with_format("arrow")[:]
        yield from sources.table_prompts(selected, text, origin, f"{name}-{part}", name, unusable)


def _streamed(
    repository: str | Path, splits: dict, first: int, seed: int, on_rows: Callable[[int], None]
) -> Iterator[tuple[str, int, dict]]:
    """Yield origin, number and columns of the first rows of a stream, whose files come in random order."""
    try:
        stream = itertools.chain.from_iterable(
            table.shard(table.num_shards, index)
            for table in splits.values()
            for index in Random(seed).sample(range(table.num_shards), table.num_shards)
        )
        for number, row in enumerate(itertools.islice(stream, first), 1):
            if number % _REPORT == 0:
                on_rows(number)
            yield f"{repository}: row {number}", number, row
    except Exception as e:
        raise _unreadable(repository, e) from None


def _stream_prompts(
    located: Iterator[tuple[str, int, dict]], text: str | None, origin: str, name: str, unusable: list[str] | None
) -> Iterator[Prompt]:
    for where, number, row in located:
        text = text or rows.text_column({column: rows.kind(value) for column, value in row.items()}, origin)
        yield from rows.prompts([(where, number, row)], text, name, name, unusable)


def _unreadable(repository: str | Path, error: Exception) -> Missing:
    """Return the error for a dataset that cannot be loaded, with how to go on."""
    if isinstance(repository, Path):
        return Missing(f"{repository}: can't be loaded as a dataset repository ({_reason(error)}).")
    advice = "Check its configuration, split and access, and the network."
    if datasets.config.HF_HUB_OFFLINE:
        advice = "HF_HUB_OFFLINE is set: load it once without, with a network, and it stays in Hugging Face's cache."
    return Missing(f"{repository}: can't be loaded from Hugging Face ({_reason(error)}). {advice}")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no message'}"[:300]
