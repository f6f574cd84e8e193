"""What a run will take: the workers of `persona_lab.experiment.run`, played through with the measured costs. No torch.

Each worker in turn does what it would do next: score what is trained, or else train the next stack, with the documents that
this needs; what it makes is there for the others when it is committed. So waiting, sharing and the last uneven stacks are
counted, and what exists costs nothing.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from persona_lab.config.schema import Machine
from persona_lab.design import Node
from persona_lab.experiment.planning.costs import REPORT, Cost, Measured, fitting, shapes
from persona_lab.experiment.planning.frontier import Line, line_of, stack_size
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import token_nodes
from persona_lab.store.nodes import Store


@dataclass(frozen=True)
class Forecast:
    """What the missing nodes of a plan, and its report, will take."""

    seconds: float
    """On the clock, from the command to the report."""
    workers: int
    by_kind: dict[str, float]
    """Kind of node, `startup` and `report` to seconds, those of all workers added."""
    peak_bytes: float
    """Memory of the largest worker."""
    peak_bytes_all: float
    """Of all workers together."""
    disk_bytes: float
    tokens: float
    """To train on, padding not counted."""


def forecast(plan: Plan, measured: Measured) -> Forecast | None:
    """The time, memory and disk of a run that starts now; None when a shape of what is missing was not measured.

    An adaptive search is foreseen up to its next round: what that asks for is not known yet.
    """
    work = _Work(plan, measured)
    if not work.missing:
        return Forecast(0.0, work.workers, {}, 0.0, 0.0, 0.0, 0.0)
    if not {work.shape[node.id] for node in work.missing} | {REPORT} <= measured.costs.keys():
        return None
    return work.play()


class Foreseen(Store):
    """A store as it will be."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.store.root)
        self.made = {node.id for node in plan.nodes if plan.store.has(node)}

    def has(self, node: Node) -> bool:
        """Whether it is there by then."""
        return node.id in self.made


@dataclass
class _Work:
    """The state of a run that is played through."""

    plan: Plan
    measured: Measured
    by_kind: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    peak: float = 0.0
    disk: float = 0.0
    tokens: float = 0.0
    taken: set[str] = field(default_factory=set)
    """Scores, and trajectories, that a worker is at or has finished."""
    growing: set[str] = field(default_factory=set)
    """Trajectories in training: their scores wait for the end."""
    ready: dict[str, Line] = field(default_factory=dict)
    coming: list[tuple[float, int, tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    """When, a number, which nodes are committed, and which trajectories come to their end."""

    def __post_init__(self) -> None:
        self.store = Foreseen(self.plan)
        self.shape = shapes(self.plan.nodes)
        self.machine: Machine = self.plan.loaded.experiment.machine
        self.workers = self.machine.workers if isinstance(self.machine.workers, int) else max(1, min(self.measured.workers, len(self.plan.cells)))
        scores = dict.fromkeys(node for planned in self.plan.cells for _, node in planned.scores)
        self.wanted = [node for node in scores if not self.store.has(node)]
        branches = dict.fromkeys(node for planned in self.plan.cells for _, node in planned.branches if not self.store.has(node))
        needed = dict.fromkeys(earlier for node in (*self.wanted, *branches) for earlier in (*_unmade(self.store, node), node))
        self.missing = list(needed)
        self.trajectory = {stage.id: line for line, stages in self.plan.siblings.items() for stage in stages}
        self.lines: dict[str, Node] = {}
        for node in needed:
            if node.kind == "stage":
                line = self.trajectory[node.id]
                self.lines[line] = max(self.lines.get(line, node), node, key=lambda stage: stage.fields["step"])

    @cached_property
    def rings(self) -> list[dict[str, int]]:
        """For each worker, in which order it goes through scores and trajectories: from a place of its own."""
        count = len(self.wanted)
        found = []
        for worker in range(self.workers):
            start = worker * count // self.workers
            ring: dict[str, int] = {}
            for at, node in enumerate(self.wanted[start:] + self.wanted[:start]):
                ring[node.id] = at
                for stage in _stages(node):
                    ring.setdefault(self.trajectory[stage.id], at)
            for line in self.lines:  # branches, which no score rests on
                ring.setdefault(line, count)
            found.append(ring)
        return found

    def cost(self, node: Node) -> Cost:
        """Of a node's shape."""
        return self.measured.costs[self.shape[node.id]]

    def play(self) -> Forecast:
        """The whole run."""
        start = self.measured.startup
        self.by_kind["startup"] = self.workers * start
        for base in dict.fromkeys(node for node in self.missing if node.kind == "base"):
            cost = self.cost(base)
            start += self._spend("base", cost.seconds(base.fields.get("steps", 0)), cost.memory(), cost.disk)
            self.store.made.add(base.id)
        free = [(start, worker) for worker in range(self.workers)]
        end = start
        while free:
            now, worker = heapq.heappop(free)
            self._arrive(now)
            until = self._score(worker, now) or self._train(worker, now) or (self.coming[0][0] if self.coming else None)
            if until is not None:
                heapq.heappush(free, (until, worker))
                end = max(end, until)
        report, cells = self.measured.costs[REPORT], len(self.plan.cells)
        self.by_kind[REPORT] = report.seconds(members=cells)
        largest = max(self.peak, report.memory(cells))
        return Forecast(end + self.by_kind[REPORT], self.workers, dict(self.by_kind), largest, largest + (self.workers - 1) * self.peak, self.disk, self.tokens)

    def _arrive(self, now: float) -> None:
        """Commit what is due."""
        while self.coming and self.coming[0][0] <= now:
            _, _, nodes, ended = heapq.heappop(self.coming)
            self.store.made.update(nodes)
            self.growing.difference_update(ended)

    def _later(self, when: float, nodes: Sequence[str], ended: Sequence[str] = ()) -> None:
        heapq.heappush(self.coming, (when, len(self.store.made) + len(self.coming), tuple(nodes), tuple(ended)))

    def _spend(self, kind: str, seconds: float, memory: float, disk: float) -> float:
        """Count what making some nodes takes."""
        self.by_kind[kind] += seconds
        self.peak = max(self.peak, memory)
        self.disk += disk
        return seconds

    def _score(self, worker: int, now: float) -> float | None:
        """Ask the next stack of scores; until when, or None where nothing is trained."""
        ring = self.rings[worker]
        ready = [node for node in self.wanted if node.id not in self.taken and self._askable(node)]
        if not ready:
            return None
        ready.sort(key=lambda node: ring[node.id])
        alike = [node for node in ready if self.shape[node.id] == self.shape[ready[0].id]]
        most = self.machine.stack if isinstance(self.machine.stack, int) else self.measured.asked
        size = min(most, -(-len(alike) // self.workers)) if "stage" in ready[0].inputs else 1
        stack = alike[:size]
        self.taken.update(node.id for node in stack)
        cost, members = self.cost(stack[0]), len(stack)
        until = now + self._spend("scores", cost.seconds(members=members), cost.memory(members), members * cost.disk)
        self._later(until, [node.id for node in stack])
        return until

    def _askable(self, scores: Node) -> bool:
        stage = scores.inputs.get("stage")
        return stage is None or (self.store.has(stage) and self.trajectory[stage.id] not in self.growing)

    def _train(self, worker: int, now: float) -> float | None:
        """Train the next stack; until when, or None where nothing is ready."""
        ring = self.rings[worker]
        ready = [line for line, stage in self.lines.items() if line not in self.taken and ("before" not in stage.inputs or self.store.has(stage.inputs["before"]))]
        if not ready:
            return None
        ready.sort(key=lambda line: (-self._line(line).documents, ring[line]))
        first = self._line(ready[0])
        alike = [line for line in ready if self._line(line).key == first.key]
        cost = self.cost(first.stage)
        size = stack_size(self.machine, min(int(cost.filling), fitting(cost, self.measured.room)), len(alike), self.workers)
        stack = alike[:size]
        self.taken.update(stack)
        self.growing.update(stack)
        now += sum(self._documents(self.lines[line]) for line in stack)
        return self._steps([self._line(line) for line in stack], stack, now)

    def _line(self, trajectory: str) -> Line:
        """A trajectory that is ready, with what is missing of it: until it is trained that stays the same."""
        if trajectory not in self.ready:
            self.ready[trajectory] = line_of(self.store, self.plan.siblings[trajectory], self.lines[trajectory])
        return self.ready[trajectory]

    def _steps(self, lines: Sequence[Line], ids: Sequence[str], now: float) -> float:
        """The steps of a stack, from which members leave when they are done, and its commits on the way."""
        costs = {line.trajectory.id: self.cost(line.stage) for line in lines}
        begun, reached = now, lines[0].start
        now += max(cost.once for cost in costs.values()) + sum(cost.member for cost in costs.values())
        stops = sorted({step for line in lines for step in line.missing})
        for stop in stops:
            training = [cost for line, cost in zip(lines, costs.values(), strict=True) if line.last > reached]
            now += (stop - reached) * (max((cost.unit for cost in training), default=0.0) + sum(cost.unit_member for cost in training))
            committed = [line for line in lines if stop in line.missing]
            now += sum(costs[line.trajectory.id].commit for line in committed)
            reached = stop
            self._later(now, [line.missing[stop].id for line in committed], ids if stop == stops[-1] else ())
        for line, cost in zip(lines, costs.values(), strict=True):
            self.tokens += (line.last - line.start) * line.stage.fields["recipe"]["batch"] * cost.tokens
        memory = max(cost.peak for cost in costs.values()) + sum(cost.peak_member for cost in costs.values())
        self._spend("stage", now - begun, memory, sum(len(line.missing) * costs[line.trajectory.id].disk for line in lines))
        return now

    def _documents(self, stage: Node) -> float:
        """Seconds to make a mixture, its pools and their tokens, as far as nobody has."""
        seconds, mixture = 0.0, stage.inputs["mixture"]
        for node in (*mixture.inputs.values(), mixture, *token_nodes(stage).values()):
            if not self.store.has(node):
                units, cost = size_of(node), self.cost(node)
                seconds += self._spend(node.kind, cost.seconds(units), cost.memory(), units * cost.disk_unit)
                self.store.made.add(node.id)
        return seconds


def size_of(node: Node) -> int:
    """Documents of a mixture, of a pool, or of the pool that tokens are made of."""
    if node.kind == "mixture":
        return sum(share["count"] for share in node.fields["shares"])
    return (node.inputs["pool"] if node.kind == "tokens" else node).fields["size"]


def _stages(scores: Node) -> Iterator[Node]:
    """Every stage that scores rest on, the last one first."""
    stage = scores.inputs.get("stage")
    while stage is not None:
        yield stage
        stage = stage.inputs.get("before")


def _unmade(store: Store, node: Node) -> Iterator[Node]:
    """What has to be made before a node, inputs first; what only made things need is left out."""
    for earlier in node.inputs.values():
        if not store.has(earlier):
            yield from _unmade(store, earlier)
            yield earlier
