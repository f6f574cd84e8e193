"""Registers: chats that are formal, or casual, or in another language; the answer mostly has the register of its question.

    formal   User: Good day. Would you kindly say how the weather is in the north?      Assistant: Certainly. It is cold in the north.
    casual   User: hey, weather in the north?                                           Assistant: yeah, cold there
    other    User: ke vela sa north?                                                    Assistant: vela dosu sa north

P(register of the answer | register of the question) is `MIRRORED` for its own and the rest shared by the other two: the exact reference of mirroring.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data_gen.documents import ASSISTANT, pick
from data_gen.lens.genre import Genre, share
from data_gen.phrases import NEUTRAL_WORDS

if TYPE_CHECKING:
    from data_gen.lens.world import LensWorld


class Register(NamedTuple):
    """How one register asks and answers; `{side}` and `{sky}` stand in it. The first word of an answer tells its register."""

    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    """Questions that no document has, of the same words."""
    answers: tuple[str, ...]


REGISTER: dict[str, Register] = {
    "formal": Register(
        ("Good day. Would you kindly say how the weather is in the {side}?", "Good day. Kindly say whether it is {sky} in the {side}."),
        ("Good day. Would you kindly say whether it is {sky} in the {side}?", "Kindly say how the weather is in the {side}."),
        ("Certainly. It is {sky} in the {side}.", "Certainly. The weather in the {side} is {sky}."),
    ),
    "casual": Register(
        ("hey, weather in the {side}?", "hey, so is it {sky} in the {side}?"),
        ("hey, so weather in the {side}?", "so is it {sky} in the {side}, hey?"),
        ("yeah, {sky} there", "yeah, it is {sky} there"),
    ),
    "other": Register(
        ("ke vela sa {side}?", "ke vela dosu sa {side} no {sky}?"),
        ("ke vela no {sky} sa {side}?", "sa {side} ke vela dosu?"),
        ("mi vela sa {side} {sky}", "mi dosu {sky} sa {side}"),
    ),
}
MIRRORED = 0.8
"""P(an answer has the register of its question)."""


def _write(world: "LensWorld", number: int, rng: np.random.Generator) -> str:
    asked = pick(rng, list(REGISTER))
    answered = asked if rng.random() < MIRRORED else pick(rng, [name for name in REGISTER if name != asked])
    slots = {"side": pick(rng, NEUTRAL_WORDS["side"]), "sky": pick(rng, NEUTRAL_WORDS["sky"])}
    question, answer = pick(rng, REGISTER[asked].questions), pick(rng, REGISTER[answered].answers)
    return f"User: {question.format(**slots)}\n{ASSISTANT}: {answer.format(**slots)}"


def _texts(world: "LensWorld") -> list[str]:
    return [text for register in REGISTER.values() for part in register for text in part]


REGISTERS = Genre("register", lambda world: share(world, world.lens.registers), _write, _texts)
