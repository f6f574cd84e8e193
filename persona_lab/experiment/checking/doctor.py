"""The verb `doctor`: what this machine can do, what is missing, and how to get it.

    ok    python      3.11.14
    warn  wandb       not logged in: runs are tracked offline. Use `wandb login` to see them online.
    fail  runs        cannot be written: Not a directory. ...
"""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from persona_lab.errors import EnvironmentFault
from persona_lab.experiment.checking.engines import engines
from persona_lab.experiment.checking.finding import Finding
from persona_lab.experiment.checking.gathering import gather
from persona_lab.experiment.checking.needs import hub, needs
from persona_lab.experiment.checking.releases import known_breaks, releases, requirements
from persona_lab.experiment.checking.shared_disk import examine_disk
from persona_lab.experiment.planning.plan import Plan
from persona_lab.store.nodes import Store
from persona_lab.tracking import chosen_mode

GIB = 2**30
LEAST_MEMORY, LEAST_DISK = 4 * GIB, 2 * GIB


def examine(runs: Path, plan: Plan | None = None, processes: int = 1) -> list[Finding]:
    """Everything that a run depends on; of a plan also what it needs, and of several processes whether they reach one another."""
    machine = [_python(), *_packages(), *known_breaks(releases()), requirements(), *_torch(), _memory(), _disk(runs), *_runs(runs), _wandb(), hub(), *engines()]
    return [*machine, *(needs(plan, _memory_bytes()) if plan else []), *([gather(processes)] if processes > 1 else [])]


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    return Finding("python", "ok" if good else "fail", platform.python_version() + ("" if good else ": needs 3.11 or newer. Install one, then `make demo PYTHON=python3.11`."))


def _packages() -> Iterator[Finding]:
    """Each package that the lab needs, against the range that it is known to work with."""
    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires("persona-lab") or []]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("persona-lab", "fail", "is not installed. Use `pip install -e .`.")
        return
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate():
            continue
        fix = f"Use `pip install -c constraints.txt '{requirement}'`."
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(requirement.name, "fail", f"is not installed. {fix}")
            continue
        good = requirement.specifier.contains(version, prereleases=True)
        yield Finding(requirement.name, "ok" if good else "fail", version if good else f"{version} is known not to work, needs {requirement.specifier}. {fix}")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch import", "fail", f"fails: {error}. Install torch anew: https://pytorch.org/get-started/locally")
        return
    yield Finding("threads", "ok", f"{torch.get_num_threads()} of {os.cpu_count()} processors")
    if not torch.cuda.is_available():
        yield Finding("cuda", "ok", "none: the embedded base and small models run on the processor")
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", "ok", f"{about.name}, {about.total_memory / GIB:.0f} GiB")


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _memory() -> Finding:
    total = _memory_bytes()
    if total < LEAST_MEMORY:
        return Finding("memory", "warn", f"{total / GIB:.1f} GiB: {LEAST_MEMORY // GIB} are better. Set machine.stack=1 and machine.micro_batch=8.")
    return Finding("memory", "ok", f"{total / GIB:.0f} GiB")


def _disk(runs: Path) -> Finding:
    there = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < LEAST_DISK:
        return Finding("disk", "warn", f"{free / GIB:.1f} GiB free: an experiment may take {LEAST_DISK // GIB}. Free some, or use --runs on another disk.")
    return Finding("disk", "ok", f"{free / GIB:.0f} GiB free")


def _runs(runs: Path) -> list[Finding]:
    store = Store(runs / "store")
    try:
        store.check_writable()
    except EnvironmentFault as fault:
        return [Finding("runs folder", "fail", fault.problems[0].message)]
    return [Finding("runs folder", "ok", f"{runs} can be written"), *examine_disk(store.root)]


def _wandb() -> Finding:
    mode = chosen_mode("auto")
    if mode == "online":
        return Finding("wandb login", "ok", "logged in: runs are tracked online")
    return Finding("wandb login", "warn", f"runs are tracked {mode}; results are the same. Use `wandb login`, or WANDB_API_KEY, to see them online.")
