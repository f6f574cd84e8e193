"""What a machine was found to take: measured for real, kept, and said by `plan`."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import ROOT
from test_forecast import BASE, SCORES, SHOWN, STARTUP, STEP, commit, foreseen, machine, measured, planned

from persona_lab.cli.experiments import plan_words
from persona_lab.errors import CorpusError
from persona_lab.experiment.checking.measuring import measure
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.planning.costs import REPORT, Measured, file_of, read_measured, shapes, write_measured
from persona_lab.experiment.planning.forecast import forecast
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.run import make_nodes

pytestmark = pytest.mark.usefixtures("from_the_root")


# What is kept


def test_costs_are_kept_and_read(tmp_path: Path):
    plan = planned(tmp_path)
    assert read_measured(plan) is None
    write_measured(plan, measured(plan))
    assert read_measured(plan) == measured(plan)
    assert read_measured(planned(tmp_path, seeds=3)) == measured(plan)
    assert read_measured(planned(tmp_path, probes=["knows"])) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"costs": {"stage": {"speed": 1}}}', '{"costs": {"stage": {"unit": "fast"}}}', '{"costs": 3}'])
def test_a_broken_measurement_is_one_error_that_says_what_to_do(text: str, tmp_path: Path):
    plan = planned(tmp_path)
    file = write_measured(plan, measured(plan))
    file.write_text(text)
    with pytest.raises(CorpusError, match=file.name) as error:
        read_measured(plan)
    assert len(error.value.problems) == 1


def test_plan_says_what_is_not_measured_and_what_is(tmp_path: Path):
    plan = planned(tmp_path)
    done = lab("plan", "foreseen.yaml", at=tmp_path)
    assert "add --measure" in done.stdout
    assert not (tmp_path / "runs").exists()
    write_measured(plan, measured(plan))
    words = lab("plan", "foreseen.yaml", at=tmp_path)
    assert "about 36 s with one worker, 700 B of memory at most" in words.stdout
    assert "LIGHT" in words.stderr
    found = json.loads(lab("plan", "foreseen.yaml", "--json", at=tmp_path).stdout)
    assert found["forecast"]["seconds"] == STARTUP + BASE + 18 * STEP + 6 * SCORES + SHOWN
    assert [branch["stage"] for branch in found["tree"]] == ["injection", "trait"]
    (tmp_path / "runs" / "store" / "measured" / file_of(plan).name).write_text("{")
    broken = lab("plan", "foreseen.yaml", at=tmp_path)
    assert broken.returncode == 3
    assert broken.stderr.count("error[") == 1


def lab(*arguments: str, at: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which says at its end whether it has loaded torch."""
    (at / "configs").exists() or (at / "configs").symlink_to(ROOT / "configs")
    code = "import sys; from persona_lab.cli import main\ntry: main()\nfinally: print('TORCH' if 'torch' in sys.modules else 'LIGHT', file=sys.stderr)"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=at, capture_output=True, text=True)


def test_a_plan_whose_nodes_exist_says_so(tmp_path: Path):
    plan = planned(tmp_path)
    commit(plan, plan.nodes)
    for foretold in (None, asdict(foreseen(plan))):
        words = plan_words({**plan.describe(), "tree": [], "left": {"nodes": 0}, "forecast": foretold})
        assert words.endswith("everything is made")


# Measuring for real


@pytest.fixture(scope="module")
def measuring(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> tuple[Plan, Measured]:
    plan = planned(tmp_path_factory.mktemp("measured"), **machine(stack=2))
    with Interruption() as interruption:
        return plan, measure(plan, [], interruption, lambda what, done, total: None)


def test_every_shape_is_measured_and_nothing_is_left(measuring: tuple[Plan, Measured]):
    plan, found = measuring
    assert found.costs.keys() == {*shapes(plan.nodes).values(), REPORT}
    assert all(figure >= 0 for cost in found.costs.values() for figure in vars(cost).values())
    assert not any(plan.store.has(node) for node in plan.nodes)
    assert list(plan.store.root.iterdir()) == [plan.store.root / "measured"]
    assert list((plan.store.root / "measured").iterdir()) == []
    assert not plan.folder.exists()


def test_the_memory_of_a_worker_holds_torch(measuring: tuple[Plan, Measured]):
    _, found = measuring
    for shape, cost in found.costs.items():
        assert 200e6 < cost.memory() < 20e9, shape


def test_disk_is_foretold(measuring: tuple[Plan, Measured]):
    plan, costs = measuring
    found = forecast(plan, costs)
    assert found is not None
    make_nodes(plan, lambda what, done, total: None)
    nodes = [file for kind in ("base", "pool", "mixture", "tokens", "stage", "scores") for file in (plan.store.root / kind).rglob("*") if file.is_file()]
    assert found.disk_bytes == pytest.approx(sum(file.stat().st_size for file in nodes), rel=0.05)
    again = forecast(plan, costs)
    assert again is not None
    assert again.seconds == 0
