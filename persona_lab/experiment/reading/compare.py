"""The verb `compare`: the hypothesis tournament over one or more experiments. No torch.

Runs are pooled. Conditions of different experiments are different conditions; those of one experiment on two bases, or on other seeds, are replicates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.plan import open_plan
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.reading.show import settings_of
from persona_lab.science.claims import Said
from persona_lab.science.effects import Frame
from persona_lab.science.hypotheses.mediation import Mediation, mediation
from persona_lab.science.hypotheses.tournament import Tournament, base_agreement, tournament
from persona_lab.science.runframe import run_frame


@dataclass(frozen=True)
class Comparison:
    """What pooled runs say of every hypothesis."""

    runs: tuple[str, ...]
    tournament: Tournament
    mediation: Mediation
    agreement: tuple[Said, ...]
    """Whether the bases agree, where there are several."""

    def claims(self) -> Iterator[Said]:
        """Everything as (id, text, value, interval, unit, verdict)."""
        yield from self.tournament.claims()
        yield from self.agreement
        yield from self.mediation.claims()

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        names = ("id", "text", "value", "interval", "unit", "verdict")
        return {"runs": list(self.runs), "claims": [dict(zip(names, claim, strict=True)) for claim in self.claims()]}


def compare(folders: Sequence[Path]) -> Comparison:
    """The tournament over the runs in these folders.

    Raises:
        ConfigError: a run has no results, is named twice, or the pooled runs cannot test anything (PL1220).
    """
    if twice := [folder.name for i, folder in enumerate(folders) if folder in folders[:i]]:
        raise ConfigError("PL1294", twice[0], "is named twice: its runs would count twice. Name each run once.")
    frames = [pooled(folder) for folder in folders]
    several = len({frame.attrs["experiment"] for frame in frames}) > 1
    named = [frame.assign(condition=frame.attrs["experiment"] + "/" + frame["condition"]) if several else frame for frame in frames]
    runs = pd.concat(named, ignore_index=True)
    return Comparison(tuple(folder.name for folder in folders), tournament(runs), mediation(runs), tuple(base_agreement(runs)))


def pooled(folder: Path) -> Frame:
    """The run frame of one run; `attrs["experiment"]` is its experiment's name."""
    plan = open_plan(folder)
    frame = run_frame(Run(folder).table(), settings_of(plan))
    frame.attrs["experiment"] = plan.loaded.experiment.name
    return frame
