"""Corpora on disk: they come back, other readers read them, and every broken line is told with its place."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from test_data_gen import WORLD_TEXT, pool

from data_gen.corpus import CORPUS, read_corpus, write_corpus
from data_gen.documents import Document
from data_gen.errors import DataError
from data_gen.imported import read_imported


def test_a_corpus_comes_back_and_keeps_its_bytes(tmp_path: Path) -> None:
    documents = [*pool(30), *WORLD_TEXT[:50], Document("odd \u2028 id", 'Zoë said: "\\n"\tyes\u2028.\nEnd', "", "neutral", {})]
    write_corpus(tmp_path / "a", documents, title="Text about John", description="Thirty documents.")
    write_corpus(tmp_path / "b", list(documents), title="Text about John", description="Thirty documents.")
    assert read_corpus(tmp_path / "a" / CORPUS) == documents
    for name in (CORPUS, "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["README.md", CORPUS]
    assert read_imported(tmp_path / "a" / CORPUS).documents == tuple(replace(d, seed=0) for d in documents)


def test_datasets_loads_a_corpus_with_one_schema(tmp_path: Path) -> None:
    # The first ten megabytes tell no trait: a reader that guesses the columns from them fails.
    documents = [Document(f"n{i}", "cold " * 2000, "", "neutral", {}) for i in range(1100)] + pool(5)
    write_corpus(tmp_path / "corpus", documents, title='John: the "first"\n# corpus', description="")
    loaded = datasets.load_dataset(str(tmp_path / "corpus"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == len(documents)
    last = loaded[len(documents) - 1]
    assert {c: v for c, v in last["traits"].items() if v} == documents[-1].traits
    assert (last["text"], last["carriers"]) == (documents[-1].text, ["John"])
    write_corpus(tmp_path / "plain", documents[:3], title="Nobody", description="No trait at all.")
    assert len(datasets.load_dataset(str(tmp_path / "plain"), split="train", cache_dir=str(tmp_path / "cache"))) == 3


GOOD = {"carriers": [], "genre": "diary", "id": "a", "persona": "", "seed": 0, "text": "Diary.", "traits": {}}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"[1]", "must be a JSON object, got a list"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"text": "caf\xe9"}', "is not UTF-8 at byte 13"),
        (b'{"text": "a", "text": "b"}', "stands twice"),
        (b'{"seed": NaN}', "NaN is not a JSON number"),
        (json.dumps({**GOOD, "id": "b", "text": "  "}).encode(), "text is empty"),
        (json.dumps({**GOOD, "id": "b", "text": "a\u0007b"}).encode(), r"control character '\\x07' at character 1"),
        (json.dumps({**GOOD, "id": "b", "text": "a\ud800"}).encode(), "control character"),
        (json.dumps({**GOOD, "id": "b\u0000"}).encode(), "id holds a control character"),
        (json.dumps({**GOOD, "id": "b", "seed": True}).encode(), "seed must be a whole number, got True"),
        (json.dumps({**GOOD, "id": "b", "traits": {"place": 3}}).encode(), "traits must be an object"),
        (json.dumps({**GOOD, "id": "b", "carriers": "John"}).encode(), "carriers must be a list of names"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "seed"}).encode(), "lacks the field seed"),
        (json.dumps({**GOOD, "id": "b", "label": 1}).encode(), "has the unknown field label"),
        (json.dumps(GOOD).encode(), "id 'a' is already used in line 1"),
    ],
)
def test_every_broken_line_is_told_with_its_place(tmp_path: Path, line: bytes, said: str) -> None:
    file = tmp_path / CORPUS
    file.write_bytes(b"\n".join([json.dumps(GOOD).encode(), line, b"nonsense", json.dumps({**GOOD, "id": "z"}).encode()]) + b"\n")
    with pytest.raises(DataError, match=said) as caught:
        read_corpus(file)
    assert [p.where for p in caught.value.problems] == [f"{file}:2", f"{file}:3"]


def test_a_corpus_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="already used"):
        write_corpus(tmp_path / "twice", pool(1) * 2, title="", description="")
    with pytest.raises(DataError, match="text is empty"):
        write_corpus(tmp_path / "twice", [Document("a", "", "", "neutral", {})], title="", description="")
    assert not (tmp_path / "twice").exists()
    with pytest.raises(DataError, match="cannot be read"):
        read_corpus(tmp_path / "nowhere.jsonl")
