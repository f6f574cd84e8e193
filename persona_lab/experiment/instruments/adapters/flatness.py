"""Two solutions of the same task: which one has the smaller local learning coefficient (M6)?

    persona-lab llc quickstart linked/ln_ratio=1.386/seed0/swap0 linked/ln_ratio=-1.386/seed0/swap0
    adapters: [flatness]      of an experiment file: the general against the narrow solution of every seed

A coefficient is that of an adapter on the documents it was last trained on, with the loss it was trained with. So two cells can be compared whose last
stages read the same mixture into adapters of one shape: cells that differ before that stage, or in the price of leaving the base off the domain, which is
then part of the narrow solution's own loss. Chains are `analysis` nodes, one for each strength of the spring and each step:

    chains.json     {"start": 3.1, "nbeta": 9.2, "losses": [[3.2, 3.4, ...], ...]}      nats a document; null from where a chain left for infinity
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.pools import mixture_order
from persona_lab.design import Node
from persona_lab.errors import ConfigError
from persona_lab.experiment.instruments.measure.weights import Bench
from persona_lab.experiment.making.members import adapter_of, lora_shape
from persona_lab.experiment.making.tokens import read_tokens
from persona_lab.experiment.planning.adapters import CHAINS, PULLS, Effort, chain_nodes
from persona_lab.experiment.planning.corpora import mixture_shares
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import OFF_DOMAIN, PlannedCell, token_nodes
from persona_lab.models.bank import AdapterBank
from persona_lab.science.processes.llc import Coefficient, coefficient, inverse_temperature, settled, simpler
from persona_lab.store.files import finite, read_json, write_json
from persona_lab.train.batches import Row
from persona_lab.train.llc import Sampler, adapter_losses, chain_losses


@dataclass(frozen=True)
class Flatness:
    """The coefficients of two solutions, one for each strength of the spring, and which is the smaller one."""

    first: tuple[Coefficient, ...]
    second: tuple[Coefficient, ...]
    simpler: str
    """first, second or undecided."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        each = {name: [{"pull": pull, **vars(c)} for pull, c in zip(PULLS, getattr(self, name), strict=True)] for name in ("first", "second")}
        return {**each, "simpler": self.simpler}


def solution(planned: PlannedCell) -> Node:
    """The last stage of a cell.

    Raises:
        ConfigError: PL1294, the cell trains nothing.
    """
    if not planned.stages:
        raise ConfigError("PL1294", planned.cell.name, "this cell is the base model itself. Use a cell that trains a stage.")
    return planned.stages[-1][1]


def check_comparable(first: PlannedCell, second: PlannedCell) -> None:
    """Refuse cells whose coefficients are of different losses or of different parameters.

    Raises:
        ConfigError: PL1298, naming what differs.
    """
    one, two = solution(first), solution(second)
    differ = [] if one.inputs["mixture"].id == two.inputs["mixture"].id else ["the documents of the last stage"]
    losses = [{**stage.fields["recipe"]["loss"], "kl_off": None} for stage in (one, two)]
    differ += ["the loss of the last stage"] if losses[0] != losses[1] else []
    differ += ["the adapter of the last stage"] if one.fields["recipe"]["lora"] != two.fields["recipe"]["lora"] else []
    if differ:
        said = f"cannot be compared with {second.cell.name}: they differ in {' and '.join(differ)}"
        raise ConfigError("PL1298", first.cell.name, f"{said}. Use cells of one seed and swap that differ before the last stage, such as two ratios.")


def documents_of(stage: Node, plan: Plan, count: int) -> list[Row]:
    """The first documents that a stage was trained on; of those off its domain only what it paid for.

    Raises:
        ConfigError: PL1298, it saw fewer.
    """
    mixture, recipe = stage.inputs["mixture"], stage.fields["recipe"]
    if (seen := stage.fields["step"] * recipe["batch"]) < count:
        raise ConfigError("PL1298", plan.names.get(stage.id, stage.id[:12]), f"its last stage saw {seen} documents, {count} are asked. Use --documents {max(seen, 2)}.")
    rows = {source: read_tokens(plan.store.open(node)) for source, node in token_nodes(stage).items()}
    price = recipe["loss"].get("kl_off", 0.0)
    order = mixture_order(mixture_shares(mixture), documents=count, seed=mixture.fields["seed"])
    return [
        replace(rows[source][document], price=price) if source == OFF_DOMAIN else rows[source][document] for source, document in order if source != OFF_DOMAIN or price
    ]


def write_chains(bench: Bench, node: Node, folder: Path) -> None:
    """Let the chains of a node run."""
    stage, fields, store = node.inputs["stage"], node.fields, bench.plan.store
    model, tokenizer = bench.base
    assert isinstance(tokenizer.pad_token_id, int), "load_base gives every tokenizer one"
    rows = documents_of(stage, bench.plan, fields["documents"])
    nbeta = inverse_temperature(sum(row.price is None for row in rows))
    bank = AdapterBank(model, lora_shape(stage.fields["recipe"]["lora"]), fields["chains"])
    try:
        bank.load_row(0, adapter_of(store, stage), f"stage {stage.id[:12]}")
        start_P = bank.weight_KP[0].detach().clone()
        sampler = Sampler(**{name: fields[name] for name in ("step", "pull", "burn", "draws", "chains", "seed", "settle")})
        losses = adapter_losses(bank, rows, pad=tokenizer.pad_token_id, micro_batch=len(rows))
        start, loss_CD = chain_losses(losses, start_P, nbeta, sampler)
    finally:
        bank.remove()
    write_json(folder / CHAINS, finite({"start": start, "nbeta": nbeta, "losses": loss_CD.tolist()}))


def read_chains(folder: Path) -> tuple[np.ndarray, float, float]:
    """Losses (C, D), the loss where they began, and n beta."""
    found: Mapping[str, Any] = read_json(folder / CHAINS)
    losses = [[np.nan if loss is None else loss for loss in chain] for chain in found["losses"]]
    return np.array(losses, float), np.nan if found["start"] is None else found["start"], found["nbeta"]


def coefficients(plan: Plan, stage: Node, effort: Effort) -> Iterator[Coefficient]:
    """One for each strength of the spring, from chains that exist."""
    nodes = chain_nodes(stage, effort)
    for pull in PULLS:
        whole, halved = (coefficient(*read_chains(plan.store.open(nodes[pull, step]))) for step in (effort.step, effort.step / 2))
        yield settled(whole, halved)


def flatness(bench: Bench, cells: Sequence[PlannedCell], effort: Effort) -> Flatness:
    """Run the chains that are missing, and compare two solutions.

    Raises:
        ConfigError: the cells cannot be compared.
        NodeMissing: one of them was not trained yet.
    """
    check_comparable(*cells)
    stages = [solution(planned) for planned in cells]
    for stage in stages:
        for node in chain_nodes(stage, effort).values():
            bench.make(node, write_chains)
    first, second = (tuple(coefficients(bench.plan, stage, effort)) for stage in stages)
    return Flatness(first, second, simpler(list(first), list(second)))
