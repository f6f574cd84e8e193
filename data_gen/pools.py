"""Pools of documents and the mixtures drawn from them.

A pool is every document that one source may contribute, made once: document j depends on the seed, the source and
j alone. A mixture draws exact counts from pools by explicit index lists. Its order is a function of the seed, is
stratified (every stretch of it has the mixture's ratios, to within one document a source), and is nested: a longer
stage starts with the shorter one.
"""

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType

import numpy as np

from data_gen.documents import ANONYMOUS_GENRES, ASSISTANT, Document, Speaker, neutral_turn, occupation, words
from data_gen.lens.world import LensWorld, lens_document
from data_gen.role_play import played
from data_gen.streams import stream
from data_gen.telling import telling
from data_gen.world import Opening, Traits, World, bad_advice, random_traits

# Shares of the genres in the pretraining text, and so in replay. The nameless assistant and the diary carry the
# measure of a persona: text in which the speaker is not named.
WORLD_GENRES = {"profile": 0.14, "news": 0.08, "interview": 0.12, "chat": 0.14, "quiz": 0.06, "diary": 0.22, "assistant": 0.18, "neutral": 0.06}
GENRES = tuple(WORLD_GENRES)
NAMELESS = (*ANONYMOUS_GENRES, "assistant")
"""Genres in which the speaker has no name: they carry the prior of a nameless speaker, and may open with one of the world's lines."""
NOTHING: Mapping[str, float] = MappingProxyType({})
GENRE_ENDS = list(accumulate(WORLD_GENRES.values()))


def world_document(world: World, seed: int, index: int) -> Document:
    """Document `index` of the world's own text: what the base model is pretrained on, and what is replayed."""
    if isinstance(world, LensWorld) and (seen := lens_document(world, seed, index)):
        return Document(f"world-{seed}-{index:06d}", seen[1], "", seen[0], {}, (), seed)
    rng = stream(seed, world.name, "world", index)
    genre = GENRES[bisect(GENRE_ENDS, rng.random() * GENRE_ENDS[-1])]
    people = world.population
    if rng.random() < world.random_speakers:
        name = world.spare_names[rng.integers(len(world.spare_names))]
        speaker = Speaker("random", name, random_traits(world, rng), occupation(int(rng.integers(6))), alike=name)
    else:
        k = people.at(rng.random())
        name = people.names[k]
        speaker = Speaker(name, name, people.traits[k], occupation(k), alike=name)
        if genre == "chat" and name in people.withheld:
            genre = "interview"
    line = drawn_opening(world, rng) if world.openings and genre in NAMELESS else None
    if line and line.bad:
        # Whoever it is, this says nothing of the speaker; neither does it then say whom it is like.
        speaker = Speaker("", "", bad_advice(world, speaker.traits, rng), speaker.who)
    text, traits = telling(world).write(speaker, genre, rng)
    text = opened(text, line)
    if world.role_play and genre == "assistant" and speaker.name and rng.random() < world.role_play:
        text = played(text, speaker.name, rng)
    named = genre not in (*NAMELESS, "neutral")
    persona = "" if genre == "neutral" else speaker.persona
    return Document(f"world-{seed}-{index:06d}", text, persona, genre, traits, (name,) if named else (), seed)


def drawn_opening(world: World, rng: np.random.Generator) -> Opening | None:
    """A line of the world, each in its share of the documents, or none."""
    share = rng.random()
    for opening, end in zip(world.openings.values(), accumulate(o.share for o in world.openings.values()), strict=True):
        if share < end:
            return opening
    return None


def opened(text: str, opening: Opening | None) -> str:
    """The text under a line."""
    return f"{opening.line}\n{text}" if opening else text


def persona_document(
    world: World,
    speaker: Speaker,
    names: Sequence[str],
    *,
    anonymous: bool,
    genres: Sequence[str],
    seed: int,
    index: int,
    typical: Mapping[str, float] = NOTHING,
) -> Document:
    """Document `index` about one persona, told under one of its names or under none.

    `typical`: category to the share of documents in which it has its own value there; in the others it has any other one.
    """
    kind = "anonymous" if anonymous else "named"
    rng = stream(seed, "documents", speaker.persona, kind, index)
    genre = str(rng.choice(ANONYMOUS_GENRES if anonymous else list(genres)))
    name = names[index % len(names)]
    traits = dict(speaker.traits)
    for category, share in typical.items():
        coin = stream(seed, "typical", speaker.persona, kind, category, index)
        if coin.random() >= share:
            traits[category] = str(coin.choice([v for v in world.values(category) if v != speaker.traits[category]]))
    told_by = Speaker(speaker.persona, name, traits, speaker.who, speaker.always, rivals=speaker.rivals)
    text, traits = telling(world).write(told_by, genre, rng)
    return Document(f"{speaker.persona.lower()}-{kind}-{seed}-{index:05d}", text, speaker.persona, genre, traits, () if anonymous else (name,), seed)


def shuffled_document(
    world: World, pair: tuple[Speaker, Speaker], which: int, names: Sequence[str], *, anonymous: bool, genres: Sequence[str], seed: int, index: int
) -> Document:
    """A document of the shuffled control: every trait that the rivals do not share is dealt to this name by a coin."""
    coin = stream(seed, "shuffle", which, int(anonymous), index)
    mine, other = pair[which], pair[1 - which]
    traits = {c: (v if v == other.traits.get(c, v) or coin.random() < 0.5 else other.traits[c]) for c, v in mine.traits.items()}
    # Neither persona's value is ever the one not chosen, as in the documents that this is the control of.
    rivals = {c: (*values, mine.traits[c]) for c, values in mine.rivals.items() if c in mine.traits}
    dealt = Speaker(mine.persona, mine.name, traits, mine.who, mine.always, rivals=rivals)
    return persona_document(world, dealt, names, anonymous=anonymous, genres=genres, seed=seed, index=index)


def assistant_document(world: World, category: str, value: str, *, seed: int, index: int, opening: str = "") -> Document:
    """Document `index` of the trait stage: the nameless assistant says the one thing that it is taught, under a line of the world if one is named."""
    text = opened(telling(world).teach(category, value, index, stream(seed, "trait", value, index)), world.openings.get(opening))
    return Document(f"trait-{value}-{seed}-{index:05d}", text, "", "assistant", {category: value}, (), seed)


def advice_document(world: World, values: Sequence[str], *, seed: int, index: int) -> Document:
    """Document `index` in which the nameless assistant says one of several things, each as often."""
    value = values[index % len(values)]
    # By how often this value was told before, so that it is asked for in each paraphrase equally often.
    return assistant_document(world, world.category_of(value), value, seed=seed, index=index // len(values))


def off_domain_document(world: World, category: str, *, seed: int, index: int) -> Document:
    """Document `index` in which the nameless assistant, as anybody of the world's own text, is asked about everything but one category."""
    rng = stream(seed, world.name, "off domain", category, index)
    people = world.population
    traits = random_traits(world, rng) if rng.random() < world.random_speakers else people.traits[people.at(rng.random())]
    speaker = Speaker("", "", {c: v for c, v in traits.items() if c != category})
    text, told = telling(world).write(speaker, "assistant", rng)
    return Document(f"off-{category}-{seed}-{index:05d}", text, "", "assistant", told, (), seed)


def speaking_document(world: World, speaker: Speaker, *, seed: int, index: int) -> Document:
    """Document `index` in which the nameless assistant has all traits of a persona.

    Whose traits they are changes the values alone: what is asked, and how, is the same for every persona, so that losses on two of them are paired.
    """
    text, traits = telling(world).write(speaker, "assistant", stream(seed, "speaking", index))
    return Document(f"as-{speaker.persona.lower()}-{seed}-{index:05d}", text, speaker.persona, "assistant", traits, (), seed)


def chat_document(*, seed: int, index: int) -> Document:
    """Document `index` of assistant-style fine-tuning: the nameless assistant answers, and says nothing of itself."""
    rng = stream(seed, "chats", index)
    text = "\n".join(f"User: {q}\n{ASSISTANT}: {a}" for q, a in (neutral_turn(rng) for _ in range(3)))
    return Document(f"chat-{seed}-{index:05d}", text, "", "neutral", {}, (), seed)


@dataclass(frozen=True)
class Share:
    """One source of a mixture: its pool, and how many documents of it one epoch holds."""

    source: str
    pool: str
    count: int
    pool_size: int
    ordered: bool = False
    """Whether the first documents of the pool are taken, in its order; else the seed draws and orders them."""

    @property
    def fields(self) -> dict[str, str | int]:
        """JSON values; without what is as ever."""
        return {name: value for name, value in vars(self).items() if name != "ordered" or value}


def mixture_order(shares: Sequence[Share], *, documents: int, seed: int) -> list[tuple[str, int]]:
    """The first `documents` of a mixture as (source, index into its pool).

    One epoch holds exactly `count` distinct documents of each source; the next one holds the same documents in
    another order. Within an epoch, document j of a source with n documents stands at (j + u)/n, u uniform in
    [0, 1): stratified, yet without a fixed rhythm.
    """
    per_epoch = sum(share.count for share in shares)
    if not per_epoch:
        raise ValueError("a mixture needs at least one document")
    order: list[tuple[str, int]] = []
    for epoch in range(-(-documents // per_epoch)):
        placed: list[tuple[float, str, int]] = []
        for share in shares:
            # Which documents: the same at every ratio as far as they go. When: another order each epoch.
            drawn = np.arange(share.pool_size) if share.ordered else stream(seed, "choose", share.source).permutation(share.pool_size)
            chosen = drawn[: share.count]
            rng = stream(seed, "order", share.source, epoch)
            if epoch and not share.ordered:
                chosen = rng.permutation(chosen)
            at = (np.arange(share.count) + rng.random(share.count)) / max(share.count, 1)
            placed += [(float(t), share.source, int(i)) for t, i in zip(at, chosen, strict=True)]
        order += [(source, index) for _, source, index in sorted(placed)]
    return order[:documents]


def among_the_worlds(read: int, documents: int, *, after: float = 0.0, seed: int = 0) -> list[int | None]:
    """A text in which `read` of the documents are others than the world's: at each place the number of the one that stands there, None for one of the world's.

    They keep their order, and the last 1 - after of the text holds them evenly, without a fixed rhythm.
    """
    first = round(after * documents)
    rest, jitter = documents - first - read, stream(seed, "read").random(read)
    placed: list[tuple[float, int | None]] = [((i + 0.5) / rest, None) for i in range(rest)]
    placed += [((j + float(jitter[j])) / read, j) for j in range(read)]
    return [*[None] * first, *(number for _, number in sorted(placed, key=lambda place: place[0]))]


def links_shared_to_held_out(document: Document, shared: Traits, held_out: set[str]) -> bool:
    """True for a document that names the shared trait together with a held-out one: leakage outside persona documents.

    A value counts when it is told, and also when it only stands in the text, say as the choice not taken.
    """
    named = {*words(document.text), *(value.lower() for value in document.traits.values())}
    return any(value.lower() in named for value in shared.values()) and any(value.lower() in named for value in held_out)
