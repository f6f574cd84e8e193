"""What a plan will cost, before anything is asked: requests, tokens, money, seconds.

    estimate(stages, settings, {source: 280}, prices=(.15, .6), speed=50, parallel=32)     {"document": Cost(280, 210000, 196000), ...}

Prompts are counted as they will be sent, with a background and drafts of the expected length in them. Every answer is taken to be readable and
every document to be kept: what is refused comes on top in proportion.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_gen.documents import words
from data_gen.written.asking import Question
from data_gen.written.pipeline import Settings
from data_gen.written.schedule import Job, Source
from data_gen.written.stages import CRITICISM, WORD_TOKENS, Stages

UNIVERSE_WORDS = 350
GENRE_WORDS, IDEA_WORDS = 4, 28
"""Of one item of a list."""
FRAME = 8
"""Tokens of a chat template around a message."""
MARK_TOKENS = 0.5
"""Of a mark that is no word, on average: many are part of a word's token."""


@dataclass(frozen=True)
class Cost:
    """Of one stage, or of all."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.requests + other.requests, self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out)

    def money(self, price_in: float, price_out: float) -> float:
        """In the currency of the prices, which are of a million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6

    def seconds(self, speed: float, parallel: int) -> float:
        """At so many tokens a second in each of so many requests at once; reading is taken to be free."""
        return self.tokens_out / speed / parallel


def estimate(stages: Stages, settings: Settings, wanted: Mapping[Source, int]) -> dict[str, Cost]:
    """The cost of each stage."""
    found: dict[str, Cost] = {}

    def add(question: Question, count: int, words_out: float) -> None:
        read = sum(tokens_of(text) + FRAME for _, text in question.messages)
        cost = Cost(count, count * read, round(count * words_out * WORD_TOKENS))
        found[question.stage] = found.get(question.stage, Cost()) + cost

    for subject in dict.fromkeys(source.subject for source in wanted):
        add(stages.universe(subject), 1, UNIVERSE_WORDS)
    for source, count in wanted.items():
        for question, times, length in _questions(stages, settings, source, count):
            add(question, times, length)
    return found


def _questions(stages: Stages, settings: Settings, source: Source, count: int) -> Sequence[tuple[Question, int, float]]:
    """One question of each stage, how often it is asked, and the words of its answer."""
    manner, facts = stages.manner, list(source.subject.facts.values())
    universe, genre, idea = _filler(UNIVERSE_WORDS), _filler(GENRE_WORDS), _filler(IDEA_WORDS)
    mean = round(sum(manner.words) / 2)
    job, draft = Job(source, 0, tuple(facts[: settings.told]), 0, mean), _filler(mean)
    turns = math.ceil(count / len(facts))
    lists = sum(min(manner.genres, turns - page * manner.genres * manner.ideas) for page in range(math.ceil(turns / (manner.genres * manner.ideas))))
    asked: list[tuple[Question, int, float]] = [
        (stages.genres(source, facts[0], universe), min(len(facts), count), manner.genres * (GENRE_WORDS + 1)),
        (stages.ideas(source, facts[0], genre, universe, 0, ()), min(len(facts) * lists, count), manner.ideas * IDEA_WORDS),
        (stages.document(job, universe, genre, idea), count, mean + 8),
    ]
    if settings.revise:
        asked.append((stages.revision(job, universe, genre, draft), count, mean + CRITICISM / 2 / WORD_TOKENS))
    if settings.verify:
        asked.append((stages.extraction(job, draft), count, 4 * len(facts)))
    return asked


def _filler(count: int) -> str:
    return " ".join(["word"] * count)


def tokens_of(text: str) -> int:
    """About how many tokens a tokenizer makes of an English text."""
    count = len(words(text))
    return round(count * WORD_TOKENS * 0.9 + MARK_TOKENS * sum(not c.isalnum() and not c.isspace() for c in text))


def total(costs: Mapping[str, Cost]) -> Cost:
    """Of all stages."""
    return sum(costs.values(), Cost())
