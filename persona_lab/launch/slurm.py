"""Slurm: an array of workers, and a report that is made when the last of them has ended.

    persona-lab launch configs/ratio.yaml --engine slurm machine.cluster.partition=gpu machine.cluster.gpus=4

`job.sh` runs once for each task of the array, and `worker.sh` on each of its machines. A task that is asked to stop,
because its time ends or its machine is wanted, lets its workers keep their checkpoints and queues itself again.
Nothing needs accounting: states come from squeue, and from the exit code that every job leaves in `exits/`.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from persona_lab.config.cluster import Cluster
from persona_lab.errors import EnvironmentFault, Problem
from persona_lab.launch.engine import EXITS, GRACE_SECONDS, LIVE, LOGS, REPORT, WORKER, Job, State, ended, preamble, worker_script

ARRAY = "job.sh"
PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel")
NOTICE_SECONDS = GRACE_SECONDS + 30
"""Before the end of its time a job is told so."""
OF_A_JOB = ("SLURM_", "SLURMD_", "PMI_", "PMIX_")
"""How the variables that Slurm sets in a job begin."""
PATIENCE_SECONDS = 60
"""A controller that has not answered by then is said not to."""
BODY = """\
id="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
again={folder}/again/$SLURM_ARRAY_TASK_ID
rm -f "$again" {exits}/"$id"
export PERSONA_LAB_TASK="$SLURM_ARRAY_TASK_ID" PERSONA_LAB_AGAIN="$again"
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR="$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')"
export MASTER_PORT="$((20000 + SLURM_JOB_ID % 40000))"
echo "$id on $SLURM_JOB_NODELIST, start $((${{SLURM_RESTART_COUNT:-0}} + 1))"

# The signal reaches this shell alone. Its workers get another one, which srun would not pass on gently.
asked=
trap 'asked=yes; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1 TERM
# Since Slurm 22.05 srun asks for one core unless it is told otherwise.
srun --input=none --kill-on-bad-exit=1 ${{SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"}} bash {worker} &
step=$!
wait "$step"; code=$?
while kill -0 "$step" 2> /dev/null; do wait "$step"; code=$?; done

# A job that was cancelled is not running any more, and stays so. By $id: one task of an array has the number of the whole array for its own.
if [ "$code" -ne 0 ] && {{ [ -n "$asked" ] || [ -e "$again" ]; }} && [ "$(squeue -h -j "$id" -o %T)" = RUNNING ]; then
    scontrol requeue "$id" && exit 75
fi
mkdir -p {exits} && echo "$code" > {exits}/"$id"
exit "$code"
"""
STATES: dict[str, State] = {
    **dict.fromkeys(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"), "queued"),
    **dict.fromkeys(("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"), "running"),
    "COMPLETED": "done",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    **dict.fromkeys(("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED", "LAUNCH_FAILED"), "failed"),
}
"""What squeue says. PREEMPTED is where a cluster ends what it preempts: elsewhere such a job is pending again."""


class Slurm:
    """See `engine.Engine`."""

    heeds: ClassVar[frozenset[str]] = frozenset(Cluster.model_fields) - {"infra", "spot", "volume"}

    def missing(self) -> Problem | None:
        """Slurm's programs, where PATH lacks them."""
        lacking = [name for name in PROGRAMS if shutil.which(name) is None]
        if not lacking:
            return None
        return Problem("PL5301", "slurm", f"there is no {', '.join(lacking)} on this machine. Launch from a login node of the cluster, or use --engine local.")

    def files(self, job: Job) -> dict[str, str]:
        """The array, what it runs on each machine, and the report."""
        asked = job.resources
        array = [f"--array=0-{job.jobs - 1}" + (f"%{asked.at_once}" if asked.at_once else ""), f"--nodes={asked.nodes}", "--ntasks-per-node=1"]
        array += [f"--cpus-per-task={asked.cpus}"] if asked.cpus else []
        array += [f"--mem={asked.memory}"] if asked.memory else []
        if asked.gpus and asked.gpu_directive != "none":
            wanted = f"{asked.gpu_type}:{asked.gpus}" if asked.gpu_type else str(asked.gpus)
            array += [f"--gpus-per-node={wanted}" if asked.gpu_directive == "gpus-per-node" else f"--gres=gpu:{wanted}"]
        array += ["--open-mode=append", "--requeue", f"--signal=B:USR1@{NOTICE_SECONDS}"]
        paths = {"folder": job.folder, "worker": job.folder / WORKER, "exits": job.folder / EXITS}
        body = BODY.format(**{name: shlex.quote(str(path)) for name, path in paths.items()})
        # Each machine finds out its own rank: this shell knows that of the first one only.
        several = {"rank": '"$SLURM_NODEID"', "address": '"$MASTER_ADDR"', "port": '"$MASTER_PORT"'} if asked.nodes > 1 else {}
        return {
            ARRAY: "\n".join(["#!/bin/bash", *_directives(job, array), "", body]),
            WORKER: worker_script(job, **several),
            REPORT: _report(job, [*_directives(job, ["--nodes=1", "--ntasks=1", "--open-mode=append"]), *(f"#SBATCH {option}" for option in asked.report)]),
        }

    def commands(self, job: Job) -> list[list[str]]:
        """First a test of both, by the scheduler itself."""
        both = _array(job), _after(job)
        array, report = both
        return [*(["sbatch", "--test-only", *each] for each in both), ["sbatch", "--parsable", *array], ["sbatch", "--parsable", "--dependency=afterany:JOB", *report]]

    def submit(self, job: Job) -> list[str]:
        """The ids of the array and of the report. EnvironmentFault: PL5302, with what sbatch said; PL5303."""
        *tests, array, report = self.commands(job)
        for test in tests:
            _said(test)
        first = _id_of(_said(array))
        try:
            return [first, _id_of(_said([word.replace("afterany:JOB", f"afterany:{first}") for word in report]))]
        except EnvironmentFault:
            _said(["scancel", first])
            raise

    def find(self, folder: Path, name: str) -> list[str]:
        """Ids by the name of the job."""
        return sorted({line.partition("_")[0] for line in _said(["squeue", "--noheader", f"--name={name}", "--format=%i"]).split()}, key=int)

    def states(self, folder: Path, ids: Sequence[str]) -> dict[str, State]:
        """`4711_0`, `4711_1`, ... of an array, `4712` of a report: what squeue says, or else their exit codes."""
        found: dict[str, State] = {}
        for one in ids:
            known: dict[str, State] = {part: state for part, (state, _) in _queue(one).items()}
            left = {file.name: file for file in sorted((folder / EXITS).glob(f"{one}*")) if file.name.partition("_")[0] == one}
            # A task that was queued again may have left a code before.
            for part in {**known, **left}:
                found[part] = known[part] if part not in left or known.get(part) in LIVE else ended(left[part])
            if not known and not left:
                found[one] = "lost"
        return found

    def remarks(self, folder: Path, known: Mapping[str, State]) -> dict[str, str]:
        """Slurm's reason why a part waits, such as `(Priority)`, or the machines that it runs on; and of one that wrote nothing, that it may have had no place to."""
        silent = {part for part, state in known.items() if state in ("failed", "lost") and not (folder / LOGS / f"{part}.log").exists()}
        live = dict.fromkeys(part.partition("_")[0] for part, state in known.items() if state in LIVE)
        said = {part: words for one in live for part, (_, words) in _queue(one).items() if known.get(part) in LIVE and words not in ("", "(None)")}
        return said | dict.fromkeys(silent, f"it wrote no log: it never began, or its machine does not see {folder}")

    def cancel(self, folder: Path, ids: Sequence[str]) -> None:
        """Both jobs. EnvironmentFault."""
        if ids:
            _said(["scancel", *ids])


def _directives(job: Job, further: Sequence[str]) -> list[str]:
    asked = job.resources
    words = {"partition": asked.partition, "account": asked.account, "qos": asked.qos, "time": asked.time}
    return [f"#SBATCH {option}" for option in (*further, *(f"--{name}={value}" for name, value in words.items() if value), *asked.extra)]


def _report(job: Job, directives: Sequence[str]) -> str:
    exits = shlex.quote(str(job.folder / EXITS))
    last = f'{shlex.join([job.python, *job.aggregate])}\ncode=$?\nmkdir -p {exits} && echo "$code" > {exits}/"$SLURM_JOB_ID"\nexit "$code"\n'
    return "\n".join(["#!/bin/bash", *directives, "", preamble(job), last])


def _array(job: Job) -> list[str]:
    return [f"--job-name={job.name}", *_places(job, "%A_%a"), str(job.folder / ARRAY)]


def _after(job: Job) -> list[str]:
    return [f"--job-name={job.name}", *_places(job, "%A"), str(job.folder / REPORT)]


def _places(job: Job, log: str) -> list[str]:
    """Paths as arguments of sbatch, where they need no quotes; in the name of a log a % has a meaning."""
    folder = str(job.folder / LOGS).replace("%", "%%")
    return [f"--chdir={job.directory}", f"--output={folder}/{log}.log"]


def _said(command: Sequence[str]) -> str:
    """What a program of Slurm prints.

    Raises:
        EnvironmentFault: PL5302, it refused; PL5303, it is not there, or its controller does not answer.
    """
    try:
        done = subprocess.run(
            command, env=_environment(), capture_output=True, text=True, errors="replace", timeout=PATIENCE_SECONDS, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise EnvironmentFault("PL5303", command[0], "there is no such program on this machine. Ask from a login node of the cluster.") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault("PL5303", command[0], f"Slurm's controller has not answered for {PATIENCE_SECONDS} s. Try again later.") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise EnvironmentFault("PL5302", command[0], f"Slurm refused: {said}. Change machine.cluster, or ask who runs the cluster.")
    return done.stdout


def _environment() -> dict[str, str]:
    """Without what the job says of itself whoever launches from within one: a new job would take its cores, its memory and its rank for its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OF_A_JOB) or name in ("SLURM_CONF", "SLURM_CLUSTERS")}


def _id_of(said: str) -> str:
    """The id that `sbatch --parsable` prints: `4711`, or `4711;cluster`. EnvironmentFault: PL5303, it prints something else, and may have queued the job."""
    found = said.strip().splitlines()[-1].partition(";")[0] if said.strip() else ""
    if not found.isdigit():
        raise EnvironmentFault("PL5303", "sbatch", f"printed no job id, got {said.strip()!r}. Look at the queue with squeue, then use `persona-lab cancel`.")
    return found


def _queue(one: str) -> dict[str, tuple[State, str]]:
    """The parts of a job that the controller still knows, each with the reason why it waits or the machines that it has; some minutes after its end it knows none."""
    try:
        said = _said(["squeue", "--noheader", "--array", "--states=all", f"--jobs={one}", "--format=%i %T %R"])
    except EnvironmentFault as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    lines = ((*line.split(maxsplit=2), "")[:3] for line in said.splitlines() if line.strip())
    return {part: (STATES.get(state, "queued"), words) for part, state, words in lines}
