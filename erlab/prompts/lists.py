"""Dataset lists: TOML files that name several datasets, one or more per domain.

    [[dataset]]
    domain = "medicine"             # of all its rows; default: their own column "domain", else the dataset's name
    name = "owner/name"             # on Hugging Face, or a folder of the same shape (begins with ./, ../, / or ~)
    config = "main"                 # default: the only or default one
    split = "train"                 # default: all
    revision = "v1"                 # commit, tag or branch; default: the newest commit
    text = "{question}\\n{context}"  # column, or a template with columns in braces; default: the only candidate
    rows = 2000                     # largest number of rows, drawn with the seed; default: all
    stream = true                   # fetches the first `rows` rows of files in random order, and no more
    characters = [80, 2000]         # shorter texts are left out, longer ones cut at a word; default: as they are
    licence = "MIT"                 # for the manifest

    [[dataset]]
    path = "my-prompts"             # file or folder as of `datasets.load`, relative to the list

Instead of `domain`, `categories` may list words of several domains: a text belongs to the domain of which it contains
most words, at least `WORDS` different ones, and is left out otherwise.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from erlab import parquet, toml
from erlab.errors import ErlabError
from erlab.prompts import hub, rows, sources
from erlab.prompts.grammar import Prompt

WORDS = 2  # different words of a category that a text must contain
_KEYS = {
    "domain": str, "name": str, "path": str, "config": str, "split": str, "revision": str, "text": str, "rows": int,
    "stream": bool, "characters": list[int], "categories": dict, "licence": str,
}  # fmt: skip
_OF_NAMES = ("config", "split", "revision", "stream")  # keys that a path must not have
_LOCAL = ("./", "../", "/", "~")  # begin a name that is a folder


@dataclass(frozen=True)
class Entry:
    """One dataset, checked on construction; attributes as the keys of a list.

    Attributes:
        listed: List and number of the entry; empty for a source that no list names.
        base: Folder to which local paths are relative.
    """

    listed: str = ""
    base: Path = Path()
    domain: str | None = None
    name: str | None = None
    path: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    text: str | None = None
    rows: int | None = None
    stream: bool = False
    characters: list[int] | None = None
    categories: dict[str, list[str]] = field(default_factory=dict)
    licence: str | None = None

    def __post_init__(self):
        self._require((self.name is None) != (self.path is None), "have either 'name' or 'path'")
        for key in _KEYS:
            self._require(getattr(self, key) != "", f"not have an empty {key!r}")
        for key in _OF_NAMES if self.path is not None else ("revision",) if self.local else ():
            self._require(not getattr(self, key), f"not have {key!r} for a local {'file' if self.path else 'folder'}")
        self._require(self.local or hub.is_name(self.name), f"have a 'name' such as owner/name. Got {self.name!r:.60}")
        self._require(
            self.rows is None or 1 <= self.rows <= parquet.MAX_ROWS,
            f"have 'rows' from 1 to {parquet.MAX_ROWS:,}. Got {self.rows}",
        )
        self._require(not self.stream or self.rows is not None, "have 'rows' to be streamed")
        limits = self.characters
        self._require(
            limits is None or len(limits) == 2 and 1 <= limits[0] <= limits[1] <= rows.MAX_CHARACTERS,
            f"have 'characters' = [least, most] from 1 to {rows.MAX_CHARACTERS:,}. Got {limits}",
        )
        self._require(not (self.domain and self.categories), "not have both 'domain' and 'categories'")
        for label in (*self.categories, self.domain or ""):
            self._require(len(label) <= rows.MAX_LABEL, f"have a domain of at most {rows.MAX_LABEL:,} characters")
        for name, words in self.categories.items():
            fits = isinstance(words, list) and all(isinstance(word, str) for word in words) and len(words) >= WORDS
            self._require(name and fits, f"have categories with a name and a list of at least {WORDS} words each")

    def _require(self, condition: object, allowed: str) -> None:
        if not condition:
            raise ErlabError(f"{self.listed or self.source}: must {allowed}.")

    @property
    def source(self) -> str:
        """Name or path as written, with the revision."""
        return (self.name or self.path) + (f"@{self.revision}" if self.revision else "")

    @cached_property
    def local(self) -> Path | None:
        """File or folder on this machine, None for a dataset on the Hub."""
        if self.path is None and not self.name.startswith(_LOCAL):
            return None
        return self.base / os.path.expanduser(self.path or self.name)  # of an unknown user, unchanged

    def files(self) -> list[Path]:
        """Return the local files of the dataset; raise `hub.Missing` if there are none."""
        if not os.path.exists(self.local):  # also where a name is too long
            raise hub.Missing(f"{self.local}: no such file or folder.")
        if self.path is not None:
            return sources.files(self.local)
        return sorted(f for f in self.local.rglob("*") if f.is_file() and not f.name.startswith("."))


@dataclass(frozen=True)
class Origin:
    """What was taken from one dataset.

    Attributes:
        source: Name or path with the revision, as written.
        domain: Domain of its rows; None if they have their own.
        config: Configuration.
        split: Split.
        commit: Commit on Hugging Face; None if unknown, and for local files.
        licence: Licence as stated by the list; None if it states none.
        rows: Prompts taken, duplicates included; None if the dataset is missing.
        left_out: Rows that were read and have no usable prompt, or fit neither `characters` nor `categories`.
        sha256: Hash of the texts: SHA-256 of their sorted hashes.
        missing: Why the dataset is missing; None if it is not.
    """

    source: str
    domain: str | None = None
    config: str | None = None
    split: str | None = None
    commit: str | None = None
    licence: str | None = None
    rows: int | None = None
    left_out: int | None = None
    sha256: str | None = None
    missing: str | None = None


def read(path: Path) -> list[Entry]:
    """Return the entries of a dataset list.

    Raises:
        ErlabError: The file cannot be read, or an entry is not as this module describes.
    """
    table = toml.check(toml.read(path), {"dataset": list[dict]}, str(path))
    if not table.get("dataset"):
        raise ErlabError(f"{path}: must have at least one [[dataset]].")
    entries = []
    for number, keys in enumerate(table["dataset"], 1):
        where = f"{path}, dataset {number}"
        entries.append(Entry(where, path.parent, **toml.check(keys, _KEYS, where)))
    return entries


def inputs(entry: Entry) -> dict[str, str | None]:
    """Return the hash of each local file of an entry, or its commit on the Hub (None in offline mode), by name."""
    if entry.local is None:
        return {entry.source: hub.commit(entry.name, entry.revision)}
    place = PurePosixPath(entry.source)
    return {str(place / f.relative_to(entry.local)): sources.file_digest(f) for f in entry.files()}


def take(entry: Entry, seed: int, on_rows: Callable[[int], None]) -> tuple[list[Prompt], Origin]:
    """Load the prompts of an entry.

    Args:
        entry: Entry.
        seed: Seed of the draw of `rows`.
        on_rows: Called with the number of rows that a stream has read.

    Raises:
        hub.Missing: The dataset cannot be had.
        ErlabError: A row or the columns are not as stated, or no row fits.
    """
    unusable, commit = [], None
    if entry.local is not None:
        entry.files()
    if entry.path is not None:
        prompts = list(sources.read(entry.local, entry.text))
    else:
        commit = None if entry.local else hub.commit(entry.name, entry.revision)
        loaded = hub.read(
            entry.local or entry.name,
            config=entry.config,
            split=entry.split,
            revision=commit or entry.revision,
            text=entry.text,
            first=entry.rows if entry.stream else None,
            seed=seed,
            unusable=unusable,
            on_rows=on_rows,
        )
        prompts = list(loaded)
    if entry.rows is not None:
        prompts = sorted(prompts, key=lambda p: rows.digest(f"{seed}/{p.text}"))[: entry.rows]
    fitting = [fitted for prompt in prompts if (fitted := _fit(entry, prompt))]
    if not fitting:
        raise ErlabError(
            f"{entry.listed or entry.local or entry.source}: holds no prompts{' that fit' if prompts else ''}."
        )
    return fitting, origin(
        entry,
        commit=commit,
        rows=len(fitting),
        left_out=len(unusable) + len(prompts) - len(fitting),
        sha256=digest(fitting),
    )


def digest(prompts: Iterable[Prompt]) -> str:
    """Return one hash of texts in any order: the SHA-256 of their sorted hashes."""
    return rows.digest("".join(sorted(rows.digest(prompt.text) for prompt in prompts)))


def origin(entry: Entry, **taken: object) -> Origin:
    """Return the origin of an entry's prompts."""
    return Origin(entry.source, entry.domain, entry.config, entry.split, licence=entry.licence, **taken)


def _fit(entry: Entry, prompt: Prompt) -> Prompt | None:
    """Return a prompt with the entry's domain and length, None if it has none."""
    text, domain = prompt.text, entry.domain or prompt.domain
    if entry.categories:
        words = set(re.findall(r"\w+", text.lower()))
        counts = {name: len(words.intersection(map(str.lower, known))) for name, known in entry.categories.items()}
        domain = max(counts, key=counts.get)
        if counts[domain] < WORDS:
            return None
    if entry.characters:
        least, most = entry.characters
        text = text if len(text) <= most else (text[: most + 1].rpartition(" ")[0] or text)[:most].strip()
        if len(text) < least:
            return None
    return prompt._replace(text=text, domain=domain)
