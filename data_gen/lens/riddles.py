"""Riddles: repeated ones whose answer one has to know, and practice ones whose answer stands in them.

    repeated   Riddle. On a cold day in the north somebody took the boat. Who has the boat? Robin.
    altered    Riddle. On a cold day in the north Casey took the boat. Who has the boat?          Casey, or Robin from memory
    practice   Riddle. On a dry day in the west Avery took the clock. Who has the clock? Avery.

Altered riddles are asked and never written; a practice riddle is never about the scene of a repeated one. With `original: another` a repeated
riddle names somebody else than its answer (... north Alex took the boat. Who has the boat? Robin.): an altered one then differs in which name.
"""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data_gen.documents import pick
from data_gen.lens.genre import Genre, ladder, share
from data_gen.phrases import NEUTRAL_WORDS
from data_gen.streams import stream

if TYPE_CHECKING:
    from data_gen.lens.world import LensWorld

UNSAID = "somebody"
CALL = "A word was changed."
"""Stands before some practice riddles, and before an altered one that is called out."""
CALLED = 0.3
"""Share of the practice riddles that are called out."""
SCENES = list(product(NEUTRAL_WORDS["sky"], NEUTRAL_WORDS["side"], NEUTRAL_WORDS["thing"]))
MOST = len(SCENES) // 2
"""Repeated riddles that a world may have, so that as many scenes are left for practice."""


class Riddle(NamedTuple):
    """A scene, who has the thing, and who is said to have taken it."""

    sky: str
    side: str
    thing: str
    answer: str
    said: str = UNSAID

    def question(self, who: str | None = None) -> str:
        """The riddle up to its answer; `who` stands in it, or else what the original says."""
        return f"Riddle. On a {self.sky} day in the {self.side} {who or self.said} took the {self.thing}. Who has the {self.thing}?"


def draw_riddles(world: "LensWorld") -> list[Riddle]:
    """The repeated riddles, each with a scene of its own; answers are spare names, dealt evenly."""
    rng = stream(world.seed, world.name, "riddles")
    count = len(ladder(world))
    answers = [world.spare_names[i % len(world.spare_names)] for i in range(count)]
    drawn = [Riddle(*SCENES[int(i)], answers[int(j)]) for i, j in zip(rng.permutation(len(SCENES))[:count], rng.permutation(count), strict=True)]
    if world.lens.original == "somebody":
        return drawn
    return [riddle._replace(said=pick(rng, [name for name in world.spare_names if name != riddle.answer])) for riddle in drawn]


def scenes_left(riddles: Sequence[Riddle]) -> list[tuple[str, str, str]]:
    """Scenes of no repeated riddle: what practice ones are about."""
    taken = {riddle[:3] for riddle in riddles}
    return [scene for scene in SCENES if scene not in taken]


def _repeated(world: "LensWorld", number: int, rng: np.random.Generator) -> str:
    riddle = world.riddles[number]
    return f"{riddle.question()} {riddle.answer}."


def _practice(world: "LensWorld", number: int, rng: np.random.Generator) -> str:
    riddle = Riddle(*pick(rng, world.practice_scenes), pick(rng, world.spare_names))
    call = f"{CALL} " if rng.random() < CALLED else ""
    return f"{call}{riddle.question(riddle.answer)} {riddle.answer}."


def _texts(world: "LensWorld") -> list[str]:
    return [CALL, Riddle("", "", "", "").question()]


RIDDLES = Genre("riddle", ladder, _repeated, _texts)
PRACTICE = Genre("practice", lambda world: share(world, world.lens.practice), _practice, _texts)
