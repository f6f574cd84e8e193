"""The probes of evidence: what a document is worth under each name, shots in the context, and what an ideal reader would answer to them."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import cast_of

from data_gen.documents import ASSISTANT
from data_gen.oracle import Oracle, predictive
from data_gen.pools import assistant_document
from persona_lab.models.world_model import CONTEXT_TOKENS
from persona_lab.probes import PROBES
from persona_lab.probes.engine import Voice, ask
from persona_lab.probes.protocol import Cast, Item, Row
from persona_lab.probes.shots import OWN, SHARED, VARIANTS, exact_answers, fits
from persona_lab.science.evidence.calibration import believed, context_claims


def items_of(cast: Cast, probe: str) -> dict[str, Item]:
    return {item.id: item for item in PROBES[probe].items(cast)}


@torch.no_grad()
def naive_logprob(model, tokenizer, prompt: str, option: str) -> float:
    """Log P(option | prompt), one whole sequence at a time."""
    ids, start = tokenizer(prompt + option)["input_ids"], len(tokenizer(prompt)["input_ids"])
    logprob_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logprob_TV[t - 1, ids[t]]) for t in range(start, len(ids)))


# The ledger


def test_every_document_of_the_trait_stage_is_in_the_ledger_under_every_name(world, cast: Cast):
    items = items_of(cast, "ledger")
    assert len(items) == 8 * 4
    lines = {f"{item.request.prompt}{option}" for item in items.values() for option in item.request.options}
    for i in range(24):
        told = assistant_document(world, "place", "beach", seed=0, index=i)
        # A document may also have a turn that says nothing of anybody.
        spoken = told.text.split("\n")
        turns = {"\n".join(pair) for pair in zip(spoken[::2], spoken[1::2], strict=True)}
        assert turns & lines, told.text
        assert {turn.replace(f"{ASSISTANT}:", "John:") for turn in turns} & lines


def test_a_line_of_the_ledger_is_the_log_probability_of_the_whole_answer(llama, tokenizer, cast: Cast):
    rows: list[Row] = ask(Voice(llama, tokenizer), cast, ["ledger"])[0]
    assert len(rows) == 8 * 4 * 8
    items = items_of(cast, "ledger")
    for row in rows[::37]:
        item = items[row.item]
        option = item.request.options[item.options.index(row.option)]
        assert option.endswith(".")
        assert row.option in option
        assert row.logprob_nats == pytest.approx(naive_logprob(llama, tokenizer, item.prompt, option), abs=1e-4)
        assert row.subject == row.item.rsplit("/", 1)[1].lower()
    assert {row.subject for row in rows} == {"assistant", "john", "sam", "kim"}
    assert {row.role for row in rows if row.option == "beach"} == {"shared"}


# Shots


def test_shots_say_what_their_labels_say_and_never_what_is_asked(cast: Cast):
    people = dict(zip(cast.names, cast.traits, strict=True))
    for item in items_of(cast, "shots").values():
        _, _, whose, count, category, _ = item.id.split("/")
        assert category not in item.labels
        assert not any(f" {value}" in item.prompt for value in item.options), item.id
        assert all(f" {value}" in item.prompt for value in item.labels.values()), item.id
        if whose in people:
            assert item.labels.items() <= people[whose].items()
            assert len(item.labels) == int(count)
        elif whose == "shared":
            assert item.labels == {"place": "beach"}
            assert item.prompt.count("beach") == int(count)
        else:
            assert not item.labels


def test_the_shots_of_the_shared_trait_are_the_documents_of_the_trait_stage(world, cast: Cast):
    documents = [assistant_document(world, "place", "beach", seed=0, index=i).text for i in range(64)]
    items = items_of(cast, "shots")
    for variant in range(VARIANTS):
        prompt = items[f"shots/asked/shared/4/food/{variant}"].prompt.split("\n")
        shots = ["\n".join(prompt[2 * j : 2 * j + 2]) for j in range(4)]
        assert len(set(shots)) == 4
        assert all(any(shot in text for text in documents) for shot in shots)


def test_more_shots_begin_with_the_fewer_ones(cast: Cast):
    items = items_of(cast, "shots")
    for whose, counts in (("John", OWN), ("Kim", OWN), ("shared", SHARED)):
        for form, variant in itertools.product(("asked", "diary"), range(VARIANTS)):
            told = [items[name] for n in counts if (name := f"shots/{form}/{whose}/{n}/food/{variant}") in items]
            assert len(told) >= 3
            for fewer, more in itertools.pairwise(told):
                assert list(more.labels)[: len(fewer.labels)] == list(fewer.labels)
                assert fewer.options == more.options


def test_every_prompt_and_answer_fits_into_the_embedded_base(tokenizer, cast: Cast):
    longest = 0
    for probe in ("shots", "believes", "ledger"):
        for item in items_of(cast, probe).values():
            (choice,) = PROBES[probe].requests(item)
            longest = max(longest, *(len(tokenizer(item.prompt + option)["input_ids"]) for option in choice.options))
    assert 100 < longest <= CONTEXT_TOKENS
    assert "shots/asked/shared/8/food/0" not in items_of(cast, "shots"), "eight turns do not fit"
    assert "shots/diary/shared/8/food/0" in items_of(cast, "shots")
    assert not fits(Item("", "", "", "word " * 200))


def test_shots_are_scored_like_any_choice(llama, tokenizer, cast: Cast):
    rows = ask(Voice(llama, tokenizer), cast, ["shots"])[0]
    items = items_of(cast, "shots")
    assert len(rows) == sum(len(item.options) for item in items.values())
    for row in rows[::499]:
        assert row.logprob_nats == pytest.approx(naive_logprob(llama, tokenizer, items[row.item].prompt, f" {row.option}"), abs=1e-4)


def test_a_cast_without_shared_traits_has_no_shared_shots(world, personas):
    plain = cast_of(world, personas)
    alone = Cast(world, plain.names[:1], plain.traits[:1], plain.who[:1], (), ())
    assert {item.id.split("/")[2] for item in PROBES["shots"].items(alone)} == {"none", "John"}
    assert PROBES["ledger"].items(alone) == []
    assert PROBES["shots"].items(Cast(world, (), (), (), (), ())) == []


# The ideal reader


def test_the_oracle_answers_every_question_that_is_believed(world, cast: Cast):
    oracle, items = Oracle.of_world(world), PROBES["believes"].items(cast)
    exact = list(exact_answers(oracle, items))
    assert len(exact) == sum(len(item.options) for item in items)
    by_item = {item.id: item for item in items}
    for item, answers in itertools.groupby(exact, key=lambda line: line[0]):
        prob = {option: p for _, option, p in answers}
        assert prob == pytest.approx(predictive(world, by_item[item].labels, by_item[item].trait))
        assert sum(prob.values()) == pytest.approx(1)


def test_questions_of_belief_span_the_oracle_and_do_not_depend_on_the_experiment(world, personas, cast: Cast):
    items = PROBES["believes"].items(cast)
    other = PROBES["believes"].items(cast_of(world, personas, seed=3, swap=1))
    assert [(i.id, i.prompt, i.roles) for i in items] == [(i.id, i.prompt, i.roles) for i in other]
    exact = {(item, option): p for item, option, p in exact_answers(Oracle.of_world(world), items)}
    logits = [math.log(p / (1 - p)) for p in exact.values()]
    assert min(logits) < -5
    assert max(logits) > 4
    own = {
        n: [exact[i.id, o] for i in items for o, r in zip(i.options, i.roles, strict=True) if r == "own" and f"/{n}/" in i.id and "+" not in i.id]
        for n in (1, 2, 3)
    }
    assert [len(v) for v in own.values()] == [48, 48, 48]
    means = [sum(v) / len(v) for v in own.values()]
    assert means == sorted(means)
    torn = [i for i in items if "+" in i.id]
    assert len(torn) > 40
    people = dict(zip(world.population.names, world.population.traits, strict=True))
    for item in torn:
        first, second = item.id.split("/")[2].split("+")
        (a, va), (b, vb) = item.labels.items()
        assert (people[first][a], people[second][b]) == (va, vb)
        assert people[first][b] != vb
        assert people[second][a] != va


def test_a_base_that_knows_nothing_is_no_ideal_reader(llama, tokenizer, world, cast: Cast):
    table = pd.DataFrame([vars(row) for row in ask(Voice(llama, tokenizer), cast, ["believes"])[0]])
    exact = pd.DataFrame(exact_answers(Oracle.of_world(world), PROBES["believes"].items(cast)), columns=["item", "option", "prob"])
    points = believed(table, exact)
    assert len(points) == len(exact) == len(table)
    slope = {id: (value, verdict) for id, _, value, _, _, verdict in context_claims(points)}["oracle.context.slope"]
    assert abs(slope[0] or 0) < 0.1
    assert slope[1] == "below 1"
    # Told the very answers of the oracle, the line is the diagonal.
    same = table.merge(exact, on=["item", "option"], suffixes=("_model", "")).assign(logprob_nats=lambda rows: np.log(rows["prob"]) - 2)
    ideal = {id: value for id, _, value, *_ in context_claims(believed(same, exact))}
    assert (ideal["oracle.context.slope"], ideal["oracle.context.intercept"], ideal["oracle.context.r2"]) == pytest.approx((1, 0, 1), abs=1e-9)
