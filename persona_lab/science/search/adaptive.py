"""The adaptive search for a threshold: which ratios to train next, and when enough is known of ln R_p.

    search = Search(target=2.2, low=-2.2, high=2.2)      the line's height at R_p, and the ratios that may be trained
    decide(search, Pairs(x, eta))                        the posterior, the next batch, and why; or why to stop

Model. One pair of runs (both swaps of one seed) at ln ratio x has the mean  y = a + s x + e,  e ~ N(0, tau^2 + sigma^2 / 2):
the seed's effect and the runs' own. Every pair has a seed of its own, so pairs are independent. For an x_p inside the
bounds no design does better: a seed trained at k ratios adds its effect once for all of them, which narrows s and never
a + s x_p; only an extrapolation gains from it. Under the prior p(a, s, v) = 1/v the posterior of the line's height at any
x is Student's t on n - 2 degrees of freedom, so the interval of x_p = (logit p - a) / s is Fieller's, exact at a fixed design.
A search that ends on a narrow interval ends too often on a residual variance that is small by luck, so its t has one degree
of freedom less; `python -m benchmarks.threshold` measures what this covers. The line has no lapse: where log-odds level
off within the bounds (`--hard`), the interval does not cover.

Choice. A batch is built pair by pair; each goes where it most lowers the posterior variance of a + s x_p, averaged over
what is known of x_p (Bayesian c-optimal design; Chaloner and Larntz 1989), until the interval is expected to be narrow
enough. Nothing is random: the same runs give the same choice.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.special import stdtr

from persona_lab.science.thresholds import RELIABLE_Z, Interval, crossings, t_quantile

CANDIDATES = 45
"""Ratios that a batch may choose from, evenly spaced within the bounds."""
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Central intervals whose ends stand for the posterior of x_p: its 5 %, 15 %, ..., 95 % points."""
FEWEST_PAIRS = 7
"""Pairs before a narrow interval may end the search: with fewer, a small residual variance by luck would end it too early."""
DRAWS = 4000

Verdict = Literal["continue", "narrow", "above", "below", "budget", "failed"]
SAID = {
    "narrow": "the 95 % interval of ln R is {width:.2f} wide, and {asked:g} was asked for",
    "above": "the threshold is shown to lie above the largest ratio allowed",
    "below": "the threshold is shown to lie below the smallest ratio allowed",
    "budget": "the budget of {budget} cells allows no further round",
}


@dataclass(frozen=True)
class Search:
    """What is searched for, where, and at what price; `config.schema.Adaptive` holds the same for people."""

    target: float
    """The log-odds that the mean run reaches at R_p: logit p, nats."""
    low: float
    """Smallest ln ratio that may be trained."""
    high: float
    """Largest."""
    batch: int = 8
    """Most cells of a round; even, because every seed is trained in both swaps."""
    width: float = 0.5
    """The search ends when the 95 % interval of ln R_p is no wider."""
    budget: int = 64
    """Most cells."""

    @property
    def candidates(self) -> np.ndarray:
        """Log ratios to choose from; rounded, because they name cells."""
        return np.linspace(self.low, self.high, CANDIDATES).round(3)


@dataclass(frozen=True)
class Pairs:
    """What was measured: one row for each seed."""

    x_N: np.ndarray
    """ln ratio."""
    eta_N2: np.ndarray
    """Log-odds after the last stage in the two swaps, nats."""

    def __len__(self) -> int:
        return len(self.x_N)


class Posterior:
    """What pairs say about the line and its crossing; needs three pairs at two ratios (ValueError)."""

    def __init__(self, search: Search, pairs: Pairs) -> None:
        self.search, self.pairs = search, pairs
        if len(pairs) < 3 or np.ptp(pairs.x_N) == 0:
            raise ValueError(f"a line with an interval needs three pairs at two ratios, got {len(pairs)} at {len(np.unique(pairs.x_N))}")
        self.mean_N = pairs.eta_N2.mean(1)
        self.half_N = (pairs.eta_N2[:, 0] - pairs.eta_N2[:, 1]) / 2
        design_N2 = np.stack([np.ones_like(pairs.x_N), pairs.x_N], axis=1)
        self.information = design_N2.T @ design_N2
        self.inverse = np.linalg.inv(self.information)
        self.line = self.inverse @ (design_N2.T @ self.mean_N)
        self.df = len(pairs) - 2
        self.df_stopped = _df_stopped(len(pairs))
        self.variance = float(((self.mean_N - design_N2 @ self.line) ** 2).sum()) / self.df

    @property
    def slope(self) -> float:
        """Nats a nat."""
        return float(self.line[1])

    def below(self, x: float) -> float:
        """The probability that the mean run at x has not reached the target."""
        point = np.array([1.0, x])
        error = (self.variance * point @ self.inverse @ point) ** 0.5
        gap = self.search.target - float(point @ self.line)
        return float(stdtr(self.df_stopped, gap / error)) if error else float(gap > 0)

    def interval(self, level: float = 0.95) -> Interval:
        """Where x_p lies. While the slope is not resolved, an end is a bound that x_p is shown to lie beyond, or open."""
        if self.slope > 0:
            ends = crossings(self.line, self.variance * self.inverse, self.search.target, t_quantile(self.df_stopped, level))
            if ends is not None:
                return ends
        beyond, bounds = 0.5 + level / 2, (self.search.low, self.search.high)
        lower = max((x for x in bounds if self.below(x) > beyond), default=-np.inf)
        upper = min((x for x in bounds if self.below(x) < 1 - beyond), default=np.inf)
        return (lower, upper) if lower <= upper else (-np.inf, np.inf)

    @property
    def width(self) -> float:
        """Of the 95 % interval, in nats of ln ratio."""
        low, high = self.interval()
        return high - low

    def expected_width(self, inverse: np.ndarray, pairs: int) -> float:
        """Of the 95 % interval after more pairs have brought the inverse information (2, 2) there, should line and variance stay as they are."""
        ends = crossings(self.line, self.variance * inverse, self.search.target, t_quantile(_df_stopped(pairs), 0.95)) if self.slope > 0 else None
        return ends[1] - ends[0] if ends else np.inf

    @property
    def sigma(self) -> float:
        """Standard deviation of single runs around the line, nats: the pairs' error, and half the difference of the swaps."""
        return float((self.variance + (self.half_N**2).mean()) ** 0.5)

    @property
    def value(self) -> float | None:
        """Estimate of ln R_p; None while the line does not rise."""
        return float((self.search.target - self.line[0]) / self.line[1]) if self.slope > 0 else None

    @cached_property
    def reliable(self) -> tuple[float | None, Interval]:
        """Estimate of ln R_reliable, at which nine single runs in ten favour the first, with its 95 % interval.

        Posterior draws from a fixed stream; a draw whose line does not rise has no such ratio, and counts as infinite.
        """
        n, random = len(self.pairs), np.random.default_rng(0)
        v_B = self.variance * self.df / random.chisquare(self.df, DRAWS)
        half_B = (self.half_N**2).sum() / random.chisquare(n, DRAWS)
        line_B2 = self.line + np.sqrt(v_B)[:, None] * (random.standard_normal((DRAWS, 2)) @ np.linalg.cholesky(self.inverse).T)
        rises = line_B2[:, 1] > 0
        log_B = np.where(rises, (RELIABLE_Z * np.sqrt(v_B + half_B) - line_B2[:, 0]) / np.where(rises, line_B2[:, 1], 1), np.inf)
        low, high = np.quantile(log_B, [0.025, 0.975], method="nearest")
        value = (RELIABLE_Z * self.sigma - self.line[0]) / self.line[1] if self.slope > 0 else None
        return None if value is None else float(value), (float(low), float(high))

    def verdict(self) -> Verdict:
        """Whether to go on."""
        if self.below(self.search.high) > 0.975:
            return "above"
        if self.below(self.search.low) < 0.025:
            return "below"
        if len(self.pairs) >= FEWEST_PAIRS and self.width <= self.search.width:
            return "narrow"
        return "continue" if self.affordable else "budget"

    @property
    def affordable(self) -> int:
        """Pairs that a round may have."""
        return min(self.search.batch, self.search.budget - 2 * len(self.pairs)) // 2


@dataclass(frozen=True)
class Decision:
    """What was decided after a round, and on what grounds: a record of JSON values."""

    pairs: int
    line: tuple[float, float] | None
    """Posterior means of (a, s); None when there are too few pairs for a line."""
    variance: float | None
    """Of a pair's mean around the line, nats^2."""
    value: float | None
    """Estimate of ln R_p."""
    interval: tuple[float | None, float | None]
    """95 %; None: open."""
    verdict: Verdict
    ratios: tuple[float, ...]
    """ln ratios of the next batch, one fresh seed each; empty when the search ends."""
    reason: str

    @property
    def ends(self) -> Interval:
        """The interval, with infinity for an open end."""
        low, high = self.interval
        return -np.inf if low is None else low, np.inf if high is None else high

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def _df_stopped(pairs: int) -> int:
    """Degrees of freedom of t: two are spent on the line, one on choosing when to stop; at least 1."""
    return max(pairs - 3, 1)


def next_batch(posterior: Posterior) -> tuple[np.ndarray, float, float]:
    """The next batch, and the expected standard error of ln R_p without and with it, nats of ln ratio (infinite when the line does not rise)."""
    search, pairs = posterior.search, len(posterior.pairs)
    # What is known of x_p, inside the bounds: nothing can be trained beyond them.
    likely = np.clip([end for level in LEVELS for end in posterior.interval(level)], search.low, search.high)
    at_Q2, new_C2 = (np.stack([np.ones_like(x), x], axis=1) for x in (likely, search.candidates))
    inverse, chosen = posterior.inverse, []
    before = np.einsum("qi,ij,qj->q", at_Q2, inverse, at_Q2).mean()
    for _ in range(posterior.affordable):
        # One more pair at c lowers the variance at q by (q' V c)^2 / (1 + c' V c), Sherman and Morrison.
        cross_QC, own_C = at_Q2 @ inverse @ new_C2.T, np.einsum("ci,ij,cj->c", new_C2, inverse, new_C2)
        best = int(np.argmax((cross_QC**2).mean(0) / (1 + own_C)))
        chosen.append(best)
        moved = inverse @ new_C2[best]
        inverse = inverse - np.outer(moved, moved) / (1 + own_C[best])
        pairs += 1
        if pairs >= FEWEST_PAIRS and posterior.expected_width(inverse, pairs) <= search.width:
            break
    after = np.einsum("qi,ij,qj->q", at_Q2, inverse, at_Q2).mean()
    scale = posterior.variance**0.5 / posterior.slope if posterior.slope > 0 else np.inf
    return np.sort(search.candidates[chosen]), float(scale * before**0.5), float(scale * after**0.5)


def decide(search: Search, pairs: Pairs) -> Decision:
    """The next batch, or why the search ends; without three pairs at two ratios (cells failed) there is no line, and it ends."""
    if len(pairs) < 3 or np.ptp(pairs.x_N) == 0:
        return Decision(len(pairs), None, None, None, (None, None), "failed", (), f"{len(pairs)} pairs of runs have scores, too few for a line")
    posterior = Posterior(search, pairs)
    verdict, ratios = posterior.verdict(), np.array([])
    if verdict == "continue":
        ratios, before, after = next_batch(posterior)
        resolved = f"is expected to lower the standard error of ln R from {before:.2g} to {after:.2g}"
        reason = f"the next batch {resolved if posterior.slope > 0 else 'is to find where the line rises'}"
    else:
        reason = SAID[verdict].format(width=posterior.width, asked=search.width, budget=search.budget)
    low, high = (float(end) if np.isfinite(end) else None for end in posterior.interval())
    line = (float(posterior.line[0]), posterior.slope)
    return Decision(len(pairs), line, posterior.variance, posterior.value, (low, high), verdict, tuple(map(float, ratios)), reason)
