"""The command `mechanism`: what a model says of how it does a sum, against how it does it."""

from typing import Annotated

import typer

from persona_lab.cli.console import AsJson, Ticker, emit, is_first
from persona_lab.cli.experiments import Runs
from persona_lab.errors import ConfigError
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.planning.plan import RUNS


def mechanism(
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Bases of each of the three corpora.")] = 3,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1_000_000, help="Steps of pretraining.")] = 600,
    width: Annotated[int, typer.Option("--width", min=16, max=1024, help="Features of a token; a multiple of 8.")] = 64,
    layers: Annotated[int, typer.Option("--layers", min=1, max=24, help="Layers of a base.")] = 2,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Is the method that a model states the one that does its sums? Small bases that add, and activation patching.

    Example: persona-lab mechanism --seeds 3
    """
    if width % 8:
        raise ConfigError("PL1208", "--width", f"must be a multiple of 8, got {width}. Use {max(16, width // 8 * 8)}.")
    if not is_first():
        return
    with Interruption() as interruption, Ticker() as ticker:
        from persona_lab.experiment.instruments.mechanism.bases import Adder, make_mechanism, mechanism_nodes
        from persona_lab.experiment.instruments.mechanism.findings import stated, written
        from persona_lab.science.claims import shown
        from persona_lab.store.nodes import Store

        store = Store(runs / "store")
        store.check_writable()
        nodes = mechanism_nodes(Adder(width=width, layers=layers, steps=steps), seeds)
        make_mechanism(store, nodes, ticker, interruption)
        found = stated(store, nodes)
        folder = written(runs, found)
    lines = [f"{shown(claim.value, claim.interval):>28}  {claim.unit:<15}{claim.verdict:<11} {claim.text}" for claim in found.claims]
    page = folder / "mechanism.html"
    emit({"file": str(folder / "mechanism.json"), "page": str(page), **found.said}, "\n".join([*lines, f"in full: {page}"]), as_json=as_json)


COMMANDS = (mechanism,)
