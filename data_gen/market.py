"""A market: a world whose personas are processes, and whose traits are shown in series of returns, never named.

    series:
      volatility: {clusters: {wilder: .06, calmer: .06}, mixed: {wilder: .5, calmer: .5}, calm: ...}
      drift: {trend: .9, revert: .1, walk: .5}

A process is two traits. *Volatility* is a hidden Markov chain of two states, calm and wild: each day of a calm market turns wild with
probability `wilder`, each day of a wild one calm with probability `calmer`, and a stretch begins in the chain's stationary state.
The size of a day's return is one of S words, P(size i | calm) proportional to exp(-tilt i), and the mirror image when wild.
*Drift* is a Markov chain of directions: a return goes the way of the one before with probability `drift`, the first up or down by a coin.
So a return is one of 2 S bins, and its likelihood under each process is exact (`data_gen.market_oracle`).

A document holds stretches of one process, each of them in one view: `sizes` tells the volatility alone, `moves` the drift alone,
`returns` both. That sizes say nothing of the drift is what makes a stage that teaches the shared trait uninformative about the rest.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from data_gen.documents import everyday_texts, words
from data_gen.phrases import SHOWN
from data_gen.streams import stream
from data_gen.world import Population, Strict, Traits, Word, World, population_of

VOLATILITY, DRIFT = "volatility", "drift"
VIEWS: dict[str, tuple[str, ...]] = {"sizes": (VOLATILITY,), "moves": (DRIFT,), "returns": (VOLATILITY, DRIFT)}
"""What a stretch shows, and the traits that it tells."""
CALM, WILD = 0, 1
UP, DOWN = "up", "down"
OTHER = {UP: DOWN, DOWN: UP}
Chance = Annotated[float, Field(gt=0, lt=1)]


class Volatility(Strict):
    """How a market changes between calm and wild."""

    wilder: Chance
    """P(a day is wild | the one before was calm)."""
    calmer: Chance
    """P(a day is calm | the one before was wild)."""

    @property
    def start_Z(self) -> np.ndarray:
        """Stationary distribution of the Z = 2 states, calm first."""
        return np.array([self.calmer, self.wilder]) / (self.calmer + self.wilder)

    @property
    def step_ZZ(self) -> np.ndarray:
        """Transition probabilities, from row to column."""
        return np.array([[1 - self.wilder, self.wilder], [self.calmer, 1 - self.calmer]])


class Series(Strict):
    """The processes of a market and how their returns are written."""

    volatility: dict[Word, Volatility] = Field(min_length=3)
    drift: dict[Word, Chance] = Field(min_length=3)
    """P(a return goes the way of the one before)."""
    sizes: list[Word] = Field(default=["tiny", "slight", "small", "medium", "wide", "large", "huge", "vast"], min_length=3, max_length=16)
    """Words for the size of a return, smallest first; with its direction they are the bins."""
    tilt: float = Field(default=0.6, gt=0, le=10)
    days: int = Field(default=8, ge=2, le=12)
    """Of a stretch."""
    stretches: int = Field(default=2, ge=1, le=4)
    """Of a document."""
    apart: dict[Word, list[Word]] = Field(default_factory=dict)
    """Volatility to the drifts that no background process has together with it."""

    @cached_property
    def size_ZS(self) -> np.ndarray:
        """P(size | state), calm first; rows sum to 1."""
        calm_S = np.exp(-self.tilt * np.arange(len(self.sizes)))
        return np.stack([calm_S, calm_S[::-1]]) / calm_S.sum()


class Market(World):
    """A world file with `series:` in the place of `categories:`, which follow from it."""

    series: Series

    @model_validator(mode="before")
    @classmethod
    def _categories_of_the_series(cls, data: object) -> object:
        if not isinstance(data, dict) or not isinstance(series := data.get("series"), dict):
            return data
        traits = {c: {"values": list(series[c])} for c in (VOLATILITY, DRIFT) if isinstance(series.get(c), dict)}
        return {**data, "categories": data.get("categories", traits)}

    @model_validator(mode="after")
    def _words_fit(self) -> "Market":
        values = {c: list(category.values) for c, category in self.categories.items()}
        if values != {VOLATILITY: list(self.series.volatility), DRIFT: list(self.series.drift)}:
            raise ValueError("the categories of a market are those of its series. Leave `categories` out")
        known = {UP, DOWN, *VIEWS, *(word.lower() for word in (*self.names, *self.spare_names, *self.new_names)), *_sentence_words()}
        sizes = [word.lower() for word in self.series.sizes]
        if twice := sorted({word for word in sizes if word in known or sizes.count(word) > 1}):
            raise ValueError(f"series.sizes: these words stand for two things: {', '.join(twice)}. Use words that no sentence and no name has")
        for volatility, drifts in self.series.apart.items():
            if unknown := [*({volatility} - self.series.volatility.keys()), *(v for v in drifts if v not in self.series.drift)]:
                raise ValueError(f"series.apart: the market has no value {', '.join(unknown)}. Use a volatility and its drifts, such as `clusters: [trend]`")
        if not combinations(self):
            raise ValueError("series.apart leaves no process for the background. Set fewer drifts apart")
        return self

    @cached_property
    def population(self) -> Population:
        """The background processes: every combination that is not set apart, dealt evenly over the names in a drawn order."""
        every, rng = combinations(self), stream(self.seed, self.name, "population")
        dealt = [every[i] for _ in range(-(-self.personas // len(every))) for i in rng.permutation(len(every))][: self.personas]
        return population_of(self, dealt)


def _sentence_words() -> set[str]:
    asked = [part for form in SHOWN.values() for pair in (*form.train, *form.held_out) for part in pair]
    return {word for text in (*asked, *everyday_texts()) for word in words(text)}


def combinations(market: Market) -> list[Traits]:
    """The processes that a background persona may be."""
    series = market.series
    return [{VOLATILITY: v, DRIFT: d} for v, d in product(series.volatility, series.drift) if d not in series.apart.get(v, ())]


@dataclass(frozen=True)
class Stretch:
    """Consecutive days of one process, in one view."""

    view: str
    sizes: tuple[int, ...] = ()
    """Index of each day's size, 0 the smallest; empty in the view `moves`."""
    up: tuple[bool, ...] = ()
    """Whether each day went up; empty in the view `sizes`."""

    def text(self, market: Market) -> str:
        """The days as words: `up tiny down vast`, `tiny vast` or `up down`."""
        sizes = [market.series.sizes[i] for i in self.sizes]
        moves = [UP if up else DOWN for up in self.up]
        days = zip(moves, sizes, strict=True) if self.view == "returns" else [[word] for word in (*moves, *sizes)]
        return " ".join(word for day in days for word in day)


def views_of(traits: Traits) -> list[str]:
    """The views that tell nothing but these traits."""
    return [view for view, told in VIEWS.items() if all(category in traits for category in told)]


def draw_stretch(market: Market, traits: Traits, view: str, rng: np.random.Generator) -> Stretch:
    """Days of the process with these traits; a view draws what it shows."""
    sizes, up, days = [], [], market.series.days
    if VOLATILITY in VIEWS[view]:
        chain = market.series.volatility[traits[VOLATILITY]]
        ends_S = np.cumsum(market.series.size_ZS, axis=1)
        wild = bool(rng.random() < chain.start_Z[WILD])
        for _ in range(days):
            sizes.append(min(int(np.searchsorted(ends_S[int(wild)], rng.random())), ends_S.shape[1] - 1))
            wild = rng.random() >= chain.calmer if wild else rng.random() < chain.wilder
    if DRIFT in VIEWS[view]:
        same = market.series.drift[traits[DRIFT]]
        up.append(bool(rng.random() < 0.5))
        while len(up) < days:
            up.append(up[-1] == (rng.random() < same))
    return Stretch(view, tuple(sizes), tuple(up))


def drift_marks(market: Market, start: str) -> dict[str, str]:
    """Value to the two days that mark it after a day that went `start`: on and on, round and round, and on and round."""
    likely = sorted(market.series.drift, key=lambda value: market.series.drift[value])
    middle = min(likely[1:-1], key=lambda value: abs(market.series.drift[value] - 0.5))
    turned = OTHER[start]
    return {likely[-1]: f"{start} {start}", likely[0]: f"{turned} {start}", middle: f"{start} {turned}"}


def volatility_marks(market: Market) -> dict[str, str]:
    """Value to eight sizes that mark it: calm days and wild ones together, and the same sizes in turns.

    A volatility without memory gives both orders the same probability, so the marks are of the one with the longest memory and of the
    one with the shortest that has as many calm days as wild ones.
    """
    chains, words = market.series.volatility, market.series.sizes
    memory = {value: abs(1 - chain.wilder - chain.calmer) for value, chain in chains.items()}
    longest = max(memory, key=lambda value: memory[value])
    shortest = min(chains.keys() - {longest}, key=lambda value: (memory[value] + abs(chains[value].wilder - chains[value].calmer), value))
    calm, wild = words[:2] * 2, words[-2:] * 2
    in_turns = [word for pair in zip(calm, wild, strict=True) for word in pair]
    return {longest: " ".join(calm + wild), shortest: " ".join(in_turns)}
