"""The command `lens`: one base model, or one at several training lengths, through every probe of the base-model lens."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persona_lab.cli.console import AsJson, Ticker, emit, is_first
from persona_lab.cli.experiments import Runs
from persona_lab.cli.instruments import Model, columns, kept_json
from persona_lab.errors import CheckFailed
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.planning.plan import RUNS
from persona_lab.experiment.reading.status import unscored

if TYPE_CHECKING:
    from persona_lab.experiment.instruments.looking import Look


def lens(
    model: Model,
    world: Annotated[
        Path | None,
        typer.Option("--world", help="For a model folder: asked in plain English, or about this world where it has `lens:`.", show_default=False),
    ] = None,
    probes: Annotated[str, typer.Option("--probes", help="Some of the probes, with commas. All of them when left out.", show_default=False)] = "",
    lengths: Annotated[
        str, typer.Option("--lengths", help="Training lengths of an embedded base, in steps, with commas. Its own when left out.", show_default=False)
    ] = "",
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """What a base model does that nobody asked of it: altered riddles, random digits, regurgitation and more, beside published and exact values.

    Example: persona-lab lens configs/quickstart.yaml --lengths 100,300,900
    """
    steps = _steps(lengths)
    # Asked now: a worker leaves its group as soon as it joins.
    first = is_first()
    with Interruption() as interruption:
        from persona_lab.experiment.instruments.building import made, subject
        from persona_lab.experiment.instruments.findings import lens_findings, written
        from persona_lab.experiment.instruments.looking import lens_plan, looks
        from persona_lab.experiment.making.launch import crew, crew_size

        of = subject(model, world=world, runs=runs)
        plan = lens_plan(of, _names(probes), steps)
        missing = sum(not plan.store.has(node) for node in plan.nodes)
        interruption.leave()
        options = {"--world": world, "--probes": probes, "--lengths": lengths, "--runs": runs}
        command = ["lens", model, *(word for name, value in options.items() if value for word in (name, str(value)))]
        with crew(command, crew_size(of.machine, missing) if missing else 1, interruption), Ticker(quiet=not first) as ticker:
            outcome = made(plan, ticker, interruption)
        if not first:
            return
        found = looks(plan)
        kept = written(lens_findings(plan, found))
    emit(kept_json(model, kept, outcome.failed), f"{lens_words(found)}\nin full: {kept.file.with_suffix('.html')}", as_json=as_json)
    if outcome.failed:
        raise CheckFailed.of(unscored(outcome.failed))


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _steps(text: str) -> list[int]:
    """Lengths from a list with commas."""
    if wrong := [part for part in _names(text) if not part.isdecimal() or not 1 <= int(part) <= 10_000_000]:
        raise typer.BadParameter(f"a length is a whole number of steps from 1 on, got {wrong[0]!r}", param_hint="--lengths")
    return list(dict.fromkeys(int(part) for part in _names(text)))


def lens_words(found: "Sequence[Look]") -> str:
    """Every value beside its reference, for people."""
    from persona_lab.experiment.instruments.looking import value_words
    from persona_lab.science.claims import figure

    lines: list[str] = []
    for look in found:
        rows = [["probe", "metric", "value [95 % interval] (items)", "reference", "verdict", "unit"]]
        for finding in look.findings:
            reference = "" if finding.reference is None else figure(finding.reference)
            rows.append([finding.probe, finding.metric, value_words(finding), reference, finding.verdict, finding.unit])
        lines += [look.model, *columns(rows), ""]
    return "\n".join(lines)


COMMANDS = (lens,)
