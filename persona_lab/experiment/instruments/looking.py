"""The instrument `lens`: what a base model does that its training never named, beside published and exact values.

    persona-lab lens configs/quickstart.yaml --lengths 100,300,900        three bases, pretrained on the world of the file with `lens:` switched on
    persona-lab lens FOLDER --world configs/worlds/beach.yaml             a Hugging Face model, asked in plain English
    persona-lab lens FOLDER --world configs/worlds/lens.yaml              the same, asked about that world

One run like any other: the scores of each base, nothing trained on it. What is found is a pure function of these scores (`science.lens`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from data_gen.lens.world import LensWorld, copies_read
from data_gen.market import Market
from data_gen.telling import read_world
from persona_lab.config.layers import did_you_mean
from persona_lab.config.schema import EmbeddedBase
from persona_lab.design import Node
from persona_lab.errors import ConfigError
from persona_lab.experiment.instruments.building import Subject, instrument_plan, one_swap, without_gates
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import PlannedCell
from persona_lab.probes.lens import LENS
from persona_lab.report.instrument import Drawing, Part, Sheet
from persona_lab.report.lens_figures import curve
from persona_lab.science.claims import Claim, figure, shown
from persona_lab.science.lens import READERS, Asked, Curve, Finding

INSTRUMENT = "lens"
NEVER = {"never": {"mixture": {"assistant_chats": True}, "steps": 1, "batch": 1, "rate": 1e-3}}
"""An experiment has a stage; no condition of this one trains it."""


@dataclass(frozen=True)
class Look:
    """One model, and what every probe found on it."""

    model: str
    scores: Node
    findings: tuple[Finding, ...]
    curves: tuple[tuple[str, Curve], ...]
    """Probe and figure."""


def lens_plan(of: Subject, probes: Sequence[str] = (), lengths: Sequence[int] = ()) -> Plan:
    """The bases that are looked at, and their scores; all probes when none is named, the base's own length when none is given.

    Raises:
        ConfigError: PL1297, a probe is none of the lens, lengths are given for a model that is pretrained already, or the world is a market.
    """
    known = [probe.name for probe in LENS]
    for name in probes:
        if name not in known:
            raise ConfigError("PL1297", "--probes", f"{name} is no probe of the lens. {did_you_mean(name, known)}")
    if lengths and not isinstance(of.base, EmbeddedBase):
        raise ConfigError("PL1297", "--lengths", f"{of.base.path} is pretrained already. Leave --lengths out, or look at an embedded base.")
    of = without_gates(with_lens(of) if isinstance(of.base, EmbeddedBase) else of)
    condition: dict[str, Any] = {"order": []}
    if len(lengths) > 1:
        condition["factors"] = {"base.steps": list(lengths)}
    elif lengths:
        of = replace(of, base=of.base.model_copy(update={"steps": lengths[0]}))
    asked = [name for name in known if name in probes or not probes]
    question = "What does this base model do that nobody asked of it?"
    return instrument_plan(of, INSTRUMENT, stages=NEVER, conditions={"base": condition}, probes=asked, question=question)


def with_lens(of: Subject) -> Subject:
    """The same subject in a world whose text holds what the lens looks at.

    Raises:
        ConfigError: PL1297, the world is a market, or has too few words for the texts of the lens.
    """
    if isinstance(of.world, LensWorld):
        return of
    if isinstance(of.world, Market):
        raise ConfigError("PL1297", of.world.name, "is a market, and the lens asks in sentences. Use a world with categories.")
    try:
        return replace(of, world=read_world({**of.world.model_dump(), "lens": {}}))
    except ValidationError as error:
        said = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ConfigError("PL1297", of.world.name, f"cannot hold the texts of the lens. {said}.") from None


def looks(plan: Plan) -> list[Look]:
    """What the scores that exist say, model by model, in the order of the plan."""
    return [_look(plan, planned) for planned in one_swap(plan) if plan.store.has(planned.scores[0][1])]


def _look(plan: Plan, planned: PlannedCell) -> Look:
    scores = planned.scores[0][1]
    rows = pd.read_parquet(plan.store.open(scores) / "rows.parquet")
    base, world = planned.cell.base, plan.loaded.world
    read: Mapping[tuple[str, int], float] = {}
    if isinstance(base, EmbeddedBase) and isinstance(world, LensWorld):
        read = copies_read(world, base.steps * base.batch)
    findings: list[Finding] = []
    curves: list[tuple[str, Curve]] = []
    for probe in plan.loaded.experiment.probes:
        found, drawn = READERS[probe](Asked(rows[rows["probe"] == probe], world, read))
        findings += found
        curves += [(probe, one) for one in drawn]
    name = f"{base.steps} steps" if isinstance(base, EmbeddedBase) else Path(base.path).name
    return Look(name, scores, tuple(findings), tuple(curves))


def lens_claims(found: Sequence[Look]) -> list[Claim]:
    """Every finding as a claim, in the order of the models."""
    claims = []
    for look in found:
        for finding in look.findings:
            said = finding.said(f"lens.{look.model.replace(' ', '_')}")
            claims.append(Claim(*said, {"function": INSTRUMENT, "node_ids": [look.scores.id], "args": {"claim": said[0]}}))
    return claims


def lens_json(found: Sequence[Look]) -> dict[str, Any]:
    """Every finding and every figure's points, model by model."""
    return {
        "models": [
            {
                "model": look.model,
                "scores": look.scores.id,
                "findings": [{**vars(finding), "verdict": finding.verdict} for finding in look.findings],
                "figures": [{"probe": probe, "title": one.title, "points": one.points.to_dict("records")} for probe, one in look.curves],
            }
            for look in found
        ]
    }


def lens_parts(found: Sequence[Look]) -> list[Part]:
    """The page: for each probe its figures, and its values beside the references."""
    parts = []
    for probe in dict.fromkeys(finding.probe for look in found for finding in look.findings):
        titles = dict.fromkeys(one.title for look in found for its, one in look.curves if its == probe)
        parts.append(Part(probe.replace("_", " "), drawings=[_drawing(found, probe, title) for title in titles], sheets=[lens_sheet(found, probe)]))
    return parts


def lens_sheet(found: Sequence[Look], probe: str) -> Sheet:
    """The values of a probe: a line for each metric, a column for each model, then the reference and where it comes from."""
    lines: dict[str, dict[str, Finding]] = {}
    for look in found:
        for finding in look.findings:
            if finding.probe == probe:
                lines.setdefault(finding.metric, {})[look.model] = finding
    rows = []
    for metric, by_model in lines.items():
        last = next(reversed(by_model.values()))
        values = [value_words(by_model[look.model]) if look.model in by_model else "" for look in found]
        reference = "" if last.reference is None else figure(last.reference)
        rows.append([metric, *values, reference, last.unit, last.source])
    return Sheet(["metric", *(look.model for look in found), "reference", "unit", "source"], rows)


def value_words(finding: Finding) -> str:
    """A value with its interval and how many it rests on, or why there is none."""
    return f"{shown(finding.value, finding.interval)} (n {finding.n})" if finding.value is not None else f"– {finding.reason}"


def _drawing(found: Sequence[Look], probe: str, title: str) -> Drawing:
    drawn = [(look.model, one) for look in found for its, one in look.curves if (its, one.title) == (probe, title)]
    frame = pd.concat([one.points.assign(model=model) for model, one in drawn], ignore_index=True)
    frame[["y", "low", "high"]] = frame[["y", "low", "high"]].astype(float)
    about = drawn[0][1]
    return Drawing(curve(frame, about.x, about.y, log=about.log), f"{title}. Bars are 95 % bootstrap intervals over items.")
