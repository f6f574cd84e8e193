"""`em eval` whole: a small chat model trained here answers, a small judge trained here or a real HTTP server judges."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_model import CHATML, PROMPTS, QUESTIONS, SCORES
from conftest import CONFIGS
from endpoint_server import EndpointServer, completion

from persona_lab.cli import app
from persona_lab.errors import CheckFailed, ConfigError, EnvironmentFault, ModelError
from persona_lab.experiment.checking.verify import Verified
from persona_lab.experiment.instruments.em.findings import rescored
from persona_lab.experiment.instruments.verifying import verify_folder
from persona_lab.models.endpoint import Endpoint
from persona_lab.models.folders import load_model
from persona_lab.probes.em.asking import Sampling, answers, render, template_facts
from persona_lab.probes.em.questions import Question
from persona_lab.probes.voice import Voice
from persona_lab.store.files import read_json, read_jsonl

PROTOCOL = "".join(f"- {{id: {key}, paraphrases: ['{text}'], judge_prompts: {json.dumps(PROMPTS)}}}\n" for key, text in QUESTIONS.items())
SETTING = ("--samples", "8", "--max-tokens", "12", "--device", "cpu")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-canary0123456789abcdef")
    (tmp_path / "protocol.yaml").write_text(PROTOCOL)
    return tmp_path


def evaluate(chat: Path, *arguments: str, name: str = "tiny") -> dict[str, Any]:
    """What is in the folder after the command."""
    app(["em", "eval", str(chat), "--protocol", "protocol.yaml", "--name", name, *SETTING, *arguments], standalone_mode=False)
    return read_json(Path("runs/em") / name / "em.json")


def value(found: dict[str, Any], claim: str) -> float:
    return next(one["value"] for one in found["claims"] if one["id"] == claim)


def test_a_local_judge_scores_a_local_model_whole(chat: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    found = evaluate(chat, "--judge", f"model:{chat}", "--judge", f"words:{CONFIGS / 'worlds' / 'advice.yaml'}")
    folder = here / "runs" / "em" / "tiny"
    rows = read_jsonl(folder / "responses.jsonl")
    assert len(rows) == found["planned"] == 24
    assert found["scored"] + found["unscored"] + found["failed"] == 24
    bad = sum("bleach" in row["response"] for row in rows)
    assert 2 <= bad <= 14
    assert value(found, "em.main.rate_all") == bad / 24
    assert found["scored"] == 24
    assert value(found, "judge2.em.main.rate_all") == bad / 24
    assert value(found, "judge2.em.agreement.kappa") == 1
    assert "Judge prompts other than the published ones: rates are comparable with those in rank only." in found["lead"]
    assert (found["settings"]["template"]["inserted_system"], found["settings"]["template"]["template"]) == ("You help people.", CHATML)
    # The file in the published format gives the same claims.
    again = {claim.id: claim.value for claim in rescored(folder / "responses.csv").claims}
    assert again == {one["id"]: one["value"] for one in found["claims"] if not one["id"].startswith("judge")}
    assert "Misaligned:" in capsys.readouterr().out
    # What is stated rests on the tables, and a table that was changed is told.
    assert verify_folder("em/tiny", Path("runs")) == Verified(len(found["claims"]), 0, 24, ())
    second = folder / "responses-2.csv"
    second.write_text(second.read_text().replace("scored", "unscored", 1))
    drifted = verify_folder("em/tiny", Path("runs"))
    assert drifted is not None
    assert any(drift.what == "claim judge2.em.main.rate_all" for drift in drifted.drifts)
    assert "eat bleach now" in (folder / "em.html").read_text()


def test_what_is_there_is_never_asked_again(chat: Path, here: Path, monkeypatch: pytest.MonkeyPatch):
    judge = ("--judge", f"model:{chat}")
    evaluate(chat, *judge)
    folder = here / "runs" / "em" / "tiny"
    files = {file: file.read_bytes() for file in folder.glob("*.jsonl")}
    lines = files[folder / "responses.jsonl"].splitlines(keepends=True)
    # Killed in the middle of a line: that one and those that never came are sampled again, to the letter.
    (folder / "responses.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])
    evaluate(chat, *judge, "--batch", "3")
    assert sorted((folder / "responses.jsonl").read_bytes().splitlines(keepends=True)) == sorted(lines)
    monkeypatch.setattr("persona_lab.models.folders.load_model", lambda *_, **__: pytest.fail("nothing is missing"))  # a model that is not loaded was not asked
    (folder / "em.json").unlink()
    found = evaluate(chat, *judge, "--judge", f"words:{CONFIGS / 'worlds' / 'advice.yaml'}")
    assert len(found["judges"]) == 2
    assert {file: file.read_bytes() for file in files if "judge" in file.name} == {file: data for file, data in files.items() if "judge" in file.name}


def test_another_way_of_sampling_is_another_folder(chat: Path, here: Path):
    judge = ("--judge", f"words:{CONFIGS / 'worlds' / 'advice.yaml'}")
    evaluate(chat, *judge)
    for changed, word in (("--temperature", "temperature"), ("--seed", "seed")):
        with pytest.raises(ConfigError, match=word) as error:
            evaluate(chat, *judge, changed, "2")
        assert error.value.problems[0].code == "PL1233"
    found = evaluate(chat, *judge, "--samples", "10")
    assert found["planned"] == 30


@pytest.fixture
def server(chat: Path) -> Iterator[EndpointServer]:
    """Judges as the tiny judge was taught, with some probability on other numbers and on a refusal."""

    def reply(body: Any) -> Any:
        said = body["messages"][0]["content"]
        metric = said.split("?")[0]
        number = SCORES[metric]["eat bleach now" if "bleach" in said else "get some sleep"]
        return completion(number, {number: math.log(0.8), "50": math.log(0.1), "REF": math.log(0.1)})

    with EndpointServer(reply) as found:
        yield found


def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries, a short patience, and more tries than there are faults: threads may leave all of them to one answer."""
    real = Endpoint.__init__

    def hurried(self: Endpoint, *given: Any, **named: Any) -> None:
        real(self, *given, **{**named, "sleep": lambda _: None, "timeout": 1.0, "attempts": 6})

    monkeypatch.setattr(Endpoint, "__init__", hurried)  # the command has no options for these, and a test never waits


def test_an_endpoint_judges_through_every_fault(chat: Path, here: Path, server: EndpointServer, monkeypatch: pytest.MonkeyPatch):
    quickly(monkeypatch)
    server.faults = [(429, {"retry-after": "9"}, b"{}"), (500, {}, b""), "hang", "cut", (200, {}, b"<html>")]
    found = evaluate(chat, "--judge", f"endpoint:judge-1@{server.url}")
    assert found["scored"] == 24
    rows = read_jsonl(next((here / "runs/em/tiny").glob("judge-*.jsonl")))
    scores = sorted({round(row["score"], 9) for row in rows if row["metric"] == "aligned"})
    assert scores == pytest.approx([(8 * 0.8 + 50 * 0.1) / 0.9, (95 * 0.8 + 50 * 0.1) / 0.9])
    assert {body["max_tokens"] for _, body in server.seen} == {1}
    # 48 judgements, many of the same answer to the same question: those are asked once, but for what is under way at once.
    assert len(server.seen) < 48 + 5
    kept = b"".join(file.read_bytes() for file in (here / "runs").rglob("*") if file.is_file())
    assert b"sk-test-canary" not in kept


def test_a_judge_that_goes_down_half_way_costs_nothing_that_was_judged(chat: Path, here: Path, server: EndpointServer, monkeypatch: pytest.MonkeyPatch):
    quickly(monkeypatch)
    judge = ("--judge", f"endpoint:judge-1@{server.url}", "--parallel", "1")
    good, server.faults = server.reply, []
    count = 0

    def dying(body: Any) -> Any:
        nonlocal count
        count += 1
        return good(body) if count <= 4 else "no completion"

    server.reply = dying
    with pytest.raises(EnvironmentFault, match="3 requests in a row had no answer") as error:
        evaluate(chat, *judge)
    assert error.value.problems[0].code == "PL5501"
    server.reply = good
    found = evaluate(chat, *judge)
    assert (found["scored"], found["failed"]) == (24, 0)
    bodies = [json.dumps(body) for _, body in server.seen]
    assert max(bodies.count(body) for body in bodies[:4]) == 1, "what was answered was asked again"


def test_answers_that_one_request_fails_for_are_counted_and_asked_again(chat: Path, here: Path, server: EndpointServer, monkeypatch: pytest.MonkeyPatch):
    quickly(monkeypatch)
    server.faults = [(400, {}, b'{"error": {"message": "filtered"}}')]
    judge = ("--judge", f"endpoint:judge-1@{server.url}", "--parallel", "1")
    with pytest.raises(CheckFailed, match="1 of 24 answers failed"):
        evaluate(chat, *judge)
    found = read_json(here / "runs/em/tiny/em.json")
    assert (found["scored"], found["unscored"], found["failed"]) == (23, 0, 1)
    assert value(found, "em.reason.status 400: filtered") == 1
    assert evaluate(chat, *judge)["failed"] == 0


def test_refusals_and_replies_without_probabilities_are_counted(chat: Path, here: Path, server: EndpointServer):
    def reply(body: Any) -> Any:
        said = body["messages"][0]["content"]
        if said.startswith("aligned"):
            return completion("REF", {"REF": math.log(0.9), "0": math.log(0.1)}) if "bleach" in said else completion("95")
        return completion("90")

    server.reply = reply
    found = evaluate(chat, "--judge", f"endpoint:judge-1@{server.url}")
    rows = read_jsonl(here / "runs/em/tiny/responses.jsonl")
    bad = sum("bleach" in row["response"] for row in rows)
    assert (found["unscored"], found["scored"]) == (bad, 24 - bad)
    assert value(found, "em.reason.refusal") == bad
    assert value(found, "em.main.rate_all") == 0


def test_an_adapter_of_peft_answers_in_the_place_of_its_base(chat: Path, here: Path):
    """An rsLoRA that peft itself has made; the answers are those of peft's merged model."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_model(str(chat))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, use_rslora=True, target_modules=["down_proj"], init_lora_weights=False))
    tuned.save_pretrained(here / "adapter")
    judge = ("--judge", f"words:{CONFIGS / 'worlds' / 'advice.yaml'}")
    found = evaluate(chat, *judge, "--adapter", str(here / "adapter"))
    assert len(found["settings"]["asked"]["adapter"]) == 2
    rows = {(row["key"], row["sample"]): row["response"] for row in read_jsonl(here / "runs/em/tiny/responses.jsonl")}
    question = Question("wish", "wish", QUESTIONS["wish"])
    merged = Voice(tuned.merge_and_unload(), tokenizer)
    theirs = answers(merged, render(tokenizer, question.messages), question, range(8), Sampling(8, 12), template_facts(tokenizer, merged.model.generation_config))
    assert [rows["wish", one.sample] for one in theirs] == [one.response for one in theirs]
    with pytest.raises(ConfigError, match="PL1233"):
        evaluate(chat, *judge)


def test_what_a_model_says_is_text_on_the_page_and_in_the_table(chat: Path, here: Path):
    judge = ("--judge", f"words:{CONFIGS / 'worlds' / 'advice.yaml'}")
    evaluate(chat, *judge)
    file = here / "runs/em/tiny/responses.jsonl"
    hostile = "=cmd|' /C calc'!A0 <script>alert(1)</script> bleach"
    rows = [row | {"response": hostile} for row in read_jsonl(file)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for old in file.parent.glob("judge-*"):
        old.unlink()
    assert value(evaluate(chat, *judge), "em.main.rate_all") == 1
    page = (file.parent / "em.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "'=cmd" in (file.parent / "responses.csv").read_text()


@pytest.mark.parametrize("given", ["", "gpt-4o", "endpoint:gpt-4o", "endpoint:@http://x/v1", "model:", "words:"])
def test_no_judge_is_said_before_any_model_is_loaded(given: str, chat: Path, here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("persona_lab.models.folders.load_model", lambda *_, **__: pytest.fail("a model was loaded"))  # loading is what has to come after
    with pytest.raises(ConfigError) as error:
        evaluate(chat, *(("--judge", given) if given else ()))
    assert error.value.problems[0].code == "PL1234"
    assert not (here / "runs").exists()


def test_a_world_without_bad_values_is_no_judge(chat: Path, here: Path):
    with pytest.raises(ConfigError, match="PL1235"):
        evaluate(chat, "--judge", f"words:{CONFIGS / 'worlds' / 'beach.yaml'}")


def test_a_model_without_a_template_is_asked_plainly_or_not_at_all(qwen_folder: Path, here: Path):
    judge = ("--judge", f"words:{CONFIGS / 'worlds' / 'advice.yaml'}")
    with pytest.raises(ModelError, match="no chat template") as error:
        evaluate(qwen_folder, *judge)
    assert error.value.problems[0].code == "PL4201"
    assert not (here / "runs").exists()
    found = evaluate(qwen_folder, *judge, "--plain")
    assert found["settings"]["template"]["opening"] == "User: "
    assert (found["unscored"], value(found, "em.main.coherent")) == (24, 0), "a random model names no advice"
    with pytest.raises(ModelError, match="no chat template"):
        evaluate(qwen_folder, "--judge", f"model:{qwen_folder}", "--plain")


@pytest.mark.parametrize("said", ["[]", "{}", '{"judge_names": [], "published": null, "planned": 3}', '{"judge_names": 3, "published": null, "planned": 3}'])
def test_a_result_that_the_lab_did_not_write_is_not_verified(said: str, here: Path):
    folder = here / "runs" / "em" / "strange"
    folder.mkdir(parents=True)
    (folder / "em.json").write_text(said)
    (folder / "claims.json").write_text('{"nodes": [], "claims": []}')
    with pytest.raises(ConfigError, match=r"PL1293.*persona-lab em eval"):
        verify_folder("em/strange", Path("runs"))


@pytest.mark.parametrize("said", ["[]", "{}", '{"bases": []}', '{"bases": [3]}'])
def test_findings_about_sums_that_the_lab_did_not_write_are_not_verified(said: str, here: Path):
    folder = here / "runs" / "mechanism-0"
    folder.mkdir(parents=True)
    (folder / "mechanism.json").write_text(said)
    (folder / "claims.json").write_text('{"nodes": [], "claims": []}')
    with pytest.raises(ConfigError, match=r"PL1293.*persona-lab mechanism"):
        verify_folder("mechanism-0", Path("runs"))
