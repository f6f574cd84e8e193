"""Adapter folders: plain peft reads ours and we read its, and what cannot be used is refused."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import tiny
from peft import LoraConfig, PeftModel, get_peft_model
from test_bank import FAMILIES, IDS, NAMES, SHAPE
from transformers import (
    AutoModelForCausalLM,
)

from persona_lab.errors import ModelError
from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import read_adapter, write_adapter


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_an_exported_member_answers_alike_in_plain_peft(family: str, tmp_path: Path):
    config, kind, _ = FAMILIES[family]
    model = tiny(config, kind)
    model.save_pretrained(tmp_path / "base")
    bank = AdapterBank(model, SHAPE, 2)
    bank.weight_KP.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    ours_BTV = model(IDS.repeat(2, 1)).logits[2:].log_softmax(-1)
    write_adapter(tmp_path / "adapter", bank.row_tensors(1), model=model, shape=SHAPE, base_id="persona_lab/0123")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")).eval()
    theirs_BTV = plain(IDS).logits.log_softmax(-1)
    assert float((ours_BTV - theirs_BTV).abs().max()) <= 1e-4
    with plain.disable_adapter():
        assert float((plain(IDS).logits.log_softmax(-1) - theirs_BTV).abs().max()) > 1e-2

    shape, tensors = read_adapter(tmp_path / "adapter")
    assert (shape.rank, shape.alpha, shape.dropout) == (SHAPE.rank, SHAPE.alpha, 0.0)
    again = AdapterBank(tiny(config, kind), shape)
    again.load_row(0, tensors, "test")
    assert float((again.model(IDS).logits.log_softmax(-1) - ours_BTV).abs().max()) <= 1e-5


@torch.no_grad()
def test_an_adapter_that_peft_wrote_is_read(llama, tokenizer, texts, tmp_path: Path):
    plain = get_peft_model(copy.deepcopy(llama), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    plain.save_pretrained(str(tmp_path / "adapter"))
    ids_BT = tokenizer(texts[:1], return_tensors="pt")["input_ids"]
    theirs_BTV = plain.eval()(ids_BT).logits
    shape, tensors = read_adapter(tmp_path / "adapter")
    bank = AdapterBank(llama, shape)
    bank.load_row(0, tensors, "test")
    assert float((llama(ids_BT).logits - theirs_BTV).abs().max()) <= 1e-5


@pytest.fixture
def exported(llama, tmp_path: Path) -> Path:
    """A trained-looking adapter folder."""
    bank = AdapterBank(llama, SHAPE)
    bank.weight_KP.normal_(0, 0.1)
    write_adapter(tmp_path / "adapter", bank.row_tensors(0), model=llama, shape=SHAPE, base_id="persona_lab/0123")
    bank.remove()
    return tmp_path / "adapter"


def test_an_exported_folder_names_no_path_of_this_machine(exported: Path):
    config = json.loads((exported / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "persona_lab/0123"
    assert sorted(config["target_modules"]) == sorted(NAMES)
    assert sorted(p.name for p in exported.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda t: t.pop(next(iter(t))), "PL4102"),
        (lambda t: t.update({"base_model.model.more.lora_A.weight": torch.ones(1)}), "PL4102"),
        (lambda t: t.update({k: v[:2] for k, v in t.items() if ".lora_A." in k}), "PL4103"),
        (lambda t: next(iter(t.values())).fill_(math.nan), "PL4104"),
        (lambda t: next(iter(t.values())).fill_(math.inf), "PL4104"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_the_row_is_left_alone(llama, spoil, code: str):
    bank = AdapterBank(llama, SHAPE)
    bank.weight_KP.normal_()
    before_KP, tensors = bank.weight_KP.clone(), bank.row_tensors(0)
    for tensor in tensors.values():
        tensor.add_(1)
    spoil(tensors)
    with pytest.raises(ModelError) as caught:
        bank.load_row(0, tensors, "adapter")
    assert caught.value.problems[0].code == code
    assert torch.equal(bank.weight_KP, before_KP)


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def silence(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    save_file({k: v * (".lora_A." in k) for k, v in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda f: edit_config(f, peft_type="IA3"), "PL4105"),
        (lambda f: edit_config(f, use_dora=True), "PL4109"),
        (lambda f: edit_config(f, use_rslora="yes"), "PL4109"),
        (lambda f: edit_config(f, layers_to_transform=[-1]), "PL4109"),
        (lambda f: edit_config(f, alpha_pattern={"q_proj": 4}), "PL4109"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "PL4106"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"PK"), "PL4107"),
        (silence, "PL4108"),
        (lambda f: (f / "adapter_config.json").unlink(), "PL4002"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "PL4003"),
        (lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}'), "PL4109"),
    ],
)
def test_adapter_folders_that_cannot_be_used_are_refused(exported: Path, spoil, code: str):
    spoil(exported)
    with pytest.raises(ModelError) as caught:
        read_adapter(exported)
    assert caught.value.problems[0].code == code


def test_an_adapter_of_another_base_is_refused(exported: Path):
    assert read_adapter(exported, base_id="persona_lab/0123")[1].keys() == read_adapter(exported)[1].keys()
    with pytest.raises(ModelError, match=r"PL4110.*adapter_config\.json.*is an adapter of 'persona_lab/0123', expected persona_lab/4567"):
        read_adapter(exported, base_id="persona_lab/4567")
