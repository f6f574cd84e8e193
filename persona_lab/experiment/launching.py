"""The verbs `launch`, `resume` and `cancel`: what is missing of a run, as one submission to an engine.

    launch(plan, "slurm").ids                     ->   ["4711", "4712"], an array of workers and a report
    resume(run_folder)                            ->   another submission, with the config and the code of the last one

Only what is missing is asked for, and nothing while jobs of the run are queued or running.
"""

import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import ValidationError

from persona_lab.config.cluster import Cluster
from persona_lab.config.load import locate
from persona_lab.config.schema import Experiment, HuggingFaceBase, Machine
from persona_lab.errors import ConfigError, EnvironmentFault
from persona_lab.experiment.planning.plan import Plan, open_plan
from persona_lab.experiment.planning.power import check_power
from persona_lab.experiment.planning.recipes import trajectory
from persona_lab.launch.engine import ACCELERATE, LIVE, Engine, Job, State, engine_named, unheeded
from persona_lab.launch.frozen import CONFIG, Submission, claim, following, freeze_code, submissions
from persona_lab.launch.states import states
from persona_lab.store.files import write_text
from persona_lab.store.versions import git_commit


@dataclass(frozen=True)
class Launched:
    """What was submitted, or would be."""

    job: Job
    files: dict[str, str]
    commands: list[list[str]]
    ids: list[str]
    """Of the scheduler; empty where it was only looked at."""
    warnings: list[str]
    """What may not go as its author thinks."""


def missing_work(plan: Plan) -> int:
    """How many trajectories are to be trained, or else how many scores are to be made; 0: nothing is missing."""
    missing = [node for node in plan.nodes if not plan.store.has(node)]
    lines = {trajectory(node).id for node in missing if node.kind == "stage"}
    return len(lines) or len([node for node in missing if node.kind == "scores"]) or min(len(missing), 1)


def launch(plan: Plan, engine_name: str, *, dry_run: bool = False, origin: Submission | None = None) -> Launched | None:
    """Submit what is missing of a plan; None when nothing is.

    Args:
        plan: what is to be made.
        engine_name: one of `ENGINES`.
        dry_run: only say what would be written and called.
        origin: an earlier submission, whose code is used instead of what is installed.

    Raises:
        CheckFailed: the design cannot tell its hypotheses apart.
        ConfigError: machine.cluster names a file that is not there (PL1200), asks for what the engine cannot do, or gives data_parallel one process (PL1313).
        EnvironmentFault: PL5301, the engine is absent; PL5302 or PL5303, it refused or does not answer; PL5305, jobs of the run are live. Nothing is
            submitted then, unless a scheduler that does not answer has taken it: `cancel` finds out.
    """
    check_power(plan)
    work = missing_work(plan)
    if not work:
        return None
    engine, accelerate = engine_named(engine_name), _accelerate(plan, origin)
    job = job_of(plan, following(plan.folder), engine_name, work, origin)
    launched = Launched(job, engine.files(job), engine.commands(job), [], warnings_of(plan, engine_name))
    if dry_run:
        return launched
    if problem := engine.missing():
        raise EnvironmentFault.of([problem])
    check_idle(plan.folder)
    plan.store.check_writable()
    plan.write()
    claim(job.folder)
    _freeze(plan, launched, engine_name, accelerate, origin).submitted(ids := _submit(engine, job))
    return replace(launched, ids=ids)


def warnings_of(plan: Plan, engine_name: str) -> list[str]:
    """Settings that this engine takes no notice of, and a model that its machines may have no network to download."""
    experiment, said = plan.loaded.experiment, []
    if names := unheeded(engine_named(engine_name), experiment.machine.cluster):
        said.append(f"the engine {engine_name} takes no notice of {', '.join(f'machine.cluster.{name}' for name in names)}")
    if isinstance(base := experiment.base, HuggingFaceBase) and base.revision and engine_name in ("slurm", "ray"):
        from persona_lab.models.hub import downloaded

        if not downloaded(base.path, base.revision):
            fix = f"Use `hf download {base.path} --revision {base.revision}` first, with HF_HOME on a file system that they share"
            said.append(f"the weights of {base.path} are not in this machine's cache, and machines of a cluster often have no network. {fix}")
    return said


def job_of(plan: Plan, folder: Path, engine_name: str, work: int, origin: Submission | None) -> Job:
    """The submission of so much work: no more jobs than there is work for their processes. ConfigError PL1313."""
    machine = plan.loaded.experiment.machine
    asked, processes = _geometry(machine, engine_name, work)
    if machine.data_parallel and asked.nodes * processes < 2:
        raise ConfigError("PL1313", "machine.cluster.processes", "must give a job several processes with machine.data_parallel, got 1. Use e.g. machine.cluster.processes=2.")
    workers = 1 if machine.data_parallel or asked.accelerate else asked.nodes * processes
    jobs = 1 if engine_name == "local" else min(asked.jobs, -(-work // workers))
    command = ("-m", "persona_lab", "work", str(folder))
    return Job(
        name=f"persona-lab-{plan.folder.name}-{folder.name}-{secrets.token_hex(3)}",  # others may launch the same run from a folder of theirs
        folder=folder,
        worker=command,
        aggregate=(*command, "--report"),
        python=origin.python if origin else sys.executable,
        directory=Path(origin.directory) if origin else Path.cwd(),
        jobs=jobs,
        processes=processes,
        resources=asked,
    )


def _geometry(machine: Machine, engine_name: str, work: int) -> tuple[Cluster, int]:
    """What is asked of the engine, and how many processes a machine; on this machine as many as `run` would hire."""
    asked = machine.cluster
    if engine_name == "local":
        from persona_lab.experiment.making.launch import crew_size, on_gpu

        asked = asked.model_copy(update={"nodes": 1, "gpus": max(asked.gpus, 1) if on_gpu(machine) else 0})
        return asked, asked.processes if isinstance(asked.processes, int) else crew_size(machine, work)
    return asked, asked.processes if isinstance(asked.processes, int) else max(1, asked.gpus)


def _accelerate(plan: Plan, origin: Submission | None) -> Path | None:
    """The config file of accelerate that machine.cluster names, or that was frozen before.

    Raises:
        ConfigError: PL1200, there is none.
    """
    named = plan.loaded.experiment.machine.cluster.accelerate
    if named is None:
        return None
    if origin:
        return origin.folder / ACCELERATE
    file = locate(named, plan.loaded.file)
    if not file.is_file():
        fix = "Use one of configs/accelerate/, or what `accelerate config` wrote."
        raise ConfigError("PL1200", "machine.cluster.accelerate", f"there is no file {named}. {fix}")
    return file


def _freeze(plan: Plan, launched: Launched, engine_name: str, accelerate: Path | None, origin: Submission | None) -> Submission:
    """Write everything down that the jobs will read."""
    job = launched.job
    shutil.copyfile(plan.folder / CONFIG, job.folder / CONFIG)
    if accelerate:
        shutil.copyfile(accelerate, job.folder / ACCELERATE)
    for name, text in launched.files.items():
        write_text(job.folder / name, text)
    code = freeze_code(job.folder, origin.folder if origin else None)
    commit = origin.commit if origin else git_commit()
    submission = Submission(job.folder, job.name, engine_name, job.python, str(job.directory), job.jobs, job.processes, code, commit)
    submission.write()
    return submission


def _submit(engine: Engine, job: Job) -> list[str]:
    """The ids; what was refused is forgotten, and what nobody answered for stays as a submission that was cut off."""
    asked = False
    try:
        check_idle(job.folder.parents[1], job.folder)  # now that this one can be seen: of two that launch at once, at most one goes on
        asked = True
        return engine.submit(job)
    except EnvironmentFault as fault:
        if not asked or fault.problems[0].code != "PL5303":
            shutil.rmtree(job.folder)
        raise


def check_idle(run: Path, own: Path | None = None) -> None:
    """Refuse to submit a run twice; `own` is the folder of the submission that asks.

    Raises:
        EnvironmentFault: PL5305, some of its jobs are queued or running, or nobody knows.
    """
    for submission in submissions(run):
        if submission.folder == own or submission.forgotten:
            continue
        if submission.ids is None:
            said = f"its submission {submission.folder.name} was cut off, or is under way: {submission.name} may be queued"
            raise EnvironmentFault("PL5305", str(run), f"{said}. Use `persona-lab cancel {run.name}`.")
        with _asking(run):
            live = [f"{one} {state}" for one, state in states(submission).items() if state in LIVE]
        if live:
            message = f"has jobs at {submission.engine} already: {', '.join(live)}. Use `persona-lab status`, or `persona-lab cancel {run.name}` first."
            raise EnvironmentFault("PL5305", str(run), message)


def frozen_plan(submission: Submission) -> Plan:
    """The plan of a submission, with the machine settings that were frozen with it.

    Raises:
        ConfigError: PL1292, its files are not what `launch` writes.
    """
    plan, file = open_plan(submission.run), submission.folder / CONFIG
    try:
        experiment = Experiment.model_validate(yaml.safe_load(file.read_text()))
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError("PL1292", str(file), f"is not what `launch` writes ({str(error).splitlines()[0]}). Launch the run again.") from None
    return replace(plan, loaded=replace(plan.loaded, experiment=experiment))


def last(run: Path) -> Submission:
    """The newest submission of a run.

    Raises:
        ConfigError: PL1293, it was never launched.
    """
    if found := submissions(run):
        return found[-1]
    raise ConfigError("PL1293", str(run), "was never launched. Use `persona-lab launch CONFIG`.")


def resume(run: Path, *, dry_run: bool = False) -> Launched | None:
    """Submit what is missing of a run once more, as it was submitted last; None when nothing is. Raises as `launch`."""
    before = last(run)
    return launch(frozen_plan(before), before.engine, dry_run=dry_run, origin=before)


def cancel(run: Path, *, forget: bool = False) -> dict[str, State]:
    """End every job of a run, and those of a submission that was cut off; what they were before, without those that had ended.

    `forget`: what nobody can end, because its machine or its scheduler is gone, is taken for lost, so that the run can be launched again. Should it still
    be at work, nothing is made twice: workers lease what they make from the store.

    Raises:
        EnvironmentFault: an engine does not answer or refuses, and nothing is to be forgotten.
    """
    ended: dict[str, State] = {}
    for submission in submissions(run):
        try:
            with _asking(run):
                ended |= _cancel(submission)
        except EnvironmentFault:
            if submission.forgotten:
                continue
            if not forget:
                raise
            submission.forget()
            ended |= dict.fromkeys(submission.ids or [submission.name], "lost")
    return ended


def _cancel(submission: Submission) -> dict[str, State]:
    """End the jobs of one submission; what was live of them. EnvironmentFault."""
    engine, ids = engine_named(submission.engine), submission.ids
    if ids is None:
        submission.submitted(ids := engine.find(submission.folder, submission.name))
    known = engine.states(submission.folder, ids)
    live = [one for one, state in known.items() if state in LIVE]
    if live:
        # A scheduler that has forgotten what has ended would refuse to end it.
        engine.cancel(submission.folder, [one for one in ids if any(part == one or part.startswith(f"{one}_") for part in live)])
    return {one: known[one] for one in live}


@contextmanager
def _asking(run: Path) -> Iterator[None]:
    """Adds the way out to what is raised because an engine cannot be asked."""
    try:
        yield
    except EnvironmentFault as fault:
        [problem, *_] = fault.problems
        fix = f"If it is gone for good, use `persona-lab cancel {run.name} --forget`."
        raise EnvironmentFault(problem.code, problem.where, f"{problem.message} {fix}") from fault
