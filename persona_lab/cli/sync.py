"""The command `sync`: what a run tracked offline, to wandb's server."""

from typing import Annotated

import typer

from persona_lab.cli.console import AsJson, emit, remark
from persona_lab.cli.experiments import RunName, Runs
from persona_lab.experiment.planning.plan import RUNS, open_plan
from persona_lab.experiment.reading.runs import find_run


def sync(
    run: RunName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be sent.")] = False,
    workspace: Annotated[bool, typer.Option("--workspace", help="Also make a workspace with this run's panels at wandb.")] = False,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Send what was tracked offline to wandb: every file once, by wandb's own `wandb sync`.

    Example: persona-lab sync quickstart --dry-run
    """
    planned = open_plan(find_run(run, runs))

    from persona_lab.experiment.reading.syncing import offline_files, send, to_send
    from persona_lab.experiment.reading.workspace import push, write_specs

    files = offline_files(planned.folder)
    sending = to_send(planned, files)
    waiting = len([file for file in files if not file.synced]) - len(sending)
    specs = write_specs(planned)
    if not dry_run:
        if sending:
            remark(f"sending {len(sending)} files")
        send(planned.folder, sending)
    address = push(specs.workspace) if workspace and not dry_run else None
    found = {
        "run": str(planned.folder),
        "files": len(files),
        "sent": [] if dry_run else [file.to_json() for file in sending],
        "to_send": [file.to_json() for file in sending] if dry_run else [],
        "growing": waiting,
        "workspace": str(specs.workspace),
        "sweep": str(specs.sweep),
        "address": address,
    }
    verb = "would be sent" if dry_run else "sent"
    lines = [f"{planned.folder.name}: {len(sending)} of {len(files)} offline files {verb}, {len(files) - len(sending) - waiting} were before, {waiting} are still written"]
    lines += [f"  {file.path.parent.name}" for file in sending] if dry_run else []
    lines += [f"workspace: {address or specs.workspace}"]
    emit(found, "\n".join(lines), as_json=as_json)


COMMANDS = (sync,)
