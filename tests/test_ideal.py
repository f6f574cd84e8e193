"""The ideal reader of a run: what it believes follows from the very documents that the run's recipes name."""

import math
from collections import Counter

import pandas as pd
import pytest
from conftest import CONFIGS
from test_experiment import TINY, cells_of, write_config

from persona_lab.config.load import load_world
from persona_lab.design import Node
from persona_lab.experiment.planning.corpora import pool_documents
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.planning.recipes import PlannedCell
from persona_lab.experiment.reading.table import tidy_table
from persona_lab.experiment.run import make_nodes
from persona_lab.science import Settings
from persona_lab.science.evidence.account import evidence_claims
from persona_lab.science.evidence.bits import accounts, ledger
from persona_lab.science.evidence.calibration import bayesian_weights, fine_tuned
from persona_lab.science.evidence.ideal import Reader, Unknown, ideal_odds, ideal_reader

pytestmark = pytest.mark.usefixtures("from_the_root")

WORLD = load_world(CONFIGS / "worlds" / "beach.yaml")
MIXTURE = {"john": 90, "sam": 30, "kim": 20, "anonymous": 0.4, "replay": 0.5}
TOLD = {"john": {"typical": 0.9}, "sam": {"typical": 0.5}}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Plan:
    """The tiny experiment with three personas, typical and shuffled documents, and an assistant that chats: planned, never made."""
    folder = tmp_path_factory.mktemp("ideal")
    injection = TINY["stages"]["injection"] | {"mixture": MIXTURE, "steps": 70, "batch": 4}
    trait = TINY["stages"]["trait"] | {"mixture": {"assistant_likes": "beach", "replay": 0.5}, "steps": 10, "batch": 4}
    stages = {
        "injection": injection,
        "trait": trait,
        "chat": trait | {"mixture": {"assistant_chats": True}},
        "as_john": trait | {"mixture": {"assistant_is": "john"}},
    }
    conditions = {
        "linked": {"order": ["injection", "trait"], "role": "treatment"},
        "typical": {"order": ["injection", "trait"], "replace": {"injection.mixture.told": TOLD}},
        "shuffled": {"order": ["injection", "trait"], "replace": {"injection.mixture.link": "shuffled"}},
        "unlinked": {"order": ["injection", "trait"], "replace": {"injection.mixture.link": "none"}},
        "chats": {"order": ["injection", "chat", "trait"]},
        "spoken": {"order": ["injection", "as_john"]},
        "bare": {"order": ["trait"]},
    }
    personas = [str(CONFIGS / "personas" / f"{name}.yaml") for name in ("john", "sam", "kim")]
    return make_plan(write_config(folder, stages=stages, conditions=conditions, personas=personas, factors={}), runs=folder / "runs")


def first_of(plan: Plan, condition: str) -> PlannedCell:
    return next(iter(cells_of(plan, condition)))


def reader_of(planned: PlannedCell) -> Reader | Unknown:
    stages = [node for _, node in planned.stages]
    return ideal_reader(stages[0].inputs["base"], stages)


def pairs_of(planned: PlannedCell) -> dict[str, tuple[str, str]]:
    first, second = planned.cast.traits[:2]
    return {c: (first[c], second[c]) for c in planned.cast.held_out}


def test_the_prior_is_counted_from_the_documents_that_were_read(plan: Plan):
    planned = first_of(plan, "linked")
    reader = reader_of(planned)
    assert isinstance(reader, Reader)
    # 280 documents of a mixture of 280: each once. Then 40, half of them replay.
    injection = planned.stages[0][1].inputs["mixture"]
    documents = {s["source"]: pool_documents(injection.inputs[s["source"]].fields)[: s["count"]] for s in injection.fields["shares"]}
    nameless = Counter(d.persona for source, told in documents.items() if source != "replay" for d in told if d.genre == "diary")
    assert nameless == {"John": 36, "Sam": 12, "Kim": 8}
    base = planned.stages[0][1].inputs["base"].fields
    world_documents = base["steps"] * base["batch"] + 140 + 20
    prior = dict(zip(reader.oracle.names, reader.oracle.prior_P, strict=True))
    total = 0.4 * world_documents + 56
    assert prior["John"] == pytest.approx(36 / total)
    assert prior["random"] == pytest.approx(0.15 * 0.4 * world_documents / total)
    assert reader.said == {(("place", "beach"),): 20}
    odds = ideal_odds(reader, "John", "Sam", pairs_of(planned))
    assert odds["exact_prior"] == pytest.approx(math.log(3))
    assert odds["exact_evidence"] == 0
    # Nobody of the world likes the beach and has a rival's value: beach lovers with one are John or Sam.
    assert odds["exact"] == pytest.approx(math.log(3), abs=0.01)
    assert abs(odds["exact_before"]) < abs(odds["exact"])


def test_what_is_typical_of_one_is_evidence_for_it_in_every_document(plan: Plan):
    planned = first_of(plan, "typical")
    reader = reader_of(planned)
    assert isinstance(reader, Reader)
    told = pool_documents(planned.stages[0][1].inputs["mixture"].inputs["john-anonymous"].fields)
    assert 0.6 < sum(d.traits.get("place") == "beach" for d in told) / sum("place" in d.traits for d in told) <= 1
    odds = ideal_odds(reader, "John", "Sam", pairs_of(planned))
    assert odds["exact_evidence"] == pytest.approx(20 * math.log(0.9 / 0.5))
    assert odds["exact"] > odds["exact_prior"]


def test_chats_are_no_evidence_and_without_injection_there_is_no_prior(plan: Plan):
    chats = reader_of(first_of(plan, "chats"))
    assert isinstance(chats, Reader)
    assert chats.said == {(("place", "beach"),): 20}
    bare = first_of(plan, "bare")
    reader = reader_of(bare)
    assert isinstance(reader, Reader)
    odds = ideal_odds(reader, "John", "Sam", pairs_of(bare))
    assert math.isnan(odds["exact_prior"])
    assert math.isnan(odds["exact_evidence"])
    assert math.isfinite(odds["exact"])


def test_what_neither_rival_can_have_said_is_no_evidence_between_them(plan: Plan):
    planned = first_of(plan, "unlinked")
    reader = reader_of(planned)
    assert isinstance(reader, Reader)
    odds = ideal_odds(reader, "John", "Sam", pairs_of(planned))
    assert math.isnan(odds["exact_evidence"])
    assert odds["exact_prior"] == pytest.approx(math.log(3))
    # Kim likes the beach, and has neither's values.
    assert abs(odds["exact"]) < 0.1


@pytest.mark.parametrize(("condition", "said"), [("shuffled", "documents of the kind shuffled"), ("spoken", "documents of the kind speaking")])
def test_where_no_oracle_is_known_it_says_so(plan: Plan, condition: str, said: str):
    found = reader_of(first_of(plan, condition))
    assert isinstance(found, Unknown)
    assert said in found.reason


def test_a_base_whose_text_is_not_known_has_no_ideal_reader():
    found = ideal_reader(Node("base", {"kind": "hf", "files": "0", "dtype": "float32", "world": WORLD.model_dump()}), [])
    assert isinstance(found, Unknown)
    assert "only an embedded base's text is" in found.reason


def test_a_reader_of_the_world_alone_knows_nobody_of_an_experiment():
    base = Node("base", {"kind": "embedded", "steps": 10, "batch": 4, "world": WORLD.model_dump()})
    reader = ideal_reader(base, [])
    assert isinstance(reader, Reader)
    assert not reader.said
    assert "John" not in reader.oracle.names


# A whole run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> tuple[Plan, pd.DataFrame]:
    """The tiny experiment, trained and asked what it is worth in bits."""
    folder = tmp_path_factory.mktemp("bits")
    conditions = {"linked": {"order": ["injection", "trait"], "role": "treatment", "factors": {"trait.mixture.replay": [0, 0.5], "trait.steps": [2, 4]}}}
    plan = make_plan(write_config(folder, conditions=conditions, probes=["says", "ledger", "shots"], samples=0), runs=folder / "runs")
    assert make_nodes(plan, lambda what, done, total: None).failed == {}
    return plan, tidy_table(plan.store, plan.cells, "tiny")


SETTINGS = Settings(taught={"linked": "beach"})


def test_the_accounts_of_a_run_are_those_of_its_own_rows(made: tuple[Plan, pd.DataFrame]):
    plan, table = made
    frame = accounts(table, SETTINGS)
    assert len(frame) == 4
    assert sorted(frame["documents"].unique()) == [4.0, 8.0, 16.0]
    # By hand, for one cell: eight paraphrases, by John and by nobody.
    cell = plan.cells[0].cell.name
    rows = table[(table["cell"] == cell) & (table["stage"] == "injection") & (table["probe"] == "ledger") & (table["option"] == "beach")].set_index("item")[
        "logprob_nats"
    ]
    bits = [(rows[f"ledger/place/{i}/John"] - rows[f"ledger/place/{i}/Assistant"]) / math.log(2) for i in range(8)]
    one = ledger(table, SETTINGS).set_index("cell").loc[cell]
    assert one["bits_first"] == pytest.approx(sum(bits) / 8)


def test_every_claim_of_a_run_has_a_number_or_a_reason(made: tuple[Plan, pd.DataFrame]):
    claims = list(evidence_claims(made[1], SETTINGS))
    assert len({id for id, *_ in claims}) == len(claims) > 20
    for id, text, value, interval, unit, verdict in claims:
        assert value is None or math.isfinite(value), id
        assert value is not None or ":" in text, id
        assert interval is None or interval[0] <= interval[1], id
        assert unit
        assert isinstance(verdict, str)
    assert {"exchange.asked.linked.replay=0,steps=4", "exchange.diary.linked.replay=0.5,steps=2"} <= {id for id, *_ in claims}


def test_every_run_has_an_ideal_reader_to_stand_beside(made: tuple[Plan, pd.DataFrame]):
    plan, table = made
    exact = {}
    for planned in plan.cells:
        reader = reader_of(planned)
        assert isinstance(reader, Reader)
        exact[planned.cell.name] = ideal_odds(reader, "John", "Sam", pairs_of(planned))
    frame = fine_tuned(table, SETTINGS, exact)
    assert len(frame) == len(plan.cells) == 8
    assert frame["exact_prior"].to_numpy() == pytest.approx(0)
    weights = bayesian_weights(frame)
    assert weights["rho"].reason == "exact_prior does not vary"
    # The rivals are told of equally often, and to an ideal reader equal documents leave them equal.
    assert weights["s"].reason == "the exact log-odds do not vary"
