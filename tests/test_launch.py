"""Launching: what is written for each engine, what Slurm is asked and told, what is frozen, and that nothing is submitted twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from pydantic import ValidationError
from test_experiment import BRIEF, keyed, silent, write_config

from persona_lab.config.cluster import Cluster, minutes_of
from persona_lab.config.load import load_experiment
from persona_lab.errors import ConfigError, EnvironmentFault
from persona_lab.experiment import launching
from persona_lab.experiment.launching import cancel, frozen_plan, last, launch, missing_work, resume
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.reading.status import status
from persona_lab.experiment.run import make_nodes
from persona_lab.experiment.working import aggregate
from persona_lab.launch.engine import CODE, Engine, Job
from persona_lab.launch.frozen import Submission, following, submissions
from persona_lab.launch.local import Local
from persona_lab.launch.slurm import Slurm
from persona_lab.launch.states import jobs_of
from persona_lab.store import Store
from persona_lab.store.lease import Leases

pytestmark = pytest.mark.usefixtures("from_the_root")
GOLDEN = ROOT / "tests" / "golden" / "launch"
GPUS = Cluster(partition="gpu", account="lab", qos="high", time="1-12:00:00", gpus=4, cpus=32, memory="256G", jobs=8, at_once=3)
GPUS = GPUS.model_copy(update={"extra": ["--constraint=[a100|h100]"], "setup": ["module load cuda/12"]})
SHARDED = Cluster(gpus=8, gpu_directive="gres", nodes=2, accelerate="configs/accelerate/fsdp2.yaml")
GOLDENS: list[tuple[str, Engine, Cluster, int, int]] = [
    ("local", Local(), Cluster(), 1, 2),
    ("slurm_gpus", Slurm(), GPUS, 8, 4),
    ("slurm_two_machines_a_job", Slurm(), SHARDED, 2, 8),
    ("slurm_one_process", Slurm(), Cluster(gpu_directive="none"), 3, 1),
]


def job(cluster: Cluster, jobs: int, processes: int, folder: Path = Path("/shared/runs/quickstart-16bab757/launch/1"), **changes: Any) -> Job:
    command = ("-m", "persona_lab", "work", str(folder))
    python, directory = "/shared/env/bin/python", Path("/home/ada/lab")
    made = Job("persona-lab-quickstart-16bab757-1", folder, command, (*command, "--report"), python, directory, jobs, processes, cluster)
    return replace(made, **changes)


# ------------------------------------------------------------------ what is written
@pytest.mark.parametrize(("name", "engine", "cluster", "jobs", "processes"), GOLDENS, ids=[golden[0] for golden in GOLDENS])
def test_files_and_commands_are_those_of_the_golden_files(name: str, engine: Engine, cluster: Cluster, jobs: int, processes: int):
    asked = job(cluster, jobs, processes)
    written = engine.files(asked) | {"commands.txt": "".join(" ".join(command) + "\n" for command in engine.commands(asked))}
    assert written == {file.name: file.read_text() for file in (GOLDEN / name).iterdir()}


@pytest.mark.parametrize("script", sorted(GOLDEN.rglob("*.sh")), ids=lambda f: f"{f.parent.name}/{f.name}")
def test_every_golden_script_is_a_script(script: Path):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize("engine", [Local(), Slurm()])
@pytest.mark.parametrize("processes", [1, 2])
def test_no_name_of_a_folder_breaks_out_of_a_script(tmp_path: Path, engine: Engine, processes: int):
    folder = tmp_path / "it's $(touch broken) \"x\" `touch broken`; touch broken #"
    folder.mkdir()
    show_me = folder / "python $1"
    show_me.write_text('#!/bin/bash\nprintf "%s\\n" "$@" "$PYTHONPATH" "$PWD" > "${PYTHONPATH%/code}/seen"\n')
    show_me.chmod(0o755)
    asked = job(Cluster(), 1, processes, folder, python=str(show_me), directory=folder)
    for name, text in engine.files(asked).items():
        (folder / name).write_text(text)
    done = subprocess.run(["bash", str(folder / "worker.sh")], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    seen = (folder / "seen").read_text().splitlines()
    assert seen[-6:] == [*asked.worker, str(folder / CODE), str(folder)]
    assert not list(tmp_path.rglob("broken"))
    for script in ("job.sh", "report.sh"):
        assert subprocess.run(["bash", "-n", str(folder / script)], capture_output=True, text=True).stderr == ""
        assert "touch broken" not in [line.strip() for line in (folder / script).read_text().splitlines()]


HOSTILE = {
    "partition": "gpu\n#SBATCH --uid=0",
    "account": "a; rm -rf /",
    "qos": "$(id)",
    "time": "soon",
    "gpus": -1,
    "gpu_directive": "gpus",
    "cpus": 0,
    "memory": "64 G",
    "jobs": 0,
    "at_once": 0,
    "nodes": 0,
    "processes": 0,
    "setup": ["module load a\nrm -rf /"],
    "extra": ["--wrap=rm -rf /", "-p gpu"],
    "unknown": 1,
}


def test_what_a_scheduler_would_not_understand_is_told_at_once_with_its_place(tmp_path: Path):
    config = write_config(tmp_path, machine={"cluster": HOSTILE})
    with pytest.raises(ConfigError) as caught:
        load_experiment(config, [])
    said = [problem.message for problem in caught.value.problems]
    for field in HOSTILE:
        assert [message for message in said if f"machine.cluster.{field}" in message or (field == "unknown" and "'unknown'" in message)], field
    assert all(str(config) in problem.where for problem in caught.value.problems)


@pytest.mark.parametrize(("time", "minutes"), [("90", 90), ("90:30", 90.5), ("1:30:00", 90), ("1-12", 2160), ("2-01:30", 2970), ("1-12:00:30", 2160.5)])
def test_a_time_is_read_as_sbatch_documents_it(time: str, minutes: float):
    assert minutes_of(time) == minutes
    assert Cluster(time=time).time == time


def test_a_time_in_which_no_job_could_do_anything_is_refused():
    with pytest.raises(ValidationError, match="at least 10 minutes"):
        Cluster(time="9:59")


# ------------------------------------------------------------------ what Slurm is asked and told
@pytest.fixture
def shims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs named like Slurm's; each writes down how it was called and does what a test says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(folder / "calls"))
    for name in ("sbatch", "squeue", "scontrol", "scancel", "srun"):
        shim(folder, name, "exit 0")
    shim(folder, "sbatch", 'case "$*" in *--test-only*) ;; *--dependency*) echo 12 ;; *) echo "11;cluster" ;; esac')
    return folder


def shim(folder: Path, name: str, does: str) -> None:
    (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "$CALLS"\n{does}\n')
    (folder / name).chmod(0o755)


def calls(folder: Path) -> list[str]:
    file = folder / "calls"
    return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    config = write_config(tmp_path, machine={"device": "cpu", "threads": 1, "workers": 1, "wandb": "disabled", "cluster": {"jobs": 2, "processes": 2}})
    return make_plan(config, BRIEF, tmp_path / "runs")


def test_an_array_and_its_report_are_submitted_once(plan: Plan, shims: Path):
    launched = launch(plan, "slurm")
    assert launched is not None
    assert launched.ids == ["11", "12"]
    called = [line.partition(" --job-name")[0] for line in calls(shims)]
    assert called == ["sbatch --test-only", "sbatch --parsable", "sbatch --parsable --dependency=afterany:11"]
    shim(shims, "squeue", 'case "$*" in *jobs=11*) echo "11_0 RUNNING"; echo "11_1 PENDING";; *) echo "12 PENDING";; esac')
    with pytest.raises(EnvironmentFault, match=r"PL5305.*11_0 running, 11_1 queued, 12 queued.*cancel"):
        launch(plan, "slurm")
    assert len([line for line in calls(shims) if line.startswith("sbatch")]) == 3
    # Some minutes after their end the controller knows none of them: exit codes were left, or were not.
    shim(shims, "squeue", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    (launched.job.folder / "exits" / "11_0").write_text("0\n")
    (launched.job.folder / "exits" / "12").write_text("1\n")
    (launched.job.folder / "logs" / "12.log").write_text("error\n")
    found = {job["job"]: (job["state"], job["log"]) for job in status(plan)["jobs"]}
    assert found == {"11_0": ("done", None), "12": ("failed", str(launched.job.folder / "logs" / "12.log"))}
    again = resume(plan.folder)
    assert again is not None
    assert again.job.folder.name == "2"


def test_no_more_jobs_are_asked_for_than_there_is_work(plan: Plan):
    assert missing_work(plan) == 5, "two injections, and a trait stage after each and after none"
    sizes = {jobs: _jobs(plan, jobs, processes) for jobs, processes in ((2, 2), (9, 2), (9, 1), (1, 8))}
    assert sizes == {2: 2, 9: 5, 1: 1}
    assert _jobs(plan, 9, 2) == 3, "two trajectories for each job"


def _jobs(plan: Plan, jobs: int, processes: int) -> int:
    experiment = plan.loaded.experiment
    machine = experiment.machine.model_copy(update={"cluster": Cluster(jobs=jobs, processes=processes)})
    asked = replace(plan, loaded=replace(plan.loaded, experiment=experiment.model_copy(update={"machine": machine})))
    looked = launch(asked, "slurm", dry_run=True)
    assert looked is not None
    return looked.job.jobs


def test_a_dry_run_writes_and_calls_nothing(plan: Plan, shims: Path):
    looked = launch(plan, "slurm", dry_run=True)
    assert looked is not None
    assert looked.ids == []
    assert "#SBATCH --array=0-1" in looked.files["job.sh"]
    assert not plan.folder.exists()
    assert calls(shims) == []


@pytest.mark.parametrize(
    ("does", "said", "called"),
    [
        ("echo 'sbatch: error: invalid partition specified: x' >&2; exit 1", "PL5302.*invalid partition specified: x", ["sbatch --test-only"]),
        ('case "$*" in *--test-only*) ;; *) echo "failed: QOS limit" >&2; exit 1 ;; esac', "QOS limit", ["sbatch --test-only", "sbatch --parsable"]),
        ('case "$*" in *--test-only*) ;; *) echo "welcome" ;; esac', "no job id, got 'welcome'", ["sbatch --test-only", "sbatch --parsable"]),
        (
            'case "$*" in *--test-only*) ;; *--dependency*) echo "full" >&2; exit 1 ;; *) echo 11 ;; esac',
            "PL5302.*full",
            ["sbatch --test-only", "sbatch --parsable", "sbatch --parsable --dependency=afterany:11", "scancel 11"],
        ),
    ],
)
def test_a_cluster_that_rejects_is_quoted_and_nothing_stays_in_its_queue(plan: Plan, shims: Path, does: str, said: str, called: list[str]):
    shim(shims, "sbatch", does)
    with pytest.raises(EnvironmentFault, match=said):
        launch(plan, "slurm")
    assert [line.partition(" --job-name")[0] for line in calls(shims)] == called
    assert submissions(plan.folder) == []


def test_an_engine_that_is_absent_is_told_before_anything_is_written(plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"PL5301.*sbatch.*login node"):
        launch(plan, "slurm")
    assert not plan.folder.exists()


def test_a_submission_that_was_cut_off_is_neither_repeated_nor_forgotten(plan: Plan, shims: Path):
    launched = launch(plan, "slurm")
    assert launched is not None
    (launched.job.folder / "jobs.json").unlink()  # killed after sbatch, before it was written down
    with pytest.raises(EnvironmentFault, match=rf"PL5305.*{launched.job.name}.*persona-lab cancel"):
        launch(plan, "slurm")
    shim(shims, "squeue", 'case "$*" in *--name*) echo "11_[0-1]"; echo 12 ;; *jobs=11*) echo "11_0 PENDING" ;; *) echo "12 PENDING" ;; esac')
    assert cancel(plan.folder) == {"11_0": "queued", "12": "queued"}
    assert "scancel 11 12" in calls(shims)
    assert last(plan.folder).ids == ["11", "12"]


def test_of_two_that_launch_at_once_one_does(plan: Plan, shims: Path, monkeypatch: pytest.MonkeyPatch):
    def quicker(run: Path) -> None:
        (following(run).parent).mkdir(parents=True, exist_ok=True)
        following(run).mkdir()

    monkeypatch.setattr(launching, "check_idle", quicker)  # the other one, between our look and our claim
    with pytest.raises(EnvironmentFault, match=r"PL5305.*somebody else"):
        launch(plan, "slurm")
    assert calls(shims) == []


def test_a_scheduler_that_does_not_answer_hides_no_status(plan: Plan, shims: Path):
    launch(plan, "slurm")
    shim(shims, "squeue", 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')
    found = status(plan)["jobs"]
    assert [(job["job"], job["state"]) for job in found] == [("11", None), ("12", None)]
    assert "Unable to contact slurm controller" in found[0]["said"]


# ------------------------------------------------------------------ what a job does
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
    shim(shims, "squeue", f"echo {state}")
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


# ------------------------------------------------------------------ this machine
def started(folder: Path, code: str, report: str = "pass") -> tuple[Path, list[str]]:
    """A job in the background that runs lines of Python in the place of a worker."""
    for name in ("logs", "exits"):
        (folder / name).mkdir(parents=True)
    asked = job(Cluster(), 1, 1, folder, python=sys.executable, directory=folder, worker=("-c", code), aggregate=("-c", report))
    for name, text in Local().files(asked).items():
        (folder / name).write_text(text)
    return folder, Local().submit(asked)


def ended(folder: Path, ids: list[str]) -> str:
    """The state of a job once its process has ended."""
    process = int(ids[0].partition(".")[0])
    if os.waitpid(process, 0)[0] == process:
        return Local().states(folder, ids)[ids[0]]
    raise AssertionError


@pytest.mark.parametrize(
    ("code", "report", "state"), [("pass", "print('shown')", "done"), ("exit(4)", "print('shown')", "failed"), ("pass", "exit(1)", "failed")]
)
def test_a_local_job_leaves_its_exit_code_and_its_log(tmp_path: Path, code: str, report: str, state: str):
    folder, ids = started(tmp_path / "1", code, report)
    assert ended(folder, ids) == state
    assert (folder / "logs" / f"{ids[0]}.log").read_text() == ("shown\n" if "shown" in report else "")


WAITS = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('kept').touch(), exit(75)))
pathlib.Path('ready').touch()
while True: time.sleep(1)
"""


def test_a_local_job_that_is_cancelled_lets_its_worker_finish_and_writes_no_report(tmp_path: Path):
    folder, ids = started(tmp_path / "1", WAITS, "print('shown')")
    while not (folder / "ready").exists():
        assert Local().states(folder, ids) == {ids[0]: "running"}
    Local().cancel(folder, ids)
    assert ended(folder, ids) == "cancelled"
    assert (folder / "kept").exists()
    assert "shown" not in (folder / "logs" / f"{ids[0]}.log").read_text()
    Local().cancel(folder, ids)  # once more: nobody is there


def test_a_local_job_that_was_killed_is_lost_and_one_on_another_machine_is_not(tmp_path: Path):
    folder, ids = started(tmp_path / "1", "import time; time.sleep(60)")
    os.killpg(int(ids[0].partition(".")[0]), signal.SIGKILL)
    assert ended(folder, ids) == "lost"
    start, host = ids[0].partition(".")[2].split("@")
    used_again = f"{os.getpid()}.{start}@{host}"
    assert Local().states(folder, [used_again]) == {used_again: "lost"}
    elsewhere = f"{os.getpid()}.{start}@another"
    assert Local().states(folder, [elsewhere]) == {elsewhere: "running"}
    with pytest.raises(EnvironmentFault, match="Cancel it on another"):
        Local().cancel(folder, [elsewhere])


def test_a_local_launch_of_two_processes_makes_the_table_of_a_run(plan: Plan, tmp_path: Path):
    launched = launch(plan, "local")
    assert launched is not None
    with pytest.raises(EnvironmentFault, match="PL5305"):
        launch(plan, "local")
    assert ended(launched.job.folder, launched.ids) == "done", jobs_of(plan.folder)
    assert launch(plan, "local") is None, "nothing is missing, nothing is submitted"
    manifests = [manifest for _, _, manifest in Store(tmp_path / "runs" / "store").nodes()]
    assert {manifest["git_commit"] for manifest in manifests} == {last(plan.folder).commit}
    alone = make_plan(tmp_path / "tiny.yaml", BRIEF, tmp_path / "alone")
    make_nodes(alone, silent)
    show(alone)
    together, one = (keyed(Run(each.folder).table()) for each in (plan, alone))
    assert list(together.index) == list(one.index)
    assert (together["logprob_nats"] - one["logprob_nats"]).abs().max() < 1e-4


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


OBSERVER = """
import socket, sys, time, pathlib
from persona_lab.store.lease import Leases
leases = Leases(pathlib.Path(sys.argv[1]), time.monotonic)
print(socket.gethostname(), time.monotonic(), flush=True)
for ttl in sys.stdin:
    print("taken" if leases.take("node", float(ttl)) else "held", flush=True)
"""


def test_a_lease_holds_between_machines_of_other_names_clocks_and_processes(tmp_path: Path):
    elsewhere = ["unshare", "--uts", "--time", "--monotonic", "86400", "--pid", "--fork", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*elsewhere, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces for another host name and another clock here")
    lease = Leases(tmp_path, time.monotonic).take("node", 60)
    assert lease is not None
    command = [*elsewhere, sys.executable, "-c", OBSERVER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as observer:
        assert observer.stdin is not None
        assert observer.stdout is not None

        def looks(ttl: float) -> str:
            print(ttl, file=observer.stdin, flush=True)
            return observer.stdout.readline().strip() if observer.stdout else ""

        host, clock = observer.stdout.readline().split()
        assert host == "elsewhere"
        assert float(clock) > time.monotonic() + 80_000, "a day ahead"
        assert looks(0) == "held", "what was never seen before is not silent"
        assert lease.renew()
        assert looks(0) == "held", "it beats"
        assert looks(60) == "held", "it is not silent for long enough"
        assert looks(0) == "taken", "it has not beaten since"
        assert not lease.held()
        assert not lease.renew(), "who lost it learns so before anything is written"
