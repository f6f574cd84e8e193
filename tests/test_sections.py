"""The report beyond the ratio, on a tiny base: sections, predictions before scores, power of a design, runs compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_experiment import TINY, silent, write_config

from persona_lab.errors import CheckFailed, ConfigError
from persona_lab.experiment.checking import simulating
from persona_lab.experiment.checking.simulating import simulate
from persona_lab.experiment.checking.verify import verify
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.planning.power import PREDICTIONS, planned_runs, power_of, predictions, predictions_node
from persona_lab.experiment.reading.compare import compare
from persona_lab.experiment.reading.runs import REPORT, Run
from persona_lab.experiment.reading.show import Shown, show
from persona_lab.experiment.run import make_nodes
from persona_lab.science.hypotheses.families import BY_ID
from persona_lab.store.files import read_json

pytestmark = pytest.mark.usefixtures("from_the_root")

STAGES = TINY["stages"]
ONE = STAGES["injection"] | {"steps": 2}
EVERY = list(BY_ID)


def speech(**mixture: Any) -> dict[str, Any]:
    return STAGES["trait"] | {"mixture": mixture}


DESIGN: dict[str, Any] = {
    "stages": STAGES
    | {
        "john": ONE | {"mixture": {"john": 40, "replay": 0.2}},
        "sam": ONE | {"mixture": {"sam": 40, "replay": 0.2}},
        "as_john": speech(assistant_is="john"),
        "as_sam": speech(assistant_is="sam"),
    },
    "branches": ["as_john", "as_sam"],
    "conditions": {
        "linked": {"order": ["injection", "trait"], "role": "treatment", "factors": {"injection.mixture.ln_ratio": [-1.4, 0, 1.4]}},
        "john_last": {"order": ["sam", "john", "trait"]},
        "sam_last": {"order": ["john", "sam", "trait"]},
        "plumber": {"order": ["injection", "trait"], "replace": {"injection.mixture.told": {"john": {"who": "a plumber"}}, "injection.mixture.ln_ratio": 0}},
    },
    "seeds": 2,
    "samples": 0,
    "probes": ["knows", "says"],
    "hypotheses": EVERY,
    "underpowered": True,
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> tuple[Plan, Shown]:
    """A small design, run and shown."""
    folder = tmp_path_factory.mktemp("sections")
    plan = make_plan(write_config(folder, **DESIGN), runs=folder / "runs")
    assert not make_nodes(plan, silent).failed
    return plan, show(plan)


def test_every_section_states_claims_that_verify_finds_again(shown: tuple[Plan, Shown]):
    plan, found = shown
    assert [section.title for section in found.summary.sections] == ["Measure and metric", "Against an ideal reader", "Order", "Hypotheses"]
    ids = [claim.id for claim in found.summary.claims]
    assert len(ids) == len(set(ids))
    assert {"state.measure.slope", "state.metric.slope", "start_point", "oracle.weights.s", "order.never.after", "tournament.verdict", "mediation", "predictions"} <= set(ids)
    assert verify(plan).drifts == ()
    page = (plan.folder / REPORT).read_text(encoding="utf-8")
    for section in found.summary.sections:
        assert f"<h2>{section.title}</h2>" in page


def test_two_seeds_support_nothing(shown: tuple[Plan, Shown]):
    _, found = shown
    assert found.summary.claim("tournament.verdict").verdict == "undecided"
    assert {claim.verdict for claim in found.summary.group("tournament") if claim.id.endswith(".weight")} <= {"undecided", "refuted", "not testable"}


def test_predictions_stand_before_the_scores(shown: tuple[Plan, Shown]):
    plan, found = shown
    node = predictions_node(plan)
    assert node is not None
    assert plan.store.manifest(node)["notes"]["blind"] is True
    assert found.summary.claim("predictions").verdict == "blind"
    written = read_json(plan.store.open(node) / PREDICTIONS)
    assert written == json.loads(json.dumps(predictions(plan)))
    told = written["eta_nats"]["H1"]
    assert told["linked/ln_ratio=1.4"][0] == pytest.approx(1.4, abs=0.15), "frequency matching predicts the documents' own odds"
    assert told["linked/ln_ratio=1.4"][1] < 1.4 < told["linked/ln_ratio=1.4"][2]


def test_predictions_after_the_scores_are_not_blind(shown: tuple[Plan, Shown], tmp_path: Path):
    plan, _ = shown
    again = make_plan(write_config(tmp_path, **{**DESIGN, "hypotheses": ["H1", "H2"]}), runs=plan.runs)
    assert make_nodes(again, silent).made == {}
    node = predictions_node(again)
    assert node is not None
    assert again.store.manifest(node)["notes"]["blind"] is False
    assert show(again).summary.claim("predictions").verdict == "not blind"


def test_a_design_that_cannot_tell_its_hypotheses_apart_is_refused(tmp_path: Path):
    weak = make_plan(write_config(tmp_path, **{**DESIGN, "underpowered": False}), runs=tmp_path / "runs")
    with pytest.raises(CheckFailed, match=r"PL1109.*underpowered.*separable.*Vary more"):
        make_nodes(weak, silent)
    assert not (tmp_path / "runs").exists(), "nothing was made"


def test_the_standard_design_separates_nine_pairs_in_ten():
    found = power_of(make_plan("configs/factorial.yaml"))
    assert found is not None
    assert found.verdict == "enough", found.said


def test_a_design_is_planned_as_it_will_be_measured(shown: tuple[Plan, Shown]):
    plan, found = shown
    runs = planned_runs(plan).set_index(["condition", "seed", "swap"]).sort_index()
    assert len(runs) == len(plan.cells)
    assert runs.loc["john_last", "o"].eq(-1).all()
    assert runs.loc["plumber", "d"].eq(1).all(), "the first rival is farther"
    assert np.allclose(runs.loc["linked/ln_ratio=1.4", "x"], np.log(64 / 16), atol=0.05)
    assert runs["D"].eq(12).all()
    assert found.summary.sections, "and it was measured"


def test_runs_are_pooled_and_none_twice(shown: tuple[Plan, Shown], tmp_path: Path):
    plan, found = shown
    one = compare([plan.folder])
    assert one.tournament.verdict == found.summary.claim("tournament.verdict").verdict
    assert {c[0]: c[2] for c in one.claims()}["tournament.H1.elpd"] == pytest.approx(found.summary.claim("tournament.H1.elpd").value)
    more = make_plan(write_config(tmp_path, **DESIGN), ["seeds=[2]"], runs=plan.runs)
    assert not make_nodes(more, silent).failed
    show(more)
    both = compare([plan.folder, more.folder])
    assert both.tournament.seeds == 3
    assert both.tournament.runs == len(plan.cells) + len(more.cells)
    assert len(both.tournament.conditions) == len(one.tournament.conditions), "the same conditions, more replicates"
    with pytest.raises(ConfigError, match="PL1294"):
        compare([plan.folder, plan.folder])
    assert Run(more.folder).table()["seed"].unique().tolist() == [2]


def test_results_are_simulated_once(shown: tuple[Plan, Shown], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = make_plan(write_config(tmp_path, **{**DESIGN, "hypotheses": ["H2", "H8"]}), runs=tmp_path / "runs")
    monkeypatch.setattr(simulating, "SETS", 4)  # twenty take minutes
    found = simulate(plan)
    assert {truth: sum(counts.values()) for truth, counts in found["attributed"].items()} == {"H2": 4, "H8": 4}
    assert found["attributed"]["H8"].get("H2", 0) == 0, "recency is not taken for matching where the order varies"
    monkeypatch.setattr(simulating, "confusion", None)  # what is in the store is not made again
    assert simulate(plan) == found
    with pytest.raises(ConfigError, match="PL1295"):
        simulate(make_plan(write_config(tmp_path, **{**DESIGN, "hypotheses": []}), runs=tmp_path / "runs"))
