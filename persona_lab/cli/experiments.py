"""Commands about a whole experiment: run, plan, status, results, report."""

import csv
import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_lab.cli.console import AsJson, Ticker, duration, emit, is_first, remark, size
from persona_lab.config.schema import HuggingFaceBase
from persona_lab.errors import CheckFailed, ConfigError, guard, printable
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.planning.costs import read_measured, write_measured
from persona_lab.experiment.planning.forecast import forecast
from persona_lab.experiment.planning.plan import RUNS, Plan, make_plan, open_plan
from persona_lab.experiment.planning.power import check_power, power_of
from persona_lab.experiment.planning.prefixes import tree
from persona_lab.experiment.reading.runs import Run, all_runs, find_run
from persona_lab.experiment.reading.status import estimate, status, unscored, write_failures
from persona_lab.store.files import finite

if TYPE_CHECKING:
    import pandas as pd

    from persona_lab.experiment.reading.show import Shown

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="An experiment file, configs/*.yaml.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="key=value", help="Settings over those of the file, by their full path.", show_default=False)]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run: its path, or its name in the runs folder.", show_default=False)]
Runs = Annotated[Path, typer.Option("--runs", help="The folder of runs and of their store.")]


class Format(StrEnum):
    """Forms of the tidy table."""

    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"


def run(config: Config, overrides: Overrides = None, runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """Make what is missing, analyse, write the report; prints where it is.

    Stopped at any point, the same command goes on. One worker for each core or GPU shares the work (machine.workers).

    Example: persona-lab run configs/quickstart.yaml seeds=1
    """
    planned = make_plan(config, overrides or [], runs)
    planned.store.check_writable()
    first = is_first()
    missing = sum(not planned.store.has(node) for node in planned.nodes)
    if first:
        remark(f"{planned.folder}: {len(planned.cells)} cells, {missing} nodes to make")

    if not missing and (planned.folder / "report.html").exists():
        # The run's name holds its config, gates and all: what is complete under it has passed them.
        if first:
            _show_again(planned, as_json=as_json)
        return

    with Interruption() as interruption:
        from persona_lab.experiment.making.launch import crew, crew_size
        from persona_lab.experiment.run import make_nodes

        interruption.leave()
        command = ["run", str(config), *(overrides or []), "--runs", str(runs)]
        workers = crew_size(planned.loaded.experiment.machine, len(planned.cells)) if missing else 1
        with crew(command, workers, interruption), Ticker(quiet=not first) as ticker:
            outcome = make_nodes(planned, ticker, interruption=interruption, launched=True)
            if first and outcome.plan.loaded.experiment.adapters:
                from persona_lab.experiment.instruments.adapters.asked import measure_adapters

                measure_adapters(outcome.plan, str(outcome.worker.accelerator.device), ticker)
    if not first:
        return
    planned = outcome.plan
    write_failures(planned.folder, outcome.failed)

    from persona_lab.experiment.reading.publish import publish
    from persona_lab.experiment.reading.show import show

    shown = show(planned)
    publish(planned, shown)
    found = {**_shown_json(planned, shown), "made": outcome.made, "failed": outcome.failed}
    emit(found, f"{shown.summary.claim('headline').text}\nreport: {shown.report}", as_json=as_json)
    if outcome.failed:
        raise CheckFailed.of(unscored(outcome.failed))


def plan(
    config: Config,
    overrides: Overrides = None,
    measure: Annotated[bool, typer.Option("--measure", help="First find out what this machine needs for it, in some seconds.")] = False,
    simulate: Annotated[bool, typer.Option("--simulate", help="Also simulate results from each hypothesis, and judge them; some minutes, once.")] = False,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """What a run would make: cells, stages as a tree, what sharing saves; time, memory and disk once this machine was measured.

    Nothing is made that a run would use. Without --measure and --simulate nothing is written.

    Example: persona-lab plan configs/quickstart.yaml seeds=5
    """
    planned = make_plan(config, overrides or [], runs)
    if measure:
        _measure(planned, ["plan", str(config), *(overrides or []), "--measure", "--runs", str(runs)])
    measured = read_measured(planned)
    foreseen, power = forecast(planned, measured) if measured else None, power_of(planned)
    found = {
        **planned.describe(),
        "tree": [asdict(branch) for branch in tree(planned)],
        "left": estimate(planned),
        "forecast": asdict(foreseen) if foreseen else None,
        "training_memory": _footprints(planned),
        "power": asdict(power) if power else None,
        "confusion": _simulated(planned) if simulate else None,
    }
    emit(found, plan_words(found), as_json=as_json)
    check_power(planned)


def _simulated(planned: Plan) -> dict[str, Any]:
    """The confusion matrix of the design."""
    from persona_lab.experiment.checking.simulating import simulate

    return simulate(planned)


def _footprints(planned: Plan) -> list[dict[str, Any]]:
    """Bytes of a device while each kind of stage is trained, where the base is a Hugging Face model."""
    if not isinstance(planned.loaded.experiment.base, HuggingFaceBase):
        return []
    from persona_lab.experiment.checking.footprint import footprints

    return [{**asdict(footprint), "total": footprint.total} for footprint in footprints(planned)]


def _measure(planned: Plan, command: list[str]) -> None:
    """Measure this machine, and keep what was found."""
    planned.store.check_writable()
    with Interruption() as interruption, Ticker(quiet=not is_first()) as ticker:
        from persona_lab.experiment.checking.measuring import measure

        write_measured(planned, measure(planned, command, interruption, ticker))


def plan_words(found: dict[str, Any]) -> str:
    """A plan for people."""
    lines = [f"{found['run']}: {found['cells']} cells"]
    lines += [f"  {name:20} {count} cells" for name, count in found["conditions"].items()]
    if "search" in found:
        lines.append("  {cells} of the search so far, in rounds of at most {budget} cells; {rounds_decided} rounds decided".format(**found["search"]))
    lines += ["nodes", *(f"  {kind:20} {counts['planned']} planned, {counts['done']} done" for kind, counts in found["nodes"].items())]
    lines += ["stages", *(branch_words(branch) for branch in found["tree"])]
    if "imports" in found:
        lines += ["files", *(printable(f"  {name}: {held}") for name, held in found["imports"].items())]
    shared, alone = found["documents_trained"], found["documents_without_sharing"]
    lines.append(f"documents trained: {shared:,} ({alone:,} without sharing, {saved(shared, alone)} saved)")
    if found.get("power"):
        lines.append(f"design: {found['power']['said']}")
    if found.get("confusion"):
        lines.append("simulated from each hypothesis (down), supported (across):\n{table}\n{recovered_share:.0%} attributed to the truth, {false_share:.1%} to another".format(**found["confusion"]))
    lines += [footprint_words(footprint) for footprint in found.get("training_memory", ())]
    return "\n".join([*lines, forecast_words(found)])


def footprint_words(found: dict[str, Any]) -> str:
    """The memory of a kind of stage for people."""
    members, sharded = found["members"], ", ".join(f"{count}: {size(taken)}" for count, taken in found["sharded"].items())
    one = f"{members} adapter{'s' * (members > 1)}, {found['documents']} documents of {found['tokens']} tokens"
    parts = f"base {size(found['weights'])}, adapters and optimizer {size(found['adapters'])}, a step {size(found['work'])} ({one})"
    return f"memory of a device, {found['stages']}: {size(found['total'])}: {parts}\n  with FSDP on each of {sharded}"


def branch_words(branch: dict[str, Any]) -> str:
    """One line of the tree of stages."""
    name = f"{'  ' * branch['depth']}{branch['stage']}"
    doses = ", ".join(f"{step:,}" for step in branch["steps"])
    times = f"{doses} steps x {branch['trajectories']:,}"
    return f"{name:22} {times:28} {branch['documents']:,} documents, {branch['cells']:,} cells"


def saved(shared: float, alone: float) -> str:
    """The share that need not be trained, in words."""
    return f"{100 * (1 - shared / alone):.0f} %" if alone else "0 %"


def forecast_words(found: dict[str, Any]) -> str:
    """Time, memory and disk in words, or how to get to know them."""
    foreseen, left = found["forecast"], found["left"]
    if foreseen is None:
        return left_words(left) + ("; memory, and time with all workers: add --measure" if left["nodes"] else "")
    if not foreseen["seconds"]:
        return left_words({"nodes": 0})
    alone = "one worker" if foreseen["workers"] == 1 else f"{foreseen['workers']} workers"
    each = "" if foreseen["workers"] == 1 else f" of one, {size(foreseen['peak_bytes_all'])} of all"
    spent = ", ".join(f"{kind} {duration(seconds)}" for kind, seconds in sorted(foreseen["by_kind"].items(), key=lambda part: -part[1]))
    return (
        f"{left['nodes']:,} nodes to make: about {duration(foreseen['seconds'])} with {alone}, {size(foreseen['peak_bytes'])} of memory at most{each}, "
        f"{size(foreseen['disk_bytes'])} of disk\nof this, all workers added: {spent}; {foreseen['tokens']:,.0f} tokens to train on"
    )


def show_status(
    name: Annotated[str | None, typer.Argument(metavar="CONFIG|RUN", help="An experiment file or a run; all runs when left out.", show_default=False)] = None,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Done, running, missing and failed, of one run or of all.

    Example: persona-lab status quickstart
    """
    if name is not None:
        plans = [make_plan(name, [], runs) if name.endswith((".yaml", ".yml")) else open_plan(find_run(name, runs))]
    else:
        plans = []
        for folder in all_runs(runs):
            try:
                plans.append(open_plan(folder))
            except ConfigError as error:  # a run of another version must not hide the others
                remark(str(error))
    found = [status(planned) for planned in plans]
    text = "\n".join(map(status_words, found)) or f"There is no run in {runs}. Use `persona-lab run CONFIG`."
    emit(found if name is None else found[0], text, as_json=as_json)


def results(
    run: RunName,
    form: Annotated[Format, typer.Option("--format", help="How rows are written.")] = Format.jsonl,
    out: Annotated[Path | None, typer.Option("--out", help="A file; stdout when left out.", show_default=False)] = None,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """The tidy table: a row for each option of each item, asked of each cell after each stage.

    Example: persona-lab results quickstart --format csv --out scores.csv
    """
    folder = find_run(run, runs)
    if form is Format.parquet and out is None:
        raise typer.BadParameter("parquet is not text: name a file", param_hint="--out")
    table = Run(folder).table()
    written = as_text(table, form)
    if out is None:
        typer.echo(written, nl=False)
        return

    from persona_lab.store.files import replacing

    with replacing(out) as file:
        if form is Format.parquet:
            table.to_parquet(file, index=False)
        else:
            file.write(written.encode())
    emit({"rows": len(table), "file": str(out)}, f"{len(table)} rows: {out}", as_json=as_json)


def report(run: RunName, runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """Rebuild the table, the claims, the figures and report.html from the store alone.

    Example: persona-lab report quickstart
    """
    planned = open_plan(find_run(run, runs))

    from persona_lab.experiment.reading.show import show

    shown = show(planned)
    emit(_shown_json(planned, shown), f"{shown.summary.claim('headline').text}\nreport: {shown.report}", as_json=as_json)


def as_text(table: "pd.DataFrame", form: Format) -> str:
    """The table as JSON lines, exact, or as CSV whose text no spreadsheet takes for a formula; parquet has no text."""
    if form is Format.parquet:
        return ""
    if form is Format.jsonl:
        exact = table.astype(object).where(table.notna(), None)
        return "".join(json.dumps(finite(row)) + "\n" for row in exact.to_dict("records"))
    guarded = table.rename(columns=guard)
    for column in guarded.select_dtypes(include=["object", "string"]):
        guarded[column] = guarded[column].map(guard)
    # All text in quotes: a spreadsheet that separates cells by semicolons must not cut one open.
    return guarded.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)


def status_words(found: dict[str, Any]) -> str:
    """The status of a run for people."""
    cells = found["cells"]
    lines = [f"{found['run']}: {cells['done']} of {cells['planned']} cells done"]
    for kind, counts in found["kinds"].items():
        parts = [f"{counts['done']} of {counts['planned']} done", *(f"{counts[state]} {state}" for state in ("running", "missing") if counts[state])]
        lines.append(f"  {kind:10} {', '.join(parts)}")
    lines += [f"  failed     {cell}: {why}" for cell, why in found["failed"].items()]
    lines += [f"  {job['engine']:10} {job['job']} {', '.join(filter(None, (job['state'], job.get('said'))))}" + (f", log {job['log']}" if job["log"] else "") for job in found["jobs"]]
    lines += [f"  left       {left_words(found['left'])}"] if found["left"]["nodes"] else []
    lines += [f"  report     {found['report']}"] if found["report"] else []
    # A reason may quote anything, and must not pass for a line of its own.
    return "\n".join(printable(line, 2000) for line in lines)


def left_words(left: dict[str, Any]) -> str:
    """What is left to do, in words."""
    if not left["nodes"]:
        return "everything is made"
    if left["seconds"] is None:
        return f"{left['nodes']:,} nodes to make; time and disk are unknown until the first cell is trained"
    return f"{left['nodes']} nodes to make: about {duration(left['seconds'])} with one worker, {size(left['bytes'])} of disk"


def _show_again(planned: Plan, *, as_json: bool) -> None:
    """What a finished run said; `persona-lab report` makes it anew."""
    claims = {claim["id"]: claim for claim in Run(planned.folder).claims()}
    headline, report = claims["headline"], planned.folder / "report.html"
    counted = {name: int(claims[f"accounting.{name}"]["value"]) for name in ("scored", "unscored", "failed")}
    shown = {"headline": {k: headline[k] for k in ("text", "value", "interval", "verdict")}, **counted}
    emit({"run": str(planned.folder), "report": str(report), **shown, "made": {}, "failed": {}}, f"{headline['text']}\nreport: {report}", as_json=as_json)


def _shown_json(planned: Plan, shown: "Shown") -> dict[str, Any]:
    headline = shown.summary.claim("headline").to_json()
    return {"run": str(planned.folder), "report": str(shown.report), "headline": {k: headline[k] for k in ("text", "value", "interval", "verdict")}, **shown.accounting}


show_status.__name__ = "status"
COMMANDS = (run, plan, show_status, results, report)
