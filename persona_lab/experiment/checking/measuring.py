"""Measuring what an experiment costs on this machine: a few real steps, stacks and scores of its own, in a sandbox.

Everything goes through the code that a run goes through. What is made there is not what a run would make: base and
adapters have hardly been trained, and stand under the names of those that will be. So the sandbox is a store of its own,
and nothing of it outlives the measurement.

As many workers as a run would have do the same at the same time, each in its own sandbox: they share the caches and the
memory of the machine, and one alone would be too fast. What the first one finds is what counts.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from data_gen.pools import world_document
from data_gen.telling import read_world
from persona_lab.config.schema import EmbeddedBase
from persona_lab.design import Node
from persona_lab.experiment.checking.sandbox import Sandbox, Timed, room
from persona_lab.experiment.making.interruption import PARENT, Interruption
from persona_lab.experiment.making.launch import crew, crew_size
from persona_lab.experiment.making.members import features
from persona_lab.experiment.making.scoring import MEMBERS
from persona_lab.experiment.planning.costs import REPORT, Cost, Measured, shapes
from persona_lab.experiment.planning.forecast import size_of
from persona_lab.experiment.planning.frontier import filling, stack_size
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import PlannedCell, token_nodes
from persona_lab.experiment.reading.show import show
from persona_lab.store.files import make_folder
from persona_lab.train.batches import encode

PRETRAINING, TRAINING = (20, 40), (10, 30)
"""Steps of a base and of a stage between which the time is taken; those before warm up. Progress is told at them."""
DOCUMENTS = 400
"""Written, or tokenized, to find out what one takes."""
REPORTED = (2, 8)
"""Cells of a small report and of a larger one."""

Clock = Callable[[], float]
Progress = Callable[[str, int, int], None]


def measure(plan: Plan, command: Sequence[str], interruption: Interruption, progress: Progress, clock: Clock = time.perf_counter) -> Measured:
    """What a run of this plan costs here; a worker that was hired for company does not return.

    Args:
        plan: the experiment.
        command: what the other workers are started with.
        interruption: whether somebody asked this process to stop.
        progress: told how far it is.
        clock: what is taken for time, seconds; `time.process_time` leaves out what else the machine is busy with.

    Raises:
        CheckFailed: the audit of a mixture did not pass.
        Interrupted: a signal came.
    """
    begun = time.perf_counter()
    home = plan.store.root / "measured"
    make_folder(home)
    if PARENT in os.environ:
        _keep_company(plan, home / f"at-{os.environ[PARENT]}", interruption)
    workers = crew_size(plan.loaded.experiment.machine, 65_536)
    root = home / f"at-{os.getpid()}"
    shutil.rmtree(root, ignore_errors=True)  # of a killed process with this number
    try:
        with crew(command, min(workers, len(plan.cells)), interruption):
            # Imports: this process has done nothing else.
            imported = time.process_time()
            measuring = _Measuring(plan, Sandbox(plan, root, interruption, clock))
            measuring.everything(progress)
        measuring.report()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    seconds = imported + time.perf_counter() - begun
    return Measured(workers, MEMBERS, imported + measuring.startup, seconds, room(plan.loaded.experiment.machine, workers), measuring.costs)


def _keep_company(plan: Plan, root: Path, interruption: Interruption) -> NoReturn:
    """Do what the first worker does, until it ends this process."""
    measuring = _Measuring(plan, Sandbox(plan, root, interruption))
    measuring.everything(lambda what, done, total: None)
    while True:
        interruption.leave()
        for stage in measuring.first["stage"].values():
            measuring.stage(stage)


class _Measuring:
    """The shapes of a plan, each with the first node of it, and what they were found to cost."""

    def __init__(self, plan: Plan, sandbox: Sandbox) -> None:
        self.plan, self.sandbox = plan, sandbox
        self.shape = shapes(plan.nodes)
        self.alike: dict[str, list[Node]] = {}
        for node in plan.nodes:
            if node.kind != "round":
                self.alike.setdefault(self.shape[node.id], []).append(node)
        self.first: dict[str, dict[str, Node]] = {kind: {} for kind in ("base", "pool", "mixture", "tokens", "stage", "scores")}
        for shape, nodes in self.alike.items():
            self.first[nodes[0].kind][shape] = nodes[0]
        self.costs: dict[str, Cost] = {}
        self.startup = 0.0
        """Seconds of what a worker does once: loading the base, and whatever is imported at the first step."""
        self.trained: dict[str, Node] = {}
        """Shape of a stage to one that was trained."""

    def everything(self, progress: Progress) -> None:
        """All shapes but the report."""
        done, total = 0, sum(map(len, self.first.values())) - sum(len(self.first[kind]) for kind in ("pool", "mixture", "tokens"))
        for kind, measured in (("base", self.base), ("stage", self.stage), ("scores", self.scores)):
            for node in self.first[kind].values():
                progress("measuring", done, total)
                measured(node)
                done += 1
        progress("measuring", total, total)

    def base(self, node: Node) -> None:
        """One that exists is taken as it is."""
        if self.sandbox.copied(node):
            return
        if not isinstance(self.plan.loaded.experiment.base, EmbeddedBase):
            timed = self.sandbox.make(node)
            self.costs[self.shape[node.id]] = Cost(once=timed.seconds, peak=timed.peak, disk=self.sandbox.bytes_of(node))
            return
        warm, last = PRETRAINING
        brief = Node("base", {**node.fields, "steps": last})
        timed = self.sandbox.make(brief)
        self.sandbox.pass_off(brief, node)
        world = read_world(node.fields["world"])
        begun = self.sandbox.clock()
        texts = [world_document(world, node.fields["seed"], i).text for i in range(DOCUMENTS)]
        encode(self.sandbox.shop.base(node)[1], texts, on="all", where="the world's text")
        step = timed.between(warm, last) + (self.sandbox.clock() - begun) / DOCUMENTS * node.fields["batch"]
        self.costs[self.shape[node.id]] = Cost(once=max(0.0, timed.seconds - last * step), unit=step, peak=timed.peak, disk=self.sandbox.bytes_of(node))

    def documents(self, stage: Node) -> None:
        """A mixture, its pools and their tokens."""
        mixture = stage.inputs["mixture"]
        for node in (*mixture.inputs.values(), mixture, *token_nodes(stage).values()):
            if not self.sandbox.shop.store.has(node):
                timed = self.sandbox.make(node)
                units, disk = size_of(node), self.sandbox.bytes_of(node)
                self.costs.setdefault(self.shape[node.id], Cost(unit=timed.seconds / units, peak=timed.peak, disk_unit=disk / units))

    def stage(self, node: Node) -> None:
        """A stack of one, and one as large as a run would train."""
        loaded = self.sandbox.timed(lambda: self.sandbox.shop.base(node.inputs["base"]))
        self.documents(node)
        machine, batch, shape = self.plan.loaded.experiment.machine, node.fields["recipe"]["batch"], self.shape[node.id]
        most = filling(features(self.sandbox.shop, node), self.sandbox.shop.accelerator.device.type)
        size = max(2 if machine.stack != 1 else 1, stack_size(machine, most, len(self.alike[shape]), self.sandbox.worker.count))
        warm, last = TRAINING
        cold = None if self.trained else self.sandbox.train(node, 1, last)
        small, large = self.sandbox.train(node, 1, last), self.sandbox.train(node, size, last)
        self.startup += loaded.seconds + (max(0.0, cold.seconds - small.seconds) if cold else 0.0)
        self.trained[shape] = made = self.sandbox.newest
        unit, unit_member = _line((1, small.between(warm, last)), (size, large.between(warm, last)))
        after = [stack.after(last) for stack in (small, large)]
        before = [stack.seconds - stack.after(last) - last * stack.between(warm, last) for stack in (small, large)]
        once, member = _line((1, before[0]), (size, before[1]))
        peak, peak_member = _line((1, small.peak), (size, large.peak))
        tokens = features(self.sandbox.shop, node) / batch / self.sandbox.shop.base(node.inputs["base"])[0].config.get_text_config().hidden_size
        disk = self.sandbox.bytes_of(made)
        self.costs[shape] = Cost(once, member, after[1] / size, unit, unit_member, peak, peak_member, disk, tokens=tokens, filling=most)

    def scores(self, node: Node) -> None:
        """Scores of one adapter, and of as many as a run would ask together."""
        shape = self.shape[node.id]
        machine, nodes = self.plan.loaded.experiment.machine, self.alike[shape]
        size = min(machine.stack if isinstance(machine.stack, int) else MEMBERS, -(-len(nodes) // self.sandbox.worker.count)) if "stage" in node.inputs else 1
        self._pass_off_stages(nodes[: size + 2])
        timed = [self.sandbox.score(stack) for stack in (nodes[:1], nodes[1:2], nodes[2 : size + 2]) if stack]
        small, large = (1, timed[min(1, len(timed) - 1)]), (max(1, min(size, len(nodes) - 2)), timed[-1])
        once, member = _line((1, small[1].seconds), (large[0], large[1].seconds))
        peak, peak_member = _line((1, small[1].peak), (large[0], large[1].peak))
        self.costs[shape] = Cost(once=once, member=member, peak=peak, peak_member=peak_member, disk=self.sandbox.bytes_of(node))

    def _pass_off_stages(self, scores: Iterable[Node]) -> None:
        for node in scores:
            if (stage := node.inputs.get("stage")) is not None:
                self.sandbox.pass_off(self.trained[self.shape[stage.id]], stage)

    def report(self) -> None:
        """The report of a few cells, and of some more; what is imported for it counts once."""
        treatment = self.plan.loaded.experiment.analysis.treatment
        cells = [planned for planned in self.plan.cells if planned.cell.condition == treatment][: REPORTED[1]]
        groups: dict[str, list[Node]] = {}
        for node in dict.fromkeys(node for planned in cells for _, node in planned.scores):
            if not self.sandbox.shop.store.has(node):
                groups.setdefault(self.shape[node.id], []).append(node)
        for nodes in groups.values():
            self._pass_off_stages(nodes)
            for stack in [nodes] if "stage" in nodes[0].inputs else [[node] for node in nodes]:
                self.sandbox.score(stack)
        cold, few, many = (self._shown(cells[:size]) for size in (REPORTED[0], *REPORTED))
        small, large = min(REPORTED[0], len(cells)), len(cells)
        once, member = _line((small, few.seconds), (large, many.seconds))
        peak, peak_member = _line((small, few.peak), (large, many.peak))
        self.costs[REPORT] = Cost(once=once + max(0.0, cold.seconds - few.seconds), member=member, peak=peak, peak_member=peak_member)

    def _shown(self, cells: Sequence[PlannedCell]) -> Timed:
        """The report of some cells."""
        plan = replace(self.plan, runs=self.sandbox.root, cells=tuple(cells), opening=tuple(cells), rounds=())
        plan.write()
        return self.sandbox.timed(lambda: show(plan))


def _line(small: tuple[int, float], large: tuple[int, float]) -> tuple[float, float]:
    """Intercept and slope of a figure that grows with the members, neither below zero; exact at the larger number, which is the usual one."""
    (k, a), (n, b) = small, large
    slope = min(max(0.0, (b - a) / (n - k)), b / n) if n > k else 0.0
    return b - n * slope, slope
