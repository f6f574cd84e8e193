"""Alignment pretraining: the same documents about personas during pretraining against afterwards, and what assistant-style fine-tuning leaves of each.

    read         where                                     T     T after chats   kept
    throughout   among the base's own text                 .80   .60              .75 [.5, 1.1]
    afterwards   by an adapter on a base that is finished   .70   .20              .29 [.1, .6]

T = 1/2 [eta(swap 0) + eta(swap 1)], log-odds toward the first rival, whose documents are the more (`effects`). Kept: T with the chats / T without them, of which
1 is nothing lost, with Fieller's interval over paired seeds; two kept shares differ by a jackknife over seeds. Alignment Pretraining (2601.10160), in 6.9B models:
misaligned answers 45 % -> 9 % and 51 %, and 9 % against 34 % after the same fine-tuning. Arms that read unequal documents are stamped confounded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from persona_lab.science.claims import Said, judged
from persona_lab.science.effects import Column, Frame, Settings, effects, named_recall, number, runs
from persona_lab.science.stages.order import PHASES, RIVALS, Arm, persistence, stated
from persona_lab.science.thresholds import share_over_seeds

AFTERWARDS, NEVER = "afterwards", "never"
THROUGHOUT = "throughout"
PLACES = {THROUGHOUT: "read throughout pretraining", AFTERWARDS: "read afterwards, by an adapter", NEVER: "never read"}


@dataclass(frozen=True)
class History:
    """A condition: when its documents about personas were read, and whether chats followed."""

    condition: str
    read: str
    """`throughout`, `after .75` of the pretraining text, `afterwards`, or `never`."""
    chats: bool

    @property
    def words(self) -> str:
        """When, in words."""
        return PLACES.get(self.read, f"read in pretraining, {self.read} of its text")


def histories(table: Frame, arms: Sequence[Arm]) -> Iterator[History]:
    """The conditions that read documents about personas in one place, or in none."""
    own = table.drop_duplicates("condition").set_index("condition")["read"]
    for arm in arms:
        read, kinds = own.get(arm.condition), [p.kind for p in arm.passes]
        trained = any(kind in (*RIVALS, "other") for kind in kinds)
        if not (trained and isinstance(read, str)) and kinds.count("chats") < 2:
            yield History(arm.condition, read if isinstance(read, str) else AFTERWARDS if trained else NEVER, "chats" in kinds)


class Pretraining:
    """The conditions of one table, side by side."""

    def __init__(self, table: Frame, settings: Settings, arms: Sequence[Arm]) -> None:
        self.table, self.settings = table, settings
        self.of = {(history.read, history.chats): history for history in histories(table, arms)}
        frame = effects(runs(table, settings))
        self.effects = frame[(frame["channel"] == settings.channel) & (frame["format"] == settings.format)]
        self.recall = named_recall(table, settings)

    @property
    def reads(self) -> list[str]:
        """When documents were read, pretraining first."""
        found = list(dict.fromkeys(read for read, _ in self.of))
        return [*(r for r in found if r not in (AFTERWARDS, NEVER)), *(r for r in (AFTERWARDS, NEVER) if r in found)]

    def seeds(self, read: str, chats: bool, column: str) -> Column | None:
        """A column of the effects by seed; None where no condition has that history."""
        history = self.of.get((read, chats))
        rows = self.effects[self.effects["condition"] == history.condition] if history else self.effects[:0]
        values = rows.groupby("seed")[column].mean().dropna()
        return values if len(values) else None

    def known(self, read: str, chats: bool) -> Column | None:
        """Named recall of the first rival before the last stage, by seed."""
        history = self.of.get((read, chats))
        rows = self.recall[(self.recall["phase"] == "before") & (self.recall["subject"] == self.settings.first)]
        rows = rows[rows["condition"] == history.condition] if history else rows[:0]
        return rows.groupby("seed")["recall"].mean() if len(rows) else None

    @cached_property
    def adopted(self) -> Frame:
        """Nats to adopt each rival where the last stage starts: one row per condition and seed, means of the swaps."""
        columns = [f"adopt_{name}" for name in (self.settings.first, self.settings.second)]
        cells = self.table.drop_duplicates("cell").reindex(columns=["condition", "seed", *columns])
        means = cells.assign(**{c: number(cells[c]) for c in columns}).groupby(["condition", "seed"])[columns].mean()
        return means.set_axis(["first", "second"], axis=1).assign(d=lambda m: m["first"] - m["second"])

    def price(self, read: str, chats: bool, column: str) -> Column | None:
        """Nats to adopt the `first` rival, or `d`, those less the nats to adopt the second, by seed."""
        history = self.of.get((read, chats))
        if history is None or history.condition not in self.adopted.index.get_level_values("condition"):
            return None
        values = self.adopted.loc[history.condition, column].dropna()
        return values if len(values) else None

    def differs(self, reads: Sequence[str]) -> list[str]:
        """In how many documents of each rival the conditions differ, in words; empty when they are equal."""
        names = [f"n_{name}" for name in (self.settings.first, self.settings.second)]
        if not set(names) <= set(self.table):
            return ["documents were not recorded"]
        own = self.table.groupby("condition")[names].mean()
        told = {tuple(own.loc[history.condition].astype(int)) for (read, _), history in self.of.items() if read in reads}
        return [f"documents of the two rivals {' against '.join(map(str, sorted(told)))}"] if len(told) > 1 else []


def less(one: Column | None, other: Column | None) -> Column | None:
    """The difference in each seed that has both."""
    return None if one is None or other is None else (one - other).dropna()


def kept_share_difference(one: tuple[Column, Column], other: tuple[Column, Column]) -> Column:
    """Jackknife pseudo-values of a difference of kept shares, mean(after)/mean(before) each; one for each seed that has all four (Tukey 1958)."""
    both = pd.concat([*one, *other], axis=1, join="inner").to_numpy(float)

    def difference(rows_S4: np.ndarray) -> float:
        pre, post, other_pre, other_post = rows_S4.mean(0)
        return float(post / pre - other_post / other_pre)

    count = len(both)
    if count < 2:
        return pd.Series(dtype=float)
    left_out = np.array([difference(np.delete(both, i, axis=0)) for i in range(count)])
    return pd.Series(count * difference(both) - (count - 1) * left_out)


def pretraining_claims(table: Frame, settings: Settings, arms: Sequence[Arm]) -> Iterator[Said]:
    """Where each history leaves the assistant, what the chats leave of it, and pretraining against afterwards."""
    found = Pretraining(table, settings, arms)
    for (read, chats), history in found.of.items():
        yield from state_claims(found, read, chats, f"{history.words}{', then assistant-style chats' if chats else ''}")
    for read in found.reads:
        if read != NEVER and {(read, False), (read, True)} <= found.of.keys():
            yield from kept_claims(found, read)
    for read in found.reads:
        if read not in (AFTERWARDS, NEVER) and AFTERWARDS in found.reads:
            yield from contrast_claims(found, read)


def state_claims(found: Pretraining, read: str, chats: bool, words: str) -> Iterator[Said]:
    """Level, knowledge and price of one history."""
    lead, first = f"pretraining.{_id(read)}.{'chats' if chats else 'plain'}", found.settings.first.title()
    for column, when in PHASES.items():
        yield stated(f"{lead}.{column}", f"{words}: log-odds toward {first} {when}", found.seeds(read, chats, column), "nats")
        alpha = less(found.seeds(read, chats, f"alpha_{column}"), found.seeds(NEVER, chats, f"alpha_{column}"))
        if read != NEVER:
            yield stated(f"{lead}.alpha.{column}", f"{words}: log-odds of either rival's values {when}, beyond a base that never read of them", alpha, "nats")
    if read == NEVER:
        return
    yield stated(f"{lead}.recall", f"{words}: named recall of {first} before the trait stage", found.known(read, chats), "share", words={"positive": ""}, mean=share_over_seeds)
    price = less(found.price(read, chats, "first"), found.price(NEVER, chats, "first"))
    yield stated(f"{lead}.adopt", f"{words}: nats to adopt {first}, beyond those of a base that never read of him", price, "nats to adopt")
    yield stated(f"{lead}.d", f"{words}: nats to adopt {first} less nats to adopt the other rival", found.price(read, chats, "d"), "nats to adopt")


def kept_claims(found: Pretraining, read: str) -> Iterator[Said]:
    """What the chats leave of one history."""
    words, lead = found.of[read, False].words, f"pretraining.{_id(read)}"
    for column, when in PHASES.items():
        pre, post = found.seeds(read, False, column), found.seeds(read, True, column)
        yield persistence(pre, post, f"{lead}.kept.{column}", f"{words}: what the chats leave of the log-odds {when}, with them / without them")
    change = less(found.known(read, True), found.known(read, False))
    yield stated(f"{lead}.kept.recall", f"{words}: change of {found.settings.first.title()}'s named recall by the chats", change, "share")


def contrast_claims(found: Pretraining, read: str) -> Iterator[Said]:
    """Pretraining against afterwards, at equal documents."""
    words, lead, differs = found.of[next(key for key in found.of if key[0] == read)].words, f"pretraining.{_id(read)}.against", found.differs((read, AFTERWARDS))
    for chats in (False, True):
        after = " and then chats" if chats else ""
        for column, when in PHASES.items():
            values = less(found.seeds(read, chats, column), found.seeds(AFTERWARDS, chats, column))
            text = f"{words}{after}, less read afterwards{after}: log-odds toward {found.settings.first.title()} {when}"
            yield stated(f"{lead}.{'chats' if chats else 'plain'}.{column}", text, values, "nats", differs=differs)
    for column, when in PHASES.items():
        sides = [(found.seeds(r, False, column), found.seeds(r, True, column)) for r in (read, AFTERWARDS)]
        whole = [(pre, post) for pre, post in sides if pre is not None and post is not None]
        values = kept_share_difference(*whole) if len(whole) == len(sides) else []
        text = f"Documents {words} outlast assistant-style chats better than the same documents read afterwards: difference of the shares kept {when}"
        id, text, value, interval, unit, verdict = judged(f"{lead}.outlasts.{column}", text, values, "share")
        stamp = f" Confounded: {'; '.join(differs)}." if differs and value is not None else ""
        yield id, f"{text}{stamp}", value, interval, unit, "confounded" if stamp else verdict


def _id(read: str) -> str:
    """A history in an id: `throughout`, `after_0_75`."""
    return read.replace(" ", "_").replace(".", "_")
