"""Traces: every format by its columns, units by arithmetic, hostile files in one line."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erlab import paths
from erlab.errors import ErlabError
from erlab.prompts import traces

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:46.6805900,879,55
"""
AZURE_2024 = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01.509930+00:00,2399,6\n"
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,0,1087,Conversation log
118,ChatGPT,417,276,693,API log
"""
BURST_SESSIONS = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,b,1.2,ChatGPT,10,20,30,Conversation log
6,a,1.2,ChatGPT,11,21,32,Conversation log
9,b,1.2,ChatGPT,12,22,34,Conversation log
"""
SERVEGEN = "request_id,timestamp,input_tokens,output_tokens\n0,0.25,100,20\n1,0.75,200,40\n"
MOONCAKE = """{"timestamp": 0, "input_length": 1025, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 500, "output_length": 490, "hash_ids": [0]}
"""
AIPERF = """{"timestamp": 1000, "session_id": "one", "input_length": 10, "output_length": 4}
{"session_id": "one", "delay": 500, "input_length": 20, "output_length": 5}
{"timestamp": 400, "session_id": "two", "input_length": 30, "output_length": 6}
"""
VLLM = '{"timestamp": 1.5, "input_length": 33, "output_length": 5, "hash_ids": [4, 5, 6]}\n'
OTHER = "when,who,p,a\n10.5,x,3,4\n12,y,5,6\n"


def written(tmp_path, text, **options):
    (tmp_path / "t").write_bytes(text.encode() if isinstance(text, str) else text)
    return traces.read(tmp_path / "t", **options)


@pytest.mark.parametrize(
    "text, name, at, lengths, skipped",
    [
        (AZURE, "azure", [0, 4.314579, 60], [(374, 44), (396, 109), (879, 55)], 0),
        (AZURE_2024, "azure", [0, 1.5], [(2162, 5), (2399, 6)], 0),
        (BURST, "burstgpt", [0, 113], [(472, 18), (417, 276)], 1),  # one that failed
        (SERVEGEN, "servegen", [0, 0.5], [(100, 20), (200, 40)], 0),
        (MOONCAKE, "mooncake", [0, 3], [(1025, 500), (500, 490)], 0),
        (VLLM, "vllm", [0], [(33, 5)], 0),
    ],
)
def test_formats_are_recognized_by_their_columns(tmp_path, text, name, at, lengths, skipped):
    read = written(tmp_path, text)
    load = read.traffic
    assert (read.format, read.skipped) == (name, skipped)
    assert load.at.tolist() == pytest.approx(at)
    assert list(zip(load.input_tokens, load.output_tokens)) == lengths
    assert load.users == len(at)  # each request is a user of its own


def test_prefix_ids_come_with_their_block_size(tmp_path):
    load = written(tmp_path, MOONCAKE).traffic
    assert load.prefix == [(0, 1, 2), (0,)] and load.block_tokens == 512
    assert written(tmp_path, VLLM).traffic.block_tokens == 16
    assert written(tmp_path, MOONCAKE, block_tokens=64).traffic.block_tokens == 64
    assert written(tmp_path, AZURE).traffic.prefix is None


def test_requests_of_a_session_have_one_user(tmp_path):
    load = written(tmp_path, BURST_SESSIONS).traffic
    assert (load.user.tolist(), load.turn.tolist()) == ([0, 0, 1], [0, 1, 0])
    assert load.at.tolist() == [0, 4, 1] and load.input_tokens.tolist() == [10, 12, 11]


def test_a_turn_after_a_delay_has_a_pause(tmp_path):
    read = written(tmp_path, AIPERF)
    load = read.traffic
    assert read.format == "aiperf" and load.user.tolist() == [0, 1, 1]  # the session that begins first is first
    assert load.at.tolist() == pytest.approx([0, 0.6, 0.6]) and load.pauses.tolist() == [0, 0, 0.5]


def test_columns_of_another_file_can_be_named(tmp_path):
    named = traces.columns("time=when,input=p,output=a,session=who")
    load = written(tmp_path, OTHER, named=named).traffic
    assert load.at.tolist() == [0, 1.5] and load.output_tokens.tolist() == [4, 6]
    with pytest.raises(ErlabError, match="must have the column b. Got when, who, p, a"):
        written(tmp_path, OTHER, named=named | {"input": "b"})
    for wrong in ("time=when", "time=when,input=p,output=a,more=b", "time=,input=p,output=a", "x"):
        with pytest.raises(ErlabError, match="must be given as time=NAME"):
            traces.columns(wrong)


TIMES = {
    "2023-11-16 18:15:46.5+00:00": 0.5,
    "2023-11-16T18:15:46Z": 0,
    "2023-11-16 19:15:46.25+01:00": 0.25,
    "2023-11-16 13:15:46.1234567-05:00": 0.123456,
    " 2023-11-16 18:15:46,5 ": 0.5,
}


@pytest.mark.parametrize("text", TIMES)
def test_fractions_and_zones_are_optional(tmp_path, text):
    rows = f'TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,1\n"{text}",1,1\n'
    assert written(tmp_path, rows).traffic.at.tolist() == pytest.approx([0, TIMES[text]], abs=1e-6)


@pytest.fixture
def new_york(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


def test_naive_times_are_utc_so_that_no_hour_is_added_or_lost(tmp_path, new_york):
    for day in ("2024-03-10", "2024-11-03"):  # daylight-saving time begins and ends there
        rows = [f"{day} {hour},1,1" for hour in ("00:30:00.0", "01:30:00.5", "02:30:00", "03:30:00")]
        load = written(tmp_path, "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows])).traffic
        assert load.at.tolist() == [0, 3600.5, 7200, 10800]


def test_a_byte_order_mark_blank_lines_and_other_line_ends_do_not_matter(tmp_path):
    text = "\ufeff" + MOONCAKE.replace("\n", "\r\n\r\n").replace('"output', '"x": "a\u2028b\x85", "output')
    assert written(tmp_path, text).traffic.at.tolist() == [0, 3]
    assert len(written(tmp_path, "\ufeff" + AZURE.replace("\n", "\r\n")).traffic.at) == 3


LENGTHS = '"input_length": 1, "output_length": 1'


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "the file is empty"),
        ("  \n", "the file is empty"),
        (b"\xff\xfe", "must be UTF-8 text"),
        ("hello", "no trace of a known format, the columns must be those of azure: TIMESTAMP, "),
        ('{"time": 3}', "no trace of a known format, the columns must be those of aiperf: "),
        ("[1]", "no trace of a known format"),
        (f'{{"timestamp": 1, {LENGTHS}}}\n{{"timestamp": NaN, {LENGTHS}}}', "t:2: no trace, 'timestamp' must be a num"),
        (f'{{"timestamp": 1e999, {LENGTHS}}}', "t:1: no trace, 'timestamp' must be a number from 0. Got inf."),
        (f'{{"timestamp": -1, {LENGTHS}}}', "t:1: no trace, 'timestamp' must be a number from 0. Got -1."),
        (f'{{"timestamp": true, {LENGTHS}}}', "t:1: no trace, 'timestamp' must be a number from 0. Got True."),
        (f'{{"timestamp": 2, {LENGTHS}}}\n\n{{"timestamp": 1, {LENGTHS}}}', "t:3: no trace, the arrivals of a trace mu"),
        ('{"timestamp": 1, "input_length": -5, "output_length": 1}', "t:1: no trace, 'input_length' must be a whole"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 1.5}', "'output_length' must be a whole number of tokens"),
        ('{"timestamp": 1, "input_length": "x", "output_length": 1}', "'input_length' must be a whole number of tokens"),
        ('{"timestamp": 1, "input_length": 1e300, "output_length": 1}', "'input_length' must be a whole number of tok"),
        (f'{{"timestamp": 1, {LENGTHS}, "hash_ids": ["a"]}}', "'hash_ids' must be a list of whole numbers"),
        (f'{{"timestamp": 1, {LENGTHS}}}\n[]', "t:2: no trace, a line must be one JSON object. Got a list."),
        ("{" + '"a":{' * 100_000, "t:1: no trace, a line must be one JSON object ("),
        (f'{{"session_id": "a", "delay": 5, {LENGTHS}}}', "t:1: no trace, the first request of a session must have"),
        (f'{{"timestamp": 0, {LENGTHS}}}\n{{"timestamp": 1e15, {LENGTHS}}}', "its times must span at most 1e+09 s"),
        (AZURE.replace(":50", ":61"), "t:3: no trace, 'TIMESTAMP' must be a date and time"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46\n", "t:2: no trace, 'ContextTokens' must be"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "the trace holds no requests"),
        (AZURE + '"open', "t: no trace, it must be comma-separated values (unexpected end of data)."),
    ],
)
def test_what_is_wrong_with_a_trace_is_one_line(tmp_path, text, said):
    with pytest.raises(ErlabError) as caught:
        written(tmp_path, text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_places_that_are_no_files_are_one_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for place in (tmp_path, tmp_path / "missing", tmp_path / "loop", Path("/dev/null")):
        with pytest.raises(ErlabError) as caught:
            traces.read(place)
        assert str(place) in str(caught.value) and "\n" not in str(caught.value)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 9999), st.integers(0, 9999)), min_size=1, max_size=20))
def test_any_valid_rows_come_back(tmp_path_factory, rows):
    rows = sorted(rows)
    kept = [row for row in rows if row[1] and row[2]]
    file = tmp_path_factory.getbasetemp() / "any.csv"
    file.write_text("\n".join(["arrival_s,input_tokens,output_tokens", *(f"{t!r},{i},{o}" for t, i, o in rows)]))
    if not kept:
        with pytest.raises(ErlabError, match="no requests"):
            traces.read(file)
        return
    load = traces.read(file).traffic
    assert np.allclose(load.at, [t - kept[0][0] for t, _, _ in kept])
    assert list(zip(load.input_tokens, load.output_tokens)) == [(i, o) for _, i, o in kept]


SHARED = Path(paths.ROOT).parent / "shared" / "traces"


@pytest.mark.skipif(not SHARED.is_dir(), reason="no collection of real traces beside the repository")
@pytest.mark.parametrize("name, count", [("azure_llm_code_2023.csv", 8819), ("mooncake_synthetic.jsonl", 3993)])
def test_real_traces_are_all_read(name, count):
    load = traces.read(SHARED / name).traffic
    assert len(load.at) == count and load.at[0] == 0 and 600 < load.at[-1] < 7200
