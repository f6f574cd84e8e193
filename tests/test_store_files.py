"""Files are written whole and the same to the byte, and what is broken in them is refused with its place."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_lab.design import Node, canonical_json
from persona_lab.errors import CorpusError
from persona_lab.store import read_json, read_jsonl, write_json, write_jsonl
from persona_lab.tracking import slug

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists, max_leaves=5)
ROWS = st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One file that is written again and again."""
    return tmp_path_factory.mktemp("json") / "file.json"


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, cut=st.integers(min_value=0))
def test_jsonl_comes_back_equal_and_every_cut_is_seen(path: Path, rows: list[dict], cut: int) -> None:
    write_jsonl(path, rows)
    data = path.read_bytes()
    assert read_jsonl(path) == rows
    write_jsonl(path, [dict(reversed(row.items())) for row in rows])
    assert path.read_bytes() == data
    path.write_bytes(kept := data[: cut % (len(data) + 1)])
    if not kept or kept.endswith(b"\n"):
        assert read_jsonl(path) == rows[: kept.count(b"\n")]
    else:
        with pytest.raises(CorpusError) as caught:
            read_jsonl(path)
        assert [problem.where for problem in caught.value.problems] == [f"{path}:{len(kept.splitlines())}"]


@settings(max_examples=40, deadline=None)
@given(value=VALUES)
def test_json_comes_back_equal(path: Path, value: object) -> None:
    write_json(path, value)
    assert read_json(path) == value


def places_refused(read: Callable[[Path], object], path: Path) -> list[str]:
    try:
        read(path)
    except CorpusError as fault:
        return [problem.where for problem in fault.problems]
    return []


@settings(deadline=None)
@given(data=st.binary(max_size=40) | st.text(alphabet='{}[]",:0eE-.N\n ', max_size=40).map(str.encode))
def test_any_bytes_give_a_value_or_an_error_that_names_the_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for read in (read_json, read_jsonl):
        assert all(where.startswith(f"{path}:") for where in places_refused(read, path))


BROKEN = {
    b'{"a": 1,}': (":1:9", "is not JSON"),
    b'{\n"a": \xff}': (":2", "byte 6 of the line is not UTF-8"),
    b'{"a": 1, "a": 2}': (":1", "'a' stands twice"),
    b'{"a": NaN}': (":1", "NaN is not a finite number"),
    b"[-Infinity]": (":1", "-Infinity is not a finite number"),
    b"[1e999]": (":1", "1e999 is not a finite number"),
    b"[" * 100_000: (":1", "nested too deeply"),
    b"1" * 5000: (":1", "4300 digits"),
    b"\xef\xbb\xbf{}": (":1:1", "BOM"),
    b"": (":1:1", "is not JSON"),
}


@pytest.mark.parametrize("data", BROKEN)
def test_broken_json_is_refused_with_its_place(tmp_path: Path, data: bytes) -> None:
    where, message = BROKEN[data]
    path = tmp_path / "broken.json"
    path.write_bytes(data)
    with pytest.raises(CorpusError) as caught:
        read_json(path)
    assert caught.value.problems[0].where == f"{path}{where}"
    assert message in caught.value.problems[0].message


def test_all_broken_lines_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[1]\r\n{"a": \xff}\n{"b": NaN}\n{"c": 1, "c": 1}\n{"d": 2}\r\n{"e')
    with pytest.raises(CorpusError) as caught:
        read_jsonl(path)
    assert [int(problem.where.split(":")[1]) for problem in caught.value.problems] == [2, 3, 4, 5, 6, 8]
    path.write_bytes(b"x\n" * 5000)
    with pytest.raises(CorpusError, match="4900 more lines are broken"):
        read_jsonl(path)
    with pytest.raises(CorpusError, match=r"PL3501.*absent\.jsonl.*No such file"):
        read_jsonl(tmp_path / "absent.jsonl")


def test_a_refused_value_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [0.1, "é"]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    0.1,\n    "\\u00e9"\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("inf"))
    with pytest.raises(ValueError, match="JSON"):
        write_jsonl(tmp_path / "a.json", [{"a": 1}, {"a": float("nan")}])
    assert read_json(tmp_path / "a.json") == {"a": [0.1, "é"], "b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@settings(max_examples=40)
@given(one=ROWS, other=ROWS)
def test_an_identity_is_the_same_for_equal_fields_and_for_no_others(one: list[dict], other: list[dict]) -> None:
    assert json.loads(canonical_json(one)) == one
    assert (Node("pool", {"rows": one}).id == Node("pool", {"rows": other}).id) == (json.dumps(one) == json.dumps(other))


@settings(max_examples=100)
@given(text=st.text(max_size=300))
def test_a_slug_is_a_name_that_leads_nowhere_else(text: str) -> None:
    name = slug(text)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,120}", name)
    assert slug(name) == name
