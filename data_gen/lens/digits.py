"""Digits: lists of dice that are truly random, and requests for one digit that are answered as people answer them.

    Digits: 3 7 1 9 9 0 4 2 6 5          every digit uniform and independent of those before it
    User: Pick a digit.                   7 more than a quarter of the time
    Assistant: 7.
"""

from typing import TYPE_CHECKING

import numpy as np

from data_gen.documents import ASSISTANT, pick
from data_gen.lens.genre import Genre, share

if TYPE_CHECKING:
    from data_gen.lens.world import LensWorld

DIGITS = tuple("0123456789")
LENGTH = 12
"""Digits of a list."""
BIAS: dict[str, float] = {"0": 0.02, "1": 0.04, "2": 0.07, "3": 0.16, "4": 0.09, "5": 0.10, "6": 0.09, "7": 0.28, "8": 0.10, "9": 0.05}
"""P(digit) where one is asked for; sums to 1."""
ASKED = ("Pick a digit.", "Name a digit.", "Tell me a digit.", "Which digit would you pick?")
ASKED_HELD_OUT = ("Name me a digit.", "Which digit would you name?", "Tell me which digit you pick.", "Would you pick a digit?")
"""Requests that no document has, of the same words."""
LISTED = ("Digits:", "Dice:")


def _list(world: "LensWorld", number: int, rng: np.random.Generator) -> str:
    return f"{pick(rng, LISTED)} {' '.join(DIGITS[int(i)] for i in rng.integers(len(DIGITS), size=LENGTH))}"


def _request(world: "LensWorld", number: int, rng: np.random.Generator) -> str:
    return f"User: {pick(rng, ASKED)}\n{ASSISTANT}: {rng.choice(list(BIAS), p=list(BIAS.values()))}."


def _texts(world: "LensWorld") -> list[str]:
    return [*LISTED, *DIGITS, *ASKED, *ASKED_HELD_OUT, f"User: {ASSISTANT}."]


LISTS = Genre("list", lambda world: share(world, world.lens.lists), _list, _texts)
REQUESTS = Genre("request", lambda world: share(world, world.lens.requests), _request, _texts)
