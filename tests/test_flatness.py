"""The command `llc` on a real tiny run: chains are made once, settings that fail are told, and what is no comparison is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_cli import lab
from test_experiment import silent, write_config

from persona_lab.errors import ConfigError
from persona_lab.experiment.instruments.adapters.flatness import check_comparable, flatness, read_chains, solution
from persona_lab.experiment.instruments.measure.weights import Bench
from persona_lab.experiment.planning.adapters import PULLS, Effort, chain_nodes
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.run import make_nodes

SMALL = Effort(documents=4, step=1e-9, settle=1, burn=2, draws=8, chains=2)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two ratios, then the same documents of the trait."""
    folder = tmp_path_factory.mktemp("flat")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        conditions = {"linked": {"order": ["injection", "trait"], "role": "treatment", "factors": {"injection.mixture.ln_ratio": [-1.1, 1.1]}}}
        plan = make_plan(write_config(folder, name="flat", conditions=conditions), ["probes=[says]", "seeds=2"], folder / "runs")
        make_nodes(plan, silent)
    return plan


def test_two_solutions_of_the_same_documents_are_compared(plan: Plan):
    one, other = (next(p for p in plan.cells if p.cell.seed == p.cell.swap == 0 and x in p.cell.name) for x in ("=-1.1", "=1.1"))
    found = flatness(Bench(plan, "cpu"), (one, other), SMALL)
    assert len(found.first) == len(found.second) == len(PULLS)
    assert all((c.value is None) == bool(c.reasons) for c in (*found.first, *found.second))
    nodes = [node for planned in (one, other) for node in chain_nodes(solution(planned), SMALL).values()]
    losses_CD, start, nbeta = read_chains(plan.store.open(nodes[0]))
    assert losses_CD.shape == (2, 8)
    assert nbeta == pytest.approx(4 / np.log(4))
    assert np.isfinite(losses_CD).all()
    # A step this small hardly leaves the solution.
    assert losses_CD == pytest.approx(np.full((2, 8), start), rel=0.05)
    created = [plan.store.manifest(node)["created"] for node in nodes]
    assert flatness(Bench(plan, "cpu"), (one, other), SMALL) == found
    assert [plan.store.manifest(node)["created"] for node in nodes] == created, "made once"


def test_cells_that_saw_other_documents_are_refused(plan: Plan):
    one, other = (next(p for p in plan.cells if p.cell.seed == seed) for seed in (0, 1))
    with pytest.raises(ConfigError, match="differ in the documents of the last stage"):
        check_comparable(one, other)
    with pytest.raises(ConfigError, match=r"saw \d+ documents, 99999 are asked"):
        flatness(Bench(plan, "cpu"), (one, one), Effort(documents=99_999))


def test_the_command_says_which_is_simpler_or_why_not(plan: Plan):
    names = [next(p.cell.name for p in plan.cells if p.cell.seed == p.cell.swap == 0 and x in p.cell.name) for x in ("=-1.1", "=1.1")]
    done = lab("llc", plan.folder.name, *names, "--documents", "4", "--draws", "8", "--json", "--runs", str(plan.runs), at=ROOT)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["cells"] == names
    assert said["simpler"] in ("first", "second", "undecided")
    assert [one["pull"] for one in said["first"]] == list(PULLS)


def test_the_base_is_no_solution(plan: Plan, tmp_path: Path):
    folder = tmp_path / "base"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        base = make_plan(write_config(folder, name="bare", conditions={"linked": {"order": [], "role": "treatment"}}), ["probes=[says]"], plan.runs)
    with pytest.raises(ConfigError, match="is the base model itself"):
        solution(base.cells[0])
