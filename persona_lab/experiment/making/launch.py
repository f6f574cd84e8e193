"""Which worker this process is, and hiring more of them on this machine.

Workers share nothing but the store: each takes whatever is missing and not leased. `accelerate launch` starts
several; a plain `run` hires one for each core or GPU, which is faster than giving one process all cores, because the
products of a small model are too small to be divided. No collectives, so a worker that dies takes nobody with it. To
accelerate each worker looks like a single process.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from persona_lab.config.schema import Machine
from persona_lab.experiment.making.interruption import PARENT, Interruption

# What `accelerate launch` and torchrun set. Without them an Accelerator forms no process group.
GROUP_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK")
MOST_WORKERS = 8
"""Hired by `auto` on a CPU: each one imports torch, which takes seconds and half a gigabyte."""


@dataclass(frozen=True)
class Worker:
    """One of `count` processes that work on the same run."""

    index: int
    count: int
    accelerator: Accelerator

    @property
    def first(self) -> bool:
        """The one that writes the report."""
        return self.index == 0


def on_gpu(machine: Machine) -> bool:
    """Whether the work is done on a GPU."""
    return machine.device == "cuda" or (machine.device == "auto" and torch.cuda.is_available())


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def join(machine: Machine) -> Worker:
    """Read this process's place from the environment, pin its device and threads, and leave the process group."""
    index, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(count)))
    for variable in GROUP_VARIABLES:
        os.environ.pop(variable, None)
    gpu = on_gpu(machine)
    if gpu:
        torch.cuda.set_device(local % max(torch.cuda.device_count(), 1))
    torch.set_num_threads(machine.threads if isinstance(machine.threads, int) else max(1, cores() // max(1, here)))
    return Worker(index, count, Accelerator(cpu=not gpu, mixed_precision="no"))


def crew_size(machine: Machine, cells: int) -> int:
    """How many processes work on a run that was started as a single one."""
    if isinstance(machine.workers, int):
        return machine.workers
    most = torch.cuda.device_count() if on_gpu(machine) else min(cores(), MOST_WORKERS)
    return max(1, min(most, cells))


@contextmanager
def crew(command: Sequence[str], count: int, interruption: Interruption) -> Iterator[None]:
    """While the block runs, `count - 1` further workers run the same command; they stop when nothing is missing.

    Asked to stop, they keep their checkpoints, and the block does not end before they have. Does nothing in a process that was started as one of several.
    """
    if "RANK" in os.environ or count < 2:
        yield
        return
    places = [{"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)} for i in range(count)]
    for place in places[1:]:
        environment = {**os.environ, **place, PARENT: str(os.getpid())}
        worker = subprocess.Popen([sys.executable, "-m", "persona_lab", *command], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        interruption.hired.append(worker)
    os.environ.update(places[0])
    try:
        yield
    finally:
        for worker in interruption.hired:
            worker.terminate()
        for worker in interruption.hired:
            worker.wait()
