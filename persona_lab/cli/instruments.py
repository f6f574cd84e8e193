"""Commands that are one instrument on one model: measure, metric, llc."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_lab.cli.console import AsJson, Ticker, duration, emit, is_first
from persona_lab.cli.experiments import RunName, Runs
from persona_lab.errors import CheckFailed, ConfigError
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.planning.plan import RUNS, open_plan
from persona_lab.experiment.reading.runs import find_run
from persona_lab.experiment.reading.status import unscored

if TYPE_CHECKING:
    from persona_lab.experiment.instruments.building import Subject
    from persona_lab.experiment.instruments.findings import Findings
    from persona_lab.experiment.instruments.measure.estimating import Measures
    from persona_lab.experiment.instruments.metric.distances import Distances

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="An experiment file or a run, for its base; or a model folder or hub id with --world.", show_default=False)
]
WorldFile = Annotated[Path | None, typer.Option("--world", help="The world that a model folder is asked about.", show_default=False)]
Replicates = Annotated[int, typer.Option("--seeds", min=1, max=100, help="Replicates of every training.")]


def measure(
    model: Model,
    personas: Annotated[
        list[str] | None,
        typer.Option(
            "--personas", help="Names of the world or of the experiment, or persona files; several with commas. All of them when left out.", show_default=False
        ),
    ] = None,
    world: WorldFile = None,
    seeds: Replicates = 3,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of every training.")] = 80,
    rate: Annotated[float, typer.Option("--rate", min=1e-8, max=0.5, help="Learning rate of every training.")] = 3e-3,
    samples: Annotated[int, typer.Option("--samples", min=1, max=1000, help="Diaries of each of eight streams.")] = 250,
    ranks: Annotated[str, typer.Option("--ranks", help="Ranks tried beside the adapter's own, with commas.")] = "1,2,4",
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """The measure of each persona in a base model by six estimators, in bits where they have them, and whether these agree.

    Example: persona-lab measure configs/quickstart.yaml --personas mary,omar,nina,john --seeds 2
    """
    tried = _ranks(ranks)
    with Interruption() as interruption, Ticker(quiet=not is_first()) as ticker:
        from persona_lab.experiment.instruments.findings import measure_findings, written
        from persona_lab.experiment.instruments.measure.estimating import measures
        from persona_lab.experiment.instruments.measure.plans import Effort, make_measures, measure_plans

        of, asked = _subject(model, personas or [], world, runs)
        processes = of.chosen(asked)
        plans = measure_plans(of, processes, Effort(seeds=seeds, steps=steps, rate=rate, samples=samples, ranks=tried))
        interruption.leave()
        failed = make_measures(plans, processes, ticker, interruption)
        found = measures(of, plans, processes)
        kept = written(measure_findings(plans, found))
    emit(kept_json(model, kept, failed), f"{measure_words(found)}\nin full: {kept.file.with_suffix('.html')}", as_json=as_json)
    if failed:
        raise CheckFailed.of(unscored(failed))


def kept_json(model: str, kept: "Findings", failed: Mapping[str, str]) -> dict[str, Any]:
    """What was found, where it stands, and which cells failed."""
    return {"model": model, "file": str(kept.file), "page": str(kept.file.with_suffix(".html")), **kept.said, "failed": dict(failed)}


def _ranks(text: str) -> tuple[int, ...]:
    """Ranks from a list with commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := [part for part in parts if not part.isdecimal() or not 1 <= int(part) <= 1024]:
        raise typer.BadParameter(f"a rank is a whole number from 1 to 1024, got {wrong[0]!r}", param_hint="--ranks")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _subject(model: str, personas: Sequence[str], world: Path | None, runs: Path) -> "tuple[Subject, list[str]]":
    """The model, and the processes asked for by name; a name that is a file is read."""
    from persona_lab.config import load_persona
    from persona_lab.experiment.instruments.building import subject

    named = [part.strip() for text in personas for part in text.split(",") if part.strip()]
    files = {name: load_persona(name) for name in named if name.endswith((".yaml", ".yml"))}
    if personas and not named:
        raise ConfigError("PL1297", "--personas", "names nobody. Use names of the world such as mary,omar.")
    return subject(model, world=world, personas=list(files.values()), runs=runs), [files[name].name if name in files else name for name in named]


def measure_words(found: "Measures") -> str:
    """Every estimate, its cost and how they agree, for people."""
    from persona_lab.science.claims import figure
    from persona_lab.science.processes.validity import table_of

    table = table_of(found.found)
    units = {one.estimator: one.unit for one in found.found}
    heads = [f"{name} ({units[name]})" for name in table.columns]
    lines = ["larger is more measure; 95 % intervals are in the file"]
    lines += columns([["process", *heads], *([name, *(figure(x) for x in row)] for name, row in zip(table.index, table.to_numpy(), strict=True))])
    lines += ["", "what has no value"] if any(one.value is None for one in found.found) else []
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in found.found:
        if one.value is None:
            reasons.setdefault((one.estimator, one.reason), []).append(one.process)
    lines += [f"  {estimator}, {_some(names)}: {reason}" for (estimator, reason), names in reasons.items()]
    lines += ["", "cost", *columns([["  estimator", "tokens trained", "tokens read", "time"], *(_cost_row(name, cost) for name, cost in found.costs.items())])]
    lines += ["", "reliability of the ranking, 1 is perfect", "  " + ", ".join(f"{name} {figure(value)}" for name, value in found.reliability.items())]
    pairs = found.agreement.pairs
    lines += ["", "rank correlation with its interval, and Pearson's", *columns([_pair_row(pair) for pair in pairs.to_dict("records")])]
    return "\n".join([*lines, "", found.agreement.sentence])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _cost_row(name: str, cost: Mapping[str, float]) -> list[str]:
    return [f"  {name}", f"{cost['tokens_trained']:,.0f}", f"{cost['tokens_read']:,.0f}", duration(cost["seconds"])]


def _pair_row(pair: Mapping[Any, Any]) -> list[str]:
    from persona_lab.science.claims import shown

    if pair["reason"]:
        return [f"  {pair['first']}", pair["second"], f"n {pair['n']}", pair["reason"], ""]
    spearman, pearson = (shown(pair[name], (pair[f"{name}_low"], pair[f"{name}_high"])) for name in ("spearman", "pearson"))
    return [f"  {pair['first']}", pair["second"], f"n {pair['n']}", spearman, pearson]


def metric(
    model: Model,
    processes: Annotated[
        list[str] | None,
        typer.Option(
            "--processes",
            help="Names of the world or of the experiment, persona files, or assistant, which says nothing of itself; several with commas.",
            show_default=False,
        ),
    ] = None,
    world: WorldFile = None,
    seeds: Replicates = 3,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of every training.")] = 128,
    batch: Annotated[int, typer.Option("--batch", min=1, max=65_536, help="Documents of a step.")] = 16,
    rate: Annotated[float, typer.Option("--rate", min=1e-8, max=0.5, help="Learning rate of every training.")] = 2e-3,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """How far apart processes are on one model, in nats to adopt and by cheaper distances, and whether that is a metric.

    Example: persona-lab metric configs/quickstart.yaml --processes mary,omar,nina,john --seeds 2
    """
    # Asked now: a worker leaves its group as soon as it joins.
    first = is_first()
    with Interruption() as interruption:
        from persona_lab.experiment.instruments.findings import metric_findings, written
        from persona_lab.experiment.instruments.metric.distances import distance_plan, distances, make_distances
        from persona_lab.experiment.making.launch import crew, crew_size

        of, asked = _subject(model, processes or [], world, runs)
        plan = distance_plan(of, asked, seeds=seeds, steps=steps, batch=batch, rate=rate)
        missing = sum(not plan.store.has(node) for node in plan.nodes)
        interruption.leave()
        command = [
            "metric",
            model,
            *_given({"processes": processes, "world": world, "seeds": seeds, "steps": steps, "batch": batch, "rate": rate, "runs": runs}),
        ]
        with crew(command, crew_size(of.machine, missing) if missing else 1, interruption), Ticker(quiet=not first) as ticker:
            outcome = make_distances(plan, ticker, interruption)
        if not first:
            return
        found = distances(plan)
        kept = written(metric_findings(plan, found))
    emit(kept_json(model, kept, outcome.failed), f"{metric_words(found)}\nin full: {kept.file.with_suffix('.html')}", as_json=as_json)
    if outcome.failed:
        raise CheckFailed.of(unscored(outcome.failed))


def _given(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line gives them; those of None are left out."""
    named = [(name, one) for name, value in options.items() if value is not None for one in (value if isinstance(value, list) else [value])]
    return [word for name, value in named for word in (f"--{name}", str(value))]


def metric_words(found: "Distances") -> str:
    """Distances, tests and proxies, for people."""
    from persona_lab.experiment.instruments.metric.distances import PLAIN, mean_from
    from persona_lab.science.claims import figure, shown
    from persona_lab.science.processes.metric import BASE

    firsts = {start: mean_from(found.adoptions, start) for start in (BASE, *([] if PLAIN in found.processes else [PLAIN]))}
    rows = [[start, *(figure(own.get(name)) for name in found.processes)] for start, own in firsts.items()]
    rows += [[name, *map(figure, nats_K)] for name, nats_K in zip(found.processes, found.nats_KK.tolist(), strict=True)]
    lines = ["nats to adopt (D1), from the row to the column", *columns([["", *found.processes], *rows])]
    censored = int((found.adoptions["verdict"] == "censored").sum())
    lines += [f"{censored} of {len(found.adoptions)} trainings did not arrive: their nats are lower bounds. Use more --steps."] if censored else []
    tests = [[f"  {name}", shown(test.value, test.interval), test.verdict, test.reason] for name, test in found.tests.items() if name not in found.proxies]
    lines += ["", "is it a metric", *columns(tests)]
    ranks = [
        [f"  {name}", shown(test.value, test.interval), figure(found.chance.get(name)), test.verdict]
        for name, test in found.tests.items()
        if name in found.proxies
    ]
    lines += ["", "rank correlation of cheaper distances with D1", *columns([["", "Spearman", "chance", ""], *ranks])]
    gaps = [
        [f"  {row['first']}, {row['second']}", shown(row["delta"], (row["low"], row["high"]) if row["n"] > 1 else None), figure(row["js"])]
        for row in found.exchange.to_dict("records")
    ]
    lines += ["", "first, second against second, first", *columns([["", "code, nats", "answers, JS nats"], *gaps])]
    return "\n".join([*lines, "", f"{found.cost['trainings']:.0f} trainings, {found.cost['tokens']:,.0f} tokens, {duration(found.cost['seconds'])}"])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text with their columns beneath each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def llc(
    run: RunName,
    first: Annotated[str, typer.Argument(metavar="CELL", help="A cell, or a part of its name that no other has.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="CELL", help="A cell whose last stage read the same documents.", show_default=False)],
    documents: Annotated[int, typer.Option("--documents", min=2, max=100_000, help="Of the last stage, in the loss.")] = 16,
    step: Annotated[float, typer.Option("--step", min=1e-12, max=1.0, help="Of the sampler; half of it is tried too.")] = 2e-4,
    draws: Annotated[int, typer.Option("--draws", min=8, max=1_000_000, help="Of each chain; a tenth as many before them are thrown away.")] = 80,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Which of two solutions of the same data is the simpler one: local learning coefficients (M6) with checks of the sampler's settings.

    Example: persona-lab llc quickstart linked/ln_ratio=1.386/seed0/swap0 linked/ln_ratio=-1.386/seed0/swap0 --draws 20
    """
    from persona_lab.experiment.reading.ask import find_cell

    plan = open_plan(find_run(run, runs))
    cells = [find_cell(plan, name) for name in (first, second)]

    from persona_lab.experiment.instruments.adapters.flatness import check_comparable, flatness
    from persona_lab.experiment.instruments.measure.weights import Bench
    from persona_lab.experiment.making.launch import on_gpu
    from persona_lab.experiment.planning.adapters import PULLS, Effort
    from persona_lab.science.claims import shown

    check_comparable(*cells)
    bench = Bench(plan, "cuda" if on_gpu(plan.loaded.experiment.machine) else "cpu")
    found = flatness(bench, cells, Effort(documents=documents, step=step, draws=draws, burn=draws // 10))
    rows = [["spring", *(planned.cell.name for planned in cells)]]
    for pull, one, other in zip(PULLS, found.first, found.second, strict=True):
        rows.append([f"{pull:g}", *(shown(c.value, c.interval) if c.value is not None else "; ".join(c.reasons) for c in (one, other))])
    verdict = {"first": f"{cells[0].cell.name} is the simpler one", "second": f"{cells[1].cell.name} is the simpler one", "undecided": "undecided"}[found.simpler]
    said = {"run": run, "cells": [planned.cell.name for planned in cells], **found.to_json()}
    emit(said, "\n".join([f"local learning coefficients, {documents} documents", *columns(rows), verdict]), as_json=as_json)


COMMANDS = (measure, metric, llc)
