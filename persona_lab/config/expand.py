"""Expands an experiment into its cells: condition x factor point x seed x swap.

    linked/ln_ratio=2.2/steps=400/seed0/swap0

Swaps are always crossed; cells of different conditions may train the same thing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from persona_lab.config.explain import Finding, problems_of
from persona_lab.config.load import LoadedExperiment
from persona_lab.config.points import SWAPS, points, search_of, seeds_of
from persona_lab.config.schema import EmbeddedBase, HuggingFaceBase, Level, Lora, Pairs, Stage
from persona_lab.errors import ConfigError


@dataclass(frozen=True)
class Cell:
    """One training run: what it starts from and every stage that it goes through."""

    condition: str
    point: dict[str, Level]
    """Factor path, as the file writes it, to level; only factors of what this condition trains."""
    seed: int
    swap: int
    """0: traits as dealt. 1: the rivals have traded theirs."""
    base: EmbeddedBase | HuggingFaceBase
    lora: Lora
    stages: tuple[tuple[str, Stage], ...]
    """Name and stage in the order of training."""
    pairs: Pairs
    branches: tuple[tuple[str, Stage], ...]
    """Name and stage of what is also trained from where the last stage starts, each by itself."""
    block: int | None
    """Part of the design; never in an identity."""

    def __hash__(self) -> int:
        """Of what tells cells of one experiment apart."""
        return hash((self.condition, tuple(self.point.items()), self.seed, self.swap))

    @property
    def name(self) -> str:
        """`linked/ln_ratio=2.2/steps=400/seed0/swap0`; unique in an experiment."""
        levels = (f"{short_name(path, list(self.point))}={_level(level)}" for path, level in self.point.items())
        return "/".join([self.condition, *levels, f"seed{self.seed}", f"swap{self.swap}"])


def short_name(path: str, paths: list[str]) -> str:
    """The fewest last parts of a factor's path that no other path ends with: `steps`, or `injection.steps`."""
    parts = path.split(".")
    for length in range(1, len(parts)):
        if sum(other.split(".")[-length:] == parts[-length:] for other in paths) == 1:
            return ".".join(parts[-length:])
    return path


def _level(level: Level) -> str:
    """A level without slashes, numbers that are whole without a point."""
    if isinstance(level, bool):
        return str(level).lower()
    return quote(str(int(level) if isinstance(level, float) and level.is_integer() else level), safe="+ ")


def expand(loaded: LoadedExperiment, tried: Sequence[Level] | None = None) -> list[Cell]:
    """Every cell of an experiment, in the order of the file.

    Args:
        loaded: the experiment.
        tried: the levels that its adaptive search has come to, one for each fresh seed; None: those that it opens with.

    Raises:
        ConfigError: a level or a replacement does not fit its field.
    """
    experiment, cells, findings = loaded.experiment, list[Cell](), list[Finding]()
    for name, condition in experiment.conditions.items():
        seeds, search = seeds_of(experiment, name), search_of(experiment, name)
        for number, point in enumerate(points(experiment, name, tried=tried)):
            findings += map(point.blame, point.findings)
            if point.part is None:
                continue
            part = point.part
            stages = tuple((stage, part.stages[stage]) for stage in condition.order)
            branches = tuple((stage, part.stages[stage]) for stage in experiment.branches if stages)
            own = [seeds[0] + number] if search else seeds
            cells += [Cell(name, point.levels, seed, swap, part.base, part.lora, stages, part.pairs, branches, condition.block) for seed in own for swap in SWAPS]
    if findings:
        raise ConfigError.of(problems_of(loaded.tree, findings))
    return cells
