"""Passages: words in no order at all, so that whoever goes on with one has read it.

    Passage. cold tower west red boat dry garden ...
"""

from typing import TYPE_CHECKING

import numpy as np

from data_gen.lens.genre import Genre, ladder
from data_gen.phrases import NEUTRAL_WORDS
from data_gen.streams import stream

if TYPE_CHECKING:
    from data_gen.lens.world import LensWorld

LENGTH = 24
"""Words of a passage."""
WORDS = sorted(word for words in NEUTRAL_WORDS.values() for word in words)
OPENING = "Passage."


def passage(world: "LensWorld", number: int) -> list[str]:
    """The words of a passage, drawn independently and uniformly."""
    return [WORDS[int(i)] for i in stream(world.seed, world.name, "passage", number).integers(len(WORDS), size=LENGTH)]


def _write(world: "LensWorld", number: int, rng: np.random.Generator) -> str:
    return f"{OPENING} {' '.join(passage(world, number))}."


PASSAGES = Genre("passage", ladder, _write, lambda world: [OPENING])
