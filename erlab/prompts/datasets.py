"""Prompts as one `datasets.Dataset` from any source, split into train and held-back prompts.

Columns: `id` (unique), `domain`, `text` (unique), and `split`: ``train`` for the router, ``held_back`` for the users.
The split is a hash of the text, so a text has the same split whatever else is loaded.

>>> prompts = load(per_domain=10)
>>> prompts.num_rows, sorted(set(prompts["split"]))
(80, ['held_back', 'train'])
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import datasets

from erlab import paths, progress
from erlab.errors import ErlabError
from erlab.prompts import grammar, hub, lists, rows, sources
from erlab.prompts.grammar import Prompt
from erlab.prompts.lists import Entry, Origin
from erlab.spec import require

HELD_BACK = 0.2  # share of the texts
_GRAMMAR = grammar.GRAMMAR.relative_to(paths.ROOT).as_posix()
_LICENCE = "Apache-2.0"  # of the project's own prompts
_FEATURES = datasets.Features({name: datasets.Value("string") for name in ("id", "domain", "text", "split")})


def load(
    source: str | Path | None = None,
    *,
    seed: int = 0,
    per_domain: int | None = None,
    text: str | None = None,
    skip_missing: bool = False,
) -> datasets.Dataset:
    """Load prompts without surrounding blanks and duplicate texts.

    The order is drawn with `seed` from the texts' hashes, and does not depend on the files.

    Args:
        source: None for the project's own prompts; a .jsonl, .parquet or .csv file (UTF-8, a header; commas, semicolons
            or tabs); a folder with such files at any depth, where .csv files count only if there are no others;
            ``owner/name[@revision]`` on Hugging Face; or a .toml file that names several such sources
            (`erlab.prompts.lists`). A revision such as a branch stands for its current commit, which `inputs` returns: name that commit to load
            the same prompts again.
        seed: Seed of the order, of the own prompts, and of the choice of `per_domain` prompts.
        per_domain: Largest number of prompts per domain, at least 1; None takes all, and 500 of the project's own.
        text: Column of prompts, or a template with columns in braces. By default "text", else the only column of
            conversations, else the only column of strings besides "id" and "domain" if no column is nested.
            Conversations are lists of objects with `role` and `content`, or `from` and `value`; the user's first turn
            is the prompt.
        skip_missing: Whether to leave out the datasets of a list that cannot be had.

    Returns:
        Columns id, domain, text and split. A row without a domain gets its file's name up to "__", or the name of the
        Hugging Face dataset.

    Raises:
        ErlabError: The source, or a row of it, cannot be read as prompts; the message names file and line.
    """
    return load_with_origins(source, seed=seed, per_domain=per_domain, text=text, skip_missing=skip_missing)[0]


def load_with_origins(
    source: str | Path | None = None,
    *,
    seed: int = 0,
    per_domain: int | None = None,
    text: str | None = None,
    skip_missing: bool = False,
) -> tuple[datasets.Dataset, list[Origin]]:
    """Load prompts as `load`, and return what was taken from each dataset as well."""
    if per_domain is not None:
        require(per_domain >= 1, "per_domain", "load", "be at least 1", per_domain)
    if source is None:
        prompts, origins = _own(per_domain, seed)
    else:
        prompts, origins = _take(source, _entries(source, text), seed, skip_missing)
    first = {}
    for prompt in prompts:
        first.setdefault(prompt.text, prompt)
    ordered = sorted(first.values(), key=lambda p: rows.digest(f"{seed}/{p.text}"))
    return _dataset(_at_most(ordered, per_domain) if per_domain else ordered), origins


def inputs(source: str | Path | None = None, skip_missing: bool = False) -> dict[str, str | None]:
    """Return what `load(source)` depends on.

    Returns:
        SHA-256 of each file by its path, which starts with the source's own name, or is relative to the list that names
        it. For a Hugging Face dataset its commit, None in Hugging Face's offline mode. "missing" for a dataset that
        cannot be had, if `skip_missing`.
    """
    if source is None:
        return {_GRAMMAR: sources.file_digest(grammar.GRAMMAR)}

    def of_entry(entry: Entry) -> dict[str, str | None]:
        try:
            return lists.inputs(entry)
        except hub.Missing as e:
            if not (skip_missing and entry.listed):
                raise _advised(entry, e) from None
            return {entry.source: "missing"}

    with ThreadPoolExecutor(8) as pool:  # a look-up on Hugging Face waits for the network
        parts = list(pool.map(of_entry, _entries(source, None)))
    path = Path(os.path.expanduser(source))
    own = {path.name: sources.file_digest(path)} if _is_list(path) else {}
    return own | {name: digest for part in parts for name, digest in part.items()}


def is_local(source: str | Path | None) -> bool:
    """Return whether `load(source)` fetches nothing from Hugging Face; raise ErlabError for a list with mistakes."""
    return source is None or all(entry.local for entry in _entries(source, None))


def _is_list(path: Path) -> bool:
    return path.suffix == ".toml" and os.path.exists(path)


def _entries(source: str | Path, text: str | None) -> list[Entry]:
    """Return the datasets of a source: those of a list, which may lack `text`, or the source itself."""
    path = Path(os.path.expanduser(source))
    if _is_list(path):
        return [replace(entry, text=entry.text or text) for entry in lists.read(path)]
    if os.path.exists(path):  # False where a name is too long, unlike `Path.exists`
        path = path.absolute()  # also "." has a name
        return [Entry(base=path.parent, path=path.name, text=text)]
    name, _, revision = str(source).partition("@")
    if not hub.is_name(name):
        raise ErlabError(f"{source}: no such file or folder (nor a Hugging Face name, owner/name[@revision]).")
    return [Entry(name=name, revision=revision or None, text=text)]


def _own(per_domain: int | None, seed: int) -> tuple[list[Prompt], list[Origin]]:
    """Return the project's own prompts and their origin."""
    prompts = list(grammar.generate(per_domain or grammar.PER_DOMAIN, seed))
    return prompts, [Origin(_GRAMMAR, licence=_LICENCE, rows=len(prompts), left_out=0, sha256=lists.digest(prompts))]


def _take(source: str | Path, entries: list[Entry], seed: int, skip_missing: bool) -> tuple[list[Prompt], list[Origin]]:
    """Load the prompts of all entries; report progress if there are several."""
    prompts, origins = [], []
    for index, entry in enumerate(entries):
        try:
            taken, origin = lists.take(entry, seed, _reporter(index, len(entries), entry))
            prompts += taken
        except hub.Missing as e:
            if not (skip_missing and entry.listed):
                raise _advised(entry, e) from None
            origin = lists.origin(entry, missing=str(e))
        origins.append(origin)
    if len(entries) > 1:
        progress.report(len(entries), len(entries), "prompts loaded")
    if not prompts:
        raise ErlabError(f"{source}: none of its datasets can be had; the first: {origins[0].missing}")
    return prompts, origins


def _reporter(index: int, total: int, entry: Entry) -> Callable[[int], None]:
    """Return a function that reports the rows read of an entry; report the entry itself."""

    def report(count: int) -> None:
        if total > 1 or entry.stream:
            read = f", {count:,} of {entry.rows:,} rows" if entry.stream else ""
            progress.report(index, total, f"prompts: {entry.source}{read}")

    report(0)
    return report


def _advised(entry: Entry, error: hub.Missing) -> ErlabError:
    """Return the error for a missing dataset, with the option that leaves it out if a list names it."""
    advice = "Leave it out with --skip-missing, or remove it from the list."
    return ErlabError(f"{entry.listed}: {error} {advice}" if entry.listed else str(error))


def _at_most(prompts: Iterable[Prompt], per_domain: int) -> Iterator[Prompt]:
    taken = Counter()
    for prompt in prompts:
        taken[prompt.domain] += 1
        if taken[prompt.domain] <= per_domain:
            yield prompt


def _dataset(prompts: Iterable[Prompt]) -> datasets.Dataset:
    """Make the table; an id that is not unique gets the hash of its text appended."""
    columns, seen = {name: [] for name in _FEATURES}, set()
    for prompt in prompts:
        digest = rows.digest(prompt.text)
        name = f"{prompt.id}-{digest[:12]}" if prompt.id in seen else prompt.id
        seen.add(name)
        held_back = int(digest[:16], 16) < HELD_BACK * 2**64
        for column, value in zip(columns, (name, prompt.domain, prompt.text, "held_back" if held_back else "train")):
            columns[column].append(value)
    return datasets.Dataset.from_dict(columns, features=_FEATURES)
