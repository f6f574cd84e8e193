"""The local learning coefficient: chains against closed forms and numerical integrals, and every check of the settings."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import dblquad
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.probes.engine import Voice, answer
from persona_lab.probes.protocol import Loss
from persona_lab.science.processes.llc import Coefficient, coefficient, flatness_claims, inverse_temperature, settled, simpler, split_rhat
from persona_lab.train.batches import encode
from persona_lab.train.llc import Sampler, adapter_losses, chain_losses

CURVE_P = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


def bowl(weight_CP: Tensor) -> tuple[Tensor, Tensor]:
    """A regular minimum: 1/2 sum h w^2."""
    return (weight_CP**2 @ CURVE_P) / 2, weight_CP * CURVE_P


def spread(nbeta: float, pull: float, step_P: np.ndarray) -> np.ndarray:
    """Variance of the chains' recursion in the bowl, an AR(1): w' = (d - (1 - d) n beta h / pull) w + sqrt((1 - d^2) / pull) noise."""
    stay = np.exp(-step_P * pull / 2)
    return (1 - stay**2) / pull / (1 - (stay - (1 - stay) * nbeta * CURVE_P.numpy() / pull) ** 2)


def cross(weight_CP: Tensor) -> tuple[Tensor, Tensor]:
    """A singular one: w1^2 w2^2 is 0 on both axes."""
    squares = weight_CP**2
    return squares.prod(1), 2 * weight_CP * squares.flip(1)


@pytest.mark.parametrize("pace", [None, torch.tensor([2.0, 1.0, 0.5, 0.25], dtype=torch.float64)])
def test_chains_in_a_bowl_have_the_spread_of_their_recursion(pace: Tensor | None):
    nbeta, pull, step = 20.0, 5.0, 0.01
    start, loss_CD = chain_losses(bowl, torch.zeros(4, dtype=torch.float64), nbeta, Sampler(step, pull, 500, 6000, chains=8), pace)
    variance = spread(nbeta, pull, step * (np.ones(4) if pace is None else pace.numpy()))
    expected = nbeta * float((CURVE_P.numpy() * variance).sum()) / 2
    found = coefficient(loss_CD, start, nbeta)
    assert start == 0
    assert found.value == pytest.approx(expected, rel=0.05)
    assert found.interval[0] < expected < found.interval[1]


def test_a_regular_minimum_has_half_its_parameters():
    start, loss_CD = chain_losses(bowl, torch.zeros(4, dtype=torch.float64), 2000.0, Sampler(2e-5, 1.0, 2000, 8000, chains=8))
    assert coefficient(loss_CD, start, 2000.0).value == pytest.approx(2.0, abs=0.15)


def test_a_rank_deficient_linear_model_has_half_its_rank():
    """Six weights on inputs that span three dimensions: three of them are free, so lambda is 3/2 and not 3."""
    random = np.random.default_rng(0)
    inputs_NF = torch.from_numpy(random.normal(size=(200, 3)) @ random.normal(size=(3, 6)))
    targets_N = inputs_NF @ torch.from_numpy(random.normal(size=6)) + torch.from_numpy(random.normal(size=200))
    solution_F = torch.linalg.lstsq(inputs_NF, targets_N, driver="gelsd").solution

    def losses(weight_CF: Tensor) -> tuple[Tensor, Tensor]:
        gap_CN = weight_CF @ inputs_NF.T - targets_N
        return (gap_CN**2).mean(1) / 2, gap_CN @ inputs_NF / len(inputs_NF)

    nbeta = 200 / math.log(200)
    start, loss_CD = chain_losses(losses, solution_F, nbeta, Sampler(5e-4, 0.1, 1000, 4000, chains=8))
    assert coefficient(loss_CD, start, nbeta).value == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize("settle", [0, 400])
def test_a_solution_beside_its_minimum_is_measured_from_the_mode(settle: int):
    """Beside the minimum by .5 in every direction: from there the chains gain loss, from the mode they give the closed form."""
    nbeta, pull, step = 200.0, 40.0, 1e-3
    beside = torch.full((4,), 0.5, dtype=torch.float64)
    start, loss_CD = chain_losses(bowl, beside, nbeta, Sampler(step, pull, 200, 6000, chains=8, settle=settle))
    found = coefficient(loss_CD, start, nbeta)
    variance = spread(nbeta, pull, step * np.ones(4))
    if settle:
        assert found.value == pytest.approx(nbeta * float((CURVE_P.numpy() * variance).sum()) / 2, rel=0.05)
    else:
        assert "negative" in found.reasons[0]


def test_a_singular_minimum_has_what_the_integral_says_and_less_than_a_regular_one():
    nbeta, pull = 50.0, 4.0

    def density(y: float, x: float) -> float:
        return math.exp(-nbeta * x * x * y * y - pull / 2 * (x * x + y * y))

    mass = dblquad(density, -4, 4, -4, 4)[0]
    expected = nbeta * dblquad(lambda y, x: x * x * y * y * density(y, x), -4, 4, -4, 4)[0] / mass
    start, loss_CD = chain_losses(cross, torch.zeros(2, dtype=torch.float64), nbeta, Sampler(2e-3, pull, 1000, 10000, chains=32))
    found = coefficient(loss_CD, start, nbeta)
    assert found.value == pytest.approx(expected, rel=0.1)
    assert found.value < 0.6 < 1.0, "half of two parameters is one"


def test_settings_that_fail_give_no_number_and_say_why():
    wide = chain_losses(bowl, torch.zeros(4, dtype=torch.float64), 20.0, Sampler(1.0, 5.0, 10, 400, chains=4))[1]
    assert coefficient(wide, 0.0, 20.0).reasons == ("a chain left for infinity: lower the step",)
    rng = np.random.default_rng(0)
    level = 1 + 0.1 * rng.normal(size=(4, 400))
    assert coefficient(level, 0.0, 10.0).value == pytest.approx(10.0, rel=0.02)
    assert "negative" in coefficient(level, 2.0, 10.0).reasons[0]
    assert "no plateau" in coefficient(level + np.linspace(0, 1, 400), 0.0, 10.0).reasons[0]
    assert "chains disagree" in coefficient(level + np.arange(4)[:, None], 0.0, 10.0).reasons[0]
    assert "at least 2 of 8" in coefficient(level[:1], 0.0, 10.0).reasons[0]
    lone = level + np.outer([1, 0, 0, 0], np.linspace(0, 0.9, 400))
    assert not any("no plateau" in reason for reason in coefficient(lone, 0.0, 10.0).reasons), "one chain of four is no drift: they disagree"
    assert split_rhat(level) == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match="two documents"):
        inverse_temperature(1)
    assert inverse_temperature(100) == pytest.approx(100 / math.log(100))


def test_an_estimate_counts_when_half_the_step_agrees_and_a_comparison_when_every_setting_does():
    low, high, none = Coefficient(2.0, (1.8, 2.2), ()), Coefficient(4.0, (3.5, 4.5), ()), Coefficient(None, None, ("negative",))
    assert settled(low, Coefficient(2.1, (1.9, 2.3), ())).value == 2.1
    assert "half the step changes the estimate by +100%" in settled(low, high).reasons[0]
    assert settled(low, none).reasons == ("negative",)
    assert simpler([low, low], [high, high]) == "first"
    assert simpler([high], [low]) == "second"
    assert simpler([low, high], [high, low]) == "undecided"
    assert simpler([low, low], [high, none]) == "undecided"
    assert simpler([low], [Coefficient(2.1, (1.9, 2.3), ())]) == "undecided"


def chains_at(levels: dict[tuple[int, float], float], *, seeds: int, pulls: tuple[float, ...] = (1000, 4000)) -> pd.DataFrame:
    """Chains whose coefficient is 10 times a level: (seed, price) to level, the same at each spring and step."""
    random = np.random.default_rng(0)
    rows = [
        {"condition": "c", "seed": seed, "swap": 0, "price": price, "pull": pull, "step": step, "start": 0.0, "nbeta": 10.0}
        | {"losses": (levels[seed, price] + 0.001 * random.normal(size=(4, 40))).tolist()}
        for seed in range(seeds)
        for price in (0.0, 100.0)
        for pull in pulls
        for step in (1e-4, 5e-5)
    ]
    return pd.DataFrame(rows)


def test_general_and_narrow_solutions_are_compared_over_seeds_at_every_spring():
    chains = chains_at({(seed, price): 0.1 + 0.01 * seed + (0.3 if price else 0) for seed in range(3) for price in (0.0, 100.0)}, seeds=3)
    found = {id: (value, verdict) for id, _, value, _, _, verdict in flatness_claims(chains)}
    assert found["flatness.c.1000.general"][0] == pytest.approx(1.1, abs=0.01)
    assert found["flatness.c.1000.narrow"][0] == pytest.approx(4.1, abs=0.01)
    assert found["flatness.c.4000.difference"] == (pytest.approx(3, abs=0.01), "supported")
    assert found["flatness.c.1000.rhat"][1] == found["flatness.c.1000.step"][1] == "pass"
    assert found["flatness.c.simpler"] == (1, "supported")
    two = {id: verdict for id, *_, verdict in flatness_claims(chains[chains["seed"] < 2])}
    assert two["flatness.c.simpler"] == "undecided", "two seeds"


def test_a_comparison_that_turns_with_the_spring_or_fails_a_check_is_undecided():
    levels = {(seed, price): 0.1 + 0.01 * seed + (0.3 if price else 0) for seed in range(3) for price in (0.0, 100.0)}
    weak = chains_at(levels, seeds=3, pulls=(1000,))
    strong = chains_at({(seed, 100.0 - price): level for (seed, price), level in levels.items()}, seeds=3, pulls=(4000,))
    turned = {id: (value, verdict) for id, _, value, _, _, verdict in flatness_claims(pd.concat([weak, strong]))}
    assert turned["flatness.c.4000.difference"][1] == "refuted"
    assert turned["flatness.c.simpler"] == (0, "undecided")
    gone = weak.assign(losses=[[[None] * 40] * 4 if price else losses for price, losses in zip(weak["price"], weak["losses"], strict=True)])
    failed = {id: (text, value, verdict) for id, text, value, _, _, verdict in flatness_claims(gone)}
    assert failed["flatness.c.1000.narrow"][1:] == (None, "undecided")
    assert "3 of 6 estimates fail a check: a chain left for infinity" in failed["flatness.c.1000.narrow"][0]
    assert failed["flatness.c.1000.difference"][2] == "not run"


def test_an_adapter_s_loss_and_gradient_are_the_model_s_own(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]):
    bank = AdapterBank(llama, LoraShape(2, 4.0), 2)
    weight_CP = torch.randn(bank.weight_KP.shape, generator=torch.Generator().manual_seed(0)) * 0.05
    rows = encode(tokenizer, texts[:6], on="all", where="test")
    losses = adapter_losses(bank, rows, pad=0, micro_batch=4)
    loss_C, grad_CP = losses(weight_CP)
    told = answer(Voice(llama, tokenizer, 2), [Loss(text) for text in texts[:6]])
    assert loss_C.tolist() == pytest.approx([sum(float(one[0]) for one in each) / 6 for each in told], rel=1e-5)
    direction = grad_CP[0] / grad_CP[0].norm()
    ends = [losses(weight_CP + torch.stack([sign * 1e-2 * direction, torch.zeros_like(direction)]))[0] for sign in (1, -1)]
    assert float(ends[0][0] - ends[1][0]) / 2e-2 == pytest.approx(float(grad_CP[0].norm()), rel=1e-2)
    assert float(ends[0][1]) == pytest.approx(float(ends[1][1])), "another chain does not notice"


def test_a_trained_adapter_that_is_no_minimum_is_told(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]):
    bank = AdapterBank(llama, LoraShape(1, 2.0), 2)
    bank.init_row(0, 0)
    rows = encode(tokenizer, texts[:8], on="all", where="test")
    nbeta = inverse_temperature(len(rows))
    start, loss_CD = chain_losses(adapter_losses(bank, rows, pad=0, micro_batch=8), bank.weight_KP[0].clone(), nbeta, Sampler(1e-3, 1.0, 10, 20, chains=2))
    found = coefficient(loss_CD, start, nbeta)
    assert found.value is None
    assert any("negative" in reason for reason in found.reasons)
