"""A sandbox: a store of its own in which pieces of a run are made, timed and weighed, and pass for what they are not.

It lies beside the real store, on the same disk. Whoever opens one removes it.
"""

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch

from persona_lab.config.schema import HuggingFaceBase, Machine
from persona_lab.design import Node
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.making.launch import cores, join, on_gpu
from persona_lab.experiment.making.scoring import score_stack
from persona_lab.experiment.making.stacks import train_stack
from persona_lab.experiment.making.workshop import Workshop
from persona_lab.experiment.planning.frontier import Line
from persona_lab.experiment.planning.plan import Plan
from persona_lab.store.nodes import Store
from persona_lab.store.seal import COMMIT, MANIFEST
from persona_lab.tracking import chosen_mode

POLL_SECONDS = 0.1
CLEAR_PEAK = Path("/proc/self/clear_refs")
"""Linux forgets how much memory a process has filled at most when 5 is written to it."""


@dataclass
class Timed:
    """A piece of work: seconds, the most memory that was filled meanwhile, and when each step was done."""

    begun: float
    seconds: float = 0.0
    peak: float = 0.0
    at: dict[int, float] = field(default_factory=dict)

    def between(self, first: int, last: int) -> float:
        """Seconds of a step, mean over those from `first` to `last`."""
        return (self.at[last] - self.at[first]) / (last - first)

    def after(self, step: int) -> float:
        """Seconds from a step to the end."""
        return self.begun + self.seconds - self.at[step]


class Sandbox:
    """A workshop with a store of its own, for one worker of a measurement."""

    def __init__(self, plan: Plan, folder: Path, interruption: Interruption, clock: Callable[[], float] = time.perf_counter) -> None:
        machine = plan.loaded.experiment.machine
        # What is measured is no result: it is never sent anywhere.
        machine = machine.model_copy(update={"wandb": "disabled" if chosen_mode(machine.wandb) == "disabled" else "offline"})
        self.plan, self.folder, self.worker, self.clock = plan, folder, join(machine), clock
        self.root = folder / str(self.worker.index)
        base = plan.loaded.experiment.base
        self.shop = Workshop(
            store=Store(self.root / "store"),
            machine=machine,
            accelerator=self.worker.accelerator,
            group="measuring",
            folder=self.root,
            hf=base if isinstance(base, HuggingFaceBase) else None,
            files=plan.files,
            interruption=interruption,
            on_progress=self._mark,
        )
        self._numbers = count(self.worker.index * 1_000_000)
        self._timed = Timed(0.0)
        self.newest: Node
        """The first member of the last stack that was trained."""

    def _mark(self, what: str, done: int, total: int) -> None:
        self._timed.at[done] = self.clock()

    def timed(self, action: Callable[[], object]) -> Timed:
        """What an action takes."""
        weigh = _scales(self.shop.machine)
        self._timed = timed = Timed(self.clock())
        action()
        timed.seconds = self.clock() - timed.begun
        timed.peak = weigh()
        return timed

    def make(self, node: Node) -> Timed:
        """Make a node; a base with all cores, as a run does."""
        threads = torch.get_num_threads()
        if node.kind == "base" and self.shop.machine.threads == "auto":
            torch.set_num_threads(cores())
        timed = self.timed(lambda: self.shop.make(node))
        torch.set_num_threads(threads)
        return timed

    def bytes_of(self, node: Node) -> float:
        """What a node fills on the disk."""
        return sum(file.stat().st_size for file in self.shop.store.folder(node).rglob("*") if file.is_file())

    def copied(self, node: Node) -> bool:
        """Take over a base that exists; a worker that was hired waits for the first one's."""
        made = Store(self.folder / "0" / "store")
        while not self.worker.first and not made.has(node):
            self.shop.interruption.leave()
            time.sleep(POLL_SECONDS)
        source = made if made.has(node) else self.plan.store
        if source.has(node):
            self._copy(source.folder(node), node)
        return source.has(node)

    def pass_off(self, made: Node, node: Node) -> None:
        """What was made of `made` stands for `node` from now on."""
        if not self.shop.store.has(node):
            self._copy(self.shop.store.folder(made), node)

    def _copy(self, source: Path, node: Node) -> None:
        if not self.shop.store.has(node):
            with self.shop.store.attempt(node) as attempt:
                shutil.copytree(source, attempt.folder, ignore=shutil.ignore_patterns(MANIFEST, COMMIT), dirs_exist_ok=True)

    def train(self, stage: Node, members: int, steps: int) -> Timed:
        """A stack of fresh adapters like this stage, of so many steps, each with documents of its own."""
        lines = []
        for _ in range(members):
            number = next(self._numbers)
            # In another order: a stack whose members read the same would be padded too little.
            mixture = Node("mixture", {**stage.inputs["mixture"].fields, "seed": number}, stage.inputs["mixture"].inputs)
            recipe = {**stage.fields["recipe"], "init": number}
            inputs = {role: made for role, made in stage.inputs.items() if role != "before"}
            node = Node("stage", {"recipe": recipe, "step": steps}, {**inputs, "mixture": mixture})
            lines.append(Line(node, {steps: node}, None))
        self.shop.base(stage.inputs["base"])
        timed = self.timed(lambda: train_stack(self.shop, lines, []))
        self.newest = lines[0].stage
        return timed

    def score(self, scores: Sequence[Node]) -> Timed:
        """Ask the adapters of these scores together."""
        self.shop.base(scores[0].inputs["base"])
        return self.timed(lambda: score_stack(self.shop, scores, scores, []))


def _scales(machine: Machine) -> Callable[[], float]:
    """From now on: the most bytes of the device's memory that this process fills; called when the work is done."""
    if on_gpu(machine):
        torch.cuda.reset_peak_memory_stats()
        return lambda: float(torch.cuda.max_memory_reserved())
    if sys.platform == "linux":
        CLEAR_PEAK.write_text("5")
        return lambda: 1024.0 * _number(Path("/proc/self/status"), "VmHWM:")
    # Elsewhere the most since the process began.
    return lambda: float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def room(machine: Machine, workers: int) -> float:
    """Bytes of the device's memory that one of so many workers may fill, with what it fills already."""
    if on_gpu(machine):
        return float(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())
    pages = os.sysconf("SC_PAGE_SIZE")
    if sys.platform != "linux":
        return pages * os.sysconf("SC_PHYS_PAGES") / workers
    free = 1024.0 * _number(Path("/proc/meminfo"), "MemAvailable:")
    return free / workers + 1024.0 * _number(Path("/proc/self/status"), "VmRSS:")


def _number(file: Path, name: str) -> int:
    return int(file.read_text().partition(name)[2].split()[0])
