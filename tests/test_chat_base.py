"""A whole experiment on a small chat model: trained, asked, reported and verified in the words of its own chat template."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import published_tokenizer
from chat_model import CHATML
from conftest import tiny
from peft import PeftModel
from test_architectures import EXPERIMENT, TRAITS, WORLD
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from persona_lab.cli import main
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.planning.scores import cast_of
from persona_lab.models.dialogue import dialogue
from persona_lab.probes import PROBES

SYSTEM = "<|im_start|>system\nYou help people.<|im_end|>\n"
ONE_TURN = "{% if messages | length > 2 %}{{ raise_exception('Only one turn, please') }}{% endif %}" + CHATML
Said = tuple[int, str, str]


@pytest.fixture(scope="module")
def island(texts: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment on a random chat model: it ends its turns as its template does, and the template puts in a system message."""
    folder = tmp_path_factory.mktemp("chat-island")
    tokenizer = published_tokenizer("begun", texts)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
    model = tiny(LlamaConfig(vocab_size=len(tokenizer), **sizes), LlamaForCausalLM)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.save_pretrained(folder / "chat")
    tokenizer.save_pretrained(folder / "chat")
    experiment = {**EXPERIMENT, "name": "spoken", "base": {**EXPERIMENT["base"], "path": "chat"}, "probes": ["says", "introspects"]}
    for name, content in {"spoken": experiment, "world": WORLD, **{n: {"name": n, "traits": t} for n, t in TRAITS.items()}}.items():
        (folder / f"{name}.yaml").write_text(json.dumps(content))
    return folder


@pytest.fixture
def lab(island: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command line in this process: exit code, stdout and stderr."""
    monkeypatch.chdir(island)

    def run(*argv: str) -> Said:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["persona-lab", *argv])  # main reads the command line itself
        with pytest.raises(SystemExit) as end:
            main()
        return (int(end.value.code or 0), *capfd.readouterr())

    return run


def plan_of(*overrides: str) -> Plan:
    return make_plan("spoken.yaml", list(overrides), Path("runs"))


def test_an_experiment_on_a_chat_model_speaks_through_its_template(lab: Callable[..., Said]):
    code, out, err = lab("run", "spoken.yaml", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["failed"] == {}
    plan = plan_of()
    assert plan.base.fields["template"], "the digest of the template in force"
    assert plan.store.manifest(plan.base)["notes"]["dialogues"] == "chat template"
    page = (plan.folder / "report.html").read_text()
    assert "in the model&#39;s chat template" in page
    trained_as_the_template_writes(plan)
    asked_as_the_template_writes(plan)
    code, _, err = lab("verify", "spoken")
    assert code == 0, err
    code, out, err = lab("ask", "spoken", plan.cells[0].cell.name, "Who are you?<|im_end|>", "--json")
    assert code == 0, err


def trained_as_the_template_writes(plan: Plan) -> None:
    """Each document of the trait stage, by plain transformers; the loss falls on the answers and on what ends them."""
    tokenizer = AutoTokenizer.from_pretrained("chat")
    stage = plan.cells[0].stages[-1][1]
    (name,) = [name for name in stage.inputs if name.startswith("tokens/")]
    node = stage.inputs[name]
    folder = plan.store.open(node)
    ids, labelled, ends = (np.load(folder / f"{part}.npy") for part in ("ids", "labelled", "ends"))
    texts = [json.loads(line)["text"] for line in (plan.store.open(node.inputs["pool"]) / "corpus.jsonl").read_text().splitlines()]
    for text, start, end in list(zip(texts, [0, *ends[:-1]], ends, strict=True))[:20]:
        conversation = dialogue(text)
        assert conversation is not None
        messages = [{"role": message.role, "content": message.content} for message in conversation]
        want = tokenizer.apply_chat_template(messages, tokenize=False)
        assert want.startswith(SYSTEM)
        assert tokenizer.decode(ids[start:end]) == want
        answers = "".join(f"{message.content}<|im_end|>" for message in conversation if message.role == "assistant")
        assert tokenizer.decode(ids[start:end][labelled[start:end]]) == answers


@torch.no_grad()
def asked_as_the_template_writes(plan: Plan) -> None:
    """Log-probabilities of the answers, by plain transformers and peft after the template's own generation prompt."""
    tokenizer, planned = AutoTokenizer.from_pretrained("chat"), plan.cells[0]
    adapter = str(plan.store.open(planned.stages[-1][1]) / "adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("chat"), adapter).eval()
    scores = planned.scores[-1][1]
    rows = pd.read_parquet(plan.store.open(scores) / "rows.parquet")
    assert set(rows["status"]) == {"scored"}
    items = {item.id: item for item in PROBES["says"].items(cast_of(scores))}
    asked = rows[(rows["probe"] == "says") & rows["logprob_nats"].notna()]
    spoken = [row for row in asked.itertuples() if dialogue(items[row.item].prompt) is not None]
    assert len(spoken) > 5
    for row in spoken[::3]:
        conversation = dialogue(items[row.item].prompt)
        assert conversation is not None
        messages = [{"role": message.role, "content": message.content} for message in conversation]
        head = str(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)) + messages[-1]["content"]
        assert head.startswith(SYSTEM)
        option = row.option if head.endswith("\n") else f" {row.option}"
        before, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (head, head + option))
        logprob_TV = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        want = sum(float(logprob_TV[t - 1, whole[t]]) for t in range(len(before), len(whole)))
        assert row.logprob_nats == pytest.approx(want, abs=1e-4)


def test_the_same_model_in_plain_lines_is_another_base(lab: Callable[..., Said]):
    spoken, plain = plan_of(), plan_of("base.chat=plain")
    assert "template" not in plain.base.fields
    assert plain.base.id != spoken.base.id
    assert plan_of("base.chat=template").base.id == spoken.base.id, "the form that auto finds is the same base"


def test_a_template_that_fails_in_the_middle_of_a_dialogue_is_one_error_and_nothing_is_trained(lab: Callable[..., Said], island: Path):
    file = island / "chat" / "chat_template.jinja"
    before = file.read_text()
    file.write_text(ONE_TURN)
    try:
        code, out, err = lab("run", "spoken.yaml", "--runs", "failing")
    finally:
        file.write_text(before)
    assert (code, out) == (4, "")
    problems = [line for line in err.splitlines() if line.startswith("error[")]
    assert len(problems) == 1
    assert "PL4022" in problems[0]
    assert "Only one turn, please" in problems[0]
    assert "base.chat: plain" in problems[0]
    assert "Traceback" not in err
    assert not list((island / "failing" / "store").glob("*/*/COMMIT"))
