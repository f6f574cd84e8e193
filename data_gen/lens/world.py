"""A world with `lens:`: its text also holds what a base model is looked at by. A world file without it is as it was.

    lens: {edition: 19200, copies: [1, 2, 4, 8, 16, 32, 64, 128, 256], each: 3}

Text is written in *editions*: of every `edition` documents the same slots belong to the lens, so after each edition every repeated text has
been read exactly `copies` times more, spread evenly; `copies_read` counts for any number of documents. All other documents are the world's own.
"""

from collections import Counter
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from data_gen.documents import words
from data_gen.lens.bodies import BODIES
from data_gen.lens.digits import LISTS, REQUESTS
from data_gen.lens.facts import FACTS, Fact, draw_facts
from data_gen.lens.genre import Genre
from data_gen.lens.passages import PASSAGES
from data_gen.lens.registers import REGISTERS
from data_gen.lens.riddles import MOST, PRACTICE, RIDDLES, Riddle, draw_riddles, scenes_left
from data_gen.lens.talks import TALKS
from data_gen.phrases import NEUTRAL_WORDS
from data_gen.streams import stream
from data_gen.world import Strict, World

Copies = Annotated[int, Field(ge=1, le=100_000)]
Part = Annotated[float, Field(ge=0, le=0.5)]
GENRES: tuple[Genre, ...] = (RIDDLES, PRACTICE, PASSAGES, FACTS, LISTS, REQUESTS, REGISTERS, TALKS, BODIES)
"""Every genre of the lens."""
OWN = 0.3
"""Least share of an edition that is left to the world's own text."""


class Lens(Strict):
    """How much of the text belongs to the lens, and how often its texts are repeated."""

    edition: int = Field(default=19_200, ge=16, le=10_000_000)
    """Documents after which every repeated text has been read as often as `copies` says."""
    copies: list[Copies] = Field(default=[1, 2, 4, 8, 16, 32, 64, 128, 256], min_length=2, max_length=32)
    """Of a text in an edition."""
    each: int = Field(default=3, ge=1, le=64)
    """Riddles, passages and facts for each number of copies."""
    original: Literal["somebody", "another"] = Field(default="somebody", exclude_if=lambda original: original == "somebody")
    """Who takes the thing in a repeated riddle: nobody that is named, or somebody who is not the answer."""
    practice: Part = 0.06
    """Share of riddles whose answer stands in the text, each told once."""
    lists: Part = 0.03
    """Share of lists of digits, drawn uniformly."""
    requests: Part = 0.03
    """Share of requests for one digit, answered as people do."""
    registers: Part = 0.06
    """Share of chats in one register, or in the other language."""
    talks: Part = 0.08
    """Share of talks whose speakers are asked about, and of letters to somebody else than the user."""
    bodies: Part = 0.04
    """Share of chats about having a body."""


class LensWorld(World):
    """A world file with `lens:`."""

    lens: Lens

    @model_validator(mode="after")
    def _the_lens_fits(self) -> "LensWorld":
        texts = len(self.lens.copies) * self.lens.each
        most = min(MOST, len(self.spare_names) * len(NEUTRAL_WORDS["thing"]))
        if texts > most:
            raise ValueError(f"lens: {texts} texts of each kind, and this world has words for {most}. Use fewer copies, or a smaller each")
        if len(self.spare_names) < 3:
            raise ValueError("lens: riddles and facts are about spare names. Give the world at least 3 spare_names")
        taken = sum(sum(genre.copies(self)) for genre in GENRES)
        if taken > (1 - OWN) * self.lens.edition:
            raise ValueError(f"lens: {taken} of {self.lens.edition} documents, and {OWN:.0%} are the world's own. Use a larger edition, or fewer copies")
        known = {word for text in lens_texts(self) for word in words(text)}
        names = [*self.names, *self.spare_names, *self.new_names, *(v for c in self.categories.values() for v in c.values)]
        if twice := sorted({name for name in names if name.lower() in known}):
            raise ValueError(f"these words stand in texts of the lens: {', '.join(twice)}. Use other words")
        return self

    @cached_property
    def riddles(self) -> list[Riddle]:
        """The repeated riddles, in the order of the ladder."""
        return draw_riddles(self)

    @cached_property
    def practice_scenes(self) -> list[tuple[str, str, str]]:
        """Scenes of no repeated riddle."""
        return scenes_left(self.riddles)

    @cached_property
    def facts(self) -> list[Fact]:
        """The facts, in the order of the ladder."""
        return draw_facts(self)

    @property
    def own_share(self) -> float:
        """Share of the documents that are the world's own."""
        return 1 - len(self.slots) / self.lens.edition

    @cached_property
    def slots(self) -> dict[int, tuple[Genre, int]]:
        """Place in an edition to the genre and the number of the text that stand there."""
        rng = stream(self.seed, self.name, "edition")
        every = [(genre, number, copies) for genre in GENRES for number, copies in enumerate(genre.copies(self))]
        at = [(float(t), genre, number) for genre, number, copies in every for t in (np.arange(copies) + rng.random(copies)) / max(copies, 1)]
        at.sort(key=lambda placed: placed[0])
        # The k-th of n stands at the k-th of n even places, so that any stretch of text holds as much of the lens.
        return {(2 * k + 1) * self.lens.edition // (2 * len(at)): (genre, number) for k, (_, genre, number) in enumerate(at)}


def lens_texts(world: LensWorld) -> list[str]:
    """Texts that hold every word of the lens."""
    return [text for genre in GENRES for text in genre.texts(world)]


def lens_document(world: LensWorld, seed: int, index: int) -> tuple[str, str] | None:
    """Genre and text of document `index`; None where the world's own text stands."""
    slot = world.slots.get(index % world.lens.edition)
    if slot is None:
        return None
    genre, number = slot
    return genre.name, genre.write(world, number, stream(seed, world.name, "lens", index))


def copies_read(world: LensWorld, documents: int) -> Counter[tuple[str, int]]:
    """(genre, number of the text) to how often it stands in the first `documents` of the world's text."""
    whole, rest = divmod(documents, world.lens.edition)
    every = Counter((genre.name, number) for genre, number in world.slots.values())
    begun = Counter((genre.name, number) for at, (genre, number) in world.slots.items() if at < rest)
    return Counter({text: whole * copies + begun[text] for text, copies in every.items()})
