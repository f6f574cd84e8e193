"""Launching: what Slurm is asked and told, and that nothing is submitted twice."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config import config_args
from scheduler import calls, shim
from test_experiment import BRIEF, write_config
from test_job_scripts import job

from persona_lab.cli.experiments import status_words
from persona_lab.config.cluster import Cluster
from persona_lab.errors import ConfigError, EnvironmentFault
from persona_lab.experiment import launching
from persona_lab.experiment.launching import cancel, last, launch, missing_work, resume
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.reading.status import status
from persona_lab.launch.engine import ENGINES, accelerated, engine_named
from persona_lab.launch.frozen import Submission, following, submissions

pytestmark = pytest.mark.usefixtures("from_the_root")


# ------------------------------------------------------------------ what Slurm is asked and told
@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return two_jobs(tmp_path)


def two_jobs(folder: Path, **machine: Any) -> Plan:
    """A plan that a cluster would make by two jobs of two processes."""
    asked = {"device": "cpu", "threads": 1, "workers": 1, "wandb": "disabled", "cluster": {"jobs": 2, "processes": 2}}
    return make_plan(write_config(folder, machine=asked | machine), BRIEF, folder / "runs")


def test_an_array_and_its_report_are_submitted_once(plan: Plan, shims: Path):
    launched = launch(plan, "slurm")
    assert launched is not None
    assert launched.ids == ["11", "12"]
    called = [line.partition(" --job-name")[0] for line in calls(shims)]
    assert called == ["sbatch --test-only", "sbatch --test-only", "sbatch --parsable", "sbatch --parsable --dependency=afterany:11"]
    shim(shims, "squeue", 'case "$*" in *jobs=11*) echo "11_0 RUNNING"; echo "11_1 PENDING";; *) echo "12 PENDING";; esac')
    with pytest.raises(EnvironmentFault, match=r"PL5305.*11_0 running, 11_1 queued, 12 queued.*cancel"):
        launch(plan, "slurm")
    assert len([line for line in calls(shims) if line.startswith("sbatch")]) == 4
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
        (
            'case "$*" in *--test-only*report.sh) echo "no GPU, no job" >&2; exit 1 ;; esac',
            "PL5302.*no GPU, no job.*",
            ["sbatch --test-only", "sbatch --test-only"],
        ),
        ('case "$*" in *--test-only*) ;; *) echo "failed: QOS limit" >&2; exit 1 ;; esac', "QOS limit", ["sbatch --test-only", "sbatch --test-only", "sbatch --parsable"]),
        (
            'case "$*" in *--test-only*) ;; *--dependency*) echo "full" >&2; exit 1 ;; *) echo 11 ;; esac',
            "PL5302.*full",
            ["sbatch --test-only", "sbatch --test-only", "sbatch --parsable", "sbatch --parsable --dependency=afterany:11", "scancel 11"],
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


def test_what_a_cluster_may_have_taken_is_kept_as_a_submission_that_was_cut_off(plan: Plan, shims: Path):
    shim(shims, "sbatch", 'case "$*" in *--test-only*) ;; *) echo "welcome" ;; esac')
    with pytest.raises(EnvironmentFault, match=r"PL5303.*no job id, got 'welcome'.*persona-lab cancel"):
        launch(plan, "slurm")
    assert last(plan.folder).ids is None
    assert f"--job-name={last(plan.folder).name} " in calls(shims)[-1], "by which it will be found"


def test_only_what_has_not_ended_is_cancelled(plan: Plan, shims: Path):
    launch(plan, "slurm")
    unknown = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'
    shim(shims, "squeue", f'case "$*" in *jobs=11*) {unknown} ;; *) echo "12 PENDING" ;; esac')
    assert cancel(plan.folder) == {"12": "queued"}
    assert "scancel 12" in calls(shims), "of an array that it has forgotten Slurm would say that there is none"


def test_a_worker_of_several_processes_needs_several(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"PL1313.*machine.cluster.processes"):
        launch(two_jobs(tmp_path, data_parallel=True, cluster={"processes": 1}), "slurm", dry_run=True)


def test_of_two_that_launch_at_once_one_does(plan: Plan, shims: Path, monkeypatch: pytest.MonkeyPatch):
    def quicker(run: Path) -> None:
        (following(run).parent).mkdir(parents=True, exist_ok=True)
        following(run).mkdir()

    monkeypatch.setattr(launching, "check_idle", quicker)  # the other one, between our look and our claim
    with pytest.raises(EnvironmentFault, match=r"PL5305.*somebody else"):
        launch(plan, "slurm")
    assert calls(shims) == []


def test_of_two_that_freeze_at_once_one_is_submitted(plan: Plan, shims: Path, monkeypatch: pytest.MonkeyPatch):
    freeze = launching._freeze

    def together(plan: Plan, *arguments: Any) -> Submission:
        """Both have looked at the run, and have folders of their own."""
        monkeypatch.setattr(launching, "_freeze", freeze)
        launch(plan, "slurm")
        return freeze(plan, *arguments)

    monkeypatch.setattr(launching, "_freeze", together)
    shim(shims, "squeue", 'case "$*" in *jobs=11*) echo "11_0 PENDING";; *) echo "12 PENDING";; esac')
    with pytest.raises(EnvironmentFault, match=r"PL5305.*11_0 queued"):
        launch(plan, "slurm")
    assert [submission.ids for submission in submissions(plan.folder)] == [["11", "12"]]


def test_a_scheduler_that_does_not_answer_hides_no_status(plan: Plan, shims: Path):
    launch(plan, "slurm")
    shim(shims, "squeue", 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')
    found = status(plan)["jobs"]
    assert [(job["job"], job["state"]) for job in found] == [("11", None), ("12", None)]
    assert "Unable to contact slurm controller" in found[0]["said"]


def test_a_scheduler_that_is_gone_for_good_blocks_nothing_once_its_jobs_are_forgotten(plan: Plan, shims: Path):
    launch(plan, "slurm")
    answering = (shims / "squeue").read_text()
    shim(shims, "squeue", 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')
    for verb in (lambda: launch(plan, "slurm"), lambda: cancel(plan.folder)):
        with pytest.raises(EnvironmentFault, match=rf"PL5302.*Unable to contact.*persona-lab cancel {plan.folder.name} --forget"):
            verb()
    assert cancel(plan.folder, forget=True) == {"11": "lost", "12": "lost"}
    assert cancel(plan.folder, forget=True) == {}
    assert [(job["job"], job["state"]) for job in status(plan)["jobs"]] == [("11", "lost"), ("12", "lost")]
    shim(shims, "squeue", 'case "$*" in *jobs=11*) echo "11_0 PENDING (Priority)";; *) echo "12 COMPLETED (None)" ;; esac')
    assert cancel(plan.folder) == {"11_0": "queued"}, "it is back, and they can be ended after all"
    (shims / "squeue").write_text(answering)
    again = launch(plan, "slurm")
    assert again is not None
    assert again.job.folder.name == "2"


def test_a_local_job_of_another_machine_is_said_to_be_there_and_can_be_forgotten(plan: Plan, shims: Path):
    launch(plan, "slurm")
    submission = replace(last(plan.folder), engine="local")
    submission.write()
    submission.submitted(["4711.1234@elsewhere"])
    [job] = status(plan)["jobs"]
    assert (job["state"], job["said"]) == ("running", "on elsewhere, which is not this machine: it may be gone")
    assert "local      4711.1234@elsewhere running, on elsewhere, which is not this machine" in status_words(status(plan))
    with pytest.raises(EnvironmentFault, match=r"PL5305.*4711\.1234@elsewhere running"):
        launch(plan, "slurm")
    with pytest.raises(EnvironmentFault, match=rf"PL5302.*Cancel it on elsewhere\. If it is gone for good, use `persona-lab cancel {plan.folder.name} --forget`"):
        cancel(plan.folder)
    assert cancel(plan.folder, forget=True) == {"4711.1234@elsewhere": "lost"}
    assert launch(plan, "slurm") is not None


def test_status_says_why_a_job_waits_where_it_runs_and_that_one_could_write_nothing(plan: Plan, shims: Path):
    launched = launch(plan, "slurm")
    assert launched is not None
    array = 'echo "11_0 RUNNING node[1-2]"; echo "11_1 PENDING (QOSMaxGRESPerUser, see sinfo)"; echo "11_2 PENDING (None)"'
    shim(shims, "squeue", f'case "$*" in *jobs=11*) {array} ;; *) echo "12 FAILED (NonZeroExitCode)" ;; esac')
    said = {job["job"]: (job["state"], job.get("said")) for job in status(plan)["jobs"]}
    unseen = f"it wrote no log: it never began, or its machine does not see {launched.job.folder}"
    assert said == {"11_0": ("running", "node[1-2]"), "11_1": ("queued", "(QOSMaxGRESPerUser, see sinfo)"), "11_2": ("queued", None), "12": ("failed", unseen)}


def test_who_launches_from_within_a_job_hands_nothing_of_it_on(plan: Plan, shims: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"SLURM_CPUS_PER_TASK": "64", "SLURM_MEM_PER_NODE": "9", "SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "lab"}.items():
        monkeypatch.setenv(name, value)
    shim(shims, "sbatch", 'env >> "$CALLS"; echo 11')
    launch(plan, "slurm")
    seen = calls(shims)
    assert "SLURM_CONF=/etc/slurm.conf" in seen
    assert "SBATCH_ACCOUNT=lab" in seen, "what its user has set for sbatch is meant for it"
    assert not [line for line in seen if line.startswith(("SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE"))]


@pytest.mark.parametrize(
    ("engine", "fields"),
    [("local", "partition time gpus gpu_type jobs infra"), ("slurm", "infra"), ("ray", "partition time infra"), ("sky", "partition time")],
)
def test_settings_of_other_engines_are_named_and_change_nothing(tmp_path: Path, engine: str, fields: str):
    asked = {"partition": "gpu", "time": "8:00:00", "gpus": 1, "gpu_type": "a100", "jobs": 2, "infra": "ssh/nodes"}
    looked = launch(two_jobs(tmp_path, cluster=asked), engine, dry_run=True)
    assert looked is not None
    [warning] = looked.warnings
    assert warning.startswith(f"the engine {engine} takes no notice of machine.cluster.")
    assert {word.strip(",").removeprefix("machine.cluster.") for word in warning.split(" of ")[1].split()} == set(fields.split())
    plain = launch(two_jobs(tmp_path, cluster={"infra": "ssh/nodes"} if engine == "sky" else {}), engine, dry_run=True)
    assert plain is not None
    assert plain.warnings == []


def test_what_heeds_a_field_names_a_field():
    for name in ENGINES:
        assert engine_named(name).heeds <= set(Cluster.model_fields)
    assert set(Cluster.model_fields) == frozenset().union(*(engine_named(name).heeds for name in ENGINES)), "each is for somebody"


def test_the_answers_to_accelerate_config_do_not_reach_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    answers = tmp_path / "default_config.yaml"
    told = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "gpu_ids": "0", "num_machines": 1, "num_processes": 1, "mixed_precision": "bf16"}
    told |= {"machine_rank": 0, "main_training_function": "main", "same_network": True, "use_cpu": False, "debug": False}
    answers.write_text(json.dumps(told))
    # accelerate reads the user's own answers from a path that it fixes when it is imported.
    monkeypatch.setattr(accelerate_launch, "default_config_file", str(answers))
    monkeypatch.setattr(config_args, "default_config_file", str(answers))
    words = shlex.split(accelerated(job(Cluster(gpus=4), 1, 4)))
    parsed = accelerate_launch.launch_command_parser().parse_args(words[words.index("accelerate.commands.launch") + 1 :])
    args, defaults, _ = accelerate_launch._validate_launch_command(parsed)
    assert defaults is not None
    assert defaults.gpu_ids == "0", "it has read them"
    assert (args.gpu_ids, args.num_processes, args.mixed_precision, args.multi_gpu) == ("all", 4, "no", True)
