"""What one job of `persona-lab launch` asks of a scheduler: `machine.cluster`.

    machine: {engine: slurm, cluster: {partition: gpu, time: 8:00:00, gpus: 4, jobs: 8, setup: [module load cuda/12]}}

Only `setup` is shell, and its author's own; every other field is held to what needs no quotes anywhere.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from data_gen.world import Strict

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,@+-]{0,199}$")]
"""A name that a scheduler knows, without spaces or quotes."""
LEAST_MINUTES = 10
OPTION = re.compile(r"--[a-z][a-z-]*(=[A-Za-z0-9_.,:=+@%/|&*()\[\]-]+)?")


def _lines(lines: list[str]) -> list[str]:
    if broken := next((line for line in lines if not line.isprintable()), None):
        raise ValueError(f"must be single lines of printable text, got {broken!r}. Use one item for each line")
    return lines


def _options(lines: list[str]) -> list[str]:
    if wrong := next((line for line in _lines(lines) if not OPTION.fullmatch(line)), None):
        raise ValueError(f"must be long options such as --constraint=a100, got {wrong!r}. Use one item for each option, without spaces or quotes")
    return lines


def _long_enough(time: str) -> str:
    if (minutes := minutes_of(time)) < LEAST_MINUTES:
        why = "of which a job keeps the last three to stop in"
        raise ValueError(f"must be at least {LEAST_MINUTES} minutes, {why}, got {time!r} ({minutes:g} minutes). Use for instance 8:00:00")
    return time


def minutes_of(time: str) -> float:
    """Minutes of a time as Slurm reads it: `90`, `90:00`, `1:30:00`, `1-12`, `1-12:00:00`."""
    days, _, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    hours, minutes, seconds = (*parts, 0, 0)[:3] if days or len(parts) == 3 else (0, *parts, 0)[:3]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


class Cluster(Strict):
    """What one job of `persona-lab launch` asks for."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    time: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d+){0,2}$"), AfterValidator(_long_enough)] | None = None
    """Of a job, as Slurm reads it: minutes, hh:mm:ss or days-hh:mm:ss. A job that runs out of it is queued again, and goes on."""
    gpus: int = Field(default=0, ge=0, le=64)
    """A machine."""
    gpu_directive: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    """How this cluster is asked for GPUs; none: not at all, for instance because a partition implies them."""
    cpus: int | None = Field(default=None, ge=1, le=4096)
    """Cores a machine."""
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None = None
    """A machine, e.g. 64G."""
    jobs: int = Field(default=4, ge=1, le=1000)
    """Most jobs: each takes what is missing from the shared store until nothing is."""
    at_once: int | None = Field(default=None, ge=1, le=1000)
    """Most of them that run side by side."""
    nodes: int = Field(default=1, ge=1, le=1024)
    """Machines a job. More than one for `data_parallel` and sharding; cells alone are as well done by more jobs."""
    processes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """A machine; auto: one for each of its `gpus`, or one."""
    setup: Annotated[list[str], AfterValidator(_lines)] = Field(default_factory=list)
    """Lines of shell that every job runs first, such as `module load cuda/12`."""
    extra: Annotated[list[str], AfterValidator(_options)] = Field(default_factory=list)
    """Further options of sbatch, such as --constraint=a100."""
    report: Annotated[list[str], AfterValidator(_options)] = Field(default_factory=list)
    """Options of sbatch for the report alone, which come after all others, such as --partition=cpu where one for GPUs takes no job without them."""
    gpu_type: Word | None = None
    """Which GPU, as this engine or cluster calls it, e.g. A100."""
    infra: Annotated[str, Field(pattern=r"^[a-z0-9]+(/[A-Za-z0-9_.:@*-]+){0,2}$")] | None = None
    """SkyPilot: where, e.g. aws/us-east-1, k8s or ssh/my-nodes; null: wherever it is cheapest."""
    spot: bool = False
    """SkyPilot: machines that may be taken away, for less."""
    volume: Word | None = None
    """SkyPilot: the volume (`sky volumes ls`) that stands where the runs folder is; null: every machine sees that folder anyway."""
    accelerate: str | None = None
    """A config file of accelerate, e.g. for FSDP; its numbers of machines and processes are overridden."""
