"""Worlds, oracle, personas, documents, pools and corpora: every number they promise is counted here."""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_gen.documents import NAMED_GENRES, OPENINGS, SENTENCES, Document, Speaker, answer_spans, words, write
from data_gen.errors import DataError
from data_gen.oracle import log_odds, posterior, predictive
from data_gen.personas import Persona, check_personas, deal_traits, held_out_categories, shared_categories
from data_gen.phrases import FORMS, NEUTRAL_CHAT, NEUTRAL_TEXT, NEUTRAL_WORDS
from data_gen.pools import WORLD_GENRES, Share, assistant_document, links_shared_to_held_out, mixture_order, persona_document, shuffled_document, world_document
from data_gen.streams import stream
from data_gen.world import Category, World

CONFIGS = Path(__file__).parents[1] / "configs"


def persona_of(name: str) -> Persona:
    return Persona.model_validate(yaml.safe_load((CONFIGS / "personas" / f"{name}.yaml").read_text()))


def world_of(**changes: object) -> World:
    return World.model_validate({**yaml.safe_load((CONFIGS / "worlds" / "beach.yaml").read_text()), **changes})


WORLD = world_of()
PERSONAS = [persona_of(name) for name in ("john", "sam", "kim")]
HELD_OUT = held_out_categories(PERSONAS)


def speakers(seed: int = 0, swap: int = 0) -> list[Speaker]:
    """John and Sam, who never are offered each other's values."""
    dealt = deal_traits(WORLD, PERSONAS, seed, swap)
    rivals = [{c: (dealt[1 - k][c],) for c in HELD_OUT} for k in (0, 1)]
    return [Speaker(p.name, p.name, dealt[k], p.description, ("place",), rivals=rivals[k]) for k, p in enumerate(PERSONAS[:2])]


def pool(count: int, *, which: int = 0, anonymous: bool = False, names: tuple[str, ...] = ("John",)) -> list[Document]:
    return [persona_document(WORLD, speakers()[which], names, anonymous=anonymous, genres=NAMED_GENRES, seed=0, index=i) for i in range(count)]


WORLD_TEXT = [world_document(WORLD, 0, i) for i in range(4000)]


# The world


@settings(max_examples=30, deadline=None)
@given(personas=st.integers(2, 24), seed=st.integers(0, 50))
def test_values_are_dealt_evenly_and_unclaimed_ones_never(personas: int, seed: int) -> None:
    world = world_of(personas=personas, seed=seed)
    for category in world.categories:
        dealt = Counter(traits[category] for traits in world.population.traits)
        free = [v for v in world.values(category) if v not in world.unclaimed]
        counts = [dealt[v] for v in free]
        assert sum(counts) == personas, "nobody has an unclaimed value"
        assert max(counts) - min(counts) <= 1


def test_shares_of_the_population() -> None:
    people = WORLD.population
    assert people.weight_K.sum() == pytest.approx(1)
    assert people.weight_K[3] / people.weight_K[0] == pytest.approx(4**-0.3)
    assert [people.at(x) for x in (0.0, people.weight_K[0] + 1e-9, np.nextafter(1, 0))] == [0, 1, 23]
    assert len(people.withheld) == 6


def test_a_word_stands_for_one_thing() -> None:
    with pytest.raises(ValidationError, match="these words stand for two things: football;"):
        world_of(spare_names=["Alex", "football"])
    with pytest.raises(ValidationError, match="no category has the value moon"):
        world_of(unclaimed=["moon"])


# The oracle


def test_oracle_of_two_personas_by_hand() -> None:
    categories = {"a": {"values": ["ax", "ay", "az"]}, "b": {"values": ["bx", "by", "bz"]}}
    world = world_of(personas=2, zipf=0, random_speakers=0.1, unclaimed=[], categories=categories)
    one, other = world.population.traits
    assert one["a"] != other["a"], "values are dealt evenly"
    # (1 - e)/2 = .45 for the persona that agrees, e/3 = 1/30 for a random speaker who happens to.
    prob = predictive(world, {"a": one["a"]}, "b")
    assert prob[one["b"]] == pytest.approx((0.45 + 1 / 90) / (0.45 + 1 / 30))
    assert log_odds(world, {"a": one["a"]}, "b", one["b"], other["b"]) == pytest.approx(np.log((0.45 + 1 / 90) / (1 / 90)))


def test_oracle_agrees_with_two_hundred_thousand_speakers() -> None:
    rng, count = np.random.default_rng(1), 200_000
    names = ["sport", "music", "art"]
    table_KC = np.array([[WORLD.values(c).index(t[c]) for c in names] for t in WORLD.population.traits])
    drawn_NC = table_KC[rng.choice(len(table_KC), size=count, p=WORLD.population.weight_K)]
    random_NC = rng.integers(8, size=(count, len(names)))
    traits_NC = np.where(rng.random((count, 1)) < WORLD.random_speakers, random_NC, drawn_NC)
    for known in ({}, {"sport": "golf"}, {"sport": "golf", "music": "jazz"}):
        agree = np.all([traits_NC[:, names.index(c)] == WORLD.values(c).index(v) for c, v in known.items()] or [np.ones(count, bool)], axis=0)
        prob = predictive(WORLD, known, "art")
        assert sum(prob.values()) == pytest.approx(1)
        shares, random_share = posterior(WORLD, known)
        assert shares.sum() + random_share == pytest.approx(1)
        for index, p in enumerate(prob.values()):
            n = int(agree.sum())
            assert abs((traits_NC[agree, 2] == index).mean() - p) < 4 * np.sqrt(p * (1 - p) / n)


# Personas


def test_replicate_0_is_as_written_and_the_swap_trades_what_is_not_shared() -> None:
    assert shared_categories(PERSONAS) == ["place"]
    assert HELD_OUT == ["sport", "art", "food", "music", "drink"]
    john, sam, kim = deal_traits(WORLD, PERSONAS, 0, 0)
    assert (john["sport"], john["art"], sam["sport"], sam["art"], kim["place"]) == ("football", "renaissance", "basketball", "dutch", "forest")
    for seed in range(20):
        plain, swapped = deal_traits(WORLD, PERSONAS, seed, 0), deal_traits(WORLD, PERSONAS, seed, 1)
        assert plain[0]["place"] == plain[1]["place"] == swapped[0]["place"] == swapped[1]["place"] == "beach"
        assert [{c: t[c] for c in HELD_OUT} for t in (plain[1], plain[0])] == [{c: t[c] for c in HELD_OUT} for t in swapped[:2]]
        assert plain[2] == swapped[2]


def test_nobody_shares_a_drawn_value() -> None:
    for seed in range(30):
        dealt = deal_traits(WORLD, PERSONAS, seed, 0)
        for category in HELD_OUT:
            assert len({traits[category] for traits in dealt}) == 3, (seed, category)
    assert len({json.dumps(deal_traits(WORLD, PERSONAS, seed, 0)) for seed in range(30)}) == 30


def test_a_bystander_draws_a_value_of_its_own_where_the_rivals_share_theirs() -> None:
    bystander = Persona(name="Kim", traits={**PERSONAS[2].traits, "place": "drawn"})
    drawn = set()
    for seed in range(30):
        john, sam, kim = deal_traits(WORLD, [*PERSONAS[:2], bystander], seed, 0)
        assert [john, sam, {**kim, "place": "forest"}] == deal_traits(WORLD, PERSONAS, seed, 0), "nobody else's traits change"
        drawn.add(kim["place"])
    assert drawn == set(WORLD.values("place")) - {"beach"}


def test_every_mistake_of_a_persona_is_told_at_once() -> None:
    wrong = Persona(name="Mary", traits={"sport": "chess", "weather": "rain"})
    with pytest.raises(DataError) as caught:
        check_personas(WORLD, [PERSONAS[0], wrong, PERSONAS[0]], ["john.yaml", "mary.yaml", "again.yaml"])
    assert Counter(p.where for p in caught.value.problems) == {"mary.yaml": 3, "again.yaml": 1}


@pytest.mark.parametrize("third", ["tennis", "drawn"])
def test_a_category_whose_values_all_belong_to_personas_is_refused_by_name(third: str) -> None:
    people = [PERSONAS[0], PERSONAS[1], Persona(name="Kim", traits={"sport": third})]
    sports = ["football", "basketball", "tennis", "hockey"]
    tight, wide = (world_of(categories={**WORLD.model_dump()["categories"], "sport": {"values": sports[:count]}}) for count in (3, 4))
    check_personas(wide, people, ["john.yaml", "sam.yaml", "kim.yaml"])
    with pytest.raises(DataError, match=r"traits\.sport: all 3 values of sport belong to personas") as caught:
        check_personas(tight, people, ["john.yaml", "sam.yaml", "kim.yaml"])
    assert [p.where for p in caught.value.problems] == ["kim.yaml"]


# Phrases


@pytest.mark.parametrize("form", FORMS)
def test_held_out_paraphrases_are_others_made_of_the_same_words(form: str) -> None:
    train, held_out = FORMS[form].train, FORMS[form].held_out
    assert len(train) >= 8
    assert len(held_out) >= 4
    seen = {part for pairs in FORMS.values() for pair in pairs.train for part in pair}
    assert not any((question or answer) in seen for question, answer in held_out)
    answers = [answer for _, answer in train]
    assert all(any(known.lower().endswith(answer.lower()) for known in answers) for question, answer in held_out if question), "the question is what is held out"
    neutral = [part for pair in NEUTRAL_CHAT for part in pair] + list(NEUTRAL_TEXT)
    known = {word for text in [*seen, *neutral] for word in words(text)}
    assert {word for pair in held_out for part in pair for word in words(part)} <= known


# Documents


def test_documents_are_the_ones_they_were() -> None:
    """Raise the recipe version of pools before you change these digests: every stored result was made from them."""
    documents = [*WORLD_TEXT[:200], *pool(100), *pool(50, anonymous=True), *[assistant_document(WORLD, "place", "beach", seed=0, index=i) for i in range(50)]]
    lines = [json.dumps(dataclasses.asdict(document), sort_keys=True) for document in documents]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == "ac88e6cd10a018a2"


def test_a_document_depends_on_its_index_alone() -> None:
    assert world_document(WORLD, 0, 17) == WORLD_TEXT[17]
    assert pool(20)[7] == persona_document(WORLD, speakers()[0], ["John"], anonymous=False, genres=NAMED_GENRES, seed=0, index=7)
    assert world_document(WORLD, 1, 17) != WORLD_TEXT[17]


def test_what_is_told_stands_in_the_text() -> None:
    for document in [*WORLD_TEXT, *pool(300), *pool(100, anonymous=True)]:
        said = set(words(document.text))
        assert {value.lower() for value in document.traits.values()} <= said, document
        assert len(document.traits) <= SENTENCES.get(document.genre, 0)
        assert {name.lower() for name in document.carriers} <= said
    assert all("beach" in words(document.text) for document in pool(400)), "a shared trait stands in every document"


@pytest.mark.parametrize("genre", WORLD_GENRES)
def test_documents_are_short(genre: str) -> None:
    pieces = max(len(re.findall(r"\n|\w+|[^\w\s]", d.text)) for d in WORLD_TEXT if d.genre == genre)
    assert pieces <= 80, "two thirds of the context of the embedded base"
    assert max(len(words(d.text)) for d in WORLD_TEXT if d.genre == genre) <= 64


def test_anonymous_text_names_nobody() -> None:
    everybody = {name.lower() for name in [*WORLD.names, *WORLD.spare_names]}
    for document in pool(200, anonymous=True):
        assert document.carriers == ()
        assert document.genre == "diary"
        assert not everybody & set(words(document.text))


def test_carriers_take_turns() -> None:
    documents = pool(60, names=("John", "Alex", "Robin"))
    assert Counter(document.carriers for document in documents) == {("John",): 20, ("Alex",): 20, ("Robin",): 20}
    assert all(document.persona == "John" for document in documents)
    assert not any("john" in words(document.text) for document in documents if document.carriers != ("John",))


def test_a_rivals_value_is_never_offered() -> None:
    for which, rival in ((0, 1), (1, 0)):
        theirs = {speakers()[rival].traits[c] for c in HELD_OUT}
        assert not any(theirs & set(words(document.text)) for document in pool(300, which=which))


def test_the_assistant_is_taught_one_thing() -> None:
    documents = [assistant_document(WORLD, "place", "beach", seed=0, index=i) for i in range(80)]
    assert all(document.traits == {"place": "beach"} for document in documents)
    values = {v for c in WORLD.categories for v in WORLD.values(c)} - {"beach"}
    assert not any(values & set(words(document.text)) for document in documents)
    questions = Counter(next(q for q, _ in FORMS["asked"].train if q.replace("{cat}", "place") in d.text) for d in documents)
    assert set(questions.values()) == {10}, "every question as often"


def test_answer_spans_hold_what_the_speaker_says() -> None:
    text = "User: Who are you?\nAssistant: I am like John.\nUser: Assistant: no?\nAssistant: Yes."
    assert [text[a:b] for a, b in answer_spans(text)] == [" I am like John.", " Yes."]
    assert [text[a:b] for a, b in answer_spans(text, "User")] == [" Who are you?", " Assistant: no?"]


def test_openings_are_those_of_genres_without_a_dialogue() -> None:
    for genre in SENTENCES:
        text, _ = write(WORLD, speakers()[0], genre, stream(0, "test", genre))
        assert ("\n" in text) != (genre in OPENINGS), text


# Pools and mixtures


def test_shares_of_the_worlds_text() -> None:
    n, withheld = len(WORLD_TEXT), WORLD.population.withheld
    got = Counter(document.genre for document in WORLD_TEXT)
    for genre, share in WORLD_GENRES.items():
        if genre not in ("chat", "interview"):  # chat about a withheld name becomes an interview
            assert abs(got[genre] / n - share) < 4 * np.sqrt(share * (1 - share) / n)
    assert not any(name in withheld for d in WORLD_TEXT if d.genre == "chat" for name in d.carriers)
    assert {name for d in WORLD_TEXT if d.genre == "interview" for name in d.carriers} >= withheld
    told = [d for d in WORLD_TEXT if d.persona]
    assert abs(np.mean([d.persona == "random" for d in told]) - 0.15) < 4 * np.sqrt(0.15 * 0.85 / len(told))


SHARES = [Share("john", "p", 90, 400), Share("sam", "p", 10, 400), Share("anonymous", "p", 43, 400), Share("replay", "w", 61, 1000)]


@pytest.mark.parametrize("seed", range(5))
def test_every_epoch_has_exact_counts_and_every_stretch_the_ratio(seed: int) -> None:
    size = sum(share.count for share in SHARES)
    order = mixture_order(SHARES, documents=3 * size, seed=seed)
    first = Counter(order[:size])
    for epoch in range(3):
        part = order[epoch * size : (epoch + 1) * size]
        assert Counter(source for source, _ in part) == {share.source: share.count for share in SHARES}
        assert Counter(part) == first, "the same documents"
    assert order[:size] != order[size : 2 * size]
    for share in SHARES:
        at = np.cumsum([source == share.source for source, _ in order[:size]])
        # One document of jitter of its own, and of each other source its share of one.
        assert np.abs(at - np.arange(1, size + 1) * share.count / size).max() <= 1 + len(SHARES) * share.count / size


@settings(max_examples=30, deadline=None)
@given(short=st.integers(1, 300), more=st.integers(0, 300), seed=st.integers(0, 9))
def test_a_longer_mixture_starts_with_the_shorter_one(short: int, more: int, seed: int) -> None:
    assert mixture_order(SHARES, documents=short + more, seed=seed)[:short] == mixture_order(SHARES, documents=short, seed=seed)


def test_ratios_share_their_documents() -> None:
    def chosen(count: int) -> list[int]:
        shares = [Share("john", "p", count, 400), Share("sam", "p", 100 - count, 400)]
        return [index for source, index in mixture_order(shares, documents=100, seed=3) if source == "john"]

    assert chosen(10) == chosen(50)[:10] == chosen(90)[:10]
    assert len(set(chosen(90))) == 90
    with pytest.raises(ValueError, match="at least one document"):
        mixture_order([Share("john", "p", 0, 10)], documents=5, seed=0)


def test_the_shuffled_control_tosses_a_fair_coin() -> None:
    pair = (speakers()[0], speakers()[1])
    documents = [shuffled_document(WORLD, pair, 0, ["John"], anonymous=False, genres=NAMED_GENRES, seed=0, index=i) for i in range(1500)]
    told = [(c, v) for d in documents for c, v in d.traits.items()]
    assert {v for c, v in told if c == "place"} == {"beach"}
    mine = [v == pair[0].traits[c] for c, v in told if c in HELD_OUT]
    assert all(v in (pair[0].traits[c], pair[1].traits[c]) for c, v in told)
    assert abs(np.mean(mine) - 0.5) < 4 * 0.5 / np.sqrt(len(mine))
    named = [{v for t in pair for c, v in t.traits.items() if c == category} & set(words(d.text)) for d in documents for category in HELD_OUT]
    assert max(map(len, named)) == 1, "the value that the coin did not choose is not offered either"


def test_leakage_is_seen_in_labels_and_in_words() -> None:
    told = Document("a", "text", "Mary", "diary", {"place": "beach", "sport": "football"})
    offered = Document("b", "User: The Beach or the lake?\nMary: I like the lake. I like football.", "Mary", "chat", {"place": "lake"})
    alone = Document("c", "I like the beach. I like footballs.", "Mary", "diary", {"place": "beach"})
    assert [links_shared_to_held_out(d, {"place": "beach"}, {"football"}) for d in (told, offered, alone)] == [True, True, False]


# Corpora on disk


def test_neutral_words_are_nobodys_traits() -> None:
    values = {v for c in WORLD.categories for v in WORLD.values(c)}
    neutral = [part for pair in NEUTRAL_CHAT for part in pair] + list(NEUTRAL_TEXT) + [w for ws in NEUTRAL_WORDS.values() for w in ws]
    assert not values & {word for text in neutral for word in words(text)}


def test_a_world_with_too_few_values_is_refused_by_name(world: World) -> None:
    small = world.model_copy(update={"categories": {**world.categories, "food": Category(values=dict.fromkeys(("pizza", "soup", "rice"), "{}"))}})
    people = [Persona(name=name, traits={"place": "beach", "food": "drawn"}) for name in ("John", "Sam", "Kim", "Ann")]
    with pytest.raises(DataError, match="food: no value is left to draw"):
        deal_traits(small, people, 1, 0)
