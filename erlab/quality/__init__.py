"""Quality of routed answers: outcome tables, routers judged on them, measures.

An outcome table has one row per prompt and expert: how good the expert's answer is (score, 0 to 1) and what it costs.

    from erlab import quality

    table = quality.outcomes.read("outcomes.parquet")
    evaluation = quality.evaluation.evaluate(table)
    evaluation.table()

An importer, a rule that trains a router, or a baseline is one entry in a registry: `importers.IMPORTERS`,
`routers.RULES`, `routers.BASELINES`. Trained routers are `erlab.routing.CompiledRouter`s with named experts: they are
saved, loaded and served like every other router.
"""

from erlab import submodules

__all__ = ["evaluation", "examples", "importers", "measures", "outcomes", "routers"]
__getattr__, __dir__ = submodules(__name__, __all__)
