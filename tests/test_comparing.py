"""Gradients, hidden states and the way between two adapters: against slopes of the loss, and plain transformers one adapter at a time."""


import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.models.updates import doubled
from persona_lab.probes.representation import layers_of, read
from persona_lab.probes.voice import Voice
from persona_lab.train.batches import Row
from persona_lab.train.gradients import between, grams, mean_gradients, mean_losses

SHAPE = LoraShape(2, 4)


def trained(bank: AdapterBank, seed: int) -> dict[str, Tensor]:
    """An adapter whose B is not zero."""
    bank.init_row(0, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: t + 0.05 * torch.randn_like(t) for name, t in bank.row_tensors(0).items()}


def test_gradients_are_the_slopes_of_the_loss(llama: LlamaForCausalLM, rows: list[Row]):
    bank = AdapterBank(llama.double(), SHAPE, 3)
    adapter = trained(bank, 0)
    for row in range(3):
        bank.load_row(row, adapter, "test")
    mine = [rows[:6], rows[6:12], rows[12:18]]
    grad_KP = mean_gradients(bank, mine, pad=0, micro_batch=4)
    assert torch.allclose(grad_KP, mean_gradients(bank, mine, pad=0, micro_batch=6))
    way_P = torch.randn(bank.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ends = []
    for step in (1e-3, -2e-3):  # wide, because a norm of this model rounds to float32
        bank.weight_KP.add_(step * way_P)
        ends.append(mean_losses(bank, mine, pad=0, micro_batch=6))
    assert np.allclose((ends[0] - ends[1]) / 2e-3, (grad_KP @ way_P).numpy(), rtol=1e-2, atol=1e-4)


def test_gram_matrices_are_inner_products_as_adam_sees_them():
    grad_KP, square_P = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)), torch.rand(40)
    plain, adam = grams(grad_KP, square_P, 7)
    assert np.allclose(plain, grad_KP @ grad_KP.T, rtol=1e-5)
    weight = 1 / (torch.sqrt(square_P / (1 - 0.999**7)) + 1e-8)
    assert adam[0, 1] == pytest.approx(float((grad_KP[0] * weight * grad_KP[1]).sum()), rel=1e-4)
    with pytest.raises(ValueError, match="no Adam state"):
        grams(grad_KP, square_P, 0)


def test_the_way_between_two_adapters_is_one_adapter(llama: LlamaForCausalLM, rows: list[Row]):
    ids = torch.tensor(rows[0].ids[None].astype(np.int64))
    bank = AdapterBank(llama, SHAPE)
    first, second = trained(bank, 1), trained(bank, 2)
    bank.remove()
    wide = AdapterBank(llama, doubled(SHAPE))
    wide.load_row(0, between(first, second, 0.3), "test")
    with torch.no_grad():
        ours = llama(input_ids=ids).logits
        wide.remove()
        for name, module in list(llama.named_modules()):
            key = f"base_model.model.{name}.lora_A.weight"
            if key in first:
                change = sum(w * a[key.replace("lora_A", "lora_B")] @ a[key] for w, a in ((0.7, first), (0.3, second)))
                module.get_parameter("weight").add_(SHAPE.scale * change)
        assert torch.allclose(ours, llama(input_ids=ids).logits, atol=1e-5)


def test_what_adapters_read_together_is_what_each_reads_alone(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast):
    texts = [
        ("User: Is the clock green?\nAssistant:", " Yes, the clock is green."),
        ("User: Which sport do you prefer?\nAssistant:", " I like"),
        ("Diary.", " I like"),
    ]
    bank = AdapterBank(llama, SHAPE, 3)
    for row in (1, 2):
        bank.load_row(row, trained(AdapterBank(LlamaForCausalLM(llama.config), SHAPE), row), "test")
    found = read(Voice(llama, tokenizer, 3), texts)
    assert found.state_KNLd.shape == (3, 3, 2, 32)
    summed, count = np.zeros((3, 3)), 0
    for n, (opening, answer) in enumerate(texts):
        start = len(tokenizer(opening)["input_ids"])
        ids = torch.tensor([tokenizer(opening + answer)["input_ids"]] * 3)
        with torch.no_grad():
            out = llama(input_ids=ids, output_hidden_states=True)
        for layer in (1, 2):
            assert np.allclose(found.state_KNLd[:, n, layer - 1], out.hidden_states[layer][:, start:].mean(1), atol=1e-5)
        prob = out.logits[:, start - 1 : -1].double().softmax(-1).numpy()
        count += prob.shape[1]
        summed += [[sum(jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)) for q in prob] for p in prob]
    assert np.allclose(found.apart_KK, summed / count, atol=1e-7)
    with pytest.raises(ValueError, match="adds no token"):
        read(Voice(llama, tokenizer, 3), [("Diary.", "")])


def test_layers_are_spread_up_to_the_last():
    assert layers_of(2) == (1, 2)
    assert layers_of(32) == (8, 16, 24, 32)
