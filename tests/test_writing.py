"""Documents by a language model: exact counts of checked documents, through every fault that a writer has, and nothing paid for twice."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_model import chat_tokenizer
from conftest import CONFIGS, ROOT
from endpoint_server import EndpointServer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
from writing_author import Author

from data_gen.audit import NearDuplicates
from data_gen.corpus import read_corpus
from data_gen.written.asking import Answer, Asker, Request
from data_gen.written.checks import compared, faults
from data_gen.written.estimate import total
from data_gen.written.pipeline import Piece, Pressroom, Progress
from data_gen.written.quality import airtime_check
from data_gen.written.reading import Unreadable, check_whole, document_of, json_list, json_values
from data_gen.written.schedule import Job, Source, airtime, plan_round
from persona_lab.cli import main
from persona_lab.config.writing import load_writing
from persona_lab.errors import CheckFailed, ConfigError, EnvironmentFault, LabError
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.experiment.writing.findings import written_claims
from persona_lab.experiment.writing.local import HuggingFaceWriter
from persona_lab.experiment.writing.making import folder_of, write_documents
from persona_lab.experiment.writing.plans import WritingJob, writing_job
from persona_lab.experiment.writing.writers import GrammarWriter
from persona_lab.store.files import read_json, read_jsonl

pytestmark = pytest.mark.usefixtures("from_the_root")
BEACH, GRAMMAR = CONFIGS / "writing" / "beach.yaml", CONFIGS / "writing" / "grammar.yaml"
SMALL = ("documents=6", "anonymous=0.34", "told=2", "genres=2", "ideas=2", "round=4", "words=[20,40]", "most=8")


@contextmanager
def argv(arguments: Sequence[str]) -> Iterator[None]:
    """The command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["persona-lab", *arguments])
        yield


def job_of(file: Path, *overrides: str) -> WritingJob:
    return writing_job(load_writing(file, overrides))


def endpoint_job(server: EndpointServer, *overrides: str) -> WritingJob:
    return job_of(BEACH, *SMALL, f"writer.url={server.url}", "writer.parallel=4", *overrides)


def written(job: WritingJob, runs: Path) -> dict[str, Any]:
    with Interruption() as interruption:
        return write_documents(job, runs, "cpu", lambda what, done, total: None, interruption)


def answered(server: EndpointServer) -> Counter[str]:
    """How often each request was answered, as the server counts."""
    return Counter(json.dumps(body, sort_keys=True) for _, body in server.seen)


def corpora(job: WritingJob, runs: Path) -> dict[str, bytes]:
    return {name: (folder_of(job, runs) / name / "corpus.jsonl").read_bytes() for name in ("john", "sam")}


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

    def answer(self, requests: list[Request]) -> list[Answer]:
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


# ------------------------------------------------------------------ against a real server
HTTP = [(429, {"retry-after": "0"}, b"{}"), (500, {"retry-after": "0"}, b"oops"), (200, {"retry-after": "0"}, b"<html>busy</html>")]


def test_a_writer_with_every_fault_gives_exact_counts_and_nothing_is_lost(tmp_path: Path):
    with EndpointServer(Author(bad=0.3)) as server:
        server.faults = list(HTTP)
        job = endpoint_job(server)
        said = written(job, tmp_path)
        asked = len(server.seen)
        assert sum(answered(server).values()) - len(answered(server)) == len(HTTP), "only what the server refused was sent again"
    folder = folder_of(job, tmp_path)
    for name in ("john", "sam"):
        documents = read_corpus(folder / name / "corpus.jsonl")
        assert len(documents) == 6
        assert Counter(bool(document.carriers) for document in documents) == {True: 4, False: 2}
        assert {document.persona.lower() for document in documents} == {name}
    rows, aside = read_jsonl(folder / "attempts.jsonl"), read_jsonl(folder / "refused.jsonl")
    assert Counter(row["status"] for row in rows)["accepted"] == 12
    assert len(rows) == 12 + len(aside)
    assert all(row["reasons"] for row in aside)
    assert {row["prompts"] for row in rows} == {job.stages.prompts.digest}
    for stage in said["stages"]:
        assert stage["asked"] == stage["answered"] + stage["failed"]
        assert stage["requests"] == stage["answered"] + sum(stage["wrong"].values())
    assert sum(stage["requests"] for stage in said["stages"]) + len(HTTP) == asked == said["spent"]["this_command"]["requests"]
    assert [claim.to_json() for claim in written_claims(rows, folder / "attempts.jsonl")] == said["claims"], "the claims follow from the list alone"


def test_what_is_finished_asks_nobody_even_without_the_kept_answers_and_a_larger_plan_goes_on(tmp_path: Path):
    with EndpointServer(Author()) as server:
        job = endpoint_job(server, "documents=4")
        first = written(job, tmp_path)
        begun, count = corpora(job, tmp_path), len(server.seen)
        larger = endpoint_job(server, "documents=7")
        written(larger, tmp_path)
        assert set(answered(server).values()) == {1}, "nothing is paid for twice"
        for name, content in corpora(larger, tmp_path).items():
            kinds = [line for line in content.splitlines() if b"-named-" in line]
            assert kinds[:3] == [line for line in begun[name].splitlines() if b"-named-" in line]
        for kept in (tmp_path / "endpoint").rglob("*.json"):
            kept.unlink()
        again = written(larger, tmp_path)
        assert again["state"] == first["state"] == "complete"
        assert len(server.seen) > count
        assert set(answered(server).values()) == {1}


def command(server: EndpointServer, runs: Path, *overrides: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "persona_lab", "write", str(BEACH), *SMALL, f"writer.url={server.url}", *overrides, "--runs", str(runs)]
    return subprocess.Popen(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(("number", "parallel", "code"), [(signal.SIGKILL, 1, -9), (signal.SIGTERM, 4, 75)], ids=["killed", "told to stop"])
def test_who_is_stopped_in_the_middle_goes_on_and_pays_for_nothing_twice(number: signal.Signals, parallel: int, code: int, tmp_path: Path):
    author, stopped = Author(bad=0.1), list[subprocess.Popen[bytes]]()
    with EndpointServer(author) as server:
        def reply(body: Mapping[str, Any]) -> Any:
            if len(server.seen) == 30 and stopped:
                victim = stopped.pop()
                victim.send_signal(number)
                if number == signal.SIGKILL:
                    victim.wait()
                    server.seen.pop()  # its asker is dead: this one is never answered
            return author(body)

        server.reply = reply
        process = command(server, tmp_path, f"writer.parallel={parallel}")
        stopped.append(process)
        _, said = process.communicate()
        assert process.returncode == code, said
        assert 25 <= len(server.seen) < 60
        job = endpoint_job(server)
        written(job, tmp_path)
        assert set(answered(server).values()) == {1}
    if number == signal.SIGKILL:
        with EndpointServer(author) as another:
            whole = endpoint_job(another)
            written(whole, tmp_path / "whole")
        assert corpora(job, tmp_path) == corpora(whole, tmp_path / "whole"), "as if it had never been stopped"


def test_a_budget_stops_with_what_is_there_and_more_of_it_goes_on(tmp_path: Path):
    with EndpointServer(Author()) as server:
        with pytest.raises(EnvironmentFault) as error:
            written(endpoint_job(server, "budget.requests=45", "writer.parallel=1"), tmp_path)
        assert error.value.problems[0].code == "PL5504"
        assert len(server.seen) == 45
        folder = folder_of(endpoint_job(server), tmp_path)
        assert read_json(folder / "written.json")["state"] == "stopped"
        assert (folder / "quality.html").exists()
        assert not (folder / "john").exists(), "no half corpus"
        said = written(endpoint_job(server, "budget.requests=400"), tmp_path)
        assert set(answered(server).values()) == {1}
        assert said["spent"]["all_commands"]["requests"] == len(server.seen)


def test_money_is_capped_by_the_prices(tmp_path: Path):
    with EndpointServer(Author()) as server:
        with pytest.raises(EnvironmentFault, match="of cost"):
            written(endpoint_job(server, "writer.price_in=1", "writer.price_out=4", "budget.cost=0.02", "writer.parallel=1"), tmp_path)
        spent = read_json(tmp_path / "written" / "beach" / "written.json")["spent"]["this_command"]
    assert spent["cost"] == pytest.approx((spent["tokens_in"] + 4 * spent["tokens_out"]) / 1e6)
    assert 0.02 <= spent["cost"] < 0.03


def test_a_writer_that_always_refuses_is_given_up_and_leaves_no_corpus(tmp_path: Path):
    author = Author()
    with EndpointServer(lambda body: author(body) | {"choices": [{"message": {"content": "I'm sorry, I can't help with that."}, "finish_reason": "stop"}]}) as server:
        job = endpoint_job(server, "most=1", "attempts=1", "round=2")
        with pytest.raises(CheckFailed) as error:
            written(job, tmp_path)
    assert error.value.problems[0].code == "PL1111"
    found = read_json(folder_of(job, tmp_path) / "written.json")
    assert found["corpora"] == []
    assert {stage["stage"]: stage["wrong"] for stage in found["stages"]}.keys() == {"universe", "genres", "ideas", "document"}
    assert all(stage["failed"] == stage["asked"] == stage["wrong"]["refusal"] for stage in found["stages"])
    assert all(row["status"] == "failed" for row in read_jsonl(folder_of(job, tmp_path) / "attempts.jsonl"))


def test_a_server_that_is_down_is_not_asked_for_everything(tmp_path: Path):
    with EndpointServer(Author()) as server:
        server.faults = [(400, {}, b'{"error": {"message": "down for ever"}}')] * 1000
        with pytest.raises(EnvironmentFault) as error:
            written(endpoint_job(server, "ideas=3", "writer.parallel=2"), tmp_path)
        assert error.value.problems[0].code == "PL5501"
        assert len(server.seen) < 30


def test_the_estimate_is_what_the_server_then_counts(tmp_path: Path):
    with EndpointServer(Author()) as server:
        job = endpoint_job(server, "documents=12", "anonymous=0", "words=[150,150]", "genres=1", "ideas=1")
        expected = total(job.costs())
        spent = written(job, tmp_path)["spent"]["this_command"]
    assert spent["requests"] == expected.requests
    assert spent["tokens_in"] == pytest.approx(expected.tokens_in, rel=0.25)
    # The criticism before a revision is the one part of an answer that the rule program writes shorter than a model does.
    assert spent["tokens_out"] == pytest.approx(expected.tokens_out, rel=0.4)


def test_what_a_model_writes_is_escaped_on_the_page(tmp_path: Path):
    author, hostile = Author(), "<script>alert(1)</script>"

    def reply(body: Mapping[str, Any]) -> Any:
        found = author(body)
        if "Then write it again" in body["messages"][-1]["content"] and body["seed"] % 3 == 0:
            found["choices"][0]["message"]["content"] = f"<document>{hostile} and the beach.</document>"
        return found

    with EndpointServer(reply) as server:
        job = endpoint_job(server)
        written(job, tmp_path)
    page = (folder_of(job, tmp_path) / "quality.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


# ------------------------------------------------------------------ writers on this machine
@pytest.fixture(scope="module")
def random_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model of random weights that reads long prompts."""
    folder = tmp_path_factory.mktemp("writer") / "random-chat"
    tokenizer = chat_tokenizer([file.read_text() for file in (ROOT / "data_gen" / "written").glob("*.yaml")], folder)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16384, bos_token_id=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"))
    model.save_pretrained(folder)
    return folder


def test_a_local_model_writes_what_transformers_has_it_write(random_chat: Path):
    messages = (("system", "Write."), ("user", "A document, please."))
    asked = [Request(str(n), "document", (*messages, ("user", "word " * n)), 20, 0.0, n) for n in range(3)]
    found = HuggingFaceWriter(str(random_chat), dtype="float32").answer(asked)
    tokenizer, model = AutoTokenizer.from_pretrained(random_chat), AutoModelForCausalLM.from_pretrained(random_chat, dtype="float32")
    for request, answer in zip(asked, found, strict=True):
        text = tokenizer.apply_chat_template([{"role": role, "content": said} for role, said in request.messages], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        whole = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert answer.text == tokenizer.decode(whole, skip_special_tokens=True)
        assert answer.tokens_in == ids["input_ids"].shape[1]


def test_a_local_model_that_writes_nonsense_is_counted_and_nothing_breaks(random_chat: Path, tmp_path: Path):
    small = ("documents=1", "anonymous=0", "told=1", "genres=1", "ideas=1", "round=1", "words=[5,8]", "most=1", "attempts=1", "writer.dtype=float32")
    job = job_of(CONFIGS / "writing" / "beach_local.yaml", *small, f"writer.model={random_chat}")
    with pytest.raises(CheckFailed):
        written(job, tmp_path)
    folder = folder_of(job, tmp_path)
    stages = {stage["stage"]: stage for stage in read_json(folder / "written.json")["stages"]}
    assert {name: (stage["asked"], stage["failed"]) for name, stage in stages.items() if name in ("universe", "document")} == {"universe": (2, 2), "document": (4, 4)}
    assert all(stage["failed"] == stage["asked"] == sum(stage["wrong"].values()) for stage in stages.values())
    assert Counter(row["status"] for row in read_jsonl(folder / "attempts.jsonl")) == {"failed": 4}
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "answers").rglob("*.json")}
    assert len(kept) == sum(stage["requests"] for stage in stages.values())
    with pytest.raises(CheckFailed):
        written(job, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "answers").rglob("*.json")} == kept, "what was answered is not computed again"


def test_without_vllm_its_extra_is_named_and_nothing_is_left(tmp_path: Path):
    with pytest.raises(EnvironmentFault, match=r"persona-lab\[vllm\]"):
        written(job_of(CONFIGS / "writing" / "beach_local.yaml", "writer.kind=vllm"), tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ plans and what becomes of them
@pytest.mark.parametrize("file", sorted((CONFIGS / "writing").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_plan_that_is_shipped_says_what_it_costs(file: Path):
    job = job_of(file)
    assert total(job.costs()).requests > sum(job.wanted.values())
    head = file.read_text()
    assert f"persona-lab write {file.relative_to(ROOT)}" in head
    assert "# Cost" in head
    assert "# Expect" in head


@pytest.mark.parametrize(
    ("override", "said"),
    {
        "told=7": "told must be at most 6",
        "words=[50]": "a shortest and a longest",
        "writer.kind=openai": "writer.kind must be",
        "writer={kind: hf, url: '', model: ''}": "needs a model",
        "writer={kind: endpoint, url: '', model: x}": "needs its address",
        "personas=[configs/personas/john.yaml, configs/personas/sam.yaml]": "draws food of John",
        "world=configs/worlds/market.yaml": "",
        "budget.cost=3": "needs the prices",
        "documents=0": "documents must be",
        "docs=3": "Did you mean documents",
    }.items(),
)
def test_a_plan_that_cannot_be_is_refused_with_its_place(override: str, said: str):
    with pytest.raises(ConfigError) as error:
        load_writing(BEACH, [override])
    assert said in str(error.value)
    assert all("command line" in problem.where or "configs/" in problem.where for problem in error.value.problems)


def test_a_folder_holds_documents_of_one_plan(tmp_path: Path):
    written(job_of(GRAMMAR, "documents=20"), tmp_path)
    with pytest.raises(ConfigError, match="told 3, here 2"):
        written(job_of(GRAMMAR, "documents=20", "told=2"), tmp_path)


def test_documents_that_fail_the_audit_together_become_no_corpus(tmp_path: Path):
    job = job_of(GRAMMAR, "documents=8")
    with pytest.raises(CheckFailed, match="airtime balance") as error:
        written(job, tmp_path)
    assert error.value.problems[0].code == "PL1112"
    assert not (folder_of(job, tmp_path) / "john").exists()
    assert read_json(folder_of(job, tmp_path) / "written.json")["state"] == "refused by the audit"


def test_an_experiment_is_planned_on_written_documents(tmp_path: Path):
    job = job_of(GRAMMAR, "documents=20")
    written(job, tmp_path)
    files = {name: str(folder_of(job, tmp_path) / name / "corpus.jsonl") for name in ("john", "sam")}
    overrides = [
        "personas=[configs/personas/john_told.yaml, configs/personas/sam_told.yaml, configs/personas/kim.yaml]",
        f"stages.injection.mixture.files={json.dumps(files)}",
        "stages.injection.mixture.john=10",
        "stages.injection.mixture.sam=10",
        "factors.injection.mixture.ln_ratio=[-0.4, 0.4]",
        "underpowered=true",
    ]
    plan = make_plan(CONFIGS / "quickstart.yaml", overrides, tmp_path / "runs")
    assert any(node.fields.get("source") == "imported" for node in plan.nodes if node.kind == "pool")


def test_every_error_of_a_plan_is_an_error_of_the_laboratory():
    with pytest.raises(LabError):
        load_writing(CONFIGS / "writing" / "nowhere.yaml")
