"""Which worker this process is. `accelerate launch` starts several; each takes cells from the shared store.

Cell-parallel is the default: no collectives, so a worker that dies takes nobody with it. To accelerate each
worker then looks like a single process.
"""

import os
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from persona_lab.config.schema import Machine

# What `accelerate launch` and torchrun set. Without them an Accelerator forms no process group.
GROUP_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK")


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


def join(machine: Machine) -> Worker:
    """Read this process's place from the environment, pin its device and threads, and leave the process group."""
    index, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    for variable in GROUP_VARIABLES:
        os.environ.pop(variable, None)
    cuda = machine.device == "cuda" or (machine.device == "auto" and torch.cuda.is_available())
    if cuda:
        torch.cuda.set_device(local % max(torch.cuda.device_count(), 1))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(count)))
    threads = machine.threads if isinstance(machine.threads, int) else max(1, (os.cpu_count() or 1) // max(1, here))
    torch.set_num_threads(threads)
    return Worker(index, count, Accelerator(cpu=not cuda, mixed_precision="no"))
