"""Explanations of decisions: nearest clusters and the words that distinguish them.

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
    """Explain the decision for each prompt.

    Returns:
        One dictionary per prompt, in plain JSON types: text, known (whether the prompt has known features), cluster,
        expert (None without named experts), distance, margin (None without a runner-up), outlier (None before
        calibration), and clusters: the `nearest` clusters of lowest cost, each with cluster, cost, terms, and held
        (those terms that the prompt contains).
    """
    vectors = router.embed(texts)
    routing = router.decide(vectors)
    decisions = []
    for i, text in enumerate(texts):
        row, words = routing.row(i), set(tokens(text))
        clusters = [
            {
                "cluster": c,
                "cost": float(routing.costs[i, c]),
                "terms": router.terms_[c],
                "held": [term for term in router.terms_[c] if term in words],
            }
            for c in row.order[:nearest]
        ]
        decisions.append(
            {
                "text": text,
                "known": bool(vectors[i].any()),
                "cluster": row.cluster,
                "expert": router.experts_[row.cluster] if router.experts_ else None,
                "distance": row.distance,
                "margin": row.margin if row.runner_up >= 0 else None,
                "outlier": row.outlier if router.threshold_ is not None else None,
                "clusters": clusters,
            }
        )
    return decisions


def title(decision: dict) -> str:
    """Describe a decision in one line."""
    margin = "the only one" if decision["margin"] is None else f"margin {decision['margin']:.3f}"
    remark = " (outlier: fits no cluster)" if decision["outlier"] else ""
    if not decision["known"]:
        remark = " (no known features)"
    chosen = f"cluster {decision['cluster']}" + (f", expert {decision['expert']}" if decision["expert"] else "")
    return f"{one_line(decision['text'])} → {chosen}, {margin}{remark}"


def nearest_table(decision: dict, domains: Mapping[int, str]) -> pd.DataFrame:
    """Tabulate the clusters of a decision.

    Args:
        decision: One element of `explain`.
        domains: Most frequent domain of clusters, as far as known.

    Returns:
        One row per cluster, nearest first; terms that the prompt contains are in [brackets].
    """
    rows = [
        {
            "cluster": c["cluster"],
            "top domain": domains.get(c["cluster"], ""),
            "cost": c["cost"],
            "terms": " ".join(f"[{t}]" if t in c["held"] else t for t in c["terms"]),
        }
        for c in decision["clusters"]
    ]
    return pd.DataFrame(rows, dtype=object)


def decisions_table(decisions: Sequence[dict], domains: Mapping[int, str]) -> pd.DataFrame:
    """Tabulate decisions, one row per prompt; `domains` as in `nearest_table`."""
    rows = [
        {
            "prompt": one_line(d["text"], 60),
            "cluster": d["cluster"],
            "top domain": domains.get(d["cluster"], ""),
            "margin": d["margin"],
            "outlier": d["outlier"],
            "matching terms": " ".join(d["clusters"][0]["held"]) if d["known"] else "(none known)",
        }
        for d in decisions
    ]
    return pd.DataFrame(rows, dtype=object).dropna(axis=1, how="all")


def one_line(text: str, width: int = 100) -> str:
    """Shorten a prompt to one line of at most `width` characters; unprintable characters are replaced."""
    line = textfiles.printable(" ".join(text[: 20 * width].split()))
    return (line if len(line) <= width else f"{line[: width - 1]}…") or "(empty)"


def top_domains(folder: str | Path) -> dict[int, str]:
    """Return the most frequent domain of clusters from the summary that notebook 02 saves with a router."""
    try:
        clusters = json.loads(textfiles.read(Path(folder) / "summary.json", _SUMMARY_BYTES))["clusters"]
        return {int(row["cluster"]): str(row["top_domain"]) for row in clusters if row["top_domain"] is not None}
    except (ErlabError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {}  # decisions do not depend on the summary


def read_texts(file: str | Path) -> list[str]:
    """Read the prompts of a file: field `text` of each line (.jsonl) or the non-blank lines (any other text file)."""
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
