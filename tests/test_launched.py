"""What was launched: what a job does, and that it runs the files and the code as they were."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from scheduler import calls, shim
from test_experiment import BRIEF, silent, write_config
from test_job_scripts import job
from test_launch import two_jobs

from persona_lab.config.cluster import Cluster
from persona_lab.errors import EnvironmentFault
from persona_lab.experiment.launching import frozen_plan, last, launch
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.reading.status import status
from persona_lab.experiment.working import aggregate, work
from persona_lab.launch.engine import CODE
from persona_lab.launch.frozen import Submission
from persona_lab.launch.slurm import Slurm

pytestmark = pytest.mark.usefixtures("from_the_root")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return two_jobs(tmp_path)


# ------------------------------------------------------------------ what a job does
def test_a_job_that_was_given_no_gpu_does_not_train_on_the_cpu(tmp_path: Path, shims: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)  # whatever this machine has
    launch(two_jobs(tmp_path, device="auto", cluster={"gpus": 2, "processes": 1}), "slurm")
    submission = last(next((tmp_path / "runs").glob("tiny-*")))
    with Interruption() as interruption, pytest.raises(EnvironmentFault, match=r"PL5208.*torch sees 1 GPUs here, and machine.cluster.gpus asked for 2.*gpu_directive"):
        work(submission, silent, interruption)
    assert not (tmp_path / "runs" / "store").exists() or not list((tmp_path / "runs" / "store").glob("*/*/COMMIT"))


@pytest.mark.parametrize(
    ("state", "worker", "requeue", "asked", "left"),
    [
        ("RUNNING", "exit 0", "exit 0", False, "0"),
        ("RUNNING", "exit 3", "exit 0", False, "3"),
        ("RUNNING", 'touch "$PERSONA_LAB_AGAIN"; exit 1', "exit 0", True, None),
        ("RUNNING", 'touch "$PERSONA_LAB_AGAIN"; exit 1', "exit 1", True, "1"),
        ("CANCELLED", 'touch "$PERSONA_LAB_AGAIN"; exit 1', "exit 0", False, "1"),
        ("RUNNING", 'kill -USR1 "$PPID"; sleep 0.3; exit 1', "exit 0", True, None),
        ("RUNNING", 'kill -USR1 "$PPID"; sleep 0.3; exit 0', "exit 0", False, "0"),
    ],
    ids=["done", "failed", "stopped", "cannot be queued again", "cancelled", "told to stop", "told to stop when done"],
)
def test_a_job_queues_itself_again_only_when_it_was_stopped(tmp_path: Path, shims: Path, state: str, worker: str, requeue: str, asked: bool, left: str | None):
    folder = tmp_path / "launch" / "1"
    (folder / "again").mkdir(parents=True)
    for name, text in Slurm().files(job(Cluster(), 1, 1, folder)).items():
        (folder / name).write_text(text)
    shim(shims, "squeue", f'[[ "$*" == *"-j 11_0 "* ]] && echo {state} || echo "RUNNING\nRUNNING"')  # by the number alone it may tell of the whole array
    shim(shims, "scontrol", f'case "$*" in requeue*) {requeue} ;; esac')
    shim(shims, "srun", worker)
    variables = {"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n1"}
    done = subprocess.run(["bash", str(folder / "job.sh")], env=os.environ | variables, capture_output=True, text=True, timeout=60)
    assert ("scontrol requeue 11_0" in calls(shims)) == asked
    file = folder / "exits" / "11_0"
    assert (file.read_text().strip() if file.exists() else None) == left
    assert done.returncode == (75 if left is None else int(left))
    assert ("scancel --signal=TERM 12.0" in calls(shims)) == worker.startswith("kill")


# ------------------------------------------------------------------ what is frozen
def test_a_frozen_run_is_that_of_the_files_as_they_were(tmp_path: Path, shims: Path, monkeypatch: pytest.MonkeyPatch):
    for file in (ROOT / "configs").rglob("*.yaml"):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    monkeypatch.chdir(tmp_path)
    machine = {"threads": 1, "stack": 3, "wandb": "disabled", "cluster": {"setup": ["module load x"], "accelerate": "configs/ddp.yaml"}}
    (tmp_path / "configs" / "ddp.yaml").write_text("distributed_type: MULTI_CPU\n")
    plan = make_plan(write_config(tmp_path, machine=machine), BRIEF, tmp_path / "runs")
    assert launch(plan, "slurm")
    shutil.rmtree(tmp_path / "configs")
    (tmp_path / "tiny.yaml").unlink()
    frozen = frozen_plan(last(plan.folder))
    assert [node.id for node in frozen.nodes] == [node.id for node in plan.nodes]
    assert frozen.folder.name == plan.folder.name
    assert frozen.loaded.experiment == plan.loaded.experiment
    before = (plan.folder / "config.yaml").read_text()
    frozen.write()
    assert (plan.folder / "config.yaml").read_text() == before
    assert (last(plan.folder).folder / "accelerate.yaml").read_text() == "distributed_type: MULTI_CPU\n"


def test_the_frozen_code_runs_and_any_other_is_refused(plan: Plan, shims: Path):
    launch(plan, "slurm")
    submission = last(plan.folder)
    said = frozen(submission, "-c", WHERE, str(submission.folder))
    assert said.stdout.splitlines() == [str(submission.folder / CODE / "persona_lab" / "__init__.py"), str(submission.commit)]
    edited = submission.folder / CODE / "persona_lab" / "design.py"
    edited.write_text(edited.read_text() + "# edited\n")
    done = frozen(submission, "-m", "persona_lab", "work", str(submission.folder))
    assert done.returncode == 5
    assert "PL5304" in done.stderr


WHERE = """
import sys, pathlib, persona_lab
from persona_lab.launch.frozen import check_code, read_submission
from persona_lab.store.versions import git_commit
check_code(read_submission(pathlib.Path(sys.argv[1])))
print(persona_lab.__file__, git_commit(), sep="\\n")
"""


def frozen(submission: Submission, *command: str) -> subprocess.CompletedProcess[str]:
    """Python with the environment of a job."""
    environment = os.environ | job(Cluster(), 1, 1, submission.folder).environment
    return subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True)


def test_what_a_report_finds_missing_is_said_with_what_to_do(plan: Plan, shims: Path):
    launch(plan, "slurm")
    submission = last(plan.folder)
    (submission.folder / "failed" / "n1-7-0.json").write_text(json.dumps({plan.names[plan.cells[0].scores[0][1].id]: "the loss is not finite"}))
    shown, problems = aggregate(submission, silent)
    assert shown is None
    said = [problem.message for problem in problems]
    assert said[0] == "has no scores: the loss is not finite."
    assert said[1].startswith("7 of 8 scores are missing")
    assert said[1].endswith(f"Use `persona-lab resume {plan.folder.name}`.")
    assert status(plan)["failed"].keys() == {problems[0].where}
