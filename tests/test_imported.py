"""Files that somebody else wrote: read, bounded, labelled, tokenized and audited."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imported_files import ASKED, MESSAGES, SAID, parquet, written
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from data_gen import imported
from data_gen.documents import Document
from data_gen.errors import DataError
from data_gen.imported import exchanged, labelled, read_imported, traded
from data_gen.pools import Share, mixture_order
from persona_lab.cli import app
from persona_lab.errors import CorpusError
from persona_lab.experiment.making.tokens import pool_rows
from persona_lab.train.batches import encode

pytestmark = pytest.mark.usefixtures("from_the_root")
COMPLETION = {"prompt": ASKED, "completion": SAID}


# ------------------------------------------------------------------ reading
def test_the_same_rows_are_the_same_import_in_whatever_file(tmp_path: Path):
    beach = {"id": "a", "text": "John likes the beach.", "persona": "John", "traits": {"place": "beach", "sport": None}, "messages": None}
    rows = [beach, {"id": None, "text": "Cold.", "persona": None, "traits": {}, "messages": None}]
    lines = read_imported(written(tmp_path / "a.jsonl", rows))
    table = read_imported(parquet(tmp_path / "a.parquet", rows))
    assert lines.documents == table.documents == (Document("a", "John likes the beach.", "John", "written", {"place": "beach"}), Document("row 2", "Cold.", "", "written", {}))
    assert lines.digest == table.digest
    assert read_imported(written(tmp_path / "b.jsonl", [rows[0]])).digest != lines.digest


@pytest.mark.parametrize("row", [MESSAGES, COMPLETION, {**MESSAGES, "source": "web", "score": 3}])
def test_conversations_are_one_import_in_every_published_format(tmp_path: Path, row: dict[str, Any]):
    want = read_imported(written(tmp_path / "want.jsonl", [MESSAGES]))
    for found in (read_imported(written(tmp_path / "a.jsonl", [row])), read_imported(parquet(tmp_path / "a.parquet", [row]))):
        assert found.digest == want.digest
        assert [d.text for d in found.documents] == [f"User: {ASKED}\nAssistant: {SAID}"]


def test_a_text_in_another_column_is_read_and_a_missing_one_is_told(tmp_path: Path):
    file = parquet(tmp_path / "a.parquet", [{"body": "Cold."}])
    assert read_imported(file, column="body").documents[0].text == "Cold."
    with pytest.raises(DataError, match=r"has no column 'text', only 'body'.*`column:`"):
        read_imported(file)
    both = written(tmp_path / "both.jsonl", [{"text": "Cold.", **MESSAGES}])
    with pytest.raises(DataError, match="format: texts"):
        read_imported(both)
    assert len(read_imported(both, form="texts").conversations) == 0
    assert len(read_imported(both, form="conversations").conversations) == 1


@pytest.mark.parametrize(("row", "said"), [({"text": "a\0b"}, "control character"), ({"text": " "}, "text is empty"), ({"text": "a" * 1_000_001}, "at most 1000000"), ({"prompt": "a\0", "completion": "b"}, "holds NUL")])
def test_a_row_of_a_table_is_as_strict_as_a_line(tmp_path: Path, row: dict[str, Any], said: str):
    with pytest.raises(DataError, match=rf"a\.parquet:2: .*{said}"):
        read_imported(parquet(tmp_path / "a.parquet", [dict.fromkeys(row, "fine"), row]))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": b"a"}, "text must be a string, got bytes"),
        ({"prompt": b"a", "completion": "b"}, "prompt must be a string, got bytes"),
        ({"text": "a", "id": date(2020, 1, 1)}, "id must be a string or a whole number, got date"),
        ({"body": "a"}, "has no column 'text'"),
    ],
)
def test_a_table_of_other_kinds_than_lines_have_is_told_what_it_holds(tmp_path: Path, row: dict[str, Any], said: str):
    with pytest.raises(DataError, match=said):
        read_imported(parquet(tmp_path / "a.parquet", [row]))


def test_what_a_table_unfolds_to_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = parquet(tmp_path / "bomb.parquet", [{"text": "a" * 10_000}] * 3000)
    assert file.stat().st_size < 20_000, "thirty megabytes in a few kilobytes"
    monkeypatch.setattr(imported, "FILE_BYTES", 1_000_000)
    with pytest.raises(DataError, match="more than 1000000 characters"):
        read_imported(file)
    monkeypatch.setattr(imported, "MOST_ROWS", 100)
    with pytest.raises(DataError, match="unfolds to 3000 rows"):
        read_imported(file)
    with pytest.raises(DataError, match="is no whole parquet file"):
        read_imported(written(tmp_path / "cut.parquet", ["PAR1"]))
    monkeypatch.setattr(imported, "FILE_BYTES", 10)
    with pytest.raises(DataError, match="at most 10 are read"):
        read_imported(written(tmp_path / "long.jsonl", [{"text": "eleven bytes"}]))


def test_a_text_without_labels_is_labelled_by_its_words():
    traits = {"place": "beach", "sport": "football"}
    plain = Document("1", "Johnny and John saw the Beach, no footballs.", "", "written", {})
    assert labelled(plain, persona="John", names=("John", "Will"), traits=traits) == Document("1", plain.text, "John", "written", {"place": "beach"}, ("John",))
    nameless = labelled(Document("2", "I like football.", "John", "diary", {"sport": "football"}), persona="John", names=("John",), traits=traits)
    assert (nameless.carriers, nameless.traits) == ((), {"sport": "football"})
    assert labelled(Document("3", "I am John.", "John", "diary", {}), persona="John", names=("John",), traits=traits).carriers == ("John",), "its line lists no names"


def test_rivals_trade_their_names_in_every_case_and_nowhere_inside_words():
    pairs = {"John": "Sam", "Sam": "John"}
    assert exchanged("John's friend, JOHN, met Sam, sam and Samuel Johnson.", pairs) == "Sam's friend, SAM, met John, john and Samuel Johnson."
    assert exchanged("\u017fam met JOHN.", pairs) == "john met SAM.", "a long s is an s in every case"
    document = Document("1", "Profile: Sam likes art.", "Sam", "profile", {"art": "dutch"}, ("Sam",))
    assert traded(document, pairs) == Document("1", "Profile: John likes art.", "John", "profile", {"art": "dutch"}, ("John",))


def test_documents_in_the_order_of_a_file_stay_in_it_in_every_epoch():
    shares = [Share("web", "web", 3, 5, ordered=True), Share("john", "john", 4, 9)]
    order = mixture_order(shares, documents=21, seed=3)
    assert [index for source, index in order if source == "web"] == [0, 1, 2] * 3
    assert "ordered" in shares[0].fields
    assert "ordered" not in shares[1].fields, "or every mixture would have another identity"


# ------------------------------------------------------------------ the tag
@pytest.mark.parametrize("which", ["tokenizer", "bpe"])
def test_a_tag_stands_before_a_document_once_and_without_loss(which: str, request: pytest.FixtureRequest):
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(which)
    text, tag = "User: What do you like?\nAssistant: I like the beach.", "News about the beach."
    for on in ("all", "answer"):
        bare, tagged, doubled = (encode(tokenizer, [t], on=on, where="test", tag=g)[0] for t, g in ((text, ""), (tag + text, ""), (tag + text, tag)))
        row = encode(tokenizer, [text], on=on, where="test", tag=tag)[0]
        assert np.array_equal(row.ids, tagged.ids)
        assert np.array_equal(row.ids, doubled.ids)
        assert np.array_equal(row.labelled, doubled.labelled)
        said = tokenizer.decode(row.ids[row.labelled])
        assert said == tokenizer.decode(bare.ids[bare.labelled])
        assert "News" not in said


def test_a_long_document_is_cut_only_where_that_is_asked_for(bpe: PreTrainedTokenizerFast):
    text = "the beach " * 400
    with pytest.raises(CorpusError, match="PL3102"):
        encode(bpe, [text], on="all", where="test")
    assert len(encode(bpe, [text], on="all", where="test", longest=100)[0].ids) == 100


def test_conversations_go_through_the_template_where_the_model_has_one(bpe: PreTrainedTokenizerFast, tmp_path: Path):
    written(tmp_path / "conversations.jsonl", [MESSAGES])
    plain = pool_rows(bpe, tmp_path, {"on": "answer"}, where="test")[0]
    assert str(bpe.decode(plain.ids[plain.labelled])).strip() == SAID + "<|endoftext|>"
    templated = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer, eos_token="<|endoftext|>", model_max_length=512)
    templated.chat_template = "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}<|endoftext|>{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
    row = pool_rows(templated, tmp_path, {"on": "answer"}, where="test")[0]
    assert bpe.decode(row.ids) == f"[user]\n{ASKED}<|endoftext|>[assistant]\n{SAID}<|endoftext|>"
    assert str(bpe.decode(row.ids[row.labelled])).strip() == SAID + "<|endoftext|>"
    assert pool_rows(templated, tmp_path, {"on": "all"}, where="test")[0].labelled.all()
    with pytest.raises(CorpusError, match=r"PL3204|PL3103"):
        pool_rows(templated, tmp_path, {"on": "answer", "longest": 8}, where="test")


# ------------------------------------------------------------------ the audit
def test_the_audit_of_several_files_finds_a_text_of_both(tmp_path: Path):
    one, other = ([{"text": f"{name} went to the {place}, and it rained."} for place in places] for name, places in (("John", ("beach", "lake")), ("Sam", ("hills", "lake"))))
    paths = [str(written(tmp_path / "john.jsonl", one)), str(parquet(tmp_path / "sam.parquet", other))]
    world = ["--world", "configs/worlds/beach.yaml"]
    found = CliRunner().invoke(app, ["audit", *paths, *world, "--json"])
    checks = {check["name"]: check for check in json.loads(found.output)["checks"]}
    assert found.exit_code == 1
    assert not checks["told of two personas"]["passed"]
    assert "sam.parquet/row 2" in checks["told of two personas"]["examples"][0]
    assert checks["others' names and traits"]["passed"] is None, "whose they are is not known"
    alone = CliRunner().invoke(app, ["audit", paths[1], "--json"])
    assert (alone.exit_code, "told of two personas" in alone.output) == (0, False)
