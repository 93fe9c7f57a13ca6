"""Request records survive writing and reading; foreign and broken files are met with a clear line."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erlab import records
from erlab.errors import ErlabError

ROW = dict(run_id="r1", system="C", source="measured", users=2, user=1, turn=0, t_submit=5, status="ok")


def test_round_trip_keeps_values_nulls_and_runs(tmp_path):
    rows = [ROW | {"t_first": 7, "token_times": [7, 9]}, ROW | {"status": "timeout", "error": "no answer in 60 s"}]
    records.write(tmp_path / "a.parquet", rows, {"run_id": "r1", "commit": "abc"})
    found = records.read(tmp_path / "a.parquet")
    assert list(found.requests.t_first) == [7, pd.NA]
    assert list(found.requests.token_times[0]) == [7, 9]
    assert found.requests.token_times[1] is None
    assert list(found.requests.error) == [pd.NA, "no answer in 60 s"]
    assert found.requests.distance.isna().all(), "unknown is null, not zero"
    assert found.runs.to_dict("records") == [{"run_id": "r1", "commit": "abc"}]


def test_folders_are_read_in_order_and_joined(tmp_path):
    for name in ("b", "a"):
        records.write(tmp_path / "deep" / f"{name}.parquet", [ROW | {"run_id": name}], {"run_id": name})
    found = records.read(tmp_path)
    assert list(found.requests.run_id) == ["a", "b"] == list(found.runs.run_id)


def test_a_table_by_other_means_needs_only_the_required_columns(tmp_path):
    frame = pd.DataFrame({"run_id": ["x"], "system": ["mine"], "source": ["simulated"], "users": [3], "status": ["ok"]})
    frame.to_parquet(tmp_path / "x.parquet")
    found = records.read(tmp_path / "x.parquet")
    assert found.requests.users.tolist() == [3] and found.requests.t_first.isna().all()
    assert found.runs.empty


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.parquet"
    records.write(path, [ROW])
    with pytest.raises(pa.ArrowInvalid):
        records.write(path, [ROW | {"users": "many"}])
    assert records.read(path).requests.users.tolist() == [2]
    assert [f.name for f in tmp_path.iterdir()] == ["a.parquet"], "nothing half-written is left"


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really", b"PAR1"])
def test_broken_file_is_named(tmp_path, content):
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(ErlabError, match="bad.parquet"):
        records.read(tmp_path)


def test_missing_columns_are_named(tmp_path):
    pq.write_table(pa.table({"users": [1], "status": ["ok"]}), tmp_path / "x.parquet")
    with pytest.raises(ErlabError, match="run_id, system, source"):
        records.read(tmp_path / "x.parquet")


def test_wrong_type_is_named(tmp_path):
    columns = {k: [v] for k, v in ROW.items()} | {"users": ["many"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(ErlabError, match="x.parquet"):
        records.read(tmp_path / "x.parquet")


def test_no_records_at_all(tmp_path):
    with pytest.raises(ErlabError, match="No request records"):
        records.read(tmp_path)


def test_nothing_measured_yet_is_an_empty_table_with_all_columns(tmp_path):
    found = records.at_hand(tmp_path / "absent")
    assert list(found.requests.columns) == records.SCHEMA.names and found.requests.empty and found.runs.empty


def test_a_table_of_known_columns_becomes_records_that_can_be_saved(tmp_path):
    table = pa.table({"users": [3, 3], "run_id": ["r", "r"], "system": ["C"] * 2, "source": ["s"] * 2, "status": ["ok"] * 2})
    made = records.from_table(table, {"run_id": "r", "setup": {"gpu": "H100"}})
    assert list(made.requests.columns) == records.SCHEMA.names and made.requests.t_first.isna().all()
    records.save(tmp_path / "a.parquet", made)
    again = records.read(tmp_path / "a.parquet")
    assert again.requests.equals(made.requests)
    assert again.runs.loc[0, "setup"] == {"gpu": "H100"}


@pytest.mark.parametrize("runs", [b"no json", b"[1]", b'{"run_id": "r1"}', b"\xff"])
def test_a_description_of_runs_that_is_none_is_named(tmp_path, runs):
    records.write(tmp_path / "x.parquet", [ROW])
    table = pq.read_table(tmp_path / "x.parquet")
    pq.write_table(table.replace_schema_metadata({b"erlab.runs": runs}), tmp_path / "x.parquet")
    with pytest.raises(ErlabError, match="x.parquet: not request records .the description of its runs is no "):
        records.read(tmp_path / "x.parquet")


def test_a_column_of_another_kind_is_named(tmp_path):
    columns = {"run_id": ["r"], "system": ["C"], "source": ["measured"], "users": [1], "status": ["ok"]}
    pq.write_table(pa.table(columns | {"token_times": ["1, 2"]}), tmp_path / "x.parquet")
    with pytest.raises(ErlabError, match="x.parquet: not request records"):
        records.read(tmp_path / "x.parquet")


@pytest.mark.parametrize("users", [0, -1])
def test_a_load_of_no_users_is_no_record(tmp_path, users):
    records.write(tmp_path / "x.parquet", [ROW, ROW | {"users": users}])
    with pytest.raises(ErlabError, match=f"x.parquet: not request records .users must be at least 1. Got {users}"):
        records.read(tmp_path / "x.parquet")


def test_a_file_named_twice_counts_once(tmp_path):
    for name in ("b", "a"):
        records.write(tmp_path / f"{name}.parquet", [ROW | {"run_id": name}], {"run_id": name})
    found = records.read(tmp_path / "b.parquet", tmp_path, tmp_path / ".." / tmp_path.name / "b.parquet")
    assert list(found.requests.run_id) == ["b", "a"] == list(found.runs.run_id)
