"""`erlab users`: every kind of load reaches a server, and a run in which all requests fail says why."""

import pytest
from typer.testing import CliRunner

from erlab.commands.app import app
from erlab.results import records

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"2023-11-16 18:15:4{i}.5,{9000 * i + 30},4\n" for i in range(4))


@pytest.fixture
def load(fake, tmp_path):
    def run(*arguments):
        given = ["users", "--address", fake.address, "--out", tmp_path / "new.parquet", "--profile", "smoke", *arguments]
        given += [] if "--model" in arguments else ["--model", "expert_0"]
        return CliRunner().invoke(app, list(map(str, given))), tmp_path / "new.parquet"

    return run


def done(load, *arguments):
    result, out = load(*arguments)
    assert result.exit_code == 0, result.output
    return records.read(out), result.output


def test_users_are_repeated_as_loads_and_loads_as_seeds(load):
    found, output = done(load, "--users", 1, "--users", 3, "--requests", 4, "--repeat", 2, "--seed", 5)
    sizes = found.requests.groupby(["users", "run_id"]).size()
    assert sizes.index.get_level_values("users").tolist() == [1, 1, 3, 3] and set(sizes) == {4}
    assert found.runs["seed"].tolist() == [5, 6, 5, 6] and "ttft_p99_s" in output
    first, second = (rows["input_tokens"].tolist() for _, rows in list(found.requests.groupby("run_id"))[:2])
    assert first != second


def test_arrivals_come_at_a_rate_and_after_the_warm_up(load):
    found, _ = done(load, "--constant-rate", 20, "--duration", "300ms", "--warmup", "200ms")
    due = (found.requests["t_submit"] - found.requests["late_ns"]) / 1e9
    assert sorted(due.round(6)) == [0.2, 0.25, 0.3, 0.35, 0.4, 0.45]
    described = found.runs["load"].item()
    assert (described["kind"], described["constant_rate"], described["cut"]) == ("constant rate", 20, 0)


def test_a_trace_gives_arrivals_and_lengths(load, tmp_path):
    (tmp_path / "azure.csv").write_text(AZURE)
    found, output = done(load, "--trace", tmp_path / "azure.csv", "--speed", 10)
    due = (found.requests["t_submit"] - found.requests["late_ns"]) / 1e9
    assert due.round(6).tolist() == [0, 0.1, 0.2, 0.3] and found.requests["input_tokens"].iloc[0] == 30
    assert "3 requests were longer than the system takes and cut." in output
    assert found.runs["load"].item()["source"] == "azure.csv at 10 times the speed"


def test_users_think(load):
    found, _ = done(load, "--users", 2, "--requests", 6, "--think", "50ms")
    rows = found.requests
    pauses = (rows["t_submit"] - rows["late_ns"] - rows["t_last"].shift())[rows["turn"] > 0]
    assert (pauses > 0).all() and pauses.nunique() == len(pauses)


def test_a_run_without_an_answer_says_why_and_fails(load):
    result, out = load("--users", 2, "--model", "nobody")
    assert result.exit_code == 1 and result.stderr.startswith("erlab: None of 4 requests ended well (Request for unknown model")
    assert result.stderr.count("\n") == 1 and len(records.read(out).requests) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--rate", 0), "--rate must be a number above 0 and at most 100000. Got 0.0."),
        (("--rate", "nan"), "--rate must be a number above 0"),
        (("--rate", 1, "--users", 2), "--users is for a closed loop and must not stand beside --rate."),
        (("--rate", 1, "--trace", "x"), "--trace must not stand beside --rate."),
        (("--rate", 1, "--think", "1s"), "--think is for a closed loop"),
        (("--duration", "soon"), "--duration must be a duration above 0, such as 250ms, 3s, 5min or 1h. Got 'soon'."),
        (("--warmup", "-3s"), "--warmup must be a duration above 0"),
        (("--speed", 2), "--speed is for --trace, which is missing."),
        (("--trace-columns", "time=a"), "--trace-columns is for --trace"),
        (("--trace", "/no/such"), "/no/such: cannot be read"),
        (("--trace", "x", "--trace-columns", "a"), "--trace-columns: Columns must be given as time=NAME"),
        (("--trace", "x", "--trace-format", "gpt"), "--trace-format must be one of azure, burstgpt,"),
        (("--requests", 0), "--requests must be a whole number from 1 to 10000000. Got 0."),
        (("--requests", 3), "--requests must be at least the 8 users. Got 3."),
        (("--repeat", 0), "--repeat must be a whole number from 1 to 1000. Got 0."),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_records(load, arguments, message):
    result, out = load(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("erlab: ") and message in result.stderr and result.stderr.count("\n") == 1
    assert not out.exists()
