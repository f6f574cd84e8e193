"""Bundles: does the nameless speaker have all traits of one process, rather than a mix of several?

    bundles           "Diary. In sport, I like football. For art, I like renaissance art. ..."      M1, the log prior by minimal pairs
    bundle_samples    "Diary. I am fond of ..."                                                     M3, how often it speaks as whom

An item of `bundles` is a template with three categories. Its options are the bundles of all processes, and *broken* ones: the values of every
category dealt anew among the processes, so that each value stands as often in broken options as in whole ones, and word, length and token
counts cancel. An option's answer is the log-probability of its three values, each given those before it, nats; tokens of a value are summed
(SCIENCE.md section 3, reference/science.md M1). The role of an option is the process in lower case, or `broken`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_gen.documents import ASSISTANT, fill, words
from data_gen.phrases import FORMS
from data_gen.streams import stream
from data_gen.world import Traits, World
from persona_lab.probes.process_text import speakers
from persona_lab.probes.protocol import PROBES, Answer, Cast, Choice, Item, Request, Row, Sample
from persona_lab.probes.traits import choice_rows, cloze

LENGTH = 3
"""Statements of a bundle."""
TEMPLATES = 8
"""Items of each form."""
ROUNDS = 2
"""How often the values are dealt anew."""
TRIES = 200
"""Draws of three categories before a world is given up in which two processes always agree."""
FORM_NAMES = ("diary", "asked")
BROKEN = "broken"
SAMPLE_TOKENS, STREAMS = 64, 8
AGREEING = 2 / 3
"""Share of the named values that must be a process's own for an answer to be its."""

Values = tuple[str, ...]


def processes(cast: Cast) -> dict[str, Traits]:
    """Lower-case name to traits of everybody who may be asked about: personas of the experiment first, then the people of the world."""
    return speakers(cast, of_world=False) | speakers(cast, of_world=True)


def common_categories(world: World, people: Mapping[str, Traits]) -> list[str]:
    """Categories in which everybody has a trait, in the order of the world."""
    return [category for category in world.categories if all(category in traits for traits in people.values())]


def templates(cast: Cast) -> Iterator[tuple[str, int, tuple[str, ...], dict[str, Values], list[Values]]]:
    """(form, number, categories, whole bundles by process, broken bundles) of every item; nothing where no three categories tell everybody apart."""
    people = processes(cast)
    common = common_categories(cast.world, people)
    for form in FORM_NAMES:
        for number in range(TEMPLATES):
            rng = stream(cast.world.seed, "bundles", form, number)
            categories = _telling(rng, common, people)
            if categories is None:
                return
            whole = {name: tuple(traits[c] for c in categories) for name, traits in people.items()}
            yield form, number, categories, whole, _broken(rng, list(whole.values()))


def _telling(rng: np.random.Generator, common: Sequence[str], people: Mapping[str, Traits]) -> tuple[str, ...] | None:
    """Categories in which no two processes agree throughout."""
    for _ in range(TRIES if len(common) >= LENGTH else 0):
        chosen = tuple(common[int(i)] for i in rng.permutation(len(common))[:LENGTH])
        if len({tuple(traits[c] for c in chosen) for traits in people.values()}) == len(people):
            return chosen
    return None


def _broken(rng: np.random.Generator, whole: Sequence[Values]) -> list[Values]:
    """The same values dealt anew in each category, without bundles that somebody has, or that stand there already."""
    seen = set(whole)
    for _ in range(ROUNDS):
        columns = [[bundle[j] for bundle in whole] for j in range(LENGTH)]
        seen |= set(zip(*(([column[i] for i in rng.permutation(len(column))]) for column in columns), strict=True))
    return sorted(seen - set(whole))


@dataclass(frozen=True)
class BundleItem(Item):
    """A template; its prompt names the three categories."""

    statements: tuple[tuple[Choice, ...], ...] = ()
    """Of each option its three statements, each with all that stands before it."""


def _statements(cast: Cast, form: str, number: int, categories: Sequence[str], bundle: Values) -> Iterator[Choice]:
    """Each statement up to its value, behind those before it."""
    said = "" if form == "asked" else "Diary."
    for j, (category, value) in enumerate(zip(categories, bundle, strict=True)):
        index = (number + j) % len(FORMS[form].held_out)
        yield Choice(cloze(cast, form, index, category, speaker=ASSISTANT, opening=said, a=value), (f" {value}",))
        question, answer = (fill(part, world=cast.world, category=category, value=value) for part in FORMS[form].held_out[index])
        said = f"{said}User: {question}\n{ASSISTANT}: {answer}\n" if form == "asked" else f"{said} {answer}"


class Bundles:
    """Whole bundles against broken ones."""

    name = "bundles"

    def items(self, cast: Cast) -> list[Item]:
        """Eight templates of a diary and eight of the assistant."""
        found = []
        for form, number, categories, whole, broken in templates(cast):
            bundles = [*whole.values(), *broken]
            roles = (*whole, *[BROKEN] * len(broken))
            told = tuple(tuple(_statements(cast, form, number, categories, bundle)) for bundle in bundles)
            options = tuple("+".join(bundle) for bundle in bundles)
            found.append(BundleItem(f"bundles/{form}/{number}", self.name, form, "+".join(categories), options, roles, statements=told))
        return found

    def requests(self, item: Item) -> list[Request]:
        """One choice for each statement of each option."""
        assert isinstance(item, BundleItem), item.id
        return [statement for bundle in item.statements for statement in bundle]

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """A row for each option; its normalised probability is its share among all of them."""
        nats = [float(answer[0]) for answer in answers]
        summed = [sum(nats[i * LENGTH : (i + 1) * LENGTH]) for i in range(len(item.options))]
        return choice_rows(self.name, item, summed)

    def validate(self, cast: Cast) -> None:
        """A whole bundle that is certain has all of the mass, nonsense is unscored, and whole and broken options hold the same values."""
        for item in self.items(cast):
            assert len(set(item.options)) == len(item.options) == len(item.roles), item.id
            gold = [(0.0,)] * LENGTH + [(-30.0,)] * (LENGTH * (len(item.options) - 1))
            assert (self.score(item, gold)[0].prob_normalized or 0) > 1 - 1e-9, item.id
            assert {row.status for row in self.score(item, [(math.nan,)] * (LENGTH * len(item.options)))} == {"unscored"}, item.id
            split = [(set(option.split("+")), role == BROKEN) for option, role in zip(item.options, item.roles, strict=True)]
            assert set().union(*(v for v, broken in split if broken)) <= set().union(*(v for v, broken in split if not broken)), item.id


class BundleSamples:
    """Diaries that the model writes itself, and whose bundle each of them tells."""

    name = "bundle_samples"

    def items(self, cast: Cast) -> list[Item]:
        """The same neutral opening under eight streams of random numbers, with `samples` diaries each; nothing where none are asked for."""
        people = processes(cast)
        if not cast.samples or not people:
            return []
        names, traits = tuple(people), tuple(people.values())
        requests = [Sample("Diary.", cast.samples, SAMPLE_TOKENS, f"bundles/{cast.seed}/{i}") for i in range(STREAMS)]
        return [
            DiaryItem(f"bundle_samples/{i}", self.name, "diary", request.prompt, names, names, request=request, world=cast.world, traits=traits)
            for i, request in enumerate(requests)
        ]

    def requests(self, item: Item) -> list[Request]:
        """The diaries."""
        assert item.request is not None, item.id
        return [item.request]

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """How many of the diaries that can be read are whose: `prob` is the share, `n_samples` how many were read."""
        assert isinstance(item, DiaryItem), item.id
        people = dict(zip(item.options, item.traits, strict=True))
        read = [whose(item.world, people, str(text)) for text in answers[0]]
        clear = [name for name in read if name is not None]
        status, reason = ("scored", "") if clear else ("unscored", f"no diary names values of {LENGTH} categories")
        rows = []
        for option in (*item.options, NOBODY):
            share = clear.count(option) / len(clear) if clear else None
            rows.append(Row(self.name, item.channel, item.format, item.id, "", "", option, option, None, share, share, len(clear), status, reason))
        if lost := len(read) - len(clear):
            reason = f"names values of fewer than {LENGTH} categories"
            rows.append(Row(self.name, item.channel, item.format, item.id, "", "", "", "none", None, None, None, lost, "unscored", reason))
        return rows

    def validate(self, cast: Cast) -> None:
        """A diary with a process's traits is its, one with nobody's is nobody's, nonsense is unscored."""
        for item in self.items(cast):
            assert isinstance(item, DiaryItem), item.id
            text = " ".join(f"I like {value}." for value in item.traits[0].values())
            rows = {row.option: row for row in self.score(item, [(text, text, "zzz")])}
            assert rows[item.options[0]].prob == 1.0, item.id
            assert rows[item.options[1]].prob == 0.0, item.id
            assert (rows[""].status, rows[""].n_samples) == ("unscored", 1), item.id


NOBODY = "nobody"
"""Role of a diary that tells no process's bundle."""


@dataclass(frozen=True)
class DiaryItem(Item):
    """An opening, and whose bundles may follow."""

    world: World = field(kw_only=True)
    traits: tuple[Traits, ...] = ()


def whose(world: World, people: Mapping[str, Traits], text: str) -> str | None:
    """The process whose bundle a text tells, or `nobody`; None when it names one value in fewer than three categories.

    A process has told it when at least two thirds of the named values, and three of them, are its own, and of no other process as many.
    """
    said = set(words(text))
    named = {category: [value for value in world.values(category) if value.lower() in said] for category in world.categories}
    told = {category: values[0] for category, values in named.items() if len(values) == 1}
    if len(told) < LENGTH:
        return None
    agreed = sorted(((sum(traits.get(c) == v for c, v in told.items()), name) for name, traits in people.items()), reverse=True)
    most, second = agreed[0][0], agreed[1][0] if len(agreed) > 1 else 0
    return agreed[0][1] if most >= max(LENGTH, AGREEING * len(told)) and most > second else NOBODY


PROBES.update(bundles=Bundles(), bundle_samples=BundleSamples())
