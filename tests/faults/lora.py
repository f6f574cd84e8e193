"""The real thing: adapters of a small Llama, trained, committed and scored by what `run` itself calls, and killed on the way.

Two adapters are trained together in two stages, with dropout and accumulation, and asked one probe. A worker is forked from a
parent that has loaded torch and runs on one thread, so that a trial costs a second and not ten. Afterwards every byte of every
stage and score must be that of a run that nobody disturbed, no node that was committed may have been made again, and no worker
may have trained more steps again than the one in which the worker before it died.
"""

import os
import random
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

from safetensors.torch import load_file
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from persona_lab.errors import LabError
from persona_lab.experiment import run
from persona_lab.experiment.making import stacks, workshop
from persona_lab.experiment.making.interruption import Interrupted, Interruption
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.store import Store

from .tracing import WRITING, attached, forked, kill_on, points
from .trials import DOUBLE_COMMIT, HARD_FAIL, LOST_CELL, LOST_WORK, PASS, SILENT_DIVERGENCE, Journal, Tally, child, fast_folder

EXPERIMENT = Path(__file__).with_name("lora.yaml")
INJECTION, TRAIT = 13, 9
"""Steps of its two stages."""
ASKED_TO_STOP = 75

At = Callable[[str, int], None]
"""Called with where a worker is: `injection` or `trait` and the step just done, or `cells probed` and how many."""


def nothing(where: str, done: int) -> None:
    """Nothing happens."""


@dataclass(frozen=True)
class Window:
    """Part of a worker's life: from one place to another, or to its end."""

    like: str
    """The folder that it starts from."""
    opens: tuple[str, int]
    closes: tuple[str, int] | None = None


WINDOWS = {
    "founding": Window("begun", ("cells probed", 2), ("injection", 2)),
    "finishing": Window("left", ("trait", TRAIT - 1)),
}
"""The leases, the stack and its first two checkpoints; the last checkpoint, the commits of two stages and of their scores."""


@dataclass
class Ground:
    """What every trial starts from, what it has to come to, and what became of all."""

    folder: Path
    plan: Plan
    expected: dict[str, Any]
    """Node id to the digests of its files."""
    tally: Tally = field(default_factory=Tally)

    def fresh(self, root: str, like: str = "begun") -> Plan:
        """The experiment in a folder that is as another one."""
        shutil.copytree(self.folder / like, self.folder / root)
        return replace(self.plan, runs=self.folder / root)


@contextmanager
def ground() -> Iterator[Ground]:
    """The undisturbed run, made by this very process, which thereby has loaded all that its children need."""
    # One worker is at work at a time: the lease of a dead one is taken at second sight, nobody waits, and each step is told.
    workshop.LEASE_SECONDS, run.POLL_SECONDS, stacks.TRACK_EVERY = 0.0, 0.0, 1
    # A bar's lock is shared with all that fork from here: a worker killed while it holds it would stop every later one.
    disable_progress_bar()
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    with fast_folder() as folder:
        plan = make_plan(EXPERIMENT, [], folder / "whole")
        assert run.make_nodes(plan, lambda what, done, total: None).failed == {}
        for node in plan.nodes:
            if node.kind in ("base", "pool", "mixture") or (node.kind == "scores" and "stage" not in node.inputs):
                shutil.copytree(plan.store.folder(node), folder / "begun" / "store" / node.kind / node.id)
        found = Ground(folder, plan, payloads(plan))
        left = child(partial(work, found.fresh("left"), stop_at("trait", TRAIT - 2)))
        assert left == ASKED_TO_STOP, left
        yield found


def payloads(plan: Plan) -> dict[str, Any]:
    """Digests of all files of every node, each verified; LabError."""
    store = Store(plan.store.root)
    return {node.id: store.open(node) and store.manifest(node)["payload"] for node in plan.nodes}


def commits(plan: Plan) -> dict[str, str]:
    """Node id to the attempt that was committed."""
    store = Store(plan.store.root)
    return {node.id: store.manifest(node)["attempt"] for node in plan.nodes if store.has(node)}


def difference(ours: Plan, theirs: Plan) -> float:
    """The largest one between two weights of any adapter."""
    largest = 0.0
    for stage in (node for node in ours.nodes if node.kind == "stage"):
        a, b = (load_file(plan.store.folder(stage) / "adapter" / "adapter_model.safetensors") for plan in (ours, theirs))
        largest = max(largest, *(float((a[name] - b[name]).abs().max()) for name in a))
    return largest


# --------------------------------------------------------------------- workers
def work(plan: Plan, at: At, journal: Journal | None = None) -> None:
    """What `persona-lab run` does until the analysis; when it was asked to stop, this process ends with its exit code."""

    def progress(what: str, done: int, total: int) -> None:
        where = {INJECTION: "injection", TRAIT: "trait"}[total] if what.startswith("training") else what
        if journal and where != what:
            journal.tell("step", where, done)
        at(where, done)

    with Interruption() as interruption:
        try:
            failed = run.make_nodes(plan, progress, interruption=interruption).failed
        except Interrupted as left:
            os._exit(int(str(left.code)))
    assert failed == {}, failed


def stop_at(where: str, done: int) -> At:
    """A SIGTERM at a step."""
    return lambda *here: signal.raise_signal(signal.SIGTERM) if here == (where, done) else None


def stop_after(steps: int) -> At:
    """A SIGTERM when so many steps have been trained by this worker."""
    trained = 0

    def at(where: str, done: int) -> None:
        nonlocal trained
        trained += where != "cells probed"
        if trained == steps:
            signal.raise_signal(signal.SIGTERM)

    return at


def within(window: Window) -> At:
    """Waits to be joined where the window opens, and is gone where it closes."""
    waited = False

    def at(*here: Any) -> None:
        nonlocal waited
        if here == window.closes:
            os._exit(0)
        if here == window.opens and not waited:
            waited = True
            os.kill(os.getpid(), signal.SIGSTOP)

    return at


def killed_after(seconds: float, action: Callable[[], None]) -> int:
    """How a process of its own ended that was killed after so long, unless it was done before."""
    pid = forked(action)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---------------------------------------------------------------------- trials
Worker = Callable[[Plan, Journal], int]
"""Works in a process of its own, and gives how it ended."""


def trial(on: Ground, where: str, workers: Sequence[Worker], like: str, ends: tuple[int, ...]) -> None:
    """Workers one after another, each of which ends in one of these ways, until one has ended well; then one in peace."""
    root = where.replace(" ", "-")
    plan, journal, broken = on.fresh(root, like), Journal(on.folder / f"{root}.journal"), 0
    try:
        verdict, before = PASS, commits(plan)
        for worker in workers:
            ended = worker(plan, journal)
            broken += ended != 0
            now = commits(plan)
            verdict = HARD_FAIL if ended not in ends else kept(before, now)
            if verdict != PASS or ended == 0:
                break
            before = now
        if verdict == PASS and child(partial(work, plan, nothing, journal)) != 0:
            verdict = HARD_FAIL
        if verdict == PASS:
            verdict = kept(before, commits(plan))
        on.tally.add(verdict if verdict != PASS else judge(on, plan, journal), where, broken)
    finally:
        journal.close()
        shutil.rmtree(on.folder / root)


def kept(before: dict[str, str], now: dict[str, str]) -> str:
    """The verdict on what was committed at two times."""
    if before.keys() - now.keys():
        return LOST_CELL
    return PASS if all(now[node] == attempt for node, attempt in before.items()) else DOUBLE_COMMIT


def judge(on: Ground, plan: Plan, journal: Journal) -> str:
    """The verdict on a run in which everything should be there."""
    try:
        found = payloads(plan)
    except LabError:
        traceback.print_exc()
        return LOST_CELL
    apart = difference(plan, on.plan)
    on.tally.notes[APART] = max(apart, on.tally.notes.get(APART, 0.0))
    if Store(plan.store.root).conflicts():
        return DOUBLE_COMMIT
    if found != on.expected:
        return SILENT_DIVERGENCE
    again = repeated(journal)
    on.tally.notes[AGAIN] = max(again, on.tally.notes.get(AGAIN, 0))
    return PASS if again <= 1 else LOST_WORK


APART, AGAIN = "is the largest difference of a weight", "steps at most were trained again"


def repeated(journal: Journal) -> int:
    """How many steps that a worker had done the next one had to do again, at most."""
    last: dict[str, int] = {}
    most = 0
    for _, where, done in journal.events():
        most = max(most, last.get(where, done - 1) + 1 - done)
        last[where] = done
    return most


# -------------------------------------------------------------------- families
def calls(every: int = 1, windows: Mapping[str, Window] = WINDOWS) -> Tally:
    """A kill on entering every `every`-th call that writes, within each window."""
    with ground() as on:
        found = []
        for name, window in windows.items():
            plan = on.fresh(f"count-{name}", window.like)
            found += [(name, *point) for point in points(partial(work, plan, within(window)), WRITING, on.folder / f"{name}.strace")]
        on.tally.notes["calls in all"] = len(found)
        for name, call, number in found[::every]:
            window = windows[name]

            def killed(plan: Plan, journal: Journal, window: Window = window, call: str = call, number: int = number) -> int:
                return attached(partial(work, plan, within(window), journal), *kill_on(call, number))

            trial(on, f"{name} {call} {number}", [killed], window.like, (0, -signal.SIGKILL))
        return on.tally


def chains(count: int, length: int = 20, seed: int = 0) -> Tally:
    """Chains of workers killed at random times."""
    chance = random.Random(seed)
    with ground() as on:
        plan, start = on.fresh("clean"), time.monotonic()
        assert child(partial(work, plan, nothing)) == 0
        whole = time.monotonic() - start

        def killed(plan: Plan, journal: Journal) -> int:
            return killed_after(chance.uniform(0, whole / chance.choice((4, 8, 16))), partial(work, plan, nothing, journal))

        for number in range(count):
            trial(on, f"seed {seed} chain {number}", [killed] * length, "begun", (0, -signal.SIGKILL))
        return on.tally


def signals(count: int, steps: tuple[int, int], seed: int = 0) -> Tally:
    """Workers that get SIGTERM after a random number of steps, again and again until all is done."""
    chance = random.Random(seed)
    with ground() as on:

        def stopped(plan: Plan, journal: Journal) -> int:
            return child(partial(work, plan, stop_after(chance.randint(*steps)), journal))

        for number in range(count):
            trial(on, f"signals {steps} chain {number}", [stopped] * (INJECTION + TRAIT), "begun", (0, ASKED_TO_STOP))
        return on.tally
