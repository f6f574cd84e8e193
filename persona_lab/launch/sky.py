"""SkyPilot: clouds, Kubernetes, or machines that ssh reaches; its program is called, and it is never imported.

    persona-lab launch configs/ratio.yaml --engine sky machine.cluster.infra=k8s machine.cluster.volume=lab machine.cluster.gpus=1 machine.cluster.gpu_type=A100

Its releases and those of wandb want different releases of click, so it lives in an environment of its own (`uv tool install skypilot`).
Each job is a managed job: one whose machine is taken away, or that ends with the exit code 75, is started again elsewhere. There are no
dependencies between managed jobs, so the last one makes the report once its own worker finds nothing missing, which is when all are done.

Without `volume`, every machine must see the runs folder, the interpreter and a base in a local folder under the same paths, as machines behind
`infra: ssh/...` may. With one, what the run needs travels with the job, packages are installed in the releases that this machine has, and the
results are on the volume.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, ClassVar

import yaml
from packaging.requirements import Requirement

from persona_lab.errors import ConfigError, EnvironmentFault, Problem, printable
from persona_lab.launch.engine import Job, State, accelerated, preamble

TASK, LAST = "task.yaml", "last.yaml"
PATIENCE_SECONDS, ANSWER_SECONDS = 1800, 120
"""A launch waits for the controller of managed jobs, which the first one starts; nothing else does."""
ENVIRONMENT, ARRIVED = "/tmp/persona-lab", "/tmp/persona-lab-run"
"""On a machine with a volume: the packages, and what came with the job."""
SHARING = ("ssh", "slurm")
"""Machines that may have this one's disks."""
PORT = "29500"
PLACES = {"rank": '"$SKYPILOT_NODE_RANK"', "address": '"$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"', "port": PORT}
STATES: dict[str, State] = {
    **dict.fromkeys(("PENDING", "SUBMITTED", "STARTING", "RECOVERING"), "queued"),
    **dict.fromkeys(("RUNNING", "WINDING_DOWN", "CANCELLING"), "running"),
    "SUCCEEDED": "done",
    "CANCELLED": "cancelled",
    **dict.fromkeys(("FAILED", "FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE", "FAILED_CONTROLLER"), "failed"),
}
"""What `sky jobs queue` says."""


class Sky:
    """See `engine.Engine`; ids are the names of managed jobs."""

    heeds: ClassVar[frozenset[str]] = frozenset({"infra", "gpus", "gpu_type", "cpus", "memory", "nodes", "jobs", "processes", "setup", "spot", "volume", "accelerate"})

    def missing(self) -> Problem | None:
        """Its program, where PATH lacks it."""
        if shutil.which("sky"):
            return None
        return Problem("PL5301", "sky", "there is no sky on this machine. Use `uv tool install skypilot`, or pip in an environment of its own, never in this one.")

    def files(self, job: Job) -> dict[str, str]:
        """The task of every job but the last, and that of the last."""
        return {**({TASK: _written(_task(job))} if job.jobs > 1 else {}), LAST: _written(_task(job, last=True))}

    def commands(self, job: Job) -> list[list[str]]:
        """One managed job after the other."""
        places = enumerate(_jobs(job).items())
        return [["sky", "jobs", "launch", "--yes", "--detach-run", "--name", name, "--env", f"PERSONA_LAB_TASK={k}", str(job.folder / file)] for k, (name, file) in places]

    def submit(self, job: Job) -> list[str]:
        """The names of the jobs; when one is refused, those before it are cancelled. EnvironmentFault: PL5302, in SkyPilot's own words."""
        names: list[str] = []
        for name, command in zip(_jobs(job), self.commands(job), strict=True):
            try:
                _said(command)
            except EnvironmentFault:
                self.cancel(job.folder, names)
                raise
            names.append(name)
        return names

    def find(self, folder: Path, name: str) -> list[str]:
        """Names of managed jobs that begin with that of the submission."""
        return sorted(found for found in _queue() if found.rpartition("-")[0] == name)

    def states(self, folder: Path, ids: Sequence[str]) -> dict[str, State]:
        """One state a job, from SkyPilot's own table."""
        known = _queue()
        return {one: STATES.get(known[one], "running") if one in known else "lost" for one in ids}

    def remarks(self, folder: Path, known: Mapping[str, State]) -> dict[str, str]:
        """Its table says no more than states."""
        return {}

    def cancel(self, folder: Path, ids: Sequence[str]) -> None:
        """By name. EnvironmentFault."""
        for one in ids:
            _said(["sky", "jobs", "cancel", "--yes", "--name", one], ANSWER_SECONDS)


def _jobs(job: Job) -> dict[str, str]:
    """Name of every managed job, and its file."""
    return {f"{job.name}-{number}": TASK if number < job.jobs else LAST for number in range(1, job.jobs + 1)}


def _task(job: Job, *, last: bool = False) -> dict[str, Any]:
    """One task, as SkyPilot reads it. ConfigError PL1311: no way for it to see the store, or GPUs of no type."""
    asked = job.resources
    if asked.gpus and not asked.gpu_type:
        raise ConfigError("PL1311", "machine.cluster.gpu_type", "must say which GPU SkyPilot is to find. Use e.g. machine.cluster.gpu_type=A100.")
    if not asked.volume and (asked.infra or "").partition("/")[0] not in SHARING:
        raise ConfigError("PL1311", "machine.cluster.volume", "must name a volume: a rented machine does not see this runs folder. See `sky volumes`, or use infra=ssh/NODES.")
    resources: dict[str, Any] = {"infra": asked.infra} if asked.infra else {}
    resources |= {"accelerators": f"{asked.gpu_type}:{asked.gpus}"} if asked.gpus else {}
    resources |= {"cpus": f"{asked.cpus}+"} if asked.cpus else {}
    resources |= {"memory": f"{_gigabytes(asked.memory)}+"} if asked.memory else {}
    # 75: the worker was asked to stop, and wants another turn.
    resources |= {"use_spot": asked.spot, "job_recovery": {"recover_on_exit_codes": [75]}}
    run = job.folder.parents[1]
    task: dict[str, Any] = {"name": job.name, "num_nodes": asked.nodes, "resources": resources}
    if asked.volume:
        job = replace(job, python=f"{ENVIRONMENT}/bin/python")
        task["volumes"] = {str(run.parent): asked.volume}
        task["file_mounts"] = {f"{ARRIVED}/{name}": str(run / name) for name in _parts(job)}
        task["setup"] = _setup()
    return {**task, "run": _script(job, last=last)}


def _script(job: Job, *, last: bool) -> str:
    """What every machine of a job runs."""
    work = accelerated(job, **PLACES) if job.resources.nodes > 1 else accelerated(job)
    # An exit code does not come through `accelerate launch`.
    again = ['export PERSONA_LAB_AGAIN="$(mktemp -u)"', f'{work} || {{ code=$?; [ -e "$PERSONA_LAB_AGAIN" ] && exit 75; exit $code; }}']
    lines = ["set -e", *(_arrive(job) if job.resources.volume else []), preamble(job).rstrip(), *again]
    report = shlex.join([job.python, *job.aggregate])
    return "\n".join([*lines, *([f'if [ "$SKYPILOT_NODE_RANK" = 0 ]; then {report}; fi'] if last else [])]) + "\n"


def _arrive(job: Job) -> list[str]:
    """Put what came with a job on the volume: each part is there whole or not at all, because other machines arrive at the same time."""
    run = job.folder.parents[1]
    folder = shlex.quote(str(run))
    moves = [f'mv -nT "$arriving/{name}" {shlex.quote(str(run / name))} || true' for name in _parts(job)]
    make = f"mkdir -p {shlex.quote(str(job.folder.parent))} {shlex.quote(str(job.directory))}"
    return [make, f'arriving="$(mktemp -d -p {folder})"', f'cp -r {ARRIVED}/. "$arriving"', *moves, 'rm -rf "$arriving"']


def _parts(job: Job) -> tuple[str, ...]:
    """What of the folder of a run travels with a job."""
    return ("plan.json", "config.json", f"launch/{job.folder.name}")


def _setup() -> str:
    """The packages that the lab needs, in the releases that it runs with here; its own code comes with the job. EnvironmentFault PL5301: one is not here."""
    try:
        wanted = [Requirement(line) for line in requires("persona-lab") or []]
        pinned = [f"{r.name}=={version(r.name).partition('+')[0]}" for r in wanted if not (r.marker and not r.marker.evaluate())]
    except PackageNotFoundError as error:
        raise EnvironmentFault("PL5301", str(error.name), "is not installed here, so nobody knows which release a job needs. Use `pip install -e .`.") from None
    return f"python3 -m venv {ENVIRONMENT}\n{ENVIRONMENT}/bin/pip install --quiet {' '.join(pinned)}\n"


def _gigabytes(memory: str) -> str:
    """What Slurm calls `64G`, `64000M` or `64000` in whole gigabytes, rounded up."""
    number, unit = (memory[:-1], memory[-1]) if memory[-1] in "KMGT" else (memory, "M")
    return str(max(1, -(-int(number) * {"K": 1, "M": 2**10, "G": 2**20, "T": 2**30}[unit] // 2**20)))


class _Readable(yaml.SafeDumper):
    """Scripts as blocks of lines."""


_Readable.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def _written(task: dict[str, Any]) -> str:
    return yaml.dump(task, Dumper=_Readable, sort_keys=False, width=1000)


def _queue() -> dict[str, str]:
    """Name to status of every managed job of this user; EnvironmentFault: PL5303, it does not answer."""
    said = _said(["sky", "jobs", "queue", "--all", "--output", "json"], ANSWER_SECONDS)
    try:
        return {job["job_name"]: job["status"] for job in reversed(json.loads(said[said.index("[") :]))}
    except (ValueError, KeyError, TypeError) as error:
        raise EnvironmentFault("PL5303", "sky", f"printed no table of jobs ({error}). Look at `sky jobs queue`, and at the release: `sky --version`.") from None


def _said(command: Sequence[str], seconds: int = PATIENCE_SECONDS) -> str:
    """What sky prints.

    Raises:
        EnvironmentFault: PL5302, it refused; PL5303, it is not there or does not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise EnvironmentFault("PL5303", "sky", "there is no such program on this machine. Use `uv tool install skypilot`.") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault("PL5303", "sky", f"has not answered for {seconds} s. Look at `sky api info`, and try again.") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise EnvironmentFault("PL5302", "sky", f"SkyPilot refused: {printable(said, 600)}. Change machine.cluster, or look at `sky check`.")
    return done.stdout
