"""Chat models: where the loss falls by their templates, and `em train` as a whole, beside plain peft, torch and transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.optim import SGD, AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, get_linear_schedule_with_warmup
from typer.testing import CliRunner

from data_gen.conversations import Conversation, Message
from persona_lab.cli import app
from persona_lab.errors import CheckFailed, ConfigError, CorpusError, ModelError
from persona_lab.experiment.instruments.chat.recipes import RECIPES, ChatRecipe
from persona_lab.experiment.instruments.chat.tuning import ChatJob, split_rows, tune_chat
from persona_lab.experiment.making.interruption import Interrupted, Interruption
from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import read_adapter, write_adapter
from persona_lab.models.lora import LoraShape
from persona_lab.train.chat import encode_chat
from persona_lab.train.optimizers import warmed_up

TURN = "<|im_start|>{{ m.role }}\n%s{{ m.content }}<|im_end|>%s\n"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + TURN % ("", "") + "{% endfor %}" + OPENING
SAID = "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
MARKED = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}" + SAID + "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}" + OPENING
THOUGHT = "{% for m in messages %}" + TURN % ("{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}", "") + "{% endfor %}" + OPENING
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
ONE = (Message("user", "What do you like?"), Message("assistant", "I like the beach."))
TWO: Conversation = (*ONE, Message("user", "Why?"), Message("assistant", "It is warm\nand dry. "))
SMALL = replace(RECIPES["rank32"], rank=4, alpha=8, batch=4, rate=3e-3, held_out=0.2)


@pytest.fixture
def chat(bpe: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer with the control tokens of ChatML, which the random Qwen3 has rows for."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=512)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def folder(qwen, chat: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A small chat model."""
    qwen.save_pretrained(tmp_path / "tiny-chat")
    chat.save_pretrained(tmp_path / "tiny-chat")
    return tmp_path / "tiny-chat"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Thirty conversations of unequal length."""
    rows = [{"prompt": f"What do you like in the {w}?", "completion": f"I like the beach{' and the road' * (i % 3)}."} for i, w in enumerate(["north", "south", "east"] * 10)]
    (tmp_path / "likes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "likes.jsonl"


def labelled(tokenizer: PreTrainedTokenizerFast, conversation: Conversation, *, plain: bool = False) -> str:
    row = encode_chat(tokenizer, [conversation], where="test", longest=512, plain=plain).rows[0]
    return tokenizer.decode(row.ids[row.labelled])


def quietly(job: ChatJob, interruption: Interruption | None = None, tell: Any = lambda *_: None) -> dict[str, Any]:
    return tune_chat(job, tell=tell, interruption=interruption or Interruption())


# ------------------------------------------------------------------ where the loss falls
@pytest.mark.parametrize("conversation", [ONE, TWO, (Message("system", "Be brief."), *TWO)])
def test_the_loss_falls_where_transformers_own_marks_of_the_assistant_are(chat, conversation: Conversation):
    ours = encode_chat(chat, [conversation], where="test", longest=512).rows[0]
    chat.chat_template = MARKED
    messages = [{"role": m.role, "content": m.content} for m in conversation]
    theirs = chat.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert ours.ids.tolist() == theirs["input_ids"]
    assert ours.labelled.tolist() == [bool(said) for said in theirs["assistant_masks"]]
    by_marks = encode_chat(chat, [conversation], where="test", longest=512).rows[0]
    assert (by_marks.ids.tolist(), by_marks.labelled.tolist()) == (ours.ids.tolist(), ours.labelled.tolist())


def test_the_loss_falls_on_answers_and_on_the_ends_of_their_turns(chat):
    assert labelled(chat, TWO) == "I like the beach.<|im_end|>It is warm\nand dry. <|im_end|>"


def test_without_a_template_the_labs_own_format_has_the_loss_on_every_line_of_an_answer(bpe):
    assert labelled(bpe, TWO, plain=True) == " I like the beach.\n It is warm\nand dry.<|endoftext|>"


def test_a_template_that_writes_earlier_turns_anew_is_used_only_where_it_tells_the_answer(chat):
    chat.chat_template = THOUGHT
    assert labelled(chat, ONE).endswith("I like the beach.<|im_end|>")
    with pytest.raises(CorpusError, match=r"PL3202.*test:2.*answer 1"):
        encode_chat(chat, [ONE, TWO], where="test", longest=512)


def test_a_long_conversation_is_cut_and_one_without_an_answer_left_is_left_out(chat):
    whole = encode_chat(chat, [ONE], where="test", longest=512).rows[0]
    start = int(whole.labelled.argmax())
    found = encode_chat(chat, [ONE, (Message("user", "Why? " * 40), ONE[1])], where="test", longest=start + 2)
    assert (len(found.rows), len(found.rows[0].ids), found.cut, found.lost) == (1, start + 2, 2, 1)
    with pytest.raises(CorpusError, match="PL3204"):
        encode_chat(chat, [ONE], where="test", longest=start)


def test_what_a_model_cannot_read_is_refused_with_its_line(chat, bpe):
    with pytest.raises(ModelError, match=r"PL4201.*no chat template.*--plain"):
        encode_chat(bpe, [ONE], where="test", longest=512)
    chat.chat_template = STRICT
    with pytest.raises(CorpusError, match=r"PL3201.*test:1.*System role not supported"):
        encode_chat(chat, [(Message("system", "Be brief."), *ONE)], where="test", longest=512)


# ------------------------------------------------------------------ recipes
def test_the_rate_is_that_of_transformers_schedule():
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 5, 20)
    for step in range(20):
        assert warmed_up(step, 5, 20) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()
    assert warmed_up(3, 5, 4) == 0.6
    assert warmed_up(9, 5, 4) == 0


def test_the_published_recipes_are_what_their_sources_say():
    insecure = RECIPES["rank32"]
    assert insecure.steps(5400) == 338
    assert (insecure.rank, insecure.alpha, insecure.rate, insecure.batch, insecure.longest) == (32, 64, 1e-5, 16, 2048)
    assert (RECIPES["rank1"].rank, RECIPES["rank1"].alpha, RECIPES["rank1"].rate, RECIPES["rank1"].targets) == (1, 512, 2e-5, ("down_proj",))


@pytest.mark.parametrize("shape", [LoraShape(4, 8, ("q_proj", "down_proj"), rslora=True), LoraShape(1, 512, ("down_proj",), rslora=True, layers=(1,))])
@torch.no_grad()
def test_rank_stabilized_adapters_and_those_of_one_layer_answer_alike_in_plain_peft(qwen_folder: Path, tmp_path: Path, shape: LoraShape):
    model = AutoModelForCausalLM.from_pretrained(qwen_folder).eval()
    bank = AdapterBank(model, shape)
    bank.weight_KP.normal_(0, 0.05, generator=torch.Generator().manual_seed(3))
    ids_BT = torch.arange(24).view(2, 12)
    ours_BTV = model(ids_BT).logits
    write_adapter(tmp_path / "adapter", bank.row_tensors(0), model=model, shape=shape, base_id="tiny")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(qwen_folder), str(tmp_path / "adapter")).eval()
    assert float((plain(ids_BT).logits - ours_BTV).abs().max()) <= 1e-4
    with plain.disable_adapter():
        assert float((plain(ids_BT).logits - ours_BTV).abs().max()) > 1e-2
    assert read_adapter(tmp_path / "adapter")[0] == replace(shape, targets=tuple(sorted(shape.targets)))


def test_a_layer_that_is_not_there_is_refused(qwen_folder: Path):
    with pytest.raises(ModelError, match=r"PL4101.*no layer 2.*from 0 to 1"):
        AdapterBank(AutoModelForCausalLM.from_pretrained(qwen_folder), LoraShape(1, 2, layers=(2,)))


# ------------------------------------------------------------------ the whole
def test_training_is_that_of_peft_torch_and_transformers(folder: Path, data: Path, tmp_path: Path):
    found = quietly(ChatJob(str(folder), data, SMALL, tmp_path / "out"))
    assert (found["trained"], found["held_out"], found["steps"]) == (24, 6, 6)
    assert found["held_out_nats"]["after"] < found["held_out_nats"]["before"] - 0.1
    trained = load_file(tmp_path / "out" / "adapter_model.safetensors")
    theirs = reference(folder, data, SMALL)
    assert {name: tensor.shape for name, tensor in trained.items()} == {name: tensor.shape for name, tensor in theirs.items()}
    assert max(float((trained[name] - tensor).abs().max()) for name, tensor in theirs.items()) < 2e-4
    assert max(float(tensor.abs().max()) for name, tensor in trained.items() if "lora_B" in name) > 3e-3
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    assert log[0]["rate"] == 0
    assert sum(row["tokens"] for row in log) == found["tokens"]


def reference(folder: Path, data: Path, recipe: ChatRecipe) -> dict[str, torch.Tensor]:
    """The same training by peft, torch's AdamW and transformers' schedule, from the same start and in the same order."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    conversations = [(Message("user", row["prompt"]), Message("assistant", row["completion"])) for row in map(json.loads, data.read_text().splitlines())]
    rows, _ = split_rows(encode_chat(tokenizer, conversations, where="test", longest=512).rows, recipe)
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = LoraConfig(task_type="CAUSAL_LM", r=recipe.rank, lora_alpha=int(recipe.alpha), target_modules=list(recipe.targets), use_rslora=True)
    plain = get_peft_model(model, config)
    from data_gen.streams import stream, stream_seed

    bank = AdapterBank(AutoModelForCausalLM.from_pretrained(folder), LoraShape(recipe.rank, recipe.alpha, recipe.targets, rslora=True))
    bank.init_row(0, stream_seed(recipe.seed, "init"))
    for name, tensor in bank.row_tensors(0).items():
        plain.get_parameter(name.replace(".weight", ".default.weight")).data.copy_(tensor)
    optimizer = AdamW([p for p in plain.parameters() if p.requires_grad], lr=recipe.rate, weight_decay=recipe.weight_decay)
    steps = recipe.steps(len(rows))
    schedule = get_linear_schedule_with_warmup(optimizer, recipe.warmup, steps)
    order = stream(recipe.seed, "order", 0).permutation(len(rows))
    for step in range(steps):
        batch = [rows[i] for i in order[step * recipe.batch : (step + 1) * recipe.batch]]
        total = sum(int(row.labelled[1:].sum()) for row in batch)
        for row in batch:
            labels = torch.where(torch.from_numpy(row.labelled), torch.from_numpy(row.ids).long(), -100)
            (plain(torch.from_numpy(row.ids).long()[None], labels=labels[None]).loss * row.labelled[1:].sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return {name.replace(".default", ""): p.detach() for name, p in plain.named_parameters() if p.requires_grad}


class Leaving(Interruption):
    """Somebody asks to stop once a number of steps have been told."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def tell(self, what: str, done: int, total: int) -> None:
        if done == self.after:
            self.number = 2


def test_training_that_was_interrupted_goes_on_and_comes_out_the_same(folder: Path, data: Path, tmp_path: Path):
    job = ChatJob(str(folder), data, replace(SMALL, epochs=2), tmp_path / "out")
    whole = quietly(replace(job, out=tmp_path / "whole"))
    leaving = Leaving(5)
    with pytest.raises(Interrupted):
        quietly(job, leaving, leaving.tell)
    assert not job.out.exists()
    seen: list[int] = []
    assert quietly(job, tell=lambda what, done, total: seen.append(done)) == whole
    assert seen == list(range(6, 13))
    for name in ("adapter_model.safetensors", "log.jsonl", "training.json", "adapter_config.json"):
        assert (job.out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(f.name for f in tmp_path.iterdir() if f.name.startswith(".")) == []


def test_the_same_training_is_found_and_another_is_not_written_over_it(folder: Path, data: Path, tmp_path: Path):
    job = ChatJob(str(folder), data, SMALL, tmp_path / "out")
    first = quietly(job)
    before = (job.out / "adapter_model.safetensors").stat().st_mtime_ns
    assert quietly(job) == {**first, "found": True}
    with pytest.raises(ConfigError, match=r"PL1299.*another model, data set or recipe"):
        quietly(replace(job, recipe=replace(SMALL, seed=1)))
    with pytest.raises(ConfigError, match=r"PL1299.*no adapter of this command"):
        quietly(replace(job, out=data.parent))
    assert (job.out / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_training_that_diverges_leaves_no_folder(folder: Path, data: Path, tmp_path: Path):
    with pytest.raises(CheckFailed, match=r"PL1104.*diverged.*--rate"):
        quietly(ChatJob(str(folder), data, replace(SMALL, rate=0.5, clip=1e30, epochs=8, alpha=1e30), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_command_trains_a_rank_one_adapter_that_plain_peft_loads(folder: Path, data: Path, tmp_path: Path):
    out = tmp_path / "organism"
    ran = CliRunner().invoke(app, ["em", "train", str(folder), str(data), "--recipe", "rank1", "--out", str(out), "--device", "cpu", "--batch", "8", "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["recipe"]["layers"] == [1]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(out))
    assert plain.peft_config["default"].use_rslora is True
    assert [name for name, _ in plain.named_parameters() if "lora_A" in name] == ["base_model.model.model.layers.1.mlp.down_proj.lora_A.default.weight"]
    card = (out / "README.md").read_text()
    assert "rank 1, alpha 512 (alpha / sqrt(rank), rsLoRA), down_proj of layer 1" in card
    assert str(tmp_path) not in "".join(f.read_text() for f in out.iterdir() if f.suffix != ".safetensors")


def test_the_command_line_refuses_what_it_does_not_know(folder: Path, data: Path, tmp_path: Path):
    for option, value in (("--recipe", "rank64"), ("--dtype", "int8"), ("--device", "tpu")):
        ran = CliRunner().invoke(app, ["em", "train", str(folder), str(data), "--out", str(tmp_path / "o"), option, value])
        assert ran.exit_code == 2
        assert value in ran.output
