"""Synthetic prompts of four domains, made of domain-specific and shared words."""

import random

DOMAINS = {
    "cooking": "pasta oven recipe salt pan stir sauce garlic flour bake".split(),
    "law": "court tenant statute plaintiff appeal clause liable verdict contract judge".split(),
    "music": "album playlist song guitar chord tempo artist track melody chorus".split(),
    "security": "attacker overflow exploit patch vulnerability injection token remote crash privilege".split(),
}
SHARED = "please need new list best long time write find add table note key".split()


def make_prompts(count: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        domain = list(DOMAINS)[i % len(DOMAINS)]
        text = " ".join(rng.choices(DOMAINS[domain], k=4) + rng.choices(SHARED, k=3) + [str(rng.randrange(10**6))])
        split = "held_back" if rng.random() < 0.25 else "train"
        rows.append({"id": f"{seed}-{i}", "domain": domain, "text": text, "split": split})
    return rows
