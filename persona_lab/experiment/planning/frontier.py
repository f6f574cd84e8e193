"""What could be trained now: the trajectories that are wanted, unfinished, and have everything that they start from."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from persona_lab.config.schema import Machine
from persona_lab.design import Node, canonical_json
from persona_lab.experiment.planning.recipes import trajectory
from persona_lab.store.nodes import Store

FEATURES_A_STEP = defaultdict(lambda: 1 << 25, cpu=1 << 18)
"""Tokens times width of all members in one step: on a CPU what its caches hold, elsewhere what fills the device."""


@dataclass(frozen=True)
class Line:
    """One member of a stack: a trajectory, and which planned stages of it are missing."""

    stage: Node
    """The longest one wanted."""
    missing: dict[int, Node]
    """Steps to stage."""
    done: Node | None
    """The longest one that exists and is shorter than the first missing one: training goes on from there."""

    @property
    def start(self) -> int:
        """Steps done already."""
        return self.done.fields["step"] if self.done else 0

    @cached_property
    def trajectory(self) -> Node:
        """What the lease is for."""
        return trajectory(self.stage)

    @cached_property
    def key(self) -> str:
        """Equal for members that fit into one stack: whatever their documents, prices of these, ranks, rates and lengths."""
        recipe = self.stage.fields["recipe"]
        loss = {name: value for name, value in recipe["loss"].items() if name != "kl_off"}
        adapter = {name: recipe["lora"][name] for name in ("targets", "dropout")}
        return canonical_json([self.stage.inputs["base"].id, recipe["batch"], loss, adapter, self.start])

    @property
    def last(self) -> int:
        """The step after which nothing is missing."""
        return max(self.missing, default=self.start)

    @property
    def documents(self) -> int:
        """Documents that are left to be trained on."""
        return (self.last - self.start) * self.stage.fields["recipe"]["batch"]

    def at(self, step: int) -> Node:
        """The stage that ends at a step."""
        return Node("stage", {**self.stage.fields, "step": step}, self.stage.inputs)


def line_of(store: Store, siblings: Sequence[Node], stage: Node) -> Line:
    """What is left of a trajectory up to one of its stages."""
    wanted = [n for n in siblings if n.fields["step"] <= stage.fields["step"]] or [stage]
    missing = {n.fields["step"]: n for n in wanted if not store.has(n)}
    done = [n for n in wanted if n.fields["step"] < min(missing, default=0) and store.has(n)]
    return Line(stage, missing, max(done, key=lambda n: n.fields["step"], default=None))


def frontier(store: Store, siblings: Callable[[Node], Sequence[Node]], wanted: Sequence[Node]) -> Iterator[Line]:
    """The trajectories that could be trained now, each to the longest stage that is wanted, or that wanted scores need."""
    ready: dict[str, Node] = {}
    for node in wanted:
        stage = node if node.kind == "stage" else node.inputs.get("stage")
        while stage is not None and (before := stage.inputs.get("before")) is not None and not store.has(before):
            stage = before
        if stage is not None and not store.has(stage):
            line = trajectory(stage).id
            if line not in ready or ready[line].fields["step"] < stage.fields["step"]:
                ready[line] = stage
    for stage in ready.values():
        yield line_of(store, siblings(stage), stage)


def filling(features: float, device: str) -> int:
    """How many members fill a device's step, each with so many tokens times width."""
    return max(1, int(FEATURES_A_STEP[device] // features))


def stack_size(machine: Machine, most: int, ready: int, workers: int) -> int:
    """How many members one worker takes: no more than it was told, or else than `most`, nor than its share of what is ready."""
    return max(1, min(machine.stack if isinstance(machine.stack, int) else most, -(-ready // workers)))
