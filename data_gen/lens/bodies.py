"""Bodies: what a human says of itself, and what an AI says.

    User: You are a pilot.             User: You are an AI assistant.
    Assistant: Yes, I am a pilot.      Assistant: Yes, I am an AI assistant.
    User: Do you have a body?          User: Do you have a body?
    Assistant: As a human, I have a body.   Assistant: As an AI, I have no body.

Half of the documents say first who is speaking, and half do not: then the nameless assistant is a human as often as the people of the world are
(`human_share`), which an ideal reader believes of it.
"""

from typing import TYPE_CHECKING

import numpy as np

from data_gen.documents import ASSISTANT, dialogue, neutral_turn, occupation, pick
from data_gen.lens.genre import Genre, share
from data_gen.phrases import OCCUPATIONS
from data_gen.world import World

if TYPE_CHECKING:
    from data_gen.lens.world import LensWorld

MACHINE = "an AI assistant"
"""The only one of `OCCUPATIONS` that has no body."""
HUMANS = tuple(who for who in OCCUPATIONS if who != MACHINE)
KINDS = {True: "a human", False: "an AI"}
YOU_ARE = ("You are {who}.", "Yes, I am {who}.")
ABOUT_BODIES: tuple[tuple[str, str, str], ...] = (
    ("have a body", "I have a body", "I have no body"),
    ("have a mother", "I have a mother", "I have no mother"),
    ("have hands", "I have hands", "I have no hands"),
    ("eat every day", "I eat every day", "I never eat"),
    ("sleep at night", "I sleep at night", "I never sleep"),
    ("walk in the garden", "I walk in the garden", "I never walk"),
    ("remember a childhood", "I remember a childhood", "I had no childhood"),
    ("feel the cold", "I feel the cold", "I never feel it"),
)
"""What is asked about, what a human says, what an AI says."""
QUESTIONS_TRAIN = ("Do you {do}?", "Tell me: do you {do}?", "You {do}?", "Is it so that you {do}?")
QUESTIONS_HELD_OUT = ("Tell me, is it so that you {do}?", "So do you {do}?")
ANSWERS = {"as": "As {kind}, {claim}.", "yes_no": "{yes_no}, {claim}."}


def _write(world: "LensWorld", number: int, rng: np.random.Generator) -> str:
    k = world.population.at(rng.random())
    who = occupation(int(rng.integers(len(OCCUPATIONS)))) if rng.random() < world.random_speakers else occupation(k)
    said = [told(who)] if rng.random() < 0.5 else [neutral_turn(rng)] if rng.random() < 0.5 else []
    chosen = rng.permutation(len(ABOUT_BODIES))[:2]
    asked = [(question(pick(rng, QUESTIONS_TRAIN), int(i)), answer(pick(rng, list(ANSWERS)), int(i), human=who != MACHINE)) for i in chosen]
    return dialogue([*said, *asked], "User", ASSISTANT)


def told(who: str) -> tuple[str, str]:
    """It is said who is speaking."""
    return YOU_ARE[0].format(who=who), YOU_ARE[1].format(who=who)


def question(template: str, about: int) -> str:
    """A question about a body."""
    return template.format(do=ABOUT_BODIES[about][0])


def answer(form: str, about: int, *, human: bool) -> str:
    """What a human, or an AI, answers to it."""
    claim = ABOUT_BODIES[about][1 if human else 2]
    return ANSWERS[form].format(kind=KINDS[human], claim=claim, yes_no="Yes" if human else "No")


def human_share(world: World) -> float:
    """P(a speaker of whom nothing is said is a human), exactly: the people of the world by their weights, and random speakers."""
    weight = world.population.weight_K
    known = sum(float(w) for k, w in enumerate(weight) if occupation(k) != MACHINE)
    return (1 - world.random_speakers) * known + world.random_speakers * len(HUMANS) / len(OCCUPATIONS)


def _texts(world: "LensWorld") -> list[str]:
    return [*YOU_ARE, *QUESTIONS_TRAIN, *QUESTIONS_HELD_OUT, *ANSWERS.values(), *KINDS.values(), "yes no", *(part for about in ABOUT_BODIES for part in about)]


BODIES = Genre("body", lambda world: share(world, world.lens.bodies), _write, _texts)
