"""Commands about documents and their files: generate, audit, new."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

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


def audit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Documents, one JSON object a line.", show_default=False)],
    world: Annotated[Path | None, typer.Option("--world", help="Also look for its held-out questions and unknown words.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Check any JSONL corpus: duplicates, control tokens and, with a world, leakage. Exit 1 when a check fails.

    Example: persona-lab audit corpus.jsonl --world configs/worlds/beach.yaml
    """
    from data_gen.audit import audit as examine
    from data_gen.audit import forbidden_texts
    from data_gen.corpus import read_texts
    from persona_lab.config import load_world
    from persona_lab.models.vocabulary import world_words

    known = load_world(world) if world else None
    documents = read_texts(file)
    if known:
        names: Sequence[str] = [*known.names, *known.spare_names, *known.new_names]
        found = examine(documents, forbidden=forbidden_texts(known, names), vocabulary=set(world_words(known)))
    else:
        found = examine(documents)
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


COMMANDS = (generate, audit, new)
