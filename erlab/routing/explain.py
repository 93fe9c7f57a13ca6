"""Why a prompt goes where it goes: the nearest centres, and the words that set their clusters apart.

>>> from erlab.routing import PromptRouter
>>> router = PromptRouter(clusters=2).fit(["boil the pasta", "salt the pasta", "sue the landlord", "landlord law"])
>>> explain(router, ["pasta?"])[0]["clusters"][0]["terms"]
['pasta']
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from erlab import textfiles
from erlab.errors import ErlabError
from erlab.routing.compiled import CompiledRouter
from erlab.routing.text import tokens

_SUMMARY_BYTES = 16 * 2**20


def explain(router: CompiledRouter, texts: Sequence[str], nearest: int = 3) -> list[dict]:
    """A decision a prompt, in plain JSON types: text, known (whether the router knows anything in it), cluster,
    distance, margin (None if there is no runner-up), outlier (None before calibration), and `clusters`: the best
    `nearest` ones, each with its cost, its terms, and which of them the prompt holds."""
    vectors = router.embed(texts)
    routing = router.decide(vectors)
    decisions = []
    for i, text in enumerate(texts):
        row, held = routing.row(i), set(tokens(text))
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
                "known": bool(vectors[i].any()),
                "cluster": row.cluster,
                "distance": row.distance,
                "margin": row.margin if row.runner_up >= 0 else None,
                "outlier": row.outlier if router.threshold_ is not None else None,
                "clusters": clusters,
            }
        )
    return decisions


def title(decision: dict) -> str:
    """A decision in a line."""
    margin = "the only one" if decision["margin"] is None else f"by {decision['margin']:.3f}"
    doubt = ", but it fits no cluster" if decision["outlier"] else ""
    if not decision["known"]:
        doubt = ", though the router knows nothing in it"
    return f"{shown(decision['text'])} → cluster {decision['cluster']}, {margin}{doubt}"


def nearest_table(decision: dict, domains: Mapping[int, str]) -> pd.DataFrame:
    """Why: a row a cluster of the decision, nearest first, with its cost and terms; those that the prompt holds are in
    [brackets]. domains: what most of a cluster's training prompts are, where that is known."""
    rows = [
        {
            "cluster": c["cluster"],
            "mostly": domains.get(c["cluster"], ""),
            "cost": c["cost"],
            "terms": " ".join(f"[{t}]" if t in c["held"] else t for t in c["terms"]),
        }
        for c in decision["clusters"]
    ]
    return pd.DataFrame(rows, dtype=object)


def decisions_table(decisions: Sequence[dict], domains: Mapping[int, str]) -> pd.DataFrame:
    """A row a decision: the prompt, its cluster, by how much it is nearer than the next, and the words that say why."""
    rows = [
        {
            "prompt": shown(d["text"], 60),
            "cluster": d["cluster"],
            "mostly": domains.get(d["cluster"], ""),
            "margin": d["margin"],
            "outlier": d["outlier"],
            "its words": " ".join(d["clusters"][0]["held"]) if d["known"] else "(nothing known)",
        }
        for d in decisions
    ]
    return pd.DataFrame(rows, dtype=object).dropna(axis=1, how="all")


def shown(text: str, width: int = 100) -> str:
    """A prompt on one line of at most `width` characters, with what can't be printed as replacement characters."""
    line = textfiles.printable(" ".join(text[: 20 * width].split()))
    return (line if len(line) <= width else f"{line[: width - 1]}…") or "(empty)"


def top_domains(folder: str | Path) -> dict[int, str]:
    """What most of each cluster's training prompts are, from the summary that notebook 02 keeps beside a router."""
    try:
        clusters = json.loads(textfiles.read(Path(folder) / "summary.json", _SUMMARY_BYTES))["clusters"]
        return {int(row["cluster"]): str(row["top_domain"]) for row in clusters if row["top_domain"] is not None}
    except (ErlabError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {}  # a router without one decides the same


def read_texts(file: str | Path) -> list[str]:
    """The prompts of a file: a .jsonl file's `text` fields, or any other text file's lines that are not blank."""
    file = Path(file)
    lines = textfiles.lines(textfiles.read(file))
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
