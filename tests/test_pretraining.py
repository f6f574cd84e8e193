"""Documents about personas in a base's own text, and what is stated of them: the same documents in two places, kept shares, bases of their own."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_experiment import TINY, silent, write_config
from test_science import cell_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_gen.pools import among_the_worlds
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.columns import design_columns
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.planning.recipes import PlannedCell
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.run import make_nodes
from persona_lab.science.claims import Said, judged
from persona_lab.science.effects import Frame, Settings
from persona_lab.science.evidence.ideal import Reader, ideal_reader
from persona_lab.science.stages.order import Arm, Kind, Pass
from persona_lab.science.stages.pretraining import kept_share_difference, pretraining_claims

pytestmark = pytest.mark.usefixtures("from_the_root")

READ = {"john": 12, "sam": 4, "anonymous": 0.25}
INJECTION = TINY["stages"]["injection"] | {"mixture": READ | {"replay": 0.5}, "steps": 8}
STAGES = TINY["stages"] | {"injection": INJECTION, "chats": TINY["stages"]["trait"] | {"mixture": {"assistant_chats": True}}}
READING = {"base.read": READ, "base.steps": 6}
CONDITIONS: dict[str, Any] = {
    "after": {"order": ["injection", "trait"], "role": "treatment"},
    "after_chats": {"order": ["injection", "chats", "trait"]},
    "pretrained": {"order": ["trait"], "replace": READING},
    "pretrained_chats": {"order": ["chats", "trait"], "replace": READING},
    "late": {"order": ["trait"], "replace": {"base.read": READ | {"after": 0.5}, "base.steps": 6}},
    "never": {"order": ["trait"]},
    "never_chats": {"order": ["chats", "trait"]},
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Plan:
    folder = tmp_path_factory.mktemp("pretraining")
    changes = {"personas": TINY["personas"][:2], "stages": STAGES, "conditions": CONDITIONS, "analysis": {"treatment": "after"}, "probes": ["knows", "says"], "samples": 0}
    return make_plan(write_config(folder, **changes), runs=folder / "runs")


def cell(plan: Plan, condition: str, swap: int = 0) -> PlannedCell:
    return next(p for p in plan.cells if p.cell.condition == condition and p.cell.swap == swap)


def base_of(planned: PlannedCell) -> Any:
    return planned.scores[0][1].inputs["base"]


# ------------------------------------------------------------------ where documents stand
@pytest.mark.parametrize(("read", "documents", "after"), [(20, 100, 0.0), (20, 100, 0.75), (5, 5, 0.0), (0, 30, 0.0), (7, 41, 0.5)])
def test_every_document_stands_once_in_its_order_and_none_before_its_time(read: int, documents: int, after: float):
    text = among_the_worlds(read, documents, after=after, seed=3)
    assert len(text) == documents
    assert [number for number in text if number is not None] == list(range(read))
    assert not [number for number in text[: round(after * documents)] if number is not None]


def test_documents_stand_throughout_and_not_in_step():
    places = np.flatnonzero([number is not None for number in among_the_worlds(4_800, 49_600)])
    counts = np.histogram(places, bins=10, range=(0, 49_600))[0]
    assert np.abs(counts - 480).max() <= 2, "every tenth of the text holds a tenth of them"
    assert len(set(np.diff(places))) > 5


# ------------------------------------------------------------------ the plan
def test_both_places_hold_the_same_documents(plan: Plan):
    read, injected = base_of(cell(plan, "pretrained")).inputs["mixture"], cell(plan, "after").stages[0][1].inputs["mixture"]
    assert {s: pool.id for s, pool in read.inputs.items()} == {s: pool.id for s, pool in injected.inputs.items() if s != "replay"}
    counts = [{share["source"]: share["count"] for share in mixture.fields["shares"]} for mixture in (read, injected)]
    assert counts[0] == {s: n for s, n in counts[1].items() if s != "replay"}
    assert sum(counts[0].values()) == 16
    columns = [design_columns(cell(plan, condition), "x")["trait"] for condition in ("pretrained", "late", "after", "never")]
    assert [(c["read"], c["n_john"], c["n_sam"]) for c in columns] == [("throughout", 12, 4), ("after 0.5", 12, 4), (None, 12, 4), (None, 0, 0)]
    assert columns[0]["ln_trained"] == columns[2]["ln_trained"] == pytest.approx(np.log(3))


def test_a_base_that_reads_is_one_for_each_swap_and_the_others_keep_theirs(plan: Plan):
    bases = {condition: [base_of(cell(plan, condition, swap)).id for swap in (0, 1)] for condition in CONDITIONS}
    assert len({*bases["pretrained"], *bases["late"], *bases["never"]}) == 5
    assert bases["pretrained"] == bases["pretrained_chats"]
    assert set(bases["after"]) == set(bases["never"]) == set(bases["never_chats"])
    plain = make_plan(write_config(plan.runs.parent), runs=plan.runs)
    assert plain.base.id == bases["never"][0]
    assert not {"read", "after"} & plain.base.fields.keys()
    assert "read" not in plain.resolved["base"], "what no experiment uses renames no run"


def test_an_ideal_reader_counts_what_the_base_read(plan: Plan):
    readers = []
    for condition in ("pretrained", "after"):
        planned = cell(plan, condition)
        readers.append(ideal_reader(base_of(planned), [node for _, node in planned.stages[:-1]]))
    assert all(isinstance(reader, Reader) for reader in readers)
    masses = [{p.name: p.mass for p in reader.oracle.processes} for reader in readers if isinstance(reader, Reader)]
    assert masses[0]["John"] == masses[1]["John"] == pytest.approx(3), "a quarter of twelve documents names nobody"
    # 6 x 8 documents less 16, against 4 x 8 and as many as 16 of replay.
    assert masses[0]["Mary"] / masses[1]["Mary"] == pytest.approx(32 / 48)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        ({"jon": 3}, "base.read has the unknown key 'jon'. Did you mean john?"),
        ({"john": 0}, "base.read holds no document"),
        ({"john": 8, "replay": 0.5}, "base.read has replay"),
        ({"assistant_likes": "beach"}, "base.read has assistant_likes"),
        ({"john": 20, "sam": 20}, "base.read holds 40 documents, but the text has room for 32"),
        ({"john": 20, "after": 0.5}, "base.read holds 20 documents, but the text has room for 16"),
        ({"john": 8, "after": 1.0}, "base.read.after must be a number >= 0 and < 1"),
    ],
)
def test_what_a_base_cannot_read_is_said_at_its_line(tmp_path: Path, read: dict[str, Any], said: str):
    for change in ({"base": TINY["base"] | {"read": read}}, {"conditions": {"linked": {"order": ["trait"], "replace": {"base.read": read}}}}):
        with pytest.raises(ConfigError) as error:
            make_plan(write_config(tmp_path, **change), runs=tmp_path)
        assert said in str(error.value)
        assert f"{tmp_path}/tiny.yaml:" in str(error.value)


def test_a_factor_may_divide_what_a_base_reads(tmp_path: Path):
    conditions = {"linked": {"order": ["trait"], "factors": {"base.read.ln_ratio": [-1, 1]}}}
    made = make_plan(write_config(tmp_path, base=TINY["base"] | {"read": {"john": 6, "sam": 6}}, conditions=conditions), runs=tmp_path)
    counts = [design_columns(planned, "x")["trait"]["n_john"] for planned in made.cells]
    assert Counter(counts) == {3: 2, 9: 2}


# ------------------------------------------------------------------ a whole run
def test_a_base_learns_the_names_that_it_reads_of(plan: Plan):
    assert make_nodes(plan, silent).failed == {}
    show(plan)
    claims = {claim["id"]: claim for claim in Run(plan.folder).claims()}
    assert claims["pretraining.never.plain.before"]["value"] == pytest.approx(0, abs=1e-5), "one base for both swaps leans nowhere"
    assert claims["pretraining.throughout.against.outlasts.before"]["verdict"] in ("not run", "undecided"), "one seed decides nothing"
    assert {"pretraining.throughout.kept.before", "pretraining.after_0_5.plain.after", "pretraining.afterwards.kept.recall"} <= claims.keys()
    models: dict[str, Any] = {c: AutoModelForCausalLM.from_pretrained(plan.store.open(base_of(cell(plan, c))) / "model") for c in ("pretrained", "late", "never")}
    tokenizer = AutoTokenizer.from_pretrained(plan.store.open(base_of(cell(plan, "pretrained"))) / "model")
    john, kim = tokenizer.convert_tokens_to_ids(["john", "kim"])
    rows: dict[str, Any] = {c: model.get_input_embeddings().weight.detach() for c, model in models.items()}
    assert not torch.equal(rows["pretrained"], rows["late"]), "when is read matters"
    # A name that the text holds keeps what was learnt of it; it is not drawn anew from the others'.
    spread = {c: float(row[john].norm() / row[kim].norm()) for c, row in rows.items()}
    assert spread["pretrained"] != pytest.approx(spread["never"], rel=0.05)


# ------------------------------------------------------------------ claims
KINDS: dict[str, Kind] = {"injection": "both", "chats": "chats", "trait": "taught"}
ORDERS = {name: tuple(condition["order"]) for name, condition in CONDITIONS.items()}
SETTINGS = Settings(treatment="after", orders=ORDERS, taught=dict.fromkeys(ORDERS, "beach"))
ARMS = [Arm(name, tuple(Pass(stage, KINDS[stage], 16, 1e-3) for stage in stages)) for name, stages in ORDERS.items()]
READS = {"pretrained": "throughout", "pretrained_chats": "throughout", "late": "after 0.5"}
ETA = {"after": 1.0, "after_chats": 0.3, "pretrained": 0.8, "pretrained_chats": 0.6, "late": 0.9, "never": 0.0, "never_chats": 0.0}


def planted(seeds: int = 4, sigma: float = 0.02, **counts: int) -> Frame:
    """A tidy table with one number for each history, twice that after the trait stage, and each seed's own noise."""
    rng, rows = np.random.default_rng(5), []
    for condition, value in ETA.items():
        for seed in range(seeds):
            noise = sigma * rng.normal() * (value > 0)
            for swap in (0, 1):
                about = {"experiment": "x", "cell": f"{condition}/{seed}/{swap}", "condition": condition, "seed": seed, "base_seed": 0, "swap": swap}
                about |= {"read": READS.get(condition), "n_john": counts.get(condition, 12) if value else 0, "n_sam": 4 if value else 0}
                about |= {"adopt_john": 500 - 100 * value, "adopt_sam": 480.0, "ln_ratio": 1.1}
                stages = ("base", *ORDERS[condition])
                for at, stage in enumerate(stages):
                    eta = (value + noise) * (2 if at == len(stages) - 1 else 1)
                    rows += cell_rows(about, stage, eta, -1.0 + value, 0.3, recall=True)
    return pd.DataFrame(rows)


def said(table: Frame) -> dict[str, Said]:
    found = list(pretraining_claims(table, SETTINGS, ARMS))
    assert len({claim[0] for claim in found}) == len(found)
    return {claim[0]: claim for claim in found}


def test_kept_shares_are_found_and_the_larger_outlasts():
    claims = said(planted())
    assert claims["pretraining.throughout.kept.before"][2] == pytest.approx(0.75, abs=0.03)
    assert claims["pretraining.afterwards.kept.before"][2] == pytest.approx(0.3, abs=0.03)
    assert claims["pretraining.afterwards.kept.before"][5] == "persists"
    assert claims["pretraining.throughout.plain.after"][2] == pytest.approx(1.6, abs=0.05)
    assert claims["pretraining.after_0_5.against.plain.before"][2] == pytest.approx(-0.1, abs=0.04)
    assert claims["pretraining.after_0_5.against.outlasts.before"][5] == "not run", "no chats followed it"
    verdict = claims["pretraining.throughout.against.outlasts.before"]
    assert verdict[2] == pytest.approx(0.45, abs=0.04)
    assert verdict[5] == "supported"
    assert claims["pretraining.throughout.plain.alpha.before"][2] == pytest.approx(0.8, abs=1e-6)
    assert claims["pretraining.throughout.plain.adopt"][2] == pytest.approx(-80)
    assert claims["pretraining.afterwards.plain.d"][2] == pytest.approx(-80)


def test_unequal_documents_are_confounded_and_two_seeds_decide_nothing():
    claims = said(planted(pretrained=9, pretrained_chats=9))
    assert {claims[f"pretraining.throughout.against.{id}"][5] for id in ("plain.before", "outlasts.before")} == {"confounded"}
    assert "(9, 4) against (12, 4)" in claims["pretraining.throughout.against.plain.before"][1]
    assert said(planted(seeds=2, sigma=0.001))["pretraining.throughout.against.outlasts.before"][5] == "undecided"


def test_the_jackknife_of_a_ratio_of_means_is_tukeys():
    pre, post = pd.Series([1.0, 2.0, 4.0]), pd.Series([0.5, 1.5, 1.0])
    one = pd.Series([1.0, 1.0, 1.0])
    pseudo = kept_share_difference((pre, post), (one, one))
    # Leaving out one seed: 2.5/6, 1.5/5, 2/3; 3 x 3/7 - 2 x each, less the 1 of the other side.
    assert pseudo.to_numpy() == pytest.approx([9 / 7 - 2 * left - 1 for left in (2.5 / 6, 1.5 / 5, 2 / 3)])
    verdict = judged("x", "it is so", [0.9, 1.0, 1.1], "nats")
    assert verdict[5] == "supported"
    assert verdict[3] == pytest.approx((1 - 4.302653 * 0.1 / 3**0.5, 1 + 4.302653 * 0.1 / 3**0.5))
