"""A process that does cells one way: it loads, says that it is ready, then does what each line of its input asks.

    python -m benchmarks.sweep.worker WAY FOLDER        one JSON object a line; an order in, what it took out

The model is loaded before it is ready. Everything else of a cell is on the clock: reading and tokenizing documents,
training, the adapter's folder, tokenizing and scoring questions.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.sweep.work import Work, read_work

Took = dict[str, list[float]]
"""Of each phase the wall seconds and the CPU seconds of this process."""


@dataclass(frozen=True)
class Order:
    """Cells to do, and how much of each."""

    cells: Sequence[int]
    out: str
    """Where `<cell>/adapter` and `<cell>/nats.json` go."""
    steps: int
    batch: int
    questions: int = 0
    """0: training alone."""
    stack: int = 0
    """Cells trained together, for the ways that do that; 0: their own choice."""
    workers: int = 1
    """Processes that share the sweep."""

    def folder(self, cell: int) -> Path:
        """What a cell leaves behind."""
        return Path(self.out) / str(cell)

    def chosen(self, documents: Sequence[str]) -> list[str]:
        """The documents of all steps; from the first again where there are too few."""
        return [documents[i % len(documents)] for i in range(self.steps * self.batch)]


class Way(Protocol):
    """One way to do a sweep."""

    def together(self, order: Order) -> int:
        """How many cells it takes at a time."""
        ...

    def train(self, cells: Sequence[int], order: Order) -> None:
        """Train fresh adapters."""
        ...

    def write(self, cells: Sequence[int], order: Order) -> None:
        """Write the adapters just trained as peft folders."""
        ...

    def probe(self, cells: Sequence[int], order: Order) -> list[list[float]]:
        """Nats of every option of each of these cells, whose adapters were just trained."""
        ...


def way_of(name: str, work: Work) -> Way:
    """A way by its name; only what it needs is imported."""
    match name:
        case "ours":
            from benchmarks.sweep.ours import Ours

            return Ours(work)
        case "loop":
            from benchmarks.sweep.loop import Loop

            return Loop(work)
        case "trainer":
            from benchmarks.sweep.trainer import InProcess

            return InProcess(work)
        case "vmap":
            from benchmarks.sweep.vmap import Vmap

            return Vmap(work)
        case "mlora":
            from benchmarks.sweep.mlora import Mlora

            return Mlora(work)
    raise ValueError(f"no way is called {name!r}")


@contextmanager
def on_the_clock(took: Took, phase: str) -> Iterator[None]:
    """Add what happens inside to a phase."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    so_far = took.setdefault(phase, [0.0, 0.0])
    so_far[0] += time.perf_counter() - wall
    so_far[1] += time.process_time() - cpu


def do(way: Way, order: Order) -> Took:
    """Do an order."""
    took: Took = {}
    size = way.together(order)
    for group in (order.cells[start : start + size] for start in range(0, len(order.cells), size)):
        for cell in group:
            order.folder(cell).mkdir(parents=True, exist_ok=True)
        with on_the_clock(took, "train"):
            way.train(group, order)
        with on_the_clock(took, "write"):
            way.write(group, order)
        if not order.questions:
            continue
        with on_the_clock(took, "probe"):
            nats_K = way.probe(group, order)
        for cell, nats in zip(group, nats_K, strict=True):
            (order.folder(cell) / "nats.json").write_text(json.dumps(nats))
    return took


def main() -> None:
    """Serve until the input ends."""
    name, folder = sys.argv[1:]
    # Libraries print; the answers go where only this function writes.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    way = way_of(name, read_work(Path(folder)))
    answers.write(json.dumps({"ready": str(way)}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(do(way, Order(**json.loads(line)))) + "\n")


if __name__ == "__main__":
    main()
