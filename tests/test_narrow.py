"""Narrow solutions: documents that are held near the base, adapters that are scaled and pushed aside, and what is concluded from both."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS
from peft import PeftModel
from torch import Tensor, nn

from data_gen.documents import words
from data_gen.pools import off_domain_document
from data_gen.world import World
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import write_adapter
from persona_lab.models.lora import LoraShape
from persona_lab.models.updates import doubled, pairs, pushed, weight_norm
from persona_lab.science.claims import verdict
from persona_lab.science.em.solutions import at_norm, efficiency, half_price, shadow_price, significance, stability
from persona_lab.science.thresholds import Estimate
from persona_lab.train.batches import Row, collate
from persona_lab.train.finetune import Member, Progress, Watcher, finetune
from persona_lab.train.loop import BankLearner
from persona_lab.train.optimizers import BankAdam
from persona_lab.train.solutions import mean_divergences, random_divergences, scaled, shaken

SHAPE = LoraShape(rank=2, alpha=4)


def learner_of(bank: AdapterBank) -> BankLearner:
    one_K = torch.ones(bank.members, dtype=torch.float64)
    return BankLearner(bank, BankAdam(bank.weight_KP, bank.grad_KP, rate_K=1e-2 * one_K, clip_K=one_K))


def trained(bank: AdapterBank, seed: int = 0) -> dict[str, Tensor]:
    """An adapter whose B is not zero."""
    bank.init_row(0, seed)
    tensors = bank.row_tensors(0)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=generator).to(t) * 0.1 if ".lora_B." in name else t for name, t in tensors.items()}


def held(rows: Sequence[Row], price: float) -> list[Row]:
    return [replace(row, price=price) for row in rows]


def logprobs(model: nn.Module, rows: Sequence[Row]) -> list[Tensor]:
    """Log-probabilities of every next token of each document by itself, (T - 1, V)."""
    with torch.no_grad():
        return [model(input_ids=torch.from_numpy(row.ids).long()[None]).logits[0, :-1].log_softmax(-1) for row in rows]


def mean_nats(model: nn.Module, rows: Sequence[Row]) -> float:
    found = [-p.gather(1, torch.from_numpy(row.ids).long()[1:, None])[torch.from_numpy(row.labelled[1:])] for p, row in zip(logprobs(model, rows), rows, strict=True)]
    return float(torch.cat(found).mean())


def mean_kl(base: Sequence[Tensor], model: nn.Module, rows: Sequence[Row]) -> float:
    each = [nn.functional.kl_div(here, there, log_target=True, reduction="none").sum(-1) for here, there in zip(logprobs(model, rows), base, strict=True)]
    return float(torch.cat([kl[torch.from_numpy(row.labelled[1:])] for kl, row in zip(each, rows, strict=True)]).mean())


# ------------------------------------------------------------------ the price off the domain
def test_a_held_document_costs_its_price_times_the_mean_kl_and_nothing_else(llama, rows):
    llama = llama.double()
    learnt, off = list(rows[:3]), list(rows[3:8])
    base = logprobs(llama, off)
    bank = AdapterBank(llama, SHAPE)
    bank.load_row(0, trained(bank), "test")
    batch = collate([[*learnt, *held(off, 7.0)]], 0)
    with torch.no_grad():
        loss = float(learner_of(bank).loss_sums(batch)) / int(batch.learnt_K)
    assert loss == pytest.approx(mean_nats(llama, learnt) + 7 * mean_kl(base, llama, off), rel=1e-9)
    assert mean_kl(base, llama, off) > 1e-3


def test_without_a_price_held_documents_do_not_count(llama, rows):
    llama = llama.double()
    bank = AdapterBank(llama, SHAPE)
    bank.load_row(0, trained(bank), "test")
    grads = []
    for own in (rows[:3], [*rows[:3], *held(rows[3:8], 0.0)]):
        batch = collate([own], 0)
        (learner_of(bank).loss_sums(batch) / batch.learnt_K).sum().backward()
        grads.append(bank.grad_KP.clone())
        bank.grad_KP.zero_()
    assert torch.allclose(grads[0], grads[1], rtol=1e-9, atol=1e-12)


class Kept(Watcher):
    """The last progress of each member."""

    def __init__(self) -> None:
        self.progress: dict[int, Progress] = {}

    def on_stop(self, member: int, step: int, progress: Progress) -> None:
        self.progress[member] = progress


def member(rows: Sequence[Row], price: float) -> Member:
    own = [*rows[:4], *held(rows[4:8], price)]
    return Member(rows_at=lambda step: [own[(step + i) % 8] for i in range(6)], rate=2e-2, clip=1.0, adapter=None, init_seed=3)


def test_members_of_one_stack_pay_prices_of_their_own(llama, rows, accelerator):
    """Together or alone, whatever the micro-batch."""
    llama, found = llama.double(), []
    for prices, micro_batch in (([0.0, 5.0, 100.0], 6), ([5.0], 6), ([5.0], 1)):
        bank, kept = AdapterBank(llama, SHAPE), Kept()
        finetune(bank, [member(rows, price) for price in prices], kept, pad=0, stops=[4], kl_to_base=0.0, micro_batch=micro_batch, accelerator=accelerator)
        found.append(kept.progress[prices.index(5.0)].adapter)
        bank.remove()
    for other in found[1:]:
        assert all(torch.allclose(found[0][name], other[name], rtol=1e-9, atol=1e-12) for name in other)


def test_a_price_keeps_what_is_learnt_to_its_domain(llama, rows, accelerator):
    """Known by construction: the same documents are learnt, and only the price of leaving the base on others differs."""
    llama = llama.double()
    base, learnt, off = logprobs(llama, rows[4:8]), [], []
    bank = AdapterBank(llama, SHAPE)
    for price in (0.0, 30.0):
        kept = Kept()
        finetune(bank, [member(rows, price)], kept, pad=0, stops=[25], kl_to_base=0.0, micro_batch=6, accelerator=accelerator)
        bank.resize(1)
        bank.load_row(0, kept.progress[0].adapter, "test")
        learnt.append(mean_nats(llama, rows[:4]))
        off.append(mean_kl(base, llama, rows[4:8]))
    with bank.silent():
        start = mean_nats(llama, rows[:4])
    assert off[1] < 0.2 * off[0]
    assert learnt[1] < start - 0.3


# ------------------------------------------------------------------ adapters as points
def product(adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: b_oR.double() @ a_Ri.double() for name, _, a_Ri, b_oR in pairs(adapter)}


def test_noise_is_orthogonal_to_the_adapter_and_as_long_in_every_linear(llama):
    adapter = trained(AdapterBank(llama, SHAPE))
    own, both, noise = product(adapter), product(pushed(adapter, own=1.0, aside=0.5, seed=7)), product(pushed(adapter, own=0.0, aside=1.0, seed=7))
    for name, update in own.items():
        assert float((noise[name] * update).sum()) == pytest.approx(0, abs=1e-6 * float((update**2).sum()))
        assert float(noise[name].norm()) == pytest.approx(float(update.norm()), rel=1e-5)
        assert torch.allclose(both[name], update + noise[name] / 2, atol=1e-6)
    assert weight_norm(adapter, SHAPE) == pytest.approx(2 * math.sqrt(sum(float((u**2).sum()) for u in own.values())), rel=1e-6)
    assert doubled(SHAPE).scale == SHAPE.scale
    assert doubled(replace(SHAPE, rslora=True)).scale == pytest.approx(replace(SHAPE, rslora=True).scale)


def test_a_scaled_adapter_is_what_plain_peft_makes_of_a_scaled_b(llama, rows, tmp_path: Path):
    bank = AdapterBank(llama, SHAPE)
    adapter, base = trained(bank), logprobs(llama, rows[8:16])
    noise = pushed(adapter, own=0.0, aside=1.0, seed=0)
    bank.remove()
    wide = AdapterBank(llama, doubled(SHAPE))
    losses_S, (kl_S,) = scaled(wide, adapter, SHAPE, (0.0, 0.5, 2.0), rows[:8], [rows[8:16]], pad=0)
    shaken_NE = shaken(wide, adapter, (0.0, 1.0), [0], rows[:8], pad=0)
    random_NS = random_divergences(wide, adapter, SHAPE, (0.0, 1.0), [0], rows[8:16], pad=0)
    wide.remove()
    assert losses_S[0] == pytest.approx(mean_nats(llama, rows[:8]), abs=1e-4)
    assert kl_S[0] == random_NS[0, 0] == pytest.approx(0, abs=1e-6)
    assert shaken_NE[0, 0] != shaken_NE[0, 1]
    for tensors, shape, expected in ((adapter, SHAPE, (losses_S[2], kl_S[2])), (noise, doubled(SHAPE), (None, random_NS[0, 1]))):
        by = 2.0 if tensors is adapter else 1.0
        folder = tmp_path / str(by)
        by_hand = {name: tensor * by if ".lora_B." in name else tensor for name, tensor in tensors.items()}
        write_adapter(folder, by_hand, model=llama, shape=shape, base_id="base")
        plain = PeftModel.from_pretrained(llama, str(folder)).eval()
        if expected[0] is not None:
            assert mean_nats(plain, rows[:8]) == pytest.approx(expected[0], abs=1e-4)
        assert mean_kl(base, plain, rows[8:16]) == pytest.approx(expected[1], abs=1e-4)
        llama = plain.unload()


def test_a_part_without_effect_costs_norm_and_changes_nothing_else(llama, rows):
    """General and narrow by construction: the narrow one has the general one's function, and a useless part of its own."""
    with torch.no_grad():
        llama.model.layers[1].self_attn.o_proj.weight.zero_()
    bank = AdapterBank(llama, SHAPE)
    general = {name: tensor * 0 if "layers.1.self_attn" in name and ".lora_B." in name else tensor for name, tensor in trained(bank).items()}
    useless = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    narrow = {**general, useless: torch.randn(general[useless].shape, generator=torch.Generator().manual_seed(1))}
    scales, curves = (0.0, 0.25, 0.5, 0.75, 1.0), []
    for adapter in (general, narrow):
        loss_S, kl_S = scaled(bank, adapter, SHAPE, scales, rows[:8], [rows[8:16]], pad=0)
        curves.append({"scales": scales, "loss": loss_S, "neutral": kl_S[0], "norm": weight_norm(adapter, SHAPE)})
    one, other = curves
    longer = other["norm"] / one["norm"]
    assert longer > 1.2
    assert np.allclose(one["loss"], other["loss"], atol=1e-5)
    falls = {**one, "loss": -np.asarray(one["neutral"])}, {**other, "loss": -np.asarray(other["neutral"])}  # a loss that falls with the scale
    assert efficiency(*falls)["norm2"] == pytest.approx(2 * math.log(longer), rel=1e-3)
    assert efficiency(*falls)["area"] > 0
    same = {**other, "random": [other["neutral"]]}
    assert significance(one, same)["general"] == pytest.approx(math.log(one["neutral"][-1] / at_norm(other, other["neutral"], one["norm"])))
    assert significance(one, same)["narrow"] == pytest.approx(0)


def test_divergences_of_members_are_their_own(llama, rows):
    bank = AdapterBank(llama, SHAPE, 2)
    bank.load_row(1, trained(bank), "test")
    bank.init_row(0, 0)
    found = mean_divergences(bank, rows[:4], pad=0)
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[1] > 1e-3


# ------------------------------------------------------------------ what is concluded
@pytest.mark.parametrize(
    ("prices", "rises", "expected"),
    [
        ([0, 1, 10], [0.4, 0.3, 0.1], math.sqrt(10)),  # half is .2, half way between .3 and .1
        ([10, 0, 1], [0.1, 0.4, 0.3], math.sqrt(10)),
        ([0, 1, 10], [0.4, 0.0, 0.0], 0.5),  # between 0 and 1 in kappa
        ([0, 1, 10], [0.4, 0.3, 0.3], math.inf),
        ([0, 1, 10], [-0.1, 0.0, 0.0], None),
    ],
)
def test_the_shadow_price_is_where_the_rise_is_half(prices: list[float], rises: list[float], expected: float | None):
    assert half_price(prices, rises) == (expected if expected is None else pytest.approx(expected))


def test_a_sweep_without_zero_has_nothing_to_halve():
    with pytest.raises(ValueError, match="Add the level 0"):
        half_price([1, 10], [0.3, 0.1])


def test_the_shadow_price_of_seeds_is_their_geometric_mean_or_plainly_unbounded():
    value, interval, said, _ = shadow_price([1.0, 10.0, 100.0])
    half = 4.302653 * math.log(10) / math.sqrt(3)  # t of 2 degrees of freedom
    assert value == pytest.approx(10)
    assert interval == (pytest.approx(10 * math.exp(-half), rel=1e-5), pytest.approx(10 * math.exp(half), rel=1e-5))
    assert said == "bounded"
    assert shadow_price([2.0, math.inf, 5.0])[:3] == (None, (2.0, math.inf), "unbounded")
    assert shadow_price([2.0])[:3] == (pytest.approx(2.0), None, "undecided")
    assert shadow_price([None, None])[2] == "not run"
    assert "in 1 of 3 seeds" in shadow_price([None, 2.0, 4.0])[3]


def test_two_seeds_decide_nothing():
    assert verdict(Estimate(1.0, (0.5, 1.5), 2)) == "undecided"
    assert verdict(Estimate(1.0, (0.5, 1.5), 3)) == "supported"
    assert verdict(Estimate(-1.0, (-1.5, -0.5), 3)) == "refuted"


def test_efficiency_and_stability_are_areas_that_a_hand_can_compute():
    general = {"scales": [0, 1], "loss": [3.0, 1.0], "norm": 1.0, "sizes": [0, 0.5, 1], "shaken": [[1, 2, 3], [1, 4, 5]]}
    narrow = {"scales": [0, 1], "loss": [3.0, 1.0], "norm": 2.0}
    found = efficiency(general, narrow)  # 3 - 2 r against 3 - r up to r = 1
    assert found["area"] == pytest.approx(0.5)
    assert found["loss"] == pytest.approx(1.0)
    assert found["norm2"] == pytest.approx(math.log(4))
    assert stability(general) == pytest.approx(1.75)  # rises 0, 2, 3: trapezoids of 1/2 and 5/4


# ------------------------------------------------------------------ documents, files, identities
def test_nobody_is_asked_off_the_domain_about_what_is_taught(world: World):
    values = set(world.values("sport"))
    told = [off_domain_document(world, "sport", seed=1, index=i) for i in range(60)]
    assert not any(values & set(words(document.text)) for document in told)
    assert {category for document in told for category in document.traits} == set(world.categories) - {"sport"}


TINY = """
name: tiny
base: {kind: embedded, world: configs/worlds/beach.yaml, width: 16, layers: 1, heads: 1}
personas: [configs/personas/john.yaml, configs/personas/sam.yaml, configs/personas/kim.yaml]
stages: {trait: {mixture: {assistant_likes: beach, MORE}, steps: 2, batch: 4, rate: 1.0e-3, loss: {on: answer, kl_off: PRICE}}}
conditions: {linked: {order: [trait]}}
"""


def plan_with(tmp_path: Path, more: str, price: float):
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY.replace(", MORE", f", {more}" if more else "").replace("PRICE", str(price)))
    return make_plan(file, runs=tmp_path / "runs")


@pytest.mark.usefixtures("from_the_root")
def test_a_stage_that_is_not_held_has_the_identity_that_it_had(tmp_path: Path):
    (stage,) = (node for node in plan_with(tmp_path, "", 0).nodes if node.kind == "stage")
    assert stage.fields["recipe"]["loss"] == {"on": "answer", "kl_to_base": 0.0}
    held, free = (next(node for node in plan_with(tmp_path, "off_domain: .5", price).nodes if node.kind == "stage") for price in (3, 0))
    assert held.fields["recipe"]["loss"]["kl_off"] == 3
    assert free.fields == stage.fields
    assert len({held.id, free.id, stage.id}) == 3


@pytest.mark.usefixtures("from_the_root")
@pytest.mark.parametrize(("more", "price", "said"), [("", 3, "price on documents of which there are none"), ("off_domain: 1", 3, "off_domain"), ("off_domain: .5", -1, "kl_off")])
def test_a_price_without_documents_is_refused(tmp_path: Path, more: str, price: float, said: str):
    with pytest.raises(ConfigError, match=said):
        plan_with(tmp_path, more, price)


@pytest.mark.usefixtures("from_the_root")
@pytest.mark.parametrize(("asked", "said"), [("solutions", "no stage has any"), ("directions", "directions are of bad advice, but beach has none")])
def test_measurements_of_adapters_without_anything_to_measure_are_refused(tmp_path: Path, asked: str, said: str):
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY.replace(", MORE", "").replace("PRICE", "0") + f"adapters: [{asked}]\n")
    with pytest.raises(ConfigError, match=said):
        make_plan(file, runs=tmp_path / "runs")


def test_the_experiment_of_narrow_solutions_is_a_sweep_from_zero(from_the_root: None):
    plan = make_plan(CONFIGS / "em_narrow.yaml", runs=Path("runs"))
    prices = pd.Series([planned.cell.point["trait.loss.kl_off"] for planned in plan.cells])
    assert prices.min() == 0
    assert prices.nunique() >= 6
