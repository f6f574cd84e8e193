"""Rows that are appended as they come are all there after a kill, but for the one that was being written."""

from pathlib import Path

import pytest

from persona_lab.errors import CorpusError, EnvironmentFault
from persona_lab.experiment.instruments.em.journal import RowJournal


def test_rows_are_there_at_once_and_for_whoever_comes_later(tmp_path: Path):
    file = tmp_path / "deep" / "rows.jsonl"
    with RowJournal(file) as journal:
        journal.append([{"n": 1, "text": "a\nb"}, {"n": 2, "text": "\ud800"}])
        assert file.read_bytes().count(b"\n") == 2
    with RowJournal(file) as journal:
        assert [row["n"] for row in journal.rows] == [1, 2]
        assert journal.rows[0]["text"] == "a\nb"


def test_whatever_part_of_the_last_line_a_kill_left_is_taken_off(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    with RowJournal(file) as journal:
        journal.append([{"n": 1}, {"n": 2}])
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        with RowJournal(file) as journal:
            kept = [row["n"] for row in journal.rows]
            assert kept == [1, 2][: (length >= first) + (length == len(whole))]
            journal.append([{"n": 3}])
        with RowJournal(file) as journal:
            assert [row["n"] for row in journal.rows] == [*kept, 3]


def test_a_line_that_is_broken_in_the_middle_is_an_error_and_stays(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(CorpusError, match=r"rows\.jsonl:2"), RowJournal(file):
        pass
    assert file.read_bytes().count(b"\n") == 3


def test_one_process_at_a_time_appends(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    with RowJournal(file), pytest.raises(EnvironmentFault, match="another process") as error, RowJournal(file):
        pass
    assert error.value.problems[0].code == "PL5107"
    with RowJournal(file) as journal:
        journal.append([{"n": 1}])


def test_what_is_no_json_is_not_written(tmp_path: Path):
    with RowJournal(tmp_path / "rows.jsonl") as journal:
        with pytest.raises(ValueError, match="Out of range"):
            journal.append([{"n": 1}, {"n": float("nan")}])
        assert journal.path.read_bytes() == b""
        assert journal.rows == []
