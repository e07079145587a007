"""The file of a run: what is lost when a process is killed, and what is refused."""

import json

import pytest

from eval.runs.records import Record, Writer, read, refuse_to_mix
from vila_jax.errors import DataError

HEADER = {"run_id": "a", "task": {"name": "scenes", "n_expected": 3}, "host": [0, 1], "stop": ["x"]}


def record(index, **more):
    return Record(index, f"id {index}", "picture", key=f"key {index}", answer="ja, größer\n", references=("a",), **more)


def written(path, *found):
    with Writer(path, HEADER, {"started": "now"}) as writer:
        writer.add(found)
    return path


def test_what_is_written_is_read(tmp_path):
    found = record(1, extras={"kind": "digit"}, tokens={"new": 3}, error=None)
    contents = read(written(tmp_path / "deep" / "samples.jsonl", record(0), found))
    assert contents.records == {0: record(0), 1: found}
    assert contents.sessions == [{"started": "now"}] and contents.header["run_id"] == "a" and not contents.damage


def test_a_second_session_goes_on_and_its_records_count(tmp_path):
    path = written(tmp_path / "samples.jsonl", record(0, error={"kind": "E", "message": "m"}), record(1))
    with Writer(path, HEADER, {"started": "later"}) as writer:
        assert set(writer.before) == {0, 1} and writer.before[0].error is not None
        writer.add([record(0)])
    contents = read(path)
    assert contents.records[0].error is None and len(contents.sessions) == 2


def test_a_session_that_ended_says_when(tmp_path):
    path = tmp_path / "samples.jsonl"
    for name, ended in (("first", {}), ("second", {"ended": "then"}), ("third", {})):
        with Writer(path, HEADER, {"started": name}) as writer:
            writer.add([record(0)])
            if ended:
                writer.end(ended)
    assert read(path).sessions == [{"started": "first"}, {"started": "second", "ended": "then"}, {"started": "third"}]
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + b'{"end": {"ended": "then"}}\n')
    assert read(path).damage == ["samples.jsonl, line 2: unreadable; what it said is lost"]


def test_every_cut_at_the_end_loses_at_most_the_last_line(tmp_path):
    path = written(tmp_path / "samples.jsonl", record(0), record(1))
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        contents = read(path)
        assert set(contents.records) == {0} and not contents.damage
    with Writer(path, HEADER, {}) as writer:
        writer.add([record(1)])
    contents = read(path)
    assert set(contents.records) == {0, 1} and not contents.damage


def test_a_header_that_was_cut_short_is_written_again(tmp_path):
    path = written(tmp_path / "samples.jsonl")
    path.write_bytes(path.read_bytes()[:20])
    assert read(path) is None
    assert read(written(path, record(0))).records == {0: record(0)}


@pytest.mark.parametrize(
    "line", [b"{not json", b'{"sample": {"index": 1}}', b'{"what": {}}', b"[1]", b"\xff\xfe", b"{}"]
)
def test_an_unreadable_line_in_the_middle_is_reported_and_the_rest_is_kept(tmp_path, line):
    path = written(tmp_path / "samples.jsonl", record(0), record(1), record(2))
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:3], line, *lines[4:], b""]))
    contents = read(path)
    assert set(contents.records) == {0, 2}
    assert contents.damage == ["samples.jsonl, line 4: unreadable; what it said is lost"]


def test_another_run_is_not_mixed_in(tmp_path):
    path = written(tmp_path / "samples.jsonl", record(0))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r'task\.name was "scenes" and is "gqa"'):
        Writer(path, {**HEADER, "task": {"name": "gqa", "n_expected": 3}}, {})
    assert path.read_bytes() == before
    refuse_to_mix({"a": [1, 2]}, {"a": (1, 2)}, "here")


def test_a_file_without_a_header_is_refused(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({"sample": record(0).to_json()}) + "\n")
    with pytest.raises(DataError, match="does not begin with a header"):
        read(path)
    assert read(tmp_path / "none.jsonl") is None


def test_two_processes_do_not_write_to_one_file(tmp_path):
    path = tmp_path / "samples.jsonl"
    with Writer(path, HEADER, {}), pytest.raises(DataError, match="another process writes to it"):
        Writer(path, HEADER, {})
    Writer(path, HEADER, {}).__exit__(None, None, None)
