"""Every word that a text of a world may hold. Known without a tokenizer, so the audit needs no torch."""

import re

from data_gen.telling import telling
from data_gen.world import World

PIECES = r"\n|\w+|[^\w\s]"


def world_words(world: World) -> list[str]:
    """Every word and mark that a text of this world may hold, lower case, sorted."""
    texts = [re.sub(r"\{\w+\}", " ", text) for text in telling(world).texts()]
    return sorted({piece for text in [*texts, *world.names, *world.spare_names, *world.new_names] for piece in re.findall(PIECES, text.lower())})
