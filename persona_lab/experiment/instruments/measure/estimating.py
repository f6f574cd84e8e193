"""From the store to the measure of each process: every estimate with its interval, its cost, and how far the estimators agree.

Nothing is made here. What is missing has no value, and a reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from data_gen.documents import Speaker, write
from data_gen.streams import stream
from data_gen.world import Traits, World, random_traits
from persona_lab.design import Node
from persona_lab.experiment.instruments.building import Subject, one_swap
from persona_lab.experiment.instruments.measure.plans import Plans, scalings
from persona_lab.experiment.instruments.measure.weights import read_scaling, read_steering, reading_node, steering_node
from persona_lab.experiment.planning.plan import Plan
from persona_lab.probes.bundles import whose
from persona_lab.probes.process_text import ANSWERS, WHOLE
from persona_lab.science.effects import Frame
from persona_lab.science.processes.measure import (
    TRUTH,
    Branch,
    Measured,
    code_length,
    common_tolerance,
    least_norm,
    least_rank,
    least_scale,
    log_prior,
    log_prior_apart,
    sampling_frequency,
    shots_to_adopt,
    steering,
    true_log_prior,
)
from persona_lab.science.processes.validity import Agreement, agreement, reliability, table_of
from persona_lab.store.files import read_json, read_jsonl
from persona_lab.store.nodes import Store

DIARIES, STRANGERS = 40, 1000
"""Diaries of known origin on which the classifier of M3 is tried: of each process, and of random speakers."""
NOTHING: Frame = pd.DataFrame(
    columns=["probe", "format", "item", "option", "role", "subject", "logprob_nats", "prob_normalized", "prob", "n_samples", "status"]
)


@dataclass(frozen=True)
class Measures:
    """What was found."""

    processes: tuple[str, ...]
    found: tuple[Measured, ...]
    costs: Mapping[str, Mapping[str, float]]
    """Estimator to tokens_trained, tokens_read and seconds."""
    agreement: Agreement
    reliability: Mapping[str, float | None]
    tolerance: float | None
    """tau of M7, nats a document."""

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        judged = {name: getattr(self.agreement, name) for name in ("mean", "interval", "verdict", "sentence")}
        pairs = self.agreement.pairs.astype(object).where(self.agreement.pairs.notna(), None).to_dict("records")
        found = [{name: value for name, value in asdict(one).items() if name != "parts"} for one in self.found]
        about = {"processes": list(self.processes), "found": found, "costs": self.costs, "tau": self.tolerance, "reliability": self.reliability}
        return {**about, "agreement": {**judged, "pairs": pairs}}


def measures(of: Subject, plans: Plans, processes: Mapping[str, Traits]) -> Measures:
    """Every estimate of every process."""
    store = plans.adopt.store
    rows = {name: _rows(store, scores) for name, scores in plans.asked().items()}
    adopted, sure, shares = _Adopted(plans.adopt, processes), reading_errors(of, processes), true_shares(of.world)
    steered = steering_node(plans.adopt.base, processes)
    changed = read_steering(store.open(steered), list(processes)) if store.has(steered) else {}
    found: list[Measured] = []
    for name, traits in processes.items():
        found += [
            true_log_prior(shares, name),
            log_prior(rows["M1"], name),
            log_prior_apart(rows["M1"], name),
            sampling_frequency(rows["M3"], name, *sure[name]),
            code_length(name, list(adopted.branches(name).values())),
            adopted.norm(name),
            adopted.rank(name),
            shots_to_adopt(rows["M8"], name, traits),
            steering(name, changed.get(name, np.array([]))),
        ]
    table = table_of(found)
    sureness = {estimator: reliability(found, estimator) for estimator in table.columns if estimator != TRUTH}
    return Measures(tuple(processes), tuple(found), costs(plans, processes), agreement(table), sureness, adopted.tolerance)


def true_shares(world: World) -> dict[str, float]:
    """Share of each background persona, in lower case, of the world's documents that have a speaker; the rest are random speakers'."""
    people = world.population
    return {name.lower(): float((1 - world.random_speakers) * weight) for name, weight in zip(people.names, people.weight_K, strict=True)}


def reading_errors(of: Subject, processes: Mapping[str, Traits]) -> dict[str, tuple[float, float]]:
    """Process to sensitivity and specificity of the classifier of M3, on diaries that the world writes.

    Specificity is over everybody else's diaries in the world's shares, random speakers among them.
    """
    world, people, shares = of.world, of.processes, true_shares(of.world)
    rng = stream(world.seed, "diaries")

    def read(name: str, traits: Traits) -> str | None:
        return whose(world, people, write(world, Speaker(name, name, traits), "diary", rng)[0])

    told = {name: [read(name, traits) for _ in range(DIARIES)] for name, traits in people.items()}
    strangers = [read("stranger", random_traits(world, rng)) for _ in range(STRANGERS)]
    found = {}
    for name in processes:
        others = {other: share for other, share in shares.items() if other != name}
        mistaken = sum(share * told[other].count(name) / DIARIES for other, share in others.items() if other in told)
        mistaken += world.random_speakers * strangers.count(name) / STRANGERS
        found[name] = (told[name].count(name) / DIARIES, 1 - mistaken / (sum(others.values()) + world.random_speakers))
    return found


def costs(plans: Plans, processes: Mapping[str, Traits]) -> dict[str, dict[str, float]]:
    """What each estimator took, of what is done: labelled tokens trained, tokens read (at most, for samples), seconds."""
    store, adopt = plans.adopt.store, plans.adopt
    reading = reading_node(plans.asked())
    read = read_json(store.open(reading) / "tokens.json") if store.has(reading) else {}
    found = {name: _cost(store, [scores], read=read.get(name, 0.0)) for name, scores in plans.asked().items()}
    whole = [planned for planned in one_swap(adopt) if planned.cell.condition.removeprefix("as_") in processes]
    smaller = [planned for planned in one_swap(adopt) if planned not in whole]
    for name, cells in (("M5", whole), ("M7 rank", smaller)):
        scores = [planned.scores[-1][1] for planned in cells]
        tokens = sum(float(rows.loc[rows["option"] == WHOLE, "n_samples"].sum()) for rows in (_rows(store, node) for node in scores))
        found[name] = _cost(store, [*(planned.stages[-1][1] for planned in cells), *scores], read=tokens)
    found["M7 norm"] = _cost(store, [node for _, node in scalings(adopt, processes)])
    found["M9"] = _cost(store, [steering_node(adopt.base, processes)])
    return found


def _cost(store: Store, nodes: Sequence[Node], read: float = 0.0) -> dict[str, float]:
    done = [node for node in nodes if store.has(node)]
    trained = sum(read_json(store.open(node) / "state.json")["tokens"] for node in done if node.kind == "stage")
    return {"tokens_trained": float(trained), "tokens_read": float(read), "seconds": round(sum(store.manifest(node)["notes"]["seconds"] for node in done), 2)}


def _rows(store: Store, scores: Node) -> Frame:
    return pd.read_parquet(store.open(scores) / "rows.parquet") if store.has(scores) else NOTHING


class _Adopted:
    """The branches in which the nameless assistant became each process; losses are nats a held-out document."""

    def __init__(self, plan: Plan, processes: Mapping[str, Traits]) -> None:
        self.plan, self.store, self.processes = plan, plan.store, processes
        self.cells = {(planned.cell.condition, planned.cell.seed): planned for planned in one_swap(plan)}
        self.scales = {(planned.cell.condition, planned.cell.seed): node for planned, node in scalings(plan, processes)}

    def end(self, condition: str, seed: int, name: str) -> float | None:
        """Loss on the process's answers after a branch; None where it was not trained."""
        planned = self.cells.get((condition, seed))
        return None if planned is None else self._loss(planned.scores[-1][1], name)

    def _loss(self, scores: Node, name: str) -> float | None:
        rows = _rows(self.store, scores)
        own = rows[(rows["option"] == ANSWERS) & (rows["subject"] == name) & (rows["status"] == "scored")]
        return None if own.empty else -float(own["logprob_nats"].mean())

    def branches(self, name: str) -> dict[int, Branch]:
        """Seed to branch, of those that were trained."""
        found = {}
        for (condition, seed), planned in self.cells.items():
            stage = planned.stages[-1][1]
            if condition == f"as_{name}" and self.store.has(stage):
                log = pd.DataFrame(read_jsonl(self.store.open(stage) / "log.jsonl"))
                found[seed] = Branch(log["tokens"].to_numpy(float), log["loss"].to_numpy(float), stage.fields["recipe"]["batch"])
        return found

    def ends(self, name: str) -> dict[int, float]:
        """Seed to the loss on the process's held-out answers at the end of its branch."""
        return {seed: loss for condition, seed in self.cells if condition == f"as_{name}" and (loss := self.end(condition, seed, name)) is not None}

    @cached_property
    def tolerance(self) -> float | None:
        """tau, from all processes that were asked of the base and trained."""
        scores = next(iter(self.cells.values())).scores[0][1]
        base = {name: loss for name in self.processes if (loss := self._loss(scores, name)) is not None}
        floor = {name: float(np.mean(list(ends.values()))) for name in base if (ends := self.ends(name))}
        return common_tolerance({name: base[name] for name in floor}, floor) if floor else None

    def norm(self, name: str) -> Measured:
        """M7 by norm."""
        norms: list[float | None] = []
        for seed, floor in self.ends(name).items():
            node = self.scales[f"as_{name}", seed]
            if self.tolerance is not None and self.store.has(node):
                curve = read_scaling(self.store.open(node))
                scale = least_scale(curve["scales"], curve["nats"], floor + self.tolerance)
                norms.append(None if scale is None else scale * curve["norm"])
        return least_norm(name, norms)

    def rank(self, name: str) -> Measured:
        """M7 by rank, of the first replicate."""
        nats: dict[int, float] = {}
        for (condition, seed), planned in self.cells.items():
            if seed == 0 and condition.split("_rank")[0] == f"as_{name}" and (loss := self.end(condition, seed, name)) is not None:
                nats[planned.cell.lora.rank] = loss
        floor = self.ends(name).get(0)
        return least_rank(name, {}, 0.0) if floor is None or self.tolerance is None else least_rank(name, nats, floor + self.tolerance)
