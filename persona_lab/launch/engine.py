"""What runs a launched experiment: an engine turns one `Job` into files and commands of a scheduler that exists.

    engine = engine_named("slurm")
    engine.files(job)       ->   {"job.sh": "#!/bin/bash ...", "worker.sh": ...}   written to job.folder
    engine.submit(job)      ->   ["4711", "4712"]

An engine has no queue and retries nothing by itself: workers pull what is missing from the shared store, and whoever
dies loses nothing that was finished.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from persona_lab.config.cluster import Cluster
from persona_lab.errors import Problem

State = Literal["queued", "running", "done", "failed", "cancelled", "lost"]
"""lost: the engine does not know the job any more, and it left no exit code."""
LIVE: tuple[State, ...] = ("queued", "running")
LOGS, EXITS, CODE = "logs", "exits", "code"
"""Folders of a submission: `logs/<id>.log`, `exits/<id>` (the exit code of a job that has ended), and the frozen packages."""
WORKER, REPORT = "worker.sh", "report.sh"
GRACE_SECONDS = 150
"""What workers have to keep their checkpoints: `accelerate launch` kills them 30 s after a signal unless it is told otherwise."""
AGAIN_VARIABLE = "PERSONA_LAB_AGAIN"
"""Names the file that a worker leaves when it was asked to stop; scripts set it, each as its engine needs."""
ACCELERATE = "accelerate.yaml"
"""The copy of the config that `machine.cluster.accelerate` names."""


@dataclass(frozen=True)
class Job:
    """One submission: `jobs` times the same worker, then one report once all of them have ended, well or not."""

    name: str
    """Of this submission only, whoever else uses the scheduler: `persona-lab-quickstart-16bab757-1-5f0c1d`."""
    folder: Path
    """`runs/<run>/launch/<n>`, absolute."""
    worker: tuple[str, ...]
    """What each process runs: `-m persona_lab work FOLDER`, for `python` or behind `accelerate launch`."""
    aggregate: tuple[str, ...]
    """What the report runs, alike."""
    python: str
    """Path of the interpreter."""
    directory: Path
    """Where paths in the config are taken from."""
    jobs: int
    processes: int
    """Processes on each machine of a job."""
    resources: Cluster

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every process: the frozen packages come first, and the current folder is not searched for any."""
        cpu = {} if self.resources.gpus else {"ACCELERATE_USE_CPU": "true"}
        grace = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE_SECONDS)}
        return {"PYTHONPATH": str(self.folder / CODE), "PYTHONSAFEPATH": "1", "PERSONA_LAB_TASKS": str(self.jobs), **grace, **cpu}


class Engine(Protocol):
    """A scheduler. Ids are its own; `folder` is that of the submission."""

    heeds: ClassVar[frozenset[str]]
    """Fields of `machine.cluster` that change what it does; the rest are for other engines."""

    def missing(self) -> Problem | None:
        """What this machine lacks to use the engine, and how to get it; None: it can be used."""
        ...

    def files(self, job: Job) -> dict[str, str]:
        """Name of every file that is written to the folder of the submission, and its text. Writes nothing."""
        ...

    def commands(self, job: Job) -> list[list[str]]:
        """What `submit` calls, in this order; `JOB` stands for an id that an earlier one prints."""
        ...

    def submit(self, job: Job) -> list[str]:
        """Start what `files` describes, which is written by now; the ids, the report's last.

        Raises:
            EnvironmentFault: PL5302, the scheduler refused, in its own words, and nothing of the job is left in its queue; PL5303, it does not answer,
                and may have taken some of it.
        """
        ...

    def find(self, folder: Path, name: str) -> list[str]:
        """The ids of jobs of this name that the scheduler has: for a submission that was cut off before it wrote them down."""
        ...

    def states(self, folder: Path, ids: Sequence[str]) -> dict[str, State]:
        """The state of every part of these jobs, by id: an array has one for each task. EnvironmentFault: the scheduler does not answer."""
        ...

    def remarks(self, folder: Path, known: Mapping[str, State]) -> dict[str, str]:
        """Of some of these parts, whose states `states` has told: why one waits, where it runs, or what may have become of it. EnvironmentFault."""
        ...

    def cancel(self, folder: Path, ids: Sequence[str]) -> None:
        """End what is queued or running of these jobs. EnvironmentFault."""
        ...


def _at(module: str, name: str) -> Callable[[], Engine]:
    return lambda: getattr(import_module(f"persona_lab.launch.{module}"), name)()


ENGINES: Mapping[str, Callable[[], Engine]] = {
    "local": _at("local", "Local"),
    "slurm": _at("slurm", "Slurm"),
    "ray": _at("ray", "Ray"),
    "sky": _at("sky", "Sky"),
}
"""Name to what makes the engine; nothing is imported before."""


def engine_named(name: str) -> Engine:
    """The engine of this name; KeyError."""
    return ENGINES[name]()


def unheeded(engine: Engine, asked: Cluster) -> list[str]:
    """Fields of `machine.cluster` that were set, and that this engine takes no notice of."""
    plain = Cluster()
    return [name for name in Cluster.model_fields if name not in engine.heeds and getattr(asked, name) != getattr(plain, name)]


def accelerated(job: Job, *, rank: str = "0", address: str | None = None, port: str = "0") -> str:
    """The shell words that start the processes of one machine: `accelerate launch`, or the worker alone where it would be the only process.

    `rank`, `address` and `port` are shell text, such as `"$SLURM_NODEID"`: what each machine of a job finds out for itself. Unless `accelerate` names
    a config file, several processes are one process group of torch, which on a CPU is gloo (`--cpu` would silently start one process). `--gpu_ids` is
    said because the user's own answers to `accelerate config` would fill it in.
    """
    machines, processes = job.resources.nodes, job.resources.nodes * job.processes
    python, worker = shlex.quote(job.python), [shlex.quote(word) for word in job.worker]
    if processes == 1 and not job.resources.accelerate:
        return " ".join([python, *worker])
    words = [python, "-m", "accelerate.commands.launch"]
    if job.resources.accelerate:
        words += ["--config_file", shlex.quote(str(job.folder / ACCELERATE))]
    else:
        words += ["--multi_gpu", "--gpu_ids", "all", "--mixed_precision", "no", "--dynamo_backend", "no"]
    words += ["--num_machines", str(machines), "--num_processes", str(processes), "--machine_rank", rank, "--main_process_port", port]
    words += ["--main_process_ip", address, "--same_network"] if address else []
    return " ".join([*words, *worker])


def preamble(job: Job) -> str:
    """The head of a script, after `#!/bin/bash`: the folder, the user's own lines, the environment."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
    return "\n".join([f"cd {shlex.quote(str(job.directory))} || exit 5", *job.resources.setup, *exports, ""])


def worker_script(job: Job, **several: str) -> str:
    """What runs on each machine of a job; `several` as in `accelerated`."""
    return f"#!/bin/bash\n{preamble(job)}\nexec {accelerated(job, **several)}\n"


def ended(file: Path) -> State:
    """The state of a job that has left its exit code in a file, or the word `cancelled`."""
    left = file.read_text().strip()
    return "done" if left == "0" else "cancelled" if left == "cancelled" else "failed"
