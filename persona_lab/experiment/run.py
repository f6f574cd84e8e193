"""The verb `run`: make what is missing, then analyse and show. Any number of workers may run it side by side."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from persona_lab.config.schema import EmbeddedBase, HuggingFaceBase, Machine
from persona_lab.design import Node
from persona_lab.errors import CheckFailed
from persona_lab.experiment.bases import check_gates
from persona_lab.experiment.launch import Worker, cores, join
from persona_lab.experiment.making import Busy, StackDiverged, Workshop
from persona_lab.experiment.plan import Plan
from persona_lab.experiment.recipes import trajectory

log = logging.getLogger(__name__)

# How long a worker with nothing to do waits before it looks again, seconds.
POLL_SECONDS = 0.25

Progress = Callable[[str, int, int], None]


@dataclass
class Outcome:
    """What a worker did."""

    made: dict[str, int]
    failed: dict[str, str]
    """Name of a cell to why it has no scores."""
    worker: Worker


def make_nodes(plan: Plan, progress: Progress, *, tracked: bool = True) -> Outcome:
    """Make every missing score of the plan together with the other workers, and return when none is missing.

    Raises:
        CheckFailed: the base did not pass its gates, or an audit failed.
    """
    store = plan.store
    store.check_writable()
    machine = plan.loaded.experiment.machine
    worker = join(machine)
    plan.write()
    base = plan.loaded.experiment.base
    shop = Workshop(
        store=store,
        machine=machine,
        accelerator=worker.accelerator,
        group=plan.folder.name,
        folder=plan.folder,
        hf=base if isinstance(base, HuggingFaceBase) else None,
        names=plan.names,
        siblings=plan.siblings,
        wandb=tracked,
        on_progress=progress if worker.first else None,
    )
    wanted = [node for planned in plan.cells for _, node in planned.scores]
    wanted = list(dict.fromkeys(wanted))
    for node in sorted({n.inputs["base"] for n in wanted}, key=lambda n: n.id):
        with _all_cores(worker, machine):
            _patiently(shop, node)
        check_gates(store, node, base.gates)
    failed = _share_work(shop, wanted, worker, progress)
    return Outcome({kind: shop.made.count(kind) for kind in dict.fromkeys(shop.made)}, {plan.names[i]: why for i, why in failed.items()}, worker)


@contextmanager
def _all_cores(worker: Worker, machine: Machine) -> Iterator[None]:
    """While the base is made the other workers wait, so the first one takes their cores."""
    threads = torch.get_num_threads()
    if worker.first and machine.threads == "auto":
        torch.set_num_threads(cores())
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _patiently(shop: Workshop, node: Node) -> None:
    """Make a node, or wait until another worker has."""
    while not shop.store.has(node):
        try:
            shop.make(node)
        except Busy:
            time.sleep(POLL_SECONDS)


def _share_work(shop: Workshop, wanted: list[Node], worker: Worker, progress: Progress) -> dict[str, str]:
    """Score what is trained, train the next stack, from this worker's own place in the list, until nothing is missing."""
    start = worker.index * len(wanted) // worker.count
    ring = wanted[start:] + wanted[:start]
    doomed: dict[str, str] = {}
    failed: dict[str, str] = {}
    while True:
        failed |= {n.id: why for n in ring for line, why in doomed.items() if line in _trajectories(n)}
        missing = [n for n in ring if n.id not in failed and not shop.store.has(n)]
        if worker.first:
            progress("cells probed", len(wanted) - len(missing), len(wanted))
        if not missing:
            return failed
        scored = [_scored(shop, n) for n in missing if all(shop.store.has(i) for i in n.inputs.values())]
        if any(scored):
            continue
        try:
            trained = shop.make_stack(missing, worker.count, doomed)
        except StackDiverged as error:
            doomed[error.trajectory] = f"diverged: {error}"
            continue
        if not trained:
            time.sleep(POLL_SECONDS)


def _scored(shop: Workshop, scores: Node) -> bool:
    try:
        shop.make(scores)
    except Busy:
        return False
    return True


def _trajectories(scores: Node) -> set[str]:
    """Every trajectory that a score rests on."""
    return {trajectory(n).id for n in scores.ancestors() if n.kind == "stage"}


def embedded(plan: Plan) -> bool:
    """Whether the base is pretrained here."""
    return isinstance(plan.loaded.experiment.base, EmbeddedBase)


__all__ = ["CheckFailed", "Outcome", "embedded", "make_nodes"]
