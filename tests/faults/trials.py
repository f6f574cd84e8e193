"""One trial: workers that are killed in turn, one that is not, and the verdict."""

import json
import os
import shutil
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persona_lab.design import Node
from persona_lab.errors import LabError
from persona_lab.store import Store

from . import toy

PASS, LOST_WORK, HARD_FAIL, SILENT_DIVERGENCE = "PASS", "LOST_WORK", "HARD_FAIL", "SILENT_DIVERGENCE"
LOST_CELL, DOUBLE_COMMIT = "LOST_CELL", "DOUBLE_COMMIT"


@dataclass
class Tally:
    """Verdicts of many trials, and the first of those that are not PASS."""

    verdicts: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    failures: list[str] = field(default_factory=list)
    notes: dict[str, int | float] = field(default_factory=dict)

    def add(self, verdict: str, where: str, kills: int = 0) -> None:
        """Count one trial."""
        self.verdicts[verdict] += 1
        self.kills += kills
        if verdict != PASS and len(self.failures) < 5:
            self.failures.append(f"{verdict} {where}")

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"trials": self.verdicts.total(), "kills": self.kills, "verdicts": dict(self.verdicts), "failures": self.failures, **self.notes}


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory where there is one: what a kill leaves does not depend on the disk."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Journal:
    """What workers said before they died: one line an event, in a file of the system's memory that survives them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.write = os.write

    def tell(self, event: str, node_id: str, value: Any) -> None:
        """Append one event in one system call."""
        self.write(self.handle, json.dumps([event, node_id, value]).encode() + b"\n")

    def events(self) -> list[tuple[str, str, Any]]:
        """All events so far, in order."""
        return [tuple(json.loads(line)) for line in self.path.read_text().splitlines()]

    def close(self) -> None:
        """No more events, and none is kept."""
        os.close(self.handle)
        self.path.unlink()


def child(action: Callable[[], None]) -> int:
    """Runs in a process of its own; 0 when it ended well, negative when a signal killed it."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        action()
        status = 0
    except LabError as error:
        status = error.exit_code
    finally:
        if status == 1:
            traceback.print_exc()
        os._exit(status)


def race(actions: list[Callable[[], None]]) -> None:
    """Runs all at once, each in a process of its own; all must end well."""
    gate, starter = os.pipe()
    running = []
    for action in actions:
        running.append(os.fork())
        if not running[-1]:
            os.close(starter)
            os.read(gate, 1)
            os._exit(child(action))
    os.close(starter)
    os.close(gate)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running] == [0] * len(actions)


def chain(
    root: Path, nodes: Sequence[Node], workers: Sequence[Callable[[toy.Tell], None]], expected: str, *, ends: tuple[int, ...] = (0, -signal.SIGKILL)
) -> tuple[str, int]:
    """Runs workers one after another, each in a process that ends in one of these ways, then one in peace.

    Gives the verdict, and how many did not end well.
    """
    journal, kills = Journal(root.with_suffix(".journal")), 0
    for worker in workers:
        ended = child(lambda worker=worker: worker(journal.tell))
        kills += ended != 0
        if ended not in ends or lost(root, nodes, journal):
            return HARD_FAIL if ended not in ends else LOST_CELL, kills
    return finish(root, nodes, journal, expected), kills


def finish(root: Path, nodes: Sequence[Node], journal: Journal, expected: str) -> str:
    """Lets a worker in peace make what is missing, judges what there is then, and clears all away."""
    if lost(root, nodes, journal):
        return LOST_CELL
    try:
        for node in nodes:
            toy.make(toy.patient(root), node, journal.tell)
        return judge(Store(root), nodes, journal, expected)
    except (LabError, OSError):
        traceback.print_exc()
        return HARD_FAIL
    finally:
        journal.close()
        shutil.rmtree(root, ignore_errors=True)


def lost(root: Path, nodes: Sequence[Node], journal: Journal) -> bool:
    """Whether something acknowledged is gone."""
    store, said = Store(root), {node_id for event, node_id, _ in journal.events() if event == "committed"}
    try:
        for node in nodes:
            for needed in toy.line(node):
                if needed.id in said:
                    store.open(needed)
    except LabError:
        return True
    return False


def judge(store: Store, nodes: Sequence[Node], journal: Journal, expected: str) -> str:
    """The verdict on a store in which everything should be there."""
    events = journal.events()
    winners = Counter(node_id for event, node_id, _ in events if event == "won")
    if max(winners.values(), default=0) > 1 or store.conflicts():
        return DOUBLE_COMMIT
    saved: dict[str, int] = {}
    for event, node_id, value in events:
        if event == "resumed" and value < saved.get(node_id, 0):
            return LOST_WORK
        if event == "step":
            saved[node_id] = value
    return PASS if toy.digest(store, [n for node in nodes for n in toy.line(node)]) == expected else SILENT_DIVERGENCE
