"""What a design can tell apart, from its file alone: the planned runs, the power over pairs of hypotheses, and what each hypothesis predicts.

    persona-lab plan configs/factorial.yaml      139 of 149 ordered pairs of hypotheses are separable (93 %; 90 % asked).

Measured quantities are planned as what the design makes likely: the prior from `pairs.prior`, the distance from who a rival is said to be and in
which format, the evidence of a document from how typical the shared trait is of each.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from persona_lab.config.mixtures import Mixture, Told
from persona_lab.design import Node, canonical_json
from persona_lab.errors import CheckFailed
from persona_lab.experiment.planning.columns import design_columns
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import PlannedCell
from persona_lab.science.effects import Frame
from persona_lab.science.hypotheses.families import BY_ID, Family
from persona_lab.science.hypotheses.power import DesignVerdict, verdict_on_design

PREDICTIONS = "predictions.json"
DRAWS = 400
"""From the prior of each hypothesis."""
NEAR = {None: 0.0, "default": 0.0, "chat": 0.0}
"""Formats as near as the assistant's own; any other counts as one step away, and so does who is no AI assistant."""


def planned_runs(plan: Plan) -> Frame:
    """The run frame of a design before anything is measured: one row for each cell that the tournament will read, without eta."""
    controls = {name for name, condition in plan.loaded.experiment.conditions.items() if condition.role == "control"}
    numbered = any(planned.cell.block for planned in plan.cells)
    read = [p for p in plan.cells if (p.cell.block if numbered else p.cell.condition not in controls) and p.stages]
    return pd.DataFrame([_row(plan, planned) for planned in read])


def _row(plan: Plan, planned: PlannedCell) -> dict[str, Any]:
    columns = design_columns(planned, plan.loaded.experiment.name)[planned.stages[-1][0]]
    x, o, prior = columns["ln_trained"], columns["came_first"], planned.cell.pairs.prior or 0.0
    p = prior * (1 - 2 * planned.cell.swap)
    typical, distance = (_contrast(planned, part) for part in (_typical, _distance))
    return {
        "condition": planned.cell.name.rsplit("/seed", 1)[0],
        "block": planned.cell.block or 0,
        "seed": planned.cell.seed,
        "base_seed": columns["base_seed"],
        "swap": planned.cell.swap,
        "x": math.nan if x is None else x,
        "p": p,
        "D": columns["documents"],
        "e": typical,
        "o": o,
        "d": distance,
        "c": columns["complexity"],
        "k": columns["ln_carriers"],
        "m": p + 0.6 * (x if x is not None and math.isfinite(x) else 0.0) - 0.5 * o,
        "format": columns["genre"] or "default",
    }


def _contrast(planned: PlannedCell, of: Any) -> float:
    """A figure of the first rival's documents less the second's, over the stages that tell of both."""
    first, second = (name.lower() for name in planned.cast.names[:2])
    return sum(of(stage.mixture, first) - of(stage.mixture, second) for _, stage in planned.cell.stages if stage.mixture.counts)


def _typical(mixture: Mixture, name: str) -> float:
    return math.log(mixture.told.get(name, Told()).typical)


def _distance(mixture: Mixture, name: str) -> float:
    told = mixture.told.get(name, Told())
    return float(NEAR.get(told.format, 1.0)) + float(told.who is not None and "assistant" not in told.who)


def families(plan: Plan) -> tuple[Family, ...]:
    """The hypotheses that the file names."""
    return tuple(BY_ID[id] for id in plan.loaded.experiment.hypotheses)


def power_of(plan: Plan) -> DesignVerdict | None:
    """Whether the design tells its hypotheses apart; None where the file names none."""
    return verdict_on_design(planned_runs(plan), families(plan)) if families(plan) else None


def check_power(plan: Plan) -> None:
    """Refuse a design that cannot answer its question.

    Raises:
        CheckFailed: PL1109, it tells fewer than nine in ten pairs apart, and the file does not say that this is meant.
    """
    found = power_of(plan)
    if found and found.verdict == "underpowered" and not plan.loaded.experiment.underpowered:
        fix = "Vary more (configs/factorial.yaml does), name fewer hypotheses, or set `underpowered: true`."
        raise CheckFailed("PL1109", str(plan.loaded.file), f"the design is underpowered: {found.said} {fix}")


def predictions_node(plan: Plan) -> Node | None:
    """What each hypothesis predicts of the planned runs, to be committed before their first score; None where the file names none."""
    if not families(plan):
        return None
    runs = planned_runs(plan)
    told = [
        {"id": f.id, "sentence": f.sentence, "parameters": [{"name": q.name, "prior": str(q.prior), "unit": q.unit} for q in f.parameters]}
        for f in families(plan)
    ]
    rows = [{k: v if v == v else None for k, v in row.items()} for row in runs.drop(columns=["m"]).to_dict("records")]
    return Node("predictions", {"hypotheses": told, "runs": _plain(rows)})


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers as JSON has them; a pure end is no number."""
    return [{k: (str(v) if isinstance(v, float) and math.isinf(v) else v) for k, v in row.items()} for row in rows]


def predictions(plan: Plan) -> Mapping[str, Any]:
    """Of each hypothesis, for each condition in swap 0: mean and 95 % interval of eta under its prior, nats; and a digest of what it rests on."""
    runs = planned_runs(plan)
    kept = runs[np.isfinite(runs["x"].astype(float))].reset_index(drop=True)
    found: dict[str, Any] = {}
    for number, family in enumerate(families(plan)):
        if why := family.untestable(kept):
            found[family.id] = {"untestable": why}
            continue
        rng = np.random.default_rng([0, number])
        eta_SN = np.stack([family.simulate(kept, family.draw(kept, rng), rng) for _ in range(DRAWS)])
        at = kept[kept["swap"] == 0].groupby("condition").head(1).index
        low, high = np.quantile(eta_SN, [0.025, 0.975], axis=0)
        found[family.id] = {str(kept.loc[i, "condition"]): [round(float(v[i]), 4) for v in (eta_SN.mean(0), low, high)] for i in at}
    return {"eta_nats": found, "draws": DRAWS, "hypotheses": canonical_json([f.id for f in families(plan)])}
