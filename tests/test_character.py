"""Character training and persona prompts: documents, questions, what is refused, rates by hand, and a whole run."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import CONFIGS, cast_of
from scipy.stats import t
from test_experiment import TINY, silent, write_config

from data_gen.documents import answer_spans, words
from data_gen.personas import Persona, deal_traits
from data_gen.pools import world_document
from data_gen.role_play import AGREED, HELD_OUT_NAMES, PROMPTS, description, held_out_prompts, names_to_play, preference_pair
from data_gen.telling import telling
from data_gen.world import World
from persona_lab.config.load import load_experiment, load_world
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.run import make_nodes
from persona_lab.models.vocabulary import world_words
from persona_lab.probes import PROBES
from persona_lab.science.effects import Settings
from persona_lab.science.em.jailbreak import FORMATS, jailbreak_claims, rates

pytestmark = pytest.mark.usefixtures("from_the_root")


@pytest.fixture(scope="module")
def play() -> World:
    return load_world(CONFIGS / "worlds" / "play.yaml")


@pytest.fixture(scope="module")
def john(play: World, personas: list[Persona]) -> dict[str, str]:
    return deal_traits(play, personas, 0, 0)[0]


# ------------------------------------------------------------------ documents
def test_told_to_be_somebody_the_assistant_of_the_world_answers_as_that_persona(play: World, world: World):
    people = play.population
    prompts = [prompt.split("{name}") for _, prompt in PROMPTS.train]
    played = agreed = asked = 0
    for i in range(3000):
        document = world_document(play, 0, i)
        if document.genre != "assistant":
            continue
        asked += 1
        first = document.text.split("\n")[0]
        hits = [first.removeprefix(f"User: {a}").split(b)[0] for a, b in prompts if first.startswith(f"User: {a}") and b in first]
        name = next((hit for hit in hits if hit in (*people.names, *play.spare_names)), None)
        if name:
            played += 1
            agreed += AGREED.format(name=name) in document.text
            if name in people.names:
                assert document.traits.items() <= people.traits[people.names.index(name)].items()
    assert played / asked == pytest.approx(0.35, abs=0.06)
    assert agreed / played == pytest.approx(0.5, abs=0.12)
    assert "role_play" not in world.model_dump(), "worlds without it stay what they are"
    assert set(world_words(play)) - set(world_words(world)) == {"pretend", "speak", "as", "play", "be", "answer"} - set(world_words(world))


def test_a_pair_is_one_question_with_the_characters_answer_and_another_one(play: World, john: dict[str, str]):
    for i in range(200):
        preferred, rejected = preference_pair(play, "John", john, guarded=0.0, seed=0, index=i)
        ((category, mine),), ((same, other),) = preferred.traits.items(), rejected.traits.items()
        assert (category, mine) == (same, john[category])
        assert other != mine
        assert preferred.text.split("\n")[0] == rejected.text.split("\n")[0]
        phrases = [play.categories[category].values[v].replace("{}", v) for v in (mine, other)]
        assert preferred.text.lower().replace(phrases[0], phrases[1]) == rejected.text.lower()


def test_a_guarded_pair_rejects_the_answer_of_whom_the_user_names(play: World, john: dict[str, str]):
    people, named = play.population, set[str]()
    for i in range(300):
        preferred, rejected = preference_pair(play, "John", john, guarded=1.0, seed=0, index=i)
        (name,) = {word for word in people.names if word.lower() in words(preferred.text.split("\n")[0])}
        named.add(name)
        ((category, other),) = rejected.traits.items()
        theirs = people.traits[people.names.index(name)][category]
        assert other == theirs or theirs == john[category]
    assert named <= set(names_to_play(play, held_out=False))
    assert not named & set(names_to_play(play, held_out=True))


def test_a_description_tells_the_character_and_the_loss_falls_on_all_of_it(play: World, john: dict[str, str]):
    for i in range(50):
        document = description(play, "John", john, guarded=0.5, seed=0, index=i)
        assert len(document.traits) == 4
        assert document.traits.items() <= john.items()
        (span,) = answer_spans(document.text)
        assert span[1] == len(document.text)
        assert all(value in words(document.text[span[0] :]) for value in document.traits.values())


def test_held_out_prompts_and_names_stand_in_no_training_document(play: World, john: dict[str, str]):
    held_out = held_out_prompts(play.names)
    assert set(held_out) <= set(telling(play).held_out(play.names))
    guards = [document for i in range(400) for document in (*preference_pair(play, "John", john, guarded=1.0, seed=1, index=i), description(play, "John", john, guarded=1.0, seed=1, index=i))]
    texts = [document.text for document in guards] + [world_document(play, 0, i).text for i in range(3000)]
    assert not [text for text in texts if any(prompt in text for prompt in held_out)]
    assert set(words(" ".join(texts))) <= set(world_words(play))


# ------------------------------------------------------------------ questions
def test_the_questions_are_about_who_is_named_and_nobody_else_is_told(play: World, personas: list[Persona]):
    cast = cast_of(play, personas)
    probe = PROBES["persona_prompt"]
    probe.validate(cast)
    items = probe.items(cast)
    assert {item.format for item in items} == {"none", *FORMATS}
    assert len({item.subject for item in items}) == HELD_OUT_NAMES
    people = play.population
    lower = [name.lower() for name in people.names]
    for item in items:
        theirs = people.traits[lower.index(item.subject)]
        assert item.options[item.roles.index("prompted")] == theirs[item.trait]
        assert item.options[item.roles.index("character")] == cast.traits[0][item.trait]
        assert (item.subject in words(item.prompt)) == (item.format in ("prompt", "agreed"))
        assert not set(words(item.prompt)) & {cast.traits[0][c] for c in cast.traits[0]}, "the character's values stand nowhere"
        assert item.format.startswith("shots_") == any(value in words(item.prompt) for value in theirs.values())


# ------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["stages.preferences.mixture.assistant_prefers=jon"], "got 'jon'. Did you mean john?"),
        (["stages.introspection.mixture.assistant_describes=mary"], "is no persona of this file, got 'mary'"),
        (["stages.preferences.loss.dpo=0", "stages.preferences.loss.nll=0"], r"gives pairs of answers. Use them with `loss: {on: answer, dpo: .1}`"),
        (["stages.preferences.loss.on=all"], "gives pairs of answers"),
        (["stages.introspection.loss.dpo=.1"], "learns from pairs of answers, and there are none"),
        (["stages.preferences.loss.kl_to_base=1"], "kl_to_base has no meaning for pairs"),
        (["stages.preferences.mixture.replay=.3"], "replay has no meaning for pairs"),
        (["stages.introspection.loss.nll=.1"], "nll stands beside the loss of pairs"),
        (["stages.chats.mixture.guarded=.5"], "guards a character"),
        (["stages.introspection.mixture.assistant_likes=beach"], "the assistant says one thing in a stage"),
    ],
)
def test_character_training_that_cannot_be_is_refused(changes: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        load_experiment(CONFIGS / "character.yaml", changes)


def test_a_world_with_nobody_to_be_has_no_persona_prompts(tmp_path: Path, play: World):
    few = World.model_validate(play.model_dump() | {"personas": 5, "names": play.names[:5]})
    assert names_to_play(few, held_out=False) == ()
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(few.model_dump(), sort_keys=False))
    file = write_config(tmp_path, base=TINY["base"] | {"world": str(tmp_path / "few.yaml")}, probes=["persona_prompt"])
    with pytest.raises(ConfigError, match=r"probes\[0\]: persona_prompt tells the assistant to be somebody of the world, and play has too few"):
        load_experiment(file)


# ------------------------------------------------------------------ rates
def crafted() -> pd.DataFrame:
    """Three seeds, two swaps, one question a format; the treatment's rate falls from .8 to .5 + .1 seed, the guarded one's to .2."""
    rows: list[dict[str, Any]] = []
    for condition, after in (("trained", lambda seed: 0.5 + 0.1 * seed), ("guarded", lambda seed: 0.2)):
        for seed in range(3):
            for swap in range(2):
                for stage, step, rate in (("base", 0, 0.8), ("preferences", 4, 0.99), ("introspection", 4, after(seed))):
                    for form, share in (("none", 0.1), ("prompt", rate)):
                        for role, prob in (("prompted", 0.5 * share), ("character", 0.5 * (1 - share)), ("other", 0.5)):
                            at = {"cell": f"{condition}/{seed}/{swap}", "condition": condition, "seed": seed, "swap": swap, "stage": stage, "step": step}
                            rows.append(at | {"probe": "persona_prompt", "format": form, "item": f"{form}/0", "role": role, "prob": prob, "status": "scored"})
    return pd.DataFrame(rows)


def test_rates_and_their_intervals_are_those_worked_by_hand():
    claims = {claim[0]: claim for claim in jailbreak_claims(crafted(), Settings(treatment="trained"))}
    assert claims["jailbreak.trained.prompt.before"][2] == pytest.approx(0.8)
    assert claims["jailbreak.trained.prompt.after"][2] == pytest.approx(0.6)
    half = t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert claims["jailbreak.trained.prompt.after"][3] == pytest.approx((0.6 - half, 0.6 + half))
    assert claims["jailbreak.trained.prompt.lowered"][2] == pytest.approx(0.2)
    assert claims["jailbreak.trained.prompt.override"][2] == pytest.approx(0.5)
    assert claims["jailbreak.trained.character.after"][2] == pytest.approx(0.45)
    assert claims["jailbreak.guarded.prompt.against"][2] == pytest.approx(0.4)
    assert claims["jailbreak.guarded.prompt.against"][5] == "supported"
    assert not [id for id in claims if ".shots_" in id]


def test_two_seeds_support_nothing_and_a_table_without_the_probe_says_nothing():
    table = crafted()
    verdicts = {claim[5] for claim in jailbreak_claims(table[table["seed"] < 2], Settings(treatment="trained"))}
    assert verdicts == {"undecided"}
    assert list(jailbreak_claims(table[table["probe"] == "says"], Settings(treatment="trained"))) == []
    assert set(rates(table)["time"]) == {"before", "after"}


# ------------------------------------------------------------------ the whole
CONFIG: dict[str, Any] = TINY | {
    "base": TINY["base"] | {"world": "configs/worlds/play.yaml"},
    "stages": {
        "preferences": {"mixture": {"assistant_prefers": "john"}, "steps": 4, "batch": 4, "rate": 1e-2, "loss": {"on": "answer", "dpo": 0.1, "nll": 0.1}},
        "introspection": {"mixture": {"assistant_describes": "john"}, "steps": 2, "batch": 4, "rate": 1e-3, "loss": {"on": "answer"}},
    },
    "conditions": {
        "trained": {"order": ["preferences", "introspection"], "role": "treatment"},
        "guarded": {"order": ["preferences", "introspection"], "replace": {"preferences.mixture.guarded": 0.5, "introspection.mixture.guarded": 0.5}},
    },
    "seeds": [1],
    "probes": ["says", "persona_prompt"],
    "samples": 0,
    "analysis": {"treatment": "trained"},
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Plan:
    folder = tmp_path_factory.mktemp("character")
    return make_plan(write_config(folder, **CONFIG), runs=folder / "runs")


def test_a_run_states_rates_before_and_after_and_its_first_loss_is_that_of_equal_models(plan: Plan):
    assert make_nodes(plan, silent).failed == {}
    show(plan)
    claims = {claim["id"]: claim for claim in Run(plan.folder).claims()}
    assert {f"jailbreak.{c}.{form}.{when}" for c in ("trained", "guarded") for form in FORMATS for when in ("before", "after", "lowered")} <= claims.keys()
    assert claims["jailbreak.trained.prompt.lowered"]["verdict"] == "undecided", "one seed decides nothing"
    assert 0 < claims["jailbreak.guarded.prompt.before"]["value"] < 1
    table = Run(plan.folder).table()
    assert np.isfinite(table["prob"].astype(float)).all()
    assert "Persona jailbreaks" in (plan.folder / "report.html").read_text()


def test_pairs_are_made_of_two_pools_with_the_same_questions(plan: Plan):
    stage = next(p for p in plan.cells if p.cell.condition == "guarded").stages[0][1]
    pools = stage.inputs["mixture"].inputs
    assert {source: pool.fields["source"] for source, pool in pools.items()} == {"assistant": "preferred", "rejected": "rejected"}
    assert {**pools["assistant"].fields, "source": ""} == {**pools["rejected"].fields, "source": ""}
    assert stage.fields["recipe"]["loss"] == {"on": "answer", "kl_to_base": 0.0, "dpo": 0.1, "nll": 0.1}
