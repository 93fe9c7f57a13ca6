"""Tests of the claims ledger: verdicts at their thresholds, missing records, confidence."""

import numpy as np
import pandas as pd
import pytest
import synthetic

from erlab import paper
from erlab.errors import ErlabError
from erlab.results import claims, records
from erlab.results.claims import FAILS, HOLDS, NOT_RUNNABLE

MS = 10**6
LOADS = (1, 4, 16)


def study(cells, loads=LOADS, source="measured", paper="v2"):
    """Make records with one request per system and load.

    Args:
        cells: System: values, or a function of the load that returns them. ttft and routing in ms, tpot in ms per
            token; a request of 11 tokens takes ttft + 10 tpot.
    """
    rows = []
    for system, numbers in cells.items():
        for users in loads:
            n = dict(ttft=100, tpot=10, tokens=11, status="ok", routing=1.0 if system in "DE" else None)
            n |= numbers(users) if callable(numbers) else numbers
            routed = n["routing"]
            first = round(n["ttft"] * MS)
            rows.append(
                dict(
                    run_id=f"{source}{system}{users}",
                    paper=paper,
                    system=system,
                    source=source,
                    users=users,
                    machine="a machine",
                    t_submit=0,
                    t_first=first,
                    t_last=first + round(n["tpot"] * 10 * MS),
                    output_tokens=n["tokens"],
                    status=n["status"],
                    t_routed=None if routed is None else round(routed * MS),
                    cluster=None if routed is None else 0,
                )  # fmt: skip
            )
    return synthetic.from_rows(rows)


def row(found, claim):
    table = claims.ledger(found)
    return table[table["id"] == claim].iloc[0]


def base(**changes):
    """Return equal values for all five systems except `changes`."""
    return {"A": {}, "B": {}, "C": {}, "D": {}, "E": {}} | changes


CASES = [
    ("v2-ttft-baselines", base(D=dict(ttft=101)), HOLDS),
    ("v2-ttft-baselines", base(D=dict(ttft=101), B=dict(ttft=102)), FAILS),
    ("v2-ttft-baselines", base(D=lambda n: dict(ttft=101 if n > 1 else 50)), HOLDS),  # 2 of 3 loads
    ("v2-ttft-baselines", base(D=lambda n: dict(ttft=101 if n > 4 else 50)), FAILS),  # 1 of 3
    ("v2-ttft-8b", base(E=dict(ttft=149)), HOLDS),
    ("v2-ttft-8b", base(E=dict(ttft=151)), FAILS),
    ("v2-ttft-8b", base(E=dict(ttft=67)), HOLDS),
    ("v2-ttft-8b", base(E=dict(ttft=66)), FAILS),
    ("v2-ttft-overhead", base(D=dict(ttft=101), E=dict(ttft=101)), HOLDS),
    ("v2-ttft-overhead", base(D=dict(ttft=101), E=dict(ttft=99)), FAILS),
    ("v2-ttft-overhead", base(D=dict(ttft=101), E=dict(ttft=101), C=dict(ttft=105)), FAILS),
    ("v2-tpot-8b", base(E=dict(tpot=9)), HOLDS),
    ("v2-tpot-8b", base(E=dict(tpot=9), D=dict(tpot=8)), FAILS),
    ("v2-tpot-comm", base(C=dict(tpot=11)), HOLDS),
    ("v2-tpot-comm", base(C=dict(tpot=11), A=dict(tpot=12)), FAILS),
    ("v2-overhead-minimal", base(D=dict(ttft=200, routing=4.9), E=dict(ttft=100, routing=4.9)), HOLDS),
    ("v2-overhead-minimal", base(D=dict(ttft=200, routing=5.1), E=dict(ttft=100, routing=5.1)), FAILS),  # > 5 %
    ("v2-overhead-minimal", base(D=dict(ttft=145, routing=4.9), E=dict(ttft=100, routing=4.9)), FAILS),  # spread 9.2
    ("v2-70b-moderate", base(D=lambda n: dict(tpot=10 * (1 if n == 1 else 1.9), tokens=11 * n)), HOLDS),
    ("v2-70b-moderate", base(D=lambda n: dict(tpot=10 * (1 if n == 1 else 3.1), tokens=11 * n)), FAILS),  # slower
    ("v2-70b-moderate", base(D=lambda n: dict(tokens=11 if n != 4 else 9)), FAILS),  # fewer tokens in the same time
    ("v2-70b-moderate", base(D=lambda n: dict(tokens=11 if n < 16 else 2)), HOLDS),  # 16 is past the middle
    ("v2-8b-wide", base(A=lambda n: dict(tokens=11 if n < 16 else 5), B=dict(tokens=5), C=dict(tokens=5)), HOLDS),
    ("v2-8b-wide", base(B=dict(tokens=5), C=dict(tokens=5)), FAILS),  # A is as competitive
    ("v2-8b-wide", base(E=dict(tokens=5), B=dict(tokens=5), C=dict(tokens=5)), FAILS),
]


@pytest.mark.parametrize("claim, cells, verdict", CASES)
def test_verdict_depends_on_the_threshold(claim, cells, verdict):
    found = row(study(cells), claim)
    assert found.verdict == verdict, found.value
    assert found.basis == "measured on a machine" and found.value


V1 = {"TP8": {}, "70B-INT8": {}, "13B-FP16": {}, "13B-FP8": {}}


@pytest.mark.parametrize(
    "changes, throughput, size",
    [
        ({s: lambda n: dict(tokens=100 if n < 16 else 120) for s in V1 if s != "TP8"}, HOLDS, HOLDS),
        ({s: dict(tokens=99) for s in V1 if s != "TP8"}, FAILS, HOLDS),  # never above TP8
        ({s: lambda n: dict(tokens=79 if n < 16 else 120) for s in V1 if s != "TP8"}, FAILS, HOLDS),
        ({"70B-INT8": dict(tokens=101), "13B-FP16": dict(tokens=113), "13B-FP8": dict(tokens=101)}, HOLDS, FAILS),
        ({"70B-INT8": dict(tokens=101), "13B-FP16": dict(tokens=112), "13B-FP8": dict(tokens=101)}, HOLDS, HOLDS),
    ],
)
def test_verdicts_on_version_1(changes, throughput, size):
    cells = {s: changes.get(s, dict(tokens=100)) for s in V1}
    found = study(cells, paper="v1")
    assert row(found, "v1-throughput").verdict == throughput
    assert row(found, "v1-size").verdict == size


def test_ledger_has_every_claim_once():
    found = claims.ledger(synthetic.make(loads=(1, 4, 16)))
    assert list(found["id"]) == [c.id for c in paper.CLAIMS] == list(claims.CHECKS)
    assert list(found.columns) == claims.COLUMNS
    assert set(found[found["paper"] == "v1"]["verdict"]) == {NOT_RUNNABLE}


def test_value_states_the_comparison():
    found = row(study(base(D=dict(ttft=200))), "v2-ttft-baselines")
    assert found.value.startswith("A below D at 3 of 3 loads (mean ratio 0.50); B below D")
    assert found.rows == 4 * 3


def test_missing_systems_and_loads_are_named():
    assert row(study({"A": {}, "B": {}}), "v2-ttft-baselines").reason == "measured: no finished requests of C, D"
    assert row(study(base(), loads=(1, 2)), "v2-70b-moderate").reason == "measured: needs 3 loads that D share, has 2"
    apart = synthetic.both(study({s: {} for s in "AB"}, loads=(1,)), study({"C": {}}, loads=(2,)))
    assert "loads that A, B, C share" in row(apart, "v2-tpot-comm").reason
    assert row(study({"D": dict(routing=None), "E": {}}), "v2-overhead-minimal").reason.startswith(
        "measured: routing_median_ms is unknown"
    )
    assert set(claims.ledger(synthetic.preliminary(loads=(1,)))["verdict"]) == {NOT_RUNNABLE}


def test_only_loads_that_all_systems_have_are_compared():
    found = synthetic.both(study(base(D=dict(ttft=101))), study({"D": dict(ttft=1)}, loads=(64, 128, 256, 512)))
    assert row(found, "v2-ttft-baselines").verdict == HOLDS


def test_failed_requests_are_reported_and_a_system_without_finished_requests_is_not_runnable():
    lost = {"A": {}, "B": {}, "C": dict(status="lost"), "D": {}}
    assert row(study(lost), "v2-ttft-baselines").reason == "measured: no finished requests of C"
    found = synthetic.both(study(base()), study({"D": dict(status="lost")}))
    assert "3 of 15 requests failed" in row(found, "v2-ttft-baselines").value


def test_measured_and_simulated_are_judged_separately():
    simulated = study(base(D=dict(ttft=101)), source="simulated")
    found = claims.ledger(synthetic.both(study(base()), simulated)).query("id == 'v2-ttft-baselines'")
    assert list(zip(found.basis, found.verdict)) == [
        ("measured on a machine", FAILS),
        ("simulated on a machine", HOLDS),
    ]


def test_source_that_cannot_test_a_claim_has_a_reason():
    found = synthetic.both(study({"A": {}}, source="measured"), study(base(D=dict(ttft=101)), source="simulated"))
    ledger = claims.ledger(found).query("id == 'v2-ttft-baselines'")
    assert ledger.verdict.tolist() == [NOT_RUNNABLE, HOLDS]
    assert ledger.reason.iloc[0] == "measured: no finished requests of B, C, D"
    assert claims.ledger(found).query("id == 'v2-tpot-8b'").verdict.iloc[0] == NOT_RUNNABLE


def test_systems_answered_by_one_model_are_not_compared():
    found = study(base(D=dict(ttft=101)))
    runs = found.requests[["run_id", "system"]].drop_duplicates()
    names = {"A": "one", "B": "other", "C": "third", "D": "one", "E": "fifth"}
    found = records.Records(found.requests, runs.assign(attached=True, model=runs.system.map(names)))
    alike = row(found, "v2-ttft-baselines")
    assert (alike.verdict, alike.reason) == (NOT_RUNNABLE, "measured: one model, one, answered for A and D alike")
    assert row(found, "v2-70b-moderate").basis == "measured on a machine (one for all experts)"


def test_saved_ledger_reads_back(tmp_path):
    found = claims.ledger(study(base()))
    markdown, _ = claims.save(found, tmp_path)
    again, before = (table.astype(object).where(table.notna(), None) for table in (claims.read(tmp_path), found))
    pd.testing.assert_frame_equal(again, before)
    lines = markdown.read_text().splitlines()
    assert len([line for line in lines if line.startswith("| v")]) == len(found)


@pytest.mark.parametrize("systems", ["CD", ""])
def test_metrics_of_each_claim_are_saved_with_the_ledger(systems, tmp_path):
    found = synthetic.make(systems, (1, 4, 16))
    ledger = claims.ledger(found)
    claims.save(ledger, tmp_path, found)
    for claim, rows in ledger.groupby("id")["rows"].first().items():
        stored = pd.read_csv(tmp_path / "claims" / f"{claim}.csv")
        assert stored["requests"].sum() == rows and set(claims.CHECKS[claim].metrics) <= set(stored)


def test_records_without_version_are_judged_by_their_systems():
    found = synthetic.both(study(base(D=dict(ttft=101)), paper=None), study(V1, paper=None))
    assert row(found, "v2-ttft-baselines").verdict == HOLDS
    assert row(found, "v1-size").verdict == HOLDS


def test_margin_is_the_ratio_to_the_threshold():
    assert row(study(base(E=dict(ttft=120))), "v2-ttft-8b").margin == pytest.approx(1.5 / 1.2)
    assert row(study(base(E=dict(ttft=300))), "v2-ttft-8b").margin == pytest.approx(0.5)
    assert row(study(base(E=dict(tpot=8))), "v2-tpot-8b").margin == pytest.approx(10 / 8)
    halves = study(base(E=lambda n: dict(tpot={1: 5, 4: 8, 16: 20}[n])))
    assert row(halves, "v2-tpot-8b").margin == pytest.approx(10 / 8)  # the second best of three loads decides


def noisy(spread, seed=0, run="r", n=12, **centres):
    """Make `n` requests per system and load; time to first token is log-normal around `centres` (ms, default 100)."""
    rng, rows = np.random.default_rng(seed), []
    for system in "ABCDE":
        for users in LOADS:
            for i in range(n):
                first = round(centres.get(system, 100) * MS * float(np.exp(spread * rng.normal())))
                rows.append(dict(run_id=f"{run}{system}{users}", paper="v2", system=system, source="measured",
                                 users=users, t_submit=0, t_first=first, t_last=first + 100 * MS, output_tokens=11,
                                 status="ok"))  # fmt: skip
    return synthetic.from_rows(rows)


def test_verdict_with_few_agreeing_samples_is_within_noise():
    clear, noise = row(noisy(0.05, D=130), "v2-ttft-baselines"), row(noisy(0.5, D=104), "v2-ttft-baselines")
    assert clear.confidence == claims.CLEAR and clear.agree == 1 and clear.margin_low > 1
    assert noise.confidence == claims.NOISE and noise.margin_low < 1 < noise.margin_high
    assert claims.verdict_text(noise).startswith(f"{noise.verdict}, within noise (margin {noise.margin:.2f}, ")
    assert claims.verdict_text(clear).startswith("holds (margin 1.")


def test_contradicting_repetition_makes_a_verdict_noise():
    one, other = noisy(0.02, D=130, n=60), noisy(0.02, seed=1, run="s", D=70, n=20)
    assert pd.isna(row(one, "v2-ttft-baselines").repeats)
    found = row(synthetic.both(one, noisy(0.02, seed=2, run="t", D=130)), "v2-ttft-baselines")
    assert (found.verdict, found.repeats, found.confidence) == (HOLDS, "2 of 2", claims.CLEAR)
    found = row(synthetic.both(one, other), "v2-ttft-baselines")
    assert (found.verdict, found.repeats, found.confidence) == (HOLDS, "1 of 2", claims.NOISE)


def test_interval_is_open_if_tokens_arrive_at_once():
    found = noisy(0.05)
    at_once = (found.requests.system == "E") & (found.requests.index % 12 < 5)  # of 12 requests per cell
    last = found.requests.t_last.mask(at_once, found.requests.t_first)
    found = row(records.Records(found.requests.assign(t_last=last), found.runs), "v2-tpot-8b")
    assert found.margin_low <= found.margin < found.margin_high == np.inf
    assert " to inf over " in claims.verdict_text(found)


def test_interval_covers_the_variation_between_runs():
    """Runs differ more than their requests, which only repeated runs show."""
    centres = (95, 115, 130, 145, 165)
    runs = [noisy(0.02, seed=i, run=f"r{i}-", D=centre) for i, centre in enumerate(centres)]
    alone, together = (row(found, "v2-ttft-baselines") for found in (runs[2], synthetic.both(*runs)))
    assert alone.covers == "the requests of one run per load"
    assert together.covers == "5 runs per load and their requests"
    assert alone.margin_high - alone.margin_low < 0.1
    assert together.margin_low < 1.2 and together.margin_high > 1.4
    assert (together.verdict, together.repeats, together.confidence) == (HOLDS, "4 of 5", claims.NOISE)
    text = f"{together.margin_high:.2f} over 5 runs per load and their requests; the same in 4 of 5"
    assert text in claims.verdict_text(together)


def test_variation_common_to_all_systems_does_not_widen_the_interval():
    """Repetitions are drawn for all systems at once, so a seed that slows all of them leaves margins unchanged."""
    runs = [noisy(0.002, seed=i, run=f"r{i}-", n=60, **dict.fromkeys("ABCE", 100 * pace), D=130 * pace)
            for i, pace in enumerate((1, 1.1, 1.2, 1.3, 1.4))]  # fmt: skip
    found = row(synthetic.both(*runs), "v2-ttft-baselines")
    assert found.margin_low > 1.25 and found.margin_high < 1.35 and found.repeats == "5 of 5"


def test_claim_tested_on_its_own_rows_gives_the_same(tmp_path):
    found = synthetic.both(synthetic.make(loads=(1, 4, 16)), synthetic.preliminary(loads=(1,)))
    whole = claims.ledger(found).set_index("id")
    for claim in ("v2-ttft-8b", "v2-70b-moderate", "v2-8b-wide"):
        own = claims.rows(found, claim)
        records.save(tmp_path / "own.parquet", own)
        alone = claims.ledger(records.read(tmp_path / "own.parquet"), [claim]).set_index("id").loc[claim]
        pd.testing.assert_series_equal(alone, whole.loc[claim])
        assert set(own.requests.system) == set(claims.CHECKS[claim].systems) and len(own.requests) == alone.rows
        assert claims.cells(found, claim).requests.sum() == alone.rows


def test_rows_of_a_claim_are_at_loads_that_all_its_systems_share():
    found = synthetic.both(study(base()), study({"D": {}}, loads=(64,)))
    assert set(claims.rows(found, "v2-ttft-baselines").requests.users) == set(LOADS)
    assert claims.cells(found, "v2-ttft-baselines").ttft_median_s.tolist() == [0.1] * 12


def test_claims_depend_on_assumptions_of_the_paper():
    known = {assumption.id for assumptions in paper.ASSUMPTIONS.values() for assumption in assumptions}
    for check in claims.CHECKS.values():
        assert set(check.assumptions) <= known and check.tolerance
    assert "kv-pool" in claims.CHECKS["v2-ttft-baselines"].assumptions
    assert "baselines" not in claims.CHECKS["v2-70b-moderate"].assumptions


def test_unknown_claim_or_version_raises():
    with pytest.raises(ErlabError, match="must be one of v2-ttft-baselines, .*Got 'v3'"):
        claims.ledger(study(base()), ["v3"])
    with pytest.raises(ErlabError, match="'paper' parameter of claims must be one of v2, v1. Got 'v3'"):
        claims.select("v3")
