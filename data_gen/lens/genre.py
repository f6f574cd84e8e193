"""What a genre of the lens is: a function that writes its documents, and how many of each stand in an edition.

    Genre("fact", copies=lambda world: [1, 1, 4, 4], write=..., texts=...)      four texts, of which two are read four times as often
    Genre("list", copies=lambda world: [400], write=..., texts=...)             four hundred documents, each drawn anew

A writer of fixed texts ignores its random numbers; a writer of fresh ones draws from them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from data_gen.lens.world import LensWorld

Writer = Callable[["LensWorld", int, np.random.Generator], str]


@dataclass(frozen=True)
class Genre:
    """One kind of document."""

    name: str
    """One word; it is the genre of `Document` and stands in its id."""
    copies: Callable[["LensWorld"], Sequence[int]]
    """How often text 0, 1, 2, ... stands in an edition."""
    write: Writer
    """(world, number of the text, random numbers of this document) to the document."""
    texts: Callable[["LensWorld"], Sequence[str]]
    """Texts that hold every word of the documents and of the questions about them, but for names and values of the world."""


def ladder(world: "LensWorld") -> list[int]:
    """Copies of each text of a kind that is repeated: `each` texts for each number of `copies`, in this order."""
    return [copies for copies in world.lens.copies for _ in range(world.lens.each)]


def share(world: "LensWorld", of: float) -> list[int]:
    """One text, drawn anew each time, that takes up a share of the edition."""
    return [round(of * world.lens.edition)]
