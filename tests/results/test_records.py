"""Request records survive writing and reading; foreign and broken files are met with a clear line."""

import os
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erlab import parquet
from erlab.errors import ErlabError
from erlab.results import records

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


# Files of strangers

REQUIRED = {"run_id": ["r"], "system": ["C"], "source": ["measured"], "users": [1], "status": ["ok"]}


def refused(tmp_path, columns, metadata=None):
    """The one line that a file of these columns is refused with."""
    table = pa.table(REQUIRED | columns).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ErlabError) as caught:
        records.read(tmp_path / "x.parquet")
    line = str(caught.value).removeprefix(f"{tmp_path / 'x.parquet'}: ")
    assert "\n" not in line and len(line) < 300
    return line


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"t_submit": [5], "t_first": [4]}, "t_first must not lie before t_submit. Got 4 and 5 in row 0"),
        ({"t_submit": [5], "t_last": [4]}, "t_last must not lie before t_submit. Got 4 and 5 in row 0"),
        ({"t_submit": [5], "t_routed": [4]}, "t_routed must not lie before t_submit. Got 4 and 5 in row 0"),
        ({"t_first": [5], "t_last": [4]}, "t_last must not lie before t_first. Got 4 and 5 in row 0"),
        ({"t_submit": [-1]}, "t_submit must be at least 0. Got -1"),
        ({"t_last": [2**62 + 1]}, "t_last must be at most 2^62. Got 4611686018427387905"),
        ({"t_last": pa.array([2**64 - 1], pa.uint64())}, "not in range"),
        ({"t_last": [1e300]}, "(Float value 1000"),
        ({"token_times": [[3, -9]]}, "token_times must be at least 0. Got -9"),
        ({"output_tokens": [-3]}, "output_tokens must be at least 0. Got -3"),
    ],
)
def test_impossible_times_and_numbers_are_one_line(tmp_path, columns, said):
    line = refused(tmp_path, columns)
    assert line.startswith("not request records (") and said in line


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.timestamp("ns"), pa.duration("s"), pa.time64("ns")])
def test_times_of_another_kind_are_not_taken_for_nanoseconds(tmp_path, kind):
    line = refused(tmp_path, {"t_submit": pa.array([1], kind)})
    assert line == f"not request records (the column t_submit must be whole numbers. Got {kind})."


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"system": [["C"]]}, "(the column system must be text. Got list<"),
        ({"users": [[1]]}, "(the column users must be whole numbers. Got list<"),
        ({"t_first": [{"s": 1}]}, "(the column t_first must be whole numbers. Got struct<"),
        ({"token_times": [5]}, "(the column token_times must be lists of whole numbers. Got int64"),
        ({"token_times": [["a"]]}, "Failed to parse string: 'a'"),
    ],
)
def test_a_list_in_a_column_is_one_line(tmp_path, columns, said):
    assert said in refused(tmp_path, columns)


def test_a_name_of_a_megabyte_is_one_line(tmp_path):
    said = "a text of the column 'system' must have at most 100,000 bytes. Got 1,000,000."
    assert refused(tmp_path, {"system": ["x" * 1_000_000]}) == said


def test_a_name_that_is_no_utf8_is_one_line(tmp_path):
    offsets = pa.py_buffer(np.array([0, 2], np.int32).tobytes())
    name = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    assert refused(tmp_path, {"system": name}) == "the column 'system' must be UTF-8 text."


@pytest.mark.parametrize(
    "runs, said",
    [
        (b"[" * 10_000 + b"]" * 10_000, "(the description of its runs is no JSON: "),
        (b'[{"run_id": "r", "workload": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}]", "is no JSON: "),
        (b'[{"run_id": ["r"]}]', "(a run's run_id must be a text of at most 100,000 characters. Got a list)."),
        (b'[{"title": "%s"}]' % (b"x" * 1_000_000), "Got 1,000,000 characters)."),
        (b'[{"users": {"a": 1}}]', "(a run's users must be a number. Got a dict)."),
    ],
)
def test_deep_and_odd_descriptions_are_one_line(tmp_path, runs, said):
    assert said in refused(tmp_path, {}, {b"erlab.runs": runs})


def test_many_rows_in_a_small_file_are_refused_before_they_are_loaded(tmp_path, monkeypatch):
    count = parquet.MAX_ROWS + 1
    again = pa.DictionaryArray.from_arrays(pa.nulls(count, pa.int8()).fill_null(0), pa.array(["r"]))
    columns = {name: pa.nulls(count, pa.int8()).fill_null(1) if name == "users" else again for name in REQUIRED}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", store_schema=False)
    assert (tmp_path / "x.parquet").stat().st_size < 3_000_000
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    with pytest.raises(ErlabError, match=r"x.parquet: must have at most 10,000,000 rows. Got 10,000,001\.$"):
        records.read(tmp_path)


@pytest.mark.parametrize(
    "bound, said", [("MAX_VALUES", "values in lists. Got 2."), ("MAX_BYTES", "bytes, uncompressed. Got ")]
)
def test_values_and_bytes_are_bounded_too(tmp_path, monkeypatch, bound, said):
    monkeypatch.setattr(parquet, bound, 1)
    assert f"must have at most 1 {said}" in refused(tmp_path, {"token_times": [[1, 2]]})


def test_a_text_that_repeats_counts_each_time(tmp_path, monkeypatch):
    name = "x" * 90_000
    columns = {name_: values * 100 for name_, values in REQUIRED.items()}
    pq.write_table(pa.table(columns | {"machine": [name] * 100}), tmp_path / "x.parquet")
    assert records.read(tmp_path).requests.machine.tolist() == [name] * 100
    monkeypatch.setattr(parquet, "MAX_BYTES", 1_000_000)
    assert (tmp_path / "x.parquet").stat().st_size < 100_000
    with pytest.raises(ErlabError, match=r"must have at most 1,000,000 bytes of text. Got 9,001,\d+\.$"):
        records.read(tmp_path)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(tmp_path):
    trap = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Trap())}
    table = pa.table(REQUIRED | {"user": [1]})
    fields = [field.with_metadata(trap) if field.name == "user" else field for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), tmp_path / "x.parquet")
    assert records.read(tmp_path).requests.user.tolist() == [1]


def test_a_pipe_is_refused_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "x.parquet")
    with pytest.raises(ErlabError, match=r"x.parquet: must be a file. Got something else\.$"):
        records.read(tmp_path)


def test_columns_of_other_tools_are_left_alone(tmp_path):
    pq.write_table(pa.table(REQUIRED | {"extra": [[{"deep": ["x"]}]]}), tmp_path / "x.parquet")
    assert list(records.read(tmp_path).requests.columns) == records.SCHEMA.names
