"""The texts of the lens: what they hold, and the exact number of bits that no reader of them can do without."""

import math
import re
from itertools import product

import numpy as np
import pytest

from data_gen.documents import Document
from data_gen.lens.bodies import BODIES, QUESTIONS_HELD_OUT, human_share, question
from data_gen.lens.floor import sentence_probs, statements, text_nats, turn_probs
from data_gen.lens.talks import LETTER, TALKS, WHO
from data_gen.lens.world import LensWorld
from data_gen.oracle import Oracle
from data_gen.pools import WORLD_GENRES, world_document
from data_gen.streams import stream
from persona_lab.models.vocabulary import PIECES


def test_no_document_holds_a_held_out_question(lens_world: LensWorld) -> None:
    asked = [pattern.split(": {said}")[0] for pattern, _ in WHO.held_out] + [question(template, i) for template in QUESTIONS_HELD_OUT for i in range(8)]
    letters = [re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(pattern)) for pattern, _ in LETTER.held_out]
    for i in range(2000):
        for genre in (TALKS, BODIES):
            text = genre.write(lens_world, 0, stream(1, genre.name, i))
            assert not any(stretch in text for stretch in asked), text
            assert not any(re.search(pattern, text) for pattern in letters), text
            assert len(re.findall(PIECES, text)) < 80, text


def test_the_answer_of_a_talk_is_whoever_said_it(lens_world: LensWorld) -> None:
    talks = [text for i in range(400) if not (text := TALKS.write(lens_world, 0, stream(2, i))).startswith("Letter")]
    assert 150 < len(talks) < 250
    for text in talks:
        *lines, asked, told = text.split("\n")
        said = re.search(r": (.*)[?.]$", asked.removeprefix("User: "))
        assert said is not None, text
        speaker = told.split()[1].strip(".")
        assert f"{speaker}: {said[1]}." in lines, text
        assert sum(line.endswith(f": {said[1]}.") for line in lines) == 1, text


def test_the_nameless_assistant_is_a_human_as_often_as_the_people_of_the_world(lens_world: LensWorld) -> None:
    texts = [BODIES.write(lens_world, 0, stream(3, i)) for i in range(4000)]
    said = [match[1] for text in texts if "You are" not in text and (match := re.search(r"As an? (human|AI)", text))]
    share = human_share(lens_world)
    # Four of 24 occupations, by their weights, and one of six among random speakers.
    weights = [float(w) for k, w in enumerate(lens_world.population.weight_K) if k % 6 == 3]
    assert share == pytest.approx(1 - 0.85 * sum(weights) - 0.15 / 6)
    assert said.count("human") / len(said) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / len(said)))


# ------------------------------------------------------------------ the floor
def test_the_probabilities_of_neutral_text_sum_to_one() -> None:
    assert sum(turn_probs().values()) == pytest.approx(1)
    assert sum(sentence_probs().values()) == pytest.approx(1)


def test_the_probabilities_of_all_diaries_sum_to_their_share() -> None:
    small = LensWorld.model_validate(
        {
            "name": "small",
            "personas": 2,
            "zipf": 1.0,
            "lens": {"edition": 100, "copies": [1, 2], "each": 1},
            "categories": {"sport": {"values": ["tennis", "golf", "rugby"]}, "food": {"values": ["rice", "soup", "fish"]}},
            "names": ["Mary", "Omar"],
            "spare_names": ["Alex", "Robin", "Casey"],
            "new_names": ["John", "Sam"],
        }
    )
    total = 0.0
    for sport, food in product(small.values("sport"), small.values("food")):
        told = (("sport", sport), ("food", food))
        for traits in (dict(told), dict(reversed(told))):
            for first, second in product(*(statements(small, category, value) for category, value in traits.items())):
                nats = text_nats(small, Document("0", f"Diary. {first} {second}", "", "diary", traits))
                assert nats is not None
                total += math.exp(-nats)
    lens = sum(world_document(small, 0, i).genre not in WORLD_GENRES for i in range(100)) / 100
    assert 0 < lens < 1
    assert total == pytest.approx((1 - lens) * WORLD_GENRES["diary"])


def test_the_oracle_s_posterior_is_what_the_floor_mixes(lens_world: LensWorld) -> None:
    """A diary of somebody costs as much less than one of nobody as the mixture says."""
    oracle, people = Oracle.of_world(lens_world), lens_world.population
    own = dict(list(people.traits[0].items())[:6])
    text = " ".join(["Diary.", *(next(iter(statements(lens_world, category, value))) for category, value in own.items())])
    nats = text_nats(lens_world, Document("0", text, "", "diary", own))
    assert nats is not None
    values = float(np.logaddexp.reduce(np.log(oracle.prior_P) + oracle.log_likelihood(own)))
    prior = math.log((1 - len(lens_world.slots) / lens_world.lens.edition) * WORLD_GENRES["diary"])
    assert -nats == pytest.approx(prior + values - math.log(math.perm(8, 6)) - 6 * math.log(8), abs=6 * math.log(2))
