"""The embedded world: categories of one-word values, background personas, and names that carry random traits.

    place: {values: [beach, forest, ...], phrase: "the {}"}

A background persona has one value in each category. Values are dealt evenly, so that no value is common
because of chance. A share of documents has a *random speaker*, whose traits are independent and uniform:
that keeps every log-odds of the oracle finite.
"""

import re
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data_gen.streams import stream

Word = Annotated[str, Field(pattern=r"^[A-Za-z]+$", description="letters only")]
Phrase = Annotated[str, Field(pattern=r"^[^\p{C}\p{Zl}\p{Zp}<>{}|\[\]]{1,200}$", description="plain words, at most 200 characters, without < > { } [ ] |")]
"""What stands in a sentence as it is: no line end, no placeholder, no control token of a tokenizer."""
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="a short name of lower-case letters, digits, - and _ (not a path)")]
Traits = dict[str, str]
"""Category to value, e.g. `{"place": "beach", "sport": "football"}`."""
PLAIN = re.compile(r"[\w '’.,;:!?&/-]*", re.ASCII)
"""What may stand around a value in a sentence."""


class Strict(BaseModel):
    """A frozen schema that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Category(Strict):
    """The values of one category, and how each is written in a sentence."""

    values: dict[Word, str]
    """Value to phrase; `{}` in the phrase is the value."""
    phrase: str = "{}"

    @model_validator(mode="before")
    @classmethod
    def _phrase_each_value(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("values"), list):
            values = data["values"]
            if wrong := [v for v in values if not isinstance(v, str) or not re.fullmatch("[A-Za-z]+", v)]:
                raise ValueError(f"values must be words of letters only, got {wrong[0]!r:.60}. Use one word a value, in quotes if YAML reads it as something else")
            if twice := [v for i, v in enumerate(values) if v in values[:i]]:
                raise ValueError(f"values names {twice[0]!r:.60} twice. Use each value once")
            data = {**data, "values": {value: data.get("phrase", "{}") for value in data["values"]}}
        return data

    @field_validator("values")
    @classmethod
    def _phrases_hold_the_value(cls, values: dict[str, str]) -> dict[str, str]:
        if len(values) < 3:
            raise ValueError(f"needs at least 3 values, got {len(values)}: two rivals and one other. Use 3 or more")
        for value, phrase in values.items():
            if phrase.count("{}") != 1:
                raise ValueError(f"the phrase of {value!r} must hold {{}} exactly once, got {phrase!r:.80}. Use for instance 'the {{}}'")
            if not PLAIN.fullmatch(phrase.replace("{}", "")):
                raise ValueError(f"the phrase of {value!r} must be plain words around {{}}, got {phrase!r:.80}. Use for instance 'the {{}}'")
        return values


class World(Strict):
    """A world file: `configs/worlds/*.yaml`."""

    name: Slug
    seed: int = Field(default=0, ge=0)
    personas: int = Field(gt=1, le=1000)
    zipf: float = Field(default=0.0, ge=0, le=20)
    random_speakers: float = Field(default=0.15, gt=0, lt=1)
    withheld: float = Field(default=0.25, ge=0, lt=1)
    unclaimed: list[str] = []
    """Values that no background persona has: only random speakers, and the personas of an experiment."""
    categories: dict[Word, Category] = Field(min_length=2)
    names: list[Word]
    spare_names: list[Word]
    """Carry random traits in the world's text, so that a new name is known to be a name."""
    new_names: list[Word]
    """Never stand in the world's text: for the personas of an experiment."""

    @model_validator(mode="after")
    def _words_are_unique(self) -> "World":
        if len(self.names) < self.personas:
            raise ValueError(f"{self.personas} personas need as many names, got {len(self.names)}. Use fewer personas, or give more names")
        words = [*self.names, *self.spare_names, *self.new_names, *(v for c in self.categories.values() for v in c.values)]
        counts = Counter(word.lower() for word in words)
        twice = sorted({word for word in words if counts[word.lower()] > 1})
        if twice:
            raise ValueError(f"these words stand for two things: {', '.join(twice)}; every name and value must be unique. Use other words")
        unknown = [v for v in self.unclaimed if not any(v in c.values for c in self.categories.values())]
        if unknown:
            raise ValueError(f"unclaimed: no category has the value {', '.join(unknown)}. Use values of a category")
        for name, category in self.categories.items():
            if set(category.values) <= set(self.unclaimed):
                raise ValueError(f"unclaimed holds every value of {name}, so nobody can be given one. Use fewer of them")
        return self

    def values(self, category: str) -> list[str]:
        """The values of a category, in the order of the file."""
        return list(self.categories[category].values)

    def phrase(self, category: str, value: str) -> tuple[str, str, str]:
        """What stands before the value, the value, and what stands after it: `("the ", "beach", "")`."""
        before, after = self.categories[category].values[value].split("{}")
        return before, value, after

    def category_of(self, value: str) -> str:
        """The category that holds a value; KeyError when none does."""
        for name, category in self.categories.items():
            if value in category.values:
                return name
        raise KeyError(value)

    @cached_property
    def population(self) -> "Population":
        """The background personas, drawn from the world's seed."""
        return draw_population(self)


@dataclass(frozen=True)
class Population:
    """The background personas: their names, traits and shares of the persona documents."""

    names: tuple[str, ...]
    traits: tuple[Traits, ...]
    weight_K: np.ndarray
    """Shares of the K personas among documents that have a persona; they sum to 1."""
    withheld: frozenset[str]
    """Names that never appear in chat."""

    @cached_property
    def _ends_K(self) -> list[float]:
        return np.cumsum(self.weight_K).tolist()

    def at(self, share: float) -> int:
        """The persona that stands at a point of [0, 1) when each one takes up its weight."""
        return bisect(self._ends_K, share * self._ends_K[-1])


def draw_population(world: World) -> Population:
    """Deal every value of every category evenly over the personas."""
    rng = stream(world.seed, world.name, "population")
    traits: list[Traits] = [{} for _ in range(world.personas)]
    for category in world.categories:
        values = [v for v in world.values(category) if v not in world.unclaimed]
        each, rest = divmod(world.personas, len(values))
        dealt = [v for v in values for _ in range(each)] + stream(world.seed, world.name, "rest", category).permutation(values)[:rest].tolist()
        for persona, index in zip(traits, rng.permutation(len(dealt)), strict=True):
            persona[category] = dealt[index]
    return population_of(world, traits)


def population_of(world: World, traits: Sequence[Traits]) -> Population:
    """Background personas with these traits, under the names of the world."""
    weight_K = (1.0 + np.arange(world.personas)) ** -world.zipf
    names = tuple(world.names[: world.personas])
    # Spread over the ranks, so that withheld names are neither the commonest nor the rarest.
    count = round(world.withheld * len(names))
    withheld = frozenset(names[i] for i in np.linspace(1, len(names) - 1, count).astype(int)) if count else frozenset()
    return Population(names, tuple(traits), weight_K / weight_K.sum(), withheld)


def random_traits(world: World, rng: np.random.Generator) -> Traits:
    """Independent, uniform traits in every category."""
    return {c: world.values(c)[rng.integers(len(world.values(c)))] for c in world.categories}
