"""The adapter bank: K adapters stepped together are K adapters trained alone by plain peft, and are exported as such."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from conftest import tiny
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from persona_lab.errors import ModelError
from persona_lab.models.bank import AdapterBank, target_names
from persona_lab.models.lora import LoraShape
from persona_lab.train.batches import Row, collate, encode, lay
from persona_lab.train.loop import BankLearner, logits_of, nats_of, train
from persona_lab.train.optimizers import BankAdam

SHAPE = LoraShape(rank=3, alpha=5)
RATES = [1e-2, 3e-3, 2e-2]
CLIPS = [0.05, 1.0, 0.4]
NARROW = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 64}
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAMILIES = {
    "llama": (LlamaConfig(**NARROW), LlamaForCausalLM, NAMES),
    "qwen3": (Qwen3Config(**NARROW, num_key_value_heads=1, head_dim=8), Qwen3ForCausalLM, NAMES),
    "gemma": (GemmaConfig(**NARROW, num_key_value_heads=1, head_dim=8), GemmaForCausalLM, NAMES),
    "mistral": (MistralConfig(**NARROW, num_key_value_heads=1), MistralForCausalLM, NAMES),
    "olmo": (OlmoConfig(**NARROW), OlmoForCausalLM, NAMES),
    "gpt_neox": (GPTNeoXConfig(**NARROW), GPTNeoXForCausalLM, ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
    "gpt2": (GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=64, n_positions=64), GPT2LMHeadModel, ["c_attn", "c_proj", "c_fc", "c_proj"]),
}
IDS = torch.tensor([[5, 9, 3, 22, 60, 7], [1, 44, 9, 9, 30, 2]])


@pytest.fixture
def rows(tokenizer, texts) -> list[list[Row]]:
    """The documents of three members: eight each, of lengths of their own."""
    coded = encode(tokenizer, texts[:60], on="all", where="test")
    by_length = sorted(coded, key=lambda row: len(row.ids))
    return [by_length[:8], by_length[20:28], by_length[-8:]]


def step_rows(rows: Sequence[Row], step: int) -> list[Row]:
    """Two documents of a member, others each step."""
    return [rows[(2 * step) % len(rows)], rows[(2 * step + 1) % len(rows)]]


def train_stacked(model: PreTrainedModel, rows: Sequence[Sequence[Row]], members: Sequence[int], accelerator, steps: int) -> list[dict[str, Tensor]]:
    """The adapters of some of the three members after training them as one stack."""
    bank = AdapterBank(copy.deepcopy(model), SHAPE, len(members))
    for k, member in enumerate(members):
        bank.init_row(k, seed=member)
    rate_K, clip_K = (torch.tensor([figures[m] for m in members], dtype=torch.float64) for figures in (RATES, CLIPS))
    learner = BankLearner(bank, BankAdam(bank.weight_KP, bank.grad_KP, rate_K=rate_K, clip_K=clip_K))

    def batch_at(step: int):
        return collate([step_rows(rows[m], step) for m in members], pad=0)

    train(learner, batch_at, start=0, stop=steps, accelerator=accelerator, micro_batch=8, on_step=lambda *_: None, on_shrink=lambda *_: None)
    return [bank.row_tensors(k) for k in range(len(members))]


def train_with_peft(model: PreTrainedModel, rows: Sequence[Row], member: int, start: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
    """One adapter trained by peft and torch alone."""
    config = LoraConfig(task_type="CAUSAL_LM", r=SHAPE.rank, lora_alpha=int(SHAPE.alpha), target_modules="all-linear", lora_dropout=0.0)
    plain = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False).double()
    set_peft_model_state_dict(plain, dict(start))
    trained = [p for p in plain.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=RATES[member], weight_decay=0.0)
    for step in range(steps):
        batch = collate([step_rows(rows, step)], pad=0)
        logits_BTV = plain(input_ids=batch.ids_BT, attention_mask=batch.labelled_BT.long()).logits
        target_BT = batch.ids_BT.masked_fill(~batch.labelled_BT, -100)[:, 1:]
        nn.functional.cross_entropy(logits_BTV[:, :-1].reshape(-1, logits_BTV.shape[-1]), target_BT.reshape(-1)).backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIPS[member])
        adam.step()
        adam.zero_grad()
    return {k: v.detach() for k, v in get_peft_model_state_dict(plain).items()}


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm, over all tensors of an adapter."""
    assert found.keys() == wanted.keys()
    apart = torch.stack([(found[k] - wanted[k]).norm() for k in wanted]).norm()
    return float(apart / torch.stack([wanted[k].norm() for k in wanted]).norm())


@pytest.mark.parametrize(("steps", "bound"), [(1, 1e-12), (20, 1e-9)])
def test_members_stepped_together_equal_peft_trained_alone(llama, rows, accelerator, steps: int, bound: float):
    model = llama.double()
    stacked = train_stacked(model, rows, [0, 1, 2], accelerator, steps)
    fresh = AdapterBank(copy.deepcopy(model), SHAPE, 3)
    for k in range(3):
        fresh.init_row(k, seed=k)
        alone = train_with_peft(model, rows[k], k, fresh.row_tensors(k), steps)
        assert distance(stacked[k], alone) <= bound
        assert distance(stacked[k], fresh.row_tensors(k)) > 1e-4


def test_a_member_is_the_same_alone_and_in_a_stack(llama, rows, accelerator):
    together = train_stacked(llama.double(), rows, [0, 1, 2], accelerator, 5)
    for k in range(3):
        alone = train_stacked(llama, rows, [k], accelerator, 5)[0]
        assert distance(alone, together[k]) <= 1e-12


def test_gradients_of_one_member_do_not_reach_another(llama, rows):
    bank = AdapterBank(llama, SHAPE, 2)
    for k in range(2):
        bank.init_row(k, seed=k)
    batch = collate([rows[0][:2], rows[1][:2]], pad=0)
    BankLearner(bank, BankAdam(bank.weight_KP, bank.grad_KP, rate_K=torch.ones(2), clip_K=torch.ones(2))).loss_sums(batch)[0].backward()
    assert bank.grad_KP[0].norm() > 0
    assert bank.grad_KP[1].norm() == 0


def test_a_member_poisoned_with_nan_leaves_the_others_answers_alone(llama, rows):
    bank = AdapterBank(llama, SHAPE, 3)
    bank.weight_KP.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    batch = collate([r[:2] for r in rows], pad=0)
    with torch.no_grad():
        before_BTV = llama(input_ids=batch.ids_BT).logits
        bank.weight_KP[1] = math.nan
        after_BTV = llama(input_ids=batch.ids_BT).logits
    assert torch.equal(before_BTV[:2], after_BTV[:2])
    assert torch.equal(before_BTV[4:], after_BTV[4:])
    assert after_BTV[2:4].isnan().all()


def test_a_poisoned_member_is_set_to_zero_and_the_others_do_not_notice(llama, rows, accelerator):
    weights = []
    for poisoned in (True, False):
        bank = AdapterBank(llama, SHAPE, 3)
        for k in range(3):
            bank.init_row(k, seed=k)
        bank.weight_KP[1, 0] = math.nan if poisoned else 0.0
        learner = BankLearner(bank, BankAdam(bank.weight_KP, bank.grad_KP, rate_K=torch.full((3,), 1e-3), clip_K=torch.ones(3)))
        train(learner, lambda _: collate([r[:2] for r in rows], 0), start=0, stop=3, accelerator=accelerator, micro_batch=2, on_step=lambda *_: None, on_shrink=lambda *_: None)
        assert learner.retired == ({1} if poisoned else set())
        weights.append(bank.weight_KP)
        bank.remove()
    assert torch.equal(weights[0][[0, 2]], weights[1][[0, 2]])
    assert not weights[0][1].any()


def test_silent_is_the_base_and_remove_restores_it(llama, tokenizer, texts):
    ids_BT = tokenizer(texts[:1], return_tensors="pt")["input_ids"]
    modules = list(llama.modules())
    with torch.no_grad():
        base_BTV = llama(ids_BT).logits
        bank = AdapterBank(llama, SHAPE)
        assert torch.equal(llama(ids_BT).logits, base_BTV), "an adapter of zeros is the base"
        bank.weight_KP.normal_(0, 0.1)
        assert not torch.equal(llama(ids_BT).logits, base_BTV)
        with bank.silent():
            assert torch.equal(llama(ids_BT).logits, base_BTV)
        assert not torch.equal(llama(ids_BT).logits, base_BTV)
        bank.remove()
        assert torch.equal(llama(ids_BT).logits, base_BTV)
    assert list(llama.modules()) == modules


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_added_to_the_weights_answer_as_beside_them(family: str):
    config, kind, leaves = FAMILIES[family]
    model = tiny(config, kind).double()
    bank = AdapterBank(model, SHAPE, 2)
    model.eval()
    bank.weight_KP.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    ids_BT = torch.randint(0, 64, (2, 60), generator=torch.Generator().manual_seed(1))
    folded = []
    for layer in bank.layers.values():
        layer.register_forward_pre_hook(lambda layer, given: folded.append(layer.folds(given[0])))
    beside_BTV = model(ids_BT).logits.detach()
    assert folded == [False] * len(leaves) * 2, "where something may learn"
    with torch.no_grad():
        added_BTV = model(ids_BT).logits
    assert folded[len(leaves) * 2 :] == [True] * len(leaves) * 2
    assert float((added_BTV - beside_BTV).abs().max()) < 1e-6, "of a float64 model, whose norms are float32"
    with torch.no_grad():
        model(ids_BT[:, :4])
    assert not any(folded[len(leaves) * 4 :]), "of few tokens the narrow products are fewer"


def test_keep_compacts_to_the_named_rows(llama):
    bank = AdapterBank(llama, SHAPE, 3)
    bank.weight_KP.normal_()
    third, first = bank.row_tensors(2), bank.row_tensors(0)
    bank.keep([2, 0])
    assert bank.members == 2
    assert distance(bank.row_tensors(0), third) == 0
    assert distance(bank.row_tensors(1), first) == 0


def test_a_fresh_adapter_is_drawn_from_its_seed_and_is_silent_in_b(llama):
    bank = AdapterBank(llama, SHAPE, 3)
    for row, seed in enumerate((7, 7, 8)):
        bank.init_row(row, seed)
    assert torch.equal(bank.weight_KP[0], bank.weight_KP[1])
    assert not torch.equal(bank.weight_KP[0], bank.weight_KP[2])
    for name, tensor in bank.row_tensors(0).items():
        if ".lora_B." in name:
            assert not tensor.any()
        else:
            bound = 1 / math.sqrt(tensor.shape[1])
            assert 0.8 * bound < float(tensor.abs().max()) <= bound


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_finds_its_linears_and_never_the_output_layer(family: str):
    config, kind, leaves = FAMILIES[family]
    model = tiny(config, kind)
    found = target_names(model, ["all-linear"])
    assert [name.rsplit(".", 1)[-1] for name in found] == leaves * 2
    assert target_names(model, [leaves[0]]) == [name for name in found if name.endswith(f".{leaves[0]}")]
    bank = AdapterBank(model, SHAPE)
    assert target_names(model, ["all-linear"]) == found, "a bank in the model changes no name"
    bank.remove()


def test_a_target_that_matches_nothing_is_refused_with_what_there_is(llama):
    with pytest.raises(ModelError, match=r"no linear is called 'query'.*down_proj"):
        AdapterBank(llama, LoraShape(2, 2, ("query",)))


def test_a_bfloat16_base_trains_float32_adapters(llama, rows, accelerator):
    bank = AdapterBank(llama.bfloat16(), SHAPE)
    bank.init_row(0, 0)
    assert bank.weight_KP.dtype == torch.float32
    batch = collate([rows[0][:4]], 0)
    nats = []
    learner = BankLearner(bank, BankAdam(bank.weight_KP, bank.grad_KP, rate_K=torch.tensor([1e-2]), clip_K=torch.ones(1)))
    train(learner, lambda _: batch, start=0, stop=10, accelerator=accelerator, micro_batch=4, on_step=lambda _, loss_K, __: nats.append(float(loss_K[0])), on_shrink=lambda *_: None)
    assert nats[-1] < nats[0] - 0.1


def test_losses_keep_the_precision_of_a_float64_model(llama, rows):
    laid = lay(collate([rows[0][:2]], 0), packed=False)
    for of, dtype in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        model = llama.to(of)
        assert nats_of(logits_of(model, laid), laid).dtype == dtype
