"""What launched jobs run: workers that make what is missing of a frozen run, and the report once they have ended.

    work(read_submission(Path("runs/quickstart-16bab757/launch/1")), progress, interruption)
"""

import os
import platform
from pathlib import Path

import torch

from persona_lab.config.schema import Machine
from persona_lab.errors import EnvironmentFault, Problem
from persona_lab.experiment.launching import frozen_plan
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.planning.plan import Plan, follow
from persona_lab.experiment.reading.publish import publish
from persona_lab.experiment.reading.show import Shown, show
from persona_lab.experiment.reading.status import unscored, write_failures
from persona_lab.experiment.run import Outcome, Progress, make_nodes
from persona_lab.launch.engine import AGAIN_VARIABLE
from persona_lab.launch.frozen import FAILED, Submission
from persona_lab.store.files import read_json, write_json


def work(submission: Submission, progress: Progress, interruption: Interruption) -> Outcome:
    """Make what is missing together with all other workers, until nothing is; raises as `make_nodes` and `check_gpus`."""
    plan = frozen_plan(submission)
    if submission.engine != "local":  # which asks for none, and takes what there is
        check_gpus(plan.loaded.experiment.machine)
    outcome = make_nodes(plan, progress, interruption=interruption, launched=True)
    if outcome.failed:
        write_json(submission.folder / FAILED / f"{platform.node()}-{os.getpid()}-{outcome.worker.index}.json", outcome.failed)
    return outcome


def check_gpus(machine: Machine) -> None:
    """Refuse to train for days on the CPU of a machine whose GPUs were asked for.

    Raises:
        EnvironmentFault: PL5208.
    """
    asked, seen = machine.cluster.gpus, torch.cuda.device_count()
    if machine.device == "cpu" or seen >= asked:
        return
    fix = "Look at machine.cluster.gpu_directive, at what `setup` loads, and at `nvidia-smi` there; machine.device=cpu does without."
    raise EnvironmentFault("PL5208", platform.node(), f"torch sees {seen} GPUs here, and machine.cluster.gpus asked for {asked}. {fix}")


def ask_again() -> None:
    """Tell the script of this job that it was stopped, not done: exit codes do not come through `accelerate launch`."""
    if file := os.environ.get(AGAIN_VARIABLE):
        Path(file).touch()


def aggregate(submission: Submission, progress: Progress) -> tuple[Shown | None, list[Problem]]:
    """The report of a run, None where no cell has scores, and what has failed or is missing in it."""
    plan = follow(frozen_plan(submission))
    failed = failures_of(submission, plan)
    write_failures(plan.folder, failed)
    scores = [node for node in plan.nodes if node.kind == "scores"]
    missing = [name for node in scores if not plan.store.has(node) and (name := plan.names[node.id]) not in failed]
    problems = unscored(failed)
    if missing:
        message = f"{len(missing)} of {len(scores)} scores are missing, the first is {missing[0]}. Use `persona-lab resume {plan.folder.name}`."
        problems.append(Problem("PL1104", str(plan.folder), message))
    if not any(plan.store.has(node) for node in scores):
        return None, problems
    if plan.loaded.experiment.adapters:
        from persona_lab.experiment.instruments.adapters.asked import measure_adapters
        from persona_lab.experiment.making.launch import join

        measure_adapters(plan, str(join(plan.loaded.experiment.machine).accelerator.device), progress)
    shown = show(plan)
    publish(plan, shown)
    return shown, problems


def failures_of(submission: Submission, plan: Plan) -> dict[str, str]:
    """Name of a cell to why it failed, of all workers of a submission; what was made since has not failed."""
    said: dict[str, str] = {name: why for file in sorted((submission.folder / FAILED).glob("*.json")) for name, why in read_json(file).items()}
    missing = {plan.names.get(node.id) for node in plan.nodes if not plan.store.has(node)}
    return {name: why for name, why in said.items() if name in missing}
