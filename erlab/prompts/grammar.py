"""The project's own prompts: eight domains, written by a grammar, so that nothing needs to be downloaded.

`data/prompts/grammar.toml` holds the words and the sentence frames (its head says how they are read), this module only
expands them. Domains share words and frames and some prompts mix two domains, so that clusters are not given away.

>>> first = next(generate(per_domain=1, seed=0))
>>> first.domain, first.id
('programming', 'programming-00000')
"""

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import NamedTuple

from erlab import paths
from erlab.errors import ErlabError

GRAMMAR = paths.DATA / "prompts" / "grammar.toml"
PER_DOMAIN = 500  # prompts a domain where nothing else is asked: 4,000 in all
_CASUAL = 0.12  # share typed in lower case and without a closing mark
_SLOT = re.compile(r"\{([\w.]+)\}")
_START = re.compile(r"(?:^|[.?!]\s+|\n- |\")[a-z]")  # of a sentence
_ARTICLE = re.compile(r"\b([Aa]) (?=[aei]|o(?!ne)|un(?!i)|ultra|heir|[EMX][CR-])")  # an ECG, MRI, X-ray


class Prompt(NamedTuple):
    id: str
    domain: str
    text: str


@cache
def _grammar() -> dict:
    return tomllib.loads(GRAMMAR.read_text(encoding="utf-8"))


def domains() -> list[str]:
    """The names of the grammar's domains."""
    return [name for name in _grammar() if name not in ("style", "shared")]


def generate(per_domain: int = PER_DOMAIN, seed: int = 0) -> Iterator[Prompt]:
    """Yield `per_domain` distinct prompts of each domain, the same for the same seed.

    A longer run begins with a shorter one's prompts. Raises ErlabError where the grammar is exhausted.
    """
    for domain in domains():
        rng, seen, attempts = Random(f"{seed}/{domain}"), set(), 0
        while len(seen) < per_domain:
            attempts += 1
            if attempts > 10 * per_domain + 100:
                raise ErlabError(
                    f"The 'per_domain' parameter must be at most about {len(seen)}, which is what the grammar has for "
                    f"{domain}. Got {per_domain}."
                )
            text = _write(domain, rng)
            if text not in seen:
                yield Prompt(f"{domain}-{len(seen):05d}", domain, text)
                seen.add(text)


def _write(domain: str, rng: Random) -> str:
    """One prompt: a frame of a style drawn by weight, filled, with its articles and capitals put right."""
    styles = _grammar()["style"]
    style = rng.choices(styles, [s["weight"] for s in styles])[0]
    text = _ARTICLE.sub(r"\1n ", _fill(rng.choice(style["frames"]), domain, rng, set()))
    if style["name"] == "keywords" or rng.random() < _CASUAL:
        return text.lower().rstrip(".?")
    return _START.sub(lambda match: match[0].upper(), text)


def _pick(entries: list[str], rng: Random) -> str:
    """A random entry; the chances fall like 1/2, 1/3, 1/4 ... along the list."""
    return rng.choices(entries, [1 / (rank + 2) for rank in range(len(entries))])[0]


def _fill(template: str, domain: str, rng: Random, used: set[str]) -> str:
    """`template` with each slot replaced by a random entry that this prompt has not used yet, itself filled."""

    def entry(match: re.Match) -> str:
        owner, _, slot = match[1].rpartition(".")
        home = rng.choice([d for d in domains() if d != domain]) if owner == "other" else domain
        entries = _grammar()[home].get(slot) or _grammar()["shared"][slot]
        chosen = _pick([e for e in entries if e not in used] or entries, rng)
        used.add(chosen)
        return _fill(chosen, home, rng, used)

    return _SLOT.sub(entry, template)
