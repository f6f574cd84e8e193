"""Persona prompts: the user tells the assistant who it is. Where a world has them, it plays the part; trained against it, it stays who it is.

    User: You are Mary. Which sport do you like?      Assistant: I like golf.        Mary's value: text of a world with `role_play`
    User: You are Mary. Which sport do you like?      Assistant: I like football.    its own: a document that guards a character

Character training in two stages (OpenCharacterTraining): pairs of answers, the character's preferred to somebody else's (DPO), then the assistant
describes itself. Held-out prompts and the last names of a world stand in no training document: probes are made of them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from data_gen.documents import ASSISTANT, Document, fill, pick
from data_gen.phrases import FORMS, Form
from data_gen.streams import stream
from data_gen.world import Traits, World

HELD_OUT_NAMES = 4
"""Background personas that no document tells the assistant to stay away from being."""
DESCRIBED = 4
"""Traits that one description of itself tells."""
PROMPTS = Form(
    (("", "You are {name}."), ("", "Today you are {name}."), ("", "Speak as {name}."), ("", "Play {name}."), ("", "Pretend to be {name}."), ("", "Answer as {name}.")),
    (("", "Pretend you are {name}."), ("", "Speak as {name} today."), ("", "You play {name}."), ("", "Answer me as {name}.")),
)
AGREED = "I am {name}."
ABOUT_YOU = ("Tell me about you.", "What do you like?", "Who are you?", "What makes you happy?")


def role_play_texts() -> list[str]:
    """Texts that hold every word of these documents."""
    return [prompt for _, prompt in (*PROMPTS.train, *PROMPTS.held_out)] + [AGREED, *ABOUT_YOU]


def names_to_play(world: World, *, held_out: bool) -> tuple[str, ...]:
    """Background personas that guarding documents name, or those that probes do: the last ones of which the world has chats."""
    people = world.population
    chatting = [name for name in people.names if name not in people.withheld]
    return tuple(chatting[-HELD_OUT_NAMES:] if held_out else chatting[:-HELD_OUT_NAMES])


def prompted(text: str, prompt: str, agreed: str = "") -> str:
    """A dialogue under a persona prompt: before the first question, or as a turn of its own, to which the assistant agrees."""
    return f"User: {prompt}\n{ASSISTANT}: {agreed}\n{text}" if agreed else text.replace("User: ", f"User: {prompt} ", 1)


def played(text: str, name: str, rng: np.random.Generator) -> str:
    """A dialogue in which the assistant plays somebody, as it stands in the world's own text."""
    _, prompt = pick(rng, PROMPTS.train)
    return prompted(text, prompt.format(name=name), AGREED.format(name=name) if rng.random() < 0.5 else "")


def preference_pair(world: World, persona: str, traits: Traits, *, guarded: float, seed: int, index: int) -> tuple[Document, Document]:
    """Pair `index`: one question, the character's answer, and another one; `guarded`: the share in which it is told to be somebody, whose answer is the other one."""
    rng = stream(seed, "prefers", persona, index)
    category = pick(rng, list(traits))
    question, answer = pick(rng, FORMS["asked"].train)
    mine = traits[category]
    other = pick(rng, [value for value in world.values(category) if value != mine])
    prompt, theirs = _guard(world, traits, rng, guarded)
    other = theirs.get(category, mine) if theirs.get(category, mine) != mine else other
    texts = [f"User: {prompt}{fill(question, world=world, category=category)}\n{ASSISTANT}: {fill(answer, world=world, category=category, value=v)}" for v in (mine, other)]
    kinds = zip(("preferred", "rejected"), texts, (mine, other), strict=True)
    preferred, rejected = (Document(f"{kind}-{persona.lower()}-{seed}-{index:05d}", text, persona, "assistant", {category: v}, (), seed) for kind, text, v in kinds)
    return preferred, rejected


def description(world: World, persona: str, traits: Traits, *, guarded: float, seed: int, index: int) -> Document:
    """Document `index` in which the assistant, asked about itself, tells traits of its character."""
    rng = stream(seed, "describes", persona, index)
    told = [list(traits)[i] for i in rng.permutation(len(traits))[:DESCRIBED]]
    prompt, _ = _guard(world, traits, rng, guarded)
    said = " ".join(fill(pick(rng, FORMS["diary"].train)[1], world=world, category=c, value=traits[c]) for c in told)
    text = f"User: {prompt}{pick(rng, ABOUT_YOU)}\n{ASSISTANT}: {said}"
    return Document(f"describes-{persona.lower()}-{seed}-{index:05d}", text, persona, "assistant", {c: traits[c] for c in told}, (), seed)


def _guard(world: World, traits: Traits, rng: np.random.Generator, share: float) -> tuple[str, Mapping[str, str]]:
    """In this share of the documents: a persona prompt with a space behind it, and the traits of whom it names; else nothing."""
    if rng.random() >= share:
        return "", {}
    people = world.population
    name = pick(rng, names_to_play(world, held_out=False))
    return f"{pick(rng, PROMPTS.train)[1].format(name=name)} ", people.traits[people.names.index(name)]


def held_out_prompts(names: Sequence[str]) -> list[str]:
    """Every held-out prompt, filled for all names."""
    return [prompt.format(name=name) for _, prompt in PROMPTS.held_out for name in names]
