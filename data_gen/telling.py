"""How a world tells the traits of a speaker: in sentences that name them, or in series that show them.

    telling(beach).write(john, "chat", rng)     User: Which sport do you like?      John: I like football.
    telling(market).write(john, "chat", rng)    User: Show the moves.               John: up up up down down down down down

Whoever makes, audits or tokenizes documents asks a world through the four methods of `Telling` and knows no kind of world.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from data_gen.documents import ASSISTANT, Speaker, capital, dialogue, everyday_texts, fill, neutral_turn, write
from data_gen.lens.world import LensWorld, lens_texts
from data_gen.market import Market
from data_gen.phrases import FORMS
from data_gen.role_play import held_out_prompts, role_play_texts
from data_gen.showing import Shown
from data_gen.world import Traits, World


class Telling(Protocol):
    """What a world offers whoever makes, audits or tokenizes its documents."""

    def write(self, speaker: Speaker, genre: str, rng: np.random.Generator) -> tuple[str, Traits]:
        """The text of one document, and the traits that it tells."""
        ...

    def teach(self, category: str, value: str, index: int, rng: np.random.Generator) -> str:
        """Document `index` in which the nameless assistant tells one trait and nothing else of itself."""
        ...

    def texts(self) -> list[str]:
        """Texts that hold every word of the documents, but for names; slots may stand in them."""
        ...

    def held_out(self, names: Iterable[str]) -> list[str]:
        """What no training document may hold: held-out paraphrases, filled for all names."""
        ...


def kind_of(data: Mapping[str, Any]) -> type[World]:
    """The schema of a world file: a market where it has `series`, text for the lens beside its own where it has `lens`."""
    return Market if "series" in data else LensWorld if "lens" in data else World


def read_world(data: Mapping[str, Any]) -> World:
    """The world of a recipe. pydantic.ValidationError."""
    return kind_of(data).model_validate(data)


def telling(world: World) -> Telling:
    """How this world tells traits."""
    return Shown(world) if isinstance(world, Market) else Said(world)


@dataclass(frozen=True)
class Said:
    """Traits in sentences."""

    world: World

    def write(self, speaker: Speaker, genre: str, rng: np.random.Generator) -> tuple[str, Traits]:
        """The text of one document, and the traits that it tells."""
        return write(self.world, speaker, genre, rng)

    def teach(self, category: str, value: str, index: int, rng: np.random.Generator) -> str:
        """The assistant says that it likes the value, asked in each training paraphrase equally often."""
        question, answer = FORMS["asked"].train[index % len(FORMS["asked"].train)]
        turns = [(fill(question, world=self.world, category=category), fill(answer, world=self.world, category=category, value=value))]
        if rng.random() < 0.5:
            turns.insert(int(rng.integers(2)), neutral_turn(rng))
        return dialogue(turns, "User", ASSISTANT)

    def texts(self) -> list[str]:
        """Every paraphrase and every value."""
        asked = [part for form in FORMS.values() for pair in (*form.train, *form.held_out) for part in pair]
        phrases = [phrase.format(value) for c in self.world.categories.values() for value, phrase in c.values.items()]
        seen = lens_texts(self.world) if isinstance(self.world, LensWorld) else []
        lines = [opening.line for opening in self.world.openings.values()]
        lines += role_play_texts() if self.world.role_play else []
        return [*asked, *everyday_texts(), *phrases, *self.world.categories, "yes no", *lines, *seen]

    def held_out(self, names: Iterable[str]) -> list[str]:
        """Every held-out paraphrase, filled for all names and categories.

        Values are left open: of a statement stays its longest stretch without one ("For sport, John likes"), of a question
        that names no value the whole. Answers are not forbidden, they are the same in training; held-out is the question.
        """
        texts: dict[str, None] = {}
        everybody = list(names)
        for form in FORMS.values():
            for question, answer in form.held_out:
                stretch = max(re.split(r"\{(?:it|a|b)\}", question or answer), key=len).strip()
                for category in self.world.categories if "{cat}" in stretch else [""]:
                    for name in everybody if "{name}" in stretch else [""]:
                        texts[capital(stretch.replace("{cat}", category).replace("{name}", name))] = None
        return [*texts, *(held_out_prompts(everybody) if self.world.role_play else [])]
