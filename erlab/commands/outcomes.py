"""`erlab outcomes`: import outcome tables, evaluate routers on them, train one for the gateway."""

import re
from pathlib import Path
from typing import Annotated

import typer

from erlab.commands import options, printed
from erlab.errors import ErlabError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Judge routers by the quality of the answers. An outcome table holds the score and the cost of each expert's "
    "answer to each prompt.\n\n"
    "Example: [bold]erlab outcomes evaluate outcomes.parquet --out quality[/bold]",
)


_AT_LEAST_1 = options.number("be a whole number from 1", lambda count: count >= 1)
_AT_LEAST_2 = options.number("be a whole number from 2", lambda count: count >= 2)

Table = Annotated[
    Path, typer.Argument(help="Outcome table (parquet), as erlab outcomes import writes it.", metavar="FILE")
]
Features = Annotated[
    str,
    typer.Option(
        help="Features of the prompts: {features}.",
        metavar="NAME",
        callback=options.one_of("features"),
    ),
]
Clusters = Annotated[
    int, typer.Option(help="Clusters of the Expert Router.", parser=options.whole, callback=_AT_LEAST_1)
]
Clusterer = Annotated[
    str,
    typer.Option(
        help="Clusterer of the Expert Router: {clusterers}.", metavar="NAME", callback=options.one_of("clusterers")
    ),
]
Strong = Annotated[str | None, typer.Option(help="Strong expert (default: highest mean score).", metavar="EXPERT")]
Weak = Annotated[
    str | None,
    typer.Option(
        help="Weak expert (default: the cheapest; where costs are unknown, lowest mean score).", metavar="EXPERT"
    ),
]


@app.command("import", cls=options.Command)
def import_(
    files: Annotated[list[Path], typer.Argument(help="Files or folders with results.", metavar="FILE...")],
    out: Annotated[Path, typer.Option(help="File for the outcome table.", callback=options.FILE)],
    format: Annotated[
        str | None,
        typer.Option(
            help="Format: {importers} (default: recognized by the content).",
            metavar="NAME",
            callback=options.one_of("importers"),
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of the file that becomes a column of the table, such as score=accuracy; repeat for several.",
            metavar="TABLE_COLUMN=FILE_COLUMN",
        ),
    ] = None,
    experts: Annotated[
        str | None, typer.Option(help="Score columns of a wide table, separated by commas (default: all numeric ones).")
    ] = None,
    expert: Annotated[str | None, typer.Option(help="Expert of a file that holds one expert's answers.")] = None,
    metric: Annotated[str | None, typer.Option(help="Metric that is the score (lm-eval, helm).")] = None,
    range_: Annotated[
        str, typer.Option("--range", help="Lowest and highest value of the file's scores.", metavar="LOW,HIGH")
    ] = "0,1",
    prices: Annotated[
        Path | None,
        typer.Option(
            help="Prices by expert, JSON or CSV: dollars per million input and output tokens, or per request."
        ),
    ] = None,
):
    """Convert other evaluations' results into an outcome table: one row per prompt and expert.

    Examples:

    \b
      erlab outcomes import train.json --out outcomes.parquet             LLMRouter
      erlab outcomes import responses/ --out mmlu.parquet                 RouteLLM, a CSV file per subject
      erlab outcomes import runs/ --metric acc --out runs.parquet         lm-evaluation-harness, a folder per model
      erlab outcomes import a.csv --column text=question --experts m1,m2 --out a.parquet
    """
    from erlab.quality import importers, outcomes

    settings = importers.Options(
        columns=options.once("--column", "column of the table", map(_pair, column or ())),
        experts=tuple(name.strip() for name in experts.split(",")) if experts else (),
        expert=expert,
        metric=metric,
        range=_range(range_),
    )
    table = importers.read(files, format, settings, importers.read_prices(prices) if prices else None)
    outcomes.save(out, table)
    read = outcomes.read(out)
    printed.line(f"{out}: {len(read):,} prompts, {len(read.experts)} experts, {len(set(read.tasks))} tasks")
    for note in read.notes:
        printed.line(note)


def _pair(text: str) -> tuple[str, str]:
    from erlab.quality.outcomes import SCHEMA

    name, equals, column = text.partition("=")
    if not (equals and column and name in SCHEMA.names):
        allowed = f"TABLE_COLUMN=FILE_COLUMN with a TABLE_COLUMN out of {', '.join(SCHEMA.names)}"
        raise ErlabError(f"--column must be {allowed}. Got {text!r}.")
    return name, column


def _range(text: str) -> tuple[float, float]:
    if found := re.fullmatch(r"\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*", text):
        low, high = map(options.real, found.groups())
        if isinstance(low, float) and isinstance(high, float) and low < high:
            return low, high
    raise ErlabError(f"--range must be LOW,HIGH, two numbers with LOW below HIGH. Got {text!r}.")


@app.command(cls=options.Command)
def evaluate(
    table: Table,
    out: Annotated[
        Path | None, typer.Option(help="Folder for figures and CSV files (default: none).", callback=options.FOLDER)
    ] = None,
    router: Annotated[
        list[str] | None,
        typer.Option(
            help="Router to evaluate: {routers}; repeat for several (default: all).",
            metavar="NAME",
            callback=options.each_of("routers"),
        ),
    ] = None,
    folds: Annotated[
        int, typer.Option(help="Folds by the hash of the text.", parser=options.whole, callback=_AT_LEAST_2)
    ] = 5,
    training: Annotated[
        int, typer.Option(help="Training prompts per fold, at most.", parser=options.whole, callback=_AT_LEAST_1)
    ] = 5_000,
    prompts: Annotated[
        int, typer.Option(help="Prompts to evaluate, at most.", parser=options.whole, callback=_AT_LEAST_2)
    ] = 20_000,
    features: Features = "characters",
    clusters: Clusters = 32,
    clusterer: Clusterer = "kmeans",
    strong: Strong = None,
    weak: Weak = None,
    seed: options.Seed = 0,
):
    """Evaluate routers on prompts that they were not trained on: accuracy, cost, load, latency of a decision.

    APGR is the average performance gap recovered between the weak and the strong expert, CPT(x) the share of prompts
    that the strong expert needs to recover x percent of it (RouteLLM).

    Examples:

    \b
      erlab outcomes evaluate outcomes.parquet --out quality
      erlab outcomes evaluate mmlu.parquet --router routellm --router hybrid_llm --training 1500
    """
    from erlab.figures import quality as pictures
    from erlab.quality import evaluation, outcomes, routers

    judged = evaluation.evaluate(
        outcomes.read(table),
        router or tuple(routers.RULES),
        folds=folds,
        training=training,
        prompts=prompts,
        features=features,
        clusters=clusters,
        clusterer=clusterer,
        strong=strong,
        weak=weak,
        seed=seed,
        progress=printed.status,
    )
    for note in judged.outcomes.notes:
        printed.line(note)
    strong, weak = (judged.outcomes.experts[i] for i in judged.pair)
    rows = judged.table()
    title = f"{len(judged.outcomes):,} unseen prompts, {len(judged.outcomes.experts)} experts"
    printed.table(title, _short(rows[["router", *_QUALITY]]))
    printed.table("Use of the experts", _short(rows[["router", *_USE]]))
    printed.line(f"APGR and CPT: {strong} against {weak}. Decision: median of single prompts on this machine.")
    for file in pictures.save_all(judged, out) if out else ():
        printed.line(file)


_QUALITY = "accuracy accuracy_low accuracy_high gain gain_low gain_high gap_recovered regret calibration_error".split()
_USE = "cost aiq apgr cpt_50 cpt_80 largest_share imbalance decision_ms".split()


def _short(rows):
    return rows.apply(
        lambda column: (
            column.astype(float).round(6 if column.name == "cost" else 3) if column.name != "router" else column
        )
    )


@app.command(cls=options.Command)
def train(
    table: Table,
    out: Annotated[Path, typer.Option(help="Folder for the router.", callback=options.FOLDER)],
    router: Annotated[
        str, typer.Option(help="Router to train: {routers}.", metavar="NAME", callback=options.one_of("routers"))
    ] = "expert_router",
    cost_weight: Annotated[
        float,
        typer.Option(
            help="Score that one dollar is worth; 0 ignores costs.",
            parser=options.real,
            callback=options.number("be a number from 0", lambda weight: 0 <= weight < float("inf")),
        ),
    ] = 0.0,
    features: Features = "characters",
    clusters: Clusters = 32,
    clusterer: Clusterer = "kmeans",
    strong: Strong = None,
    weak: Weak = None,
    seed: options.Seed = 0,
):
    """Train a router on all outcomes and save it for the gateway.

    Example:

    \b
      erlab outcomes train outcomes.parquet --router polyrouter_ridge --out my_router
    """
    from erlab.quality import outcomes, routers

    trained = routers.train(
        router,
        outcomes.read(table),
        features=features,
        weight=cost_weight,
        clusters=clusters,
        clusterer=clusterer,
        strong=strong,
        weak=weak,
        seed=seed,
    )
    trained.save(out)
    printed.line(f"{out}: {router} for the experts {', '.join(trained.experts_)}")
