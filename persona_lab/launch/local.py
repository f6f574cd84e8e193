"""This machine: one job in the background, which outlives the terminal.

    persona-lab launch configs/quickstart.yaml --engine local

`job.sh` runs the workers, then the report, in a session of its own. Its id is `<process>.<start>@<host>`: a process id
that is used again by another process has another start, and what another machine runs is not dead because this one
does not see it.
"""

import os
import platform
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from persona_lab.errors import EnvironmentFault, Problem
from persona_lab.launch.engine import EXITS, LIVE, LOGS, REPORT, WORKER, Job, State, ended, preamble, worker_script
from persona_lab.store.files import faults

SCRIPT, STARTED = "job.sh", "started"
BODY = """\
#!/bin/bash
# Once it is asked to stop, everybody in this session is; it waits until they have kept their checkpoints.
asked=
trap 'asked=yes' TERM INT HUP
bash {worker} < /dev/null &
step=$!
wait "$step"; code=$?
while kill -0 "$step" 2> /dev/null; do wait "$step"; code=$?; done
if [ -n "$asked" ]; then code=cancelled; else bash {report} < /dev/null || code=$?; fi
mkdir -p {exits} && echo "$code" > {exits}/"$(cat {started})"
"""


class Local:
    """See `engine.Engine`."""

    heeds: ClassVar[frozenset[str]] = frozenset({"processes", "setup", "accelerate"})

    def missing(self) -> Problem | None:
        """Starts of processes are read from /proc."""
        if Path("/proc/self/stat").exists():
            return None
        return Problem("PL5301", "local", "needs /proc, which this system lacks. Use `persona-lab run`, which does the same in the foreground.")

    def files(self, job: Job) -> dict[str, str]:
        """What runs in the background, and what it starts."""
        paths = {"worker": job.folder / WORKER, "report": job.folder / REPORT, "exits": job.folder / EXITS, "started": job.folder / STARTED}
        return {
            SCRIPT: BODY.format(**{name: shlex.quote(str(path)) for name, path in paths.items()}),
            WORKER: worker_script(job),
            REPORT: f"#!/bin/bash\n{preamble(job)}\nexec {shlex.join([job.python, *job.aggregate])}\n",
        }

    def commands(self, job: Job) -> list[list[str]]:
        """One script."""
        return [["bash", str(job.folder / SCRIPT)]]

    def submit(self, job: Job) -> list[str]:
        """Start it, away from this terminal; its id. EnvironmentFault."""
        log = job.folder / LOGS / "job.log"
        with faults(log):
            with log.open("ab") as file:
                process = subprocess.Popen(
                    self.commands(job)[0], cwd=job.directory, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
                )
            one = f"{process.pid}.{_start(process.pid)}@{platform.node()}"
            (job.folder / STARTED).write_text(one)
            log.rename(log.with_name(f"{one}.log"))
        return [one]

    def find(self, folder: Path, name: str) -> list[str]:
        """The id that was written as soon as it was started."""
        file = folder / STARTED
        return [file.read_text()] if file.exists() else []

    def states(self, folder: Path, ids: Sequence[str]) -> dict[str, State]:
        """running, or how it ended; lost: it was killed, or the machine was started anew."""
        return {one: _state(folder, one) for one in ids}

    def remarks(self, folder: Path, known: Mapping[str, State]) -> dict[str, str]:
        """What only another machine could tell of."""
        return {one: f"on {one.partition('@')[2]}, which is not this machine: it may be gone" for one, state in known.items() if state in LIVE and _elsewhere(one)}

    def cancel(self, folder: Path, ids: Sequence[str]) -> None:
        """Ask everybody in its session to stop: they keep their checkpoints. EnvironmentFault."""
        for one in ids:
            if _state(folder, one) != "running":
                continue
            if _elsewhere(one):
                raise EnvironmentFault("PL5302", one, f"runs on another machine. Cancel it on {one.partition('@')[2]}.")
            try:
                os.killpg(int(one.partition(".")[0]), signal.SIGTERM)
            except ProcessLookupError:
                continue
            except PermissionError:
                raise EnvironmentFault("PL5302", one, "belongs to another user. Ask them to cancel it.") from None


def _state(folder: Path, one: str) -> State:
    file = folder / EXITS / one
    if file.exists():
        return ended(file)
    process, _, start = one.partition("@")[0].partition(".")
    return "running" if _elsewhere(one) or _start(int(process)) == start else "lost"


def _elsewhere(one: str) -> bool:
    return one.partition("@")[2] != platform.node()


def _start(process: int) -> str:
    """When a process was started, in ticks of this boot; empty when there is none, or only its entry waits to be read."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]
