"""The adaptive search for a threshold: which ratios to train next, and when enough is known of ln R_p.

    search = Search(target=2.2, low=-2.2, high=2.2)      the line's height at R_p, and the ratios that may be trained
    decide(search, Pairs(x, eta))                        the posterior, the next batch, and why; or why to stop

Model. One pair of runs (both swaps of one seed) at ln ratio x has the mean  y = m(x) + e,  e ~ N(0, tau^2 + sigma^2 / 2):
the seed's effect and the runs' own, around a curve  m(x) = logit(l + (1 - 2 l) sigmoid(a + s x)), which levels off where the
lapse l is not 0 (`curves.py`). Every pair has a seed of its own, so pairs are independent. For an x_p inside the bounds no
design does better: a seed trained at k ratios adds its effect once for all of them, which narrows s and never m(x_p); only an
extrapolation gains from it. At each lapse of a small grid the posterior of a + s x is Student's t, and x_p is where it has
the height that brings m to logit p (no x has it when l >= 1 - p); what is known of x_p is the mean over lapses, by their
posterior weights. Without lapses the interval is Fieller's, exact at a fixed design. A search that ends on a narrow interval ends too
often on a residual variance that is small by luck, so its t has one degree of freedom less; `python -m benchmarks.threshold`
measures what this covers, and `--hard` where log-odds level off.

Choice. A batch is built pair by pair; each goes where it most lowers the posterior variance of x_p, averaged over the
lapses and over what is known of x_p (Bayesian c-optimal design; Chaloner and Larntz 1989), until the interval is expected to be
narrow enough. Nothing is random: the same runs give the same choice.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from persona_lab.science.search.curves import LAPSES, Curves, fit_curves, height
from persona_lab.science.thresholds import RELIABLE_Z, Interval

CANDIDATES = 45
"""Ratios that a batch may choose from, evenly spaced within the bounds."""
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Central intervals whose ends stand for the posterior of x_p: its 5 %, 15 %, ..., 95 % points."""
FEWEST_PAIRS = 6
"""Pairs before a narrow interval may end the search: with fewer, a small residual variance by luck would end it too early."""
FEWEST_LEVELLED = 10
"""... where the likeliest curve levels off: a lapse is one parameter more."""
DRAWS = 4000
SMALLEST_SLOPE = 0.1
"""By which the choice divides where a curve hardly rises, nats a nat."""

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
    lapses: tuple[float, ...] = LAPSES
    """Those reckoned with, from 0 up; (0,) is a line."""

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
    """What pairs say about the curve and its crossing; needs three pairs at two ratios (ValueError)."""

    def __init__(self, search: Search, pairs: Pairs) -> None:
        self.search, self.pairs = search, pairs
        if len(pairs) < 3 or np.ptp(pairs.x_N) == 0:
            raise ValueError(f"a line with an interval needs three pairs at two ratios, got {len(pairs)} at {len(np.unique(pairs.x_N))}")
        self.mean_N = pairs.eta_N2.mean(1)
        self.half_N = (pairs.eta_N2[:, 0] - pairs.eta_N2[:, 1]) / 2
        self.df = len(pairs) - 2
        self.df_stopped = _df_stopped(len(pairs))
        self.curves = fit_curves(pairs.x_N, self.mean_N, search.target, search.lapses)
        # The likeliest curve's.
        self.line = self.curves.line_K2[self.curves.likeliest]
        self.variance = float(self.curves.variance_K[self.curves.likeliest])

    @property
    def lapse(self) -> float:
        """The likeliest."""
        return float(self.curves.lapse_K[self.curves.likeliest])

    @property
    def slope(self) -> float:
        """At the likeliest lapse, nats a nat."""
        return float(self.line[1])

    def below(self, x: float) -> float:
        """The probability that the mean run at x has not reached the target."""
        return self.curves.below(x, self.df_stopped)

    def interval(self, level: float = 0.95) -> Interval:
        """Where x_p lies. An end that is not resolved is a bound that x_p is shown to lie beyond, or open."""
        beyond, bounds = 0.5 + level / 2, (self.search.low, self.search.high)
        lower, upper = (self.curves.crossing(p, self.df_stopped) for p in (beyond, 1 - beyond))
        if lower is None:
            lower = max((x for x in bounds if self.below(x) > beyond), default=-np.inf)
        if upper is None:
            upper = min((x for x in bounds if self.below(x) < 1 - beyond), default=np.inf)
        return (lower, upper) if lower <= upper else (-np.inf, np.inf)

    @property
    def width(self) -> float:
        """Of the 95 % interval, in nats of ln ratio."""
        low, high = self.interval()
        return high - low

    def expected_width(self, curves: Curves, pairs: int) -> float:
        """Of the 95 % interval after more pairs have brought the curves' covariances there, should curves and weights stay as they are."""
        lower, upper = (curves.crossing(p, _df_stopped(pairs)) for p in (0.975, 0.025))
        return np.inf if lower is None or upper is None else upper - lower

    @property
    def sigma(self) -> float:
        """Standard deviation of single runs around the likeliest curve, nats: the pairs' error, and half the difference of the swaps."""
        return float((self.variance + (self.half_N**2).mean()) ** 0.5)

    @property
    def value(self) -> float | None:
        """Estimate of ln R_p, the median; None while it is as likely as not that no ratio reaches the target."""
        return self.curves.crossing(0.5, self.df_stopped)

    @cached_property
    def reliable(self) -> tuple[float | None, Interval]:
        """Estimate, by the likeliest curve, of ln R_reliable, at which nine single runs in ten favour the first, with its 95 % interval.

        Posterior draws from a fixed stream; a draw whose curve does not rise, or levels off below, has no such ratio, and counts as infinite.
        """
        n, random, curves = len(self.pairs), np.random.default_rng(0), self.curves
        v_B = self.df / random.chisquare(self.df, DRAWS)
        half_B = (self.half_N**2).sum() / random.chisquare(n, DRAWS)
        normal_B2 = random.standard_normal((DRAWS, 2))
        k_B = random.choice(len(curves.weight_K), DRAWS, p=curves.weight_K)
        v_B *= curves.variance_K[k_B]
        line_B2 = curves.line_K2[k_B] + np.sqrt(v_B)[:, None] * np.einsum("bij,bj->bi", np.linalg.cholesky(curves.inverse_K22)[k_B], normal_B2)
        height_B = height(RELIABLE_Z * np.sqrt(v_B + half_B), curves.lapse_K[k_B])
        rises = line_B2[:, 1] > 0
        log_B = np.where(rises, (height_B - line_B2[:, 0]) / np.where(rises, line_B2[:, 1], 1), np.inf)
        low, high = np.quantile(log_B, [0.025, 0.975], method="nearest")
        value = (float(height(RELIABLE_Z * self.sigma, np.array([self.lapse]))[0]) - self.line[0]) / self.slope if self.slope > 0 else None
        return None if value is None else float(value), (float(low), float(high))

    def verdict(self) -> Verdict:
        """Whether to go on."""
        if self.below(self.search.high) > 0.975:
            return "above"
        if self.below(self.search.low) < 0.025:
            return "below"
        if len(self.pairs) >= self.fewest and self.width <= self.search.width:
            return "narrow"
        return "continue" if self.affordable else "budget"

    @property
    def fewest(self) -> int:
        """Pairs before a narrow interval may end the search."""
        return FEWEST_LEVELLED if self.lapse else FEWEST_PAIRS

    @property
    def affordable(self) -> int:
        """Pairs that a round may have."""
        return min(self.search.batch, self.search.budget - 2 * len(self.pairs)) // 2


@dataclass(frozen=True)
class Decision:
    """What was decided after a round, and on what grounds: a record of JSON values."""

    pairs: int
    line: tuple[float, float] | None
    """(a, s) at the likeliest lapse; None when there are too few pairs for a line."""
    lapse: float | None
    """The likeliest."""
    variance: float | None
    """Of a pair's mean around that curve, nats^2."""
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
    """The next batch, and the expected standard error of ln R_p without and with it, nats of ln ratio (large when no curve rises)."""
    search, pairs = posterior.search, len(posterior.pairs)
    # What is known of x_p, inside the bounds: nothing can be trained beyond them.
    likely = np.clip([end for level in LEVELS for end in posterior.interval(level)], search.low, search.high)
    at_Q2 = np.stack([np.ones_like(likely), likely], axis=1)
    curves, chosen = posterior.curves, list[int]()
    new_KC2 = curves.design(search.candidates)
    # Of a curve's crossing the variance is that of a + s x over the slope squared.
    scale_K = curves.weight_K * curves.variance_K / np.maximum(np.abs(curves.line_K2[:, 1]), SMALLEST_SLOPE) ** 2 / len(likely)

    def expected(curves: Curves) -> float:
        return float(np.einsum("k,qi,kij,qj->", scale_K, at_Q2, curves.inverse_K22, at_Q2)) ** 0.5

    before = expected(curves)
    for _ in range(posterior.affordable):
        # One more pair at c lowers the variance at q by (q' V c)^2 / (1 + c' V c), Sherman and Morrison.
        moved_KC2 = new_KC2 @ curves.inverse_K22
        own_KC, cross_KQC = (moved_KC2 * new_KC2).sum(2), at_Q2 @ moved_KC2.transpose(0, 2, 1)
        best = int(np.argmax(scale_K @ ((cross_KQC**2).sum(1) / (1 + own_KC))))
        chosen.append(best)
        curves = curves.after(new_KC2[:, best])
        pairs += 1
        if pairs >= posterior.fewest and posterior.expected_width(curves, pairs) <= search.width:
            break
    return np.sort(search.candidates[chosen]), before, expected(curves)


def decide(search: Search, pairs: Pairs) -> Decision:
    """The next batch, or why the search ends; without three pairs at two ratios (cells failed) there is no line, and it ends."""
    if len(pairs) < 3 or np.ptp(pairs.x_N) == 0:
        return Decision(len(pairs), None, None, None, None, (None, None), "failed", (), f"{len(pairs)} pairs of runs have scores, too few for a line")
    posterior = Posterior(search, pairs)
    verdict, ratios = posterior.verdict(), np.array([])
    if verdict == "continue":
        ratios, before, after = next_batch(posterior)
        resolved = f"is expected to lower the standard error of ln R from {before:.2g} to {after:.2g}"
        reason = f"the next batch {resolved if posterior.slope > 0 else 'is to find where the line rises'}"
    else:
        reason = SAID[verdict].format(width=posterior.width, asked=search.width, budget=search.budget)
    if posterior.lapse:
        reason += f"; log-odds level off, most likely with a lapse of {posterior.lapse:g}"
    low, high = (float(end) if np.isfinite(end) else None for end in posterior.interval())
    line = (float(posterior.line[0]), posterior.slope)
    return Decision(len(pairs), line, posterior.lapse, posterior.variance, posterior.value, (low, high), verdict, tuple(map(float, ratios)), reason)
