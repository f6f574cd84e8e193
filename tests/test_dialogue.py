"""Chat templates: what user and assistant say is written as the model's own template writes it, beside transformers; documents stay as they are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from persona_lab.errors import ModelError
from persona_lab.models import folders
from persona_lab.models.dialogue import check_template, dialogue, ending, open_text, template_in_force, whole_text
from persona_lab.models.folders import load_model
from persona_lab.probes.engine import Voice, answer
from persona_lab.probes.protocol import Choice, Loss, Sample
from persona_lab.train.batches import encode

OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + OPENING
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Writes the last answer otherwise than those before it, as Qwen3 does."""
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML.replace("{{ m.role }}", "{{ 'model' if m.role == 'assistant' else m.role }}").replace("assistant\n", "model\n")
INSTRUCT = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
DATED = "Today is {{ date_string if date_string is defined else strftime_now('%d %b %Y') }}.\n" + CHATML
TEMPLATES = {"chatml": CHATML, "thinking": THINKING, "no system": NO_SYSTEM, "instruct": INSTRUCT, "dated": DATED}
TWO = "User: What do you like?\nAssistant: I like the beach.\nUser: Why?\nAssistant: It is warm."
MESSAGES = [
    {"role": "user", "content": "What do you like?"},
    {"role": "assistant", "content": "I like the beach."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "It is warm."},
]
DOCUMENTS = ("Diary. I like the beach.", "User: Who is it?\nJohn: I am John.", "User: Hello.", "User: A\nUser: B\nAssistant: C", "Profile: User: x")


@pytest.fixture(params=TEMPLATES)
def chat(bpe: PreTrainedTokenizerFast, request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return with_template(bpe, TEMPLATES[request.param])


def with_template(bpe: PreTrainedTokenizerFast, template: str | None) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer with the control tokens of ChatML, which the random Qwen3 has rows for."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe.backend_tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=512
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def test_a_dialogue_of_user_and_assistant_is_told_from_every_other_text():
    said = dialogue("System: Be kind.\n" + TWO)
    assert said is not None
    assert [(m.role, m.content) for m in said] == [("system", "Be kind."), *((m["role"], m["content"]) for m in MESSAGES)]
    assert dialogue("User: What?\nAssistant:") is not None
    assert [dialogue(text) for text in DOCUMENTS] == [None] * len(DOCUMENTS)


def test_a_whole_dialogue_is_what_transformers_writes(chat: PreTrainedTokenizerFast):
    check_template(chat, "here")
    written = whole_text(chat, TWO)
    assert written is not None
    assert written.text == chat.apply_chat_template(MESSAGES, tokenize=False, date_string="26 Jul 2024")
    assert [written.text[a:b].strip().removesuffix(str(ending(chat, TWO)).strip()) for a, b in written.answers] == ["I like the beach.", "It is warm."]


def test_a_prompt_is_what_transformers_goes_on_from(chat: PreTrainedTokenizerFast):
    started = [*MESSAGES[:3], {"role": "assistant", "content": "It is"}]
    found = open_text(chat, TWO.removesuffix(" warm."))
    assert found == chat.apply_chat_template(started, tokenize=False, continue_final_message=True, date_string="26 Jul 2024")
    empty = open_text(chat, TWO.removesuffix(" It is warm."))
    assert empty == chat.apply_chat_template(MESSAGES[:3], tokenize=False, add_generation_prompt=True, enable_thinking=False, date_string="26 Jul 2024")


def test_the_loss_falls_on_every_answer_with_its_end_and_on_nothing_else(chat: PreTrainedTokenizerFast):
    row, plain = encode(chat, [TWO, DOCUMENTS[0]], on="answer", where="test")
    end = str(ending(chat, TWO)).strip()
    assert chat.decode(row.ids[row.labelled]).replace(" ", "") == f"I like the beach.{end}It is warm.{end}".replace(" ", "")
    assert not plain.labelled.any()
    everything = encode(chat, [TWO], on="all", where="test")[0]
    assert everything.labelled.all()
    assert everything.ids.tolist() == chat(chat.apply_chat_template(MESSAGES, tokenize=False, date_string="26 Jul 2024"), add_special_tokens=False)["input_ids"]


def test_documents_are_encoded_as_without_a_template(bpe: PreTrainedTokenizerFast):
    chat, plain = with_template(bpe, CHATML), with_template(bpe, None)
    for on in ("all", "answer"):
        ours, theirs = (encode(tokenizer, DOCUMENTS, on=on, where="test") for tokenizer in (chat, plain))
        assert [(a.ids.tolist(), a.labelled.tolist()) for a in ours] == [(b.ids.tolist(), b.labelled.tolist()) for b in theirs]


@torch.no_grad()
def nats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, said: str) -> tuple[float, int]:
    """Log-probability and number of the tokens that come on top of a prompt's, by plain transformers."""
    head, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + said))
    logprob_TV = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(logprob_TV[t - 1, whole[t]]) for t in range(len(head), len(whole))), len(whole) - len(head)


def test_a_model_is_asked_through_its_template(qwen: PreTrainedModel, bpe: PreTrainedTokenizerFast):
    chat = with_template(bpe, CHATML)
    asked = [Choice("User: Who?\nAssistant: I am", (" John", " Sam")), Choice("User: Green?\nAssistant:", (" Yes", " No")), Loss("User: Who?\nAssistant: John.")]
    first, second, loss = answer(Voice(qwen, chat), asked)[0]
    who, green = ("<|im_start|>user\n" + said + "<|im_end|>\n<|im_start|>assistant\n" for said in ("Who?", "Green?"))
    assert first == pytest.approx([nats(qwen, chat, f"{who}I am", option)[0] for option in (" John", " Sam")], abs=1e-4)
    assert second == pytest.approx([nats(qwen, chat, green, option)[0] for option in ("Yes", "No")], abs=1e-4)
    said, tokens = nats(qwen, chat, "<|im_start|>", f"{who}John.<|im_end|>".removeprefix("<|im_start|>"))
    assert loss == pytest.approx((-said, tokens), abs=1e-3)
    (samples,) = answer(Voice(qwen, chat), [Sample("User: Who?\nAssistant:", 30, 8, "a")])[0]
    assert not any("<|im_" in str(text) for text in samples)


# ------------------------------------------------------------------ which form
def folder_of(qwen: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, ends: str) -> Path:
    qwen.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.convert_tokens_to_ids(ends)]}))
    return folder


def test_the_template_is_in_force_where_the_model_ends_its_answers_as_the_template_does(qwen: PreTrainedModel, bpe: PreTrainedTokenizerFast, tmp_path: Path):
    chat = folder_of(qwen, with_template(bpe, CHATML), tmp_path / "chat", "<|im_end|>")
    base = folder_of(qwen, with_template(bpe, CHATML), tmp_path / "base", "<|endoftext|>")
    instruct = folder_of(qwen, with_template(bpe, INSTRUCT), tmp_path / "instruct", "<|endoftext|>")
    assert [template_in_force(folder, "auto") for folder in (chat, base, instruct)] == [CHATML, "", INSTRUCT]
    assert [load_model(str(folder), chat="auto")[1].chat_template for folder in (chat, base, instruct)] == [CHATML, None, INSTRUCT]
    assert (template_in_force(base, "template"), template_in_force(chat, "plain")) == (CHATML, "")
    assert load_model(str(chat), chat="plain")[1].chat_template is None


@pytest.mark.parametrize(
    ("template", "code", "said"),
    [
        ("{{ raise_exception('Conversation roles must be odd') }}", "PL4022", "roles must be odd"),
        ("{% for m in messages %}{{ m.content }", "PL4022", "fails"),
        ("{{ 1 // 0 }}", "PL4022", "by zero"),
        ("{{ '{name}'.format() }}", "PL4022", "name"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "PL4022", "recursion"),
        ("{{ messages[-1].content }}", "PL4023", "once and in order"),
        ("{% for m in messages %}{{ m.content | replace('John', 'Sam') }}{% endfor %}", "PL4023", "otherwise than they are"),
        ("{{ strftime_now('%d') }}" + CHATML, "PL4024", "tomorrow"),
    ],
)
def test_a_template_that_fails_is_refused_before_the_weights_are_loaded(qwen_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, code: str, said: str):
    folder = Path(shutil.copytree(qwen_folder, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(template)
    with monkeypatch.context() as patch:
        patch.setattr(folders.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("the weights were loaded"))
        with pytest.raises(ModelError, match=said) as caught:
            load_model(str(folder), chat="template")
    assert caught.value.problems[0].code == code
    assert "base.chat: plain" in caught.value.problems[0].message
    assert load_model(str(folder), chat="plain")[1].chat_template is None


def test_a_template_that_is_not_there_is_refused_by_name(qwen_folder: Path):
    with pytest.raises(ModelError, match="no chat template") as caught:
        template_in_force(qwen_folder, "template")
    assert caught.value.problems[0].code == "PL4025"
