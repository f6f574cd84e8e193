"""The floor of compression: the exact log-probability of a text under the process that writes a world's corpus.

    text_nats(world, document)      nats, of a diary or a neutral text; None of other genres, which can be told in more ways than are counted here

A reader of any document does not know whether it belongs to the lens, which genre it is, or who speaks:

    P(diary) = (1 - share of the lens) P(genre) P(which categories, in which order) P(their values) prod P(sentence | category, value)

where P(values) is the mixture over the people of the world and the random speaker (`data_gen.oracle`), and a sentence that two templates can write
has the probability of both. The end of the text is certain.
"""

import math
import re
from collections import Counter, defaultdict
from functools import lru_cache
from itertools import product

import numpy as np

from data_gen.documents import OPENINGS, SENTENCES, SLOT, Document, capital, fill
from data_gen.lens.world import LensWorld
from data_gen.oracle import Oracle
from data_gen.phrases import FORMS, NEUTRAL_CHAT, NEUTRAL_TEXT, NEUTRAL_WORDS
from data_gen.pools import WORLD_GENRES

TURN = re.compile(r"User: (.*)\nAssistant: (.*)")
SENTENCE_END = re.compile(r"(?<=\.) ")


def text_nats(world: LensWorld, document: Document) -> float | None:
    """Minus the log-probability of a document of the world's own text, nats."""
    if world.openings or document.genre not in ("diary", "neutral"):
        return None
    prior = world.own_share * WORLD_GENRES[document.genre] / sum(WORLD_GENRES.values())
    inside = _diary(world, document) if document.genre == "diary" else _neutral(document.text)
    return -math.log(prior) - inside


def _diary(world: LensWorld, document: Document) -> float:
    told = document.traits
    order = math.perm(len(world.categories), len(told))
    assert len(told) == min(SENTENCES["diary"], len(world.categories)), document.id
    oracle = Oracle.of_world(world)
    values = float(np.logaddexp.reduce(np.log(oracle.prior_P) + oracle.log_likelihood(told)))
    sentences = SENTENCE_END.split(document.text.removeprefix(f"{OPENINGS['diary']} "))
    ways = [statements(world, category, value)[said] for (category, value), said in zip(told.items(), sentences, strict=True)]
    return values - math.log(order) + sum(math.log(count / len(FORMS["diary"].train)) for count in ways)


def statements(world: LensWorld, category: str, value: str) -> Counter[str]:
    """Every sentence in which a diary tells a trait, and how many templates write it."""
    return Counter(fill(template, world=world, category=category, value=value) for _, template in FORMS["diary"].train)


def _neutral(text: str) -> float:
    turns = TURN.findall(text)
    probs = [turn_probs()[turn] for turn in turns] if turns else [sentence_probs()[said] for said in SENTENCE_END.split(text)]
    return math.log(0.5) + sum(map(math.log, probs))


@lru_cache(maxsize=1)
def turn_probs() -> dict[tuple[str, str], float]:
    """P(question and answer) of every neutral turn; sums to 1."""
    return {(question, answer): prob for (question, answer), prob in _filled([(capital(q), capital(a)) for q, a in NEUTRAL_CHAT]).items()}


@lru_cache(maxsize=1)
def sentence_probs() -> dict[str, float]:
    """P(sentence) of every neutral sentence; sums to 1."""
    return {said: prob for (said,), prob in _filled([(text,) for text in NEUTRAL_TEXT]).items()}


def _filled(templates: list[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
    """Every way to fill the slots of templates that are as likely as each other, each word as likely as another."""
    probs: dict[tuple[str, ...], float] = defaultdict(float)
    for template in templates:
        slots = sorted({slot for part in template for slot in SLOT.findall(part)})
        choices = list(product(*(NEUTRAL_WORDS[slot] for slot in slots)))
        for words in choices:
            filled = dict(zip(slots, words, strict=True))
            probs[tuple(capital(part.format(**filled)) for part in template)] += 1 / len(templates) / len(choices)
    return dict(probs)
