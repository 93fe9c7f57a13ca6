"""`erlab simulate`: its options reach the simulation, mistakes are one line."""

import pandas as pd
import pytest
from typer.testing import CliRunner

from erlab import paper, simulation
from erlab.commands.app import app
from erlab.results import metrics, records
from erlab.simulation import Setup

FAST = ("--steps", "roofline")  # needs no kernel tables


@pytest.fixture
def simulate(tmp_path):
    def run(*arguments):
        given = ["simulate", "--out", tmp_path / "found.parquet", *FAST, *arguments]
        return CliRunner().invoke(app, list(map(str, given))), tmp_path / "found.parquet"

    return run


def test_its_records_are_those_of_the_function(simulate):
    done, out = simulate("--system", "E", "--users", 3, "--users", 20, "--seed", 5)
    assert done.exit_code == 0, done.output
    found, roof = records.read(out).requests, Setup(steps="roofline", era=None)
    expected = simulation.sweep({"E": paper.SYSTEMS["v2"]["E"]}, [3, 20], setup=roof, seed=5).requests
    pd.testing.assert_frame_equal(found, expected)
    throughput = metrics.summarise(found).output_throughput
    assert all(f"{value:.4g}" in done.output for value in throughput.astype(float)) and str(out) in done.output


def test_every_assumption_has_its_effect(simulate):
    def run(*options):
        done, out = simulate("--system", "D", "--users", 40, *options)
        assert done.exit_code == 0, done.output
        found = records.read(out)
        return found.requests, found.runs.iloc[0]

    plain, described = run()
    assert described.setup["era"] is None and set(plain.policy) == {"nearest"} and plain.expert.nunique() == 8
    pool = run("--kv-gib", 4.5)[1].kv_tokens
    assert pool == int(4.5 * 2**30) // paper.kv_bytes_per_token(paper.SYSTEMS["v2"]["D"].expert)
    slower, named = run("--era", "0.13")
    assert named.setup["era"] == "0.13" and metrics.e2e(slower).median() > 1.1 * metrics.e2e(plain).median()
    assert run("--replicas", 3)[0].expert.nunique() == 3
    assert set(metrics.routing(run("--gateway-ms", 50)[0])) == {50.0}
    assert set(run("--policy", "round_robin")[0].expert.value_counts()) == {25}  # 200 requests on 8 experts


def test_loads_other_than_the_papers(simulate, tmp_path):
    def run(*options):
        done, out = simulate("--system", "E", *options)
        assert done.exit_code == 0, done.output
        return records.read(out), done.output

    found, output = run("--rate", 5, "--duration", "20s", "--warmup", "5s")
    assert 0 < len(found.requests) < 125 and found.requests["t_submit"].min() >= 5e9 and "5 requests/s (Poisson)" in output
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,50,5\n4,9000,6\n")
    found, output = run("--trace", tmp_path / "t.csv", "--speed", 2)
    assert found.requests["t_submit"].tolist() == [0, 2 * 10**9] and "1 request was longer" in output
    assert found.runs["load"].item()["source"] == "t.csv at 2 times the speed"
    prompts = [f'{{"timestamp": {i}, "input_length": 1100, "output_length": 2, "hash_ids": [1, 2]}}' for i in range(4)]
    (tmp_path / "m.jsonl").write_text("\n".join(prompts))
    found, output = run("--trace", tmp_path / "m.jsonl", "--prefix-caching", "--policy", "longest_prefix")
    assert found.runs["prefix_cache"].item()["hit_rate"] == pytest.approx(3 * 1024 / 4400)
    assert "Prefix cache: 69.8% of the prompt tokens; an infinite cache 69.8%." in output
    found, _ = run("--users", 2, "--users", 3, "--think", "1s")
    assert found.requests["users"].unique().tolist() == [2, 3]


def test_version_1_has_its_own_systems(simulate):
    done, out = simulate("--system", "13B-FP8", "--paper", "v1", "--users", 2)
    assert done.exit_code == 0 and set(records.read(out).requests.paper) == {"v1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--system", "F"), "must be one of A, B, C, D, E of paper v2. Got 'F'."),
        (("--system", "D", "--paper", "v1"), "must be one of TP8, 70B-INT8, 13B-FP16, 13B-FP8 of paper v1. Got 'D'."),
        (("--system", "D", "--paper", "v3"), "'paper' parameter of simulate must be one of v2, v1. Got 'v3'."),
        (("--system", "D", "--users", 4, "--users", 0), "--users must be a whole number from 1 to 100000. Got 0."),
        (("--system", "D", "--kv-gib", "inf"), "--kv-gib must be a number above 0 and at most 10000. Got inf."),
        (("--system", "D", "--kv-gib", 0.2), "must hold one request of 2048 tokens. Got 1310."),
        (("--system", "D", "--era", "0.9"), "must be None or one of 0.13. Got '0.9'."),
        (("--system", "D", "--replicas", 0), "--replicas must be a whole number from 1 to 100000. Got 0."),
        (("--system", "D", "--gateway-ms", -1), "--gateway-ms must be a number from 0 to 60000. Got -1.0."),
        (("--system", "D", "--gateway-ms", "nan"), "--gateway-ms must be a number from 0 to 60000. Got nan."),
        (("--system", "D", "--users", 1, "--policy", ""), "--policy must be one of nearest,"),
        (("--system", "D", "--users", 1, "--policy", "best"), "--policy must be one of nearest,"),
        (("--system", "A", "--policy", "spill"), "--policy is for router systems, A is a baseline. Got 'spill'."),
        (("--system", "D", "--rate", 5, "--users", 3), "--users is for a closed loop and must not stand beside --rate."),
        (("--system", "D", "--rate", 5, "--cluster", "dask:a:1"), "--cluster simulates closed loops of the paper's"),
        (("--system", "D", "--rate", 5, "--prefix-caching"), "--prefix-caching needs a --trace with prefix ids"),
        (("--system", "D", "--users", 1, "--prefix-pool", 5), "--prefix-pool is for --prefix-caching"),
        (("--system", "D", "--users", 1, "--policy", "longest_prefix"), "longest_prefix needs --prefix-caching"),
        (("--system", "D", "--trace", "/no/such"), "/no/such: cannot be read"),
        (("--system", "D", "--context", 99), "--context must be a whole number from 2048 to 32768. Got 99."),
        (("--system", "D", "--cluster", "slurm"), "must be dask:HOST:PORT or ray:HOST:PORT. Got 'slurm'."),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_records(simulate, arguments, message):
    done, out = simulate(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("erlab: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert not out.exists()


def test_a_scheduler_that_is_not_there_is_named(simulate):
    done, out = simulate("--system", "D", "--users", 1, "--cluster", "dask:nowhere:0:0")
    assert done.exit_code == 2 and "No Dask scheduler answers at nowhere:0:0" in done.stderr
    assert done.stderr.count("erlab: ") == 1 and not out.exists()
