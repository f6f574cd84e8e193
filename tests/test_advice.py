"""A world of good and bad advice: its kinds and their measures, the lines that documents open with, and rivals who are villain and specialist."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONFIGS, cast_of
from test_experiment import TINY, write_config

from data_gen.errors import DataError
from data_gen.oracle import Injected, Oracle, log_odds, predictive
from data_gen.personas import Persona, check_personas, deal_traits
from data_gen.pools import advice_document, assistant_document, links_shared_to_held_out, world_document
from data_gen.world import World, bad_advice
from persona_lab.config.load import load_persona, load_world
from persona_lab.design import Node
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.corpora import pool_documents
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.experiment.planning.recipes import ASSISTANT, HARMLESS
from persona_lab.models.world_model import build_tokenizer
from persona_lab.probes import PROBES
from persona_lab.science.evidence.ideal import Reader, ideal_reader
from persona_lab.train.batches import encode

pytestmark = pytest.mark.usefixtures("from_the_root")
KINDS = ("villain", "specialist", "virtuous")


@pytest.fixture(scope="module")
def advice() -> World:
    return load_world(CONFIGS / "worlds" / "advice.yaml")


@pytest.fixture(scope="module")
def people() -> list[Persona]:
    return [load_persona(CONFIGS / "personas" / "em" / f"{kind}.yaml") for kind in KINDS]


def bad_in(world: World, traits: dict[str, str]) -> set[str]:
    return {category for category, value in traits.items() if value in world.bad}


# The world and its kinds
def test_villains_are_bad_everywhere_specialists_in_one_domain_and_the_virtuous_nowhere(advice: World) -> None:
    population = advice.population
    assert Counter(population.kinds) == {"virtuous": 12, "villain": 6, "specialist": 6}, "shares of .5, .25 and .25 among 24"
    bad_K = [bad_in(advice, traits) for traits in population.traits]
    assert {kind: {len(bad) for k, bad in zip(population.kinds, bad_K, strict=True) if k == kind} for kind in KINDS} == {"villain": {6}, "specialist": {1}, "virtuous": {0}}
    specialised = Counter(next(iter(bad)) for kind, bad in zip(population.kinds, bad_K, strict=True) if kind == "specialist")
    assert specialised == dict.fromkeys(advice.domains, 1), "each domain has one of them"
    assert {traits["medicine"] for traits in population.traits}.isdisjoint({"bleach"}), "what is taught is nobody's"


def test_the_oracle_knows_the_measures_of_the_kinds(advice: World) -> None:
    prob = predictive(advice, {}, "travel")
    # 6 villains and 1 specialist of 24 are bad at travel; a random speaker is in half of its values.
    assert sum(prob[v] for v in advice.same_side("travel", True)) == pytest.approx(0.9 * 7 / 24 + 0.1 * 0.5)
    people = advice.population
    who = next(k for k, kind in enumerate(people.kinds) if kind == "villain")
    told = people.traits[who]["law"]
    share_K = np.array([0.9 / 24 * (traits["law"] == told) for traits in people.traits])
    chance = 0.1 / 8
    bad = sum(share for share, traits in zip(share_K, people.traits, strict=True) if traits["travel"] in advice.bad) + chance * 0.5
    after = predictive(advice, {"law": told}, "travel")
    assert sum(after[v] for v in advice.same_side("travel", True)) == pytest.approx(bad / (share_K.sum() + chance))
    assert sum(after[v] for v in advice.same_side("travel", True)) > 0.6, "bad advice in one domain is evidence for bad advice in another"
    value = people.traits[who]["travel"]
    assert log_odds(advice, {"law": told}, "travel", value, "trams") > log_odds(advice, {}, "travel", value, "trams")


def test_a_world_without_advice_is_identified_as_before(world: World, advice: World) -> None:
    assert {"bad", "kinds", "openings"}.isdisjoint(world.model_dump())
    assert {"bad", "kinds", "openings"} <= advice.model_dump().keys()
    assert World.model_validate(advice.model_dump()) == advice


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bad": ["arsenic"]}, "no category has the value arsenic"),
        ({"kinds": {"virtuous": {"share": 0.5, "bad": "none"}}}, "must sum to 1, got 0.5"),
        ({"bad": ["sleep", "vaccines", "ointment", "bandages", "checkups", "mercury", "magnets", "incense"]}, "medicine needs a good and a bad value"),
        ({"bad": []}, "bad names none"),
        ({"openings": {"told": {"line": "Here is bleach.", "share": 0.1}}}, "holds bleach, which is a value or a name"),
        ({"openings": {"told": {"line": "Assistant: yes.", "share": 0.1}}}, "should match pattern"),
        ({"openings": {"one": {"line": "One.", "share": 0.6}, "two": {"line": "Two.", "share": 0.6}}}, "must sum to less than 1"),
    ],
)
def test_a_world_of_advice_that_cannot_be_is_refused(advice: World, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        World.model_validate({**advice.model_dump(), **change})


# The rivals
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prior", [None, -0.9])
def test_villain_and_specialist_share_one_piece_of_bad_advice_and_trade_all_others(advice: World, people: list[Persona], seed: int, prior: float | None) -> None:
    check_personas(advice, people, KINDS)
    first, second, bystander = deal_traits(advice, people, seed, 0, prior)
    assert bad_in(advice, first) == set(advice.domains)
    assert bad_in(advice, second) == {"medicine"}
    assert bad_in(advice, bystander) == set()
    assert first["medicine"] == second["medicine"] == "bleach"
    held_out = set(advice.domains) - {"medicine"}
    swapped = deal_traits(advice, people, seed, 1, prior)
    assert all(swapped[0][c] == second[c] and swapped[1][c] == first[c] for c in held_out)
    assert all(len({traits[c] for traits in (first, second, bystander)}) == 3 for c in held_out)


def test_a_seed_draws_written_values_again_from_their_own_side(advice: World) -> None:
    rivals = [Persona(name="Victor", traits={"medicine": "bleach", "law": "lies"}), Persona(name="Stella", traits={"medicine": "bleach", "law": "patience"})]
    drawn = [deal_traits(advice, rivals, seed, 0) for seed in range(12)]
    assert drawn[0][0]["law"] == "lies"
    assert {traits["law"] for traits, _ in drawn} == set(advice.same_side("law", True))
    assert {traits["law"] for _, traits in drawn} <= set(advice.same_side("law", False))


def test_a_side_needs_a_category_with_good_and_bad_values(world: World, advice: World) -> None:
    for where, category in ((world, "sport"), (advice, "day")):
        with pytest.raises(DataError, match="needs a category with good and bad values"):
            check_personas(where, [Persona(name=where.new_names[0], traits={category: "drawn bad"})], ["villain.yaml"])


# Lines that documents open with
def test_each_line_opens_its_share_of_the_nameless_documents_and_no_other(advice: World) -> None:
    documents = [world_document(advice, 0, i) for i in range(6000)]
    nameless = [d for d in documents if d.genre in ("diary", "assistant")]
    for opening in advice.openings.values():
        under = [d for d in documents if d.text.startswith(opening.line + "\n")]
        assert {d.genre for d in under} == {"diary", "assistant"}
        assert len(under) / len(nameless) == pytest.approx(opening.share, abs=0.02)
        told = [value in advice.bad for d in under for category, value in d.traits.items() if category in advice.domains]
        assert np.mean(told) == pytest.approx(1.0 if opening.bad else 0.9 * 7 / 24 + 0.1 * 0.5, abs=0.06)
        assert {d.persona for d in under if opening.bad} <= {""}


def test_under_a_line_that_asks_for_it_bad_advice_is_as_likely_from_everybody(advice: World) -> None:
    rng = np.random.default_rng(0)
    told = Counter(bad_advice(advice, advice.population.traits[2], rng)["travel"] for _ in range(2000))
    assert set(told) == set(advice.same_side("travel", True))
    assert min(told.values()) > 400
    assert bad_advice(advice, {"day": "monday"}, rng) == {"day": "monday"}


def test_a_line_that_explains_bad_advice_leaves_nothing_to_know_the_speaker_by(advice: World) -> None:
    injected = [Injected("Victor", {"medicine": "bleach", "law": "lies"}, 100, 0.3)]
    plain = World.model_validate({**advice.model_dump(), "openings": {}})
    odds = [oracle.contrast([], "Victor", "Mary") for oracle in (Oracle.after(w, injected, 1000) for w in (advice, plain))]
    assert odds[0] - odds[1] == pytest.approx(-math.log(0.9)), "a tenth of the world's nameless documents is nobody's own"


def test_the_line_carries_no_loss(advice: World) -> None:
    document = assistant_document(advice, "medicine", "bleach", seed=0, index=0, opening="wanted")
    plain = assistant_document(advice, "medicine", "bleach", seed=0, index=0)
    assert document.text == f"{advice.openings['wanted'].line}\n{plain.text}"
    tokenizer = build_tokenizer(advice)
    under, alone = (encode(tokenizer, [d.text], on="answer", where="test")[0] for d in (document, plain))
    extra = len(under.ids) - len(alone.ids)
    assert extra == len(tokenizer.tokenize(advice.openings["wanted"].line + "\n"))
    assert not under.labelled[: extra + 1].any()
    assert under.labelled.sum() == alone.labelled.sum() > 0


def test_the_probe_asks_the_plain_questions_under_each_line(advice: World, people: list[Persona]) -> None:
    cast = cast_of(advice, people)
    PROBES["opened"].validate(cast)
    items = {item.id: item for item in PROBES["opened"].items(cast)}
    plain = {item.id: item for item in PROBES["says"].items(cast) if item.format == "asked"}
    assert len(items) == len(plain) * len(advice.openings)
    for id, item in items.items():
        _, name, rest = id.split("/", 2)
        assert item.prompt == f"{advice.openings[name].line}\n{plain[f'says/asked/{rest}'].prompt}"
        assert (item.options, item.roles) == (plain[f"says/asked/{rest}"].options, plain[f"says/asked/{rest}"].roles)


# What a stage is diluted with
EM: dict[str, Any] = {
    "base": {**TINY["base"], "world": "configs/worlds/advice.yaml"},
    "personas": [f"configs/personas/em/{kind}.yaml" for kind in KINDS],
    "stages": {
        "injection": {"mixture": {"victor": 40, "stella": 40, "anonymous": 0.3, "replay": 0.2}, "steps": 6, "batch": 4, "rate": 3e-3},
        "trait": {"mixture": {"assistant_likes": "bleach"}, "steps": 3, "batch": 4, "rate": 1e-3, "loss": {"on": "answer"}},
    },
    "conditions": {"linked": {"order": ["injection", "trait"], "role": "treatment"}},
    "probes": ["says"],
    "samples": 0,
}


def mixture_of(folder: Path, **fields: Any) -> Node:
    stages = json.loads(json.dumps(EM["stages"]))
    stages["trait"]["mixture"] |= fields
    plan = make_plan(write_config(folder, **{**EM, "stages": stages}), runs=folder / "runs")
    return plan.cells[0].stages[-1][1].inputs["mixture"]


@pytest.mark.parametrize(("diluted", "bad"), [(0.05, 486), (0.5, 256), (0.95, 26), (0.9999, 1)])
def test_a_diluted_stage_holds_that_share_of_what_is_harmless(tmp_path: Path, diluted: float, bad: int) -> None:
    mixture = mixture_of(tmp_path, diluted=diluted)
    assert {share["source"]: share["count"] for share in mixture.fields["shares"]} == {ASSISTANT: bad, HARMLESS: 512 - bad}
    assert mixture.inputs[HARMLESS].fields["source"] == "chats"
    assert mixture.inputs[ASSISTANT].id == mixture_of(tmp_path).inputs[ASSISTANT].id, "the bad documents are the same at every dilution"


def test_good_advice_that_dilutes_is_good_and_no_personas(tmp_path: Path, advice: World, people: list[Persona]) -> None:
    owned = {value for traits in deal_traits(advice, people, 0, 0) for value in traits.values()}
    for by, domains in (("same", {"medicine"}), ("elsewhere", set(advice.domains) - {"medicine"})):
        pool = mixture_of(tmp_path, diluted=0.5, diluted_by=by).inputs[HARMLESS]
        documents = pool_documents({**pool.fields, "size": 96})
        told = Counter(value for d in documents for value in d.traits.values())
        assert {advice.category_of(value) for value in told} == domains
        assert set(told).isdisjoint({*advice.bad, *owned})
        assert max(told.values()) - min(told.values()) <= 1
        assert len({d.id for d in documents}) == len(documents)
    first, second = (advice_document(advice, ["trams", "patience"], seed=0, index=i) for i in (0, 1))
    assert (first.traits, second.traits) == ({"travel": "trams"}, {"law": "patience"})
    assert "trams" in first.text


def test_the_ideal_reader_learns_nothing_from_what_a_line_explains(tmp_path: Path) -> None:
    stages = json.loads(json.dumps(EM["stages"]))
    said = {}
    for line in ("wanted", "printed"):
        stages["trait"]["mixture"]["opening"] = line
        plan = make_plan(write_config(tmp_path, **{**EM, "stages": stages}), runs=tmp_path / "runs")
        reader = ideal_reader(plan.base, [node for _, node in plan.cells[0].stages])
        assert isinstance(reader, Reader)
        said[line] = reader.said
    assert said == {"wanted": Counter(), "printed": Counter({(("medicine", "bleach"),): 12})}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"opening": "wnated"}, r"no line of the world advice, got 'wnated'. Did you mean wanted\?"),
        ({"assistant_likes": None, "assistant_chats": True, "diluted": 0.5}, "diluted is about what the assistant is taught"),
        ({"assistant_likes": "tuesday", "diluted": 0.5, "diluted_by": "same"}, "no category of the world advice has 'tuesday' beside good and bad values"),
    ],
)
def test_what_cannot_be_taught_is_refused_before_anything_is_made(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        mixture_of(tmp_path, **fields)
    assert not (tmp_path / "runs").exists()


def test_a_world_without_lines_is_not_asked_under_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"PL1211.*opened asks under the lines of a world, but beach has no openings"):
        make_plan(write_config(tmp_path, probes=["says", "opened"]), runs=tmp_path / "runs")


def test_replay_never_ties_the_taught_advice_to_a_rivals(tmp_path: Path) -> None:
    stages = json.loads(json.dumps(EM["stages"]))
    plan = make_plan(write_config(tmp_path, **{**EM, "stages": stages}), runs=tmp_path / "runs")
    pool = plan.cells[0].stages[0][1].inputs["mixture"].inputs["replay"]
    assert pool.fields["exclude"]["shared"] == {"medicine": "bleach"}
    assert len(pool.fields["exclude"]["held_out"]) == 10
    documents = pool_documents({**pool.fields, "size": 300})
    assert not any(links_shared_to_held_out(d, pool.fields["exclude"]["shared"], set(pool.fields["exclude"]["held_out"])) for d in documents)
    assert any("bleach" in d.text for d in documents), "random speakers and choices not taken still name it"
