"""Cells trained as one stack are cells trained alone: by plain peft and torch, in float64, whatever they do not share.

The ladder: one step to 1e-12 and fifty to 1e-9 of peft; then what must change nothing at all, or nothing but rounding.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import tiny
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.models.packing import lay_end_to_end, packed_ids, packing, packs_exactly
from persona_lab.train import loop
from persona_lab.train.batches import Row, collate, encode
from persona_lab.train.finetune import Member, Progress, Watcher, finetune

WIDEST = LoraShape(rank=8, alpha=16)


@dataclass(frozen=True)
class Cell:
    """What a member of the stack has of its own."""

    shape: LoraShape
    rate: float
    clip: float
    decay: float
    steps: int
    documents: int
    """Where its documents begin; the later, the longer."""


CELLS = [
    Cell(LoraShape(8, 16), 1e-2, 0.05, 0.0, 50, 0),
    Cell(LoraShape(4, 8), 3e-3, 1.0, 0.1, 50, 20),
    Cell(LoraShape(4, 2), 2e-2, 0.4, 0.0, 20, 40),
    Cell(LoraShape(1, 3), 5e-3, 9.0, 0.3, 35, 48),
]


class Kept(Watcher):
    """Keeps what every member ends with."""

    def __init__(self) -> None:
        self.ended: dict[int, Progress] = {}
        self.widths: list[int] = []

    def on_step(self, step: int, members: Sequence[int], loss_K: Tensor, norm_K: Tensor) -> None:
        self.widths.append(len(loss_K))

    def on_stop(self, member: int, step: int, progress: Progress) -> None:
        self.ended[member] = progress


@pytest.fixture
def documents(tokenizer, texts) -> list[Row]:
    """Sorted by length, so that cells differ in it."""
    return sorted(encode(tokenizer, texts[:64], on="all", where="test"), key=lambda row: len(row.ids))


def rows_at(documents: Sequence[Row], cell: Cell) -> Callable[[int], list[Row]]:
    """Three documents a step."""
    return lambda step: [documents[cell.documents + (5 * step + i) % 14] for i in range(3)]


def stacked(model: PreTrainedModel, documents: Sequence[Row], cells: Sequence[Cell], accelerator, *, steps: int = 50, seeds: Sequence[int] | None = None, micro_batch: int = 3) -> Kept:
    """Adapters of cells that are trained together, each for as many steps as it has, at most `steps`."""
    kept, bank = Kept(), AdapterBank(copy.deepcopy(model), WIDEST)
    lasts = [min(cell.steps, steps) for cell in cells]
    members = [
        Member(rows_at(documents, cell), cell.rate, cell.clip, None, seed, last=last, shape=cell.shape, weight_decay=cell.decay)
        for cell, seed, last in zip(cells, seeds or range(len(cells)), lasts, strict=True)
    ]
    finetune(bank, members, kept, pad=0, stops=sorted(set(lasts)), kl_to_base=0.0, micro_batch=micro_batch, accelerator=accelerator)
    return kept


def with_peft(model: PreTrainedModel, documents: Sequence[Row], cell: Cell, seed: int, steps: int) -> dict[str, Tensor]:
    """One adapter trained by peft and torch alone, in rows that are padded."""
    fresh = AdapterBank(copy.deepcopy(model), cell.shape)
    fresh.init_row(0, seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=cell.shape.rank, lora_alpha=int(cell.shape.alpha), target_modules="all-linear", lora_dropout=0.0)
    plain = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False).double()
    set_peft_model_state_dict(plain, fresh.row_tensors(0))
    trained = [p for p in plain.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=cell.rate, weight_decay=cell.decay)
    for step in range(min(steps, cell.steps)):
        batch = collate([rows_at(documents, cell)(step)], pad=0)
        logits_BTV = plain(input_ids=batch.ids_BT, attention_mask=batch.labelled_BT.long()).logits
        target_BT = batch.ids_BT.masked_fill(~batch.labelled_BT, -100)[:, 1:]
        nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), target_BT.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(trained, cell.clip)
        adam.step()
        adam.zero_grad()
    return {name: tensor.detach() for name, tensor in get_peft_model_state_dict(plain).items()}


def apart(found: Progress, wanted: Progress | dict[str, Tensor]) -> float:
    """Norm of the difference over the norm, over all tensors of an adapter."""
    ours, theirs = found.adapter, wanted.adapter if isinstance(wanted, Progress) else wanted
    assert ours.keys() == theirs.keys()
    far = torch.stack([(ours[name] - theirs[name]).norm() for name in theirs]).norm()
    return float(far / torch.stack([tensor.norm() for tensor in theirs.values()]).norm())


# ------------------------------------------------------------------ against peft
@pytest.mark.parametrize(("steps", "bound"), [(1, 1e-12), (50, 1e-9)])
def test_cells_that_share_nothing_but_the_base_equal_peft_trained_alone(llama, documents, accelerator, steps: int, bound: float):
    kept = stacked(llama.double(), documents, CELLS, accelerator, steps=steps)
    for k, cell in enumerate(CELLS):
        assert apart(kept.ended[k], with_peft(llama, documents, cell, k, steps)) <= bound


def test_who_is_done_leaves_the_stack(llama, documents, accelerator):
    assert stacked(llama, documents, CELLS, accelerator).widths == [4] * 20 + [3] * 15 + [2] * 15


# ------------------------------------------------------------------ what changes nothing but rounding
def test_permuting_the_cells_changes_none_of_them(llama, documents, accelerator):
    order = [2, 0, 3, 1]
    straight = stacked(llama.double(), documents, CELLS, accelerator)
    mixed = stacked(llama, documents, [CELLS[k] for k in order], accelerator, seeds=order)
    for row, k in enumerate(order):
        assert apart(mixed.ended[row], straight.ended[k]) <= 1e-9


def test_a_dummy_among_them_changes_none_of_them(llama, documents, accelerator):
    without = stacked(llama.double(), documents, CELLS, accelerator)
    dummy = Cell(LoraShape(2, 2), 1e-1, 1.0, 0.0, 50, 30)
    among = stacked(llama, documents, [*CELLS, dummy], accelerator)
    for k in range(len(CELLS)):
        assert apart(among.ended[k], without.ended[k]) <= 1e-9


def test_a_cell_and_its_copy_are_the_same_to_the_bit(llama, documents, accelerator):
    twins = stacked(llama, documents, [CELLS[0], CELLS[1], CELLS[0]], accelerator, seeds=[0, 1, 0])
    assert apart(twins.ended[0], twins.ended[2]) == 0


def test_a_poisoned_cell_dies_alone(llama, documents, accelerator):
    poison = replace(CELLS[1], rate=1e300)
    sound = stacked(llama.double(), documents, CELLS, accelerator)
    beside = stacked(llama, documents, [CELLS[0], poison, *CELLS[2:]], accelerator)
    assert 1 not in beside.ended
    for k in (0, 2, 3):
        assert apart(beside.ended[k], sound.ended[k]) == 0


def test_longer_documents_beside_it_and_smaller_micro_batches_change_no_cell(llama, documents, accelerator):
    alone = stacked(llama.double(), documents, [CELLS[2]], accelerator, seeds=[2])
    for others, micro_batch in (([CELLS[3]], 3), ([CELLS[0]], 3), ([], 1), ([CELLS[3]], 2)):
        among = stacked(llama, documents, [CELLS[2], *others], accelerator, seeds=[2, 9][: 1 + len(others)], micro_batch=micro_batch)
        assert apart(among.ended[0], alone.ended[0]) <= 1e-9


def test_a_small_rank_in_a_wide_slot_keeps_zeros_where_it_has_nothing(llama, documents, accelerator):
    bank = AdapterBank(llama, WIDEST)
    member = Member(rows_at(documents, CELLS[1]), 1e-2, 1.0, None, 0, shape=LoraShape(4, 8))
    finetune(bank, [member], Watcher(), pad=0, stops=[10], kl_to_base=0.0, micro_batch=3, accelerator=accelerator)
    for layer in bank.layers.values():
        assert not layer.a_KRi[:, 4:].any()
        assert not layer.b_KoR[:, :, 4:].any()
        assert layer.b_KoR[:, :, :4].all()


def test_packed_rows_train_what_padded_rows_train(llama, documents, accelerator, monkeypatch):
    packed = stacked(llama.double(), documents, CELLS, accelerator)
    monkeypatch.setattr(loop, "packs_exactly", lambda model, members: False)  # the same model as if it could not be packed
    padded = stacked(llama, documents, CELLS, accelerator)
    for k in range(len(CELLS)):
        assert 0 < apart(packed.ended[k], padded.ended[k]) <= 1e-9


def test_gradient_checkpointing_trains_the_same(llama, documents, accelerator):
    plain = stacked(llama.double(), documents, CELLS, accelerator, steps=10)
    llama.gradient_checkpointing_enable({"use_reentrant": False})
    again = stacked(llama, documents, CELLS, accelerator, steps=10)
    for k in range(len(CELLS)):
        assert apart(again.ended[k], plain.ended[k]) <= 1e-9


# ------------------------------------------------------------------ float32
def answers(model: PreTrainedModel, adapter: Progress, cell: Cell, documents: Sequence[Row]) -> Tensor:
    """Log-probabilities of documents that no cell was trained on, nats a token."""
    bank = AdapterBank(copy.deepcopy(model), cell.shape)
    bank.load_row(0, adapter.adapter, "test")
    ids_BT = collate([documents[15:20]], 0).ids_BT
    with torch.no_grad():
        return bank.model(input_ids=ids_BT).logits[:, :-1].log_softmax(-1).gather(2, ids_BT[:, 1:, None])


def test_in_float32_a_stack_is_as_near_as_a_cell_is_to_itself_in_other_micro_batches(llama, documents, accelerator):
    together = stacked(llama, documents, CELLS, accelerator, steps=10)
    for k, cell in enumerate(CELLS):
        alone = [answers(llama, stacked(llama, documents, [cell], accelerator, steps=10, seeds=[k], micro_batch=size).ended[0], cell, documents) for size in (3, 2, 1)]
        floor = max(float((other - alone[0]).abs().max()) for other in alone[1:])
        found = float((answers(llama, together.ended[k], cell, documents) - alone[0]).abs().max())
        # A floor of two draws is itself a draw.
        assert found <= 3 * floor
        assert floor < 1e-2


# ------------------------------------------------------------------ packing
@pytest.mark.parametrize("lengths", [[5], [3, 3], [1, 9, 2, 40, 7, 7], [60, 1, 1, 1]])
def test_every_token_keeps_its_place_and_every_row_ends_in_padding(lengths: list[int]):
    members = 2 if len(lengths) % 2 == 0 else 1
    layout = lay_end_to_end(lengths, members)
    ids_BT = torch.arange(len(lengths) * max(lengths)).view(len(lengths), -1) + 1
    real_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    packed_S = packed_ids(ids_BT, layout).flatten()
    kept_S = torch.ones(len(packed_S), dtype=torch.bool).index_fill(0, layout.padding_S, False)
    assert packed_S[kept_S].tolist() == ids_BT[real_BT].tolist()
    assert layout.position_KN.flatten()[kept_S].tolist() == [p for n in lengths for p in range(n)]
    width = layout.position_KN.shape[1]
    assert {width * (k + 1) - 1 for k in range(members)} <= set(layout.padding_S.tolist())
    # There and back again: attention's places give every real token its own.
    assert layout.packed_S[layout.spread_S[kept_S]].tolist() == kept_S.nonzero()[:, 0].tolist()


def test_a_model_with_a_sliding_window_is_packed_exactly():
    config = MistralConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=64, sliding_window=6)
    model = tiny(config, MistralForCausalLM)
    assert packs_exactly(model, 1)
    lengths = [20, 5, 13]
    layout = lay_end_to_end(lengths, 1)
    ids_BT = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), packing(model):
        found_SV = model(input_ids=packed_ids(ids_BT, layout), position_ids=layout.position_KN, layout=layout, use_cache=False).logits[0]
    with torch.no_grad():
        wanted_SV = torch.cat([model(input_ids=ids_BT[b : b + 1, :n]).logits[0] for b, n in enumerate(lengths)])
    assert float((found_SV[: sum(lengths)] - wanted_SV).abs().max()) < 1e-5


def test_a_model_that_mixes_documents_in_packed_rows_is_found_out_and_padded(llama, documents, accelerator):
    def mixes(module: nn.Module, given: tuple, hidden: Tensor) -> Tensor:
        return hidden + 0.1 * hidden.roll(1, dims=1).cumsum(1)

    llama.model.layers[0].mlp.register_forward_hook(mixes)
    assert not packs_exactly(llama, 1)
    kept = stacked(llama, documents, CELLS[:1], accelerator, steps=3)
    assert all(math.isfinite(float(tensor.norm())) for tensor in kept.ended[0].adapter.values())
