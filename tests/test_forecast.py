"""The forecast: its arithmetic from fixed costs, what is measured and kept, and that measuring leaves nothing behind."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_experiment import TINY as WHOLE

from persona_lab.design import Node
from persona_lab.experiment.planning.costs import REPORT, Cost, Measured, bounds, file_of, fitting, shapes
from persona_lab.experiment.planning.forecast import Forecast, forecast
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.planning.prefixes import tree

pytestmark = pytest.mark.usefixtures("from_the_root")

TINY: dict[str, Any] = {
    "name": "foreseen",
    **{field: WHOLE[field] for field in ("base", "personas", "lora", "stages")},
    "conditions": {"linked": {"order": ["injection", "trait"], "role": "treatment"}},
    "probes": ["says"],
    "machine": WHOLE["machine"] | {"stack": 1},
}
DOSES = {"linked": {"order": ["injection", "trait"], "role": "treatment", "factors": {"injection.steps": [2, 6]}}}
ONE_STAGE = {"linked": {"order": ["injection"], "role": "treatment"}}
STARTUP, BASE, STEP, SCORES, SHOWN = 2.0, 10.0, 1.0, 0.5, 3.0
FIXED = {
    "base": Cost(once=BASE, peak=500),
    "pool": Cost(disk_unit=2),
    "mixture": Cost(disk_unit=3),
    "tokens": Cost(disk_unit=4),
    "stage": Cost(unit=STEP, peak=100, peak_member=300, disk=1000, tokens=10, filling=8),
    "scores": Cost(member=SCORES, peak=100, disk=10),
}


def planned(folder: Path, **changes: Any) -> Plan:
    file = folder / "foreseen.json"
    file.write_text(json.dumps(TINY | changes))
    file = file.rename(folder / "foreseen.yaml")
    return make_plan(file, [], folder / "runs")


def machine(**changes: Any) -> dict[str, Any]:
    return {"machine": TINY["machine"] | changes}


def measured(plan: Plan, **changes: Cost) -> Measured:
    """Costs by kind as the costs of all shapes."""
    costs = {shape: (FIXED | changes)[shape.partition("-")[0]] for shape in shapes(plan.nodes).values()}
    return Measured(workers=2, asked=8, startup=STARTUP, seconds=9.0, room=1e9, costs=costs | {REPORT: Cost(once=SHOWN - 1, member=1 / len(plan.cells), peak=600, peak_member=100 / len(plan.cells))})


def foreseen(plan: Plan, **changes: Cost) -> Forecast:
    found = forecast(plan, measured(plan, **changes))
    assert found is not None
    return found


def commit(plan: Plan, nodes: Sequence[Node]) -> None:
    for node in nodes:
        with plan.store.attempt(node) as attempt:
            (attempt.folder / "payload").write_text("")


def of_kind(plan: Plan, kind: str) -> list[Node]:
    return [node for node in plan.nodes if node.kind == kind]


# Arithmetic


def test_a_cost_grows_with_members_and_units():
    cost = Cost(once=1, member=2, commit=3, unit=5, unit_member=7, peak=11, peak_member=13)
    assert cost.seconds() == 1 + 2 + 3
    assert cost.seconds(units=10, members=4, stops=2) == 1 + 4 * (2 + 2 * 3) + 10 * (5 + 4 * 7)
    assert cost.memory(4) == 11 + 4 * 13


def test_one_worker_takes_the_sum_of_its_work(tmp_path: Path):
    plan = planned(tmp_path)
    # Two swaps of two stages; the scores of each cell after each stage and before. The trait stage hangs on its own injection.
    found = foreseen(plan)
    assert found.seconds == STARTUP + BASE + 2 * (6 + 3) * STEP + 6 * SCORES + SHOWN
    assert found.by_kind == {"startup": STARTUP, "base": BASE, "pool": 0, "mixture": 0, "tokens": 0, "stage": 18 * STEP, "scores": 6 * SCORES, "report": SHOWN}
    assert found.tokens == 2 * (6 + 3) * 4 * 10


def test_two_workers_take_half_of_what_can_be_shared(tmp_path: Path):
    found = foreseen(planned(tmp_path, conditions=ONE_STAGE, **machine(workers=2)))
    assert found.seconds == STARTUP + BASE + SCORES + 6 * STEP + SCORES + SHOWN
    assert found.by_kind["startup"] == 2 * STARTUP
    assert found.by_kind["stage"] == 2 * 6 * STEP


def test_a_stage_waits_for_the_one_before(tmp_path: Path):
    plan = planned(tmp_path, **machine(workers=4))
    # Two score the base and then wait, two train; then two score what these made, and two train the next stage.
    assert foreseen(plan).seconds == STARTUP + BASE + (6 + 3) * STEP + SCORES + SHOWN


def test_a_worker_that_has_nothing_to_do_waits_for_the_next_commit(tmp_path: Path):
    three_doses = {"linked": DOSES["linked"] | {"factors": {"injection.steps": [2, 4, 6]}}}
    plan = planned(tmp_path, conditions=three_doses, **machine(workers=3))
    # Two train the injections until 6. The third one goes on from their doses: 2 to 5, 5 to 8, 8 to 11; the others 6 to 9, and one 9 to 12.
    assert foreseen(plan, scores=Cost()).seconds == STARTUP + BASE + 12 * STEP + SHOWN


def test_scores_wait_for_the_end_of_the_stack_in_training(tmp_path: Path):
    # What is taught is the same in both swaps: one trajectory, which one worker trains while the other one waits.
    doses = {"linked": {"order": ["trait"], "role": "treatment", "factors": {"trait.steps": [2, 4, 6]}}}
    plan = planned(tmp_path, conditions=doses, **machine(workers=2))
    assert foreseen(plan).seconds == STARTUP + BASE + SCORES + 6 * STEP + 3 * SCORES + SHOWN


def test_a_stack_takes_what_its_members_take_together(tmp_path: Path):
    plan = planned(tmp_path, conditions=ONE_STAGE, **machine(stack=2))
    stacked = Cost(once=1, member=2, commit=4, unit=8, unit_member=16)
    found = foreseen(plan, stage=stacked)
    assert found.by_kind["stage"] == 1 + 2 * 2 + 2 * 4 + 6 * (8 + 2 * 16)
    assert foreseen(planned(tmp_path, conditions=ONE_STAGE), stage=stacked).by_kind["stage"] == 2 * (1 + 2 + 4 + 6 * (8 + 16))


def test_a_member_that_is_done_leaves_the_stack(tmp_path: Path):
    shorter = {"order": ["injection"], "role": "control", "replace": {"injection.steps": 2, "injection.mixture.link": "none"}}
    plan = planned(tmp_path, conditions=ONE_STAGE | {"unlinked": shorter}, **machine(stack=4))
    found = foreseen(plan, stage=Cost(once=1, member=2, commit=4, unit=8, unit_member=16, peak=1000, peak_member=100, tokens=1))
    assert found.by_kind["stage"] == 1 + 4 * (2 + 4) + 2 * (8 + 4 * 16) + 4 * (8 + 2 * 16)
    assert found.tokens == 2 * (6 + 2) * 4
    assert found.peak_bytes == 1000 + 4 * 100


def test_a_shared_prefix_is_counted_once(tmp_path: Path):
    plan = planned(tmp_path, conditions=DOSES)
    found = foreseen(plan)
    assert found.by_kind["stage"] == 2 * (6 + 2 * 3) * STEP
    assert plan.tokens() == {"documents_trained": 2 * (6 + 3 + 3) * 4, "documents_without_sharing": 2 * (2 + 6 + 3 + 3) * 4}


def test_every_stop_of_a_trajectory_is_committed(tmp_path: Path):
    found = foreseen(planned(tmp_path, conditions=DOSES), stage=Cost(commit=1))
    assert found.by_kind["stage"] == 2 * (2 + 2)


def test_what_exists_costs_nothing(tmp_path: Path):
    plan = planned(tmp_path)
    before = foreseen(plan).seconds
    commit(plan, of_kind(plan, "base"))
    assert foreseen(make_plan(tmp_path / "foreseen.yaml", [], plan.runs)).seconds == before - BASE
    commit(plan, of_kind(plan, "stage"))
    found = foreseen(plan)
    assert found.seconds == STARTUP + 6 * SCORES + SHOWN
    assert "pool" not in found.by_kind, "documents that only made stages need are not made"
    commit(plan, of_kind(plan, "scores"))
    assert foreseen(plan) == Forecast(0.0, 1, {}, 0.0, 0.0, 0.0, 0.0)


def test_training_goes_on_from_the_longest_stage_that_exists(tmp_path: Path):
    plan = planned(tmp_path, conditions=DOSES)
    commit(plan, [node for node in of_kind(plan, "stage") if node.fields["step"] == 2])
    assert foreseen(plan).by_kind["stage"] == 2 * (4 + 2 * 3) * STEP


def test_disk_and_memory_add_up(tmp_path: Path):
    plan = planned(tmp_path, conditions=ONE_STAGE, **machine(workers=2))
    found = foreseen(plan)
    pools = sum(node.fields["size"] for node in of_kind(plan, "pool"))
    mixtures = sum(share["count"] for node in of_kind(plan, "mixture") for share in node.fields["shares"])
    tokens = sum(node.inputs["pool"].fields["size"] for node in of_kind(plan, "tokens"))
    assert found.disk_bytes == 2 * pools + 3 * mixtures + 4 * tokens + 2 * 1000 + 4 * 10
    assert (found.peak_bytes, found.peak_bytes_all) == (700, 700 + 500), "the first worker writes the report, the others are done by then"
    stacked = foreseen(planned(tmp_path, conditions=ONE_STAGE, **machine(stack=2)))
    assert stacked.peak_bytes == 700 == 100 + 2 * 300
    assert foreseen(plan, stage=Cost(peak=1000)).peak_bytes == 1000


def test_an_unmeasured_shape_gives_no_forecast(tmp_path: Path):
    plan = planned(tmp_path)
    known = measured(plan)
    partial = Measured(2, 8, 0.0, 0.0, 1e9, {shape: cost for shape, cost in known.costs.items() if not shape.startswith("stage")})
    assert forecast(plan, partial) is None


def test_as_many_members_as_fit_into_most_of_the_memory():
    cost = Cost(peak=600, peak_member=100)
    assert fitting(cost, 1000) == 2
    assert fitting(cost, 10_000) == 74
    assert fitting(cost, 100) == 1, "one is always tried: the micro-batch is halved when it does not fit"
    assert fitting(Cost(peak=600), 1000) > 1000


def test_every_stage_is_bounded_by_its_own_memory(tmp_path: Path):
    plan = planned(tmp_path)
    injection, trait = (sorted(node.id for _, node in (cell.stages[i] for cell in plan.cells)) for i in (0, 1))
    costs = measured(plan)
    large = {shapes(plan.nodes)[injection[0]]: Cost(peak=600, peak_member=50)}
    assert bounds(plan, replace(costs, costs=costs.costs | large, room=1000)) == dict.fromkeys(injection, 4) | dict.fromkeys(trait, 2)
    assert bounds(plan, replace(costs, costs={})) == {}


# Shapes and the tree


def test_what_is_as_fast_as_another_has_its_shape(tmp_path: Path):
    plan = planned(tmp_path, conditions=DOSES)
    kinds = sorted(shape.partition("-")[0] for shape in set(shapes(plan.nodes).values()))
    assert kinds == ["base", "mixture", "mixture", "pool", "pool", "pool", "scores", "scores", "stage", "stage", "tokens", "tokens", "tokens"]
    stages = TINY["stages"]
    longer = stages | {"injection": stages["injection"] | {"steps": 60, "rate": 1e-2}}
    assert file_of(planned(tmp_path, stages=longer, base=TINY["base"] | {"steps": 9}, seeds=[8])) == file_of(planned(tmp_path))
    for other in ({"threads": 2}, {"checkpoint_activations": True}):
        assert file_of(planned(tmp_path, **machine(**other))) != file_of(planned(tmp_path))


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"lora": {"rank": 4, "alpha": 4}}, {"stage", "scores"}),
        ({"probes": ["knows"]}, {"scores"}),
        ({"samples": 2}, {"scores"}),
        ({"base": TINY["base"] | {"width": 32}}, {"base", "tokens", "stage", "scores"}),
        ({"stages": TINY["stages"] | {"trait": TINY["stages"]["trait"] | {"batch": 2}}}, {"stage"}),
    ],
)
def test_what_makes_another_speed_makes_another_shape(change: dict[str, Any], kinds: set[str], tmp_path: Path):
    before, after = (set(shapes(planned(tmp_path, **changes).nodes).values()) for changes in ({}, change))
    assert {shape.partition("-")[0] for shape in after - before} == kinds


def test_the_tree_shows_what_hangs_on_what(tmp_path: Path):
    plan = planned(tmp_path, conditions=DOSES | {"plain": {"order": ["trait"], "role": "control"}})
    injection, trait, alone = tree(plan)
    assert (injection.stage, injection.depth, injection.steps, injection.trajectories, injection.adapters) == ("injection", 1, (2, 6), 2, 4)
    assert (injection.documents, injection.documents_alone, injection.cells) == (2 * 6 * 4, 2 * (2 + 6) * 4, 4)
    assert (trait.stage, trait.depth, trait.steps, trait.trajectories, trait.cells) == ("trait", 2, (3,), 4, 4)
    # What the plain condition is taught is the same in both swaps.
    assert (alone.stage, alone.depth, alone.trajectories, alone.cells) == ("trait", 1, 1, 2)
    assert sum(branch.documents for branch in tree(plan)) == plan.tokens()["documents_trained"]
