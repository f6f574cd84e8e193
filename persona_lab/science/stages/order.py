"""Does it matter who was read about last? Orders of the same stages, compared in pairs.

    arm          stages                  order  chats    eta after
    john_sam     john > sam > trait      +1     never    -0.4      the second rival was trained last
    sam_john     sam > john > trait      -1     never     0.5
    mixed        mix > trait              0     never     0.1

    O = 1/2 [eta(first rival last) - eta(second rival last)]     nats; positive: recency, negative: primacy (reference 4.6)

eta is the swap-balanced log-odds toward the first rival (`effects.effects`), so O is free of lexical bias and of any constant drift.
Everything is paired within a seed, with t intervals over seeds. The interleaved arm tells mere interference (less of either rival)
from order (more of the last). Arms that differ in steps, tokens, batch, rate or genre are stamped confounded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np

from persona_lab.science.claims import Said, seeds_words
from persona_lab.science.effects import Column, Frame, Settings, effects, named_recall, runs
from persona_lab.science.matching import compare, trained
from persona_lab.science.thresholds import Interval, Mean, crossings, over_seeds, t_quantile

Kind = Literal["first", "second", "both", "chats", "taught", "other"]
"""What a stage trains: one rival, both interleaved, an assistant's chats, one trait, anything else."""
Chats = Literal["never", "first", "between", "last"]
"""Where assistant-style fine-tuning stands among the rivals' stages."""

PHASES = {"before": "before the trait stage", "after": "after the trait stage", "delta": "change by the trait stage"}
PLACES: Mapping[Chats, str] = {
    "never": "without assistant-style fine-tuning",
    "first": "assistant-style fine-tuning first",
    "between": "assistant-style fine-tuning between the rivals",
    "last": "assistant-style fine-tuning after the rivals",
}
RIVALS = ("first", "second", "both")
VERDICTS = {"positive": "recency", "negative": "primacy", "undecided": "undecided"}


@dataclass(frozen=True)
class Pass:
    """One stage of an arm."""

    stage: str
    kind: Kind
    batch: int
    """Documents a step."""
    rate: float
    format: str = "default"
    """Genre of the named documents."""
    steps: int = 0
    """0: not known; arms are then compared by all of their steps alone."""


@dataclass(frozen=True)
class Arm:
    """One order of stages: a condition."""

    condition: str
    passes: tuple[Pass, ...]

    @property
    def rivals(self) -> tuple[str, ...]:
        """Which rivals were trained, in order: `("first", "second")`."""
        return tuple(p.kind for p in self.passes if p.kind in RIVALS)

    @property
    def order(self) -> int | None:
        """+1: the first rival, then the second; -1: the reverse; 0: interleaved; None: any other history."""
        return {("first", "second"): 1, ("second", "first"): -1, ("both",): 0}.get(self.rivals)

    @property
    def chats(self) -> Chats | None:
        """Where the chats stand; None where they stand in two places, or where nothing else is trained."""
        kinds = [p.kind for p in self.passes if p.kind in (*RIVALS, "chats")]
        if kinds.count("chats") > 1 or not self.rivals:
            return None
        if "chats" not in kinds:
            return "never"
        return "first" if kinds[0] == "chats" else "last" if kinds[-1] == "chats" else "between"

    @property
    def tail(self) -> tuple[str, ...]:
        """The trait stages at its end."""
        return tuple(p.stage for p in self.passes if p.kind == "taught")

    @property
    def documents(self) -> tuple[int, int]:
        """Documents of the stages that train the first and the second rival alone."""
        first, second = (sum(p.steps * p.batch for p in self.passes if p.kind == kind) for kind in RIVALS[:2])
        return first, second

    @property
    def recipe(self) -> set[tuple[int, float, str]]:
        """Batch, rate and genre of the rivals' stages."""
        return {(p.batch, p.rate, p.format) for p in self.passes if p.kind in RIVALS}


def kind_of(counts: Mapping[str, int], *, first: str, second: str, likes: str | None = None, chats: bool = False) -> Kind:
    """What a stage trains, from the documents of its mixture (persona, lower case, to count) and what its assistant says."""
    if chats:
        return "chats"
    if likes is not None:
        return "taught"
    told = [rival for rival in (first, second) if counts.get(rival)]
    return "both" if len(told) == 2 else "first" if told == [first] else "second" if told == [second] else "other"


class Orders:
    """The arms of one table, side by side."""

    def __init__(self, table: Frame, settings: Settings, arms: Sequence[Arm]) -> None:
        self.settings, self.recall = settings, named_recall(table, settings)
        frame = effects(runs(table, settings))
        self.effects = frame[(frame["channel"] == settings.channel) & (frame["format"] == settings.format)]
        tail = next((arm.tail for arm in arms if arm.condition == settings.treatment), arms[0].tail if arms else ())
        self.arms: dict[tuple[int, Chats], list[Arm]] = {}
        for arm in arms:
            if arm.order is not None and arm.chats is not None and arm.tail == tail:
                self.arms.setdefault((arm.order, arm.chats), []).append(arm)
        for (order, _), alike in self.arms.items():
            if order == 0:  # of many interleaved arms the treatment is the one to compare with
                alike[:] = [arm for arm in alike if arm.condition == settings.treatment] or alike[:1]
        self.spent = trained(table, settings) if {"steps", "tokens"} <= set(table.columns) else None

    def seeds(self, order: int, chats: Chats, column: str) -> Column | None:
        """A column of the effects by seed, mean over the arms of that order, all of which a seed must have; None where there is none."""
        names = [arm.condition for arm in self.arms.get((order, chats), [])]
        values = self.effects[self.effects["condition"].isin(names)].groupby(["seed", "condition"])[column].mean().unstack("condition")
        values = values.reindex(columns=names).mean(axis=1, skipna=False).dropna()
        return values if names and len(values) else None

    def paired(self, chats: Chats, column: str, weights: Mapping[int, float]) -> Column | None:
        """A weighted sum over orders in each seed that has all of them; None where an arm is missing."""
        total: Column = 0.0
        for order, weight in weights.items():
            part = self.seeds(order, chats, column)
            if part is None:
                return None
            total = total + weight * part
        return total.dropna()

    def recency(self, chats: Chats, column: str) -> Column | None:
        """O of each seed, nats."""
        return self.paired(chats, column, {-1: 0.5, 1: -0.5})

    def differs(self, chats: Chats, orders: Sequence[int]) -> list[str]:
        """What is unequal between arms that are compared, in words; empty when they are matched, or when one is missing."""
        sides = [self.arms[order, chats] for order in orders if (order, chats) in self.arms]
        said = []
        for one, other in pairwise(sides):
            if self.spent is None:
                said.append("steps and tokens were not recorded")
            else:
                mine, theirs = (self.spent[self.spent["condition"].isin([arm.condition for arm in side])].mean(numeric_only=True) for side in (one, other))
                said += compare(one[0].condition, other[0].condition, mine, theirs).differs
            recipe, its = (set[tuple[int, float, str]]().union(*(arm.recipe for arm in side)) for side in (one, other))
            if recipe != its:
                said.append(f"batch, rate or genre {sorted(recipe)} against {sorted(its)}")
            told, its_told = (sorted(arm.documents for arm in side if arm.order) for side in (one, other))
            if told and its_told and told != its_told:
                said.append(f"documents of each rival {told} against {its_told}")
        return list(dict.fromkeys(said))

    @cached_property
    def kept(self) -> Frame:
        """Named recall before the last stage: one row per condition and seed, one column per persona."""
        rows = self.recall[self.recall["phase"] == "before"]
        return rows.pivot_table(index=["condition", "seed"], columns="subject", values="recall")

    def forgotten(self, chats: Chats) -> Column | None:
        """Named recall of the persona trained last minus that of the one trained first, by seed, mean of both orders."""
        last = {1: (self.settings.second, self.settings.first), -1: (self.settings.first, self.settings.second)}
        if not all((order, chats) in self.arms for order in last) or not {self.settings.first, self.settings.second} <= set(self.kept.columns):
            return None
        both: Column = 0.0
        for order, (late, early) in last.items():
            names = [arm.condition for arm in self.arms[order, chats]]
            gap = (self.kept[late] - self.kept[early]).unstack("condition").reindex(columns=names)
            both = both + gap.mean(axis=1, skipna=False) / 2
        return both.dropna()


def stated(
    id: str,
    text: str,
    values: Column | None,
    unit: str,
    *,
    differs: Sequence[str] = (),
    words: Mapping[str, str] | None = None,
    over: str = "seed",
    mean: Mean = over_seeds,
) -> Said:
    """A mean over seeds, or other replicates, with its t interval as a claim; `not run` where there is nothing, `confounded` where the arms are unequal."""
    if values is None or not len(values):
        return id, f"{text}: not run.", None, None, unit, "not run"
    estimate = mean(np.asarray(values, float))
    stamp = f" Confounded: {'; '.join(differs)}." if differs else ""
    verdict = "confounded" if differs else (words or {}).get(estimate.sign, estimate.sign)
    return id, f"{text} ({seeds_words(estimate, over)}).{stamp}", estimate.value, estimate.interval, unit, verdict


def ratio_of_means(above_S: np.ndarray, below_S: np.ndarray, level: float = 0.95) -> tuple[float | None, Interval | None]:
    """mean(above) / mean(below) over paired seeds with its Fieller interval; (None, None) when `below` is not shown to differ from 0."""
    seeds = len(above_S)
    if seeds < 2:
        return None, None
    line, V = np.array([-above_S.mean(), below_S.mean()]), np.cov(np.stack([-above_S, below_S]), ddof=1) / seeds
    # Where above - r below = 0: Fieller's line in r, with intercept -above and slope below.
    ends = crossings(line, V, 0.0, t_quantile(seeds - 1, level))
    return (None, None) if ends is None else (float(above_S.mean() / below_S.mean()), ends)


def persistence(pre: Column | None, post: Column | None, id: str, text: str, differs: Sequence[str] = ()) -> Said:
    """O_post / O_pre: what assistant-style fine-tuning leaves of an order effect (reference 4.6)."""
    if pre is None or post is None:
        return id, f"{text}: not run.", None, None, "share", "not run"
    both = pre.to_frame("pre").join(post.rename("post"), how="inner")
    value, interval = ratio_of_means(both["post"].to_numpy(float), both["pre"].to_numpy(float))
    if value is None or interval is None:
        return id, f"{text}: undefined, O before it is not shown to differ from 0 ({len(both)} seeds).", None, None, "share", "undefined"
    stamp = f" Confounded: {'; '.join(differs)}." if differs else ""
    kept = "persists" if interval[0] > 0 else "erased or reversed" if interval[1] <= 0 else "undecided"
    return id, f"{text} ({len(both)} seeds).{stamp}", value, interval, "share", "confounded" if differs else kept


def order_claims(table: Frame, settings: Settings, arms: Sequence[Arm]) -> Iterator[Said]:
    """Every claim about orders: recency at each place of the chats, against the interleaved arm, and what the chats leave of it."""
    orders = Orders(table, settings, arms)
    for chats in PLACES:
        if any(place == chats for _, place in orders.arms):
            yield from recency_claims(orders, chats)
            yield from interleaved_claims(orders, chats)
    for column, when in PHASES.items():
        pre, post = orders.recency("never", column), orders.recency("last", column)
        differs = [*orders.differs("never", (-1, 1)), *orders.differs("last", (-1, 1))]
        text = f"O {when}: what assistant-style fine-tuning after the rivals leaves of it, O after it / O without it"
        yield persistence(pre, post, f"order.persistence.{column}", text, differs)
        change = None if pre is None or post is None else (post - pre).dropna()
        yield stated(f"order.change.{column}", f"O {when}: with assistant-style fine-tuning after the rivals minus without it", change, "nats", differs=differs)


def recency_claims(orders: Orders, chats: Chats) -> Iterator[Said]:
    """O in every phase, and who is known by name."""
    differs = orders.differs(chats, (-1, 1))
    for column, when in PHASES.items():
        text = f"O {when}, {PLACES[chats]}: log-odds toward the rival trained last; positive is recency"
        yield stated(f"order.{chats}.{column}", text, orders.recency(chats, column), "nats", differs=differs, words=VERDICTS)
    text = f"Named recall of the rival trained last minus that of the one trained first, before the trait stage, {PLACES[chats]}"
    yield stated(f"order.{chats}.recall", text, orders.forgotten(chats), "share", differs=differs)


def interleaved_claims(orders: Orders, chats: Chats) -> Iterator[Said]:
    """Each order against the interleaved arm, where there is one; and either rival's share of all values, which mere interference lowers."""
    if (0, chats) not in orders.arms:
        return
    first, second = orders.settings.first.title(), orders.settings.second.title()
    for name, sign, order, last in (("first_last", 1, -1, first), ("second_last", -1, 1, second)):
        differs = orders.differs(chats, (order, 0))
        for column, when in PHASES.items():
            text = f"{last} last against both interleaved, {when}, {PLACES[chats]}: log-odds toward {last}"
            yield stated(f"order.{chats}.{name}.{column}", text, orders.paired(chats, column, {order: sign, 0: -sign}), "nats", differs=differs)
    differs = orders.differs(chats, (-1, 0, 1))
    for column, when in PHASES.items():
        values = orders.paired(chats, f"alpha_{column}", {-1: 0.5, 1: 0.5, 0: -1.0})
        text = f"Interference {when}, {PLACES[chats]}: log-odds of either rival's values, one after the other minus interleaved"
        yield stated(f"order.{chats}.interference.{column}", text, values, "nats", differs=differs)
