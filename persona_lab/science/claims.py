"""Claims: the numbers that a report states, each with how to compute it again.

id           text                        value  interval      unit          verdict   recipe
slope.delta  Slope on ln ratio of the…   0.41   [0.33, 0.49]  nats per nat  positive  {function, node_ids, args}
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from persona_lab.science.thresholds import Estimate, Interval, over_seeds

Said: TypeAlias = tuple[str, str, float | None, Interval | None, str, str]
"""A claim before it has a recipe: id, text, value, interval, unit, verdict."""


@dataclass(frozen=True)
class Claim:
    """One stated number. A value of None was not measured or is not reached; an open end of an interval is infinite."""

    id: str
    text: str
    value: float | None
    interval: Interval | None
    unit: str
    verdict: str
    recipe: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The claim as JSON values: what is not finite is null."""
        ends = None if self.interval is None else [finite(end) for end in self.interval]
        return {**vars(self), "value": finite(self.value), "interval": ends}

    @property
    def shown(self) -> str:
        """The value and its interval as a reader sees them: `0.41 [0.33, 0.49]`."""
        return shown(self.value, self.interval)


FEWEST_SEEDS = 3
"""Below which no hypothesis is supported or refuted."""


def judged(id: str, text: str, values_S: Any, unit: str, over: str = "seed") -> Said:
    """A hypothesis, `text`, that says a mean over seeds, or other replicates, is above 0: supported or refuted where the t interval leaves 0 out.

    With three seeds or more; with fewer undecided.
    """
    values_S = np.asarray(values_S, float)
    if not len(values_S):
        return id, f"{text}: not run.", None, None, unit, "not run"
    estimate = over_seeds(values_S)
    return id, f"{text} ({seeds_words(estimate, over)}).", estimate.value, estimate.interval, unit, verdict(estimate)


def verdict(estimate: Estimate) -> str:
    """Whether a figure that was predicted to be positive is: supported, refuted or undecided; never anything else on two seeds."""
    if estimate.n < FEWEST_SEEDS:
        return "undecided"
    return {"positive": "supported", "negative": "refuted", "undecided": "undecided"}[estimate.sign]


def finite(value: float | None) -> float | None:
    """The value, or None when it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None


def figure(value: float | None) -> str:
    """Three significant digits, a true minus sign, a dash for what is missing."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    whole = abs(value) < 1e9 and (value == int(value) or abs(value) >= 1000)
    return (f"{value:.0f}" if whole else f"{value:.3g}").replace("-", "−")


def shown(value: float | None, interval: Interval | None) -> str:
    """A number and its interval: `0.41 [0.33, 0.49]`."""
    return figure(value) if interval is None else f"{figure(value)} [{figure(interval[0])}, {figure(interval[1])}]"


def ratio_words(log: float) -> str:
    """A log ratio as documents: `9.0:1`, `1:1`, `1:3.0`, or `only the first`."""
    if math.isinf(log):
        return "1:0" if log > 0 else "0:1"
    many = f"{math.exp(abs(log)):.2g}"
    return f"{many}:1" if log >= 0 else f"1:{many}"


def seeds_words(estimate: Estimate, over: str = "seed") -> str:
    """How many seeds, or other replicates, an estimate rests on, and what that means for its interval."""
    return f"1 {over}, so no interval" if estimate.n == 1 else f"{estimate.n} {over}s"
