"""What a report reads beside the tidy table: the orders of the stages, the losses of what was trained twice, the predictions."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from data_gen.oracle import Oracle
from persona_lab.config.schema import EmbeddedBase, Stage
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.power import predictions_node
from persona_lab.probes.protocol import PROBES
from persona_lab.probes.shots import exact_answers
from persona_lab.science.effects import Frame
from persona_lab.science.sections import Beside
from persona_lab.science.stages.order import Arm, Pass, kind_of
from persona_lab.science.stages.relearning import repeats
from persona_lab.store.files import read_jsonl

LOSSES = ["cell", "stage", "step", "loss", "tokens"]


def beside_of(plan: Plan) -> Beside:
    """Everything that the sections of a report read beside the table."""
    arms, node = tuple(arms_of(plan)), predictions_node(plan)
    written = node if node is not None and plan.store.has(node) else None
    return Beside(
        arms,
        losses=losses(plan) if any(map(repeats, arms)) else None,
        exact=exact(plan),
        predictions=written.id if written else None,
        blind=bool(written and plan.store.manifest(written)["notes"].get("blind")),
    )


def exact(plan: Plan) -> Frame | None:
    """What exact Bayes answers to the questions about background personas; None where they are not asked, or the world is not the base's own."""
    experiment = plan.loaded.experiment
    if "believes" not in experiment.probes or not isinstance(experiment.base, EmbeddedBase):
        return None
    answers = exact_answers(Oracle.of_world(plan.loaded.world), PROBES["believes"].items(plan.cells[0].cast))
    return pd.DataFrame(answers, columns=["item", "option", "prob"])


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
