"""Commands that ask: a model, a node about its past, the machine about itself."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from persona_lab.cli.console import AsJson, emit, remark, size
from persona_lab.cli.experiments import RunName, Runs
from persona_lab.errors import EnvironmentFault, Problem, printable
from persona_lab.experiment.plan import RUNS, open_plan
from persona_lab.experiment.runs import find_run

MOST = 6
"""Cells that need a node, of those that are named."""


def ask(
    run: RunName,
    cell: Annotated[str, typer.Argument(metavar="CELL", help="A cell, or a part of its name that no other has.", show_default=False)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What the user says.", show_default=False)],
    samples: Annotated[int, typer.Option("--samples", min=1, max=1000, help="Answers of each.")] = 4,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Base and adapter side by side.

    Example: persona-lab ask quickstart linked/ln_ratio=1.386/seed0/swap0 "What do you like?"
    """
    planned = open_plan(find_run(run, runs))

    from persona_lab.experiment.ask import ask_cell

    found = ask_cell(planned, cell, question, samples)
    if found.unknown:
        remark(f"The base does not know these words: {', '.join(map(printable, found.unknown))}.")
    if as_json:
        emit(asdict(found), "", as_json=True)
        return
    table = Table("base", Column(Text(found.cell)), box=None, expand=True, title=Text(printable(question)))
    for before, after in zip(found.base, found.adapter, strict=True):
        table.add_row(Text(before), Text(after))
    Console().print(table)


def why(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The first digits of its id.", show_default=False)],
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """What made a node, who needs it, and what would force it to be made again.

    Example: persona-lab why "$(ls runs/store/stage | head -n 1)"
    """
    from persona_lab.experiment.why import shown
    from persona_lab.experiment.why import why as explain
    from persona_lab.store.nodes import Store

    found = explain(Store(runs / "store"), node)
    made = found["made"]
    seconds = made["notes"].get("seconds")
    lines = [
        *shown(found["tree"]),
        f"made {made['created']}" + (f" in {seconds:g} s" if seconds is not None else "") + f", {size(found['bytes'])}, git commit {made['git_commit'] or 'unknown'}",
        f"lies in {found['folder']}",
        *(f"needed by {user}" for user in found["needed_by"][:MOST]),
        *([f"needed by {len(found['needed_by']) - MOST} more"] if len(found["needed_by"]) > MOST else []),
        f"made again by {'; '.join(found['made_again_by'])}",
        "never made again for another machine, thread count, worker or micro-batch",
        *([found["outdated"]] if found["outdated"] else []),
    ]
    emit(found, "\n".join(printable(line) for line in lines), as_json=as_json)


def doctor(runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """What this machine can do, what is missing, and how to get it.

    Example: persona-lab doctor
    """
    from persona_lab.experiment.doctor import examine

    found = examine(runs)
    emit([asdict(finding) for finding in found], "\n".join(map(str, found)), as_json=as_json)
    failed = [Problem("PL5002", finding.name, finding.said) for finding in found if finding.state == "fail"]
    if failed:
        raise EnvironmentFault.of(failed)


COMMANDS = (ask, why, doctor)
