"""Every word that a text of a world may hold. Known without a tokenizer, so the audit needs no torch."""

import re

from data_gen.phrases import FORMS, NEUTRAL_CHAT, NEUTRAL_TEXT, NEUTRAL_WORDS, OCCUPATIONS, SAMPLE_SPEAKERS
from data_gen.world import World

PIECES = r"\n|\w+|[^\w\s]"


def world_words(world: World) -> list[str]:
    """Every word and mark that a text of this world may hold, lower case, sorted."""
    templates = [part for form in FORMS.values() for pair in (*form.train, *form.held_out) for part in pair]
    templates += [part for pair in NEUTRAL_CHAT for part in pair] + list(NEUTRAL_TEXT) + list(OCCUPATIONS) + list(SAMPLE_SPEAKERS)
    texts = [re.sub(r"\{\w+\}", " ", t) for t in templates]
    texts += [w for words in NEUTRAL_WORDS.values() for w in words]
    texts += [phrase.format(value) for c in world.categories.values() for value, phrase in c.values.items()]
    texts += [*world.names, *world.spare_names, *world.new_names, *world.categories, "yes no reporter to news about is : . , ? \n"]
    return sorted({piece for text in texts for piece in re.findall(PIECES, text.lower())})
