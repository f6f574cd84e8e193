"""The verb `run`: make what is missing, then analyse and show. Any number of workers may run it side by side."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from persona_lab.config.schema import EmbeddedBase, HuggingFaceBase, Machine
from persona_lab.design import Node
from persona_lab.errors import CheckFailed
from persona_lab.experiment.making.bases import check_gates
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.making.launch import Worker, check_whole, cores, join, team_up, works_together
from persona_lab.experiment.making.scoring import score_next
from persona_lab.experiment.making.stacks import train_next
from persona_lab.experiment.making.together import follow_first
from persona_lab.experiment.making.workshop import Busy, Workshop
from persona_lab.experiment.planning.costs import bounds, read_measured
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.power import PREDICTIONS, check_power, predictions, predictions_node
from persona_lab.experiment.planning.recipes import trajectory
from persona_lab.experiment.rounds import advance
from persona_lab.store import NodeDamaged, NodeMissing
from persona_lab.store.files import write_json

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
    plan: Plan
    """With the cells of every round of an adaptive search."""


def make_nodes(plan: Plan, progress: Progress, *, tracked: bool = True, interruption: Interruption | None = None, launched: bool = False) -> Outcome:
    """Make every missing score of the plan together with the other workers, and return when none is missing.

    Args:
        plan: what is to be made.
        progress: told how far it is.
        tracked: whether metrics may go to wandb.
        interruption: whether somebody asked this process to stop.
        launched: whether the processes of this launch may be one worker (`machine.data_parallel`). Of these the first one
            makes the nodes; the others help it, and return when it is done.

    Raises:
        CheckFailed: the design cannot tell its hypotheses apart, the base diverged or did not pass its gates, or an audit failed.
        EnvironmentFault: another process of the launch is gone, or there is none; PL5209, it divides the base, which `adapters` need whole.
        Interrupted: a signal came; what was under way goes on when this is called again.
    """
    check_power(plan)
    plan.store.check_writable()
    machine, interruption = plan.loaded.experiment.machine, interruption or Interruption()
    if plan.loaded.experiment.adapters:
        check_whole(machine)
    if not (launched and works_together(machine)):
        return _make(plan, join(machine), progress, tracked, interruption)
    worker = team_up(machine, interruption)
    assert worker.team is not None
    if worker.team.leads:
        with worker.team.leading():
            outcome = _make(plan, worker, progress, tracked, interruption)
    else:
        follow_first(worker, machine)
        outcome = Outcome({}, {}, worker, plan)
    worker.accelerator.end_training()
    return outcome


def _make(plan: Plan, worker: Worker, progress: Progress, tracked: bool, interruption: Interruption) -> Outcome:
    """The work of one worker."""
    predict(plan)
    store, machine = plan.store, plan.loaded.experiment.machine
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
        files=plan.files,
        siblings=plan.siblings,
        wandb=tracked,
        interruption=interruption,
        team=worker.team,
        on_progress=progress if worker.first else None,
    )
    if measured := read_measured(plan):
        shop.bounds = bounds(plan, measured)
    wanted = _wanted(plan)
    for node in sorted({n.inputs["base"] for n in wanted}, key=lambda n: n.id):
        with _all_cores(worker, machine):
            _patiently(shop, node)
        check_gates(store, node, base.gates)
    failed = _share_work(shop, wanted, worker, progress)
    while grown := advance(plan):
        plan = grown
        plan.write()
        shop.names, shop.siblings = plan.names, plan.siblings
        failed |= _share_work(shop, [node for node in _wanted(plan) if node.id not in failed], worker, progress)
    return Outcome({kind: shop.made.count(kind) for kind in dict.fromkeys(shop.made)}, {plan.names[i]: why for i, why in failed.items()}, worker, plan)


def predict(plan: Plan) -> None:
    """Commit what the hypotheses predict; `blind` in the manifest says that no score of this plan was there before."""
    node = predictions_node(plan)
    if node is None or plan.store.has(node):
        return
    blind = not any(plan.store.has(scores) for planned in plan.cells for _, scores in planned.scores)
    with plan.store.attempt(node) as attempt:
        write_json(attempt.folder / PREDICTIONS, predictions(plan))
        attempt.note(blind=blind)


def _wanted(plan: Plan) -> list[Node]:
    """Every score of a plan once, and every branch."""
    return list(dict.fromkeys(node for planned in plan.cells for _, node in (*planned.scores, *planned.branches)))


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
    """Make a node, or wait until another worker has; one that is damaged is made anew."""
    while not shop.store.sound(node):
        try:
            shop.make(node)
        except Busy:
            shop.interruption.leave()
            time.sleep(POLL_SECONDS)


def _share_work(shop: Workshop, wanted: Sequence[Node], worker: Worker, progress: Progress) -> dict[str, str]:
    """Score what is trained, train the next stack, from this worker's own place in the list, until nothing is missing."""
    start = worker.index * len(wanted) // worker.count
    ring = [*wanted[start:], *wanted[:start]]
    doomed: dict[str, str] = {}
    failed: dict[str, str] = {}
    while True:
        shop.interruption.leave()
        failed |= {n.id: why for n in ring for line, why in doomed.items() if line in _untrained(shop, n)}
        hoped = [n for n in ring if n.id not in failed]
        missing = [n for n in hoped if not shop.store.has(n)]
        if worker.first:
            asked = _scores(wanted)
            progress("cells probed", len(asked) - len(_scores(missing)), len(asked))
        if not missing:
            # What comes next reads all of it.
            if worker.first and _mend(shop, hoped):
                continue
            return failed
        try:
            unscored = score_next(shop, _scores(ring), _scores(missing), worker.count, doomed)
            if unscored is not None:
                failed |= unscored
                continue
            given_up = train_next(shop, missing, worker.count, doomed)
        except (NodeDamaged, NodeMissing):
            if not _mend(shop, hoped):
                raise
            continue
        if given_up is None:
            time.sleep(POLL_SECONDS)
        else:
            doomed |= given_up


def _scores(nodes: Sequence[Node]) -> list[Node]:
    """Those that are asked, not trained."""
    return [node for node in nodes if node.kind == "scores"]


def _mend(shop: Workshop, wanted: Sequence[Node]) -> bool:
    """Make anew whatever is damaged, or was set aside by another worker, of all that these nodes rest on; False when nothing was.

    Scores that are damaged themselves are missing now, and asked again in the stack in which they were asked.
    """
    nodes = dict.fromkeys(node for scores in wanted for node in (*scores.ancestors(), scores))
    siblings = [stage for node in nodes if node.kind == "stage" for stage in shop.siblings.get(trajectory(node).id, [])]
    damaged = [node for node in dict.fromkeys((*nodes, *siblings)) if shop.store.has(node) and not shop.store.sound(node)]
    for node in damaged:
        if node.kind != "scores":
            _patiently(shop, node)
    return bool(damaged)


def _untrained(shop: Workshop, node: Node) -> set[str]:
    """Every trajectory that has to be trained before a score or a branch is there."""
    return {trajectory(n).id for n in (*node.ancestors(), node) if n.kind == "stage" and not shop.store.has(n)}


def embedded(plan: Plan) -> bool:
    """Whether the base is pretrained here."""
    return isinstance(plan.loaded.experiment.base, EmbeddedBase)


__all__ = ["CheckFailed", "Outcome", "embedded", "make_nodes"]
