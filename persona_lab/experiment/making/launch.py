"""Which worker this process is, and hiring more of them on this machine.

Workers share nothing but the store: each takes whatever is missing and not leased. `accelerate launch` starts
several; a plain `run` hires one for each core or GPU, which is faster than giving one process all cores, because the
products of a small model are too small to be divided. No collectives, so a worker that dies takes nobody with it. To
accelerate each worker looks like a single process.

With `machine.data_parallel=true`, or under an accelerate config with FSDP, all processes of a launch are one worker
instead (`train.parallel`): each step is divided among them, and one that dies ends the launch. DeepSpeed is left out: it
steps the optimizer itself, where a bank steps each member by its own rate, clipping and count.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from persona_lab.config.schema import Machine
from persona_lab.errors import EnvironmentFault
from persona_lab.experiment.making.interruption import PARENT, Interruption
from persona_lab.train.parallel import STEP_TIMEOUT, Team

log = logging.getLogger(__name__)

# What `accelerate launch` and torchrun set. Without them an Accelerator forms no process group.
GROUP_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK")
FSDP, DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
"""What `accelerate launch` says of its config."""
SEVERAL = "accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 -m persona_lab run CONFIG machine.data_parallel=true"
MOST_WORKERS = 8
"""Hired by `auto` on a CPU: each one imports torch, which takes seconds and half a gigabyte."""


@dataclass(frozen=True)
class Worker:
    """One of `count` workers on the same run: a process, or a team of them."""

    index: int
    count: int
    accelerator: Accelerator
    team: Team | None = None
    """The processes of the launch that are this worker, where they are more than one."""

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
    (index, count), (task, tasks), gpu = _place(machine), _task(), on_gpu(machine)
    for variable in GROUP_VARIABLES:
        os.environ.pop(variable, None)
    return Worker(task * count + index, tasks * count, Accelerator(cpu=not gpu, mixed_precision="no"))


def works_together(machine: Machine) -> bool:
    """Whether all processes of this launch are one worker."""
    return machine.data_parallel or _switched_on(FSDP) or _switched_on(DEEPSPEED)


def check_whole(machine: Machine) -> None:
    """For what loads its base whole in each process: an instrument. Says so where a launch or a config asks for more.

    Raises:
        EnvironmentFault: PL5209, under FSDP or DeepSpeed, which would leave the base empty in all processes but one.
    """
    if _switched_on(FSDP) or _switched_on(DEEPSPEED):
        fix = "Use it without --config_file, on a device that holds the model; an experiment with `adapters:` can be trained first, without them"
        raise EnvironmentFault("PL5209", "accelerate launch", f"an instrument loads its model whole in each process, which FSDP and DeepSpeed do not allow. {fix}.")
    if machine.data_parallel:
        log.warning("machine.data_parallel divides the steps of `run` alone: an instrument loads its model whole in each process, and processes share its trainings")


def team_up(machine: Machine, interruption: Interruption) -> Worker:
    """Join the other processes of this launch, pin this one's device and threads; the first of them leads.

    Raises:
        EnvironmentFault: this process is alone, or the launch is of a kind that is left out.
    """
    if _switched_on(DEEPSPEED):
        fix = "Use configs/accelerate/fsdp2.yaml for a model that does not fit, or configs/accelerate/ddp.yaml."
        raise EnvironmentFault("PL5205", "accelerate launch", f"DeepSpeed steps the optimizer itself, and each adapter of a stack has a step of its own. {fix}")
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        said = "`accelerate launch --cpu` starts one process, whatever --num_processes says" if "MASTER_PORT" in os.environ else "this process was started alone"
        fix = f"Use `{SEVERAL}`, with ACCELERATE_USE_CPU=true before it on a machine without GPUs, or leave machine.data_parallel out"
        raise EnvironmentFault("PL5203", "machine.data_parallel", f"needs several processes: {said}. {fix}.")
    sharded = _switched_on(FSDP)
    if sharded and (os.environ.get("FSDP_VERSION", "1") != "2" or _switched_on("FSDP_OFFLOAD_PARAMS")):
        raise EnvironmentFault("PL5207", "accelerate launch", "needs fsdp_version 2 and no fsdp_offload_params. Use --config_file configs/accelerate/fsdp2.yaml.")
    # `models.sharding` shards, on any device. Left to themselves accelerate and transformers would load no weights in all processes but one.
    os.environ.pop(FSDP, None)
    (index, count), (task, tasks), gpu = _place(machine), _task(), on_gpu(machine)
    accelerator = Accelerator(cpu=not gpu, mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=STEP_TIMEOUT)])
    return Worker(task, tasks, accelerator, Team(index, count, sharded=sharded, asked=interruption.asked, ask=interruption.ask))


def _switched_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def _place(machine: Machine) -> tuple[int, int]:
    """Which process of how many this is; it takes its GPU, or its share of the cores."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if on_gpu(machine):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % max(torch.cuda.device_count(), 1))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(count)))
    torch.set_num_threads(machine.threads if isinstance(machine.threads, int) else max(1, cores() // max(1, here)))
    return int(os.environ.get("RANK", "0")), count


def _task() -> tuple[int, int]:
    """Which task of how many this is, of an array that `persona-lab launch` submitted: they share the work as processes do, a team as one."""
    return int(os.environ.get("PERSONA_LAB_TASK", "0")), int(os.environ.get("PERSONA_LAB_TASKS", "1"))


def crew_size(machine: Machine, cells: int) -> int:
    """How many processes work on a run that was started as a single one."""
    if works_together(machine):
        return 1
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
