"""Why a prompt goes where it goes: the nearest centres, and the words that set their clusters apart.

>>> from erlab.routing import PromptRouter
>>> router = PromptRouter(clusters=2).fit(["boil the pasta", "salt the pasta", "sue the landlord", "landlord law"])
>>> explain(router, ["pasta?"])[0]["clusters"][0]["terms"]
['pasta']
"""

import json
from collections.abc import Sequence
from pathlib import Path

from erlab.errors import ErlabError
from erlab.routing.router import PromptRouter
from erlab.routing.text import words


def explain(router: PromptRouter, texts: Sequence[str], nearest: int = 3) -> list[dict]:
    """A decision a prompt, in plain JSON types: text, cluster, distance, margin (None if there is no runner-up),
    outlier (None before calibration), and `clusters`: the best `nearest` ones, each with its cost, its terms, and
    which of them the prompt holds."""
    routing = router.route(texts)
    decisions = []
    for i, text in enumerate(texts):
        row, held = routing.row(i), set(words(text))
        clusters = [
            {
                "cluster": c,
                "cost": float(routing.costs[i, c]),
                "terms": router.terms_[c],
                "held": [term for term in router.terms_[c] if term in held],
            }
            for c in row.order[:nearest]
        ]
        decisions.append(
            {
                "text": text,
                "cluster": row.cluster,
                "distance": row.distance,
                "margin": row.margin if row.runner_up >= 0 else None,
                "outlier": row.outlier if router.threshold_ is not None else None,
                "clusters": clusters,
            }
        )
    return decisions


def describe(decision: dict, width: int = 100) -> str:
    """A decision of `explain` as a few lines of text; the words that the prompt holds are in [brackets]."""
    text = " ".join(decision["text"].split())
    shown = text if len(text) <= width else text[: width - 1] + "…"
    margin = "only cluster" if decision["margin"] is None else f"margin {decision['margin']:.3f}"
    flag = ", fits no cluster" if decision["outlier"] else ""
    lines = [f"{shown or '(empty)'}", f"  cluster {decision['cluster']}, {margin}{flag}"]
    for cluster in decision["clusters"]:
        terms = " ".join(f"[{t}]" if t in cluster["held"] else t for t in cluster["terms"])
        lines.append(f"  {cluster['cluster']:>4}  {cluster['cost']:.3f}  {terms}")
    return "\n".join(lines)


def read_texts(file: str | Path) -> list[str]:
    """The prompts of a file: a .jsonl file's `text` fields, or any other text file's lines that are not blank."""
    file = Path(file)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise ErlabError(f"{file}: no readable text file ({getattr(e, 'strerror', None) or 'not UTF-8'}).") from None
    numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ErlabError(f"{file}: holds no prompts.")
    return [_text(line, f"{file}:{n}") if file.suffix == ".jsonl" else line.strip() for n, line in numbered]


def _text(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ErlabError(f"{where}: must be a JSON object with the field 'text'.") from None
    if not isinstance(text, str):
        raise ErlabError(f"{where}: the field 'text' must be text. Got {text!r:.40}.")
    return text
