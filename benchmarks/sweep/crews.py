"""Who does the cells: resident processes that wait for orders, or a new process for every cell.

All are fed from here, so that the ways can be measured in turn. Threads are pinned by OMP_NUM_THREADS.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from benchmarks.scoring import BATCH, COLD
from benchmarks.sweep.work import Work
from benchmarks.sweep.worker import Order

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "offline"}
PLAIN_TRAINER = Path(__file__).with_name("plain_trainer.py")


Clock = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Took:
    """Seconds of all cells of an order: training, the adapters' folders, probes."""

    whole: float
    """Wall seconds from the order to the last answer."""
    wall: Mapping[str, float]
    """Of each phase, in the process that took longest."""
    cpu: Mapping[str, float]
    """Of each phase, all processes together."""

    def seconds(self, clock: Clock, phase: str | None = None) -> float:
        """Of a phase, or of everything."""
        if phase is None:
            return self.whole if clock == "wall" else sum(self.cpu.values())
        return (self.wall if clock == "wall" else self.cpu)[phase]


class Crew(Protocol):
    """Whoever does an order."""

    name: str
    cores: int
    detail: str

    def do(self, order: Order) -> Took:
        """Do it all."""
        ...

    def close(self) -> None:
        """No more orders."""
        ...


@dataclass(frozen=True)
class Hand:
    """One resident process."""

    process: "subprocess.Popen[str]"
    log: Path

    def tell(self, order: Order) -> None:
        """Send an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(order)) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the next line; ChildProcessError with the end of the log where the process has died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"{self.log}:\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-12:]))
        return json.loads(line)


class Residents:
    """Processes that load the base once and share an order."""

    def __init__(self, name: str, command: Sequence[str], logs: Path, *, workers: int, threads: int, environment: Mapping[str, str] = OFFLINE) -> None:
        self.name, self.cores = name, workers * threads
        logs.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        self.hands = [self._hire(command, logs / f"{name}-{threads}-{i}.log".replace(" ", "-"), {**os.environ, **environment, "OMP_NUM_THREADS": str(threads)}) for i in range(workers)]
        try:
            self.detail = ", ".join({hand.answer()["ready"]: None for hand in self.hands})
        except ChildProcessError:
            self.close()
            raise
        self.start_up = time.perf_counter() - start
        """Seconds from nothing to ready: imports, loading, and whatever a way tunes."""

    def _hire(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Hand:
        with log.open("w") as file:
            return Hand(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=environment), log)

    def do(self, order: Order) -> Took:
        """Every process a part of the cells, as equal as can be."""
        hands = self.hands[: len(order.cells)]
        start = time.perf_counter()
        for i, hand in enumerate(hands):
            hand.tell(replace(order, cells=order.cells[i :: len(hands)], workers=len(hands)))
        answers = [hand.answer() for hand in hands]
        wall = time.perf_counter() - start
        phases = answers[0].keys()
        return Took(wall, {p: max(answer[p][0] for answer in answers) for p in phases}, {p: sum(answer[p][1] for answer in answers) for p in phases})

    def close(self) -> None:
        """Their input ends, and so do they."""
        for hand in self.hands:
            hand.process.communicate()


class Cold:
    """P0: for each cell `accelerate launch` of the plain Trainer script, then lm-evaluation-harness in a process of its own."""

    name, cores = "P0 launch a cell", 2
    start_up = 0.0

    def __init__(self, work: Work) -> None:
        self.work = work
        self.detail = "Trainer, then lm-eval cold"
        # Threads are left as a user finds them.
        self.environment = {name: value for name, value in (os.environ | OFFLINE).items() if name != "OMP_NUM_THREADS"}

    def do(self, order: Order) -> Took:
        """One after the other."""
        train, probe = 0.0, 0.0
        for cell in order.cells:
            order.folder(cell).mkdir(parents=True, exist_ok=True)
            train += self._timed(self._trainer(cell, order))
            if order.questions:
                probe += self._timed(self._harness(cell, order), order.folder(cell) / "nats.json")
        return Took(train + probe, {"train": train, "probe": probe}, {})

    def _trainer(self, cell: int, order: Order) -> list[str]:
        recipe = self.work.recipe
        files = ["--base", self.work.base, "--documents", self.work.documents(cell), "--init", self.work.init(cell), "--out", order.folder(cell) / "adapter"]
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        return [*launch, str(PLAIN_TRAINER), *map(str, files), "--steps", str(order.steps), "--batch", str(order.batch), "--rate", str(recipe.rate)]

    def _harness(self, cell: int, order: Order) -> list[str]:
        pairs = order.folder(cell) / "pairs.json"
        pairs.write_text(json.dumps(self.work.pairs(cell, order.questions)))
        return [sys.executable, "-c", COLD, str(self.work.base), str(order.folder(cell) / "adapter"), str(pairs), str(BATCH)]

    def _timed(self, command: Sequence[str], answer: Path | None = None) -> float:
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise ChildProcessError(f"{command}:\n{done.stderr[-2000:]}")
        if answer:
            answer.write_text(done.stdout.splitlines()[-1])
        return seconds

    def close(self) -> None:
        """Nothing is left running."""


def residents(way: str, name: str, work: Work, *, workers: int, threads: int) -> Residents:
    """A way of `benchmarks.sweep.worker` in so many processes."""
    command = [sys.executable, "-m", "benchmarks.sweep.worker", way, str(work.folder)]
    return Residents(name, command, work.folder / "logs", workers=workers, threads=threads)


def mlora(python: str, source: str, work: Work) -> Residents:
    """P4: mLoRA from a checkout of its own, with a Python that has its dependencies."""
    command = [python, "-m", "benchmarks.sweep.worker", "mlora", str(work.folder)]
    path = os.pathsep.join([source, str(Path(__file__).parents[2])])
    return Residents("P4 mLoRA", command, work.folder / "logs", workers=1, threads=1, environment={"PYTHONPATH": path, **OFFLINE})
