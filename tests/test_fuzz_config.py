"""Whatever bytes, values or words come in, a result or a LabError comes out, and nothing else."""

import io
import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from test_config import problems_of

from data_gen.corpus import read_corpus
from data_gen.errors import DataError
from data_gen.imported import read_imported
from data_gen.world import Slug
from persona_lab.cli import main
from persona_lab.config import load_persona, load_world
from persona_lab.errors import ConfigError, ModelError, Problem, printable, quoted
from persona_lab.models.inspection import read_json, tensor_shapes

CONFIG = ROOT / "tests" / "malformed" / "good.yaml"
GOOD = CONFIG.read_text()
RAW = yaml.safe_load(GOOD.replace("3e-3", "3.0e-3").replace("on: answer", "'on': answer"))
FIX = re.compile(r"\b(Use|Did you mean|Remove)\b")
FUZZ = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
BYTES = st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
TEXT = st.text(st.characters(), max_size=60)


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """What `main` does to signals ends with the test."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def put(folder: Path, data: bytes, name: str = "file") -> Path:
    file = folder / name
    file.write_bytes(data)
    return file


# Experiments


@FUZZ
@given(BYTES)
def test_config_bytes(tmp_path: Path, data: bytes) -> None:
    problems_of(put(tmp_path, data, "config.yaml"))


@FUZZ
@given(st.text(alphabet="abc:-[]{}#&*!|>'\"%@`, \n\t?<~0123.e_\\u", max_size=60), st.integers(0, len(GOOD)))
def test_config_with_other_text_inside(tmp_path: Path, text: str, at: int) -> None:
    problems_of(put(tmp_path, (GOOD[:at] + text + GOOD[at:]).encode(), "config.yaml"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["none", "beach", "injection", "john", "all-linear", "", "../x", "\u202e", "é"]) | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(["john", "steps", "kind", "ln_ratio", "order", "x"]), inside, max_size=3),
    max_leaves=5,
)  # fmt: skip


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, child in inside for deeper in places(child, (*path, key)))][0 if path else 1 :]


@FUZZ
@given(st.sampled_from(places(RAW)), VALUES)
def test_config_with_another_value(tmp_path: Path, path: tuple[Any, ...], value: object) -> None:
    raw = yaml.safe_load(yaml.safe_dump(RAW))
    above = raw
    for step in path[:-1]:
        above = above[step]
    above[path[-1]] = value
    for problem in problems_of(put(tmp_path, yaml.safe_dump(raw).encode(), "config.yaml")):
        assert FIX.search(problem.message), problem


@FUZZ
@given(st.lists(st.text(alphabet="basetgfcorin.=[]{}:, 0123-~\x00\ud800", max_size=24), max_size=4))
def test_overrides(overrides: list[str]) -> None:
    problems_of(CONFIG, *overrides)


# Personas and worlds


@FUZZ
@given(st.sampled_from([("personas/john.yaml", load_persona), ("worlds/beach.yaml", load_world)]), st.data())
def test_persona_and_world_files(tmp_path: Path, source: tuple[str, Any], data: st.DataObject) -> None:
    name, load = source
    raw = yaml.safe_load((ROOT / "configs" / name).read_text())
    path = data.draw(st.sampled_from(places(raw)))
    above = raw
    for step in path[:-1]:
        above = above[step]
    above[path[-1]] = data.draw(VALUES)
    file = put(tmp_path, yaml.safe_dump(raw).encode(), "file.yaml")
    with suppress(ConfigError):
        assert load(file).name


@given(TEXT)
def test_a_slug_stays_in_its_folder(text: str) -> None:
    try:
        slug = TypeAdapter(Slug).validate_python(text)
    except ValidationError:
        return
    assert Path("/root", slug).resolve().parent == Path("/root").resolve()
    assert slug == slug.lower()
    assert slug.isascii()


# Corpora and model folders


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | TEXT, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(TEXT | st.sampled_from(["text", "id", "messages"]), inside, max_size=3), max_leaves=6)  # fmt: skip
LINES = st.lists(JSON.map(lambda value: json.dumps(value).encode()) | BYTES, max_size=5).map(b"\n".join)


@FUZZ
@given(LINES)
def test_corpora(tmp_path: Path, data: bytes) -> None:
    file = put(tmp_path, data)
    for read in (lambda file: read_imported(file).documents, read_corpus):
        with suppress(DataError):
            assert all(document.text.strip() for document in read(file))


@FUZZ
@given(BYTES | st.tuples(st.integers(0, 300), BYTES).map(lambda pair: pair[0].to_bytes(8, "little") + pair[1]))
def test_files_of_a_model_folder(tmp_path: Path, data: bytes) -> None:
    file = put(tmp_path, data)
    for read in (read_json, tensor_shapes):
        with suppress(ModelError):
            assert isinstance(read(file), dict)


# The command line, and the renderer of errors itself


WORDS = st.sampled_from(["plan", "status", "results", "why", "audit", "new", "--json", "--runs", "--format", "--help", "-", "--", "seeds=2", "nowhere.yaml", "hf_abcdefghijklmnopqrstuvwxyz"])


@FUZZ
@given(st.lists(WORDS | TEXT, max_size=4))
def test_command_lines(tmp_path: Path, words: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(tmp_path)
        patch.setattr(sys, "argv", ["persona-lab", *words])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code in (None, 0, 2, 3, 5), err.getvalue()
    assert all(line.startswith("error[PL") and line.isprintable() for line in err.getvalue().splitlines())
    assert "abcdefghijklmnopqrstuvwxyz" not in err.getvalue()
    assert not list(tmp_path.iterdir())


@FUZZ
@given(TEXT, TEXT, st.sampled_from(["sk-abcdefghijklmnop1234", "hf_abcdefghijklmnopqrst", "https://me:word@host/x", "AKIAABCDEFGHIJKLMNOP"]))
def test_what_is_printed(before: str, after: str, secret: str) -> None:
    line = str(Problem("PL1200", f"{before} {secret}", f"{quoted(after)} {secret} {after}"))
    assert line.isprintable()
    assert re.match(r"error\[PL1200\] .+: ", line)
    assert "abcdefghijklm" not in line
    assert "ABCDEFGHIJKLM" not in line
    assert "me:word" not in line
    assert len(quoted(after * 9)) <= 80
    assert printable(printable(before)) == printable(before)
