"""Prompts as one `datasets.Dataset` from any source, split into train and held-back prompts.

Columns: `id` (unique), `domain`, `text` (unique), and `split`: ``train`` for the router, ``held_back`` for the users.
The split is a hash of the text, so a text has the same split whatever else is loaded.

>>> prompts = load(per_domain=10)
>>> prompts.num_rows, sorted(set(prompts["split"]))
(80, ['held_back', 'train'])
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets

from erlab import paths
from erlab.errors import ErlabError
from erlab.prompts import grammar, sources
from erlab.prompts.grammar import Prompt
from erlab.spec import require

HELD_BACK = 0.2  # share of the texts
_FEATURES = datasets.Features({name: datasets.Value("string") for name in ("id", "domain", "text", "split")})


def load(
    source: str | Path | None = None, *, seed: int = 0, per_domain: int | None = None, text: str | None = None
) -> datasets.Dataset:
    """Load prompts without surrounding blanks and duplicate texts.

    The order is drawn with `seed` from the texts' hashes, and does not depend on the files.

    Args:
        source: None for the project's own prompts; a .jsonl, .parquet or .csv file (UTF-8, a header; commas, semicolons
            or tabs); a folder with such files at any depth, where .csv files count only if there are no others; or
            ``owner/name[@revision]`` on Hugging Face. A revision such as a branch stands for its current commit, which
            `inputs` returns: name that commit to load the same prompts again.
        seed: Seed of the order, of the own prompts, and of the choice of `per_domain` prompts.
        per_domain: Largest number of prompts per domain, at least 1; None takes all, and 500 of the project's own.
        text: Column of prompts. By default "text", else the only column of conversations, else the only column of
            strings besides "id" and "domain" if no column is nested. Conversations are lists of objects with `role` and
            `content`, or `from` and `value`; the user's first turn is the prompt.

    Returns:
        Columns id, domain, text and split. A row without a domain gets its file's name up to "__", or the name of the
        Hugging Face dataset.

    Raises:
        ErlabError: The source, or a row of it, cannot be read as prompts; the message names file and line.
    """
    if per_domain is not None:
        require(per_domain >= 1, "per_domain", "load", "be at least 1", per_domain)
    own = source is None
    prompts = grammar.generate(per_domain or grammar.PER_DOMAIN, seed) if own else sources.read(source, text)
    first = {}
    for prompt in prompts:
        first.setdefault(prompt.text, prompt)
    if not first:
        raise ErlabError(f"{source}: holds no prompts.")
    ordered = sorted(first.values(), key=lambda p: _digest(f"{seed}/{p.text}"))
    return _dataset(_at_most(ordered, per_domain) if per_domain else ordered)


def inputs(source: str | Path | None = None) -> dict[str, str | None]:
    """Return what `load(source)` depends on.

    Returns:
        SHA-256 of each file by its path, which starts with the source's own name. For a Hugging Face dataset its
        commit, None in Hugging Face's offline mode.
    """
    if source is None:
        return {grammar.GRAMMAR.relative_to(paths.ROOT).as_posix(): _file_digest(grammar.GRAMMAR)}
    path = Path(source).expanduser()
    if not path.exists():
        return {str(source): sources.commit(str(source))}
    return {file.relative_to(path.parent).as_posix(): _file_digest(file) for file in sources.files(path)}


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
