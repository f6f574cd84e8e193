"""R_reliable: the ratio at which nine runs in ten favour the first rival, with an interval that covers with few seeds.

    reliable_ratio(x, eta, seed)   ->   (Ratio, spread)        mean(x) = 1.2816 sd(x) at x = ln R_reliable

A run at ln ratio x is one seed in one swap. Its log-odds have the mean a + s x over runs and the variance

    v(x) = B(x) + W + (1 - h(x)) R

B: variance over seeds of the seeds' least-squares lines (of the two swaps' mean) at x, so seeds may differ in slope as well as in height.
W: half the difference of the swaps, squared, mean over seeds. R: mean square of the swap means about their own line, of which B holds the
share h(x) = 1/n + (x - mean x)^2 / Sxx. The estimate is the x at which mean(x) - 1.2816 sqrt(v(x)) first rises through 0.

Interval: the x at which 0 lies between the 2.5 % and 97.5 % points of the generalised pivot of mean(x) - 1.2816 sqrt(v(x)), in which the
mean is drawn from its normal and each mean square from its chi-squared (Krishnamoorthy and Mathew 2004, for one-sided tolerance limits of the
one-way random model; exact where W = R = 0, there the noncentral t). Its points are fixed. Measured by `python -m benchmarks.coverage_order`.

1.2816 is where nine tenths of a normal lie. Where runs scatter with heavier tails nine in ten lie nearer to the mean, so that the ratio stated is too large (by 7 %
for Student's t with 4 degrees of freedom, of whose truth the interval then holds 94 to 87 % at 3 to 12 seeds); the ratio at which the mean is 1.2816 standard
deviations is covered as before. The shape is not corrected for: a dozen seeds do not tell a t of 4 from a normal.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, ndtri
from scipy.stats.qmc import Sobol

from persona_lab.science.thresholds import FARTHEST, RELIABLE_Z, Interval, Ratio, as_ratio

STEP = 0.25
"""Of the ln ratios at which the pivot is evaluated; between them it is as good as linear."""
FEWEST = 3
"""Seeds before there is an interval."""


@dataclass(frozen=True)
class Spread:
    """Where the variance of single runs comes from, nats; each with its degrees of freedom."""

    lines_S2: np.ndarray
    """(a, s) of each seed with two ratios or more."""
    leverage_S3: np.ndarray
    """Number of ratios, their mean, and Sxx, for each of those seeds."""
    swaps: float
    """W, nats^2."""
    swaps_df: int
    residual: float
    """R, nats^2."""
    residual_df: int

    def at(self, x_X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, B and the share 1 - h at ln ratios, (X,) each; B is NaN with one seed."""
        line_SX = self.lines_S2[:, :1] + self.lines_S2[:, 1:] * x_X
        n, mean, sxx = self.leverage_S3.T[:, :, None]
        over = line_SX.var(0, ddof=1) if len(line_SX) > 1 else np.full(len(x_X), np.nan)
        return line_SX.mean(0), over, 1 - (1 / n + (x_X - mean) ** 2 / sxx).mean(0)

    def gap(self, x_X: np.ndarray) -> np.ndarray:
        """mean(x) - 1.2816 sqrt(v(x)), nats, (X,)."""
        mean_X, over_X, share_X = self.at(x_X)
        return mean_X - RELIABLE_Z * np.sqrt(np.maximum(np.nan_to_num(over_X) + self.swaps + share_X * self.residual, 0))

    def pivot(self, x_X: np.ndarray, draws: int) -> np.ndarray:
        """Draws of the generalised pivot of `gap`, (D, X), at least as many as asked for: the same points at every x."""
        seeds = len(self.lines_S2)
        mean_X, over_X, share_X = self.at(x_X)
        # Low-discrepancy points: quantiles of a thousand of them are as good as those of many more random draws.
        uniform_4D1 = Sobol(4, rng=np.random.default_rng(0)).random_base2(math.ceil(math.log2(draws))).T[:, :, None]
        over_DX = scaled(seeds - 1, uniform_4D1[1]) * over_X
        run_DX = over_DX.copy()
        for k, (part_X, df) in enumerate(((np.full(len(x_X), self.swaps), self.swaps_df), (share_X * self.residual, self.residual_df)), 2):
            if df:
                run_DX += scaled(df, uniform_4D1[k]) * part_X
        return mean_X - ndtri(uniform_4D1[0]) * np.sqrt(over_DX / seeds) - RELIABLE_Z * np.sqrt(np.maximum(run_DX, 0))


def scaled(df: int, uniform: np.ndarray) -> np.ndarray:
    """What a mean square is multiplied by to give draws of the variance that it estimates: df / chi-squared, at these quantiles."""
    return df / chdtri(df, uniform)


def spread_of(x: np.ndarray, eta: np.ndarray, seed: np.ndarray) -> Spread | None:
    """The spread of single runs, each given by its ln ratio, log-odds and seed; None when no seed has two ratios."""
    lines, leverage, swaps, squares, df = [], [], [], 0.0, 0
    for one in np.unique(seed):
        xs, ys = x[seed == one], eta[seed == one]
        at_X, where_N, count_X = np.unique(xs, return_inverse=True, return_counts=True)
        mean_X = np.bincount(where_N, ys) / count_X
        if (count_X == 2).any():
            # Of two runs, the squared half difference is their mean square about their mean.
            swaps.append(float(((ys - mean_X[where_N]) ** 2)[count_X[where_N] == 2].mean()))
        if len(at_X) > 1:
            sxx = ((at_X - at_X.mean()) ** 2).sum()
            slope = ((at_X - at_X.mean()) * mean_X).sum() / sxx
            height = mean_X.mean() - slope * at_X.mean()
            lines.append((height, slope))
            leverage.append((len(at_X), at_X.mean(), sxx))
            squares, df = squares + float(((mean_X - height - slope * at_X) ** 2).sum()), df + len(at_X) - 2
    if not lines:
        return None
    return Spread(np.array(lines), np.array(leverage), float(np.mean(swaps)) if swaps else 0.0, len(swaps), squares / max(df, 1), df)


def crossing(x_X: np.ndarray, y_X: np.ndarray, k: int) -> float:
    """Where the line through points k and k + 1 is 0."""
    return float(x_X[k] - y_X[k] * (x_X[k + 1] - x_X[k]) / (y_X[k + 1] - y_X[k]))


def reliable_ratio(x: np.ndarray, eta: np.ndarray, seed: np.ndarray, *, level: float = 0.95, draws: int = 1024) -> tuple[Ratio, float | None]:
    """R_reliable with its interval, and the standard deviation of single runs there, nats (at ln R = 0 where it is not reached).

    Undecided below three seeds; unbounded where the spread of runs grows as fast as their mean, or where that is not excluded.
    """
    x, eta, seed = np.asarray(x, float), np.asarray(eta, float), np.asarray(seed)
    spread = spread_of(x, eta, seed)
    if spread is None:
        return Ratio(None, None, "undecided"), None
    x_X = np.linspace(-FARTHEST, FARTHEST, round(2 * FARTHEST / STEP) + 1)
    gap_X = spread.gap(x_X)
    rises = np.flatnonzero((gap_X[:-1] < 0) & (gap_X[1:] >= 0))
    log = crossing(x_X, gap_X, int(rises[0])) if len(rises) else None
    there = np.array([0.0 if log is None else log])
    run_sd = float((spread.at(there)[0] - spread.gap(there))[0] / RELIABLE_Z)
    if log is None:
        return Ratio(None, None, "unbounded"), run_sd
    if len(spread.lines_S2) < FEWEST:
        return as_ratio(log, None), run_sd
    low_X, high_X = np.quantile(spread.pivot(x_X, draws), [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return as_ratio(log, interval_around(x_X, int(rises[0]), low_X, high_X)), run_sd


def interval_around(x_X: np.ndarray, k: int, low_X: np.ndarray, high_X: np.ndarray) -> Interval:
    """The stretch around the crossing after point k in which 0 lies between the limits; an end is infinite where there is none."""
    below = np.flatnonzero(high_X[: k + 1] < 0)
    above = np.flatnonzero(low_X[k + 1 :] > 0)
    low = crossing(x_X, high_X, int(below[-1])) if len(below) else -np.inf
    high = crossing(x_X, low_X, k + int(above[0])) if len(above) else np.inf
    return low, high
