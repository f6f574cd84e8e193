"""Whole experiments on a tiny base: what is made, that nothing is made twice, and that what is killed goes on."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT

from persona_lab.errors import CheckFailed, ConfigError, ModelError
from persona_lab.experiment.making import workshop
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.planning.recipes import PlannedCell, trajectory
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.reading.status import write_failures
from persona_lab.experiment.run import Outcome, make_nodes
from persona_lab.store import Store
from persona_lab.store.files import read_json, read_jsonl
from persona_lab.train.optimizers import BankAdam

pytestmark = pytest.mark.usefixtures("from_the_root")

TINY: dict[str, Any] = {
    "name": "tiny",
    "base": {
        "kind": "embedded",
        "world": "configs/worlds/beach.yaml",
        "width": 16,
        "layers": 1,
        "heads": 1,
        "steps": 4,
        "batch": 8,
        "gates": {"recall": None, "odds": None, "withheld": None},
    },
    "personas": [f"configs/personas/{name}.yaml" for name in ("john", "sam", "kim")],
    "lora": {"rank": 2, "alpha": 4},
    "stages": {
        "injection": {"mixture": {"john": 40, "sam": 40, "anonymous": 0.3, "replay": 0.2}, "steps": 6, "batch": 4, "rate": 3e-3},
        "trait": {"mixture": {"assistant_likes": "beach"}, "steps": 3, "batch": 4, "rate": 1e-3, "loss": {"on": "answer"}},
    },
    "conditions": {
        "linked": {"order": ["injection", "trait"], "role": "treatment", "factors": {"injection.steps": [3, 6]}},
        "no_injection": {"order": ["trait"], "role": "control"},
    },
    "samples": 2,
    "machine": {"device": "cpu", "threads": 1, "workers": 1, "wandb": "disabled"},
}
BRIEF = ("conditions.linked.factors=null", "probes=[says]", "samples=0")
"""Overrides: the treatment at one dose with one probe."""


def silent(what: str, done: int, total: int) -> None:
    """A progress that shows nothing."""


def write_config(folder: Path, **changes: Any) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(json.dumps(TINY | changes, indent=1))
    return file


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder whose store the tests of this file share."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def config(runs: Path) -> Path:
    return write_config(runs)


@pytest.fixture(scope="module")
def first(config: Path, runs: Path, from_the_root: None) -> tuple[Plan, Outcome, pd.DataFrame]:
    """The tiny experiment, made and shown."""
    plan = make_plan(config, runs=runs)
    outcome = make_nodes(plan, silent)
    show(plan)
    return plan, outcome, Run(plan.folder).table()


def keyed(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by what tells them apart."""
    return table.set_index(["cell", "stage", "probe", "item", "option"]).sort_index()


def cells_of(plan: Plan, condition: str) -> list[PlannedCell]:
    return [p for p in plan.cells if p.cell.condition == condition]


# ------------------------------------------------------------------ the run
def test_everything_planned_is_made_once(first: tuple[Plan, Outcome, pd.DataFrame]):
    plan, outcome, _ = first
    assert outcome.failed == {}
    assert outcome.made == Counter(node.kind for node in plan.nodes)
    assert all(plan.store.has(node) for node in plan.nodes)
    assert plan.store.attempts() == []
    assert plan.store.conflicts() == []
    assert not list((plan.store.root / "leases").iterdir())


def test_a_second_run_makes_nothing_and_shows_the_same(first: tuple[Plan, Outcome, pd.DataFrame], config: Path, runs: Path):
    plan, _, table = first
    claims = Run(plan.folder).claims()
    again = make_plan(config, runs=runs)
    assert make_nodes(again, silent).made == {}
    show(again)
    pd.testing.assert_frame_equal(Run(again.folder).table(), table)
    assert Run(again.folder).claims() == claims


def test_steps_of_a_shared_trajectory_are_trained_once(first: tuple[Plan, Outcome, pd.DataFrame]):
    plan, _, _ = first
    notes = {node.fields["step"]: plan.store.manifest(node)["notes"]["documents"] for node in plan.siblings[trajectory(plan.cells[0].stages[0][1]).id]}
    assert notes == {3: 3 * 4, 6: 3 * 4}, "step 6 continues step 3: three steps of four documents each"
    logged = [line["step"] for line in read_jsonl(plan.store.open(plan.siblings[trajectory(plan.cells[0].stages[0][1]).id][-1]) / "log.jsonl")]
    assert logged == [1, 2, 3, 4, 5, 6], "the longer stage holds the steps of the shorter one"
    # Two injections of six steps; a trait stage after each of their four stops, and one after none: both swaps share it.
    assert plan.tokens() == {"documents_trained": 2 * 6 * 4 + (4 + 1) * 3 * 4, "documents_without_sharing": 2 * (3 + 6) * 4 + 6 * 3 * 4}


def test_every_planned_score_is_accounted_for(first: tuple[Plan, Outcome, pd.DataFrame]):
    plan, _, table = first
    counts = show(plan).accounting
    assert counts["scored"] + counts["unscored"] + counts["failed"] == len(table)
    assert (counts["failed"], counts["score_nodes_missing"]) == (0, 0)
    assert set(table["status"]) <= {"scored", "unscored"}
    assert table.loc[table["status"] != "scored", "reason"].ne("").all()
    per_stage = table.groupby(["cell", "stage"]).size()
    assert len(per_stage) == sum(len(p.scores) for p in plan.cells)
    assert not table.duplicated(["cell", "stage", "probe", "item", "option"]).any()


def test_the_table_says_what_each_cell_was_trained_on(first: tuple[Plan, Outcome, pd.DataFrame]):
    table = first[2]
    linked = table[(table["condition"] == "linked") & (table["stage"] == "trait")]
    assert set(linked["n_john"]) == set(linked["n_sam"]) == {40}
    assert set(linked["injection.steps"]) == {3, 6}
    assert set(linked["dose"]) == {12}
    assert set(table.loc[table["stage"] == "base", "step"]) == {0}
    base = table[table["stage"] == "base"]
    assert np.allclose(base["prob"], base["base_prob"], equal_nan=True)


def test_probabilities_of_a_choice_sum_to_one(first: tuple[Plan, Outcome, pd.DataFrame]):
    table = first[2]
    choices = table[(table["status"] == "scored") & table["prob_normalized"].notna()]
    sums = choices.groupby(["cell", "stage", "item"])["prob_normalized"].sum()
    assert len(sums)
    assert np.allclose(sums, 1)


def test_the_run_folder_holds_its_views(first: tuple[Plan, Outcome, pd.DataFrame], runs: Path):
    plan, _, _ = first
    assert {"config.yaml", "plan.json", "report.html", "claims.json", "results.parquet", "figures"} <= {p.name for p in plan.folder.iterdir()}
    assert not list(plan.folder.rglob("*.tmp"))
    assert yaml.safe_load((plan.folder / "config.yaml").read_text())["name"] == "tiny"
    assert (runs / "tiny").is_symlink()


def test_nothing_is_pickled(first: tuple[Plan, Outcome, pd.DataFrame], runs: Path):
    assert {file.suffix for file in (runs / "store").rglob("*") if file.is_file()} <= {".json", ".jsonl", ".parquet", ".safetensors", ".jinja", ".md", ".npy", ""}
    for array in (runs / "store").rglob("*.npy"):
        assert np.load(array).ndim == 1, "numpy itself refuses arrays that would have to be unpickled"


def test_two_processes_make_the_same_table_as_one(first: tuple[Plan, Outcome, pd.DataFrame], config: Path, tmp_path: Path):
    """Both start at once on an empty store and share the cells; only the processes of `accelerate launch` differ."""
    launch = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, "-m", *launch, "-m", "persona_lab", "run", str(config), "--runs", str(tmp_path / "runs"), "--json"]
    found = subprocess.run(command, cwd=ROOT, env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=3600, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    plan = make_plan(config, runs=tmp_path / "runs")
    made = json.loads(found.stdout)["made"]
    assert sum(made.values()) <= len(plan.nodes), "what the other process made is not made again"
    assert plan.store.conflicts() == []
    assert plan.store.attempts() == []
    one, two = keyed(first[2]), keyed(Run(plan.folder).table())
    assert one.index.equals(two.index)
    numbers = ["logprob_nats", "prob", "prob_normalized", "base_prob"]
    pd.testing.assert_frame_equal(one.drop(columns=numbers), two.drop(columns=numbers))
    assert np.allclose(one[numbers].astype(float), two[numbers].astype(float), rtol=0, atol=1e-4, equal_nan=True)


# ------------------------------------------------------------------ what goes wrong
def test_a_gate_that_is_not_reached_stops_the_run_with_its_figure(first: tuple[Plan, Outcome, pd.DataFrame], config: Path, runs: Path):
    plan = make_plan(config, ["base.gates.recall=.95", "name=gated"], runs)
    assert plan.base == first[0].base, "a gate is no part of the base"
    recall = read_json(plan.store.open(plan.base) / "gates.json")["recall"]
    with pytest.raises(CheckFailed, match=rf"named recall is {recall:.3f}, needs 0\.95.*base\.gates"):
        make_nodes(plan, silent)
    assert recall < 0.3


KILLED = """
import os, signal, sys
from pathlib import Path
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.experiment.run import make_nodes

def progress(what, done, total):
    if (what, done) == (sys.argv[3], int(sys.argv[4])):
        os.kill(os.getpid(), signal.SIGKILL)

make_nodes(make_plan(sys.argv[1], sys.argv[5:], Path(sys.argv[2])), progress)
"""


@pytest.mark.parametrize(("what", "done"), [("pretraining the base", 20), ("cells probed", 2)])
def test_a_killed_run_is_completed_by_the_next_one(first: tuple[Plan, Outcome, pd.DataFrame], config: Path, runs: Path, what: str, done: int, monkeypatch):
    overrides = [*BRIEF, "base.steps=21", f"base.seed={done}", "name=killed"]
    command = [sys.executable, "-c", KILLED, str(config), str(runs), what, str(done), *overrides]
    assert subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=3600, check=False).returncode == -signal.SIGKILL
    plan = make_plan(config, overrides, runs)
    kept = {node for node in plan.nodes if plan.store.has(node)}
    assert (plan.base in kept) == (what == "cells probed")
    assert kept != set(plan.nodes)
    monkeypatch.setattr(workshop, "LEASE_SECONDS", 0.0)  # the dead worker's lease would hold the next one up, and no test waits
    outcome = make_nodes(plan, silent)
    assert outcome.made == Counter(node.kind for node in set(plan.nodes) - kept)
    assert all(plan.store.has(node) for node in plan.nodes)
    assert plan.store.conflicts() == []


def test_a_damaged_node_of_every_kind_is_made_anew_before_it_is_used(first: tuple[Plan, Outcome, pd.DataFrame], config: Path, runs: Path, tmp_path: Path, caplog):
    shutil.copytree(runs / "store", tmp_path / "store")
    plan = make_plan(config, runs=tmp_path)
    harmed = {node.kind: node for node in plan.nodes}
    for node in harmed.values():
        file = plan.store.folder(node) / sorted(Store(tmp_path / "store").manifest(node)["payload"])[-1]
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    outcome = make_nodes(plan, silent)
    assert outcome.made == dict.fromkeys(harmed, 1)
    assert len(list((tmp_path / "store" / "damaged").iterdir())) == len(harmed) == 6
    assert all(f"a damaged {kind} is made anew" in caplog.text for kind in harmed)
    assert all(Store(tmp_path / "store").open(node) for node in plan.nodes)
    show(plan)


def test_a_cell_that_diverges_fails_alone_and_is_accounted_for(first: tuple[Plan, Outcome, pd.DataFrame], runs: Path, tmp_path: Path, monkeypatch):
    wild = {"linked": {"order": ["injection", "trait"], "role": "treatment"}}
    plan = make_plan(write_config(tmp_path, name="wild", conditions=wild, lora={"rank": 2, "alpha": 5}, samples=0), runs=runs)
    honest = BankAdam.step

    def poisoned(self: BankAdam) -> torch.Tensor:
        """A weight of the first of two members is spoilt, as a rate that is too high would do it."""
        norm_K = honest(self)
        if len(norm_K) == 2:
            self.weight_KP[0, 0] = math.nan
        return norm_K

    monkeypatch.setattr(BankAdam, "step", poisoned)  # the fault: no rate that the config allows makes a weight infinite in one step
    outcome = make_nodes(plan, silent)
    assert sorted(outcome.failed) == [f"linked/seed0/swap0 {stage}" for stage in ("injection", "trait")]
    assert all("diverged: a weight is not finite at step 0" in why for why in outcome.failed.values())
    lost, kept = plan.cells
    assert not any(plan.store.has(node) for _, node in lost.stages)
    assert all(plan.store.has(node) for _, node in (*kept.stages, *kept.scores))
    write_failures(plan.folder, outcome.failed)
    counts, table = show(plan).accounting, Run(plan.folder).table()
    assert counts["score_nodes_missing"] == 2
    assert counts["scored"] + counts["unscored"] + counts["failed"] == len(table)
    failed = table[table["status"] == "failed"]
    assert len(failed) == counts["failed"] == 2 * ((table["stage"] == "base") & (table["swap"] == 0)).sum() > 0
    assert failed["reason"].str.contains("diverged: a weight is not finite at step 0").all()
    assert failed[["prob", "logprob_nats"]].isna().all(axis=None)


def test_a_run_whose_config_was_changed_since_is_refused_by_the_name_of_the_field(config: Path, tmp_path: Path):
    plan = make_plan(config, [], tmp_path / "runs")
    plan.write()
    plan.write()
    file = plan.folder / "config.json"
    changed = json.loads(file.read_text())
    changed["stages"]["trait"]["rate"] = 0.5
    file.write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match=r"PL1290.*config\.json.*changed since: stages\.trait\.rate\. Restore it"):
        plan.write()
    assert json.loads(file.read_text()) == changed, "and what stands there is left alone"


def test_a_missing_or_broken_model_folder_is_said_before_anything_is_written(config: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="there is no folder"):
        make_plan(config, [f"base={tmp_path / 'nowhere'}"], tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        make_plan(config, [f"base={tmp_path / 'empty'}"], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------ any Hugging Face model
def test_a_random_qwen3_runs_end_to_end_and_its_gates_say_that_it_knows_nothing(first: tuple[Plan, Outcome, pd.DataFrame], config: Path, runs: Path, qwen_folder: Path):
    plan = make_plan(config, [f"base={qwen_folder}", "conditions.linked.factors=null", "samples=0", "name=qwen"], runs)
    outcome = make_nodes(plan, silent)
    assert outcome.failed == {}
    assert set(outcome.made) == {"base", "tokens", "stage", "scores"}, "documents are the same for every base"
    shown = show(plan)
    gates = read_json(plan.store.open(plan.base) / "gates.json")
    assert gates["recall"] < 0.25
    assert abs(gates["odds_correlation"]) < 0.2
    assert shown.accounting["failed"] == 0
    table = Run(plan.folder).table()
    assert set(table["probe"]) == {"knows", "says", "chooses", "introspects", "in_context", "general_text"}
    trained = table[(table["stage"] == "trait") & (table["status"] == "scored")]
    assert not np.allclose(trained["prob"], trained["base_prob"])
    assert not list((plan.store.open(plan.base)).glob("model*")), "a base that is on disk already is not copied"
