"""`erlab figures` and `erlab claims`: what request records show, whatever they come from."""

from pathlib import Path
from typing import Annotated

import typer

from erlab.commands import options, printed
from erlab.commands.options import Figures, MoreRecords, Profile, RecordFiles
from erlab.errors import ErlabError
from erlab.serving import profiles


def figures(
    more: MoreRecords = None,
    records: RecordFiles = None,
    out: Figures = None,
    profile: Profile = "laptop",
    style: Annotated[
        str, typer.Option(help="Sizes of fonts and lines: paper, notebook or talk.", metavar="STYLE")
    ] = "paper",
    width: Annotated[
        str | None, typer.Option(help="Width of each figure, such as 3.5in or 86mm; its own if not given.")
    ] = None,
    format: Annotated[str, typer.Option(help="File formats: any of pdf, png, svg, pgf.")] = "pdf,png",
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Draw each of several records over the others, not joined.")
    ] = False,
):
    """Draw Figs. 1 to 7 and Table I from request records, with the plotted numbers as CSV.

    Several runs of a system under the same load get a 95 % confidence band.
    Where --width is too narrow for panels side by side, they are stacked; Fig. 1 and Table I then span two columns.

    Examples:

    \b
      erlab figures                                      from the laptop study's records
      erlab figures --records run.parquet --out .        from any records
      erlab figures --width 3.5in --format pdf,pgf       for a column of a paper
      erlab figures --records a.parquet b.parquet --overlay --style talk
    """
    from erlab import figures as paper_figures
    from erlab import paths
    from erlab.figures import style as look

    files = [*(records or ()), *(more or ())]
    found = _overlaid(files) if overlay else _read(files, profile)
    formats = [name.strip() for name in format.split(",")]
    for name in formats:
        if name not in look.FORMATS:
            raise ErlabError(f"--format must name some of {', '.join(look.FORMATS)}. Got {name!r}.")
    data = paper_figures.data(found)
    with look.using(style, look.inches(width)):
        for file in paper_figures.save_all(data, paths.figures(out), formats):
            printed.line(file)
    for name, reason in data.missing.items():
        printed.line(f"{name}: left out, {reason}")


def _overlaid(files: list[Path]):
    """Each of these records under a name of its own."""
    from erlab import figures as paper_figures
    from erlab.results import records

    if len(files) < 2:
        raise ErlabError(f"--overlay needs at least two --records. Got {len(files)}.")
    if len({file.resolve() for file in files}) < len(files):
        raise ErlabError(f"--overlay needs each of --records once. Got {', '.join(map(str, files))}.")
    short = [file.stem for file in files]
    names = short if len(set(short)) == len(files) else [str(file.with_suffix("")) for file in files]
    return paper_figures.overlay({name: records.read(file) for name, file in zip(names, files)})


def claims(
    more: MoreRecords = None,
    records: RecordFiles = None,
    profile: Profile = "laptop",
    version: Annotated[
        str | None, typer.Option("--paper", help="Only the claims of this version: v2 or v1.", metavar="VERSION")
    ] = None,
    id_: Annotated[
        list[str] | None, typer.Option("--id", help="Only this claim; repeat for more.", metavar="CLAIM")
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Show what each verdict was computed from, too.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the request records of one claim to a file.", metavar="FILE", callback=options.FILE),
    ] = None,
):
    """Test the paper's claims on request records: verdict, margin over the threshold, and how sure it is.

    Examples:

    \b
      erlab claims --paper v2 --records data/results/laptop/records
      erlab claims --id v2-ttft-8b --rows              one claim alone, with its numbers
      erlab claims --id v2-ttft-8b --out its.parquet   its requests, to be looked at
    """
    from erlab.results import claims as paper_claims
    from erlab.results import records as request_records

    chosen = paper_claims.select(version, id_)
    if out and len(chosen) != 1:
        raise ErlabError(f"--out needs one claim: --id CLAIM. Got {len(chosen)} claims.")
    found = _read([*(records or ()), *(more or ())], profile)
    ledger = paper_claims.ledger(found, chosen)
    printed.table("The paper's claims", paper_claims.shown(ledger).astype(object), lines=True)
    for claim in chosen if rows else ():
        printed.line(f"{claim} rests on the assumptions: {ledger.loc[ledger['id'] == claim, 'assumptions'].iloc[0]}")
        printed.table(f"{claim} was computed from", paper_claims.cells(found, claim).astype(object))
    if out:
        request_records.save(out, paper_claims.rows(found, chosen[0]))
        printed.line(f"{out}: erlab claims --id {chosen[0]} --records {out} judges it again.")


def _read(files: list[Path] | None, profile: str):
    from erlab import paths
    from erlab.results import records

    kept = paths.results(profiles.profile(profile).name) / "records"
    if not files and not kept.exists():
        raise ErlabError(f"No records in {kept}: erlab reproduce makes them, --records names others.")
    return records.read(*(files or [kept]))
