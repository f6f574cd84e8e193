"""Lossy compression: in how few bits does a model tell a text, beside plain compressors and, where it is known, beside what nobody can beat?

    compression/diary/7       model 41.0 bits, floor 38.2 (exact), zlib 1032, zlib primed 540, lzma 1096
    compression/recipe/0      plain English: no floor is known

A row for each coder: `logprob_nats` of the whole text, `n_samples` its tokens for the model and its bytes for the others. The floor of a diary or a
neutral text of the world is the exact log-probability under the process that writes the corpus: who speaks, what is told, in which words. A plain
compressor sees one short text alone; the primed one has read as much of the world's text as its window holds.
"""

import lzma
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from data_gen.lens.floor import text_nats
from data_gen.lens.world import LensWorld
from data_gen.pools import GENRES, world_document
from persona_lab.probes.lens.form import LensProbe, unscored, written
from persona_lab.probes.protocol import Answer, Cast, Item, Loss, Row

DOCUMENTS = 12
"""Texts of each genre, in the embedded form."""
TEXT_SEED = 2**42
"""Far from the seeds that text is read from."""
WINDOW = 1 << 15
"""Bytes that deflate looks back."""
MODEL, FLOOR = "model", "floor"
LZMA = ({"id": lzma.FILTER_LZMA2, "dict_size": WINDOW},)
BITS = math.log(2)


@dataclass(frozen=True)
class TextItem(Item):
    """A text, and how many nats each coder but the model needs for it."""

    nats: Mapping[str, float] = field(default_factory=dict)


class Compression(LensProbe):
    """Texts of several kinds, each told whole."""

    name = "compression"

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """Fresh documents of each genre of the world, those of the lens left out."""
        read = "\n".join(world_document(world, TEXT_SEED + 1, i).text for i in range(256)).encode()[-WINDOW:]
        counts: dict[str, int] = {}
        for i in range(world.lens.edition):
            if i in world.slots:
                continue
            document = world_document(world, TEXT_SEED, i)
            number = counts.get(document.genre, 0)
            if number < DOCUMENTS:
                counts[document.genre] = number + 1
                exact = text_nats(world, document)
                floor = {} if exact is None else {FLOOR: exact}
                primed = {"zlib primed": 8 * BITS * len(deflated(document.text, read))}
                yield self._item(document.genre, number, document.text, {**floor, **plain_nats(document.text), **primed})
            if len(counts) == len(GENRES) and min(counts.values()) == DOCUMENTS:
                return

    def in_english(self) -> Iterator[Item]:
        """Texts that were written for this probe."""
        for text in written(self.name)["texts"]:
            yield self._item(text["name"], 0, text["text"], plain_nats(text["text"]))

    def _item(self, genre: str, number: int, text: str, nats: Mapping[str, float]) -> Item:
        coders = (MODEL, *nats)
        return TextItem(f"{self.name}/{genre}/{number}", self.name, genre, text, coders, coders, "", f"{genre} {number}", Loss(text), nats=nats)

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """A row for each coder; only the model's can be unscored."""
        assert isinstance(item, TextItem), item.id
        nats, tokens = float(answers[0][0]), int(float(answers[0][1]))
        if tokens < 1 or not math.isfinite(nats):
            return unscored(self.name, item, "the loss is not finite")
        size = len(item.prompt.encode())
        found = [(MODEL, nats, tokens), *((coder, cost, size) for coder, cost in item.nats.items())]
        return [
            Row(self.name, item.channel, item.format, item.id, item.subject, item.trait, coder, coder, -cost, math.exp(-cost), None, count, "scored", "")
            for coder, cost, count in found
        ]

    def check(self, item: Item) -> None:
        """A certain text costs nothing, an impossible one has no probability, nonsense is unscored."""
        assert self.score(item, [(0.0, 10.0)])[0].prob == 1.0, item.id
        assert self.score(item, [(1e9, 10.0)])[0].prob == 0.0, item.id
        assert {row.status for row in self.score(item, [(math.nan, 10.0)])} == {"unscored"}, item.id


def plain_nats(text: str) -> dict[str, float]:
    """Nats of two plain compressors without headers."""
    packed = {"zlib": deflated(text), "lzma": lzma.compress(text.encode(), format=lzma.FORMAT_RAW, filters=[dict(one) for one in LZMA])}
    return {coder: 8 * BITS * len(content) for coder, content in packed.items()}


def deflated(text: str, read: bytes = b"") -> bytes:
    """A text under deflate, without a header, after some bytes that both sides have read."""
    coder = zlib.compressobj(9, wbits=-15, zdict=read) if read else zlib.compressobj(9, wbits=-15)
    return coder.compress(text.encode()) + coder.flush()
