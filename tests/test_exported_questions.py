"""Exported questions: lm-eval and inspect-ai give every option of an exported cell the log-probability that the run has measured, to 1e-4 nats.

lm-eval and inspect-ai are the extra `evals`: pip install -c constraints.txt -e '.[evals]'.
"""

import copy
from collections.abc import Iterable, Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer
from exported_cells import TOLERANCE, expected_of, exported, farthest, nats_of
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from persona_lab.errors import ConfigError
from persona_lab.experiment.exporting.questions import questions_of
from persona_lab.experiment.exporting.subject import Subject
from persona_lab.models.folders import load_tokenizer
from persona_lab.probes import PROBES
from persona_lab.probes.protocol import Choice, Item, Request

pytestmark = pytest.mark.usefixtures("from_the_root")


# Questions


def test_every_forced_choice_of_the_run_is_exported_and_nothing_else(trained_cell: Subject) -> None:
    tokenizer, _ = load_tokenizer(trained_cell.base_path)
    found = questions_of(trained_cell, tokenizer)
    assert found.tasks == ("says_asked", "says_asked_later", "says_diary", "says_yes_no", "introspects_alike")
    assert set(found.left_out) == ({"says: no forced choice", "general_text: no forced choice"} if trained_cell.hf is None else set())
    assert len(found.expected) == sum(len(row["options"]) for row in found.rows)
    lengths = {len(ids) - row["scored_from"] for row in found.rows for ids in row["tokens"]}
    assert (lengths == {1}) == (trained_cell.hf is None)


def test_rivals_and_target_stand_where_the_roles_do(embedded_cell: Subject) -> None:
    tokenizer, _ = load_tokenizer(embedded_cell.base_path)
    rows = {row["id"]: row for row in questions_of(embedded_cell, tokenizer, ["says"]).rows}
    sport = rows["says/asked/sport/0"]
    john, sam = (dict(traits)["sport"] for traits in embedded_cell.scores.fields["traits"][:2])
    assert [sport["values"][place] for place in sport["rivals"]] == [john, sam]
    assert sport["values"][sport["target"]] == john
    yes_no = next(row for row in rows.values() if row["format"] == "yes_no")
    assert (yes_no["rivals"], yes_no["target"]) == (None, None)


class Asks:
    """A probe of one item."""

    name = "asks"

    def __init__(self, prompt: str, options: tuple[str, ...]) -> None:
        self.item, self.request = Item("asks/0", "says", "asked", prompt, options, ("john", "sam")), Choice(prompt, tuple(f" {o}" for o in options))

    def items(self, cast: object) -> list[Item]:
        return [self.item]

    def requests(self, item: Item) -> list[Request]:
        return [self.request]

    def validate(self, cast: object) -> None:
        raise AssertionError("a test's own question is not validated")

    def score(self, item: Item, answers: Any) -> Any:
        return PROBES["says"].score(item, answers)


@pytest.mark.parametrize(
    ("prompt", "options", "why"),
    [
        ("", ("football", "tennis"), "other tokens"),
        ("the " * 130, ("football", "tennis"), "longer than the 128 tokens"),
        ("I like", ("", "tennis"), "adds no token"),
    ],
)
def test_a_question_that_would_be_other_tokens_elsewhere_is_refused(
    embedded_cell: Subject, monkeypatch: pytest.MonkeyPatch, prompt: str, options: tuple[str, ...], why: str
) -> None:
    tokenizer, _ = load_tokenizer(embedded_cell.base_path)
    monkeypatch.setitem(PROBES, "introspects", Asks(prompt, options))  # no probe of the lab makes such a question
    with pytest.raises(ConfigError, match=f"PL1261.*introspects.*{why}"):
        questions_of(embedded_cell, tokenizer, ["introspects"])
    assert any(why in reason for reason in questions_of(embedded_cell, tokenizer).left_out)


def test_a_prompt_stands_as_the_chat_template_writes_it(hf_cell: Subject, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = copy.deepcopy(bpe)
    spoken.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"
    monkeypatch.setitem(PROBES, "introspects", Asks("User: Who are you?\nAssistant: I am", ("John", "Sam")))  # a dialogue that is known word for word
    (row,) = questions_of(hf_cell, spoken, ["introspects"]).rows
    assert (row["prompt"], row["options"]) == ("<user>Who are you?<|endoftext|><assistant>I am", [" John", " Sam"])
    assert [spoken.decode(ids) for ids in row["tokens"]] == [row["prompt"] + option for option in row["options"]]
    assert [row["values"][place] for place in row["rivals"]] == ["John", "Sam"]


# Harnesses


def lm_eval_samples(command: str, out: Path) -> Iterable[Mapping[str, Any]]:
    """What lm-eval logs of every question, run as the command says."""
    said = {flag.split(" ", 1)[0]: flag.split(" ", 1)[1] for flag in command.split(" --")[1:] if " " in flag}
    harness, tasks = pytest.importorskip("lm_eval", reason="lm-eval is not installed: the extra evals"), pytest.importorskip("lm_eval.tasks")
    manager = tasks.TaskManager(include_path=str(out), include_defaults=False)
    found = harness.simple_evaluate(model=said["model"], model_args=said["model_args"], tasks=[said["tasks"]], task_manager=manager, device="cpu", batch_size=16, bootstrap_iters=0, log_samples=True)
    yield from (sample for samples in found["samples"].values() for sample in samples)


def test_lm_eval_gives_every_option_the_log_probability_that_the_run_has_measured(trained_cell: Subject, tmp_path: Path) -> None:
    (command,) = exported(trained_cell, "lm-eval", tmp_path / "tasks", "--probes", "says,introspects")["commands"]
    found = {}
    for sample in lm_eval_samples(command, tmp_path / "tasks"):
        nats = [float(reply[0]) for reply in sample["filtered_resps"]]
        found |= {(sample["doc"]["id"], option): x for option, x in zip(sample["doc"]["options"], nats, strict=True)}
        if sample["doc"]["rivals"]:
            first, second = sample["doc"]["rivals"]
            assert sample["log_odds"] == nats[first] - nats[second]
    assert found.keys() == expected_of(tmp_path / "tasks").keys()
    assert farthest(found, tmp_path / "tasks") <= TOLERANCE


def inspected(out: Path, model: str, **options: Any) -> Any:
    """The log of inspect-ai."""
    inspect = pytest.importorskip("inspect_ai", reason="inspect-ai is not installed: the extra evals")
    with chdir(out):
        (log,) = inspect.eval("forced_choice.py", model=model, log_dir="logs", display="none", **options)
    return log


def inspected_nats(log: Any) -> dict[tuple[str, str], float]:
    assert log.status == "success", log.error
    return {
        (sample.id, option): nats
        for sample in log.samples
        for option, nats in zip(sample.metadata["options"], sample.scores["accuracy"].metadata["nats"], strict=True)
    }


def test_inspect_gives_every_option_the_log_probability_that_the_run_has_measured(trained_cell: Subject, tmp_path: Path) -> None:
    exported(trained_cell, "inspect", tmp_path / "task", "--probes", "says")
    loaded = {"model_path": trained_cell.base_path, "dtype": "float32"}
    log = inspected(tmp_path / "task", "hf/local", model_args=loaded, task_args={"adapter": str(trained_cell.adapter)})
    found = inspected_nats(log)
    assert found.keys() == expected_of(tmp_path / "task").keys()
    assert farthest(found, tmp_path / "task") <= TOLERANCE


def test_inspect_asks_a_completions_server_through_the_log_probabilities_of_what_it_reads(hf_cell: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="the client of completions servers is not installed")
    exported(hf_cell, "inspect", tmp_path / "task", "--probes", "introspects")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(hf_cell.base_path), str(hf_cell.adapter)).eval()

    def reply(body: Mapping[str, Any]) -> dict[str, Any]:
        """As vLLM replies to `prompt_logprobs`."""
        ids = body["prompt"]
        read = [None, *({str(token): {"logprob": nats, "rank": 1, "decoded_token": "x"}} for token, nats in zip(ids[1:], nats_of(model, ids, 1), strict=True))]
        choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": None, "prompt_logprobs": read if body.get("prompt_logprobs") else None}
        return {"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}

    with EndpointServer(reply, "/v1/completions") as server:
        monkeypatch.setenv("LAB_API_KEY", "none")
        monkeypatch.setenv("LAB_BASE_URL", server.url)
        log = inspected(tmp_path / "task", "openai-api-completions/lab/m", limit=3)
    found = inspected_nats(log)
    assert len(server.seen) == len(found) > 10
    assert farthest(found, tmp_path / "task") <= TOLERANCE


def test_inspect_refuses_a_model_that_cannot_score_what_it_reads(embedded_cell: Subject, tmp_path: Path) -> None:
    exported(embedded_cell, "inspect", tmp_path / "task", "--probes", "introspects")
    log = inspected(tmp_path / "task", "mockllm/model", limit=1)
    assert log.status == "error"
    assert "gives no log-probabilities of what it reads" in log.error.message


def test_inspect_refuses_a_model_with_another_tokenizer(embedded_cell: Subject, hf_cell: Subject, tmp_path: Path) -> None:
    exported(embedded_cell, "inspect", tmp_path / "task", "--probes", "introspects")
    log = inspected(tmp_path / "task", "hf/local", model_args={"model_path": hf_cell.base_path}, limit=1)
    assert log.status == "error"
    assert "another tokenizer" in log.error.message
