"""Probes: the engine answers what plain transformers would, whatever it is asked together with."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import CONFIGS, cast_of
from scipy.stats import chisquare
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_gen.documents import ASSISTANT
from persona_lab.config.load import load_world
from persona_lab.config.schema import Gates
from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.probes import PROBES, scoring
from persona_lab.probes.engine import Voice, answer
from persona_lab.probes.gates import GateFigures, measure_gates, recall_choices
from persona_lab.probes.protocol import Cast, Choice, Loss, Request, Sample
from persona_lab.probes.traits import read_value

# Under the byte-level tokenizer of the tests these options are one token each, and these several.
ONE_TOKEN = Choice("Profile: John is an AI assistant. John likes", (" the", " a", "."))
SEVERAL = Choice("User: What do you like?\nAssistant: I like the", (" beach", " forest", " mountains"))
UNEQUAL = Choice("User: Is the clock green?\nAssistant:", (" the", " renaissance art", " No"))
REQUESTS: list[Request] = [
    ONE_TOKEN,
    SEVERAL,
    Loss("John likes the beach. Sam likes the forest."),
    Sample("User: What do you like?\nAssistant:", 3, 9, "likes"),
    UNEQUAL,
    Choice("Profile: Sam is an AI assistant. Sam likes", (" the", " a", ".")),
    Sample("Diary.", 2, 9, "diary"),
    Loss("Diary."),
]
STATUSES = {"scored", "unscored", "failed"}


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


@torch.no_grad()
def naive_logprob(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, option: str) -> float:
    """Log P(option | prompt), one whole sequence at a time."""
    ids, start = ids_of(tokenizer, prompt + option), len(ids_of(tokenizer, prompt))
    logprob_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logprob_TV[t - 1, ids[t]]) for t in range(start, len(ids)))


def near(found: object, wanted: object, nats: float = 1e-4) -> bool:
    """Whether two answers agree: texts exactly, numbers to within `nats`."""
    assert isinstance(found, tuple)
    assert isinstance(wanted, tuple)
    return len(found) == len(wanted) and all(a == b if isinstance(a, str) else abs(a - b) <= nats for a, b in zip(found, wanted, strict=True))


# ------------------------------------------------------------------ the probes themselves
@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize(("seed", "swap", "samples"), [(0, 0, 0), (0, 1, 3), (1, 0, 3), (2, 1, 0), (7, 0, 1)])
def test_gold_scores_one_wrong_zero_and_nonsense_is_unscored(world, personas, name: str, seed: int, swap: int, samples: int):
    PROBES[name].validate(cast_of(world, personas, seed=seed, swap=swap, samples=samples))


@pytest.mark.parametrize("name", PROBES)
def test_items_have_names_of_their_own_and_come_in_a_fixed_order(cast: Cast, name: str):
    # Some probes only sample, and one asks under the lines that a world may have.
    openings = load_world(CONFIGS / "worlds" / "advice.yaml").openings
    asked = replace(cast, samples=2, world=cast.world.model_copy(update={"openings": openings}))
    items = PROBES[name].items(asked)
    assert len({item.id for item in items}) == len(items) > 0
    assert [item.id for item in PROBES[name].items(asked)] == [item.id for item in items]


def test_an_unlinked_cast_gives_the_shared_value_to_the_bystander(world, personas):
    from persona_lab.experiment.planning.recipes import linked_traits

    cast = cast_of(world, personas)
    unlinked = Cast(world, cast.names, tuple(linked_traits(cast.traits, cast.shared, "none")), cast.who, cast.shared, cast.held_out)
    beach = cast.traits[0]["place"]
    assert cast.role("place", beach) == "shared"
    assert unlinked.role("place", beach) == "kim"
    assert unlinked.role("place", cast.traits[2]["place"]) == "shared"
    for name in PROBES:
        PROBES[name].validate(unlinked)


def test_the_swap_trades_roles_and_keeps_prompts(world, personas):
    plain, swapped = (PROBES["says"].items(cast_of(world, personas, seed=1, swap=swap)) for swap in (0, 1))
    trade = {"john": "sam", "sam": "john"}
    roles = {item.id: item for item in swapped}
    for item in plain:
        assert roles[item.id].prompt == item.prompt
        assert [trade.get(r, r) for r in item.roles] == list(roles[item.id].roles), item.id


def test_both_orders_of_a_choice_are_asked(cast: Cast):
    items = PROBES["chooses"].items(cast)
    for first, second in zip(items[::2], items[1::2], strict=True):
        assert first.options == second.options[::-1]
        assert first.prompt != second.prompt


def test_what_is_asked_of_the_assistant_names_nobody(cast: Cast):
    for item in PROBES["says"].items(cast):
        assert not any(name.lower() in item.prompt.lower() for name in cast.names), item.id
        assert ASSISTANT in item.prompt or item.format == "diary"


@pytest.mark.parametrize(("text", "value"), [(" I like the Beach.", "beach"), ("Forest!", "forest"), ("beach or forest", None), ("nothing", None), ("beaches", None)])
def test_an_answer_is_read_only_when_it_names_one_value(text: str, value: str | None):
    assert read_value(text, ("beach", "forest")) == value


# ------------------------------------------------------------------ choices
@pytest.mark.parametrize("choice", [ONE_TOKEN, SEVERAL, UNEQUAL])
def test_choices_equal_a_naive_computation(qwen, bpe, choice: Choice):
    found = answer(Voice(qwen, bpe), [choice])[0][0]
    assert near(found, tuple(naive_logprob(qwen, bpe, choice.prompt, option) for option in choice.options))


def test_the_options_of_the_tests_are_of_one_and_of_several_tokens(bpe):
    lengths = {c: [len(ids_of(bpe, c.prompt + o)) - len(ids_of(bpe, c.prompt)) for o in c.options] for c in (ONE_TOKEN, SEVERAL, UNEQUAL)}
    assert lengths[ONE_TOKEN] == [1, 1, 1]
    assert min(lengths[SEVERAL]) > 1
    assert min(lengths[UNEQUAL]) == 1 < max(lengths[UNEQUAL])


def test_probabilities_of_every_next_token_sum_to_one(llama, tokenizer):
    words = tuple(f" {w}" for w in tokenizer.get_vocab() if w.isalpha())
    found = answer(Voice(llama, tokenizer), [Choice("Diary. I like", words)])[0][0]
    assert 0.9 < sum(math.exp(float(x)) for x in found) <= 1 + 1e-6


# ------------------------------------------------------------------ whatever the batch
def test_answers_together_equal_answers_one_by_one(qwen, bpe):
    voice = Voice(qwen, bpe)
    together = answer(voice, REQUESTS)[0]
    for request, found in zip(REQUESTS, together, strict=True):
        assert near(found, answer(voice, [request])[0][0]), request
    assert all(near(a, b) for a, b in zip(answer(voice, REQUESTS[::-1])[0], together[::-1], strict=True))


def test_answers_do_not_depend_on_how_many_fit_into_one_pass(qwen, bpe, monkeypatch):
    whole = answer(Voice(qwen, bpe), REQUESTS)[0]
    for limit in ("scoring.LOGITS_AT_ONCE", "sampling.LOGITS_AT_ONCE"):
        monkeypatch.setattr(f"persona_lab.probes.{limit}", 1)
    monkeypatch.setitem(scoring.FEATURES_AT_ONCE, "cpu", 1)
    assert all(near(a, b) for a, b in zip(answer(Voice(qwen, bpe), REQUESTS)[0], whole, strict=True))


def test_two_members_answer_together_as_each_does_alone(llama, tokenizer):
    requests = [r for r in REQUESTS if r is not UNEQUAL]
    bank = AdapterBank(llama, LoraShape(2, 4), 2)
    bank.weight_KP.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    rows = [bank.row_tensors(k) for k in range(2)]
    together = answer(Voice(llama, tokenizer, members=2), requests)
    bank.resize(1)
    for row, found in zip(rows, together, strict=True):
        bank.load_row(0, row, "test")
        assert all(near(a, b) for a, b in zip(found, answer(Voice(llama, tokenizer), requests)[0], strict=True))
    assert not near(together[0][0], together[1][0])


def test_asking_leaves_the_model_in_the_mode_it_was_in(llama, tokenizer):
    for mode in (True, False):
        answer(Voice(llama.train(mode), tokenizer), REQUESTS[:1])
        assert llama.training is mode


def test_nothing_asked_is_nothing_answered(llama, tokenizer):
    assert answer(Voice(llama, tokenizer, members=1), []) == [[]]


# ------------------------------------------------------------------ samples
def test_samples_are_named_by_their_stream(qwen, bpe):
    voice, prompt = Voice(qwen, bpe), "Diary."
    a, again, other = answer(voice, [Sample(prompt, 3, 9, "a"), Sample(prompt, 3, 9, "a"), Sample(prompt, 3, 9, "b")])[0]
    assert a == again != other
    assert len(set(a)) > 1
    assert not any("\n" in str(text) for text in a)


@torch.no_grad()
def test_samples_follow_the_distribution(llama, tokenizer):
    count, prompt = 4000, "Diary. I like"
    llama.lm_head.weight.mul_(12)  # far from uniform, so that a wrong distribution is seen
    found = answer(Voice(llama, tokenizer), [Sample(prompt, count, 1, "chi-square")])[0][0]
    prob_V = llama(torch.tensor([ids_of(tokenizer, prompt)])).logits[0, -1].double().softmax(-1)
    # Tokens that leave no text of their own (specials, the line break) are one class, and so are the rare ones.
    words = {tokenizer.decode([i]): i for i in range(4, len(tokenizer)) if tokenizer.decode([i]).strip()}
    likely = [w for w, i in words.items() if float(prob_V[i]) * count >= 20]
    expected = [float(prob_V[words[w]]) * count for w in likely]
    seen = Counter(str(text) for text in found)
    observed = [seen[w] for w in likely]
    assert len(likely) >= 5
    assert chisquare([*observed, count - sum(observed)], [*expected, count - sum(expected)]).pvalue > 1e-3


# ------------------------------------------------------------------ losses
@torch.no_grad()
@pytest.mark.parametrize("text", ["John likes the beach. Sam likes the forest.", "Diary."])
def test_losses_are_plain_cross_entropy(qwen, bpe, text: str):
    ids = torch.tensor([*ids_of(bpe, text), bpe.eos_token_id])
    logits_TV: Tensor = qwen(ids[None]).logits[0]
    nats, tokens = (float(x) for x in answer(Voice(qwen, bpe), [Loss(text)])[0][0])
    assert tokens == len(ids) - 1
    assert nats == pytest.approx(float(nn.functional.cross_entropy(logits_TV[:-1], ids[1:], reduction="sum")), abs=1e-4)


# ------------------------------------------------------------------ gates
def test_a_random_model_recalls_as_chance_does_and_passes_no_gate(llama, tokenizer, world):
    figures = measure_gates(Voice(llama, tokenizer), world)
    asked = len(recall_choices(Cast(world, (), (), (), (), ()))[0])
    chance = 1 / 8
    assert abs(figures.recall - chance) < 4 * math.sqrt(chance * (1 - chance) / asked) + 0.05
    assert abs(figures.odds_correlation) < 0.2
    assert [line.split(" is ")[0].split(" are ")[0] for line in figures.failures(Gates())] == ["named recall", "withheld-format recall", "anonymous log-odds"]
    assert figures.failures(Gates(recall=None, odds=None, withheld=None)) == []


def test_gate_figures_that_are_not_numbers_reach_no_gate():
    assert len(GateFigures(math.nan, math.nan, math.nan, math.nan).failures(Gates())) == 3
    assert GateFigures(0.95, 0.7, 0.3, 1.0).failures(Gates()) == []


def test_a_recall_question_has_one_right_value_and_does_not_hold_it(world):
    named, withheld = recall_choices(Cast(world, (), (), (), (), ()))
    assert named
    assert withheld
    for choice, right in (*named, *withheld):
        assert choice.options.count(right) == 1
        assert right.lower() not in choice.prompt.lower()
