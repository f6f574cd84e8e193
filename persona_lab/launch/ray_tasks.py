"""What a launched run does inside a Ray cluster: a task for each share of the work, then the report.

    python -m persona_lab.launch.ray_tasks runs/quickstart-16bab757/launch/1 NAME --jobs 4 --at-once 2 --cpus 8 --gpus 1

It is the entry point of one Ray job. A share whose machine dies, or that asks for another turn (exit code 75), is started again by Ray
where there is room. Shares are told apart as `NAME_0`, `NAME_1`, ...: so are their logs and their exit codes.
"""

import argparse
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from persona_lab.launch.engine import AGAIN_VARIABLE, EXITS, LOGS, REPORT, WORKER
from persona_lab.launch.ray import GUARD

ray: Any = import_module("ray")  # an extra: a type checker may not have it
TURNS = 100
"""How often a share may be started again."""
PREEMPTED, UNKNOWN = 75, 70
"""Exit codes: please start me again; and of a share that Ray could not run to its end."""


class Preempted(Exception):
    """The share wants another turn."""


def share(folder: Path, script: str, part: str) -> int:
    """Run a script of the submission on the machine of this task; its exit code.

    Raises:
        Preempted: it asks to be started again.
    """
    again = folder / "again" / part
    again.unlink(missing_ok=True)
    number = part.rpartition("_")[2]
    place = {"PERSONA_LAB_TASK": number} if number.isdigit() else {}
    environment = {**os.environ, **place, AGAIN_VARIABLE: str(again)}
    with (folder / LOGS / f"{part}.log").open("ab") as log:
        command = ["bash", str(folder / GUARD), str(folder / script)]
        code = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True).returncode
    code = code if code >= 0 else 128 - code  # as a shell counts what a signal has killed
    if code and (code == PREEMPTED or again.exists()):
        raise Preempted(part)
    return code


def drive(folder: Path, name: str, *, jobs: int, at_once: int, cpus: float, gpus: float, gpu_type: str | None) -> int:
    """Every share, at most `at_once` side by side, then the report; the largest exit code."""
    kind = {"accelerator_type": gpu_type} if gpu_type and gpus else {}
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=TURNS, retry_exceptions=[Preempted], **kind)(share)
    waiting, running, codes = [f"{name}_{k}" for k in range(jobs)], {}, []
    while waiting or running:
        while waiting and len(running) < at_once:
            part = waiting.pop(0)
            running[remote.remote(folder, WORKER, part)] = part
        [done], _ = ray.wait(list(running), num_returns=1)
        codes.append(_ended(folder, running.pop(done), done))
    report = ray.remote(num_cpus=1, max_retries=TURNS)(share).remote(folder, REPORT, f"{name}_report")
    return max(*codes, _ended(folder, f"{name}_report", report))


def _ended(folder: Path, part: str, done: Any) -> int:
    """The exit code of a share, which is also written down."""
    try:
        code = ray.get(done)
    except ray.exceptions.RayError as error:
        print(f"{part}: {error}", flush=True)
        code = UNKNOWN
    (folder / EXITS).mkdir(exist_ok=True)
    (folder / EXITS / part).write_text(f"{code}\n")
    return code


def main() -> int:
    """The entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--at-once", type=int, required=True)
    parser.add_argument("--cpus", type=float, required=True)
    parser.add_argument("--gpus", type=float, default=0)
    parser.add_argument("--gpu-type")
    asked = parser.parse_args()
    ray.init(address="auto")
    code = drive(asked.folder, asked.name, jobs=asked.jobs, at_once=asked.at_once, cpus=asked.cpus, gpus=asked.gpus, gpu_type=asked.gpu_type)
    (asked.folder / EXITS / asked.name).write_text(f"{code}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
