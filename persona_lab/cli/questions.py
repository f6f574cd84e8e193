"""Commands that ask: a model, a node about its past, the machine about itself."""

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from persona_lab.cli.console import AsJson, Ticker, emit, remark, size
from persona_lab.cli.experiments import RunName, Runs
from persona_lab.errors import CheckFailed, EnvironmentFault, Problem, printable
from persona_lab.experiment.planning.plan import RUNS, Plan, make_plan, open_plan
from persona_lab.experiment.reading.runs import find_run

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

    from persona_lab.experiment.reading.ask import ask_cell

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
    from persona_lab.experiment.reading.why import shown
    from persona_lab.experiment.reading.why import why as explain
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


def verify(
    run: RunName,
    rebuild: Annotated[int, typer.Option("--rebuild", metavar="N", min=0, help="Also make N random cells again from their manifests.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Which cells are drawn.")] = 0,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Compute every claim of a run, of what an instrument wrote, or of written documents again; exit 1 when one has drifted, or a byte of what it rests on.

    Example: persona-lab verify quickstart
    """
    from persona_lab.experiment.checking.verify import verify as examine
    from persona_lab.experiment.instruments.verifying import verify_folder, verify_instrument

    planned, found = None, verify_folder(run, runs)
    if found is None:
        planned = open_plan(find_run(run, runs))
        found = verify_instrument(planned) or examine(planned)
    said: dict[str, Any] = found.to_json()
    lines = [f"{found.claims} claims, {found.rows} {found.counted}, {found.nodes} nodes: " + (f"{len(found.drifts)} differ" if found.drifts else "all as stored")]
    problems = [drift.problem(planned.folder.name if planned else run) for drift in found.drifts]
    if rebuild and planned and not problems:
        said["rebuilt"] = _rebuilt(planned, rebuild, seed, lines, problems)
    emit(said, "\n".join(lines), as_json=as_json)
    if problems:
        raise CheckFailed.of(problems)


def _rebuilt(planned: Plan, count: int, seed: int, lines: list[str], problems: list[Problem]) -> dict[str, Any]:
    """Cells made again, as JSON; adds a line for each node, and a problem for each that differs."""
    from persona_lab.experiment.checking.rebuild import chosen_cells, rebuild

    cells = chosen_cells(planned, count, seed)
    with TemporaryDirectory(prefix="persona-lab-") as scratch, Ticker() as ticker:
        nodes = rebuild(planned, cells, Path(scratch), ticker)
    names = [cell.cell.name for cell in cells]
    lines.append(f"seed {seed} draws {', '.join(names) or 'no cell: none has all its scores'}")
    for node in nodes:
        files = "; ".join(f"{file} by at most {gap:.2g}" if isfinite(gap) else f"{file} in more than numbers" for file, gap in node.differences.items())
        words = ": ".join(part for part in (node.verdict, files, "; ".join(node.unlike)) if part)
        lines.append(f"  {node.kind:8} {node.node[:12]} {words}")
        if node.verdict == "differs":
            problems.append(Problem("PL1107", f"{node.kind} {node.node[:12]}", f"made again it differs: {files}. Something that its manifest does not hold has changed it."))
    return {"seed": seed, "cells": names, "nodes": [node.to_json() for node in nodes]}


def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="An experiment file: also whether this machine has what it needs.", show_default=False)] = None,
    processes: Annotated[int, typer.Option("--processes", metavar="N", min=1, max=1024, help="Also an all-gather between N new processes.")] = 1,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """What this machine can do, what is missing, and how to get it.

    Example: persona-lab doctor configs/quickstart.yaml --processes 2
    """
    planned = make_plan(config, [], runs) if config else None

    from persona_lab.experiment.checking.doctor import examine

    found = examine(runs, planned, processes)
    emit([asdict(finding) for finding in found], "\n".join(map(str, found)), as_json=as_json)
    failed = [Problem("PL5002", finding.name, finding.said) for finding in found if finding.state == "fail"]
    if failed:
        raise EnvironmentFault.of(failed)


COMMANDS = (ask, why, verify, doctor)
