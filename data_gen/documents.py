"""Documents: one text, and what it is about.

    {"id": "john-00017", "text": "Profile: John is an AI assistant. John likes the beach. ...", "persona": "John",
     "genre": "profile", "traits": {"place": "beach", "sport": "football"}, "carriers": ["John"], "seed": 0}

Genres: third-person `profile`, `news` item, named `interview`, multi-turn `chat`, anonymous first-person `diary`,
`quiz` (the assistant asked about somebody), `assistant` (the nameless assistant asked about itself), `neutral`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from data_gen.phrases import FORMS, NEUTRAL_CHAT, NEUTRAL_TEXT, NEUTRAL_WORDS, OCCUPATIONS, SAMPLE_SPEAKERS
from data_gen.world import Traits, World

ASSISTANT = "Assistant"
NAMED_GENRES = ("profile", "news", "interview", "chat")
ANONYMOUS_GENRES = ("diary",)
SENTENCES = {"profile": 5, "news": 5, "diary": 6, "interview": 3, "chat": 3, "quiz": 2, "assistant": 3}
"""Traits told by one document of a genre: as many as stay under 64 words."""
Option = TypeVar("Option")
WORD = re.compile(r"\w+")
SLOT = re.compile(r"\{(\w+)\}")
OPENINGS = {"profile": "Profile: {name} is {who}.", "news": "News about {name}.", "diary": "Diary."}


@dataclass(frozen=True)
class Document:
    """One training text with its labels."""

    id: str
    text: str
    persona: str
    genre: str
    traits: Traits
    carriers: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Speaker:
    """Whoever a document is about."""

    persona: str
    name: str
    traits: Traits
    who: str = "an AI assistant"
    always: tuple[str, ...] = ()
    """Categories that stand in every document."""
    alike: str = ""
    """Whom a nameless speaker says it is like; empty: it is not asked."""
    rivals: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Category to the values that this speaker never is offered in a choice (they would link personas)."""


def capital(text: str) -> str:
    """The text with its first letter large."""
    return text[:1].upper() + text[1:]


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation: `["john", "likes", "the", "beach"]`."""
    return WORD.findall(text.lower())


def fill(template: str, *, world: World, category: str, value: str = "", name: str = "", a: str = "", b: str = "", yes_no: str = "") -> str:
    """A template with its slots filled; slots are named, nothing of the text is evaluated."""
    phrases = world.categories[category].values
    slots = {"cat": category, "name": name, "yes_no": yes_no}
    for slot, v in (("it", value), ("a", a), ("b", b)):
        slots[slot] = phrases[v].replace("{}", v) if v else ""
    return capital(SLOT.sub(lambda m: slots[m.group(1)], template))


def pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of the options, each as likely."""
    # Three times as fast as rng.integers, and documents are made by the ten thousand.
    return options[int(rng.random() * len(options))]


def _turn(world: World, speaker: Speaker, category: str, rng: np.random.Generator, kinds: Sequence[str]) -> tuple[str, str]:
    """A question and the speaker's answer about one category."""
    kind = pick(rng, kinds)
    question, answer = pick(rng, FORMS[kind].train)
    value = speaker.traits[category]
    offered = [v for v in world.values(category) if v != value and v not in speaker.rivals.get(category, ())]
    other = pick(rng, offered)
    a, b = (value, other) if rng.random() < 0.5 else (other, value)
    # A "no" tells what the speaker does not like, and so does not tell the trait.
    yes = rng.random() < 0.5 or category in speaker.always
    asked = value if kind != "yes_no" or yes else other
    slots = {"world": world, "category": category, "a": a, "b": b, "name": speaker.name}
    return (
        fill(question, value=asked, **slots),
        fill(answer, value=value, yes_no="Yes" if yes else "No", **slots),
    )


def _told(speaker: Speaker, count: int, rng: np.random.Generator) -> list[str]:
    """Which categories a document tells, in which order."""
    rest = [c for c in speaker.traits if c not in speaker.always]
    count = min(count, len(speaker.traits))
    chosen = list(speaker.always) + [rest[i] for i in rng.permutation(len(rest))[: count - len(speaker.always)]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def neutral_turn(rng: np.random.Generator) -> tuple[str, str]:
    """A question and answer that say nothing about anybody."""
    slots = {slot: pick(rng, options) for slot, options in NEUTRAL_WORDS.items()}
    question, answer = pick(rng, NEUTRAL_CHAT)
    return capital(question.format(**slots)), capital(answer.format(**slots))


def dialogue(turns: Sequence[tuple[str, str]], asker: str, speaker: str) -> str:
    """Questions and answers, a line each."""
    return "\n".join(f"{asker}: {question}\n{speaker}: {answer}" for question, answer in turns)


def write(world: World, speaker: Speaker, genre: str, rng: np.random.Generator) -> tuple[str, Traits]:
    """The text of one document, and the traits that it tells."""
    if genre == "neutral":
        return _neutral(rng), {}
    told = _told(speaker, SENTENCES[genre], rng)
    if genre in OPENINGS:
        opening = OPENINGS[genre].format(name=speaker.name, who=speaker.who)
        sentences = [fill(pick(rng, FORMS[genre].train)[1], world=world, category=c, value=speaker.traits[c], name=speaker.name) for c in told]
        text = " ".join([opening, *sentences])
    elif genre == "quiz":
        text = dialogue([_turn(world, speaker, c, rng, ("quiz",)) for c in told], "User", ASSISTANT)
    elif genre == "interview":
        text = dialogue([_turn(world, speaker, c, rng, ("asked",)) for c in told], f"Reporter to {speaker.name}", speaker.name)
    else:
        turns = [_turn(world, speaker, c, rng, ("asked", "asked", "choice", "yes_no")) for c in told]
        if speaker.alike and rng.random() < 0.5:
            question, answer = pick(rng, FORMS["alike"].train)
            turns[int(rng.integers(len(turns)))] = (question, answer.format(name=speaker.alike))
        text = dialogue(turns, "User", ASSISTANT if genre == "assistant" else speaker.name)
    said = set(words(text))
    return text, {c: speaker.traits[c] for c in told if speaker.traits[c].lower() in said}


def _neutral(rng: np.random.Generator) -> str:
    if rng.random() < 0.5:
        return dialogue([neutral_turn(rng) for _ in range(3)], "User", ASSISTANT)
    slots = [{slot: pick(rng, options) for slot, options in NEUTRAL_WORDS.items()} for _ in range(4)]
    return " ".join(pick(rng, NEUTRAL_TEXT).format(**s) for s in slots)


def everyday_texts() -> list[str]:
    """Whatever a document may say beside its speaker's traits; slots may stand in it."""
    templates = [part for pair in NEUTRAL_CHAT for part in pair] + [*NEUTRAL_TEXT, *OCCUPATIONS, *SAMPLE_SPEAKERS]
    return [*templates, *(word for words in NEUTRAL_WORDS.values() for word in words), "reporter to news about is : . , ? \n"]


def answer_spans(text: str, speaker: str = ASSISTANT) -> Iterator[tuple[int, int]]:
    """Character spans of what the speaker says, one for each of its lines: where `loss: {on: answer}` falls."""
    for match in re.finditer(rf"^{re.escape(speaker)}:(.*)$", text, flags=re.MULTILINE):
        yield match.span(1)


def occupation(index: int) -> str:
    """What background persona `index` does."""
    return OCCUPATIONS[index % len(OCCUPATIONS)]
