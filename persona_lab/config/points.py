"""The points of a condition: every crossing of its factors, applied to the file and validated.

    factors: {injection.mixture.ln_ratio: [-2.2, 2.2], injection.steps: [40, 400]}        four points

A path whose first part is a stage means that stage: `injection.steps` is `stages.injection.steps`. A factor of a stage that
a condition does not train is dropped there: a control without injection has one point, whatever the ratios are.
"""

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import Field

from data_gen.world import Strict
from persona_lab.config.explain import Finding, validate
from persona_lab.config.mixtures import Mixture
from persona_lab.config.schema import Adaptive, EmbeddedBase, Experiment, Factor, HuggingFaceBase, Level, Lora, Pairs, Slug, Stage
from persona_lab.config.yaml_tree import Path

SWAPS = (0, 1)
"""Every cell is made twice: the rivals trade their traits in the second."""


class Part(Strict):
    """What one point trains: the part of an experiment that factors may set."""

    base: EmbeddedBase | HuggingFaceBase
    lora: Lora = Lora()
    pairs: Pairs = Pairs()
    stages: dict[Slug, Stage] = Field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """One value that a condition or a factor sets."""

    path: Path
    """Of the field, from the top of the file."""
    value: Any
    source: Path
    """Of the line that sets it."""


@dataclass(frozen=True)
class Point:
    """One point of one condition, before seeds and swaps."""

    condition: str
    levels: dict[str, Level]
    settings: tuple[Setting, ...]
    part: Part | None
    """None when nothing valid is left."""
    findings: list[Finding]
    """What is wrong with the fields of `part`."""

    def blame(self, finding: Finding) -> Finding:
        """A finding of this point at the level or replacement that set the field, or above or beneath it; else as it is."""
        for setting in self.settings:
            shorter = min(len(setting.path), len(finding.path))
            # A mixture without documents is the fault of its counts, never of its other fields.
            if setting.path[:shorter] != finding.path[:shorter] or (finding.path[2:] == ("mixture",) and setting.path[-1] in Mixture.model_fields):
                continue
            replaced = setting.source[-2] == "replace"
            what = "replace" if replaced else f"factor {setting.source[-2]}, level {setting.value}"
            return Finding(setting.source, finding.code, f"{what}: {finding.message}")
        return finding


def field_path(path: str, stages: Collection[str]) -> Path:
    """The path of a field from the top of the file, for a path that may start with a stage."""
    parts = tuple(path.split("."))
    return ("stages", *parts) if parts[0] in stages else parts


def seeds_of(experiment: Experiment, condition: str) -> list[int]:
    """The seeds of a condition: its own, or the experiment's; a number n means 0 to n - 1."""
    own = experiment.conditions[condition].seeds
    seeds = experiment.seeds if own is None else own
    return list(range(seeds)) if isinstance(seeds, int) else list(seeds)


def factors_of(experiment: Experiment, condition: str) -> dict[Path, Factor]:
    """The factors that reach a condition: the place of each in the file, and its levels, or the search in their place."""
    own = experiment.conditions[condition].factors
    above: Path = ("factors",) if own is None else ("conditions", condition, "factors")
    factors = experiment.factors if own is None else own
    return {(*above, path): factor for path, factor in factors.items() if _reaches(experiment, condition, path)}


def search_of(experiment: Experiment, condition: str) -> Adaptive | None:
    """The adaptive search of a condition, if it has one."""
    return next((factor for factor in factors_of(experiment, condition).values() if isinstance(factor, Adaptive)), None)


def replacements_of(experiment: Experiment, condition: str) -> list[Setting]:
    """What a condition replaces in the stages that it trains."""
    entries = experiment.conditions[condition].replace.items()
    above: Path = ("conditions", condition, "replace")
    return [Setting(field_path(p, experiment.stages), value, (*above, p)) for p, value in entries if _reaches(experiment, condition, p)]


def _reaches(experiment: Experiment, condition: str, path: str) -> bool:
    field = field_path(path, experiment.stages)
    return field[0] != "stages" or len(field) < 2 or field[1] in experiment.conditions[condition].order


def count_cells(experiment: Experiment) -> int:
    """How many cells the design has; nothing is expanded."""
    return sum(_cells_of(experiment, name) for name in experiment.conditions)


def _cells_of(experiment: Experiment, condition: str) -> int:
    """The cells of a condition; of a search, its budget."""
    if search := search_of(experiment, condition):
        return search.budget
    levels = (factor for factor in factors_of(experiment, condition).values() if isinstance(factor, list))
    return math.prod(map(len, levels)) * len(seeds_of(experiment, condition)) * len(SWAPS)


def points(experiment: Experiment, condition: str, skip: Collection[Path] = (), tried: Sequence[Level] | None = None) -> Iterator[Point]:
    """Every point of a condition, factors crossed in the order of the file.

    Args:
        experiment: the experiment.
        condition: the name of one of its conditions.
        skip: places of factors and replacements to leave out.
        tried: the levels that a search has come to; None: those that it opens with.
    """
    factors = {source: factor for source, factor in factors_of(experiment, condition).items() if source not in skip}
    kept = {source: (tried or factor.opening) if isinstance(factor, Adaptive) else factor for source, factor in factors.items()}
    fixed = [setting for setting in replacements_of(experiment, condition) if setting.source not in skip]
    written = experiment.model_dump(include={"base", "lora", "pairs", "stages"}, exclude_unset=True)
    kept_stages = {*experiment.conditions[condition].order, *experiment.branches}
    written["stages"] = {name: stage for name, stage in written["stages"].items() if name in kept_stages}
    for chosen in product(*(list(enumerate(levels)) for levels in kept.values())):
        set_by_factors = [
            Setting(field_path(str(source[-1]), experiment.stages), level, (*source, "bounds" if isinstance(factors[source], Adaptive) else index))
            for source, (index, level) in zip(kept, chosen, strict=True)
        ]
        settings = (*fixed, *set_by_factors)
        raw = copy.deepcopy(written)
        for setting in settings:
            _put(raw, setting.path, copy.deepcopy(setting.value))
        part, findings = validate(Part, raw)
        levels = {str(source[-1]): level for source, (_, level) in zip(kept, chosen, strict=True)}
        yield Point(condition, levels, settings, part, findings)


def _put(raw: dict[str, Any], path: Path, value: Any) -> None:
    """Set one field, with the mappings on the way to it."""
    for step in path[:-1]:
        if not isinstance(raw.get(str(step)), dict):
            raw[str(step)] = {}
        raw = raw[str(step)]
    raw[str(path[-1])] = value
