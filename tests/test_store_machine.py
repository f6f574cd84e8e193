"""The store as a machine: any order of claiming, beating, pausing, committing, dying, rotting and jumping clocks keeps its promise."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.tap import Operation, tapped
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from persona_lab.design import Node
from persona_lab.store import Attempt, Lease, NodeDamaged, NodeMissing, Store

NODES = [Node("stage", {"n": n}) for n in range(3)]
TTL_SECONDS = 60.0
WORKERS = st.integers(0, 2)
WHICH = st.sampled_from(NODES)


class Died(BaseException):
    """The process is gone: nothing of it runs any more, no clearing up either."""


@dataclass
class DieAt:
    """A fault after which this worker does not carry out a single file operation."""

    number: int

    def __call__(self, operation: Operation, proceed: Callable[[], Any]) -> Any:
        self.number -= 1
        if self.number < 0:
            raise Died
        return proceed()


@dataclass
class Worker:
    """A process, with a clock of its own."""

    root: Path
    clock: float
    store: Store = field(init=False)
    lease: Lease | None = None
    node: Node | None = None
    trying: AbstractContextManager[Attempt] | None = None
    attempt: Attempt | None = None

    def __post_init__(self) -> None:
        self.store = Store(self.root, clock=lambda: self.clock)

    def reborn(self) -> "Worker":
        """Another process on the same machine."""
        if self.attempt is not None:
            self.attempt.keep_on_error = True
        return Worker(self.root, self.clock)


class TheStore(RuleBasedStateMachine):
    """What must hold is in the invariants; `won` is what the store has promised."""

    @initialize()
    def begin_with_nothing(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self.workers = [Worker(self.folder / "store", clock) for clock in (0.0, 86_400.0, -86_400.0)]
        self.won: dict[str, str] = {}
        """Node to the token of the attempt that made it."""
        self.rotten: set[str] = set()
        logging.disable()

    def teardown(self) -> None:
        logging.disable(logging.NOTSET)
        for worker in self.workers:
            worker.reborn()
        shutil.rmtree(self.folder)

    @rule(who=WORKERS, node=WHICH)
    def claim(self, who: int, node: Node) -> None:
        self.workers[who].lease = self.workers[who].store.lease(node, ttl_seconds=TTL_SECONDS) or self.workers[who].lease

    @rule(who=WORKERS)
    def beat(self, who: int) -> None:
        if lease := self.workers[who].lease:
            assert lease.held() == lease.renew()

    @rule(who=WORKERS)
    def release(self, who: int) -> None:
        if lease := self.workers[who].lease:
            lease.release()
            assert not lease.held()

    @rule(who=WORKERS, node=WHICH, half=st.booleans())
    def try_to_make(self, who: int, node: Node, half: bool) -> None:
        """With a lease or without: leases decide nothing. What others do before the end is a pause of this worker."""
        worker = self.workers[who]
        if worker.trying is None:
            worker.node, worker.trying = node, worker.store.attempt(node)
            worker.attempt = worker.trying.__enter__()
            (worker.attempt.folder / "rows").write_bytes(b"rows of %d" % node.fields["n"])
            if not half:
                (worker.attempt.folder / "deep").mkdir()
                (worker.attempt.folder / "deep" / "state").write_bytes(b"state")

    @rule(who=WORKERS)
    def commit(self, who: int) -> None:
        worker = self.workers[who]
        if worker.trying is not None:
            worker.trying.__exit__(None, None, None)
            self._look(worker)
            assert self.won[worker.node.id]
            worker.trying = None

    @rule(who=WORKERS, after=st.integers(0, 60))
    def die_while_committing(self, who: int, after: int) -> None:
        worker = self.workers[who]
        if worker.trying is not None:
            try:
                with tapped(DieAt(after)):
                    worker.trying.__exit__(None, None, None)
            except Died:
                pass
            self._look(worker)
            worker.trying = None
            self.workers[who] = worker.reborn()

    @rule(who=WORKERS)
    def die(self, who: int) -> None:
        self.workers[who] = self.workers[who].reborn()

    @rule(who=WORKERS, seconds=st.sampled_from([1.0, 59.0, 61.0, 1e5, -1e5]))
    def move_clock(self, who: int, seconds: float) -> None:
        self.workers[who].clock += seconds

    @rule(chance=st.randoms(use_true_random=False))
    def lose_what_was_not_flushed(self, chance: Any) -> None:
        """The power goes: leases, and files of attempts that were never sealed, are torn; every worker is gone."""
        self.workers = [worker.reborn() for worker in self.workers]
        root = self.folder / "store"
        for path in (*(root / "attempts").rglob("*"), *(root / "leases").rglob("*")):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: chance.randrange(9)])

    @precondition(lambda self: self.won)
    @rule(chance=st.randoms(use_true_random=False))
    def rot(self, chance: Any) -> None:
        node_id = chance.choice(sorted(self.won))
        folder = self.folder / "store" / "stage" / node_id
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if files:
            file = chance.choice(files)
            chance.choice([lambda: file.write_bytes(file.read_bytes() + b" "), file.unlink, lambda: file.write_bytes(b"")])()
            if file.name != "DAMAGED":
                self.rotten.add(node_id)

    @rule(who=WORKERS, node=WHICH)
    def mend(self, who: int, node: Node) -> None:
        """A process that starts anew looks before use; what is rotten goes."""
        worker = self.workers[who] = self.workers[who].reborn()
        sound = worker.store.sound(node)
        assert sound == (node.id in self.won and node.id not in self.rotten)
        if node.id in self.rotten:
            self.rotten.discard(node.id)
            del self.won[node.id]

    def _look(self, worker: Worker) -> None:
        """What a commit, whole or cut short, has come to: nothing, or that attempt, whole."""
        assert worker.node is not None
        assert worker.attempt is not None
        node_id = worker.node.id
        try:
            token = Store(worker.root).manifest(worker.node)["attempt"]
        except (NodeMissing, NodeDamaged):
            if node_id in self.rotten:
                # A worker that was cut short had set the rotten one aside, or had not come so far.
                if not (worker.root / "stage" / node_id).exists():
                    self.rotten.discard(node_id)
                    del self.won[node_id]
            else:
                assert node_id not in self.won
            return
        if token == worker.attempt.token:
            assert node_id not in self.won or node_id in self.rotten, "what was whole has been replaced"
            self.won[node_id] = token
            self.rotten.discard(node_id)

    @invariant()
    def what_was_promised_is_there_and_nothing_else(self) -> None:
        if not hasattr(self, "folder"):
            return
        store = Store(self.folder / "store")
        for node in NODES:
            promised = node.id in self.won and node.id not in self.rotten
            try:
                found = (store.open(node) / "rows").read_bytes()
            except (NodeMissing, NodeDamaged):
                found = None
            assert found == (b"rows of %d" % node.fields["n"] if promised else None)
            if promised:
                assert store.manifest(node)["attempt"] == self.won[node.id]

    @invariant()
    def at_most_one_believes_that_it_holds_a_lease(self) -> None:
        held = [worker.lease.path for worker in getattr(self, "workers", []) if worker.lease is not None and worker.lease.held()]
        assert len(held) == len(set(held))


TestTheStore = TheStore.TestCase
TestTheStore.settings = settings(max_examples=30, stateful_step_count=40, derandomize=True, deadline=None)
