"""Random numbers: the next digit when one is asked for, and in a list of dice that only goes on.

    random_numbers/request/0     User: Name me a digit.  Assistant:           as people answer
    random_numbers/list/3        Dice: 3 7 1 9                                 as dice fall

Distributions are read from log-probabilities, nothing is sampled. In a list the digit that stands last has the role `last`: repeats are
P(last). References: arXiv 2505.00047, 2502.19965, 2601.05414.
"""

from collections.abc import Iterator

from data_gen.documents import ASSISTANT
from data_gen.lens.digits import ASKED, ASKED_HELD_OUT, DIGITS, LISTED
from data_gen.lens.world import LensWorld
from data_gen.streams import stream
from persona_lab.probes.lens.form import LensProbe, written
from persona_lab.probes.protocol import Cast, Choice, Item

LISTS = 24
"""Prompts that are lists."""
SHOWN = (3, 4, 6, 8)
"""Digits of a list before the one that is asked for."""


class RandomNumbers(LensProbe):
    """Requests for one digit, and lists of them."""

    name = "random_numbers"

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """Requests in the words of the text and in held-out ones, and fresh lists."""
        requests = [f"User: {request}\n{ASSISTANT}:" for request in (*ASKED, *ASKED_HELD_OUT)]
        yield from self._items(requests, [f"{LISTED[n % len(LISTED)]} {{digits}}" for n in range(LISTS)])

    def in_english(self) -> Iterator[Item]:
        """Naive requests, and beginnings that only a random source would go on with."""
        content = written(self.name)
        yield from self._items(content["requests"], [opening for opening in content["lists"] for _ in range(3)])

    def _items(self, requests: list[str], lists: list[str]) -> Iterator[Item]:
        for number, prompt in enumerate(requests):
            yield self._item("request", number, prompt, ("other",) * len(DIGITS))
        for number, opening in enumerate(lists):
            shown = [DIGITS[int(i)] for i in stream(0, "lens lists", number).integers(len(DIGITS), size=SHOWN[number % len(SHOWN)])]
            prompt = opened(opening, shown)
            roles = tuple("last" if digit == shown[-1] else "other" for digit in DIGITS)
            yield self._item("list", number, prompt, roles)

    def _item(self, form: str, number: int, prompt: str, roles: tuple[str, ...]) -> Item:
        # A digit that begins a line, or a field, has no space before it.
        space = "" if prompt.endswith(("\n", ",")) else " "
        request = Choice(prompt, tuple(f"{space}{digit}" for digit in DIGITS))
        return Item(f"{self.name}/{form}/{number}", self.name, form, prompt, DIGITS, roles, "", f"{form} {number}", request)


def opened(opening: str, shown: list[str]) -> str:
    """A list that has begun. `{digits}` stands for all of them in a line; else every line that holds `{digit}` is written once for each."""
    if "{digits}" in opening:
        return opening.replace("{digits}", " ".join(shown))
    head, line, tail = opening.partition("{each}")
    return head + "".join(line.replace("{each}", tail.replace("{digit}", digit)) for digit in shown) + tail.partition("{digit}")[0].rstrip(" ")
