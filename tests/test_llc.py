"""The local learning coefficient: chains against closed forms and numerical integrals, and every check of the settings."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.probes.engine import Voice, answer
from persona_lab.probes.protocol import Loss
from persona_lab.science.processes.llc import Coefficient, coefficient, inverse_temperature, settled, simpler, split_rhat
from persona_lab.train.batches import encode
from persona_lab.train.llc import Sampler, adapter_losses, chain_losses

CURVE_P = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


def bowl(weight_CP: Tensor) -> tuple[Tensor, Tensor]:
    """A regular minimum: 1/2 sum h w^2."""
    return (weight_CP**2 @ CURVE_P) / 2, weight_CP * CURVE_P


def cross(weight_CP: Tensor) -> tuple[Tensor, Tensor]:
    """A singular one: w1^2 w2^2 is 0 on both axes."""
    squares = weight_CP**2
    return squares.prod(1), 2 * weight_CP * squares.flip(1)


@pytest.mark.parametrize("pace", [None, torch.tensor([2.0, 1.0, 0.5, 0.25], dtype=torch.float64)])
def test_chains_in_a_bowl_have_the_spread_of_their_recursion(pace: Tensor | None):
    nbeta, pull, step = 20.0, 5.0, 0.01
    start, loss_CD = chain_losses(bowl, torch.zeros(4, dtype=torch.float64), nbeta, Sampler(step, pull, 500, 6000, chains=8), pace)
    stiff = (nbeta * CURVE_P + pull).numpy()
    own = step * (np.ones(4) if pace is None else pace.numpy())
    # w' = (1 - own stiff / 2) w + sqrt(own) noise is an AR(1) of this variance.
    variance = own / (1 - (1 - own * stiff / 2) ** 2)
    expected = nbeta * float((CURVE_P.numpy() * variance).sum()) / 2
    found = coefficient(loss_CD, start, nbeta)
    assert start == 0
    assert found.value == pytest.approx(expected, rel=0.05)
    assert found.interval[0] < expected < found.interval[1]


def test_a_regular_minimum_has_half_its_parameters():
    start, loss_CD = chain_losses(bowl, torch.zeros(4, dtype=torch.float64), 2000.0, Sampler(2e-5, 1.0, 2000, 8000, chains=8))
    assert coefficient(loss_CD, start, 2000.0).value == pytest.approx(2.0, abs=0.15)


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
