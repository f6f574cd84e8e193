"""Commands about sweeps that run elsewhere, or in the background: launch, resume, cancel, and what their jobs run."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_lab.cli.console import AsJson, Ticker, emit, is_first, remark
from persona_lab.cli.experiments import Config, Overrides, RunName, Runs
from persona_lab.errors import CheckFailed, ConfigError
from persona_lab.experiment.launching import cancel as cancel_jobs
from persona_lab.experiment.launching import launch as launch_jobs
from persona_lab.experiment.launching import resume as resume_jobs
from persona_lab.experiment.making.interruption import PREEMPTED, Interruption
from persona_lab.experiment.planning.plan import RUNS, make_plan
from persona_lab.experiment.reading.runs import find_run
from persona_lab.launch.engine import ENGINES
from persona_lab.launch.frozen import check_code, read_submission

if TYPE_CHECKING:
    from persona_lab.experiment.launching import Launched

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show every file that would be written and every command that would be called.")]


def launch(
    config: Config,
    overrides: Overrides = None,
    engine: Annotated[str | None, typer.Option("--engine", help=f"{', '.join(ENGINES)}; what machine.engine says when left out.", show_default=False)] = None,
    dry_run: DryRun = False,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Run an experiment in the background or on a cluster: what is missing is submitted, with config and code as they are now.

    What a job asks for stands in machine.cluster. Then use status, cancel and resume.

    Example: persona-lab launch configs/quickstart.yaml --engine slurm machine.cluster.partition=gpu --dry-run
    """
    planned = make_plan(config, overrides or [], runs)
    name = engine or planned.loaded.experiment.machine.engine
    if name not in ENGINES:
        raise ConfigError("PL1208", "--engine", f"must be one of {', '.join(ENGINES)}, got {name!r}.")
    _say(planned.folder, launch_jobs(planned, name, dry_run=dry_run), as_json=as_json)


def resume(run: RunName, dry_run: DryRun = False, runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """Submit what is missing of a launched run once more, with the config and the code that were frozen then.

    Example: persona-lab resume quickstart
    """
    folder = find_run(run, runs)
    _say(folder, resume_jobs(folder, dry_run=dry_run), as_json=as_json)


def cancel(
    run: RunName,
    forget: Annotated[bool, typer.Option("--forget", help="Jobs that cannot be asked, because their machine or scheduler is gone, are taken for lost.")] = False,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """End the jobs of a launched run; what is finished is kept, and `resume` goes on.

    Example: persona-lab cancel quickstart
    """
    folder = find_run(run, runs)
    ended = cancel_jobs(folder, forget=forget)
    said = "\n".join(f"{one} {'is taken for lost' if state == 'lost' else f'was {state}'}" for one, state in ended.items()) or f"{folder} has no jobs that are queued or running."
    emit({"run": str(folder), "cancelled": ended}, said, as_json=as_json)


def work(
    folder: Annotated[Path, typer.Argument(metavar="SUBMISSION", help="runs/RUN/launch/NUMBER.", show_default=False)],
    report: Annotated[bool, typer.Option("--report", help="Not a worker: the report of what there is.")] = False,
    as_json: AsJson = False,
) -> None:
    """What the jobs of `launch` run: make what is missing until nothing is.

    Example: accelerate launch --multi_gpu --num_processes 4 -m persona_lab work runs/quickstart/launch/1
    """
    submission, first = read_submission(folder), is_first()
    check_code(submission)

    from persona_lab.experiment import working

    if report:
        with Ticker() as ticker:
            shown, problems = working.aggregate(submission, ticker)
        if shown:
            found = {"run": str(submission.run), "report": str(shown.report), **shown.accounting}
            emit(found, f"{shown.summary.claim('headline').text}\nreport: {shown.report}", as_json=as_json)
        if problems:
            raise CheckFailed.of(problems)
        return
    try:
        with Interruption() as interruption, Ticker(quiet=not first) as ticker:
            outcome = working.work(submission, ticker, interruption)
    except SystemExit as stop:
        if stop.code == PREEMPTED:
            working.ask_again()
        raise
    if first:
        remark(f"nothing is missing; this worker made {outcome.made or 'nothing'}")


def _say(folder: Path, launched: "Launched | None", *, as_json: bool) -> None:
    """What was submitted, or would be."""
    if launched is None:
        said = f"{folder}: nothing is missing, nothing was submitted. Use `persona-lab report {folder.name}`."
        emit({"run": str(folder), "ids": [], "jobs": 0}, said, as_json=as_json)
        return
    for warning in launched.warnings:
        remark(f"warning: {warning}")
    found = {"run": str(folder), "submission": str(launched.job.folder), "jobs": launched.job.jobs, "processes": launched.job.processes, "ids": launched.ids, "warnings": launched.warnings}
    emit({**found, "files": launched.files, "commands": launched.commands}, launched_words(found, launched), as_json=as_json)


def launched_words(found: dict[str, Any], launched: "Launched") -> str:
    """A submission for people: all of it when it was only looked at."""
    asked = f"{found['jobs']} jobs of {launched.job.resources.nodes} machines with {found['processes']} processes, then the report"
    if launched.ids:
        return f"{found['run']}: {asked}\njobs {', '.join(launched.ids)}; logs in {found['submission']}/logs"
    files = [f"--- {launched.job.folder / name}\n{text}" for name, text in launched.files.items()]
    return "\n".join([f"{found['run']}: would be {asked}", *files, "--- commands", *(shlex.join(command) for command in launched.commands)])


COMMANDS = (launch, resume, cancel, work)
