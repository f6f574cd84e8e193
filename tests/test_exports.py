"""Exports: plain peft, lm-eval and inspect-ai say of an exported cell what the run says, to 1e-4 nats; what cannot be exported is refused.

lm-eval and inspect-ai are the extra `evals`: pip install -c constraints.txt -e '.[evals]'.
"""

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import load_dataset
from endpoint_server import EndpointServer
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_experiment import TINY, silent, write_config
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from persona_lab.cli import app
from persona_lab.errors import CheckFailed, ConfigError
from persona_lab.experiment.exporting.adapters import WEIGHTS, verify_adapter, write_peft
from persona_lab.experiment.exporting.card import licence_of
from persona_lab.experiment.exporting.questions import EXPECTED, QUESTIONS, questions_of
from persona_lab.experiment.exporting.subject import Subject, find_subject, new_folder
from persona_lab.experiment.exporting.vllm import loadable_in_vllm, max_lora_rank
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.run import make_nodes
from persona_lab.models.folders import load_tokenizer
from persona_lab.probes import PROBES
from persona_lab.probes.protocol import Choice, Item
from persona_lab.store import NodeMissing
from persona_lab.store.files import read_jsonl

pytestmark = pytest.mark.usefixtures("from_the_root")
CELL = "linked/seed0/swap0"
TOLERANCE = 1e-4
"""Nats."""


def finished(folder: Path, **changes: Any) -> Plan:
    """One condition in two swaps, made, asked and shown."""
    file = write_config(folder, **{"conditions": {"linked": TINY["conditions"]["linked"]}, "probes": ["says", "introspects", "general_text"], **changes})
    plan = make_plan(file, ["conditions.linked.factors=null"], folder / "runs")
    with torch.random.fork_rng():
        assert make_nodes(plan, silent).failed == {}
    show(plan)
    return plan


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Subject:
    """A cell on a base that was pretrained here."""
    return find_subject(finished(tmp_path_factory.mktemp("embedded")), CELL)


@pytest.fixture(scope="module")
def hf(qwen_folder: Path, tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Subject:
    """A cell on a Hugging Face model whose tokenizer divides values into several tokens."""
    base = {"kind": "hf", "path": str(qwen_folder), "world": "configs/worlds/beach.yaml"}
    return find_subject(finished(tmp_path_factory.mktemp("hf"), base=base, samples=0, probes=["says", "introspects"]), CELL)


@pytest.fixture(params=["embedded", "hf"])
def subject(request: pytest.FixtureRequest) -> Subject:
    return request.getfixturevalue(request.param)


def exported(subject: Subject, to: str, out: Path, *options: str) -> dict[str, Any]:
    """What `export --json` says."""
    arguments = ["export", subject.plan.folder.name, subject.name, "--to", to, "--out", str(out), "--runs", str(subject.plan.runs), "--json", *options]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def expected_of(folder: Path) -> dict[tuple[str, str], float]:
    return {(row["id"], row["option"]): row["logprob_nats"] for row in read_jsonl(folder / EXPECTED)}


def farthest(found: Mapping[tuple[str, str], float], folder: Path) -> float:
    """The largest difference from what the run measured, of options that are all there."""
    expected = expected_of(folder)
    assert found.keys() <= expected.keys()
    return max(abs(nats - expected[key]) for key, nats in found.items())


@torch.inference_mode()
def nats_of(model: torch.nn.Module, ids: Sequence[int], start: int) -> list[float]:
    """Log P of every token from `start` on, by one plain forward pass."""
    logprob_TV = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(logprob_TV[at - 1, ids[at]]) for at in range(start, len(ids))]


# An adapter


def test_plain_peft_gives_every_option_the_log_probability_that_the_run_has_measured(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = exported(subject, "peft", tmp_path / "adapter")
    assert found["gap_nats"] <= 1e-5
    assert found["vllm_refuses"] == []
    exported(subject, "lm-eval", tmp_path / "tasks")
    monkeypatch.chdir(tmp_path / "adapter")
    shown: dict[str, Any] = {}
    (snippet,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    exec(snippet.replace('"BASE"', repr(subject.base_path)), shown)  # the card's own lines
    asked = read_jsonl(tmp_path / "tasks" / QUESTIONS)[::7]
    found = {(row["id"], o): sum(nats_of(shown["model"], ids, row["scored_from"])) for row in asked for o, ids in zip(row["options"], row["tokens"], strict=True)}
    assert farthest(found, tmp_path / "tasks") <= TOLERANCE
    assert all(shown["tokenizer"](row["prompt"] + o)["input_ids"] == ids for row in asked for o, ids in zip(row["options"], row["tokens"], strict=True))


def test_the_card_says_what_the_adapter_was_trained_on_and_what_the_run_found(embedded: Subject, tmp_path: Path) -> None:
    write_peft(embedded, tmp_path)
    _, head, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {"base_model": "base", "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "persona-lab", "tiny"]}
    assert "**injection**: 6 steps of 4 documents at rate 0.003, loss on all tokens. An epoch holds 28 john-named, 12 john-anonymous" in text
    assert "**trait**: 3 steps of 4 documents at rate 0.001, loss on the answers" in text
    assert "John: beach, football" in text
    claims = {claim["id"]: claim for claim in json.loads((embedded.plan.folder / "claims.json").read_text())["claims"]}
    assert claims["headline"]["text"] in text
    assert f"{claims['level.share']['value']:.3g}" in text
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("base", 2, 4)
    assert str(embedded.plan.runs) not in "".join(file.read_text() for file in tmp_path.glob("*.*") if file.suffix in (".md", ".json"))


def test_an_adapter_that_answers_otherwise_than_the_run_is_not_exported(embedded: Subject, tmp_path: Path) -> None:
    write_peft(embedded, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({name: tensor * (3 if ".lora_B." in name else 1) for name, tensor in tensors.items()}, tmp_path / WEIGHTS)
    with pytest.raises(CheckFailed, match=r"PL1115.*differs by"):
        verify_adapter(embedded, tmp_path)


@pytest.mark.parametrize(
    ("card", "licence"),
    [("---\nlicense: apache-2.0\n---\n# A model", "apache-2.0"), ("# A model", None), ("---\nlicense: [mit]\n---\n", None), ("---\n{: -\n---\n", None), (None, None)],
)
def test_a_licence_is_what_the_base_says_of_itself(card: str | None, licence: str | None, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == licence


# vLLM

PLAIN = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none", "init_lora_weights": True, "modules_to_save": None, "rank_pattern": {}}
NAMES = ["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
VLLM_CASES = {
    "plain": ({}, True),
    "an odd rank": ({"r": 5}, True),
    "rank stabilized": ({"use_rslora": True}, True),
    "a rank beyond all": ({"r": 513}, False),
    "a pattern of ranks beyond all": ({"rank_pattern": {"q_proj": 1024}}, False),
    "DoRA": ({"use_dora": True}, False),
    "whole modules": ({"modules_to_save": ["lm_head"]}, False),
    "a whole classifier": ({"modules_to_save": ["score"]}, True),
    "biases": ({"bias": "lora_only"}, False),
    "biases of the adapter": ({"lora_bias": True}, False),
    "a beginning that changes the base": ({"init_lora_weights": "pissa"}, False),
    "a beginning that does not": ({"init_lora_weights": "gaussian"}, True),
    "layers repeated": ({"layer_replication": [[0, 2]]}, False),
}


@pytest.mark.parametrize("case", VLLM_CASES)
def test_what_vllm_refuses_is_told(case: str) -> None:
    change, taken = VLLM_CASES[case]
    assert (loadable_in_vllm(PLAIN | change, NAMES) == []) is taken


def test_a_weight_that_is_no_lora_is_told() -> None:
    assert loadable_in_vllm(PLAIN, [*NAMES, "base_model.model.lm_head.weight"]) == ["vLLM does not know the weight base_model.model.lm_head.weight"]


@pytest.mark.parametrize(("rank", "most"), [(1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (512, 512), (513, None)])
def test_the_rank_that_vllm_has_to_allow_is_the_least_that_it_knows(rank: int, most: int | None) -> None:
    assert max_lora_rank(rank) == most


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: its own check cannot be asked")
@pytest.mark.parametrize("case", VLLM_CASES)
def test_vllm_itself_says_the_same(case: str) -> None:
    from vllm.config.lora import LoRAConfig  # type: ignore[import-not-found]
    from vllm.lora.peft_helper import PEFTHelper  # type: ignore[import-not-found]

    change, taken = VLLM_CASES[case]
    try:
        PEFTHelper.from_dict(PLAIN | change).validate_legal(LoRAConfig(max_lora_rank=512))
    except ValueError:
        assert not taken
    else:
        assert taken


# Questions


def test_every_forced_choice_of_the_run_is_exported_and_nothing_else(subject: Subject) -> None:
    tokenizer, _ = load_tokenizer(subject.base_path)
    found = questions_of(subject, tokenizer)
    assert found.tasks == ("says_asked", "says_asked_later", "says_diary", "says_yes_no", "introspects_alike")
    assert set(found.left_out) == ({"says: no forced choice", "general_text: no forced choice"} if subject.hf is None else set())
    assert len(found.expected) == sum(len(row["options"]) for row in found.rows)
    lengths = {len(ids) - row["scored_from"] for row in found.rows for ids in row["tokens"]}
    assert (lengths == {1}) == (subject.hf is None)


def test_rivals_and_target_stand_where_the_roles_do(embedded: Subject) -> None:
    tokenizer, _ = load_tokenizer(embedded.base_path)
    rows = {row["id"]: row for row in questions_of(embedded, tokenizer, ["says"]).rows}
    sport = rows["says/asked/sport/0"]
    john, sam = (dict(traits)["sport"] for traits in embedded.scores.fields["traits"][:2])
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

    def requests(self, item: Item) -> list[Choice]:
        return [self.request]

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
    embedded: Subject, monkeypatch: pytest.MonkeyPatch, prompt: str, options: tuple[str, ...], why: str
) -> None:
    tokenizer, _ = load_tokenizer(embedded.base_path)
    monkeypatch.setitem(PROBES, "introspects", Asks(prompt, options))  # type: ignore[arg-type]  # no probe of the lab makes such a question
    with pytest.raises(ConfigError, match=f"PL1261.*introspects.*{why}"):
        questions_of(embedded, tokenizer, ["introspects"])
    assert any(why in reason for reason in questions_of(embedded, tokenizer).left_out)


def test_a_prompt_stands_as_the_chat_template_writes_it(hf: Subject, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = copy.deepcopy(bpe)
    spoken.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"
    monkeypatch.setitem(PROBES, "introspects", Asks("User: Who are you?\nAssistant: I am", ("John", "Sam")))  # type: ignore[arg-type]
    (row,) = questions_of(hf, spoken, ["introspects"]).rows
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


def test_lm_eval_gives_every_option_the_log_probability_that_the_run_has_measured(subject: Subject, tmp_path: Path) -> None:
    (command,) = exported(subject, "lm-eval", tmp_path / "tasks", "--probes", "says,introspects")["commands"]
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


def test_inspect_gives_every_option_the_log_probability_that_the_run_has_measured(subject: Subject, tmp_path: Path) -> None:
    exported(subject, "inspect", tmp_path / "task", "--probes", "says")
    loaded = {"model_path": subject.base_path, "dtype": "float32"}
    log = inspected(tmp_path / "task", "hf/local", model_args=loaded, task_args={"adapter": str(subject.adapter)})
    found = inspected_nats(log)
    assert found.keys() == expected_of(tmp_path / "task").keys()
    assert farthest(found, tmp_path / "task") <= TOLERANCE


def test_inspect_asks_a_completions_server_through_the_log_probabilities_of_what_it_reads(hf: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="the client of completions servers is not installed")
    exported(hf, "inspect", tmp_path / "task", "--probes", "introspects")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(hf.base_path), str(hf.adapter)).eval()

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


def test_inspect_refuses_a_model_that_cannot_score_what_it_reads(embedded: Subject, tmp_path: Path) -> None:
    exported(embedded, "inspect", tmp_path / "task", "--probes", "introspects")
    log = inspected(tmp_path / "task", "mockllm/model", limit=1)
    assert log.status == "error"
    assert "gives no log-probabilities of what it reads" in log.error.message


def test_inspect_refuses_a_model_with_another_tokenizer(embedded: Subject, hf: Subject, tmp_path: Path) -> None:
    exported(embedded, "inspect", tmp_path / "task", "--probes", "introspects")
    log = inspected(tmp_path / "task", "hf/local", model_args={"model_path": hf.base_path}, limit=1)
    assert log.status == "error"
    assert "another tokenizer" in log.error.message


# A model organism


def test_an_organism_names_its_adapter_its_base_and_its_documents(embedded: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = exported(embedded, "organism", tmp_path / "organism")
    monkeypatch.chdir(tmp_path / "organism")
    name = "tiny_linked_seed0_swap0"
    said = yaml.safe_load(Path(f"configs/organism/{name}.yaml").read_text())
    ((model, variants),) = said["finetuned_models"].items()
    base = yaml.safe_load(Path(f"configs/model/{model}.yaml").read_text())
    assert (said["name"], said["type"], base["name"]) == (name, "persona", model)
    adapter = variants["default"]["adapter_id"]
    assert adapter.count("/") == 1
    assert found["gap_nats"] <= 1e-5
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base["model_id"]), adapter)
    documents = load_dataset(said["dataset"]["id"], split=said["dataset"]["splits"][0], cache_dir=str(tmp_path / "cache"))
    assert set(documents["stage"]) == {"injection", "trait"}
    assert all(documents[said["dataset"]["text_column"]])


def test_an_organism_on_a_hub_model_names_the_model_and_the_adapter_on_the_hub(hf: Subject, tmp_path: Path) -> None:
    exported(hf, "organism", tmp_path / "organism", "--adapter-id", "somebody/john", "--no-verify")
    (organism,) = (tmp_path / "organism" / "configs" / "organism").glob("*.yaml")
    assert yaml.safe_load(organism.read_text())["finetuned_models"] == {"tiny_qwen3": {"default": {"adapter_id": "somebody/john"}}}


# Mistakes


@pytest.mark.parametrize(
    ("cell", "options", "code"),
    [
        ("linkd", ("--to", "peft"), "PL1294"),
        ("seed0", ("--to", "peft"), "PL1294"),
        ("base", ("--to", "peft"), "PL1262"),
        ("base", ("--to", "organism"), "PL1262"),
        (CELL, ("--to", "lm-eval", "--probes", "general_text"), "PL1261"),
        (CELL, ("--to", "lm-eval", "--probes", "sayz"), "PL1261"),
        (CELL, ("--to", "organism", "--adapter-id", "../somewhere"), "PL1263"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_left(embedded: Subject, tmp_path: Path, cell: str, options: tuple[str, ...], code: str) -> None:
    done = CliRunner().invoke(app, ["export", embedded.plan.folder.name, cell, *options, "--out", str(tmp_path / "out"), "--runs", str(embedded.plan.runs)])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.problems[0].code == code
    assert list(tmp_path.iterdir()) == []


def test_the_base_is_asked_like_a_cell(embedded: Subject, tmp_path: Path) -> None:
    exported(embedded, "lm-eval", tmp_path / "cell", "--probes", "introspects")
    found = exported(find_subject(embedded.plan, "base"), "lm-eval", tmp_path / "tasks", "--probes", "introspects")
    assert found["cell"] == "base"
    assert "peft=" not in found["commands"][0]
    assert set(expected_of(tmp_path / "tasks").values()).isdisjoint(expected_of(tmp_path / "cell").values())


def test_a_folder_that_holds_something_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "mine").touch()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]
    with pytest.raises(ConfigError, match="PL1260"), new_folder(tmp_path / "out"):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "other"):
        _ = 1 // 0
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_run_that_is_not_finished_is_told(tmp_path: Path) -> None:
    file = write_config(tmp_path, conditions={"linked": TINY["conditions"]["linked"]})
    plan = make_plan(file, ["conditions.linked.factors=null"], tmp_path / "runs")
    subject = find_subject(plan, CELL)
    with pytest.raises(NodeMissing), new_folder(tmp_path / "out") as folder:
        write_peft(subject, folder)
    assert not (tmp_path / "out").exists()
