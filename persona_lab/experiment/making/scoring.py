"""Scoring: adapters that are trained already are asked together, because most of what they are asked is shared.

What one worker asks at once is a stack, as in training: whatever ready members it got leases for, never a node. Members
of one base, the same targets and the same probes fit into one, whatever their ranks and whoever is who in their questions. They commit one by
one, and each says in its manifest who was asked with it: the bits of a product depend on its shape. So when a worker is
killed between two commits, the members that are missing are asked again beside those that are not.
"""

import logging
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from persona_lab.design import Node, canonical_json
from persona_lab.experiment.making.members import adapter_of, lora_shape, widest
from persona_lab.experiment.planning.frontier import frontier
from persona_lab.experiment.planning.recipes import trajectory
from persona_lab.experiment.planning.scores import cast_of
from persona_lab.probes.concepts import STATES, STATES_FILE
from persona_lab.probes.engine import Voice, ask_each
from persona_lab.probes.protocol import Row
from persona_lab.store import NodeDamaged, NodeMissing
from persona_lab.store.checkpoints import stacks_under_way
from persona_lab.store.files import write_jsonl
from persona_lab.store.lease import Lease
from persona_lab.train.loop import Diverged

if TYPE_CHECKING:
    from persona_lab.experiment.making.workshop import Workshop

log = logging.getLogger(__name__)

MEMBERS = 8
"""Adapters asked together at most: more gain little, and all of them are asked again when their worker is killed."""


def score_next(shop: "Workshop", wanted: Sequence[Node], missing: Sequence[Node], workers: int, doomed: Container[str]) -> dict[str, str] | None:
    """Ask one stack of the missing scores, as far as their adapters exist, and commit them.

    Returns scores to why they failed, mostly none; None when everything that is ready is leased by others.
    """
    ready = _ready(shop, missing, doomed)
    for stack in _stacks(shop, wanted, ready, workers):
        with ExitStack() as held:
            lost = [node for node in stack if node in ready]
            # Each is tried, so that those of a worker that was killed come free together.
            leases = {node.id: held.enter_context(lease) for node in lost if (lease := shop.lease(node))}
            if lost[0].id not in leases:
                continue  # who has the first has the stack
            mine = [node for node in lost if node.id in leases]
            if any(map(shop.store.has, mine)):
                return {}  # another worker was quicker: what is ready is no longer the same
            return score_stack(shop, [node for node in stack if node not in lost or node in mine], mine, list(leases.values()))
    return None


def _ready(shop: "Workshop", missing: Sequence[Node], doomed: Container[str]) -> list[Node]:
    """Missing scores that could be asked now.

    Those of a stack that is being trained, or was left and will go on, wait for its end: so who is asked with whom is
    no matter of when training was interrupted.
    """
    ready = [node for node in missing if all(map(shop.store.has, node.inputs.values()))]
    if not ready:
        return []
    trained = {line.trajectory.id for line in frontier(shop.store, shop.stages_of, missing) if line.trajectory.id not in doomed}
    waited_for = {member for stack in stacks_under_way(shop.store.root / "attempts") if not trained.isdisjoint(stack.members) for member in stack.members}
    return [node for node in ready if "stage" not in node.inputs or trajectory(node.inputs["stage"]).id not in waited_for]


def _stacks(shop: "Workshop", wanted: Sequence[Node], ready: Sequence[Node], workers: int) -> Iterator[list[Node]]:
    """Stacks of which a member was committed and another was not, then new ones of those that are left."""
    most = shop.machine.stack if isinstance(shop.machine.stack, int) else MEMBERS
    left = {node.id: node for node in ready}
    askable = {node.id: node for node in wanted if left and all(map(shop.store.has, node.inputs.values()))}
    for node in list(askable.values()):
        begun = _asked_with(shop, node)
        if len(begun) <= most and not left.keys().isdisjoint(begun):
            yield [askable[member] for member in begun if member in askable]
            left = {member: other for member, other in left.items() if member not in begun}
    groups: dict[str, list[Node]] = {}
    for node in left.values():
        groups.setdefault(_key(node), []).append(node)
    for group in groups.values():
        # The plain base has no adapters to be stacked.
        size = min(most, -(-len(group) // workers)) if "stage" in group[0].inputs else 1
        yield from (group[at : at + size] for at in range(0, len(group), size))


def _key(scores: Node) -> str:
    """Equal for members that fit into one stack, whatever their ranks."""
    stage = scores.inputs.get("stage")
    adapter = [stage.fields["recipe"]["lora"][name] for name in ("targets", "dropout")] if stage else None
    return canonical_json([scores.inputs["base"].id, adapter, scores.fields["probes"]])


def _asked_with(shop: "Workshop", scores: Node) -> Sequence[str]:
    """The stack in which scores were asked; empty where that is not known."""
    if scores.id not in shop.asked and shop.store.has(scores):
        try:
            shop.asked[scores.id] = shop.store.manifest(scores)["notes"].get("stack", [])
        except (NodeDamaged, NodeMissing) as error:
            # It is asked again before it is read.
            log.debug("%s", error)
    return shop.asked.get(scores.id, ())


def score_stack(shop: "Workshop", stack: Sequence[Node], missing: Sequence[Node], leases: Sequence[Lease]) -> dict[str, str]:
    """Ask the members together and commit the missing ones. When an answer is not finite each half is asked by itself, down to whose it is.

    Returns the scores of adapters that diverged, with the reason.

    Raises:
        Interrupted: a signal came; what is committed stays.
    """
    shop.begin_clock()
    stages = [node.inputs.get("stage") for node in stack]
    voice = _voice(shop, stack[0].inputs["base"], [stage for stage in stages if stage])
    try:
        with shop.probing(voice.model, leases, stages[0].fields["step"] if stages[0] else 0):
            found = ask_each(voice, [cast_of(node) for node in stack], stack[0].fields["probes"])
    except Diverged as error:
        if len(stack) == 1:
            return {stack[0].id: f"diverged: {error} of the last stage. Lower the rate of that stage"}
        half = len(stack) // 2
        return score_stack(shop, stack[:half], missing, leases) | score_stack(shop, stack[half:], missing, leases)
    beat = shop.heartbeat(leases)
    for node, (rows, samples) in zip(stack, found, strict=True):
        if node in missing:
            _commit(shop, node, rows, samples, [member.id for member in stack])
            beat()
    return {}


def _voice(shop: "Workshop", base: Node, stages: Sequence[Node]) -> Voice:
    """The base with the adapters of these stages in its bank, or plain when there are none."""
    if not stages:
        return Voice(*shop.plain(base))
    ranks = [lora_shape(stage.fields["recipe"]["lora"]) for stage in stages]
    bank = shop.bank(base, widest(ranks))
    bank.resize(len(stages), ranks)
    for row, stage in enumerate(stages):
        bank.load_row(row, adapter_of(shop.store, stage), f"stage {stage.id[:12]}")
    return Voice(*shop.base(base), len(stages))


def _commit(shop: "Workshop", node: Node, rows: Sequence[Row], samples: Sequence[dict[str, Any]], stack: Sequence[str]) -> None:
    stage = node.inputs.get("stage")
    with shop.store.attempt(node) as attempt, shop.track(node, "probe", {"stage": stage.id if stage else None}) as tracker:
        attempt.note(stack=list(stack))
        records = [vars(row) for row in rows]
        pd.DataFrame(records).to_parquet(attempt.folder / "rows.parquet", index=False)
        write_jsonl(attempt.folder / "samples.jsonl", [sample for sample in samples if STATES not in sample])
        if states := [sample[STATES] for sample in samples if STATES in sample]:
            np.save(attempt.folder / STATES_FILE, np.stack(states))
        tracker.table("scores", list(records[0]), [list(record.values()) for record in records])
        shop.committed(node, attempt, share=len(stack))
