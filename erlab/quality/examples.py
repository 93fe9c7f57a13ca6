"""Small outcome table made by the project itself: two specialists and a generalist on three domains.

The scores are drawn, not measured: they show the measures and pictures, and say nothing about any model.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from erlab.quality.outcomes import Outcomes, of_frame, read

_WORDS = {
    "cooking": "rice simmer boil egg pasta salt oven bake onion soup fry butter".split(),
    "law": "court landlord tenant sue contract clause appeal judge notice lease deposit verdict".split(),
    "code": "function loop array compile bug string integer recursion class pointer thread exception".split(),
}
_ASKED = "how long does the", "why would a", "what is the best", "explain when the", "is it right that a"
# Probability of a good answer by expert and domain (cooking, law, code), and dollars per 1,000 words.
_EXPERTS = {
    "cook": ((0.85, 0.25, 0.20), 0.2),
    "lawyer": ((0.25, 0.85, 0.25), 0.4),
    "generalist": ((0.75, 0.75, 0.80), 2.0),
}


def frame(prompts: int = 600, seed: int = 0) -> pd.DataFrame:
    """Return the rows of an outcome table, columns of `outcomes.SCHEMA`."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(prompts):
        domain = i % len(_WORDS)
        task, words = list(_WORDS.items())[domain]
        length = int(rng.integers(2, 9))
        text = f"{rng.choice(_ASKED)} {' '.join(rng.choice(words, length))} ({i})"
        for expert, (chances, price) in _EXPERTS.items():
            chance = chances[domain] - 0.03 * (length - 5)  # long prompts are harder
            cost = price * (length + 40) / 1000
            rows.append((f"p{i:04d}", text, task, expert, float(rng.random() < chance), cost, "drawn"))
    return pd.DataFrame(rows, columns=["prompt", "text", "task", "expert", "score", "cost", "source"])


def outcomes(prompts: int = 600, seed: int = 0) -> Outcomes:
    """Return the outcome table of `frame`."""
    return of_frame(frame(prompts, seed), "the project's example")


def at_hand(path: str | Path | None = None) -> Outcomes:
    """Return the outcome table of a file, or the project's example if there is none."""
    return outcomes() if path is None else read(path)
