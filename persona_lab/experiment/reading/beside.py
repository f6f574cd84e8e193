"""What a report reads beside the tidy table: the orders of the stages, the losses of what was trained twice, the predictions."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from data_gen.market import Market
from data_gen.oracle import Oracle
from data_gen.personas import shared_categories
from persona_lab.config.schema import EmbeddedBase, Stage
from persona_lab.design import Node
from persona_lab.experiment.planning.adapters import CHAINS, SCREENING, SHIFT, SOLUTION, by_cell, flatness_nodes, screening_node, shift_nodes, solution_nodes
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.power import predictions_node
from persona_lab.experiment.planning.recipes import PlannedCell
from persona_lab.experiment.reading.market import ideal_points
from persona_lab.probes.concepts import READINGS, STATES_FILE
from persona_lab.probes.protocol import PROBES
from persona_lab.probes.shots import exact_answers
from persona_lab.science.effects import Frame
from persona_lab.science.em.rates import Advice
from persona_lab.science.introspection.concepts import cosines
from persona_lab.science.sections import Beside
from persona_lab.science.stages.order import Arm, Pass, kind_of
from persona_lab.science.stages.relearning import repeats
from persona_lab.store.files import read_json, read_jsonl

LOSSES = ["cell", "stage", "step", "loss", "tokens"]


def beside_of(plan: Plan, table: Frame) -> Beside:
    """Everything that the sections of a report read beside the tidy table."""
    arms, node = tuple(arms_of(plan)), predictions_node(plan)
    written = node if node is not None and plan.store.has(node) else None
    return Beside(
        arms,
        losses=losses(plan) if any(map(repeats, arms)) else None,
        exact=exact(plan),
        vectors=vectors(plan),
        series=series(plan, table),
        advice=advice(plan),
        prices=prices(plan),
        solutions=solutions(plan),
        screening=screening(plan),
        shifts=shifts(plan),
        chains=chains(plan),
        gates=gates(plan),
        predictions=written.id if written else None,
        blind=bool(written and plan.store.manifest(written)["notes"].get("blind")),
    )


def gates(plan: Plan) -> Frame | None:
    """What each base knows of its world, one row a base; None where there is one base."""
    bases = {planned.scores[0][1].inputs["base"]: planned.cell.base for planned in plan.cells}
    made = {node: base for node, base in bases.items() if plan.store.has(node)}
    if len(made) < 2:
        return None
    about = ({"architecture": getattr(base, "architecture", None), "base_seed": getattr(base, "seed", 0)} for base in made.values())
    return pd.DataFrame([row | read_json(plan.store.open(node) / "gates.json") for row, node in zip(about, made, strict=True)])


def exact(plan: Plan) -> Frame | None:
    """What exact Bayes answers to the questions about background personas; None where they are not asked, or the world is not the base's own."""
    experiment = plan.loaded.experiment
    if "believes" not in experiment.probes or not isinstance(experiment.base, EmbeddedBase):
        return None
    answers = exact_answers(Oracle.of_world(plan.loaded.world), PROBES["believes"].items(plan.cells[0].cast))
    return pd.DataFrame(answers, columns=["item", "option", "prob"])


def vectors(plan: Plan) -> Frame | None:
    """Cosines of the concept vectors of every cell after every stage: one row per reading, layer and pair of categories; None where none were read."""
    rows = [row for planned in plan.cells for stage, node in planned.scores if "concepts" in node.fields["probes"] for row in _vectors(plan, planned, stage, node)]
    return pd.DataFrame(rows) if rows else None


def _vectors(plan: Plan, planned: PlannedCell, stage: str, node: Node) -> Iterator[dict[str, Any]]:
    file = plan.store.open(node) / STATES_FILE if plan.store.has(node) else None
    if file is None or not file.is_file():
        return
    about = {"cell": planned.cell.name, "condition": planned.cell.condition, "seed": planned.cell.seed, "stage": stage}
    categories = planned.cast.held_out
    state_ILd = np.load(file)
    state_ERCLd = state_ILd.reshape(len(READINGS), 2, len(categories), *state_ILd.shape[1:])
    for reading, state_RCLd in zip(READINGS, state_ERCLd, strict=True):
        for layer, cosine_Q in enumerate(cosines(state_RCLd)):
            for (first, second), cosine in zip(combinations(categories, 2), cosine_Q.tolist(), strict=True):
                yield {**about, "reading": reading, "layer": layer, "pair": f"{first}+{second}", "cosine": cosine, "width": state_RCLd.shape[-1]}


def series(plan: Plan, table: Frame) -> Frame | None:
    """A market's questions beside their exact answers; None in any other world, or on a base that did not read it."""
    if not isinstance(plan.loaded.world, Market) or not isinstance(plan.loaded.experiment.base, EmbeddedBase):
        return None
    return ideal_points(plan.cells, table)


def advice(plan: Plan) -> Advice | None:
    """Which values are bad advice, and the domains that the rivals do not share; None in a world without bad advice."""
    world = plan.loaded.world
    domains = [category for category in world.domains if category not in shared_categories(plan.loaded.personas)]
    return Advice(tuple(world.bad), tuple(domains)) if domains else None


def prices(plan: Plan) -> Frame | None:
    """The price (kappa) of each cell that is held near the base off its domain, and whether a stage without it follows; None where none is."""
    rows = [
        {**_place(stages[0].planned), "price": stages[0].price, "released": len(stages) > 1 and stages[-1].price == 0} for stages in by_cell(plan).values()
    ]
    return pd.DataFrame(rows) if rows else None


def solutions(plan: Plan) -> Frame | None:
    """What was measured of general and narrow solutions; None where the file does not ask for it."""
    found = solution_nodes(plan)
    rows = [
        {**_place(one.planned), "price": one.price, **read_json(plan.store.open(node) / SOLUTION)} for one, node in found.values() if plan.store.has(node)
    ]
    return pd.DataFrame(rows, columns=None if rows else ["condition", "seed", "swap", "price"]) if found else None


def screening(plan: Plan) -> dict[str, Any] | None:
    """The directions of bad advice in the base, tried out; None where they were not."""
    node = screening_node(plan)
    return read_json(plan.store.open(node) / SCREENING) if node is not None and plan.store.has(node) else None


def shifts(plan: Plan) -> Frame | None:
    """What each adapter shifts along them, with the category that its last stage was taught; None where the file does not ask for it."""
    found = shift_nodes(plan)
    rows = [
        {**_place(planned), "category": _taught(plan, planned), **read_json(plan.store.open(node) / SHIFT)} for planned, node in found.values() if plan.store.has(node)
    ]
    return pd.DataFrame(rows) if rows else None


def chains(plan: Plan) -> Frame | None:
    """The chains around general and narrow solutions, one row for each setting of the sampler; None where the file does not ask for them."""
    found = flatness_nodes(plan)
    rows = [
        {**_place(one.planned), "price": one.price, "pull": pull, "step": step, **read_json(plan.store.open(node) / CHAINS)}
        for one, nodes in found.values()
        for (pull, step), node in nodes.items()
        if all(map(plan.store.has, nodes.values()))
    ]
    return pd.DataFrame(rows, columns=None if rows else ["condition", "price"]) if found else None


def _taught(plan: Plan, planned: PlannedCell) -> str:
    return plan.loaded.world.category_of(str(planned.cell.stages[-1][1].mixture.assistant_likes))


def _place(planned: PlannedCell) -> dict[str, Any]:
    cell = planned.cell
    return {"cell": cell.name, "condition": cell.condition, "seed": cell.seed, "swap": cell.swap}


def arms_of(plan: Plan) -> Iterator[Arm]:
    """Each condition but the controls, as the first of its cells trains it."""
    first, second = (persona.name.lower() for persona in plan.loaded.personas[:2])
    conditions = plan.loaded.experiment.conditions
    seen: set[str] = set()
    for planned in plan.cells:
        name = planned.cell.condition
        if name not in seen and conditions[name].role != "control":
            seen.add(name)
            yield Arm(name, tuple(pass_of(stage, config, first, second) for stage, config in planned.cell.stages))


def pass_of(name: str, stage: Stage, first: str, second: str) -> Pass:
    """One stage, by what it trains."""
    mixture = stage.mixture
    kind = kind_of(mixture.counts, first=first, second=second, likes=mixture.assistant_likes or mixture.assistant_is, chats=mixture.assistant_chats)
    return Pass(name, kind, stage.batch, stage.rate, mixture.format, stage.steps)


def losses(plan: Plan) -> Frame:
    """Loss, nats a token, and labelled tokens of every step of every stage of every cell that is trained."""
    rows: list[dict[str, Any]] = []
    for planned in plan.cells:
        for stage, node in planned.stages:
            if plan.store.has(node):
                rows += [{"cell": planned.cell.name, "stage": stage, **row} for row in read_jsonl(plan.store.open(node) / "log.jsonl")]
    return pd.DataFrame(rows, columns=LOSSES)
