"""Cells made once more from their manifests alone, in a store of their own, and compared byte by byte with what is stored.

    linked/ln_ratio=0/seed0/swap1   stage 3fa9c1d2   bit-identical
    linked/ln_ratio=0/seed0/swap1   stage 81b2fe03   adapter/adapter_model.safetensors differs by at most 2e-07

Bits depend on the shapes of the products of matrices, so what the manifest says about these is repeated: the threads, the
micro-batch, and the other members of the stack, which are trained along on their stored documents and earlier adapters,
or asked along with their stored adapters.
Nothing less will do: training magnifies a last bit, and a cell of the quickstart that is trained alone instead of in its
stack of four ends with weights up to .04 and log-probabilities up to .9 nats away (median .03). So where something cannot
be repeated here (another device, another release of torch, a member that is gone), the difference is told and judged by nobody.
"""

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from persona_lab.config.schema import HuggingFaceBase, Machine
from persona_lab.design import RECIPE_VERSIONS, Node
from persona_lab.errors import CheckFailed
from persona_lab.experiment.making.launch import join
from persona_lab.experiment.making.scoring import score_stack
from persona_lab.experiment.making.stacks import train_stack
from persona_lab.experiment.making.workshop import Workshop
from persona_lab.experiment.planning.corpora import IMPORTED
from persona_lab.experiment.planning.frontier import Line
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import PlannedCell, trajectory
from persona_lab.store.files import read_json, read_jsonl
from persona_lab.store.nodes import Store
from persona_lab.store.versions import platform_name, versions


@dataclass(frozen=True)
class Rebuilt:
    """One node, stored and made again."""

    kind: str
    node: str
    differences: dict[str, float]
    """File to the largest |difference| of its numbers; infinite where it differs in more than numbers."""
    unlike: tuple[str, ...] = ()
    """What could not be repeated as it was recorded."""

    @property
    def verdict(self) -> str:
        """`bit-identical`, `not repeatable here`, or `differs`."""
        if not self.differences:
            return "bit-identical"
        return "not repeatable here" if self.unlike else "differs"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "verdict": self.verdict}


def chosen_cells(plan: Plan, count: int, seed: int) -> list[PlannedCell]:
    """`count` random cells of those that have all their scores, in the plan's order; all of them when there are fewer."""
    done = [planned for planned in plan.cells if all(plan.store.has(node) for _, node in planned.scores)]
    drawn = set(random.Random(seed).sample(range(len(done)), min(count, len(done))))
    return [planned for i, planned in enumerate(done) if i in drawn]


def rebuild(plan: Plan, cells: Sequence[PlannedCell], scratch: Path, progress: Callable[[str, int, int], None]) -> list[Rebuilt]:
    """Make every node of the cells again below `scratch` and compare it with the stored one; inputs before what is made of them.

    Raises:
        CheckFailed: a node of the cells was made by another version of the lab.
        NodeMissing, NodeDamaged: a stored node is not whole.
    """
    base = plan.loaded.experiment.base
    machine = Machine(device=_device(plan, cells), wandb="disabled")
    shop = Workshop(
        store=Store(scratch / "store"),
        machine=machine,
        accelerator=join(machine).accelerator,
        group=plan.folder.name,
        folder=scratch,
        hf=base if isinstance(base, HuggingFaceBase) else None,
        wandb=False,
    )
    replay = Replay(plan.store, shop)
    scores = [replay.recorded(node.id) for planned in cells for _, node in planned.scores]
    replay.wanted = {node.id: node for score in scores for node in (*score.ancestors(), score)}
    for done, node in enumerate(list(replay.wanted.values())):
        progress("nodes made again", done, len(replay.wanted))
        replay.make(node)
    return [compare(plan.store, shop.store, node, replay.unlike(node)) for node in replay.wanted.values()]


@dataclass
class Replay:
    """A stored history, repeated in a workshop with a store of its own."""

    stored: Store
    shop: Workshop
    wanted: dict[str, Node] = field(default_factory=dict)
    """What is made again; whatever else a stack needs is borrowed."""

    def __post_init__(self) -> None:
        """Read every manifest once."""
        self.manifests = {node_id: manifest for _, node_id, manifest in self.stored.nodes()}

    def recorded(self, node_id: str) -> Node:
        """A node from its manifest and those of its inputs alone.

        Raises:
            CheckFailed: it is not in the store, or its recipe is of another version.
        """
        manifest = self.manifests.get(node_id)
        if manifest is None:
            raise CheckFailed("PL1106", f"node {node_id[:12]}", "is not in the store, so nothing can be compared with it. Use `persona-lab run` to make it.")
        recipe = manifest["recipe"]
        if recipe["recipe_version"] != RECIPE_VERSIONS[recipe["kind"]]:
            said = f"was made by recipe version {recipe['recipe_version']}, this version of the lab has {RECIPE_VERSIONS[recipe['kind']]}"
            raise CheckFailed("PL1106", f"{recipe['kind']} {node_id[:12]}", f"{said}. Use the version that made it: commit {manifest['git_commit']}.")
        return Node(recipe["kind"], recipe["fields"], {role: self.recorded(below) for role, below in recipe["inputs"].items()})

    def make(self, node: Node) -> None:
        """Make a wanted node as its manifest says, and borrow any other."""
        if self.shop.store.has(node):
            return
        # An imported pool is what somebody else's file was: the file may have changed since, and is no part of the store.
        if node.id not in self.wanted or node.fields.get("source") == IMPORTED:
            shutil.copytree(self.stored.open(node), self.shop.store.folder(node))
            return
        members = self.members(node)
        lines = [Line(member, self.stops(member, node), self.shorter(member)) for member in members if member.kind == "stage"]
        for line in lines:
            if line.done and line.stage.id in self.wanted:
                self.wanted[line.done.id] = line.done
        for earlier in (*(below for member in members for below in member.inputs.values()), *(line.done for line in lines if line.done)):
            self.make(earlier)
        notes = self.manifests[node.id]["notes"]
        torch.set_num_threads(notes["threads"])
        micro_batch = notes["micro_batch"]
        self.shop.machine = self.shop.machine.model_copy(update={"micro_batch": micro_batch if micro_batch == "auto" else int(micro_batch)})
        if lines:
            train_stack(self.shop, lines, [])
        elif members:
            # One that was asked once more in another stack is made in that one.
            score_stack(self.shop, members, [m for m in members if self.manifests[m.id]["notes"]["stack"] == notes["stack"]], [])
        else:
            self.shop.make(node)

    def members(self, node: Node) -> list[Node]:
        """The stack in which a stage was trained or scores were asked, as far as its members are stored; none for any other node."""
        return [self.recorded(member) for member in self.manifests[node.id]["notes"].get("stack", []) if self.whole(member)]

    def whole(self, node_id: str) -> bool:
        """Whether a node and everything that it was made from are stored."""
        return node_id in self.manifests and all(map(self.whole, self.manifests[node_id]["recipe"]["inputs"].values()))

    def stops(self, member: Node, node: Node) -> dict[int, Node]:
        """Every stage of a member's trajectory that was made in the same stack as the node."""
        stack, line = self.manifests[node.id]["notes"]["stack"], trajectory(member)
        alike = [self.recorded(found) for found, manifest in self.manifests.items() if manifest["notes"].get("stack") == stack and self.whole(found)]
        return {stage.fields["step"]: stage for stage in alike if trajectory(stage) == line}

    def shorter(self, stage: Node) -> Node | None:
        """The stage of the same trajectory that this one went on from; None when it was trained from its first step."""
        found = Node("stage", {**stage.fields, "step": self.manifests[stage.id]["notes"]["began"]}, stage.inputs)
        return found if found.id in self.manifests and found != stage else None

    def unlike(self, node: Node) -> tuple[str, ...]:
        """What of a node's making could not be repeated here."""
        manifest = self.manifests[node.id]
        notes, here = manifest["notes"], {**versions(), "platform": platform_name(), "device": str(self.shop.accelerator.device)}
        recorded = {**manifest["versions"], "platform": manifest["platform"], "device": notes["device"]}
        found = [f"{name} {now} instead of {recorded.get(name)}" for name, now in here.items() if recorded.get(name) != now]
        if gone := [member for member in notes.get("stack", []) if not self.whole(member)]:
            found.append(f"{len(gone)} members of its stack are not stored")
        if notes.get("out_of_memory"):
            found.append("its micro-batch was halved on the way")
        if any(part["threads"] != notes["threads"] or part["device"] != notes["device"] for part in notes.get("went_on", [])):
            found.append("it was continued with other threads or on another device")
        return tuple(found)


def _device(plan: Plan, cells: Sequence[PlannedCell]) -> Any:
    """The kind of device that the cells were made on, where this machine has one."""
    recorded = {plan.store.manifest(node)["notes"]["device"].split(":")[0] for planned in cells for _, node in planned.scores}
    return "cuda" if "cuda" in recorded and torch.cuda.is_available() else "cpu"


def compare(stored: Store, again: Store, node: Node, unlike: tuple[str, ...]) -> Rebuilt:
    """Digests of all files of a node in two stores; of those that differ, the largest difference of their numbers."""
    payloads = [store.manifest(node)["payload"] for store in (stored, again)]
    names = [name for name in sorted(payloads[0] | payloads[1]) if payloads[0].get(name, {}).get("sha256") != payloads[1].get(name, {}).get("sha256")]
    folders = stored.open(node), again.open(node)
    return Rebuilt(node.kind, node.id, {name: gap(*(content(folder / name) for folder in folders)) for name in names}, unlike)


def content(file: Path) -> Any:
    """The numbers of a file, in whatever structure they stand; its bytes where it has none; None when there is no file."""
    if not file.is_file():
        return None
    if file.suffix == ".safetensors":
        return {name: tensor.double().numpy() for name, tensor in load_file(file).items()}
    if file.suffix == ".parquet":
        return pd.read_parquet(file).to_dict("list")
    if file.suffix in (".json", ".jsonl"):
        return read_json(file) if file.suffix == ".json" else read_jsonl(file)
    return file.read_bytes()


def gap(one: Any, other: Any) -> float:
    """The largest |difference| of numbers at the same place; infinite where anything else differs."""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return max((gap(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(gap, one, other), default=0.0)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape == other.shape:
        return float(np.abs(one - other).max(initial=0.0))
    if isinstance(one, float) and isinstance(other, float):
        return 0.0 if one == other or (one != one and other != other) else abs(one - other) if one == one and other == other else float("inf")
    return 0.0 if type(one) is type(other) and not isinstance(one, np.ndarray) and one == other else float("inf")
