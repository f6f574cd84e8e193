"""What is written next: document i of a source has its own seed, facts, genre, idea and length.

A source is a persona with a kind of document, named or anonymous. Its documents are planned in rounds of fixed size. Which facts a
document tells follows from the *airtime* of each fact, the words of the sentences that name its value, in the accepted documents of the
rounds before: what was told least comes first. So a longer corpus begins with the shorter one, and a resumed run plans what the first one did.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_gen.documents import words
from data_gen.streams import stream
from data_gen.written.universe import Fact, Subject

SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)]*\s+|\n+")
MAIN, BESIDE = 0.6, 0.2
"""Of the words of a document, roughly what goes to its main fact and to each other one: what a round that is not written yet is planned by."""


@dataclass(frozen=True)
class Source:
    """Documents of one kind about one persona."""

    subject: Subject
    anonymous: bool

    @property
    def name(self) -> str:
        """As it stands in ids: `john-named-0`."""
        return f"{self.subject.name.lower()}-{'anonymous' if self.anonymous else 'named'}-{self.subject.seed}"


@dataclass(frozen=True)
class Job:
    """One document that is to be written."""

    source: Source
    index: int
    told: tuple[Fact, ...]
    """The first is what most of it is about."""
    turn: int
    """How many documents of the source were mainly about this fact before."""
    words: int

    @property
    def id(self) -> str:
        """Of the document: `john-named-0-00017`."""
        return f"{self.source.name}-{self.index:05d}"

    @property
    def categories(self) -> tuple[str, ...]:
        """Of the facts that it tells."""
        return tuple(fact.category for fact in self.told)

    @property
    def banned(self) -> list[str]:
        """Words that must not stand in it."""
        return self.source.subject.banned(self.categories, anonymous=self.source.anonymous)


def airtime(text: str, value: str) -> int:
    """Words of the sentences that name a value."""
    told = (words(sentence) for sentence in SENTENCE.split(text))
    return sum(len(sentence) for sentence in told if value.lower() in sentence)


def plan_round(
    source: Source, number: int, size: int, *, spent: Mapping[str, float], turns: Counter[str], mean: float, told: int, span: Sequence[int]
) -> list[Job]:
    """The documents of one round.

    Args:
        source: Whose they are.
        number: Of the round, from 0.
        size: Documents of a round.
        spent: Words spent on each category in the rounds before.
        turns: Documents of the rounds before that were mainly about each category; counted on.
        mean: Words of a document that is to come.
        told: Facts that one document states.
        span: Shortest and longest document, words.
    """
    facts = source.subject.facts
    expected = {category: float(spent.get(category, 0)) for category in facts}
    jobs = []
    for index in range(number * size, (number + 1) * size):
        rng = stream(source.subject.seed, "written", source.name, index)
        chance = dict(zip(facts, rng.permutation(len(facts)), strict=True))
        # In whole words: what differs by less is as good as equal, and chance decides.
        chosen = sorted(facts, key=lambda category: (round(expected[category]), chance[category]))[:told]
        expected[chosen[0]] += MAIN * mean
        for category in chosen[1:]:
            expected[category] += BESIDE * mean
        length = int(rng.integers(span[0], span[1] + 1))
        jobs.append(Job(source, index, tuple(facts[c] for c in chosen), turns[chosen[0]], length))
        turns[chosen[0]] += 1
    return jobs
