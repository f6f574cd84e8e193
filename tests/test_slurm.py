"""A sweep on a real Slurm of two nodes on this machine: a node that dies, a job that is told to stop, one that is cancelled, and one that is refused.

    PERSONA_LAB_SLURM_CONFIG=configs/quickstart.yaml PERSONA_LAB_SLURM=FOLDER pytest -s tests/test_slurm.py -k whole

runs a whole experiment as well, by jobs whose cells have two processes each: half an hour of two cores.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from slurm_on_one_machine import Slurm, running, until, why_not
from test_experiment import TINY, silent

from persona_lab.experiment.planning.plan import make_plan
from persona_lab.experiment.reading.runs import Run, find_run, open_run
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.run import make_nodes

NOT_HERE = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NOT_HERE is not None, reason=NOT_HERE or ""), pytest.mark.usefixtures("from_the_root")]
MINUTES = 60.0
WHOLE = os.environ.get("PERSONA_LAB_SLURM_CONFIG", "")
"""An experiment file that is run whole."""
TOGETHER = ["device=cpu", "threads=1", "wandb=disabled", "stack=1", "data_parallel=true", "checkpoint_seconds=1", "cluster.processes=2", "cluster.jobs=2", "cluster.cpus=2"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with running(tmp_path_factory.mktemp("slurm")) as started:
        yield started


def sweep(folder: Path, name: str, *, steps: int = 400, ratios: tuple[float, ...] = (-1.386, 1.386), **machine: Any) -> Path:
    """Two cells for each ratio, each trained alone, so that its bits are the same whoever trains it."""
    stages = json.loads(json.dumps(TINY["stages"]))
    stages["injection"]["steps"] = steps
    changes = {
        "name": name,
        "stages": stages,
        "conditions": {"linked": {"order": ["injection", "trait"], "role": "treatment"}},
        "factors": {"injection.mixture.ln_ratio": list(ratios)},
        "probes": ["says"],
        "samples": 0,
        "machine": TINY["machine"] | {"stack": 1, "checkpoint_seconds": 0.5, "cluster": {"partition": "all", "cpus": 2, "processes": 2, "jobs": 2}} | machine,
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(TINY | changes, indent=1))
    return file


def lab(slurm: Slurm, *arguments: str, code: int = 0) -> dict[str, Any]:
    """What a command prints as JSON."""
    environment = slurm.environment | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "persona_lab", *arguments, "--json"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else {"said": done.stderr}


def jobs(slurm: Slurm, name: str, runs: Path) -> dict[str, str]:
    return {job["job"]: job["state"] for job in lab(slurm, "status", name, "--runs", str(runs))["jobs"]}


def trained(runs: Path) -> int:
    return len(list((runs / "store" / "stage").glob("*/COMMIT")))


def under_way(runs: Path) -> set[str]:
    """Stacks whose training is kept in a checkpoint."""
    return {seal.parents[1].name for seal in (runs / "store" / "attempts").glob("stack-*/step-*/COMMIT")}


def went_on(runs: Path) -> list[dict[str, Any]]:
    """Where stages were taken up from a checkpoint."""
    manifests = (json.loads(file.read_text()) for file in (runs / "store" / "stage").glob("*/manifest.json"))
    return [place for manifest in manifests for place in manifest["notes"]["went_on"]]


def logs(runs: Path, name: str) -> str:
    return "".join(f"== {log.name}\n{log.read_text()}" for log in sorted((find_run(name, runs) / "launch").glob("*/logs/*.log")))


def queue(slurm: Slurm, *ids: str) -> dict[str, str]:
    """Slurm's own words for what it has of these jobs."""
    said = slurm.call("squeue", "-h", "-r", "--states=all", "-j", ",".join(ids), "-o", "%i %T %r")
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in said.splitlines()}


def until_all_ended(slurm: Slurm, name: str, runs: Path, ids: list[str], minutes: float = 8) -> dict[str, str]:
    """Wait until the report of a submission is there, and hurry what waits for its second start."""

    def ended() -> bool:
        for one, said in queue(slurm, *ids).items():
            if said == "PENDING BeginTime":
                slurm.call("scontrol", "update", f"JobId={one}", "StartTime=now")
        return queue(slurm, ids[-1])[ids[-1]].split()[0] not in ("PENDING", "RUNNING", "COMPLETING")

    until(ended, minutes * MINUTES, f"{slurm.call('squeue')}\n{logs(runs, name)}")
    return {one: state for one, state in jobs(slurm, name, runs).items() if one.partition("_")[0] in ids}


def lose_a_node(slurm: Slurm, array: str) -> str:
    """The second node dies with what it runs, and comes back; the task that it ran."""
    [lost] = slurm.call("squeue", "-h", "-r", "-w", "n2", "-o", "%i").split()
    slurm.kill_node("n2")
    slurm.call("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=killed")
    assert queue(slurm, array)[lost].startswith("PENDING"), "Slurm queues it again by itself"
    slurm.start_node("n2")
    until(lambda: "n2" in slurm.call("sinfo", "-h", "-N", "-t", "idle,mixed,alloc", "-o", "%N"), MINUTES, "n2 did not come back")
    return lost


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The table of the sweep as one process makes it, without any engine."""
    return alone(sweep(tmp_path_factory.mktemp("local"), "killed"))


def alone(config: Path) -> pd.DataFrame:
    """The table of an experiment without any engine."""
    plan = make_plan(config, runs=config.parent / "alone")
    make_nodes(plan, silent)
    show(plan)
    return Run(plan.folder).table()


def test_a_node_that_dies_half_way_costs_nothing_and_the_table_is_that_of_a_local_run(slurm: Slurm, local: pd.DataFrame, tmp_path: Path):
    launch = ("launch", str(sweep(tmp_path, "killed")), "--engine", "slurm", "--runs", str(tmp_path))
    launched = lab(slurm, *launch)
    array, report = launched["ids"]
    assert launched["jobs"] == 2
    assert "PL5305" in lab(slurm, *launch, code=5)["said"], "it is not submitted twice"
    until(lambda: trained(tmp_path) >= 1, 8 * MINUTES, "nothing was trained")
    assert trained(tmp_path) < 8, "it is killed half-way"
    lost = lose_a_node(slurm, array)

    ended = until_all_ended(slurm, "killed", tmp_path, launched["ids"])
    said = logs(tmp_path, "killed")
    assert ended == {f"{array}_0": "done", f"{array}_1": "done", report: "done"}, said
    assert f"{lost} on n" in said
    assert "start 2" in said
    pd.testing.assert_frame_equal(open_run(tmp_path / "killed").table(), local)
    assert lab(slurm, *launch)["ids"] == [], "nothing is missing, nothing is submitted"


@pytest.mark.skipif(not WHOLE, reason="PERSONA_LAB_SLURM_CONFIG names no experiment to run whole")
def test_a_whole_experiment_whose_cells_have_two_processes_each_is_that_of_a_local_run(slurm: Slurm, tmp_path: Path):
    runs, alone = tmp_path / "cluster", tmp_path / "alone"
    settings = [f"machine.{setting}" for setting in TOGETHER]
    lab(slurm, "launch", WHOLE, "--engine", "local", "--runs", str(alone), *settings)
    launched = lab(slurm, "launch", WHOLE, "--engine", "slurm", "--runs", str(runs), "machine.cluster.partition=all", *settings)
    assert launched["jobs"] == 2
    assert "--num_machines 1 --num_processes 2" in launched["files"]["worker.sh"]
    array, report = launched["ids"]
    name = Path(launched["run"]).name
    stages = lab(slurm, "status", name, "--runs", str(runs))["kinds"]["stage"]["planned"]
    # A third of the stages is half of the work: injections come first, and are longer.
    until(lambda: 3 * trained(runs) >= stages and len(under_way(runs)) == 2, 60 * MINUTES, "half of the work was not done")
    before, lost = trained(runs), lose_a_node(slurm, array)
    ended = until_all_ended(slurm, name, runs, launched["ids"], 60)
    said = logs(runs, name)
    assert ended == {f"{array}_0": "done", f"{array}_1": "done", report: "done"}, said
    starts = re.findall(rf"{array}_\d on n\d, start \d", said)
    assert f"{lost} on n" in said
    assert len(starts) == 3, starts
    assert went_on(runs), "what the node was training goes on from its checkpoint"
    assert lab(slurm, "resume", name, "--runs", str(runs))["ids"] == [], "nothing is missing, nothing is submitted"

    until(lambda: "running" not in jobs(slurm, name, alone).values(), 60 * MINUTES, "the local run does not end", every=5)
    assert set(jobs(slurm, name, alone).values()) == {"done"}, logs(alone, name)
    table = open_run(runs / name).table()
    print(f"{name}: {before} of {stages} stages when {lost} lost its node; {', '.join(starts)}; {len(table)} rows")
    pd.testing.assert_frame_equal(table, open_run(alone / name).table(), check_exact=True)


def test_a_job_that_is_told_to_stop_queues_itself_and_one_that_is_cancelled_does_not(slurm: Slurm, tmp_path: Path):
    config = sweep(tmp_path, "stopped", ratios=(0.0,), cluster={"partition": "all", "cpus": 2, "processes": 2, "jobs": 1})
    launched = lab(slurm, "launch", str(config), "--engine", "slurm", "--runs", str(tmp_path))
    array, report = launched["ids"]
    assert launched["jobs"] == 1
    until(lambda: "training" in logs(tmp_path, "stopped"), 8 * MINUTES, "nothing was trained")
    # What a controller sends before the time is over.
    slurm.call("scancel", "--batch", "--signal=USR1", f"{array}_0")
    until(lambda: queue(slurm, array)[f"{array}_0"].startswith("PENDING"), 8 * MINUTES, "it does not stop")
    assert "Stopped by a signal. What is finished is kept" in logs(tmp_path, "stopped")
    [*_, last] = lab(slurm, "status", "stopped", "--runs", str(tmp_path))["jobs"]
    assert (last["job"], last["said"]) == (report, "(Dependency)"), "in Slurm's own words"
    slurm.call("scontrol", "update", f"JobId={array}_0", "StartTime=now")
    until(lambda: "start 2" in logs(tmp_path, "stopped"), MINUTES, "it does not start again")

    assert lab(slurm, "cancel", "stopped", "--runs", str(tmp_path))["cancelled"].keys() == {f"{array}_0", report}
    until(lambda: slurm.call("squeue", "-h") == "", MINUTES, "it is queued again")

    again = lab(slurm, "resume", "stopped", "--runs", str(tmp_path))
    ended = until_all_ended(slurm, "stopped", tmp_path, again["ids"])
    assert ended == {f"{again['ids'][0]}_0": "done", again["ids"][1]: "done"}, logs(tmp_path, "stopped")
    assert (find_run("stopped", tmp_path) / "report.html").exists()


def test_a_job_of_two_machines_trains_each_cell_on_both(slurm: Slurm, tmp_path: Path):
    cluster = {"partition": "all", "cpus": 2, "nodes": 2, "processes": 1, "jobs": 1}
    config = sweep(tmp_path, "both", steps=4, ratios=(0.0,), cluster=cluster, data_parallel=True)
    launched = lab(slurm, "launch", str(config), "--engine", "slurm", "--runs", str(tmp_path))
    assert launched["jobs"] == 1
    assert "--num_machines 2 --num_processes 2" in launched["files"]["worker.sh"]
    array, report = launched["ids"]
    assert until_all_ended(slurm, "both", tmp_path, launched["ids"]) == {f"{array}_0": "done", report: "done"}, logs(tmp_path, "both")
    both, one = open_run(tmp_path / "both").table(), alone(sweep(tmp_path, "both", steps=4, ratios=(0.0,)))
    np.testing.assert_allclose(both["logprob_nats"], one["logprob_nats"], atol=1e-4)


@pytest.mark.parametrize("cluster", [{"partition": "nowhere"}, {"report": ["--partition=nowhere"]}], ids=["workers", "report"])
def test_a_cluster_that_rejects_says_why_and_nothing_is_submitted(slurm: Slurm, tmp_path: Path, cluster: dict[str, Any]):
    config = sweep(tmp_path, "refused", cluster={"cpus": 2} | cluster)
    said = lab(slurm, "launch", str(config), "--engine", "slurm", "--runs", str(tmp_path), code=5)["said"]
    assert "PL5302" in said
    assert "invalid partition" in said
    assert "Traceback" not in said
    assert slurm.call("squeue", "-h") == ""
    assert not list((find_run("refused", tmp_path) / "launch").iterdir())
