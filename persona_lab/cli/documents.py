"""Commands about documents and their files: generate, write, audit, new."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_lab.cli.console import AsJson, Ticker, emit
from persona_lab.cli.experiments import Config, Overrides, Runs
from persona_lab.errors import printable
from persona_lab.experiment.planning.plan import RUNS, make_plan

WORLD = Path("configs/worlds/beach.yaml")
RIVAL = Path("configs/personas/sam.yaml")


def generate(
    config: Config,
    out: Annotated[Path, typer.Option("--out", help="A new folder.", show_default=False)],
    overrides: Overrides = None,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Only the corpora of an experiment, each with its card and its audit.

    Example: persona-lab generate configs/quickstart.yaml --out corpora
    """
    planned = make_plan(config, overrides or [], runs)

    from persona_lab.experiment.making.generate import generate as write

    with Ticker() as ticker:
        count = write(planned, out, ticker)
    emit({"folder": str(out), "corpora": count}, f"{count} corpora: {out}", as_json=as_json)


def write(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan of writing.", show_default=False)],
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only what it will cost: requests, tokens, money and time. Nobody is asked.")] = False,
    device: Annotated[str, typer.Option("--device", help="Where a writer by transformers runs: auto, cpu, cuda.")] = "auto",
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Documents about personas by a language model: drafted, revised, checked, in exact counts. Stopped, it goes on from where it was.

    Example: persona-lab write configs/writing/beach.yaml --dry-run
    """
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"must be auto, cpu or cuda, got {device!r}", param_hint="--device")
    from persona_lab.config.writing import load_writing
    from persona_lab.experiment.writing.plans import costs_said, costs_words, writing_job

    job = writing_job(load_writing(plan, overrides or []))
    if dry_run:
        emit(costs_said(job), costs_words(job), as_json=as_json)
        return
    from persona_lab.experiment.making.interruption import Interruption
    from persona_lab.experiment.writing.making import PAGE, folder_of, write_documents

    with Interruption() as interruption, Ticker() as ticker:
        said = write_documents(job, runs, device, ticker, interruption)
    counts = [f"{one['kept']:>8} {name}" for name, one in said["documents"].items()]
    emit(said, "\n".join([*counts, *said["corpora"], f"in full: {folder_of(job, runs) / PAGE}"]), as_json=as_json)


def audit(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Documents or conversations, JSONL or parquet; a file for each persona.", show_default=False)],
    world: Annotated[Path | None, typer.Option("--world", help="Also look for its held-out questions and unknown words.", show_default=False)] = None,
    written: Annotated[bool, typer.Option("--written", help="Also look for what a language model leaves: refusals, talk around the text, cut ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check any corpus: duplicates, control tokens, texts that stand in several files and, with a world, leakage. Exit 1 when a check fails.

    Example: persona-lab audit john.jsonl sam.jsonl --world configs/worlds/beach.yaml
    """
    from data_gen.audit import audit as examine
    from data_gen.audit import forbidden_texts
    from data_gen.imported import read_several
    from data_gen.written.quality import artefact_checks
    from persona_lab.config import load_world
    from persona_lab.models.vocabulary import world_words

    known = load_world(world) if world else None
    names: Sequence[str] = [*known.names, *known.spare_names, *known.new_names] if known else ()
    # Every file is about somebody else, as far as several are given: which names are whose is not known.
    settings: dict[str, Any] = {"foreign": {}, "names": {str(file): names for file in files}} if len(files) > 1 else {}
    if known:
        settings |= {"forbidden": forbidden_texts(known, names), "vocabulary": set(world_words(known))}
    documents = read_several(files)
    found = examine(documents, **settings)
    if written:
        found = replace(found, checks=(*found.checks, *artefact_checks(documents)))
    emit(json.loads(found.to_json()), "\n".join(printable(line, 1000) for line in str(found).splitlines()), as_json=as_json)
    if not found.passed:
        raise typer.Exit(1)


def new(
    persona: Annotated[str, typer.Argument(metavar="PERSONA", help="A free name of the world.", show_default=False)],
    world: Annotated[Path, typer.Option("--world", help="The world that it will live in.")] = WORLD,
    rival: Annotated[Path, typer.Option("--rival", help="Whom it is set against; they share one trait.")] = RIVAL,
    configs: Annotated[Path, typer.Option("--configs", help="Where its files go.")] = Path("configs"),
    as_json: AsJson = False,
) -> None:
    """A persona of your own, and an experiment about it that runs as it is. Nothing is overwritten.

    Example: persona-lab new Ann --world configs/worlds/beach.yaml
    """
    from persona_lab.experiment.planning.scaffold import scaffold

    files = scaffold(persona, world, rival, configs)
    text = f"{files[0]}\n{files[1]}\nNext: persona-lab run {files[1]}"
    emit({"persona": str(files[0]), "experiment": str(files[1])}, text, as_json=as_json)


COMMANDS = (generate, write, audit, new)
