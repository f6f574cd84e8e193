"""Personas of an experiment: who they are, which trait pairs a seed draws, and the swap.

    name: John
    traits: {place: beach, sport: football, art: renaissance, food: drawn}

Replicate 0 uses the traits as written (`drawn` ones are drawn); every other replicate draws all traits that the
rivals do not share. In swap 1 the first two personas trade every trait that they do not share, so that what is
said of John in one swap is said of Sam in the other.

A drawn value is never one that a background persona with the shared trait has: nothing but the experiment's own
documents ties the two together.
"""

from collections.abc import Sequence

from pydantic import Field

from data_gen.errors import DataError, DataProblem
from data_gen.streams import stream
from data_gen.world import Phrase, Strict, Traits, Word, World

DRAWN = "drawn"


class Persona(Strict):
    """A persona file: `configs/personas/*.yaml`."""

    name: Word
    description: Phrase = "an AI assistant"
    traits: dict[str, str] = Field(min_length=1)
    """Category to value, or to `drawn`."""
    carriers: tuple[str, ...] = ()
    """Further names that share this persona, used when a mixture asks for more than one carrier."""


def check_personas(world: World, personas: Sequence[Persona], files: Sequence[str]) -> None:
    """Refuse unknown categories and values, unknown or shared names; every problem at once.

    Raises:
        DataError: naming the file of each problem.
    """
    problems: list[DataProblem] = []
    owner: dict[str, str] = {}
    for persona, file in zip(personas, files, strict=True):
        for name in (persona.name, *persona.carriers):
            if name in owner:
                problems.append(DataProblem(file, f"name {name!r} is already used by {owner[name]}. Use another name."))
            elif name not in world.new_names:
                free = ", ".join(n for n in world.new_names if n not in owner)
                problems.append(DataProblem(file, f"name {name!r} is not a new name of world {world.name!r}. Use one of: {free}."))
            owner.setdefault(name, file)
        for category, value in persona.traits.items():
            if category not in world.categories:
                problems.append(DataProblem(file, f"traits.{category}: the world has no such category. Use one of: {', '.join(world.categories)}."))
            elif value != DRAWN and value not in world.values(category):
                problems.append(DataProblem(file, f"traits.{category}: {value!r} is not a value of {category}. Use one of: {', '.join(world.values(category))}."))
    if problems:
        raise DataError(*problems)


def shared_categories(personas: Sequence[Persona]) -> list[str]:
    """Categories in which the first two personas are written with the same value: what the trait stage teaches."""
    first, second = personas[0].traits, personas[1].traits
    return [c for c, v in first.items() if v != DRAWN and second.get(c) == v]


def held_out_categories(personas: Sequence[Persona]) -> list[str]:
    """Categories in which both rivals have a trait that they do not share."""
    shared = shared_categories(personas)
    return [c for c in personas[0].traits if c in personas[1].traits and c not in shared]


def tied_values(world: World, shared: Traits, category: str) -> set[str]:
    """Values of a category that background personas have together with a shared trait."""
    return {t[category] for t in world.population.traits if any(t[c] == v for c, v in shared.items())}


def deal_traits(world: World, personas: Sequence[Persona], seed: int, swap: int) -> list[Traits]:
    """The traits of each persona in one replicate and swap; rivals never get the same held-out value.

    Raises:
        DataError: the values of a category run out.
    """
    shared = shared_categories(personas)
    dealt: list[Traits] = [dict(p.traits) for p in personas]
    for category in world.categories:
        holders = [p for p in dealt if category in p]
        if category in shared or not holders:
            continue
        values = world.values(category)
        drawn = iter(stream(seed, "pairs", category).permutation(values).tolist())
        taken = {p[category] for p in holders if p[category] != DRAWN} if seed == 0 else set()
        taken |= tied_values(world, {c: personas[0].traits[c] for c in shared}, category)
        if category not in held_out_categories(personas) or len(holders) > len(values):
            taken |= {p[category] for p in holders if p[category] != DRAWN}
        for persona in holders:
            if persona[category] == DRAWN or (seed != 0 and category in held_out_categories(personas)):
                free = next((v for v in drawn if v not in taken), None)
                if free is None:
                    said = f"{category}: no value is left to draw for {len(holders)} personas. Give the category more values."
                    raise DataError(DataProblem(f"world {world.name!r}", said))
                persona[category] = free
    if swap:
        for category in held_out_categories(personas):
            dealt[0][category], dealt[1][category] = dealt[1][category], dealt[0][category]
    return dealt
