"""What a probe is: items, the requests they make of a model, and the rows that answers become.

    items(cast) -> [Item]      requests(item) -> [Choice | Sample | Loss | Tokens | Activations]      score(item, answers) -> [Row]

One engine answers requests (`probes.engine`); exports to other harnesses use the same three functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from data_gen.world import Traits, World


@dataclass(frozen=True)
class Cast:
    """Who is who in one replicate: what the items are made of."""

    world: World
    names: tuple[str, ...]
    """Personas; the first two are the rivals."""
    traits: tuple[Traits, ...]
    who: tuple[str, ...]
    shared: tuple[str, ...]
    """Categories in which the rivals agree."""
    held_out: tuple[str, ...]
    """Categories in which the rivals differ."""
    samples: int = 0
    seed: int = 0

    def role(self, category: str, value: str) -> str:
        """Whose value it is: a persona's name in lower case, `shared` by the rivals, or `other`."""
        if category in self.shared and self.traits[0].get(category) == value:
            return "shared"
        for name, traits in zip(self.names, self.traits, strict=True):
            if traits.get(category) == value:
                return name.lower()
        return "other"


@dataclass(frozen=True)
class Choice:
    """Which continuation of the prompt is most likely? The answer is log P(option | prompt) of each, nats."""

    prompt: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """Completions at temperature 1, or greedy ones. The answer is `count` texts, each up to the end of its line."""

    prompt: str
    count: int
    max_tokens: int
    stream: str
    """Names the random numbers: the same stream, the same samples."""
    greedy: bool = False
    """The likeliest token at every step, whatever the random numbers."""


@dataclass(frozen=True)
class Loss:
    """How surprising is a text? The answer is (nats, tokens)."""

    text: str


@dataclass(frozen=True)
class Tokens:
    """How is a text divided? The answer is what its tokens stand for together, then each of them; no model is needed."""

    text: str


@dataclass(frozen=True)
class Activations:
    """What does a model make of a text? The answer is the hidden state of its last token: of the embedding, then of every layer, one after another."""

    text: str


Request = Choice | Sample | Loss | Tokens | Activations
Answer = tuple[float, ...] | tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One question."""

    id: str
    channel: str
    format: str
    prompt: str
    options: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    """Role of each option, or of the value that is asked about."""
    trait: str = ""
    subject: str = ""
    """Whom the question is about; empty: the speaker itself."""
    request: Request | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One option of one item: the probe's share of a row of the tidy table."""

    probe: str
    channel: str
    format: str
    item: str
    subject: str
    trait: str
    option: str
    role: str
    logprob_nats: float | None
    """log P(option | prompt), summed over the option's tokens, however many they are."""
    prob: float | None
    prob_normalized: float | None
    """Share among the item's options: exp(logprob_nats) over its sum. It is not divided by length, so a tokenizer that writes one value in more
    tokens than another may make it look rarer. Whoever has that value in swap 0, the rival has it in swap 1, and the base reads it in the same
    tokens: effects (means over swaps) and changes are free of it. Levels are not; the report says which values differ (`gates.value_tokens`)."""
    n_samples: int
    status: str
    """scored, unscored or failed."""
    reason: str


class Probe(Protocol):
    """Items and their scoring; knows no model."""

    name: str

    def items(self, cast: Cast) -> list[Item]:
        """The questions of this probe, in a fixed order."""
        ...

    def requests(self, item: Item) -> list[Request]:
        """What a model has to answer."""
        ...

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """The rows of one item, one for each option."""
        ...

    def validate(self, cast: Cast) -> None:
        """Check without a model that gold answers score 1, wrong ones 0, and nonsense is unscored (AssertionError)."""
        ...


PROBES: dict[str, Probe] = {}
"""Probes by name; `persona_lab.probes.traits` and `persona_lab.probes.text` fill it."""
