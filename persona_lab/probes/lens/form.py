"""What a probe of the base-model lens is: an ordinary probe in two forms, for the embedded world and for real models.

    class Riddles(LensProbe):
        name, right = "riddles", ("known", "stated")
        def of_world(self, world, cast): ...         made from the texts of a world with `lens:`
        def in_english(self): ...                    made from items/riddles.yaml, plain English of our own

The world decides: a model is asked about what a world with `lens:` has written, and in plain English where its world has no `lens:`. Whatever
is asked, `format` names the condition, `subject` the text or question that several items share (what an interval resamples), `trait` a level of
it, and a role says what an option is. `science.lens` has the pure function that reads these rows, under the same name.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import yaml

from data_gen.lens.world import LensWorld
from persona_lab.probes.protocol import Answer, Cast, Choice, Item, Request, Row, Sample
from persona_lab.probes.traits import choice_rows


def written(name: str) -> Any:
    """The content of `items/NAME.yaml`: plain values."""
    return yaml.safe_load(files("persona_lab.probes.lens").joinpath("items", f"{name}.yaml").read_text(encoding="utf-8"))


class LensProbe(ABC):
    """Choices by log-probability, in two forms. A probe that asks something else says so in `requests`, `score` and `check`."""

    name: str
    right: tuple[str, ...] = ()
    """Roles of which one option of each item has one: the answer that scores 1 when it is given."""

    @abstractmethod
    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """The items about a world with `lens:`."""

    @abstractmethod
    def in_english(self) -> Iterator[Item]:
        """The items for a model that has read what people write."""

    def items(self, cast: Cast) -> list[Item]:
        """The questions, in a fixed order."""
        return list(self.of_world(cast.world, cast) if isinstance(cast.world, LensWorld) else self.in_english())

    def requests(self, item: Item) -> list[Request]:
        """A choice among the options, unless the item asks something else."""
        return [item.request or Choice(item.prompt, tuple(f" {option}" for option in item.options))]

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """One row for each option, with raw and normalised probability."""
        return choice_rows(self.name, item, [float(nats) for nats in answers[0]])

    def validate(self, cast: Cast) -> None:
        """Gold answers score 1, wrong ones 0, nonsense is unscored."""
        items = self.items(cast)
        assert items
        assert len({item.id for item in items}) == len(items), "an id stands twice"
        for item in items:
            assert item.channel == self.name, item.id
            assert len(item.options) == len(item.roles), item.id
            assert all(isinstance(option, str) for option in item.options), item.id
            self.check(item)

    def check(self, item: Item) -> None:
        """What `validate` asserts of one item."""
        assert len(set(item.options)) == len(item.options) > 1, item.id
        assert not isinstance(item.request, Sample), item.id
        gold = next((i for i, role in enumerate(item.roles) if role in self.right), 0)
        assert not self.right or item.roles[gold] in self.right, item.id
        rows = self.score(item, [tuple(0.0 if i == gold else -60.0 for i in range(len(item.options)))])
        assert [round(row.prob_normalized or 0.0, 9) for row in rows] == [float(i == gold) for i in range(len(rows))], item.id
        assert {row.status for row in self.score(item, [(math.nan,) * len(item.options)])} == {"unscored"}, item.id


def unscored(probe: str, item: Item, reason: str) -> list[Row]:
    """A row for every option, that says why it has no score."""
    return [
        Row(probe, item.channel, item.format, item.id, item.subject, item.trait, option, role, None, None, None, 0, "unscored", reason)
        for option, role in zip(item.options, item.roles, strict=True)
    ]
