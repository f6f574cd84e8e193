"""Documents by a language model, without one: what is read from an answer, what is wrong with a document, what is written next."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from writing_jobs import GRAMMAR, job_of

from data_gen.audit import NearDuplicates
from data_gen.written.asking import Answer, Asker, Request
from data_gen.written.checks import compared, faults
from data_gen.written.pipeline import Piece, Pressroom, Progress
from data_gen.written.quality import airtime_check
from data_gen.written.reading import Unreadable, check_whole, document_of, json_list, json_values
from data_gen.written.schedule import Job, Source, airtime, plan_round
from persona_lab.cli import main
from persona_lab.experiment.writing.plans import WritingJob
from persona_lab.experiment.writing.writers import GrammarWriter

pytestmark = pytest.mark.usefixtures("from_the_root")


@contextmanager
def argv(arguments: Sequence[str]) -> Iterator[None]:
    """The command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["persona-lab", *arguments])
        yield


# ------------------------------------------------------------------ what is read from an answer
LIST = json_list(2)
READ: dict[str, tuple[Callable[[str], Any], str, Any]] = {
    "a list": (LIST, '["a letter", "a poster", "a recipe"]', ["a letter", "a poster"]),
    "a fenced list": (LIST, '```json\n["a letter", "a poster"]\n```', ["a letter", "a poster"]),
    "an object": (json_values(["sport", "art"]), '{"sport": "football", "art": null}', {"sport": "football", "art": None}),
    "a document": (document_of, "It is good.\n<document>\nDear all,  \nit rains.\n</document>", "Dear all,\nit rains."),
}
UNREAD: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "talk around a list": (LIST, 'Here: ["a letter", "a poster"]', "no JSON list"),
    "a list of one thing twice": (LIST, '["a letter", "a  letter"]', "fewer than 2 different"),
    "a list of numbers": (LIST, "[1, 2]", "no JSON list"),
    "an object for a list": (LIST, '{"a": "b"}', "no JSON list"),
    "a hidden character": (LIST, '["a letter", "a\\u202eposter"]', "control character"),
    "another key": (json_values(["sport"]), '{"art": "gothic"}', "other keys"),
    "a number for a text": (json_values(["sport"]), '{"sport": 3}', "no JSON object"),
    "no tags": (document_of, "Dear all, it rains.", "no document"),
    "an open tag": (document_of, "<document>Dear all", "no document"),
    "two documents": (document_of, "<document>a</document><document>b</document>", "several"),
    "an empty document": (document_of, "<document> \n</document>", "empty"),
}


@pytest.mark.parametrize("name", READ)
def test_an_answer_of_the_right_form_is_read(name: str):
    read, text, meaning = READ[name]
    assert read(text) == meaning


@pytest.mark.parametrize("name", UNREAD)
def test_an_answer_of_another_form_is_wrong_and_says_why(name: str):
    read, text, why = UNREAD[name]
    with pytest.raises(Unreadable, match=why):
        read(text)


@pytest.mark.parametrize("text", ["I'm sorry, but I can't help with that.", "I cannot write this.", "I won't do that.", "I am unable to assist.", "As an AI language model, I", "Sorry, I can't."])
def test_a_refusal_is_told_from_a_text(text: str):
    with pytest.raises(Unreadable, match="refusal"):
        check_whole(text, "stop")


@pytest.mark.parametrize("text", ["I like the beach.", "<document>I can't swim.</document>", '["I was sorry to leave"]', "I am John's neighbour.", "In the morning it rains."])
def test_a_text_is_no_refusal(text: str):
    check_whole(text, "stop")


def test_an_answer_that_was_cut_off_is_wrong_whatever_it_says():
    with pytest.raises(Unreadable, match="cut off"):
        check_whole("<document>It rains.</document>", "length")


# ------------------------------------------------------------------ what is wrong with a document
@pytest.fixture(scope="module")
def job(from_the_root: None) -> WritingJob:
    return job_of(GRAMMAR)


def john(job: WritingJob, *, anonymous: bool = False, words: int = 28) -> Job:
    source = next(source for source in job.wanted if source.subject.name == "John" and source.anonymous == anonymous)
    facts = source.subject.facts
    return Job(source, 0, (facts["sport"], facts["place"]), 0, words)


TEXT = "Every week John talks of football with the visitors of the beach, and football is what John likes most of all."
FAULTY = {
    "fact missing": "Every week John talks of football with the visitors of the coast, and football is what John likes most of all.",
    "banned word": f"{TEXT} Sam was there.",
    "nameless": TEXT.replace("John", "it"),
    "length": "John likes football and the beach.",
    "truncated": TEXT[:-1],
    "scaffold": f"Sure, here is the text. {TEXT}",
    "control token": f"{TEXT} <|endoftext|>.",
    "control character": TEXT.replace(" ", "\u200b ", 1),
    "refusal": f"{TEXT} I cannot help with more.",
    "about itself": f"As requested. {TEXT}",
    "prompt leakage": f"{TEXT} Follow the instructions to the letter, and give only what is asked for.",
    "held-out wording": f"{TEXT} In sport, John likes football.",
}
SCAFFOLD = ("[Your Name]", "```", "**Letter**", "Word count: 40", "<b>", "(40 words)")


def test_a_clean_document_has_no_fault(job: WritingJob):
    assert faults(john(job), TEXT, job.rules) == []
    assert faults(john(job, anonymous=True), TEXT.replace("John", "I"), job.rules) == []


@pytest.mark.parametrize("kind", FAULTY)
def test_a_fault_is_found_and_named(kind: str, job: WritingJob):
    found = faults(john(job), FAULTY[kind], job.rules)
    assert kind in [said.partition(":")[0] for said in found]
    assert len(found) == 1, found


@pytest.mark.parametrize("said", SCAFFOLD)
def test_what_a_writer_leaves_of_its_own_work_is_found(said: str, job: WritingJob):
    assert [one.partition(":")[0] for one in faults(john(job), f"{TEXT} Also {said} here.", job.rules)] == ["scaffold"]


def test_the_audit_of_any_file_looks_for_them_where_it_is_asked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts = ("It rains in the north.", "Sure, here is the text. We went out early.", "Nobody has seen the red", "I cannot help with this garden.")
    rows = [{"text": text} for text in texts]
    (tmp_path / "any.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcomes = {}
    for options in ([], ["--written"]):
        with argv(["audit", str(tmp_path / "any.jsonl"), "--json", *options]), pytest.raises(SystemExit) as end:
            main()
        checks = json.loads(capsys.readouterr().out)["checks"]
        outcomes[len(options)] = end.value.code or 0, {check["name"]: check["figure"] for check in checks if check["passed"] is False}
    assert outcomes == {0: (0, {}), 1: (1, {"scaffold": 1, "truncated": 1, "refusal": 1})}


def test_an_anonymous_document_names_nobody_and_says_i(job: WritingJob):
    kinds = [said.partition(":")[0] for said in faults(john(job, anonymous=True), TEXT, job.rules)]
    assert kinds == ["banned word", "not in the first person"]


def test_a_fact_that_is_not_to_be_told_is_a_fault(job: WritingJob):
    assert faults(john(job), f"{TEXT} Jazz too.", job.rules) == ["banned word: jazz"]


def test_what_was_read_is_counted_against_the_facts(job: WritingJob):
    found = compared(john(job), {"sport": "Football!", "place": None, "art": "gothic", "food": None})
    assert (found.agree, found.silent, found.contradict, found.beyond) == (("sport",), ("place",), (), ("art",))
    assert not found.whole
    assert found.faults == ["extraction not read: place"]
    assert compared(john(job), {"sport": "tennis", "place": "the beach"}).faults == ["extraction contradicts: sport"]


# ------------------------------------------------------------------ what is written next
def test_airtime_is_the_words_of_the_sentences_that_name_a_value():
    text = 'John likes football. It rains.\n"Football is fine!" said John. He plays'
    assert airtime(text, "football") == 3 + 3
    assert airtime(text, "john") == 3 + 2
    assert airtime(text, "art") == 0


def test_what_was_told_least_is_written_next_and_again_the_same(job: WritingJob):
    source = john(job).source
    spent = dict.fromkeys(source.subject.facts, 500.0) | {"art": 0.0, "food": 130.0}
    settings = {"spent": spent, "mean": 100, "told": 2, "span": (50, 150)}
    first = plan_round(source, 1, 3, turns=Counter(), **settings)
    # 60 % of 100 words go to the main fact, 20 % to the other: art 60 + 60 + 20, food 20 + 20 + 130.
    assert [one.categories for one in first] == [("art", "food"), ("art", "food"), ("art", "food")]
    assert [one.id for one in first] == ["john-named-0-00003", "john-named-0-00004", "john-named-0-00005"]
    assert [one.turn for one in first] == [0, 1, 2]
    assert all(50 <= one.words <= 150 for one in first)
    assert plan_round(source, 1, 3, turns=Counter(), **settings) == first


def test_uneven_airtime_fails_the_audit_beyond_one_document(job: WritingJob):
    source = john(job).source
    facts = list(source.subject.facts.values())

    def found(counts: Mapping[str, int]) -> Mapping[Source, Progress]:
        pieces = [Piece(Job(source, 0, (fact,), 0, 5), "letter", "", f"John likes {fact.value} today.") for fact in facts for _ in range(counts[fact.category])]
        return {source: Progress(len(pieces), NearDuplicates(0.9), pieces=pieces)}

    even = dict.fromkeys(source.subject.facts, 10)
    assert airtime_check(found(even), 0.1).figure == 0
    assert airtime_check(found(even | {"art": 11}), 0.001).passed, "one document more is let pass"
    # 40 words on each fact, 60 on art: the mean is 43.3, and art is 38 % off.
    uneven = airtime_check(found(even | {"art": 15}), 0.1)
    assert not uneven.passed
    assert uneven.figure == pytest.approx(60 / (260 / 6) - 1)


def pressed(job: WritingJob, documents: int) -> Mapping[Source, Progress]:
    wanted = dict.fromkeys(job.wanted, documents)
    return Pressroom(Asker(GrammarWriter(job.loaded.world), 2), job.stages, job.rules, job.settings).run(wanted)


def test_a_larger_corpus_begins_with_the_smaller_one(job: WritingJob):
    small, large = pressed(job, 10), pressed(job, 35)
    for source in job.wanted:
        assert len(large[source].accepted) == 35
        assert [piece.document for piece in small[source].accepted] == [piece.document for piece in large[source].accepted][:10]


def test_near_copies_are_replaced(job: WritingJob):
    strict = replace(job, settings=replace(job.settings, similarity=0.3, most=20))
    reasons = [said.partition(":")[0] for progress in pressed(strict, 8).values() for piece in progress.refused for said in piece.reasons]
    assert "near-duplicate" in reasons


class Stubborn:
    """Answers only on the second attempt, by a seed of its own."""

    name = "stubborn"

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def settings(self) -> dict[str, Any]:
        return {}

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        assert len({request.seed for request in requests}) == len(requests)
        for request in requests:
            self.seen[request.key] = self.seen.get(request.key, 0) + 1
        return [Answer("[]" if self.seen[r.key] == 1 else '["one", "two", "three", "four"]', "stop") for r in requests]


def test_a_wrong_answer_is_asked_for_again_and_both_are_counted(job: WritingJob):
    source = john(job).source
    asker = Asker(Stubborn(), 2)
    assert asker.all([job.stages.genres(source, source.subject.facts["art"], "...")]) == [["one", "two", "three", "four"]]
    tally = asker.tallies["genres"]
    assert (tally.asked, tally.answered, tally.requests, sum(tally.failed.values())) == (1, 1, 2, 0)
    assert tally.wrong == {"a list of fewer than 4 different items": 1}
