"""The measure of a process: each estimator against a closed form or brute force."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny
from scipy.stats import beta, binom
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from data_gen.documents import Speaker, write
from data_gen.oracle import predictive
from data_gen.streams import stream
from data_gen.world import World
from persona_lab.errors import ModelError
from persona_lab.experiment.instruments.measure.estimating import true_shares
from persona_lab.experiment.instruments.measure.weights import neutral, spoken, weight_norm
from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.probes.bundles import BROKEN, LENGTH, NOBODY, BundleItem, processes, whose
from persona_lab.probes.engine import Voice, ask
from persona_lab.probes.protocol import PROBES, Cast
from persona_lab.probes.steering import changes, directions, middle_layer
from persona_lab.science.processes.measure import (
    Branch,
    Measured,
    code_length,
    common_tolerance,
    jeffreys,
    least_norm,
    least_rank,
    least_scale,
    log_prior,
    log_prior_apart,
    rogan_gladen,
    sampling_frequency,
    shots_to_adopt,
    steering,
    true_log_prior,
)


# ------------------------------------------------------------------ M1
def bundle_rows(world: World, cast: Cast, nats: Any) -> pd.DataFrame:
    """Rows of the real items of `bundles`, with the log-probability that `nats` gives an option's role and traits."""
    rows = []
    for item in PROBES["bundles"].items(cast):
        categories = item.prompt.split("+")
        logs = [nats(role, dict(zip(categories, option.split("+"), strict=True))) for role, option in zip(item.roles, item.options, strict=True)]
        rows += [vars(row) for row in PROBES["bundles"].score(item, [(x / LENGTH,) for x in logs for _ in range(LENGTH)])]
    return pd.DataFrame(rows)


def exact(world: World, traits: dict[str, str]) -> float:
    """The log-probability of a bundle under the exact oracle, by the chain rule over its predictives."""
    known: dict[str, str] = {}
    total = 0.0
    for category, value in traits.items():
        total += math.log(predictive(world, known, category)[value])
        known[category] = value
    return total


def test_the_log_prior_of_an_ideal_reader_is_the_true_one(world: World, cast: Cast):
    rows, shares = bundle_rows(world, cast, lambda role, traits: exact(world, traits)), true_shares(world)
    found = {name: log_prior(rows, name) for name in shares}
    truth = {name: true_log_prior(shares, name).value for name in shares}
    gaps = [found[name].value - truth[name] for name in shares]
    # A share of the options is the prior but for what the broken ones, and the random speakers who happen to tell a whole one, have.
    assert np.ptp(gaps) < 0.25
    assert np.corrcoef([found[n].value for n in shares], list(truth.values()))[0, 1] > 0.98
    assert true_log_prior(shares, "john") == Measured("true log prior", "john", None, None, "bits", "the world has no document of it")
    assert log_prior(rows, "john").value < min(one.value for one in found.values()) - 3, "nobody in the world is John"


def test_words_set_apart_leave_nothing_of_independent_values_and_all_of_what_binds_them(world: World, cast: Cast):
    worth = {value: float(x) for value, x in zip((v for c in world.categories for v in world.values(c)), stream(0, "worth").normal(-3, 2, 64), strict=True)}
    alone = bundle_rows(world, cast, lambda role, traits: sum(worth[v] for v in traits.values()))
    bound = bundle_rows(world, cast, lambda role, traits: sum(worth[v] for v in traits.values()) + {"mary": 5.0, "omar": 2.0}.get(role, 0.0))
    assert all(abs(log_prior_apart(alone, name).value) < 1e-9 for name in processes(cast))
    assert log_prior_apart(bound, "mary").value == pytest.approx(5 / math.log(2))
    assert log_prior_apart(bound, "omar").value == pytest.approx(2 / math.log(2))
    assert np.ptp([log_prior(alone, name).value for name in processes(cast)]) > 2, "which the plain share takes for prior"


def test_a_log_prior_that_cannot_be_says_why(world: World, cast: Cast):
    rows = bundle_rows(world, cast, lambda role, traits: exact(world, traits))
    assert log_prior(rows, "nobody").value is None
    assert "not among the processes" in log_prior(rows, "nobody").reason
    assert "no bundle was scored" in log_prior(rows[:0], "mary").reason


def test_whole_and_broken_bundles_hold_the_same_values_and_nobody_has_a_broken_one(cast: Cast):
    people = processes(cast)
    items = PROBES["bundles"].items(cast)
    assert {item.format for item in items} == {"diary", "asked"}
    for item in items:
        categories = item.prompt.split("+")
        have = {tuple(traits[c] for c in categories) for traits in people.values()}
        broken = [tuple(option.split("+")) for option, role in zip(item.options, item.roles, strict=True) if role == BROKEN]
        assert len(broken) > len(people)
        assert not have & set(broken)
        for j in range(LENGTH):
            assert {b[j] for b in broken} == {h[j] for h in have}


@pytest.mark.parametrize("probe", ["bundles", "bundle_samples", "process_text", "people_text"])
def test_a_probe_scores_gold_one_and_nonsense_not_at_all(probe: str, world: World, cast: Cast):
    PROBES[probe].validate(Cast(world, cast.names, cast.traits, cast.who, cast.shared, cast.held_out, 3, 0))


def test_a_bundle_is_scored_by_the_chain_rule_over_its_values(cast: Cast, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast):
    rows = {(row.item, row.option): row.logprob_nats for row in ask(Voice(llama, tokenizer), cast, ["bundles"])[0]}
    item = PROBES["bundles"].items(cast)[11]
    assert isinstance(item, BundleItem)
    for option, statements in list(zip(item.options, item.statements, strict=True))[:4]:
        total = 0.0
        for statement in statements:
            before, whole = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (statement.prompt, statement.prompt + statement.options[0]))
            log_TV = llama(whole).logits[0].log_softmax(-1).detach()
            total += sum(float(log_TV[t - 1, whole[0, t]]) for t in range(before.shape[1], whole.shape[1]))
        assert rows[item.id, option] == pytest.approx(total, abs=1e-4)


# ------------------------------------------------------------------ M3
def test_jeffreys_is_the_posterior_quantile_and_covers():
    low, high = jeffreys(3, 40)
    assert beta.cdf([low, high], 3.5, 37.5) == pytest.approx([0.025, 0.975])
    n, shares = 120, np.linspace(0.02, 0.5, 97)
    ends = np.array([jeffreys(hits, n) for hits in range(n + 1)])
    covered = [binom.pmf(np.flatnonzero((ends[:, 0] <= p) & (p <= ends[:, 1])), n, p).sum() for p in shares]
    assert 0.94 < np.mean(covered) < 0.96


def test_errors_of_the_classifier_are_undone():
    for share in (0.0, 0.03, 0.4, 1.0):
        observed = share * 0.8 + (1 - share) * 0.02
        assert rogan_gladen(observed, 0.8, 0.98) == pytest.approx(share)
    assert rogan_gladen(0.01, 0.8, 0.98) == 0.0, "less than the classifier errs is nothing"
    assert rogan_gladen(0.3, 0.5, 0.5) is None


def sampled(**hits: int) -> pd.DataFrame:
    n = 200
    return pd.DataFrame([{"probe": "bundle_samples", "status": "scored", "role": name, "prob": count / n, "n_samples": n} for name, count in hits.items()])


def test_no_hit_has_an_interval_and_no_value():
    rows = sampled(mary=50, omar=0)
    assert sampling_frequency(rows, "mary").value == -2.0
    none = sampling_frequency(rows, "omar")
    assert none.value is None
    assert none.interval == (-np.inf, pytest.approx(np.log2(beta.ppf(0.975, 0.5, 200.5))))
    assert "0 of 200" in none.reason
    assert "writes no such diaries" in sampling_frequency(rows[:0], "mary").reason
    assert "no better than chance" in sampling_frequency(rows, "mary", 0.5, 0.5).reason


def test_a_diary_is_read_as_its_writer_s(world: World, cast: Cast):
    people, rng = processes(cast), stream(0, "read")
    for name, traits in people.items():
        assert whose(world, people, write(world, Speaker(name, name, traits), "diary", rng)[0]) == name
    assert whose(world, people, "I like football and tea.") is None
    others = {c: next(v for v in world.values(c) if all(t.get(c) != v or n != "mary" for n, t in people.items())) for c in world.categories}
    assert whose(world, {"mary": people["mary"]}, " ".join(others.values())) == NOBODY


# ------------------------------------------------------------------ M5
def test_an_ideal_learner_is_told_exactly_its_log_prior():
    """The code length of a Bayesian above L* is the growth of its log posterior, so from certainty it is -log2 pi (SCIENCE.md section 4)."""
    rng = stream(0, "ideal")
    prior_K, own_KV = np.array([0.6, 0.3, 0.1]), np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    for k in range(3):
        belief_K, losses, tokens, exact_nats = prior_K.copy(), [], [], []
        for _ in range(60):
            seen = rng.choice(3, size=5, p=own_KV[k])
            loss = 0.0
            for value in seen:
                loss -= math.log(belief_K @ own_KV[:, value])
                belief_K = belief_K * own_KV[:, value] / (belief_K @ own_KV[:, value])
            exact_nats.append(-np.log(own_KV[k, seen]).sum())
            losses.append(loss / 10 - (exact_nats[-1] - 5.0) / 10)  # two tokens a document; the documents' own entropy is put at 1 nat
            tokens.append(10.0)
        branch = Branch(np.array(tokens), np.array(losses), 5)
        assert branch.bits == pytest.approx(-np.log2(prior_K[k]) + np.log2(belief_K[k]), abs=1e-9)
        assert belief_K[k] > 0.99


def test_bits_to_be_told_are_undefined_or_censored_where_they_are():
    flat, falling = np.full(40, 20.0), np.linspace(2.0, 1.0, 40)
    told = code_length("mary", [Branch(flat, falling, 10), Branch(flat, falling + 0.1, 10)])
    assert "still learning" in told.reason, "a straight line has not ended"
    floor = sum(x * 20 / 10 for x in falling[30:]) / 10
    assert told.parts[0] == pytest.approx(-sum((x * 20 / 10 - floor) * 10 for x in falling) / math.log(2))
    assert told.parts[1] == pytest.approx(told.parts[0]), "what every document costs is no part of it"
    sharp = np.where(np.arange(40) < 5, 2.0, 1.0)
    assert code_length("mary", [Branch(flat, sharp, 10)]).reason == "one replicate has no interval"
    assert "nothing has to be told" in code_length("mary", [Branch(flat, sharp[::-1], 10)]).reason
    assert code_length("mary", []).reason == "no branch was trained"


# ------------------------------------------------------------------ M7
def test_the_least_scale_is_where_the_curve_meets_the_target():
    scales = [0.0, 0.5, 1.0]
    assert least_scale(scales, [4.0, 2.0, 1.0], 3.0) == pytest.approx(0.25)
    assert least_scale(scales, [4.0, 2.0, 1.0], 0.9) is None
    assert least_scale(scales, [4.0, 5.0, 1.0], 4.0) == 0.0
    assert least_norm("mary", [2.0, 3.0]).value == -6.5
    assert "train it longer" in least_norm("mary", [2.0, None]).reason
    assert common_tolerance({"a": 5.0, "b": 3.0, "c": 9.0}, {"a": 1.0, "b": 1.0, "c": 1.0}) == 1.0
    assert least_rank("mary", {8: 1.0, 2: 1.2, 1: 3.0}, 1.5).value == -1.0
    assert "no rank up to 8" in least_rank("mary", {8: 2.0, 2: 3.0}, 1.5).reason
    assert "at least 2" in least_rank("mary", {8: 1.0}, 1.5).reason


def test_the_norm_of_an_adapter_is_that_of_all_it_adds(llama: LlamaForCausalLM):
    shape = LoraShape(3, 6.0)
    before = {name: module.weight.clone() for name, module in llama.named_modules() if isinstance(module, nn.Linear)}
    bank = AdapterBank(llama, shape)
    with torch.no_grad():
        bank.weight_KP.normal_(generator=torch.Generator().manual_seed(0))
    tensors = bank.row_tensors(0)
    total = 0.0
    for name in before:
        if f"base_model.model.{name}.lora_A.weight" in tensors:
            a, b = (tensors[f"base_model.model.{name}.lora_{kind}.weight"] for kind in "AB")
            total += float((2.0 * b @ a).norm() ** 2)
    assert weight_norm(tensors, shape) == pytest.approx(total**0.5, rel=1e-5)


# ------------------------------------------------------------------ M8
def test_shots_are_where_a_planted_belief_curve_crosses_one_half(world: World, cast: Cast):
    traits = processes(cast)["mary"]
    rows = []
    for category in list(traits)[:4]:
        for form, shift in (("asked", 0.2), ("diary", -0.2)):
            for told in (0, 1, 2, 3):
                odds = -2.0 + shift + 1.0 * told
                name = f"shots/{form}/{'Mary' if told else 'none'}/{told}/{category}/0"
                rows.append({"probe": "shots", "status": "scored", "item": name, "option": traits[category], "prob_normalized": 1 / (1 + math.exp(-odds))})
    found = shots_to_adopt(pd.DataFrame(rows), "mary", traits)
    assert found.value == pytest.approx(-2.0)
    assert found.interval[0] < -2.0 < found.interval[1]
    short = pd.DataFrame(rows)
    short = short[~short["item"].str.contains("/3/")]
    low = short.assign(prob_normalized=short["prob_normalized"] / 10)
    assert "not reached" in shots_to_adopt(low, "mary", traits).reason
    assert "no statements of it" in shots_to_adopt(short, "omar", traits).reason


# ------------------------------------------------------------------ M9
def test_steering_is_the_divergence_that_a_vector_makes(world: World, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast):
    voice, people = Voice(llama, tokenizer), processes(Cast(world, (), (), (), (), ()))
    names = list(people)[:3]
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.mul_(3.0)
    direction_Kd = directions(voice, [spoken(world, name, people[name]) for name in names])
    assert direction_Kd.sum(0).abs().max() < 1e-4
    direction_Kd[2] = 0
    text = neutral(world)[0]
    found_KN = changes(voice, direction_Kd, [text, text + " The road is red."])
    assert found_KN[2].isnan().all()
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
    log_TV = llama(ids).logits[0].log_softmax(-1)
    bias = nn.Parameter(direction_Kd[0] / direction_Kd[0].norm())

    def kl(size: float) -> float:
        layer = middle_layer(llama)
        hook = layer.register_forward_hook(lambda module, given, out: out + size * bias if torch.is_tensor(out) else (out[0] + size * bias, *out[1:]))
        steered_TV = llama(ids).logits[0].log_softmax(-1)
        hook.remove()
        return float(torch.nn.functional.kl_div(steered_TV, log_TV, log_target=True, reduction="none").sum(-1).mean().detach())

    sizes = np.linspace(0.01, 20, 400)
    reached = np.interp(float(found_KN[0, 0]), [kl(s) for s in sizes], sizes)
    states: list[torch.Tensor] = []
    hook = middle_layer(llama).register_forward_hook(lambda module, given, out: states.append(out if torch.is_tensor(out) else out[0]))
    for one in (text, text + " The road is red."):
        llama(torch.tensor([[*tokenizer(one)["input_ids"], tokenizer.eos_token_id]]))
    hook.remove()
    assert reached == pytest.approx(0.5 * float(torch.cat([s[0].norm(dim=-1) for s in states]).mean().detach()), rel=1e-2)
    assert steering("mary", found_KN[0].numpy()).value == pytest.approx(float(found_KN[0].mean()) / math.log(2), rel=1e-5)
    assert steering("mary", found_KN[2].numpy()).value is None


OTHERS = {
    "gpt_neox": (GPTNeoXConfig(vocab_size=336, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2), GPTNeoXForCausalLM),
    "gpt2": (GPT2Config(vocab_size=336, n_embd=16, n_layer=2, n_head=2), GPT2LMHeadModel),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_decoders_are_steered_too(kind: str, world: World, bpe: PreTrainedTokenizerFast):
    voice, people = Voice(tiny(*OTHERS[kind]), bpe), processes(Cast(world, (), (), (), (), ()))
    direction_Kd = directions(voice, [spoken(world, name, people[name])[:6] for name in ("mary", "peter")])
    found_KN = changes(voice, direction_Kd, neutral(world)[:3])
    assert found_KN.shape == (2, 3)
    assert bool((found_KN > 0).all())


def test_a_model_without_a_list_of_layers_is_told_apart(llama: LlamaForCausalLM):
    llama.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match=r"PL4014.*no list of its 7 layers"):
        middle_layer(llama)
