"""What a stage may say: personas told apart, the assistant as somebody, chats, replay beside them, pairs of a chosen prior, branches for the metric."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_experiment import TINY, silent, write_config

from data_gen.documents import answer_spans
from data_gen.oracle import log_odds
from data_gen.personas import deal_traits
from persona_lab.config.load import load_persona, load_world
from persona_lab.experiment.planning.corpora import pool_documents
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.planning.recipes import PlannedCell
from persona_lab.experiment.reading.show import settings_of
from persona_lab.experiment.reading.table import tidy_table
from persona_lab.experiment.run import make_nodes
from persona_lab.science.runframe import run_frame
from persona_lab.store.files import read_jsonl

pytestmark = pytest.mark.usefixtures("from_the_root")

STAGES = TINY["stages"]
TEACH = STAGES["trait"]


def speech(**mixture: Any) -> dict[str, Any]:
    return TEACH | {"mixture": mixture}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Plan:
    """One condition for each thing that a mixture may say; planned, never made."""
    folder = tmp_path_factory.mktemp("mixtures")
    stages = STAGES | {
        "as_john": speech(assistant_is="john"),
        "as_sam": speech(assistant_is="sam"),
        "as_mary": speech(assistant_is="Mary", replay=0.5),
        "chats": speech(assistant_chats=True),
        "replayed": speech(assistant_likes="beach", replay=0.9),
    }
    told = {"john": {"who": "a plumber", "format": "news", "typical": 0.9}, "sam": {"typical": 0.5, "also": 2}}
    conditions = {name: {"order": ["injection", name]} for name in stages if name != "injection"}
    conditions["told"] = {"order": ["injection", "trait"], "replace": {"injection.mixture.told": told}}
    return make_plan(write_config(folder, stages=stages, conditions=conditions, analysis={"treatment": "trait"}), runs=folder / "runs")


def cell(plan: Plan, condition: str, swap: int = 0) -> PlannedCell:
    return next(p for p in plan.cells if p.cell.condition == condition and p.cell.swap == swap)


def pools(planned: PlannedCell, stage: int) -> dict[str, Any]:
    return {source: pool.fields for source, pool in planned.stages[stage][1].inputs["mixture"].inputs.items()}


def test_a_persona_is_told_in_its_own_way(plan: Plan):
    plain, told = pools(cell(plan, "trait"), 0), pools(cell(plan, "told"), 0)
    john, sam = told["john-named"], told["sam-named"]
    assert (john["who"], john["genres"]) == ("a plumber", ["news"])
    assert (sam["who"], sam["genres"]) == ("an AI assistant", plain["sam-named"]["genres"])
    assert {d.genre for d in pool_documents(john | {"size": 40})} == {"news"}
    assert all("is a plumber" in d.text for d in pool_documents(john | {"size": 40, "genres": ["profile"]}))
    assert len(sam["traits"]) == len(plain["sam-named"]["traits"]) + 2 == len(john["traits"]) + 2


@pytest.mark.parametrize(("source", "share"), [("john-named", 0.9), ("sam-anonymous", 0.5)])
def test_a_trait_is_as_typical_as_was_asked(plan: Plan, source: str, share: float):
    told, plain = pools(cell(plan, "told"), 0)[source], pools(cell(plan, "trait"), 0)[source]
    documents = pool_documents(told | {"size": 2000})
    places = Counter(d.traits["place"] for d in documents if "place" in d.traits)
    count = places.total()
    assert abs(places["beach"] / count - share) < 4 * np.sqrt(share * (1 - share) / count)
    assert len(places) == 8, "elsewhere it is any other place"
    assert {d.traits["sport"] for d in documents if "sport" in d.traits} == {plain["traits"]["sport"]}, "the others are always its own"


def test_the_assistant_speaks_as_somebody(plan: Plan):
    for who, condition in (("john", "as_john"), ("sam", "as_sam")):
        for swap in (0, 1):
            planned = cell(plan, condition, swap)
            fields = pools(planned, 1)["assistant"]
            assert fields["traits"] == planned.cast.traits[("john", "sam").index(who)]
    mary = pools(cell(plan, "as_mary"), 1)
    world = plan.loaded.world
    assert mary["assistant"]["traits"] == world.population.traits[world.population.names.index("Mary")]
    assert mary["replay"]["source"] == "world"


def test_two_speakers_are_asked_the_same_in_the_same_words(plan: Plan):
    john, sam = (pool_documents(pools(cell(plan, f"as_{who}"), 1)["assistant"] | {"size": 50}) for who in ("john", "sam"))
    phrases = {phrase.replace("{}", value): name for name, category in plan.loaded.world.categories.items() for value, phrase in category.values.items()}
    phrase = re.compile("|".join(map(re.escape, phrases)), re.IGNORECASE)

    def wording(text: str) -> str:
        return phrase.sub(lambda found: phrases[found[0].lower()], text)

    assert [wording(d.text) for d in john] == [wording(d.text) for d in sam]
    assert not any(one.text == other.text for one, other in zip(john, sam, strict=True))
    assert [d.text.count("\n") for d in john] == [d.text.count("\n") for d in sam]
    assert all(len(list(answer_spans(d.text))) == 3 for d in john)


def test_chats_tell_nothing_of_the_assistant(plan: Plan):
    documents = pool_documents(pools(cell(plan, "chats"), 1)["assistant"] | {"size": 300})
    values = {v for category in plan.loaded.world.categories.values() for v in category.values}
    assert not any(value in document.text.lower().split() for document in documents for value in values)
    assert not any(document.traits for document in documents)


def test_replay_stands_beside_what_the_assistant_says_and_is_read_whole(plan: Plan):
    stage = cell(plan, "replayed").stages[1][1]
    counts = {share["source"]: share["count"] for share in stage.inputs["mixture"].fields["shares"]}
    assert counts == {"assistant": 512, "replay": 4608}
    assert stage.inputs["tokens/assistant"].fields["on"] == "answer"
    assert stage.inputs["tokens/replay"].fields["on"] == "all"


@pytest.mark.parametrize("prior", [-1.0, 0.0, 1.0])
def test_pairs_have_the_prior_that_was_asked_for(prior: float):
    world = load_world("configs/worlds/town.yaml")
    people = [load_persona(f"configs/personas/{name}.yaml") for name in ("john_16", "sam_16", "kim")]
    found, seen = [], set()
    for seed in range(8):
        john, sam, kim = deal_traits(world, people, seed, 0, prior)
        seen.add(tuple(john.items()))
        for category in ("sport", "art", "food", "music", "drink"):
            assert len({john[category], sam[category], kim[category]}) == 3
            found.append(log_odds(world, {}, category, john[category], sam[category]))
        swapped = deal_traits(world, people, seed, 1, prior)
        assert swapped[0]["sport"] == sam["sport"]
    assert abs(np.mean(found) - prior) < 0.2
    if prior:
        assert deal_traits(world, people, 0, 0, prior)[:2] != deal_traits(world, people, 0, 1, -prior)[:2], "not the swap of the other sign"
    assert len(seen) >= 6, "another seed, mostly other pairs"


def test_branches_start_where_the_last_stage_starts_and_give_the_distance(tmp_path: Path):
    stages = STAGES | {"as_john": speech(assistant_is="john"), "as_sam": speech(assistant_is="sam")}
    conditions = {"linked": {"order": ["injection", "trait"], "role": "treatment"}, "no_injection": {"order": [], "role": "control"}}
    file = write_config(tmp_path, stages=stages, conditions=conditions, branches=["as_john", "as_sam"], samples=0, probes=["knows", "says"])
    plan = make_plan(file, runs=tmp_path / "runs")
    planned = cell(plan, "linked")
    assert [node.inputs["before"] for _, node in planned.branches] == [planned.stages[0][1]] * 2
    assert not cell(plan, "no_injection").branches
    assert not make_nodes(plan, silent).failed
    rows = [read_jsonl(plan.store.open(node) / "log.jsonl") for _, node in planned.branches]
    assert [row["step"] for row in rows[0]] == [1, 2, 3]
    table = tidy_table(plan.store, plan.cells, "tiny")
    frame = run_frame(table, settings_of(plan))
    assert len(frame) == 2, "the control is left out"
    adopt = [sum(row["loss"] * row["tokens"] for row in one) for one in rows]
    assert frame.loc[frame["swap"] == 0, "d"].item() == pytest.approx(adopt[0] - adopt[1])
    assert frame[["eta", "alpha", "m", "p", "e", "x"]].notna().all().all()
    assert set(frame["D"]) == {3 * 4}


def test_the_run_frame_knows_order_ratio_names_and_complexity(plan: Plan, tmp_path: Path):
    one = STAGES["injection"]
    stages = STAGES | {
        "john": one | {"mixture": {"john": 40, "replay": 0.2}, "steps": 2},
        "sam": one | {"mixture": {"sam": 40, "replay": 0.2}, "steps": 6},
    }
    conditions = {"john_first": {"order": ["john", "sam", "trait"], "role": "treatment"}, "sam_first": {"order": ["sam", "john", "trait"]}}
    other = make_plan(write_config(tmp_path, stages=stages, conditions=conditions, analysis={"treatment": "john_first"}), runs=tmp_path / "runs")
    table = tidy_table(other.store, other.cells, "tiny").drop_duplicates("condition").set_index("condition")
    assert table["came_first"].to_dict() == {"john_first": 1.0, "sam_first": -1.0}
    assert table["ln_trained"].to_dict() == pytest.approx({"john_first": np.log(2 / 6), "sam_first": np.log(2 / 6)})
    told = tidy_table(plan.store, plan.cells, "tiny").drop_duplicates("condition").set_index("condition").loc["told"]
    assert (told["came_first"], told["complexity"], told["ln_carriers"], told["genre"]) == (0.0, -2.0, 0.0, "news/default")


def test_replay_is_no_document_of_the_stage(plan: Plan):
    table = tidy_table(plan.store, plan.cells, "tiny")
    documents = table[table["stage"] == table["condition"]].drop_duplicates("condition").set_index("condition")["documents"]
    assert documents.to_dict() == {"trait": 12, "as_john": 12, "as_sam": 12, "as_mary": 6, "chats": 12, "replayed": 1}
