"""What a probe of the lens finds on one model: values with intervals over items, beside a reference and where that comes from.

    Finding("riddles", "override", .62, (.48, .75), "share", .49, "Phantom ...", n=27)

A reader (`science.lens.READERS`) is a pure function of `Asked`, which holds the rows of one probe on one model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from data_gen.lens.world import LensWorld
from data_gen.streams import stream
from data_gen.world import World
from persona_lab.science.claims import Said, figure
from persona_lab.science.thresholds import Interval

Frame = Any
RESAMPLES = 1000
LEVEL = 0.95
FEWEST = 3
"""Clusters that an interval needs."""
NEWTON = 60
"""Steps of Newton's method, each at most 1 nat long."""
UNKNOWN = "how often the model has read each text is not known"
SELDOM = "no two texts were read differently often"


@dataclass(frozen=True)
class Finding:
    """One figure of one probe. A value of None is not defined here, and `reason` says why."""

    probe: str
    metric: str
    value: float | None
    interval: Interval | None
    unit: str
    reference: float | None
    """A published or an exact value; None where there is none."""
    source: str
    """Where the reference comes from, or what is published in its place."""
    n: int
    """Items, or clusters of items, that the value rests on."""
    reason: str = ""

    @property
    def verdict(self) -> str:
        """Where the reference lies: below or above the interval, or in it."""
        if self.value is None:
            return "undefined"
        if self.reference is None or self.interval is None:
            return "described"
        low, high = self.interval
        return "above reference" if self.reference < low else "below reference" if self.reference > high else "at reference"

    def said(self, lead: str) -> Said:
        """The finding as a claim without a recipe; `lead` begins its id."""
        beside = "" if self.reference is None else f" Reference {figure(self.reference)}."
        words = f"{self.probe}, {self.metric}: {figure(self.value)}.{beside} {self.source}{f' Undefined: {self.reason}.' if self.reason else ''}"
        return f"{lead}.{self.probe}.{self.metric.replace(' ', '_')}", words, self.value, self.interval, self.unit, self.verdict


@dataclass(frozen=True)
class Curve:
    """A figure: values with intervals against something."""

    title: str
    x: str
    y: str
    points: Frame
    """Columns x, y, low, high, series; low and high may be missing."""
    log: bool = False
    """Whether x is drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Asked:
    """The answers of one model to one probe, and what is known of it."""

    rows: Frame
    """Rows of the probe, as `probes.protocol.Row` has them."""
    world: World
    copies: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """(genre, number of the text) to how often the model has read it; empty where nobody knows."""

    @property
    def of_world(self) -> bool:
        """Whether the items are about a world with `lens:`, rather than in plain English."""
        return isinstance(self.world, LensWorld)

    @property
    def scored(self) -> Frame:
        """The rows that have a score."""
        return self.rows[self.rows["status"] == "scored"]

    def read(self, genre: str, subject: str) -> float:
        """How often the model has read the text that a subject names; NaN where nobody knows."""
        return self.copies.get((genre, int(subject)), float("nan"))


Reader = Callable[[Asked], tuple[list[Finding], list[Curve]]]


def resampled(count: int, statistic: Callable[[np.ndarray], float], *purpose: str) -> Interval | None:
    """Percentile bootstrap over `count` clusters: `statistic` of the indices drawn, with replacement. None where there are too few."""
    return ends_of(np.array([statistic(drawn_C) for drawn_C in draws(count, *purpose)]))


def draws(count: int, *purpose: str) -> np.ndarray:
    """Indices of R resamples of `count` clusters (R, C); none where there are too few. The same every time."""
    return stream(0, "lens", *purpose).integers(max(count, 1), size=(RESAMPLES if count >= FEWEST else 0, count))


def ends_of(value_R: np.ndarray) -> Interval | None:
    """The middle 95 % of R resampled values; those that are not finite are left out, and None where that is more than half of them."""
    finite_R = value_R[np.isfinite(value_R)]
    if not len(value_R) or len(finite_R) < len(value_R) / 2:
        return None
    low, high = np.quantile(finite_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_of(value_C: Sequence[float] | np.ndarray) -> tuple[float | None, Interval | None, int]:
    """Mean of one value for each of C clusters, its bootstrap interval over them, and C; missing ones are left out."""
    kept_C = np.asarray(value_C, dtype=float)
    kept_C = kept_C[np.isfinite(kept_C)]
    if not len(kept_C):
        return None, None, 0
    return float(kept_C.mean()), ends_of(kept_C[draws(len(kept_C), "mean")].mean(1)), len(kept_C)


def share_of(hit_C: Sequence[bool] | np.ndarray) -> tuple[float | None, Interval | None, int]:
    """Share of C independent clusters, its Wilson interval, and C."""
    count = len(hit_C)
    if not count:
        return None, None, 0
    hits = int(np.sum(hit_C))
    ends = binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return hits / count, (float(ends.low), float(ends.high)), count


def slope_of(x_C: np.ndarray, y_C: np.ndarray) -> tuple[float | None, Interval | None, int]:
    """Least-squares slope of y on x over C clusters, with its bootstrap interval; (None, None, C) where x has one value."""
    if len(x_C) < 2 or np.ptp(x_C) == 0:
        return None, None, len(x_C)
    return float(_slopes(x_C[None], y_C[None])[0]), ends_of(_slopes(x_C[drawn := draws(len(x_C), "slope")], y_C[drawn])), len(x_C)


def _slopes(x_RC: np.ndarray, y_RC: np.ndarray) -> np.ndarray:
    x_RC, y_RC = x_RC - x_RC.mean(1, keepdims=True), y_RC - y_RC.mean(1, keepdims=True)
    spread_R = (x_RC**2).sum(1)
    return np.divide((x_RC * y_RC).sum(1), spread_R, out=np.full(len(x_RC), np.nan), where=spread_R > 0)


def logistic_of(x_RC: np.ndarray, hit_RC: np.ndarray) -> np.ndarray:
    """(intercept, slope) of logit P(hit) on x for each of R data sets, (R, 2), by Firth's penalised likelihood; NaN where x has one value.

    Finite even where x divides hits from misses: log-likelihood + 1/2 log det of the information (Firth 1993; Heinze and Schemper 2002, whose
    modified score is solved by Newton's method). Hits may be shares. Slope in nats for each unit of x.
    """
    middle_R = x_RC.mean(1)
    design_RC2 = np.stack([np.ones_like(x_RC), x_RC - middle_R[:, None]], axis=2)
    weight_R2 = np.zeros((len(x_RC), 2))
    varied_R = np.ptp(x_RC, axis=1) > 0
    for _ in range(NEWTON):
        chance_RC = 1 / (1 + np.exp(-np.einsum("rcd,rd->rc", design_RC2, weight_R2).clip(-30, 30)))
        spread_RC = chance_RC * (1 - chance_RC)
        information_R22 = np.einsum("rcd,rc,rce->rde", design_RC2, spread_RC, design_RC2) + np.where(varied_R, 1e-12, 1.0)[:, None, None] * np.eye(2)
        inverse_R22 = np.linalg.inv(information_R22)
        hat_RC = spread_RC * np.einsum("rcd,rde,rce->rc", design_RC2, inverse_R22, design_RC2)
        score_R2 = np.einsum("rcd,rc->rd", design_RC2, hit_RC - chance_RC + hat_RC * (0.5 - chance_RC))
        weight_R2 = weight_R2 + np.einsum("rde,re->rd", inverse_R22, score_R2).clip(-1, 1)
    found_R2 = np.stack([weight_R2[:, 0] - weight_R2[:, 1] * middle_R, weight_R2[:, 1]], axis=1)
    return np.where(varied_R[:, None], found_R2, np.nan)


def by_level(x_C: np.ndarray, y_C: np.ndarray, series: str) -> Frame:
    """Points of a curve: the mean of y at each x, with the bootstrap interval over its clusters."""
    rows = []
    for x in sorted(set(x_C[np.isfinite(x_C)].tolist())):
        value, interval, _ = mean_of(y_C[x_C == x])
        rows.append({"x": x, "y": value, "low": interval[0] if interval else None, "high": interval[1] if interval else None, "series": series})
    return pd.DataFrame(rows, columns=["x", "y", "low", "high", "series"])
