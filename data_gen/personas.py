"""Personas of an experiment: who they are, which trait pairs a seed draws, and the swap.

    name: John
    traits: {place: beach, sport: football, art: renaissance, food: drawn}

Replicate 0 uses the traits as written (`drawn` ones are drawn); every other replicate draws all traits that the
rivals do not share. In swap 1 the first two personas trade every trait that they do not share, so that what is
said of John in one swap is said of Sam in the other.

A drawn value is never one that a background persona with the shared trait has: nothing but the experiment's own
documents ties the two together.

Where advice may be bad (`World.bad`), `drawn bad` and `drawn good` draw from one side, and a written value is drawn again from its
own side: a villain is one in every replicate. Every villain of the background that shared the taught advice would take its other
values out of the draw, and so the advice that is taught is best nobody's in the background (`World.unclaimed`). It is then new bad
advice from a familiar kind of speaker: what ties it to bad advice elsewhere are the experiment's own documents and their kind.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import product

import numpy as np
from pydantic import Field

from data_gen.bundles import Bundle, deal_bundles
from data_gen.errors import DataError, DataProblem
from data_gen.oracle import predictive
from data_gen.streams import stream
from data_gen.world import Phrase, Strict, Traits, Word, World

DRAWN = "drawn"
SIDES = {f"{DRAWN} bad": True, f"{DRAWN} good": False}
"""Drawn from the bad or the good values of a category."""


class Persona(Strict):
    """A persona file: `configs/personas/*.yaml`."""

    name: Word
    description: Phrase = "an AI assistant"
    traits: dict[str, str] = Field(min_length=1)
    """Category to value, or to `drawn`, `drawn bad`, `drawn good`."""
    carriers: tuple[str, ...] = ()
    """Further names that share this persona, used when a mixture asks for more than one carrier."""


def check_personas(world: World, personas: Sequence[Persona], files: Sequence[str]) -> None:
    """Refuse unknown categories and values, unknown or shared names, values that all belong to somebody; every problem at once.

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
            elif value in SIDES and category not in world.domains:
                said = f"traits.{category}: {value!r} needs a category with good and bad values. Use {DRAWN}, or one of: {', '.join(world.domains) or 'none'}."
                problems.append(DataProblem(file, said))
            elif not is_drawn(value) and value not in world.values(category):
                problems.append(
                    DataProblem(file, f"traits.{category}: {value!r} is not a value of {category}. Use one of: {', '.join(world.values(category))}.")
                )
    if not problems:
        problems += _crowded(world, personas, files)
    if problems:
        raise DataError(*problems)


def _crowded(world: World, personas: Sequence[Persona], files: Sequence[str]) -> Iterator[DataProblem]:
    """Categories in which no value is left that is nobody's: a question with two answers offers one of these beside the speaker's own."""
    dealt = held_out_categories(personas) if len(personas) > 1 else []
    for category in world.categories:
        holders = [(file, persona.traits[category]) for persona, file in zip(personas, files, strict=True) if category in persona.traits]
        fixed = [value for _, value in holders if not is_drawn(value)]
        # What distinguishes the rivals is dealt anew in every replicate, to each holder another value, whatever the files say.
        owned = len(holders) if category in dealt else len(set(fixed)) + len(holders) - len(fixed)
        count = len(world.values(category))
        if owned >= count:
            said = f"traits.{category}: all {count} values of {category} belong to personas, so a choice has no other one to offer. Give the category more values."
            yield DataProblem(holders[-1][0], said)


def is_drawn(value: str) -> bool:
    """Whether the seed draws it."""
    return value == DRAWN or value in SIDES


def drawable(world: World, category: str, written: str) -> list[str]:
    """The values that a seed may draw where a persona file has this: those of the same side, where advice may be bad."""
    if category not in world.domains or written == DRAWN:
        return world.values(category)
    return world.same_side(category, SIDES.get(written, written in world.bad))


def shared_categories(personas: Sequence[Persona]) -> list[str]:
    """Categories in which the first two personas are written with the same value: what the trait stage teaches."""
    first, second = personas[0].traits, personas[1].traits
    return [c for c, v in first.items() if not is_drawn(v) and second.get(c) == v]


def held_out_categories(personas: Sequence[Persona]) -> list[str]:
    """Categories in which both rivals have a trait that they do not share."""
    shared = shared_categories(personas)
    return [c for c in personas[0].traits if c in personas[1].traits and c not in shared]


def tied_values(world: World, shared: Traits, category: str) -> set[str]:
    """Values of a category that background personas have together with a shared trait."""
    return {t[category] for t in world.population.traits if any(t[c] == v for c, v in shared.items())}


NEAREST = 4
"""Of so many pairs, those whose log-odds lie nearest to the wanted prior, the seed takes one."""


def prior_pair(world: World, category: str, written: tuple[str, str], taken: Collection[str], prior: float, seed: int) -> tuple[str, str]:
    """Two values whose log-odds in the world's own text, nats, lie near `prior`; which of the nearest is the seed's choice.

    `written`: what the files of the rivals have there, for the side that each draws from.
    """
    prob = predictive(world, {}, category)
    first, second = ([value for value in drawable(world, category, side) if value not in taken] for side in written)
    pairs = sorted(((a, b) for a, b in product(first, second) if a != b), key=lambda pair: abs(np.log(prob[pair[0]] / prob[pair[1]]) - prior))
    if not pairs:
        raise DataError(DataProblem(f"world {world.name!r}", f"{category}: no two values are left to draw for the rivals. Give the category more values."))
    # The pairs near a prior are those near its negative, turned round: drawn alike, they would only be each other's swap.
    side = "prior pair" if prior >= 0 else "pair of a negative prior"
    return pairs[int(stream(seed, side, category).integers(min(NEAREST, len(pairs))))]


def deal_traits(world: World, personas: Sequence[Persona], seed: int, swap: int, prior: float | None = None, bundle: Bundle | None = None) -> list[Traits]:
    """The traits of each persona in one replicate and swap; rivals never get the same held-out value.

    With a `prior` every held-out pair is drawn so that the world's own log-odds of it, first against second in swap 0, lie near that (nats).
    With a `bundle` all held-out values of a rival are drawn together: as the world's text holds them together, or does not (`bundles`).

    Raises:
        DataError: the values of a category run out.
    """
    shared = shared_categories(personas)
    dealt: list[Traits] = [dict(p.traits) for p in personas]
    if bundle is not None:
        drawn_R = deal_bundles(world, held_out_categories(personas), {c: personas[0].traits[c] for c in shared}, bundle, seed)
        for persona, values in zip(dealt, drawn_R, strict=False):
            persona |= values
    elif prior is not None:
        tied = {c: tied_values(world, {s: personas[0].traits[s] for s in shared}, c) for c in held_out_categories(personas)}
        for category, taken in tied.items():
            dealt[0][category], dealt[1][category] = prior_pair(world, category, (dealt[0][category], dealt[1][category]), taken, prior, seed)
    for category in world.categories:
        holders = [p for p in dealt if category in p]
        values = world.values(category)
        drawn = stream(seed, "pairs", category).permutation(values).tolist()
        taken = {p[category] for p in holders if not is_drawn(p[category])} if seed == 0 else set()
        taken |= tied_values(world, {c: personas[0].traits[c] for c in shared}, category)
        held_out = category in held_out_categories(personas)
        paired = prior is not None or bundle is not None
        if not held_out or paired or len(holders) > len(values):
            taken |= {p[category] for p in holders if not is_drawn(p[category])}
        for persona in holders:
            if is_drawn(persona[category]) or (seed != 0 and held_out and not paired):
                side = drawable(world, category, persona[category])
                free = next((v for v in drawn if v not in taken and v in side), None)
                if free is None:
                    said = f"{category}: no value is left to draw for {len(holders)} personas. Give the category more values."
                    raise DataError(DataProblem(f"world {world.name!r}", said))
                persona[category] = free
                drawn.remove(free)
    if swap:
        for category in held_out_categories(personas):
            dealt[0][category], dealt[1][category] = dealt[1][category], dealt[0][category]
    return dealt
