"""The instrument `metric`, whole on a tiny model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONFIGS
from test_experiment import silent

from persona_lab.config.load import load_persona
from persona_lab.errors import ConfigError
from persona_lab.experiment.instruments.building import Subject, subject
from persona_lab.experiment.instruments.findings import metric_findings, written
from persona_lab.experiment.instruments.metric.claims import distance_claims
from persona_lab.experiment.instruments.metric.distances import (
    Distances,
    as_json,
    comparisons,
    distance_plan,
    distances,
    logs,
    make_distances,
    trainings,
    unlike,
)
from persona_lab.experiment.instruments.verifying import verify_instrument
from persona_lab.experiment.planning.plan import Plan, open_plan
from persona_lab.science.processes.metric import BASE
from persona_lab.store.files import finite

pytestmark = pytest.mark.usefixtures("from_the_root")

def tiny(of: Subject, runs: Path, **base: Any) -> Subject:
    machine = of.machine.model_copy(update={"device": "cpu", "threads": 1, "workers": 1, "wandb": "disabled"})
    return replace(of, runs=runs, machine=machine, base=of.base.model_copy(update=base), lora={"rank": 2, "alpha": 4})


@pytest.fixture(scope="module")
def whole(qwen_folder: Path, tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> tuple[Plan, Distances]:
    """Somebody of the world, a persona of a file and the plain assistant on a Hugging Face folder that knows nothing of them."""
    world, john = CONFIGS / "worlds" / "beach.yaml", load_persona(CONFIGS / "personas" / "john.yaml")
    of = tiny(subject(str(qwen_folder), world=world, personas=[john]), tmp_path_factory.mktemp("runs"))
    plan = distance_plan(of, ["Mary", "John", "assistant"], seeds=1, steps=5, batch=2)
    assert make_distances(plan, silent).failed == {}
    return plan, distances(plan)


def test_every_pair_is_trained_once_from_every_end(whole: tuple[Plan, Distances]):
    plan, found = whole
    names = ("mary", "john", "assistant")
    assert found.processes == names
    ends = {(0, start, goal) for start in (BASE, *names) for goal in names}
    assert {(planned.cell.seed, start, goal) for planned, start, goal, _ in trainings(plan)} == ends
    assert set(found.adoptions[["seed", "start", "goal"]].itertuples(index=False, name=None)) == ends
    assert found.cost["trainings"] == 12
    # Every start sees the same documents of a goal in the same order.
    assert (logs(plan).groupby(["goal", "step"])["tokens"].nunique() == 1).all()


def test_all_that_is_said_is_in_the_store(whole: tuple[Plan, Distances]):
    plan, found = whole
    again = open_plan(plan.folder)
    assert json.dumps(finite(as_json(distances(again)))) == json.dumps(finite(as_json(found)))
    assert make_distances(again, silent).made == {}


def test_every_number_is_a_claim_that_is_computed_again(whole: tuple[Plan, Distances]):
    plan, found = whole
    claims, again = distance_claims(plan, found), distance_claims(open_plan(plan.folder), distances(open_plan(plan.folder)))
    assert [claim.to_json() for claim in claims] == [claim.to_json() for claim in again]
    by_id = {claim.id: claim for claim in claims}
    assert len(by_id) == len(claims) == 6 + len(found.proxies) + 3
    assert by_id["metric.asymmetry"].value is None
    assert by_id["metric.asymmetry"].verdict == "undefined"
    assert by_id["metric.order.mary.john"].value == pytest.approx(found.exchange["delta"][0])
    assert len(by_id["metric.asymmetry"].recipe["node_ids"]) == 12 + 1


def test_what_was_written_is_verified(whole: tuple[Plan, Distances]):
    plan, found = whole
    kept = written(metric_findings(plan, found))
    assert "<svg" in kept.file.with_suffix(".html").read_text()
    seen = verify_instrument(open_plan(plan.folder))
    assert seen is not None
    assert (seen.claims, seen.drifts) == (len(distance_claims(plan, found)), ())
    page = kept.file.with_suffix(".html")
    page.write_text(page.read_text().replace("nats", "bits", 1))
    seen = verify_instrument(open_plan(plan.folder))
    assert seen is not None
    assert [drift.what for drift in seen.drifts] == ["metric.html"]


def test_an_untrained_model_says_what_it_lacks(whole: tuple[Plan, Distances]):
    plan, found = whole
    assert list(comparisons(plan)) == [0]
    assert "4 processes" in found.tests["D2 adam"].reason
    assert {found.tests[name].value for name in ("asymmetry", "triangle_worst", "exchangeability")} == {None}
    assert all("not above 0" in found.tests[name].reason for name in ("asymmetry", "triangle_worst", "exchangeability"))
    assert set(found.exchange) == {"first", "second", "delta", "low", "high", "n", "kl", "kl_back", "js"}
    assert (found.exchange["js"] >= 0).all()
    assert "traits that differ" not in found.proxies
    assert all(np.isfinite(each).all() for each in found.proxies.values())
    assert np.isfinite(found.transfer_KK).all()


def test_too_few_processes_and_nobody_are_refused(tmp_path: Path):
    of = tiny(subject("configs/quickstart.yaml"), tmp_path)
    with pytest.raises(ConfigError, match="triangles need 3"):
        distance_plan(of, ["Mary", "Peter"])
    with pytest.raises(ConfigError, match="Did you mean"):
        distance_plan(of, ["Mary", "Petr", "John"])
    apart_KK = unlike(distance_plan(of, ["Mary", "Peter", "John"]))
    assert apart_KK is not None
    assert apart_KK.tolist() == [[0, 8, 8], [8, 0, 6], [8, 6, 0]]
