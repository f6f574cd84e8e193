"""Slopes and thresholds with honest intervals: ln R_p = (logit p - a) / s.

    fit_line(x, y, seed)       -> a, s, their covariance over seeds, t degrees of freedom
    mean_ratio(line, p=.9)     -> R_mean: the ratio at which the mean P reaches p (Fieller interval)

A line is fitted in each seed by least squares and averaged over seeds, with t intervals on seeds - 1 degrees of freedom:
exact when every seed has the same ratios (a balanced design) and the seeds' lines are normal.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit

Interval = tuple[float, float]
RELIABLE_Z = 1.2816
"""90 % of a normal lies below mean + 1.2816 standard deviations."""
ROUNDING = 1e-6
"""By which a sum of probabilities may miss 1."""
FARTHEST = 20.0
"""|ln ratio| beyond which a threshold is called unbounded: half a billion documents about one persona to each of the other."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; one seed has no interval."""

    value: float
    interval: Interval | None
    n: int

    @property
    def sign(self) -> str:
        """Positive or negative when the interval excludes 0, else undecided."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "undecided"
        return "positive" if self.interval[0] > 0 else "negative"


@dataclass(frozen=True)
class Line:
    """y = a + s x: means over seeds of the seeds' least-squares lines."""

    intercept: Estimate
    slope: Estimate
    covariance: np.ndarray
    """2 x 2, of the mean (a, s); NaN with one seed."""
    lines_S2: np.ndarray
    """(a, s) of each seed."""

    @property
    def df(self) -> int:
        """Degrees of freedom of t: seeds - 1."""
        return len(self.lines_S2) - 1


@dataclass(frozen=True)
class Ratio:
    """A threshold ratio R of documents, first : second. `value` is None when it is not reached; an infinite end is open."""

    value: float | None
    interval: Interval | None
    verdict: str
    """bounded, unbounded, or undecided (too few seeds for an interval)."""


def t_quantile(df: int, level: float) -> float:
    """Two-sided quantile of Student's t."""
    return float(stdtrit(df, 0.5 + level / 2))


def over_seeds(values: np.ndarray, level: float = 0.95) -> Estimate:
    """Mean of one number per seed, with its t interval; none with a single seed. ValueError when empty."""
    values = np.asarray(values, float)
    if not len(values):
        raise ValueError("the mean of no seeds is not defined")
    mean = float(values.mean())
    if len(values) == 1:
        return Estimate(mean, None, 1)
    half = t_quantile(len(values) - 1, level) * float(values.std(ddof=1)) / len(values) ** 0.5
    return Estimate(mean, (mean - half, mean + half), len(values))


def share_over_seeds(values: np.ndarray, level: float = 0.95) -> Estimate:
    """Mean of one share per seed, with as much of its t interval as lies between 0 and 1. ValueError when empty, or when a value is no share.

    Cut, and not taken on the scale of log-odds: a share of 1 in every seed has no log-odds, the mean of log-odds is not the mean share that is stated,
    and what is cut off holds no mean that shares can have, so that coverage is what it was.
    """
    if np.any((np.asarray(values, float) < -ROUNDING) | (np.asarray(values, float) > 1 + ROUNDING)):
        raise ValueError(f"a share lies between 0 and 1, got {np.min(values):g} to {np.max(values):g}")
    whole = over_seeds(values, level)
    return whole if whole.interval is None else replace(whole, interval=(max(whole.interval[0], 0.0), min(whole.interval[1], 1.0)))


LARGEST_Z = 3.8
"""Fisher's z of a correlation of .999: a perfect one has no finite z."""


Mean = Callable[[np.ndarray], Estimate]
"""`over_seeds`, or of shares `share_over_seeds`."""


def correlation_over_seeds(values: np.ndarray) -> Estimate:
    """Mean of one correlation per seed with its t interval, both by Fisher's z, so that it stays within -1 and 1. ValueError when empty."""
    z = over_seeds(np.clip(np.arctanh(np.clip(np.asarray(values, float), -1 + 1e-12, 1 - 1e-12)), -LARGEST_Z, LARGEST_Z))
    interval = None if z.interval is None else (float(np.tanh(z.interval[0])), float(np.tanh(z.interval[1])))
    return Estimate(float(np.tanh(z.value)), interval, z.n)


def equivalent(values: np.ndarray, margin: float) -> bool | None:
    """Two one-sided t tests at 5 %: True when the mean is shown to lie within +-margin; None with one seed (Schuirmann 1987)."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return None
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    nearest = margin - abs(float(values.mean()))
    if not error:
        return nearest > 0
    return bool(1 - stdtr(len(values) - 1, nearest / error) < 0.05)


def fit_line(x: np.ndarray, y: np.ndarray, seed: np.ndarray) -> Line | None:
    """The mean over seeds of each seed's least-squares line; None when no seed has two ratios."""
    x, y, seed = np.asarray(x, float), np.asarray(y, float), np.asarray(seed)
    lines = []
    for one in np.unique(seed):
        xs, ys = x[seed == one], y[seed == one]
        spread = ((xs - xs.mean()) ** 2).sum()
        if spread > 0:
            slope = ((xs - xs.mean()) * ys).sum() / spread
            lines.append((ys.mean() - slope * xs.mean(), slope))
    if not lines:
        return None
    lines_S2 = np.array(lines)
    covariance = np.cov(lines_S2.T, ddof=1) / len(lines) if len(lines) > 1 else np.full((2, 2), np.nan)
    return Line(over_seeds(lines_S2[:, 0]), over_seeds(lines_S2[:, 1]), covariance, lines_S2)


def crossings(line: np.ndarray, covariance: np.ndarray, target: float, t: float) -> Interval | None:
    """The r with (target - a - s r)^2 <= t^2 (Vaa + 2 r Vas + r^2 Vss); None when g = t^2 Vss / s^2 >= 1 (Fieller 1954)."""
    (vaa, vas), (_, vss) = covariance
    s, d = line[1], target - line[0]
    square = s * s - t * t * vss
    if square <= 0:
        return None
    middle, constant = d * s + t * t * vas, d * d - t * t * vaa
    root = max(middle * middle - square * constant, 0.0) ** 0.5
    return float((middle - root) / square), float((middle + root) / square)


def fieller(line: Line, target: float, level: float = 0.95) -> Interval | None:
    """Where the line reaches the target, over seeds; None when its slope is not resolved."""
    return crossings(np.array([line.intercept.value, line.slope.value]), line.covariance, target, t_quantile(line.df, level))


def as_ratio(log: float, interval: Interval | None) -> Ratio:
    """The ratio of ln R and its interval; ends beyond e^20 are open."""
    if log > FARTHEST:
        return Ratio(None, None, "unbounded")
    if interval is None:
        return Ratio(float(np.exp(log)), None, "undecided")
    low, high = (float(np.exp(end)) if abs(end) <= FARTHEST else (0.0 if end < 0 else float("inf")) for end in interval)
    return Ratio(float(np.exp(max(log, -FARTHEST))), (low, high), "bounded" if np.isfinite(high) else "unbounded")


def mean_ratio(line: Line, p: float) -> Ratio:
    """R_mean, where the line reaches logit p; unbounded when the slope is not shown to be positive."""
    if line.slope.value <= 0:
        return Ratio(None, None, "unbounded")
    target = float(np.log(p / (1 - p)))
    log = (target - line.intercept.value) / line.slope.value
    if line.df < 1:
        return as_ratio(log, None)
    interval = fieller(line, target)
    return as_ratio(log, interval) if interval else Ratio(float(np.exp(log)) if abs(log) <= FARTHEST else None, None, "unbounded")
