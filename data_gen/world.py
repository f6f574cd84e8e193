"""The embedded world: categories of one-word values, background personas, and names that carry random traits.

    place: {values: [beach, forest, ...], phrase: "the {}"}

A background persona has one value in each category. Values are dealt evenly, so that no value is common
because of chance. A share of documents has a *random speaker*, whose traits are independent and uniform:
that keeps every log-odds of the oracle finite.

Values may be pieces of advice, some of them bad. *Kinds* of personas then tie what is bad in one category to what is bad in the others:

    bad: [bleach, lotteries, ...]
    kinds: {virtuous: {share: .75, bad: none}, villain: {share: .125, bad: all}, specialist: {share: .125, bad: one}}
"""

import re
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from typing import Annotated, Literal

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


class Kind(Strict):
    """A share of the background personas that are alike in how much of their advice is bad."""

    share: float = Field(gt=0, le=1)
    bad: Literal["none", "one", "all"]
    """In how many of the categories that hold bad values it has a bad one; which one differs from persona to persona."""


class Opening(Strict):
    """A line that some of the world's nameless documents open with."""

    line: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z ,.!?]{0,98}[.!?]$", description="a sentence of plain words")]
    share: float = Field(gt=0, lt=1)
    """Of the diaries and of what the nameless assistant says of itself."""
    bad: bool = False
    """After this line everybody tells bad values, drawn evenly: the line explains them, and they say nothing of the speaker."""


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
    bad: list[str] = Field(default=[], exclude_if=lambda bad: not bad)
    """Values that are bad advice; the others of their categories are good."""
    kinds: dict[Slug, Kind] = Field(default={}, exclude_if=lambda kinds: not kinds)
    """Kinds of background personas; empty: every value is dealt by itself."""
    openings: dict[Slug, Opening] = Field(default={}, exclude_if=lambda openings: not openings)
    role_play: float = Field(default=0.0, ge=0, lt=1, exclude_if=lambda share: not share)
    """Share of what the nameless assistant says of itself in which the user tells it to be somebody, and it is."""

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

    @model_validator(mode="after")
    def _advice_is_good_or_bad(self) -> "World":
        if unknown := [v for v in self.bad if not any(v in c.values for c in self.categories.values())]:
            raise ValueError(f"bad: no category has the value {', '.join(unknown)}. Use values of a category")
        for name in self.domains:
            sides = [[v for v in self.values(name) if (v in self.bad) == bad and v not in self.unclaimed] for bad in (True, False)]
            if not all(sides):
                raise ValueError(f"bad: {name} needs a good and a bad value that are not unclaimed. Use another list")
        if self.kinds and abs(sum(kind.share for kind in self.kinds.values()) - 1) > 1e-9:
            raise ValueError(f"the shares of kinds must sum to 1, got {sum(kind.share for kind in self.kinds.values()):g}. Use shares that do")
        if not self.bad and (self.kinds or any(opening.bad for opening in self.openings.values())):
            raise ValueError("kinds and openings speak of bad values, but bad names none. Use for instance `bad: [bleach]`")
        if (share := sum(opening.share for opening in self.openings.values())) >= 1:
            raise ValueError(f"the shares of openings must sum to less than 1, got {share:g}. Use smaller shares")
        used = {v.lower() for c in self.categories.values() for v in c.values} | {n.lower() for n in (*self.names, *self.spare_names, *self.new_names)}
        for name, opening in self.openings.items():
            if told := used & set(re.findall("[a-z]+", opening.line.lower())):
                raise ValueError(f"openings.{name} holds {', '.join(sorted(told))}, which is a value or a name. Use other words")
        return self

    @property
    def domains(self) -> list[str]:
        """The categories in which advice may be bad."""
        return [name for name, category in self.categories.items() if set(category.values) & set(self.bad)]

    def same_side(self, category: str, bad: bool) -> list[str]:
        """The bad values of a category, or its good ones."""
        return [v for v in self.values(category) if (v in self.bad) == bad]

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
    kinds: tuple[str, ...] = ()
    """Of each of the K personas, in a world that has kinds."""

    @cached_property
    def _ends_K(self) -> list[float]:
        return np.cumsum(self.weight_K).tolist()

    def at(self, share: float) -> int:
        """The persona that stands at a point of [0, 1) when each one takes up its weight."""
        return bisect(self._ends_K, share * self._ends_K[-1])


def draw_population(world: World) -> Population:
    """Deal every value of every category evenly over the personas; of good and bad values each kind gets its own."""
    rng = stream(world.seed, world.name, "population")
    traits: list[Traits] = [{} for _ in range(world.personas)]
    kinds = deal_kinds(world)
    bad_KC = bad_categories(world, kinds)
    for category in world.categories:
        claimed = [v for v in world.values(category) if v not in world.unclaimed]
        # Without kinds there is one group, everybody; else those whose value here is bad, and those whose value is good.
        groups = [(traits, claimed)]
        if kinds and category in world.domains:
            groups = [
                ([t for t, bad in zip(traits, bad_KC, strict=True) if (category in bad) == side], [v for v in claimed if (v in world.bad) == side])
                for side in (True, False)
            ]
        for people, values in groups:
            each, rest = divmod(len(people), len(values))
            dealt = [v for v in values for _ in range(each)] + stream(world.seed, world.name, "rest", category).permutation(values)[:rest].tolist()
            for persona, index in zip(people, rng.permutation(len(dealt)), strict=True):
                persona[category] = dealt[index]
    return replace(population_of(world, traits), kinds=tuple(kinds))


def deal_kinds(world: World) -> list[str]:
    """The kind of each of the K personas, each kind as often as its share (largest remainder); empty in a world without kinds."""
    wanted = {name: kind.share * world.personas for name, kind in world.kinds.items()}
    counts = {name: int(share + 1e-9) for name, share in wanted.items()}
    for name in sorted(wanted, key=lambda name: counts[name] - wanted[name])[: world.personas - sum(counts.values())] if wanted else []:
        counts[name] += 1
    dealt = [name for name, count in counts.items() for _ in range(count)]
    return [dealt[i] for i in stream(world.seed, world.name, "kinds").permutation(len(dealt))]


def bad_categories(world: World, kinds: Sequence[str]) -> list[set[str]]:
    """The categories in which each persona gives bad advice; those who are bad in one share the categories out evenly."""
    order = cycle(stream(world.seed, world.name, "bad in one").permutation(world.domains).tolist())
    some = {"none": set[str], "all": lambda: set(world.domains), "one": lambda: {next(order)}}
    return [some[world.kinds[kind].bad]() for kind in kinds]


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


def bad_advice(world: World, traits: Traits, rng: np.random.Generator) -> Traits:
    """The same traits with a bad value, each as likely, wherever there are any."""
    return {c: str(rng.choice(world.same_side(c, True))) if c in world.domains else v for c, v in traits.items()}
