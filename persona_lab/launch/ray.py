"""Ray: one job of a Ray cluster, which runs a task for each share of the work (`ray_tasks`) and outlives whoever launched it.

    persona-lab launch configs/ratio.yaml --engine ray machine.cluster.jobs=8 machine.cluster.gpus=1

The cluster is the one at RAY_API_SERVER_ADDRESS, or on this machine, where one is started if none is up; `ray stop` ends that. Its machines
must see the runs folder and the interpreter under the same paths. Ray's own job table is what `status` and `cancel` ask, at the address that was
used when the job was submitted, whatever the variable says by then. Training never imports Ray: each share starts the same worker that every
other engine does.
"""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import httpx

from persona_lab.errors import ConfigError, EnvironmentFault, Problem, printable
from persona_lab.launch.engine import EXITS, LIVE, LOGS, REPORT, WORKER, Job, State, ended, preamble, worker_script
from persona_lab.store.files import read_json, write_json

ENTRY, CLUSTER = "job.sh", "cluster.json"
"""The job, and at which address of which machine it was submitted."""
GUARD = "share.sh"
GUARD_TEXT = """\
#!/bin/bash
# Ray ends a task and the process that it started without a word to those below: this watch tells them, and they keep their checkpoints.
task=$PPID group=$$
setsid bash -c 'while kill -0 "$0" && kill -0 -- "-$1"; do sleep 1; done; kill -TERM -- "-$1"' "$task" "$group" > /dev/null 2>&1 &
bash "$1"
exit $?
"""
ADDRESS, AT_HOME = "RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"
"""Which variable names the cluster's job server, and where Ray puts it on this machine."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PATIENCE_SECONDS, ANSWER_SECONDS = 120, 10
"""For its programs, and for its job server."""
STATES: dict[str, State] = {"PENDING": "queued", "RUNNING": "running", "SUCCEEDED": "done", "STOPPED": "cancelled", "FAILED": "failed"}
"""Of Ray's job table."""


@dataclass(frozen=True)
class Server:
    """Where Ray's job server answers."""

    address: str
    machine: str
    """From where it does."""
    named: bool
    """Whether the variable named it: else it is whatever runs on this machine."""


class Ray:
    """See `engine.Engine`; the id is the name of the submission, and `NAME_0`, ... are the shares."""

    heeds: ClassVar[frozenset[str]] = frozenset({"gpus", "gpu_type", "cpus", "jobs", "at_once", "nodes", "processes", "setup", "accelerate"})

    def missing(self) -> Problem | None:
        """Ray with its job server, where this environment lacks it."""
        # Plain `ray` comes without the server; this is what it answers with.
        if find_spec("ray") and find_spec("aiohttp_cors"):
            return None
        return Problem("PL5301", "ray", "is not installed with its job server. Use `pip install 'persona-lab[ray]'`, that is ray[default].")

    def files(self, job: Job) -> dict[str, str]:
        """The job, a share, what watches over a share, and the report. ConfigError PL1312: a share of several machines."""
        asked = job.resources
        if asked.nodes > 1:
            raise ConfigError("PL1312", "machine.cluster.nodes", f"must be 1 with Ray, whose tasks have one machine, got {asked.nodes}. Use more jobs, or --engine slurm.")
        cpus = asked.cpus or job.processes
        options = ["--jobs", job.jobs, "--at-once", asked.at_once or job.jobs, "--cpus", cpus, "--gpus", asked.gpus, *(["--gpu-type", asked.gpu_type] if asked.gpu_type else [])]
        drive = [job.python, "-m", "persona_lab.launch.ray_tasks", str(job.folder), job.name, *map(str, options)]
        return {
            ENTRY: f"#!/bin/bash\n{preamble(job)}\nexec {shlex.join(drive)}\n",
            WORKER: worker_script(job),
            GUARD: GUARD_TEXT,
            REPORT: f"#!/bin/bash\n{preamble(job)}\nexec {shlex.join([job.python, *job.aggregate])}\n",
        }

    def commands(self, job: Job) -> list[list[str]]:
        """Where no cluster is up and none is named, first one on this machine."""
        start = [] if ADDRESS in os.environ or _get(_server().address, "/api/version") is not None else [[_program(), "start", "--head", "--disable-usage-stats"]]
        submit = [_program(), "job", "submit", "--address", _server().address, "--submission-id", job.name, "--no-wait", "--", "bash", str(job.folder / ENTRY)]
        return [*start, submit]

    def submit(self, job: Job) -> list[str]:
        """The name of the submission. EnvironmentFault: PL5302, in Ray's own words."""
        if "@" not in (here := _server()).address:  # what has a password in it is not written down
            write_json(job.folder / CLUSTER, asdict(here))
        for command in self.commands(job):
            _said(command)
        return [job.name]

    def find(self, folder: Path, name: str) -> list[str]:
        """The name itself, where the cluster knows it. EnvironmentFault."""
        return [name] if _known(folder, name) else []

    def states(self, folder: Path, ids: Sequence[str]) -> dict[str, State]:
        """That of the job, and of every share that has begun."""
        found: dict[str, State] = {}
        for one in ids:
            found[one] = state = _state(folder, one)
            left: State = "running" if state in LIVE else "lost" if state in ("done", "failed") else state
            for log in sorted((folder / LOGS).glob(f"{one}_*.log")):
                exit_code = folder / EXITS / log.stem
                found[log.stem] = ended(exit_code) if exit_code.exists() else left
        return found

    def remarks(self, folder: Path, known: Mapping[str, State]) -> dict[str, str]:
        """Its table says no more than states."""
        return {}

    def cancel(self, folder: Path, ids: Sequence[str]) -> None:
        """Stop the job: its workers are told, and keep their checkpoints. EnvironmentFault."""
        for one in ids:
            if _state(folder, one) in LIVE:
                _said([_program(), "job", "stop", "--address", _server(folder).address, one])


def _state(folder: Path, one: str) -> State:
    """What the job left behind, or else what the cluster says; lost: a cluster on this machine is gone, or does not know it. EnvironmentFault."""
    exit_code = folder / EXITS / one
    if exit_code.exists():
        return ended(exit_code)
    known = _known(folder, one)
    return STATES.get(known["status"], "running") if known else "lost"


def _known(folder: Path, one: str) -> dict[str, Any]:
    """A job as the cluster knows it; empty: it does not, or it was one on this machine that is gone.

    Raises:
        EnvironmentFault: PL5303, a cluster elsewhere does not answer, or one here has no time to.
    """
    server = _server(folder)
    if server.machine != platform.node() and httpx.URL(server.address).host in LOOPBACK:
        raise EnvironmentFault("PL5303", server.address, f"is an address of {server.machine}, where the job was submitted, and nobody else can ask it. Ask there.")
    known = _get(server.address, f"/api/jobs/{one}")
    if known is None and server.named:
        raise EnvironmentFault("PL5303", server.address, f"no Ray cluster answers. Look at the machine that {ADDRESS} named.")
    return known or {}


def _server(folder: Path | None = None) -> Server:
    """The one that a submission went to, where that was written down; else the one that the next would go to."""
    if folder and (file := folder / CLUSTER).exists():
        return Server(**read_json(file))
    return Server(os.environ.get(ADDRESS, AT_HOME).rstrip("/"), platform.node(), named=ADDRESS in os.environ)


def _program() -> str:
    """Ray's program of this environment."""
    return str(Path(sys.executable).with_name("ray"))


def _get(address: str, path: str) -> dict[str, Any] | None:
    """What Ray's job server answers (its REST API); empty: it knows of no such thing; None: nobody is there.

    Raises:
        EnvironmentFault: PL5303, somebody is there, and does not answer as a job server does.
    """
    try:
        reply = httpx.get(address + path, timeout=ANSWER_SECONDS)
        return {} if reply.status_code == httpx.codes.NOT_FOUND else reply.raise_for_status().json()
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL, httpx.UnsupportedProtocol):
        return None
    except (httpx.HTTPError, ValueError) as error:
        raise EnvironmentFault("PL5303", address, f"answers as no Ray cluster does: {printable(str(error), 200)}. Look at `ray status`, and try again.") from None


def _said(command: Sequence[str]) -> None:
    """Run one of Ray's commands.

    Raises:
        EnvironmentFault: PL5302, it refused; PL5303, it is not there or does not answer.
    """
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=PATIENCE_SECONDS, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise EnvironmentFault("PL5303", command[0], "there is no such program. Use `pip install 'persona-lab[ray]'`.") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault("PL5303", "ray", f"has not answered for {PATIENCE_SECONDS} s. Look at `ray status`, and try again.") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise EnvironmentFault("PL5302", "ray", f"Ray refused: {printable(said[0], 600)}. Change machine.cluster, or look at `ray status`.")
