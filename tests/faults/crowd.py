"""A crowd: many workers make one sweep; some are killed, some paused past their lease, clocks are days apart, locks do nothing."""

import fcntl
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from persona_lab.design import Node, canonical_json
from persona_lab.store import Lease, Store

from . import toy
from .tap import Operation, tapped
from .trials import DOUBLE_COMMIT, LOST_CELL, PASS, SILENT_DIVERGENCE, Journal, Tally, fast_folder

TTL_SECONDS = 0.5
DAY = 86400.0
FEW = 500
"""Cells of which it is quicker to look each one up than to list all."""
LAST_OPERATION = 60
"""A worker that is doomed is stopped at one of so many operations after it has got a lease."""


def nodes(count: int) -> list[Node]:
    """Cells that are one node each."""
    return [Node("mixture", {"toy": number}) for number in range(count)]


@dataclass
class Doom:
    """Stops this process at a chosen operation, once."""

    at: int = -1
    signal: int = signal.SIGKILL

    def __call__(self, operation: Operation, proceed: Callable[[], Any]) -> Any:
        """A fault."""
        self.at -= 1
        if self.at == 0:
            os.kill(os.getpid(), self.signal)
        return proceed()


@dataclass
class Crowd:
    """Workers of one sweep, and what became of them."""

    root: Path
    cells: list[Node]
    workers: int
    killed: float
    """Share of attempts whose worker is killed in the midst of it."""
    paused: float
    journal: Journal
    pids: dict[int, int] = field(default_factory=dict)
    lives: Counter[int] = field(default_factory=Counter)
    sleeping: dict[int, float] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)

    def start(self, worker: int) -> None:
        """A process of its own, with a clock of its own."""
        self.lives[worker] += 1
        if pid := os.fork():
            self.pids[pid] = worker
            return
        status = 1
        try:
            self.work(worker, random.Random(1000 * worker + self.lives[worker]))
            status = 0
        finally:
            os._exit(status)

    def work(self, worker: int, chance: random.Random) -> None:
        """Make what is missing, from this worker's own place in the list, until nothing is."""
        fcntl.flock = fcntl.lockf = lambda *_: None
        skew = chance.uniform(-DAY, DAY)
        doom, store = Doom(), Store(self.root, clock=lambda: time.monotonic() + skew)
        start = worker * len(self.cells) // self.workers
        ring = self.cells[start:] + self.cells[:start]
        with tapped(doom):
            while ring := self._missing(store, ring):
                for node in ring[: max(1, len(self.cells) // self.workers)]:
                    if not store.has(node) and (lease := store.lease(node, ttl_seconds=TTL_SECONDS)) is not None:
                        self._make(store, node, lease, doom, chance)
                time.sleep(0.01 if len(ring) < self.workers else 0)

    def _missing(self, store: Store, ring: list[Node]) -> list[Node]:
        if len(ring) < FEW:
            return [node for node in ring if not store.has(node)]
        done = set(store.ids("mixture"))
        return [node for node in ring if node.id not in done]

    def _make(self, store: Store, node: Node, lease: Lease, doom: Doom, chance: random.Random) -> None:
        fate = chance.random()
        if fate < self.killed + self.paused:
            doom.at, doom.signal = chance.randint(1, LAST_OPERATION), signal.SIGKILL if fate < self.killed else signal.SIGSTOP
        with lease:
            toy.make_one(store, node, lease, self.journal.tell)

    def watch(self) -> None:
        """Start a worker anew when it was killed, wake it when it was paused for long, until all have ended."""
        for worker in range(self.workers):
            self.start(worker)
        while self.pids:
            pid, status = os.waitpid(-1, os.WUNTRACED | os.WNOHANG)
            now = time.monotonic()
            for sleeper in [sleeper for sleeper, until in self.sleeping.items() if until < now]:
                del self.sleeping[sleeper]
                os.kill(sleeper, signal.SIGCONT)
            if not pid:
                time.sleep(0.005)
            elif os.WIFSTOPPED(status):
                self.ends["paused"] += 1
                self.sleeping[pid] = now + 4 * TTL_SECONDS
            else:
                ended = os.waitstatus_to_exitcode(status)
                self.ends[{0: "well", -signal.SIGKILL: "killed"}.get(ended, f"with {ended}")] += 1
                worker = self.pids.pop(pid)
                if ended == -signal.SIGKILL:
                    self.start(worker)


def crowd(workers: int, cells: int, *, killed: float = 0.05, paused: float = 0.01) -> Tally:
    """One sweep; every cell is one trial. Workers that ended neither well nor by a kill are trials that failed."""
    tally = Tally()
    with fast_folder() as folder:
        journal = Journal(folder / "journal")
        sweep = Crowd(folder / "store", nodes(cells), workers, killed, paused, journal)
        sweep.watch()
        said = journal.events()
        won = Counter(node_id for event, node_id, _ in said if event == "won")
        winner = {node_id: token for event, node_id, token in said if event == "won"}
        store = Store(sweep.root)
        for node in sweep.cells:
            tally.add(_verdict(store, node, won[node.id], winner.get(node.id)), f"cell {node.fields['toy']}")
        for end, count in sweep.ends.items():
            if end not in ("well", "killed", "paused"):
                tally.add(f"WORKER_ENDED_{end}", f"{count} times")
        tally.kills = sweep.ends["killed"]
        tally.notes = {"paused": sweep.ends["paused"], "attempts": sum(event == "committed" for event, _, _ in said), "conflicts": len(store.conflicts())}
        journal.close()
    return tally


def _verdict(store: Store, node: Node, wins: int, winner: str | None) -> str:
    if not store.sound(node):
        return LOST_CELL
    manifest = store.manifest(node)
    if wins > 1 or (winner is not None and manifest["attempt"] != winner):
        return DOUBLE_COMMIT
    rows = "".join(f"{canonical_json(document)}\n" for document in toy.corpus(node)).encode()
    return PASS if manifest["payload"] == {"corpus.jsonl": {"sha256": sha256(rows).hexdigest(), "bytes": len(rows)}} else SILENT_DIVERGENCE
