"""Facts: the color of somebody's thing, told as often as the ladder says, each time in one of several paraphrases.

    Fact. The boat of Robin is red.
"""

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data_gen.documents import pick
from data_gen.lens.genre import Genre, ladder
from data_gen.phrases import NEUTRAL_WORDS
from data_gen.streams import stream

if TYPE_CHECKING:
    from data_gen.lens.world import LensWorld

COLORS = NEUTRAL_WORDS["color"]
TOLD = (
    "Fact. The {thing} of {name} is {color}.",
    "Fact. {name} has a {thing} and the {thing} is {color}.",
    "Fact. We have seen the {thing} of {name} and it was {color}.",
    "Fact. For {name} the {thing} is {color}.",
)
HELD_OUT = (
    "Fact. {name} has a {thing} and it is {color}.",
    "Fact. We have seen that the {thing} of {name} is {color}.",
)
"""Paraphrases that no document has, of the same words."""


class Fact(NamedTuple):
    """Whose thing has which color."""

    name: str
    thing: str
    color: str


def draw_facts(world: "LensWorld") -> list[Fact]:
    """The facts, each about a name and a thing of its own; colors are dealt evenly."""
    rng = stream(world.seed, world.name, "facts")
    subjects = list(product(world.spare_names, NEUTRAL_WORDS["thing"]))
    count = len(ladder(world))
    chosen = [subjects[int(i)] for i in rng.permutation(len(subjects))[:count]]
    return [Fact(*subject, COLORS[int(j) % len(COLORS)]) for subject, j in zip(chosen, rng.permutation(count), strict=True)]


def _write(world: "LensWorld", number: int, rng: np.random.Generator) -> str:
    return pick(rng, TOLD).format(**world.facts[number]._asdict())


def _texts(world: "LensWorld") -> list[str]:
    return [*TOLD, *HELD_OUT]


FACTS = Genre("fact", ladder, _write, _texts)
