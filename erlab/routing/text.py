"""What of a prompt is classified: shared by training and decisions."""

import re

CONSIDERED = 8192  # characters at a prompt's beginning, some 2,000 tokens: what all features are taken from
_TOKENS = re.compile(r"\b\w\w+\b").findall


def considered(text: str) -> str:
    """The beginning by which a prompt is classified, in lower case: it bounds the time that a decision can take."""
    return text[:CONSIDERED].lower()


def tokens(text: str) -> list[str]:
    """scikit-learn's default tokens of the prompt's considered part: lower case, two or more word characters.

    >>> tokens("The 3 cells divide in 24h")
    ['the', 'cells', 'divide', 'in', '24h']
    """
    return _TOKENS(considered(text))


def encodable(text: str) -> str:
    """The prompt's considered part with half surrogates, which are no characters, replaced: tokenizers, which know
    about cases themselves, take UTF-8 only."""
    return text[:CONSIDERED].encode(errors="replace").decode()
