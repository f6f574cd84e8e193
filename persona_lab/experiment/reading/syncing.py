"""What a run tracked offline, sent to wandb's server by wandb itself: each file once.

    send(offline_files(folder))      ->   Sent(synced=12, left=[])

A node's run at wandb is an `offline-run-*` folder of `runs/<run>/wandb`, whichever worker and machine made it. wandb writes a
`.synced` file beside what it has sent whole, and goes on where it was cut off; both are wandb's own, and nothing else is believed.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from persona_lab.errors import EnvironmentFault, printable
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.reading.status import at_work
from persona_lab.store.files import faults
from persona_lab.tracking import ENDED, base_url, logged_in

BATCH = 50
"""Files of one `wandb sync`: those of one run go together, in the order in which they were begun."""
ANSWER_SECONDS = 10
IMPATIENT = {
    f"WANDB_X_{channel}_RETRY_{name}": value
    for channel in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
    for name, value in {"MAX": "5", "WAIT_MIN_SECONDS": "1", "WAIT_MAX_SECONDS": "10"}.items()
}
"""wandb would go on for days: a server that goes away while files are sent is told of within a minute."""
SYNCED = ".wandb.synced"


@dataclass(frozen=True)
class OfflineFile:
    """One `.wandb` file: what one process told of one node."""

    path: Path
    synced: bool
    ended: bool
    """Whether the process closed it; one that was killed never does."""

    @property
    def run_id(self) -> str:
        """The id at wandb, which a node has for good."""
        return self.path.stem.removeprefix("run-")

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"id": self.run_id, "file": str(self.path), "synced": self.synced}


def offline_files(run: Path) -> list[OfflineFile]:
    """What was tracked offline for a run, oldest first."""
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    return [OfflineFile(file, file.with_suffix(SYNCED).exists(), (file.parent / ENDED).exists()) for file in files]


def to_send(plan: Plan, files: Sequence[OfflineFile]) -> list[OfflineFile]:
    """Those that were not sent yet and will not grow any more; what a killed process left waits until nobody works on the plan, and with it all of its node."""
    waiting = [file for file in files if not file.synced]
    growing = {file.run_id for file in waiting if not file.ended}
    return [file for file in waiting if file.run_id not in growing] if growing and at_work(plan) else waiting


def send(run: Path, files: Sequence[OfflineFile]) -> None:
    """Send every file by `wandb sync`.

    Raises:
        EnvironmentFault: PL5601, somebody is at it already; PL5602, no login; PL5603, the server does not answer, or has not taken all.
    """
    if not files:
        return
    if not logged_in():
        raise EnvironmentFault("PL5602", base_url(), "nobody is logged in. Use `wandb login`, or WANDB_API_KEY.")
    with _alone(run):
        # Somebody else may have sent some of them since they were looked at.
        files = [file for file in files if not file.path.with_suffix(SYNCED).exists()]
        _check_answers()
        said = ""
        for batch in _batches(files):
            said = _sync(batch) or said
            if unsent := [file for file in batch if not file.path.with_suffix(SYNCED).exists()]:
                message = f"has not taken {len(unsent)} of {len(files)} files, {unsent[0].path.parent.name} among them: {said or 'wandb says nothing'}. "
                raise EnvironmentFault("PL5603", base_url(), message + "Nothing is lost: the same command goes on with what is left.")


def _sync(batch: Sequence[OfflineFile]) -> str:
    """The last error that `wandb sync` printed, which ends well whatever happened; empty without one."""
    # What keeps training offline must not keep this offline too.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"} | IMPATIENT
    command = [sys.executable, "-m", "wandb", "sync", *(str(file.path.parent) for file in batch)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    errors = [line.partition("ERROR")[2].strip() for line in done.stderr.splitlines() if "ERROR" in line]
    return printable(errors[-1], 200) if errors else "" if done.returncode == 0 else f"wandb sync ended with {done.returncode}"


def _batches(files: Sequence[OfflineFile]) -> Iterator[list[OfflineFile]]:
    """Files by run, so that no run is cut in two."""
    by_run: dict[str, list[OfflineFile]] = {}
    for file in files:
        by_run.setdefault(file.run_id, []).append(file)
    batch: list[OfflineFile] = []
    for several in by_run.values():
        if batch and len(batch) + len(several) > BATCH:
            yield batch
            batch = []
        batch += several
    if batch:
        yield batch


def _check_answers() -> None:
    """Any answer will do: `wandb sync` would wait for one."""
    try:
        httpx.get(base_url(), timeout=ANSWER_SECONDS, follow_redirects=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        message = f"does not answer: {printable(str(error), 200)}. Nothing is lost: run this again where there is a network, such as a login node."
        raise EnvironmentFault("PL5603", base_url(), message) from None


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Nobody else sends the files of this run meanwhile."""
    lock = run / "wandb" / "sync.lock"
    with faults(lock), lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EnvironmentFault("PL5601", str(lock), "somebody else sends this run's files at the moment. Wait until they have.") from None
        yield
