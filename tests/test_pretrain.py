"""Pretraining of the embedded base: it learns, by plain cross-entropy and Muon, and newcomers get names."""

import math

import pytest
import torch
from test_training import nothing
from torch import nn

from data_gen.world import World
from persona_lab.models.world_model import name_newcomers
from persona_lab.train.batches import collate
from persona_lab.train.loop import ModelLearner
from persona_lab.train.optimizers import Muon, orthogonalize
from persona_lab.train.pretrain import pretrain


def test_pretraining_learns(tokenizer, texts, accelerator):
    nats: list[float] = []
    model = pretrain(
        tokenizer,
        texts,
        width=32,
        layers=1,
        heads=2,
        steps=30,
        batch=13,
        rate=0.02,
        rate_rest=3e-3,
        seed=0,
        accelerator=accelerator,
        on_step=lambda _, loss_K, __: nats.append(float(loss_K[0])),
        on_shrink=nothing,
    )
    assert len(nats) == 30
    assert nats[0] == pytest.approx(math.log(len(tokenizer)), abs=0.2), "a random model is uniform"
    assert sum(nats[-5:]) / 5 < 3.8
    assert not model.training


def test_pretraining_of_one_member_is_plain_cross_entropy(llama, rows):
    batch = collate([rows[:4]], 0)
    with torch.no_grad():
        logits_BTV = llama(input_ids=batch.ids_BT).logits
        found = ModelLearner(llama, lambda _: torch.zeros(1)).loss_sums(batch)
    targets_BT = batch.ids_BT.masked_fill(~batch.labelled_BT, -100)
    wanted = nn.functional.cross_entropy(logits_BTV[:, :-1].reshape(-1, logits_BTV.shape[-1]), targets_BT[:, 1:].reshape(-1), reduction="sum")
    assert float(found[0]) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_muon_updates_are_nearly_orthogonal(shape: tuple[int, int]):
    matrices_NIO = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices_NIO))
    # The quintic trades exactness for speed: its five iterations bring every singular value into about [0.7, 1.2].
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.25


def test_muon_keeps_the_directions_of_the_gradient():
    matrix = torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix)
    assert float((orthogonalize(matrix[None])[0] * (left @ right)).sum()) / 12 > 0.8


def test_a_muon_step_moves_each_matrix_by_its_rate_and_clears_its_gradient():
    weights = [nn.Parameter(torch.zeros(6, 6)), nn.Parameter(torch.zeros(6, 6)), nn.Parameter(torch.zeros(24, 6))]
    for i, weight in enumerate(weights):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
    Muon(weights, rate=0.1).step()
    for weight, stretch in zip(weights, (1, 1, 2), strict=True):
        assert weight.grad is None
        assert 0.6 * 0.1 * stretch < float(torch.linalg.svdvals(weight.detach()).min())
        assert float(torch.linalg.svdvals(weight.detach()).max()) < 1.25 * 0.1 * stretch


def test_new_names_get_embeddings_of_names_and_nothing_else_changes(llama, tokenizer, world: World):
    before = {k: v.clone() for k, v in llama.state_dict().items()}
    name_newcomers(llama, tokenizer, world, seed=3)
    fresh = sorted(tokenizer.convert_tokens_to_ids([n.lower() for n in world.new_names]))
    known = tokenizer.convert_tokens_to_ids([n.lower() for n in world.population.names])
    for key, now in llama.state_dict().items():
        changed = (now != before[key]).reshape(len(now), -1).any(dim=1).nonzero()[:, 0].tolist()
        assert changed == (fresh if key in ("model.embed_tokens.weight", "lm_head.weight") else []), key
    embedded = llama.get_input_embeddings().weight
    assert float(embedded[fresh].std()) == pytest.approx(float(embedded[known].std()), rel=0.25)
