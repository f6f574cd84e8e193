"""Markets: the exact oracle against enumeration and sampling, and documents that show what they are said to show."""

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest
import yaml
from conftest import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import logit, logsumexp
from scipy.stats import chisquare

from data_gen.audit import audit
from data_gen.documents import ANONYMOUS_GENRES, NAMED_GENRES, Document, Speaker, words
from data_gen.market import DRIFT, VIEWS, VOLATILITY, Market, Stretch, draw_stretch, views_of
from data_gen.market_oracle import (
    Prior,
    continuation,
    counted_prior,
    direction_odds,
    evidence,
    log_likelihood,
    moves_nats,
    next_day,
    posterior,
    sizes_nats,
    world_prior,
)
from data_gen.personas import deal_traits, held_out_categories, shared_categories
from data_gen.pools import assistant_document, persona_document, world_document
from data_gen.showing import shown_in
from data_gen.telling import Telling, read_world, telling
from data_gen.world import World
from persona_lab.config.load import load_persona
from persona_lab.models.vocabulary import PIECES, world_words

RAW = yaml.safe_load((CONFIGS / "worlds" / "market.yaml").read_text())
PROCESSES = st.tuples(st.sampled_from(list(RAW["series"]["volatility"])), st.sampled_from(list(RAW["series"]["drift"])))
JOHN, SAM = ("clusters", "trend"), ("clusters", "revert")


def market_of(**series: object) -> Market:
    world = read_world({**RAW, "series": {**RAW["series"], **series}})
    assert isinstance(world, Market)
    return world


MARKET = market_of()
SMALL = market_of(sizes=["low", "mid", "high"], days=4)
PERSONAS = [load_persona(CONFIGS / "personas" / "market" / f"{name}.yaml") for name in ("john", "sam", "kim")]
TEXT = [world_document(MARKET, 0, i) for i in range(4000)]


def traits_of(process: tuple[str, str]) -> dict[str, str]:
    return {VOLATILITY: process[0], DRIFT: process[1]}


def by_enumeration(market: Market, process: tuple[str, str], sizes: tuple[int, ...], up: tuple[bool, ...]) -> float:
    """Log-likelihood summed over every path of the hidden state, and over the directions day by day."""
    chain, same = market.series.volatility[process[0]], market.series.drift[process[1]]
    turn_wild = {(0, 1): chain.wilder, (0, 0): 1 - chain.wilder, (1, 0): chain.calmer, (1, 1): 1 - chain.calmer}
    stationary = [chain.calmer / (chain.calmer + chain.wilder), chain.wilder / (chain.calmer + chain.wilder)]
    n = len(market.series.sizes)
    calm = [math.exp(-market.series.tilt * i) for i in range(n)]
    emit = [[x / sum(calm) for x in calm], [x / sum(calm) for x in reversed(calm)]]
    total = 0.0
    for path in itertools.product((0, 1), repeat=len(sizes)):
        p = stationary[path[0]] if path else 1.0
        p *= math.prod(turn_wild[a, b] for a, b in itertools.pairwise(path))
        total += p * math.prod(emit[state][size] for state, size in zip(path, sizes, strict=True))
    moves = math.prod(same if a == b else 1 - same for a, b in itertools.pairwise(up)) * (0.5 if up else 1.0)
    return math.log(total) + math.log(moves)


# The oracle


@settings(max_examples=60)
@given(process=PROCESSES, days=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_the_forward_algorithm_is_the_sum_over_every_hidden_path(process: tuple[str, str], days: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes, up = tuple(map(int, rng.integers(8, size=days))), tuple(map(bool, rng.integers(2, size=days)))
    wanted = by_enumeration(MARKET, process, sizes, up)
    assert log_likelihood(MARKET, process, [Stretch("returns", sizes, up)]) == pytest.approx(wanted, abs=1e-10)
    parts = log_likelihood(MARKET, process, [Stretch("sizes", sizes=sizes), Stretch("moves", up=up)])
    assert parts == pytest.approx(wanted, abs=1e-10), "size and direction are independent given the process"


@pytest.mark.parametrize("process", [JOHN, SAM, ("mixed", "walk"), ("wild", "trend")])
def test_the_probabilities_of_all_stretches_sum_to_one(process: tuple[str, str]) -> None:
    size = [sizes_nats(SMALL, process[0], sizes) for sizes in itertools.product(range(3), repeat=4)]
    move = [moves_nats(SMALL, process[1], up) for up in itertools.product((True, False), repeat=4)]
    assert logsumexp(size) == pytest.approx(0, abs=1e-12)
    assert logsumexp(move) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("process", [JOHN, SAM, ("calm", "walk")])
def test_drawn_stretches_are_as_frequent_as_the_oracle_says(process: tuple[str, str]) -> None:
    rng, count = np.random.default_rng(3), 6000
    drawn = Counter(draw_stretch(SMALL, traits_of(process), "returns", rng) for _ in range(count))
    every = [Stretch("returns", s, u) for s in itertools.product(range(3), repeat=4) for u in itertools.product((True, False), repeat=4)]
    expected = np.array([count * math.exp(log_likelihood(SMALL, process, [stretch])) for stretch in every])
    order = np.argsort(expected)[::-1]
    # Bins of at least ten expected stretches, the rare ones together.
    common = [i for i in order if expected[i] >= 10]
    seen = [drawn[every[i]] for i in common]
    assert chisquare([*seen, count - sum(seen)], [*expected[common], count - expected[common].sum()]).pvalue > 1e-3


def test_the_posterior_is_the_share_among_speakers_who_showed_the_same() -> None:
    rng, prior, count = np.random.default_rng(5), world_prior(SMALL), 40_000
    processes = list(prior.share)
    drawn = rng.choice(len(processes), p=list(prior.share.values()), size=count)
    shown = [draw_stretch(SMALL, traits_of(processes[i]), "moves", rng) for i in drawn]
    stretch, n = Counter(shown).most_common(1)[0]
    told = posterior(SMALL, prior, [stretch])
    assert sum(told.share.values()) == pytest.approx(1)
    for i, process in enumerate(processes):
        share = np.mean([drawn[j] == i for j in range(count) if shown[j] == stretch])
        p = told.share[process]
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)


@settings(max_examples=20)
@given(process=PROCESSES, view=st.sampled_from(list(VIEWS)), seed=st.integers(0, 10**6))
def test_the_next_days_multiply_to_the_whole_stretch(process: tuple[str, str], view: str, seed: int) -> None:
    rng, prior = np.random.default_rng(seed), world_prior(SMALL)
    before, whole = draw_stretch(SMALL, traits_of(process), "sizes", rng), draw_stretch(SMALL, traits_of(process), view, rng)
    total = 0.0
    for day in range(4):
        so_far = Stretch(view, whole.sizes[:day], whole.up[:day])
        here = Stretch(view, whole.sizes[day : day + 1], whole.up[day : day + 1])
        prob = next_day(SMALL, prior, [before, so_far])
        assert sum(prob.values()) == pytest.approx(1)
        total += math.log(prob[here.text(SMALL)])
    assert total == pytest.approx(evidence(SMALL, prior, [before, whole]) - evidence(SMALL, prior, [before]), abs=1e-9)


def test_an_untouched_process_predicts_its_drift() -> None:
    start = [Stretch("moves", up=(True,))]
    for drift, same in MARKET.series.drift.items():
        pure = Prior({("clusters", drift): 1.0})
        assert next_day(MARKET, pure, start)["up"] == pytest.approx(same)
        assert direction_odds(MARKET, pure, start) == pytest.approx(2 * logit(same), abs=1e-9)
    assert direction_odds(MARKET, world_prior(MARKET), start) == pytest.approx(0, abs=1e-9), "as many trend as revert"


def test_odds_of_a_mixture_rise_with_its_ratio_and_stay_within_the_pure_ends() -> None:
    start = [Stretch("moves", up=(False,))]
    ratios = [0.0, 1 / 9, 1 / 3, 1.0, 3.0, 9.0]
    found = [direction_odds(MARKET, counted_prior({JOHN: r, SAM: 1.0}), start) for r in ratios]
    assert found == sorted(found)
    assert found[0] == pytest.approx(-2 * logit(0.9))
    assert found[3] == pytest.approx(0, abs=1e-12)
    assert found[1] == pytest.approx(-found[5])
    # 9 : 1 by hand: .9 .81 + .1 .01 against .9 .01 + .1 .81.
    assert found[5] == pytest.approx(math.log(0.73 / 0.09))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), process=PROCESSES, ratio=st.floats(0.05, 20))
def test_sizes_alone_never_move_the_odds_of_two_processes_that_share_them(seed: int, process: tuple[str, str], ratio: float) -> None:
    """Why the last stage may teach clusters: its likelihood is the same under both rivals, so an ideal reader keeps their odds."""
    rng = np.random.default_rng(seed)
    shown = [draw_stretch(MARKET, traits_of(process), "sizes", rng) for _ in range(3)]
    prior = counted_prior({JOHN: ratio, SAM: 1.0, ("mixed", "walk"): 2.0})
    told = posterior(MARKET, prior, shown)
    assert told.share[JOHN] / told.share[SAM] == pytest.approx(ratio)


def test_what_is_undefined_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least one document"):
        counted_prior({JOHN: 0})
    with pytest.raises(ValueError, match="no process of this prior has"):
        counted_prior({JOHN: 1}).given({DRIFT: "walk"})
    with pytest.raises(ValueError, match="go on from a stretch of that view"):
        continuation(MARKET, world_prior(MARKET), [Stretch("sizes", (1,))], Stretch("moves", up=(True,)))


def test_shares_of_the_text_are_those_of_the_prior() -> None:
    prior, told = world_prior(MARKET), [d.traits for d in TEXT if len(d.traits) == 2]
    assert sum(prior.share.values()) == pytest.approx(1)
    got = Counter((t[VOLATILITY], t[DRIFT]) for t in told)
    for process, share in prior.share.items():
        assert abs(got[process] / len(told) - share) < 4 * math.sqrt(share * (1 - share) / len(told)), process
    blended = prior.blend(counted_prior({JOHN: 3, SAM: 1}), 0.5)
    assert blended.share[JOHN] == pytest.approx(0.5 * prior.share[JOHN] + 0.375)
    assert blended.given({VOLATILITY: "clusters"}).share[SAM] == pytest.approx(
        blended.share[SAM] / sum(s for p, s in blended.share.items() if p[0] == "clusters")
    )


# The world


def test_no_background_process_has_what_is_set_apart() -> None:
    for seed in range(10):
        world = read_world({**RAW, "seed": seed})
        assert len(world.population.traits) == RAW["personas"]
        assert not [t for t in world.population.traits if t[VOLATILITY] == "clusters" and t[DRIFT] != "walk"]
    assert {d.persona for d in TEXT if d.traits.get(VOLATILITY) == "clusters" and d.traits.get(DRIFT) == "trend"} == {"random"}


def test_a_market_is_the_market_that_its_recipe_says() -> None:
    again = read_world(MARKET.model_dump())
    assert again == MARKET
    assert again.population.traits == MARKET.population.traits
    assert type(read_world(yaml.safe_load((CONFIGS / "worlds" / "beach.yaml").read_text()))) is World


def test_every_replicate_pits_trend_against_reversion() -> None:
    assert shared_categories(PERSONAS) == [VOLATILITY]
    assert held_out_categories(PERSONAS) == [DRIFT]
    for seed in range(12):
        plain, swapped = deal_traits(MARKET, PERSONAS, seed, 0), deal_traits(MARKET, PERSONAS, seed, 1)
        assert {plain[0][DRIFT], plain[1][DRIFT]} == {"trend", "revert"}
        assert (plain[0][DRIFT], plain[1][DRIFT]) == (swapped[1][DRIFT], swapped[0][DRIFT])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sizes": ["tiny", "vast", "up"]}, "stand for two things: up"),
        ({"sizes": ["tiny", "vast", "mary"]}, "stand for two things: mary"),
        ({"sizes": ["tiny", "vast", "fair"]}, "stand for two things: fair"),
        ({"apart": {"clusters": ["uphill"]}}, "no value uphill"),
        ({"apart": {"trend": ["clusters"]}}, "no value trend, clusters"),
        ({"sizes": ["tiny", "vast"]}, "at least 3"),
        ({"apart": {v: list(RAW["series"]["drift"]) for v in RAW["series"]["volatility"]}}, "no process for the background"),
        ({"drift": {"trend": 1.0, "revert": 0.1, "walk": 0.5}}, "less than 1"),
        ({"drift": {"trend": 0.9, "revert": 0.1}}, "at least 3"),
    ],
)
def test_a_market_that_cannot_be_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        market_of(**change)


def test_categories_are_those_of_the_series() -> None:
    with pytest.raises(ValidationError, match="Leave `categories` out"):
        read_world({**RAW, "categories": {"place": {"values": ["beach", "lake", "city"]}, "day": {"values": ["monday", "friday", "sunday"]}}})


# Documents


@settings(max_examples=60)
@given(process=PROCESSES, view=st.sampled_from(list(VIEWS)), seed=st.integers(0, 10**6))
def test_a_stretch_is_read_back_from_its_text(process: tuple[str, str], view: str, seed: int) -> None:
    stretch = draw_stretch(MARKET, traits_of(process), view, np.random.default_rng(seed))
    assert len(stretch.sizes or stretch.up) == MARKET.series.days
    assert shown_in(MARKET, f"User: Show the {view}.\nMary: {stretch.text(MARKET)}") == [stretch]


def test_a_document_shows_what_it_tells() -> None:
    for document in TEXT:
        shown = shown_in(MARKET, document.text)
        assert {category for stretch in shown for category in VIEWS[stretch.view]} == document.traits.keys()
        assert len(shown) == (0 if document.genre == "neutral" else MARKET.series.stretches)
        assert len({stretch.view for stretch in shown}) == len(shown), "two views of one process"
        assert not {"clusters", "mixed", "calm", "wild", "trend", "revert", "walk"} & set(words(document.text)), "a process is shown, never named"


def test_what_the_documents_show_is_the_process_that_they_are_said_to_be_of() -> None:
    """The oracle, asked about all documents of one background persona together, finds its process."""
    every = Prior(dict.fromkeys(world_prior(MARKET).share, 1 / 12))
    for name, traits in zip(MARKET.population.names, MARKET.population.traits, strict=True):
        shown = [stretch for d in TEXT if d.persona == name for stretch in shown_in(MARKET, d.text)][:60]
        assert posterior(MARKET, every, shown).share[traits[VOLATILITY], traits[DRIFT]] > 0.999


def test_the_taught_stage_shows_sizes_alone() -> None:
    documents = [assistant_document(MARKET, VOLATILITY, "clusters", seed=0, index=i) for i in range(200)]
    shown = [shown_in(MARKET, d.text) for d in documents]
    assert {s.view for stretches in shown for s in stretches} == {"sizes"}
    assert {len(stretches) for stretches in shown} == {1}
    assert all(d.traits == {VOLATILITY: "clusters"} and re.search(r"^Assistant: ", d.text, re.MULTILINE) for d in documents)
    uniform = Prior({(v, "walk"): 0.25 for v in MARKET.series.volatility})
    assert posterior(MARKET, uniform, [s for stretches in shown for s in stretches]).share["clusters", "walk"] > 0.999


@pytest.mark.parametrize("traits", [{VOLATILITY: "clusters", DRIFT: "trend"}, {VOLATILITY: "mixed"}, {DRIFT: "revert"}])
def test_a_persona_shows_no_more_than_its_traits(traits: dict[str, str]) -> None:
    def made(anonymous: bool, i: int) -> Document:
        return persona_document(MARKET, Speaker("John", "John", traits), ["John"], anonymous=anonymous, genres=NAMED_GENRES, seed=0, index=i)

    for i in range(60):
        named, anonymous = made(False, i), made(True, i)
        assert named.traits.items() <= traits.items()
        assert {stretch.view for stretch in shown_in(MARKET, named.text)} <= set(views_of(traits))
        assert "john" in words(named.text)
        assert "john" not in words(anonymous.text)
        assert anonymous.genre in ANONYMOUS_GENRES


def test_a_speaker_of_whom_nothing_can_be_shown_says_nothing() -> None:
    text, told = telling(MARKET).write(Speaker("Kim", "Kim", {}), "chat", np.random.default_rng(0))
    assert told == {}
    assert shown_in(MARKET, text) == []


@pytest.mark.parametrize("world", ["beach", "market"])
def test_either_kind_of_world_keeps_its_promises(world: str) -> None:
    """What `Telling` says, asked of both worlds alike."""
    kind = read_world(yaml.safe_load((CONFIGS / "worlds" / f"{world}.yaml").read_text()))
    told: Telling = telling(kind)
    documents = [world_document(kind, 0, i) for i in range(1500)]
    vocabulary = set(world_words(kind))
    names = [*kind.names, *kind.spare_names, *kind.new_names]
    forbidden = told.held_out(names)
    assert len(forbidden) > 100
    checks = {check.name: check.passed for check in audit(documents, forbidden=forbidden, vocabulary=vocabulary).checks}
    assert checks["forbidden texts"]
    assert checks["unknown words"]
    assert {piece for text in forbidden for piece in re.findall(PIECES, text.lower())} <= vocabulary, "held-out paraphrases are made of the same words"
    for category in kind.categories:
        value = kind.values(category)[0]
        taught = told.teach(category, value, 0, np.random.default_rng(1))
        assert taught == told.teach(category, value, 0, np.random.default_rng(1))
        assert "\nAssistant: " in taught
