"""All ways side by side: measured in turn, then judged.

A way that takes one cell after the other costs the same for each, so a repeat gives it a few cells, each repeat
others; ours does all of them every time.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.flops import spread
from benchmarks.sweep.crews import Clock, Cold, Crew, Took, mlora, residents
from benchmarks.sweep.judge import Judge, differences, verdict
from benchmarks.sweep.work import Work
from benchmarks.sweep.worker import Order

ONE, TWO = "ours, 1 process", "ours, 2 processes"
STACKED = 8
"""Cells of a repeat for the ways that train a stack of so many."""


@dataclass(frozen=True)
class Plan:
    """What is measured of each way."""

    work: Work
    cells: int
    peer_cells: int
    cold_cells: int
    repeats: int
    questions: int
    stack: int
    clock: Clock
    judged: int = 2
    mlora: tuple[str, str] | None = None
    """A Python and a checkout."""

    def out(self, crew: str) -> Path:
        """Where a way leaves its adapters."""
        return self.work.folder / "out" / crew.replace(" ", "-")

    def order(self, crew: str, cells: Sequence[int], **changed: int) -> Order:
        """All steps and questions of some cells."""
        recipe = self.work.recipe
        whole = Order(cells, str(self.out(crew)), recipe.steps, recipe.batch, self.questions, self.stack)
        return replace(whole, **changed)

    def some(self, repeat: int, number: int) -> list[int]:
        """So many cells, in each repeat the next ones."""
        return [(repeat * number + i) % self.cells for i in range(min(number, self.cells))]


@dataclass
class Measured:
    """Seconds a cell of one way."""

    crew: Crew
    cells: int
    """Of one repeat."""
    clock: Clock
    train: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    """Training, the adapter's folder, probes; empty for a way that trains only."""

    def add(self, took: Took, order: Order) -> None:
        """One repeat."""
        number = len(order.cells)
        self.train.append(took.seconds(self.clock, "train") / number)
        if order.questions:
            self.whole.append(took.seconds(self.clock) / number)


def crews(plan: Plan, names: Sequence[str]) -> Iterator[tuple[Crew, int, bool]]:
    """Each way, the cells it does in a repeat, and whether it scores too; the warm ones are started one after the other."""
    work, few = plan.work, plan.peer_cells
    resident = {
        "ours": [("ours", ONE, 1, 1, plan.cells), ("ours", TWO, 2, 1, plan.cells)],
        "P1": [("trainer", "P1 Trainer", 1, 1, few)],
        "P2": [("loop", "P2 loop, 1 thread", 1, 1, few), ("loop", "P2 loop, 2 threads", 1, 2, few)],
        "P3": [("loop", "P3 loop, 2 processes", 2, 1, max(few, 2))],
        "P6": [("vmap", "P6 vmap", 1, 1, max(few, STACKED))],
    }
    for name in names:
        for way, called, workers, threads, cells in resident.get(name, []):
            yield residents(way, called, work, workers=workers, threads=threads), min(cells, plan.cells), way != "vmap"
    if "P4" in names and plan.mlora:
        python, checkout = plan.mlora
        yield mlora(python, checkout, work), min(max(few, STACKED), plan.cells), False
    if "P0" in names and plan.cold_cells:
        yield Cold(work), plan.cold_cells, True


def measure(plan: Plan, names: Sequence[str], between: Callable[[], None]) -> list[Measured]:
    """Every way in turn, `repeats` times, and what is to be measured `between` them; the cold one once."""
    found: list[tuple[Measured, bool]] = []
    try:
        for crew, cells, scores in crews(plan, names):
            # Seconds of a processor leave out what others do on the machine; of several processes only the wall says how they share it.
            found.append((Measured(crew, cells, "cpu" if plan.clock == "cpu" and crew.cores == 1 else "wall"), scores))
        for repeat in range(-1, plan.repeats):
            for one, scores in found:
                cold = isinstance(one.crew, Cold)
                if cold and repeat != 0:
                    continue
                # The round before the first warms up, and is short.
                short = {"steps": 2, "questions": min(2, plan.questions)} if repeat < 0 else {}
                order = plan.order(one.crew.name, plan.some(max(repeat, 0), one.cells), **short | ({} if scores else {"questions": 0}))
                took = one.crew.do(order)
                if repeat >= 0:
                    one.add(took, order)
            if repeat >= 0:
                between()
    finally:
        for one, _ in found:
            one.crew.close()
    return [one for one, _ in found]


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """How many times ours."""
    return f"x{statistics.median(theirs) / statistics.median(ours):.2f}" if theirs and ours else "-"


def table(plan: Plan, found: Sequence[Measured]) -> Iterator[str]:
    """A line a way: no figure without its verdict."""
    judge = Judge(plan.work)
    by_name = {one.crew.name: one for one in found}
    yield f"{'':22}{'clock':6}{'cells':6}{'training, s a cell':31}{'x 1 pr.':8} {'x 2 pr.':8} {'with probes, s a cell':31}{'x 1 pr.':8} {'x 2 pr.':8}"
    for one in found:
        cells = range(min(plan.judged, one.cells))
        trained, scored = differences(judge, plan.out(one.crew.name), plan.out(ONE), cells, plan.questions)
        times = []
        for phase in ("train", "whole"):
            seconds: list[float] = getattr(one, phase)
            times.append(f"{spread(seconds) if seconds else '-':31}" + " ".join(f"{ratio(seconds, getattr(by_name[name], phase)) if name in by_name else '-':8}" for name in (ONE, TWO)))
        yield f"{one.crew.name:22}{one.clock:6}{one.cells:<6}{times[0]} {times[1]}  {verdict(trained, scored)}; {one.crew.detail}"

