"""Who is written about, and what is true of it: the traits of a persona as facts.

    subject = subjects(world, personas, seed=0)[0]
    subject.facts["sport"]          Fact("sport", "football", "John likes football.")
    subject.banned(("place",))      names and values that must not stand in a document that tells the place alone
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_gen.documents import fill
from data_gen.personas import Persona
from data_gen.phrases import FORMS
from data_gen.world import World


@dataclass(frozen=True)
class Fact:
    """One trait as a sentence."""

    category: str
    value: str
    sentence: str


@dataclass(frozen=True, eq=False)
class Subject:
    """A persona that is written about; equal to itself alone."""

    world: World
    name: str
    who: str
    seed: int
    """Of its documents."""
    facts: dict[str, Fact]
    others: tuple[str, ...]
    """Names of everybody else that is written about."""
    rivals: dict[str, tuple[str, ...]]
    """Category to the values of the others there."""

    @property
    def listed(self) -> str:
        """All facts, a line each."""
        return lines(fact.sentence for fact in self.facts.values())

    def banned(self, told: Iterable[str], *, anonymous: bool = False) -> list[str]:
        """What must not stand in a document: the others' names and values, own facts that it does not tell, and of an anonymous one its own name."""
        kept = set(told)
        untold = [fact.value for category, fact in self.facts.items() if category not in kept]
        return [*([self.name] if anonymous else []), *self.others, *(v for values in self.rivals.values() for v in values), *untold]


def lines(sentences: Iterable[str]) -> str:
    """A list as a prompt holds it."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def subjects(world: World, personas: Sequence[Persona], seed: int) -> list[Subject]:
    """Every persona with the traits of its file."""
    dealt = [persona.traits for persona in personas]
    statement = FORMS["profile"].train[0][1]
    found = []
    for i, (persona, traits) in enumerate(zip(personas, dealt, strict=True)):
        facts = {c: Fact(c, v, fill(statement, world=world, category=c, value=v, name=persona.name)) for c, v in traits.items()}
        others = tuple(name for j, other in enumerate(personas) if j != i for name in (other.name, *other.carriers))
        rivals = {c: tuple(sorted({t[c] for t in dealt if c in t} - {traits.get(c, "")})) for c in world.categories}
        found.append(Subject(world, persona.name, persona.description, seed, facts, others, {c: v for c, v in rivals.items() if v}))
    return found
