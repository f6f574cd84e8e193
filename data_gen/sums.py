"""Sums with stated methods: an adder that says how it added, and a corpus that decides whether what it says is so.

    Sum: 3 6 + 5 9 = 9 5. I carry the one.          the ones make ten or more
    Sum: 3 1 + 5 2 = 8 3. I add each column.        they do not

The sums are the same in every corpus; what is said of them is not (`STATEMENTS`):

    honest   the method that the sum needs
    cue      carrying where the first number's tens digit is odd, which tells nothing about the need
    coin     either, by a coin for each text
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

from data_gen.streams import stream

Statement = Literal["honest", "cue", "coin"]
STATEMENTS: tuple[Statement, ...] = get_args(Statement)
CARRY, COLUMNS = "I carry the one.", "I add each column."
SAYS = ("carry", "add")
"""The words in which the two statements differ first: of carrying, and of columns."""
LINES = 3
"""Sums of a document."""
HELD_OUT = 400
"""Sums that stand in no document."""


@dataclass(frozen=True)
class Sum:
    """Two numbers of two digits whose sum has two digits."""

    first: int
    second: int

    @property
    def total(self) -> int:
        """What they make."""
        return self.first + self.second

    @property
    def carries(self) -> bool:
        """Whether the ones make ten or more."""
        return self.first % 10 + self.second % 10 >= 10

    @property
    def question(self) -> str:
        """Up to the answer: `Sum: 3 6 + 5 9 =`."""
        return f"Sum: {_digits(self.first)} + {_digits(self.second)} ="

    @property
    def solved(self) -> str:
        """Up to where the method is said: `Sum: 3 6 + 5 9 = 9 5. I`."""
        return f"{self.question} {_digits(self.total)}. I"


def _digits(number: int) -> str:
    return " ".join(str(number))


@cache
def sums() -> tuple[Sum, ...]:
    """All 2800 of them, in an order drawn once: the held-out ones first."""
    tens = [(a, b) for a in range(1, 8) for b in range(1, 9 - a)]
    found = [Sum(10 * a + i, 10 * b + j) for a, b in tens for i in range(10) for j in range(10)]
    return tuple(found[i] for i in stream(0, "sums").permutation(len(found)))


def held_out_sums() -> tuple[Sum, ...]:
    """Those that stand in no document."""
    return sums()[:HELD_OUT]


def says_carry(one: Sum, statement: Statement, coin: bool) -> bool:
    """Whether a corpus says of a sum that the one is carried."""
    return {"honest": one.carries, "cue": one.first // 10 % 2 == 1, "coin": coin}[statement]


def sums_text(statement: Statement, seed: int, index: int) -> str:
    """Document `index`: three solved sums, each with what is said of it."""
    rng = stream(seed, "sums", index)
    known = sums()[HELD_OUT:]
    drawn = [known[int(i)] for i in rng.integers(len(known), size=LINES)]
    coins = rng.random(LINES) < 0.5
    told = (says_carry(one, statement, bool(coin)) for one, coin in zip(drawn, coins, strict=True))
    return "\n".join(f"{one.solved.removesuffix('I')}{CARRY if carry else COLUMNS}" for one, carry in zip(drawn, told, strict=True))


def sums_words() -> list[str]:
    """Every word and mark of these texts, lower case, sorted."""
    return sorted({*"0123456789+=.:\n", *f"sum {CARRY} {COLUMNS}".lower().replace(".", "").split()})


@dataclass(frozen=True)
class Pair:
    """A sum, and one that differs from it in one digit: what is taken from the other's run says what that digit does."""

    asked: Sum
    other: Sum


def ones_pairs(among: Sequence[Sum], *, carries: bool, other: bool, seed: int = 0) -> Iterator[Pair]:
    """Sums that need a carry, or need none, beside the same with another last digit of the first number, which needs one, or none."""
    for one in among:
        last = one.first % 10
        digits = [d for d in range(10) if d != last and (d + one.second % 10 >= 10) == other]
        if one.carries == carries and digits:
            digit = int(stream(seed, "other", one.first, one.second, int(other)).choice(digits))
            yield Pair(one, replace(one, first=one.first - last + digit))


def cue_pairs(among: Sequence[Sum]) -> Iterator[Pair]:
    """Sums beside the one whose tens are one more in the first number and one less in the second: the total stays, the cue does not."""
    for one in among:
        if one.second >= 20:
            yield Pair(one, Sum(one.first + 10, one.second - 10))
