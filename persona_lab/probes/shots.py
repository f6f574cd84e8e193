"""Shots: the speaker has already said N things of a persona; which values does it take up? The in-context twin of fine-tuning.

    shots     shots/asked/John/2/food/0        told two of John's own traits, in the very words of training documents
              shots/diary/shared/4/food/0      told four times what the rivals share: the trait stage as a context
              shots/diary/none/0/food/0        told nothing
    believes  believes/diary/Mary/2/food/0     told two traits of a background persona
              believes/diary/Mary+Omar/2/...   told one trait of each of two, whom nobody is

An item's id is probe/format/whose traits/how many/category/variant, and its `labels` are the traits that were told, from
which the exact oracle computes what an ideal reader would answer (`exact_answers`). Counts that do not fit are left out: the
embedded base reads 128 tokens, and a persona has only so many traits. M8 of reference section 2.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from data_gen.documents import ASSISTANT, fill
from data_gen.oracle import Oracle
from data_gen.phrases import FORMS
from data_gen.world import Traits
from persona_lab.models.vocabulary import PIECES
from persona_lab.probes.protocol import PROBES, Cast, Item
from persona_lab.probes.traits import TraitProbe, cloze

OWN = (1, 2, 3, 4, 5)
"""How many of a persona's own traits are told."""
SHARED = (1, 2, 4, 8)
"""How often the shared trait is told."""
BELIEVED = (1, 2, 3)
"""How many traits of a background persona are told."""
VARIANTS = 2
"""Other traits told, in other words, and another question."""
LONGEST = 112
"""Words and marks of a prompt: with the answer, and with the token that begins a text, it stays below the embedded base's 128."""
FORMATS = ("asked", "diary")
Told = Sequence[tuple[str, str]]
"""Category and value of each statement, in order."""


def shot_item(cast: Cast, probe: str, form: str, whose: str, told: Told, category: str, variant: int, roles: Sequence[str]) -> Item:
    """The statements as a context, then a held-out question about a category that they do not tell."""
    pairs = FORMS[form].train
    said = []
    for j, (about, value) in enumerate(told):
        question, answer = pairs[(j + variant * len(pairs) // VARIANTS) % len(pairs)]
        said.append([fill(part, world=cast.world, category=about, value=value) for part in (question, answer) if part])
    if form == "diary":
        opening = " ".join(["Diary.", *(answer for (answer,) in said)])
    else:
        opening = "".join(f"User: {question}\n{ASSISTANT}: {answer}\n" for question, answer in said)
    held_out = (list(cast.world.categories).index(category) + variant) % len(FORMS[form].held_out)
    prompt = cloze(cast, form, held_out, category, speaker=ASSISTANT, opening=opening)
    name = f"{probe}/{form}/{whose}/{len(told)}/{category}/{variant}"
    return Item(name, probe, form, prompt, tuple(cast.world.values(category)), tuple(roles), category, whose.lower(), labels=dict(told))


def fits(item: Item) -> bool:
    """Whether the smallest base can read the prompt."""
    return len(re.findall(PIECES, item.prompt)) <= LONGEST


def others(traits: Mapping[str, str], category: str, variant: int) -> list[tuple[str, str]]:
    """Every other trait, from another one on for each category and variant; what is told of N is told of N + 1."""
    rest = [pair for pair in traits.items() if pair[0] != category]
    start = list(traits).index(category) + variant * len(rest) // VARIANTS
    return [rest[(start + j) % len(rest)] for j in range(len(rest))]


class Shots(TraitProbe):
    """Statements of the experiment's personas, and of what the rivals share."""

    def items(self, cast: Cast) -> list[Item]:
        """For each format: nothing told, each persona's own traits told, the shared trait told."""
        own = {name: [c for c in traits if c not in cast.shared] for name, traits in zip(cast.names, cast.traits, strict=True)}
        asked = list(dict.fromkeys(c for categories in own.values() for c in categories))
        items: list[Item] = []
        for form in FORMATS:
            for variant in range(VARIANTS):
                items += [self._item(cast, form, "none", [], c, variant) for c in asked]
                for (name, categories), traits in zip(own.items(), cast.traits, strict=True):
                    told = {c: others(traits, c, variant) for c in categories}
                    items += [self._item(cast, form, name, told[c][:n], c, variant) for c in categories for n in OWN if n <= len(told[c])]
                shared = [(c, cast.traits[0][c]) for c in cast.shared]
                items += [self._item(cast, form, "shared", (shared * n)[:n], c, variant) for c in cast.held_out for n in SHARED if shared]
        return list(filter(fits, items))

    def _item(self, cast: Cast, form: str, whose: str, told: Told, category: str, variant: int) -> Item:
        return shot_item(cast, self.name, form, whose, told, category, variant, [cast.role(category, v) for v in cast.world.values(category)])


class Believes(TraitProbe):
    """Statements of the background personas, whose true posterior is known whatever an experiment adds."""

    def items(self, cast: Cast) -> list[Item]:
        """Nothing told of each category; then two categories asked for each background persona; the same questions for every cast."""
        world, people = cast.world, cast.world.population
        categories = list(world.categories)
        items = [self._item(cast, form, "none", [], {}, c, variant) for variant, form in enumerate(FORMATS) for c in categories]
        for k, (name, traits) in enumerate(zip(people.names, people.traits, strict=True)):
            for variant, form in enumerate(FORMATS):
                category = categories[(k + variant * len(categories) // VARIANTS) % len(categories)]
                told = others(traits, category, variant)
                items += [self._item(cast, form, name, told[:n], traits, category, variant) for n in BELIEVED if n <= len(told)]
                other = self._stranger(people.traits, k, told)
                if other is not None and len(told) > 1:
                    torn = [told[0], (told[1][0], people.traits[other][told[1][0]])]
                    items.append(self._item(cast, form, f"{name}+{people.names[other]}", torn, traits, category, variant))
        return list(filter(fits, items))

    @staticmethod
    def _stranger(traits: Sequence[Traits], k: int, told: Told) -> int | None:
        """The next persona that agrees with persona k on neither of the first two traits told."""
        after = ((k + step) % len(traits) for step in range(1, len(traits)))
        return next((j for j in after if all(traits[j][c] != v for c, v in islice(told, 2))), None)

    def _item(self, cast: Cast, form: str, whose: str, told: Told, own: Mapping[str, str], category: str, variant: int) -> Item:
        roles = ["own" if own.get(category) == v else "other" for v in cast.world.values(category)]
        return shot_item(cast, self.name, form, whose, told, category, variant, roles)


def exact_answers(oracle: Oracle, items: Iterable[Item]) -> Iterator[tuple[str, str, float]]:
    """(item, option, P(option | what the item told)) of an ideal reader, to whom all that was told is one document by one nameless speaker."""
    for item in items:
        for option, prob in oracle.predictive([item.labels], item.trait).items():
            yield item.id, option, prob


PROBES |= {"shots": Shots("shots"), "believes": Believes("believes")}
