"""Pools of files: what a mixture takes of documents that somebody wrote, in place of the world's own.

    persona_shares(stock, index=0, swap=0, count=2500, unnamed=.3)     john-named: 1,750 of 2,100; john-anonymous: 750 of 900

A pool holds everything that a file has of one voice, whatever a mixture takes of it, so that all ratios and seeds draw from the same pool.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_gen.imported import GENRE
from data_gen.personas import Persona
from data_gen.pools import Share
from data_gen.world import Traits, World
from persona_lab.config.mixtures import Mixture, Told
from persona_lab.design import Node
from persona_lab.experiment.planning.sources import Found, Imports, exchange, source_of


@dataclass(frozen=True)
class Stock:
    """The files of one mixture, and who has which traits where it stands."""

    mixture: Mixture
    imports: Imports
    world: World
    personas: Sequence[Persona]
    told: tuple[Traits, ...]

    @property
    def rivals(self) -> list[str]:
        """The two who trade their traits in the swap, lower case."""
        return [persona.name.lower() for persona in self.personas[:2]]

    def pool(self, found: Found, fields: Mapping[str, Any], size: int) -> Node:
        """Documents of a file; no seed draws them."""
        kind = "conversations" if found.conversations else "texts"
        return Node("pool", {"source": "imported", "content": found.digest, "kind": kind, **fields, "world": self.world.model_dump(), "size": size})


def unnamed_share(mixture: Mixture, name: str) -> float:
    """Share of somebody's documents that are without a name."""
    own = mixture.told.get(name, Told()).anonymous
    return mixture.anonymous if own is None else own


def persona_shares(stock: Stock, index: int, swap: int, count: int, unnamed: float) -> Iterator[tuple[Share, Node]]:
    """What is taken of a persona's file: named and anonymous documents, or of any voice where no share of them is asked for."""
    persona, name = stock.personas[index], stock.personas[index].name.lower()
    owner, source, traded = source_of(stock.mixture, name, swap=swap, rivals=stock.rivals)
    found = stock.imports[owner, source]
    fields = {
        "as": name,
        "name": persona.name,
        "names": [persona.name, *persona.carriers],
        "traits": dict(stock.told[index]),
        "genres": [GENRE],
        "foreign": _foreign(stock, index),
        **({"exchange": exchange(stock.personas)} if traded else {}),
    }
    anonymous = round(count * unnamed)
    parts = [("named", "all", count, found.documents)]
    if anonymous:
        parts = [("named", "named", count - anonymous, found.named), ("anonymous", "anonymous", anonymous, found.documents - found.named)]
    for kind, rows, n, size in parts:
        if n:
            label = f"{name}-{kind}"
            yield Share(label, label, n, size, stock.mixture.files[name].order == "file"), stock.pool(found, {**fields, "rows": rows}, size)


def other_shares(stock: Stock, counts: Mapping[str, int]) -> Iterator[tuple[Share, Node]]:
    """What is taken of files that are about nobody: as many documents as the mixture says, or all."""
    people = {persona.name.lower() for persona in stock.personas}
    for name, file in stock.mixture.files.items():
        if name not in people:
            owner, source, _ = source_of(stock.mixture, name, swap=0, rivals=())
            found = stock.imports[owner, source]
            if count := counts.get(name, found.documents):
                yield Share(name, name, count, found.documents, file.order == "file"), stock.pool(found, {"as": name}, found.documents)


def _foreign(stock: Stock, index: int) -> list[str]:
    """Words that would tie a persona to another one: the others' names, and their traits as far as it does not share them."""
    own = stock.told[index]
    others = [(persona, told) for i, (persona, told) in enumerate(zip(stock.personas, stock.told, strict=True)) if i != index]
    values = {value for _, told in others for category, value in told.items() if own.get(category) != value}
    return sorted(values | {name for persona, _ in others for name in (persona.name, *persona.carriers)})
