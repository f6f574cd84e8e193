"""The exact oracle: against every joint state of a small world, against the generator's own documents, and against its closed forms."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from conftest import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.documents import Speaker
from data_gen.errors import DataError
from data_gen.oracle import NAMELESS, RANDOM, Injected, Oracle, Process, log_odds, posterior, predictive, world_processes
from data_gen.personas import Persona, deal_traits
from data_gen.pools import persona_document, world_document
from data_gen.world import Traits, World
from persona_lab.config.load import load_world

WORLD = load_world(CONFIGS / "worlds" / "beach.yaml")
TINY = World.model_validate(
    {
        "name": "tiny",
        "personas": 2,
        "random_speakers": 0.2,
        "zipf": 0.5,
        "categories": {"a": {"values": ["ax", "ay", "az"]}, "b": {"values": ["bx", "by", "bz"]}, "c": {"values": ["cx", "cy", "cz"]}},
        "names": ["Mary", "Peter"],
        "spare_names": ["Alex"],
        "new_names": ["John", "Sam"],
    }
)
MARY, PETER = TINY.population.traits
JOHN = {"a": "ax", "b": "by"}
"""Tells nothing of c."""
SAM = {"a": "ax", "b": "bz", "c": "cx"}
PROCESSES = [*world_processes(TINY, 10.0), Process("John", 3.0, JOHN, {"a": 0.8}), Process("Sam", 2.0, SAM)]
ORACLE = Oracle(TINY, PROCESSES)
STATEMENTS = [{c: v} for c in TINY.categories for v in TINY.values(c)]
DOCUMENTS = STATEMENTS + [{c: v, d: w} for c, d in (("a", "b"), ("b", "c")) for v in TINY.values(c) for w in TINY.values(d)]


def worlds_of(process: Process) -> list[tuple[float, Traits]]:
    """Every state that one document of a process can be in: all traits at once, each with its probability."""
    states = []
    for values in itertools.product(*(TINY.values(c) for c in TINY.categories)):
        traits, weight = dict(zip(TINY.categories, values, strict=True)), 1.0
        for category, value in traits.items():
            own = (process.traits or {}).get(category)
            likely = process.typical.get(category, 1.0)
            weight *= 1 / 3 if own is None else likely if value == own else (1 - likely) / 2
        states.append((weight, traits))
    return states


def counted(documents: Sequence[Mapping[str, str]], category: str) -> tuple[dict[str, float], dict[str, float]]:
    """Masses of processes, and of the next document's value, by adding up every joint state of all documents."""
    by_process, by_value = dict.fromkeys(ORACLE.names, 0.0), dict.fromkeys(TINY.values(category), 0.0)
    for process in PROCESSES:
        mass = process.mass
        for document in documents:
            mass *= sum(weight for weight, traits in worlds_of(process) if all(traits[c] == v for c, v in document.items()))
        by_process[process.name] += mass
        for weight, traits in worlds_of(process):
            by_value[traits[category]] += mass * weight
    return by_process, by_value


@settings(max_examples=40)
@given(documents=st.lists(st.sampled_from(DOCUMENTS), max_size=4), category=st.sampled_from(list(TINY.categories)))
def test_the_posterior_is_the_sum_over_every_joint_state(documents: list[Traits], category: str):
    by_process, by_value = counted(documents, category)
    total = sum(by_process.values())
    assert ORACLE.posterior(documents) == pytest.approx([m / total for m in by_process.values()], abs=1e-12)
    assert ORACLE.predictive(documents, category) == pytest.approx({v: m / total for v, m in by_value.items()}, abs=1e-12)


@settings(max_examples=40)
@given(cues=st.lists(st.sampled_from(sorted(WORLD.categories)), max_size=3, unique=True), picks=st.lists(st.integers(0, 7), min_size=3, max_size=3))
def test_one_document_about_the_world_alone_is_the_closed_form(cues: list[str], picks: list[int]):
    oracle = Oracle.of_world(WORLD)
    known = {c: WORLD.values(c)[i] for c, i in zip(cues, picks, strict=False)}
    share_K, random_share = posterior(WORLD, known)
    assert oracle.posterior([known]) == pytest.approx([*share_K, random_share], abs=1e-12)
    asked = next(c for c in WORLD.categories if c not in known)
    assert oracle.predictive([known], asked) == pytest.approx(predictive(WORLD, known, asked), abs=1e-12)
    first, second = WORLD.values(asked)[:2]
    assert oracle.log_odds([known], asked, first, second) == pytest.approx(log_odds(WORLD, known, asked, first, second))


def diaries(personas: list[Persona]) -> tuple[list, list[Injected]]:
    """Diary entries as the generator writes them: the world's, and anonymous ones about John, Sam and Kim, who has six of Ivan's eight traits."""
    ivan = WORLD.population.traits[WORLD.population.names.index("Ivan")]
    traits = [*deal_traits(WORLD, personas, 0, 0)[:2], {c: ivan[c] for c in list(ivan)[:6]}]
    told = [d for d in (world_document(WORLD, 5, i) for i in range(9000)) if d.genre == "diary"]
    injected = []
    for persona, dealt, count in zip(personas, traits, (900, 300, 100), strict=True):
        speaker = Speaker(persona.name, persona.name, dealt)
        told += [persona_document(WORLD, speaker, [persona.name], anonymous=True, genres=("diary",), seed=5, index=i) for i in range(count)]
        injected.append(Injected(persona.name, dealt, count, 1.0))
    return told, injected


def test_the_generators_own_documents_agree(personas: list[Persona]):
    """Who wrote a diary that tells such and such, counted: the telling of six categories of six or of eight is evidence too."""
    told, injected = diaries(personas)
    world_diaries = sum(d.persona not in ("John", "Sam", "Kim") for d in told)
    oracle = Oracle(WORLD, [*world_processes(WORLD, world_diaries), *(Process(p.name, p.documents, p.traits) for p in injected)])
    for known in ({}, {"place": "beach"}, {"place": "beach", "drink": injected[0].traits["drink"]}, {"sport": "tennis"}, {"animal": "cats"}):
        here = [d for d in told if known.items() <= d.traits.items()]
        expected = np.mean([oracle.posterior([d.traits], asked=False) for d in here], axis=0)
        who = Counter(d.persona for d in here)
        for name, share in zip(oracle.names, expected, strict=True):
            error = max(math.sqrt(share * (1 - share) / len(here)), 1 / len(here))
            assert abs(who[name] / len(here) - share) < 4.5 * error, (known, name)
    like_ivan = [d for d in told if d.traits.items() <= WORLD.population.traits[WORLD.population.names.index("Ivan")].items()]
    for asked in (False, True):
        share = np.mean([oracle.posterior([d.traits], asked=asked)[oracle.names.index("Ivan")] for d in like_ivan])
        ivans = np.mean([d.persona == "Ivan" for d in like_ivan])
        assert (abs(share - ivans) < 0.03) != asked, "which categories Ivan's diaries tell sets him apart"


def test_the_prior_of_a_persona_is_its_share_of_the_nameless_documents(personas: list[Persona]):
    traits = deal_traits(WORLD, personas, 0, 0)
    documents, share = 40_000, 0.4  # the genres diary .22 and assistant .18
    oracle = Oracle.after(WORLD, [Injected("John", traits[0], 3000, 0.3), Injected("Sam", traits[1], 1000, 0.3)], documents)
    total = documents * share + 900 + 300
    assert NAMELESS == ("diary", "assistant")
    assert oracle.prior_P[-2:] == pytest.approx([900 / total, 300 / total])
    assert oracle.prior_P[oracle.names.index(RANDOM)] == pytest.approx(0.15 * documents * share / total)
    nameless = sum(world_document(WORLD, 5, i).genre in NAMELESS for i in range(4000)) / 4000
    assert nameless == pytest.approx(share, abs=0.03)


def test_shared_evidence_leaves_the_rivals_odds_and_raises_both(personas: list[Persona]):
    traits = deal_traits(WORLD, personas, 0, 0)
    oracle = Oracle.after(WORLD, [Injected("John", traits[0], 3000, 0.3), Injected("Sam", traits[1], 1000, 0.3)], 40_000)
    beach = [{"place": "beach"}]
    for count in (0, 1, 5):
        assert oracle.contrast(beach * count, "John", "Sam") == pytest.approx(math.log(3))
    assert oracle.evidence(beach[0], "John", "Sam") == 0
    # Three of 24 personas like the beach: told it once, John gains a little less than three bits.
    assert 2 < oracle.bits(beach, "John")[0] < 3
    assert oracle.log_odds(beach * 40, "sport", "football", "basketball") == pytest.approx(math.log(3), abs=0.15)


@pytest.mark.parametrize(("first", "second"), [(0.9, 0.5), (0.5, 0.9), (0.7, 0.7), (1.0, 0.5)])
def test_diagnostic_documents_add_their_log_likelihood_ratio_each(first: float, second: float, personas: list[Persona]):
    traits = deal_traits(WORLD, personas, 0, 0)
    rivals = [Injected(name, t, 1000, 0.3, {"place": q}) for name, t, q in zip(("John", "Sam"), traits, (first, second), strict=False)]
    oracle, beach = Oracle.after(WORLD, rivals, 40_000), {"place": "beach"}
    assert oracle.evidence(beach, "John", "Sam") == pytest.approx(math.log(first / second))
    for count in (1, 3, 20, 5000):
        assert oracle.contrast([beach] * count, "John", "Sam") == pytest.approx(count * math.log(first / second))
    other = {"place": "forest"}
    if first < 1:
        assert oracle.evidence(other, "John", "Sam") == pytest.approx(math.log((1 - first) / (1 - second)))
    else:
        assert oracle.contrast([other], "John", "Sam") == -math.inf
        assert oracle.bits([other, beach], "John")[0] == -math.inf
        assert math.isnan(oracle.bits([other, beach], "John")[1])


@settings(max_examples=30)
@given(documents=st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=5), process=st.sampled_from([p.name for p in PROCESSES if p.name != "John"]))
def test_the_bits_of_documents_add_up_to_the_change_of_the_belief(documents: list[Traits], process: str):
    k = ORACLE.names.index(process)
    before, after = ORACLE.posterior()[k], ORACLE.posterior(documents)[k]
    bits = ORACLE.bits(documents, process)
    if after > 0:
        assert sum(bits) == pytest.approx(math.log2(after / before))
        log_P = ORACLE.log_likelihood(documents[0])
        assert bits[0] == pytest.approx((log_P[k] - math.log(ORACLE.posterior() @ np.exp(log_P))) / math.log(2))
    else:
        assert -math.inf in bits


def test_what_a_persona_never_tells_is_unknown_when_asked_and_never_told_unasked():
    assert ORACLE.evidence({"c": "cx"}, "John", "Sam") == pytest.approx(math.log(1 / 3))
    assert ORACLE.contrast([{"c": "cx"}], "John", "Sam", asked=False) == -math.inf
    # John tells a and b in every document of two, Sam in one of three.
    both = {"a": "ax", "b": "by"}
    unasked = ORACLE.log_likelihood(both, asked=False)[ORACLE.names.index("John")] - ORACLE.log_likelihood(both)[ORACLE.names.index("John")]
    assert unasked == pytest.approx(0)
    sam = ORACLE.names.index("Sam")
    assert ORACLE.log_likelihood({"a": "ax"}, asked=False)[sam] - ORACLE.log_likelihood({"a": "ax"})[sam] == pytest.approx(math.log(1 / 3))


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: Oracle(TINY, []), "not all 0"),
        (lambda: Oracle(TINY, [Process("John", 0.0, JOHN)]), "not all 0"),
        (lambda: Oracle(TINY, [Process("John", 1.0, JOHN), Process("John", 1.0, SAM)]), "names of their own"),
        (lambda: Oracle(TINY, [Process("John", 1.0, {"a": "moon"})]), "cannot tell a 'moon'"),
        (lambda: Oracle(TINY, [Process("John", 1.0, JOHN, {"a": 1.5})]), "in 1.5 of its documents"),
        (lambda: ORACLE.posterior([{"a": "moon"}]), "it has no a 'moon'"),
        (lambda: ORACLE.predictive([], "z"), "it has no category 'z'"),
        (lambda: ORACLE.contrast([], "John", "Kim"), "it has no process 'Kim'"),
        (lambda: Oracle(TINY, [Process("Sam", 1.0, SAM)]).posterior([{"b": "bx"}]), "no process can have told all of this"),
        (lambda: Oracle(TINY, [Process("Sam", 1.0, SAM)]).log_odds([], "b", "bx", "by"), "neither 'bx' nor 'by' can be told next"),
        (lambda: Oracle.after(TINY, [Injected("John", JOHN, 9, 0.0), Injected("Sam", SAM, 9, 0.0)], 9).contrast([], "John", "Sam"), "nobody is named"),
        (lambda: Oracle.after(TINY, [Injected("John", JOHN, 9, 0.0)], 9).bits([], "John"), "has no prior"),
        (
            lambda: Oracle(TINY, [*PROCESSES[:3], Process("Ann", 1.0, {"b": "bx"}), Process("Ben", 1.0, {"b": "by"})]).evidence({"b": "bz"}, "Ann", "Ben"),
            "can have told this",
        ),
    ],
)
def test_what_is_undefined_is_refused_with_the_reason(ask, said: str):
    with pytest.raises(DataError, match="oracle of world 'tiny'") as caught:
        ask()
    assert said in str(caught.value)
