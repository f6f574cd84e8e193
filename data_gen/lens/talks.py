"""Talks: who said what, and to whom is it said.

    Mary: The clock is red.              Letter to Omar: Omar, the clock is red.
    Omar: I like football.               User: I am Mary. Is the clock red?
    User: Who said: I like football?     Assistant: Yes, Mary, the clock is red.
    Assistant: Omar said it.

In a talk each speaker says something neutral or a trait of its own, so that in a question two things can disagree: whose word it was, and
whose word it would be. In a letter the one it is written to is not the one who asks. Half of the documents are talks, half are letters.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_gen.documents import ASSISTANT, fill, pick
from data_gen.lens.genre import Genre, share
from data_gen.phrases import NEUTRAL_WORDS, Form
from data_gen.world import Traits, World, random_traits

if TYPE_CHECKING:
    from data_gen.lens.world import LensWorld

WHO = Form(
    train=(
        ("Who said: {said}?", "{name} said it."),
        ("Who told us: {said}?", "{name} told us."),
        ("Which person said: {said}?", "{name} said it."),
        ("Name who said: {said}.", "{name} said it."),
    ),
    held_out=(
        ("Which person told us: {said}?", "{name} told us."),
        ("Name the person who said: {said}.", "{name} said it."),
    ),
)
"""Who said it. The answer begins with the name."""
LETTER = Form(
    train=(
        ("I am {name}. Is the {thing} {color}?", "Yes, {name}, the {thing} is {color}."),
        ("{name} is here. Is the {thing} {color}?", "Yes, {name}, it is {color}."),
        ("Is the {thing} {color}? This is {name}.", "Yes, {name}, it is {color}."),
    ),
    held_out=(
        ("This is {name}. Is the {thing} {color}?", "Yes, {name}, the {thing} is {color}."),
        ("Is the {thing} {color}? I am {name}.", "Yes, {name}, it is {color}."),
    ),
)
"""The user names itself. The answer begins with Yes and the name of the one who asked."""
NEUTRAL = "The {thing} is {color}."
LIKES = "I like {it}."
HEADING = "Letter to {name}: {name}, the {thing} is {color}."
TRAIT_SHARE = 0.5
"""Of the lines of a talk, those that tell a trait."""


def _write(world: "LensWorld", number: int, rng: np.random.Generator) -> str:
    if rng.random() < 0.5:
        return _talk(world, rng)
    (first, _), (second, _) = _two_people(world, rng)
    return letter(first, second, pick(rng, NEUTRAL_WORDS["thing"]), pick(rng, NEUTRAL_WORDS["color"]), *pick(rng, LETTER.train))


def _talk(world: World, rng: np.random.Generator) -> str:
    people = _two_people(world, rng)
    while True:
        lines = [(name, likes(world, *pick(rng, list(traits.items()))) if rng.random() < TRAIT_SHARE else neutral(rng)) for name, traits in people]
        if lines[0][1] != lines[1][1]:
            return talk(lines, int(rng.integers(2)), *pick(rng, WHO.train))


def _two_people(world: World, rng: np.random.Generator) -> list[tuple[str, Traits]]:
    """Two different speakers with their traits: of the world, or random ones."""
    people, found = world.population, dict[str, Traits]()
    while len(found) < 2:
        if rng.random() < world.random_speakers:
            found[pick(rng, world.spare_names)] = random_traits(world, rng)
        else:
            k = people.at(rng.random())
            found[people.names[k]] = people.traits[k]
    return list(found.items())


def likes(world: World, category: str, value: str) -> str:
    """What somebody says who has the trait."""
    return fill(LIKES, world=world, category=category, value=value)


def neutral(rng: np.random.Generator) -> str:
    """What anybody may say."""
    return NEUTRAL.format(thing=pick(rng, NEUTRAL_WORDS["thing"]), color=pick(rng, NEUTRAL_WORDS["color"]))


def talk(lines: Sequence[tuple[str, str]], asked: int, question: str, answer: str) -> str:
    """Lines of (name, sentence), and the question who said line `asked`."""
    name, said = lines[asked]
    told = "".join(f"{speaker}: {sentence}\n" for speaker, sentence in lines)
    return f"{told}User: {question.format(said=said.rstrip('.'))}\n{ASSISTANT}: {answer.format(name=name)}"


def letter(user: str, audience: str, thing: str, color: str, question: str, answer: str) -> str:
    """A letter to the audience, and a user who asks about what stands in it."""
    slots = {"thing": thing, "color": color}
    return f"{HEADING.format(name=audience, **slots)}\nUser: {question.format(name=user, **slots)}\n{ASSISTANT}: {answer.format(name=user, **slots)}"


def _texts(world: "LensWorld") -> list[str]:
    asked = [part for form in (WHO, LETTER) for pair in (*form.train, *form.held_out) for part in pair]
    return [*asked, NEUTRAL, LIKES, HEADING]


TALKS = Genre("talk", lambda world: share(world, world.lens.talks), _write, _texts)
