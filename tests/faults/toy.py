"""Toy cells: documents, a stage that is trained in steps, scores. They cost a millisecond and go through the real store.

The model is one number. A step mixes the next document into it, so that a step that is left out, done twice or done
in another order changes every later number. A checkpoint is written at every SAVE_EVERY-th step and resumed from.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from persona_lab.design import Node, canonical_json
from persona_lab.store import Lease, Store, read_json, read_jsonl, write_json, write_jsonl
from persona_lab.store.checkpoints import Checkpoints

STEPS, SAVE_EVERY = 6, 2
MOST_ATTEMPTS = 10_000
"""A chain of kills may well make no progress; here that is no fault of the cell."""
VOLATILE = ("created", "attempt", "notes")
"""What of a manifest may differ between two makings of one node."""

Tell = Callable[[str, str, Any], None]
"""Called with (event, node id, value): `step` with a saved step, `resumed` with the step it goes on from, `committed` with
the attempt's token once the store has acknowledged, `won` when that attempt is the one that counts."""


def silent(event: str, node_id: str, value: Any) -> None:
    """Tell nobody."""


def cell(number: int) -> Node:
    """The scores of cell `number`, with all that they are made from."""
    documents = Node("mixture", {"toy": number})
    stage = Node("stage", {"toy": number, "step": STEPS}, {"mixture": documents})
    return Node("scores", {"toy": number}, {"stage": stage, "mixture": documents})


def line(node: Node) -> list[Node]:
    """A node after everything that it is made from."""
    return [*node.ancestors(), node]


def stepped(number: int, document: int) -> int:
    """One step of training."""
    return (number * 6364136223846793005 + document) % 2**64


def make(store: Store, node: Node, tell: Tell = silent, ttl_seconds: float = 60) -> None:
    """Make a node and its inputs, waiting for leases as long as it takes: give the store a clock that moves."""
    for needed in line(node):
        while not store.sound(needed):
            if (lease := store.lease(needed, ttl_seconds=ttl_seconds)) is not None:
                with lease:
                    make_one(store, needed, lease, tell)


def make_one(store: Store, node: Node, lease: Lease, tell: Tell = silent) -> None:
    """Make a node whose inputs are there."""
    if store.sound(node):
        return
    with store.attempt(node) as attempt:
        {"mixture": _mixture, "stage": _stage, "scores": _scores}[node.kind](store, node, attempt.folder, lease, tell)
    tell("committed", node.id, attempt.token)
    if store.manifest(node)["attempt"] == attempt.token:
        tell("won", node.id, attempt.token)


def _mixture(store: Store, node: Node, folder: Path, lease: Lease, tell: Tell) -> None:
    write_jsonl(folder / "corpus.jsonl", corpus(node))


def corpus(node: Node) -> list[dict[str, str]]:
    """The documents of a mixture."""
    return [{"text": f"document {i} of {node.fields['toy']}"} for i in range(STEPS)]


def _stage(store: Store, node: Node, folder: Path, lease: Lease, tell: Tell) -> None:
    documents = read_jsonl(store.open(node.inputs["mixture"]) / "corpus.jsonl")
    checkpoints = Checkpoints(store.root / "attempts", [node.id])
    newest = checkpoints.newest()
    at = read_json(newest / "state.json") if newest else {"step": 0, "number": node.fields["toy"], "log": []}
    checkpoints.begin(at["step"], MOST_ATTEMPTS)
    tell("resumed", node.id, at["step"])
    for step in range(at["step"] + 1, STEPS + 1):
        at = {"step": step, "number": stepped(at["number"], len(documents[step - 1]["text"])), "log": [*at["log"], at["number"] % 97]}
        if step % SAVE_EVERY == 0:
            lease.renew()
            with checkpoints.write(step) as staged:
                write_json(staged / "state.json", at)
            tell("step", node.id, step)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "weights.bin").write_bytes(at["number"].to_bytes(8, "little") * 40)
    write_json(folder / "state.json", {"step": at["step"]})
    write_jsonl(folder / "log.jsonl", [{"step": i, "loss": loss} for i, loss in enumerate(at["log"], start=1)])


def _scores(store: Store, node: Node, folder: Path, lease: Lease, tell: Tell) -> None:
    weights = (store.open(node.inputs["stage"]) / "adapter" / "weights.bin").read_bytes()
    documents = read_jsonl(store.open(node.inputs["mixture"]) / "corpus.jsonl")
    write_jsonl(folder / "rows.jsonl", [{"item": d["text"], "prob": weights[i] / 255} for i, d in enumerate(documents)])


def patient(root: Path) -> Store:
    """The store of a process that meets a lease a minute and a half later than it looked last: dead ones are soon taken."""
    return Store(root, clock=itertools.count(0.0, 90.0).__next__)


def digest(store: Store, nodes: Sequence[Node]) -> str:
    """SHA-256 of all that is committed for these nodes, every byte verified, without what may differ between two makings."""
    found = []
    for node in nodes:
        store.open(node)
        found.append({key: value for key, value in store.manifest(node).items() if key not in VOLATILE})
    return hashlib.sha256(canonical_json(found).encode()).hexdigest()
