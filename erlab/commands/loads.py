"""Options of `erlab users` and `erlab simulate` that describe the load."""

import contextlib
import re
from pathlib import Path
from typing import Annotated

import typer

from erlab import paper
from erlab.commands import options, printed
from erlab.errors import ErlabError
from erlab.serving import profiles
from erlab.spec import Workload

_UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_MOST = 1e7  # seconds, some months


def seconds(text: str | float) -> float | str:
    """Parse a duration; return other text unchanged for the callback to refuse.

    >>> seconds("250ms"), seconds("5min"), seconds("1.5h"), seconds("3"), seconds("soon")
    (0.25, 300.0, 5400.0, 3.0, 'soon')
    """
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) ?(ms|s|min|h)?", str(text).strip())
    return float(found[1]) * _UNITS[found[2] or "s"] if found else text


_TIME = options.number("be a duration above 0, such as 250ms, 3s, 5min or 1h", lambda value: 0 < value <= _MOST)
_RATE = options.number("be a number above 0 and at most 100000", lambda value: 0 < value <= 100_000)
_FACTOR = options.number("be a number above 0 and at most 1000000", lambda value: 0 < value <= 1e6)


def _most(most: int):
    return options.number(f"be a whole number from 1 to {most}", lambda value: 1 <= value <= most)


def _option(help: str, parser, callback, *names: str, metavar: str | None = None) -> object:
    return typer.Option(*names, help=help, parser=parser, callback=callback, metavar=metavar)


def _turns(workload: Workload) -> str:
    return f"{workload.turns} per user and at least {workload.least_requests}"


Rate = Annotated[
    float | None,
    _option("Open loop: requests per second, Poisson arrivals.", options.real, _RATE, metavar="NUMBER"),
]
ConstantRate = Annotated[
    float | None, _option("Open loop: requests per second, evenly spaced.", options.real, _RATE, metavar="NUMBER")
]
TraceFile = Annotated[
    Path | None,
    typer.Option("--trace", help="Replay a trace: its arrivals, token lengths, sessions and prefixes.", metavar="FILE"),
]
Speed = Annotated[
    float | None,
    _option(
        "With --trace: factor on its speed; 2 is twice as fast (default: 1).", options.real, _FACTOR, metavar="NUMBER"
    ),
]
LengthFactor = Annotated[
    float | None,
    _option(
        "With --trace: factor on its token lengths; 0.5 halves them (default: 1).",
        options.real,
        _FACTOR,
        metavar="NUMBER",
    ),
]
TraceFormat = Annotated[
    str | None,
    typer.Option(
        help="Format of the trace: {traces} (default: recognized by its columns).",
        metavar="NAME",
        callback=options.one_of("traces"),
    ),
]
TraceColumns = Annotated[
    str | None,
    typer.Option(
        help="With --trace: columns of another CSV file: time=NAME,input=NAME,output=NAME[,session=NAME]; "
        "times in seconds or as dates.",
        metavar="NAMES",
    ),
]
BlockTokens = Annotated[
    int | None,
    _option(
        "With --trace: prompt tokens per block id, the hash_ids of a trace (default: 512; 16 with vllm).",
        options.whole,
        _most(1_000_000),
        metavar="INTEGER",
    ),
]
Duration = Annotated[
    float | None,
    _option(
        "Length of the load, such as 250ms, 30s or 5min (default: 1min at a rate, all of a trace; closed loops end "
        "after --requests).",
        seconds,
        _TIME,
        metavar="TIME",
    ),
]
Requests = Annotated[
    int | None,
    _option(
        "Requests of all users together (default: as many as --duration holds; a closed loop without it: "
        f"{_turns(profiles.PROFILES['laptop'].workload)} in the profile laptop, "
        f"{_turns(paper.WORKLOAD)} in simulate).",
        options.whole,
        _most(10_000_000),
        metavar="INTEGER",
    ),
]
Think = Annotated[
    float | None,
    _option(
        "Closed loop: mean think time between an answer and the next request, exponential (default: none).",
        seconds,
        _TIME,
        metavar="TIME",
    ),
]
Warmup = Annotated[
    float | None,
    _option("Time before the load whose requests are not recorded (default: none).", seconds, _TIME, metavar="TIME"),
]


def make(
    users: list[int] | None,
    rate: float | None,
    constant_rate: float | None,
    trace: Path | None,
    speed: float | None,
    length_factor: float | None,
    trace_format: str | None,
    trace_columns: str | None,
    block_tokens: int | None,
    duration: float | None,
    requests: int | None,
    think: float | None,
    warmup: float | None,
):
    """Return the load of these options (`erlab.prompts.loads.Load`); read its trace."""
    from erlab.prompts import loads, traces, traffic

    only = {"speed": speed, "length-factor": length_factor, "block-tokens": block_tokens}
    for name, value in (only | {"trace-format": trace_format, "trace-columns": trace_columns}).items():
        if value is not None and trace is None:
            raise ErlabError(f"--{name} is for --trace, which is missing.")
    chosen = {"rate": rate, "constant-rate": constant_rate, "trace": trace}
    for name, value in chosen.items():
        if value is not None and users:
            raise ErlabError(f"--users is for a closed loop and must not stand beside --{name}.")
    described = {"rate": rate, "constant_rate": constant_rate, "duration": duration, "requests": requests}
    described |= {"think": think or 0.0, "warmup": warmup or 0.0}
    if trace is None:
        return loads.Load(**described)
    loads.Load(**described | {"trace": trace})  # refuses what must not stand together before the file is read
    with _named("--trace-columns"):
        named = traces.columns(trace_columns) if trace_columns is not None else None
    read = traces.read(trace, trace_format, named, block_tokens)
    if read.skipped:
        printed.line(f"{trace}: {read.skipped:,} requests without prompt or output tokens are left out.")
    replayed = traffic.faster(read.traffic, speed or 1.0)
    source = trace.name + (f" at {speed:g} times the speed" if speed else "")
    if length_factor:
        replayed, source = traffic.resized(replayed, length_factor), f"{source}, lengths times {length_factor:g}"
    return loads.Load(**described, trace=replayed, source=source)


@contextlib.contextmanager
def _named(option: str):
    try:
        yield
    except ErlabError as e:
        raise ErlabError(f"{option}: {e}") from None


def note_cut(runs) -> None:
    """Print how many requests were cut, if any were."""
    if cut := max((load["cut"] for load in runs["load"]), default=0):
        printed.line(f"{cut:,} request{'s were' if cut > 1 else ' was'} longer than the system takes and cut.")
