"""Commands over several runs: compare."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from persona_lab.cli.console import AsJson, emit
from persona_lab.cli.experiments import Runs
from persona_lab.experiment.planning.plan import RUNS
from persona_lab.experiment.reading.runs import find_run
from persona_lab.science.claims import shown


def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="Runs, by path or by name.", show_default=False)],
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """The hypothesis tournament over one or more experiments: weights, verdicts, and whether measure and metric are all that matters.

    Example: persona-lab compare quickstart
    """
    folders = [find_run(name, runs) for name in names]

    from persona_lab.experiment.reading.compare import compare as pool

    found = pool(folders)
    if as_json:
        emit(found.to_json(), "", as_json=True)
        return
    table = Table("hypothesis", Column("weight", justify="right"), Column("elpd behind the best, nats", justify="right"), "verdict", box=None, title=Text(", ".join(found.runs)))
    for entry in sorted(found.tournament.entries, key=lambda entry: -entry.weight):
        behind = shown(entry.behind.value, entry.behind.interval)
        table.add_row(f"{entry.id} {entry.name}", shown(entry.weight, entry.weight_interval), behind, entry.verdict.verdict)
    for verdict in found.tournament.untestable:
        table.add_row(verdict.id, "", "", verdict.reason)
    console = Console()
    console.print(table)
    console.print(Text(found.tournament.headline))
    console.print(Text(found.mediation.said))


COMMANDS = (compare,)
