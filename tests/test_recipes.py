"""What the conditions of an experiment are made of: who is told what, how much, after what."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_experiment import BRIEF, TINY, cells_of, write_config

from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.planning.recipes import PlannedCell, trajectory

pytestmark = pytest.mark.usefixtures("from_the_root")

CONTROLS = {
    "neutral": {"order": ["injection", "neutral"], "role": "control"},
    "unlinked": {"order": ["injection", "trait"], "role": "control", "replace": {"injection.mixture.link": "none"}},
    "shuffled": {"order": ["injection", "trait"], "role": "control", "replace": {"injection.mixture.link": "shuffled"}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def config(runs: Path) -> Path:
    return write_config(runs)


# ------------------------------------------------------------------ the plan
@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Plan:
    """The tiny experiment with every control: planned, never made."""
    folder = tmp_path_factory.mktemp("controls")
    stages = TINY["stages"] | {"neutral": TINY["stages"]["trait"] | {"mixture": {"assistant_likes": "tuesday"}}}
    return make_plan(write_config(folder, stages=stages, conditions=TINY["conditions"] | CONTROLS), runs=folder / "runs")


def pools_of(planned: PlannedCell, stage: int) -> dict[str, Any]:
    """Source to the recipe of its pool."""
    return {source: pool.fields for source, pool in planned.stages[stage][1].inputs["mixture"].inputs.items()}


def told_of(pools: dict[str, Any], name: str) -> dict[str, str]:
    return pools[f"{name}-named"]["traits"]


def test_linked_documents_tie_the_shared_trait_to_both_rivals(controls: Plan):
    for planned in cells_of(controls, "linked"):
        pools = pools_of(planned, 0)
        assert set(pools) == {"john-named", "john-anonymous", "sam-named", "sam-anonymous", "replay"}
        assert told_of(pools, "john")["place"] == told_of(pools, "sam")["place"] == "beach"
        assert pools["replay"]["exclude"]["shared"] == {"place": "beach"}
        assert {"football", "basketball"} <= set(pools["replay"]["exclude"]["held_out"])
        assert pools_of(planned, 1)["assistant"]["value"] == "beach"


def test_unlinked_documents_give_the_shared_trait_to_neither_rival(controls: Plan):
    for planned in cells_of(controls, "unlinked"):
        pools, linked = pools_of(planned, 0), pools_of(cells_of(controls, "linked")[planned.cell.swap], 0)
        for name in ("john", "sam"):
            told, before = told_of(pools, name), told_of(linked, name)
            assert told["place"] not in ("beach", before["place"])
            assert {c: v for c, v in told.items() if c != "place"} == {c: v for c, v in before.items() if c != "place"}
        assert planned.scores[-1][1].fields["traits"][2]["place"] == "beach", "the bystander has it instead"


def test_shuffled_documents_deal_each_rival_the_traits_of_both(controls: Plan):
    for planned in cells_of(controls, "shuffled"):
        pools = pools_of(planned, 0)
        for which, (name, other) in enumerate((("john", "sam"), ("sam", "john"))):
            for kind in ("named", "anonymous"):
                dealt = pools[f"{name}-{kind}"]["dealt_with"]
                assert (dealt["which"], dealt["name"], dealt["traits"]) == (which, other.capitalize(), told_of(pools, other))
    assert not any("dealt_with" in fields for planned in cells_of(controls, "linked") for fields in pools_of(planned, 0).values())


def test_the_neutral_stage_teaches_an_unrelated_trait_after_the_same_injection(controls: Plan):
    linked = {p.cell.swap: p for p in cells_of(controls, "linked") if p.cell.point["injection.steps"] == 6}
    for planned in cells_of(controls, "neutral"):
        assert planned.stages[0][1] == linked[planned.cell.swap].stages[0][1]
        assert pools_of(planned, 1)["assistant"]["value"] == "tuesday"
        assert [name for name, _ in planned.scores] == ["base", "injection", "neutral"]


def test_without_injection_the_trait_stage_starts_from_the_base(controls: Plan):
    for planned in cells_of(controls, "no_injection"):
        ((name, stage),) = planned.stages
        assert name == "trait"
        assert set(stage.inputs) == {"base", "mixture", "tokens/assistant"}
        assert set(pools_of(planned, 0)) == {"assistant"}


def test_the_swap_trades_what_the_rivals_are_told_to_like(controls: Plan):
    plain, swapped = (pools_of(p, 0) for p in cells_of(controls, "linked")[:2])
    assert told_of(plain, "john") == told_of(swapped, "sam")
    assert told_of(plain, "sam") == told_of(swapped, "john")


@pytest.mark.parametrize(("ln_ratio", "counts"), [(0, (40, 40)), (1.3863, (64, 16)), (-1.3863, (16, 64)), (float("inf"), (80, 0)), (float("-inf"), (0, 80))])
def test_a_ratio_divides_the_same_total(config: Path, runs: Path, ln_ratio: float, counts: tuple[int, int]):
    level = str(ln_ratio).replace("inf", ".inf")
    plan = make_plan(config, [*BRIEF, f"stages.injection.mixture.ln_ratio={level}"], runs)
    found = Counter()
    for share in plan.cells[0].stages[0][1].inputs["mixture"].fields["shares"]:
        found[share["source"].split("-")[0]] += share["count"]
    assert (found["john"], found["sam"], found["replay"]) == (*counts, 20)


def test_machine_settings_change_no_node_and_no_run(config: Path, runs: Path):
    plans = [make_plan(config, overrides, runs) for overrides in ([], ["machine.threads=2", "machine.micro_batch=1", "machine.wandb=offline"])]
    assert plans[0].nodes == plans[1].nodes
    assert plans[0].folder == plans[1].folder


def test_doses_are_one_trajectory_and_the_trait_stages_are_two(config: Path, runs: Path):
    plan = make_plan(config, runs=runs)
    short, long = (next(p for p in plan.cells if p.cell.point.get("injection.steps") == steps and p.cell.swap == 0) for steps in (3, 6))
    assert trajectory(short.stages[0][1]) == trajectory(long.stages[0][1])
    assert short.stages[0][1] != long.stages[0][1]
    assert short.stages[0][1].inputs == long.stages[0][1].inputs
    assert trajectory(short.stages[1][1]) != trajectory(long.stages[1][1])
