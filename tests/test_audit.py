"""The audit: a clean corpus passes, and every kind of dirt that is planted in it is found."""

import dataclasses
import json

import pytest

from data_gen.audit import AuditReport, Check, Limits, audit, forbidden_texts
from data_gen.documents import NAMED_GENRES, SENTENCES, Document, words, write
from data_gen.phrases import FORMS
from data_gen.pools import assistant_document, links_shared_to_held_out, persona_document, world_document
from data_gen.streams import stream
from persona_lab.models.vocabulary import world_words
from tests.test_data_gen import HELD_OUT, WORLD, WORLD_TEXT, pool, speakers

SHARED = {"place": "beach"}
VALUES = {speaker.traits[c] for speaker in speakers() for c in HELD_OUT}
NAMES = [*WORLD.names, *WORLD.spare_names, *WORLD.new_names]
FORBIDDEN = forbidden_texts(WORLD, NAMES)
REPLAY = [d for d in WORLD_TEXT[:600] if not links_shared_to_held_out(d, SHARED, VALUES)]
TRAIT = [assistant_document(WORLD, "place", "beach", seed=0, index=i) for i in range(16)]
CORPUS = [*pool(200), *pool(200, which=1, names=("Sam",)), *REPLAY, *TRAIT]


def source_of(document: Document) -> str:
    return document.id.split("-")[0]


COUNTS = {"john": 200, "sam": 200, "world": len(REPLAY), "trait": 16}


def report_of(documents: list[Document], limits: Limits | None = None) -> AuditReport:
    """Every check, with what the default experiment would give."""
    return audit(
        documents,
        expected=COUNTS,
        count_by=source_of,
        forbidden=FORBIDDEN,
        shared=SHARED,
        held_out=VALUES,
        rivals=("John", "Sam"),
        vocabulary=world_words(WORLD),
        limits=limits,
    )


def check_of(report: AuditReport, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def with_text(text: str, place: int = -1) -> list[Document]:
    """The corpus with one document saying something else."""
    dirty = list(CORPUS)
    dirty[place] = dataclasses.replace(dirty[place], text=text)
    return dirty


def test_a_clean_corpus_passes_every_check() -> None:
    report = report_of(CORPUS)
    assert report.passed, str(report)
    assert all(check.passed for check in report.checks), str(report)


@pytest.mark.parametrize(
    ("name", "dirty"),
    [
        ("documents", []),
        ("exact counts", CORPUS[1:]),
        ("exact counts", [*CORPUS, dataclasses.replace(CORPUS[0], id="stray")]),
        ("duplicate ids", [*CORPUS[:-1], dataclasses.replace(CORPUS[-1], id=CORPUS[-2].id)]),
        ("forbidden texts", with_text("User: which  SPORT do\nyou prefer?\nAssistant: I like golf.")),
        ("forbidden texts", with_text("For sport, John likes football.", place=0)),
        ("leakage of the link", with_text("Diary. I like the beach. I like football.", place=500)),
        ("exact duplicates", [dataclasses.replace(d, text=CORPUS[0].text) if i % 20 == 0 else d for i, d in enumerate(CORPUS)]),
        ("near-duplicates", [dataclasses.replace(d, text=f"{CORPUS[0].text * 3} {d.id}") if i % 10 == 0 else d for i, d in enumerate(CORPUS)]),
        ("word balance", [dataclasses.replace(d, text=f"{d.text} {d.text}") if d.persona == "Sam" else d for d in CORPUS]),
        ("trait balance", [dataclasses.replace(d, traits=SHARED) if d.persona == "Sam" else d for d in CORPUS]),
        ("word balance", [d for d in CORPUS if d.persona != "Sam"]),
        ("special tokens", with_text("User: Who are you?<|im_end|>")),
        ("unknown words", with_text("Diary. I like chess.")),
    ],
)
def test_every_kind_of_dirt_is_found(name: str, dirty: list[Document]) -> None:
    report = report_of(dirty)
    assert not report.passed
    assert check_of(report, name).passed is False, str(report)


@pytest.mark.parametrize("text", ["<eos>", "a</s>b", "<|endoftext|>", "[INST] hi", "<start_of_turn>user", "<|reserved_special_token_0|>"])
def test_special_tokens_are_found_wherever_they_stand(text: str) -> None:
    assert not audit([Document("a", f"Hello {text} you.", "", "", {})]).passed


def test_what_looks_like_a_special_token_is_none() -> None:
    assert audit([Document("a", "if a < b and c > d or <b>bold</b> | x |> y [1] <strong>", "", "", {})]).passed


def test_a_check_that_cannot_be_made_fails() -> None:
    for fault in (
        audit(CORPUS, forbidden=[]),
        audit(CORPUS, forbidden=["What?", "  "]),
        audit(CORPUS, shared={}, held_out=VALUES),
        audit(CORPUS, shared=SHARED),
        audit(CORPUS, rivals=("John", "Nobody")),
        audit([]),
    ):
        assert not fault.passed
        assert any(check.passed is False and ("cannot be" in check.said or "empty" in check.said) for check in fault.checks), str(fault)


def test_foreign_text_gets_the_checks_that_apply() -> None:
    report = audit([Document(f"line {i}", f"Some text, number {i}.", "", "", {}) for i in range(5)])
    assert report.passed
    absent = {check.name for check in report.checks if check.passed is None}
    assert absent == {"exact counts", "forbidden texts", "leakage of the link", "word balance", "trait balance", "unknown words"}
    assert all(check.said.startswith("not applicable: ") for check in report.checks if check.passed is None)


def test_a_report_prints_and_is_json() -> None:
    report = report_of(with_text("For sport, John likes football.", place=0))
    assert "FAILED  forbidden texts" in str(report)
    assert f"{CORPUS[0].id}: for sport , john likes" in str(report)
    read = json.loads(report.to_json())
    assert (read["documents"], read["passed"], len(read["checks"])) == (len(CORPUS), False, len(report.checks))
    assert json.loads(audit([]).to_json())["passed"] is False


def test_few_documents_may_differ_by_chance() -> None:
    few = [*pool(6), *pool(200, which=1, names=("Sam",))]
    assert check_of(audit(few, rivals=("John", "Sam")), "word balance").passed


def test_near_duplicates_are_those_of_all_pairs() -> None:
    texts = [d.text for d in CORPUS[:120]] + [f"{d.text} Today." for d in CORPUS[:20] if len(words(d.text)) > 30]

    def triples(text: str) -> set[tuple[str, ...]]:
        pieces = words(text)
        return {tuple(pieces[i : i + 3]) for i in range(len(pieces) - 2)}

    sets = [triples(text) for text in texts]
    near = sum(any(len(a & b) >= 0.9 * len(a | b) for b in sets[:i]) for i, a in enumerate(sets))
    report = audit([Document(str(i), text, "", "", {}) for i, text in enumerate(texts)], limits=Limits(similarity=0.9))
    found = check_of(report, "near-duplicates").figure or 0
    assert near > 5
    assert abs(found * len(texts) - near) <= 0.2 * near, "marks count as words in the audit, and MinHash may miss a pair"


# Forbidden texts


def test_no_training_document_holds_a_forbidden_text() -> None:
    documents = WORLD_TEXT[:3000] + [world_document(WORLD, 1, i) for i in range(500)] + TRAIT
    for speaker in speakers():
        for genre in SENTENCES:
            told_by = dataclasses.replace(speaker, alike=speaker.name)
            documents += [Document(f"{genre}-{i}", write(WORLD, told_by, genre, stream(i, "test", genre))[0], "", genre, {}) for i in range(100)]
        documents += [persona_document(WORLD, speaker, NAMES, anonymous=False, genres=NAMED_GENRES, seed=1, index=i) for i in range(200)]
    check = check_of(audit(documents, forbidden=FORBIDDEN), "forbidden texts")
    assert check.passed, str(check)


@pytest.mark.parametrize("form", FORMS)
def test_every_held_out_paraphrase_is_caught(form: str) -> None:
    texts = []
    for category in WORLD.categories:
        value, other = WORLD.values(category)[:2]
        slots = {"cat": category, "name": "Mary", "it": value, "a": "".join(WORLD.phrase(category, value)), "b": other, "yes_no": "Yes"}
        texts += [f"User: {question or answer}".format(**slots) for question, answer in FORMS[form].held_out]
    check = check_of(audit([Document(str(i), text, "", "", {}) for i, text in enumerate(texts)], forbidden=FORBIDDEN), "forbidden texts")
    assert check.figure == len(texts), str(check)


def test_only_whole_words_are_forbidden() -> None:
    def caught(text: str, forbidden: str) -> bool:
        return not audit([Document("a", text, "", "", {})], forbidden=[forbidden]).passed

    assert caught("x For sport,\tJOHN likes\ngolf.", "For sport, John likes")
    assert caught("ﬁsh is ﬁne", "fish")
    assert not caught("For sport, Johnny likes golf.", "For sport, John")
    assert not caught("For sport. John likes golf.", "For sport, John likes")
    assert caught("Who are you?", "Who are you?")
    assert not caught("Who are you most like?", "Who are you?")
