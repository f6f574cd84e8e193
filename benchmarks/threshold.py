"""Coverage and cost of the adaptive threshold, on simulated sweeps whose truth is known.

    python -m benchmarks.threshold --sweeps 1200
    python -m benchmarks.threshold --sweeps 300 --hard       log-odds that level off, what the model does not hold, and thresholds near and outside the bounds

A run has eta = bias + slope ln R + seed effect (sd tau) +- lexical (sd, by swap) + its own error (sd sigma), nats; where
`wobble` is not 0 the slope differs between seeds as well; where `lapse` is not 0 the mean share lies between lapse
and 1 - lapse; the search reckons with lapses of its own (`science/search/curves.py`).
Every sweep is searched to a 95 % interval of ln R_.9 no wider than asked. Coverage: the share of sweeps whose interval
holds the true ln R, with its Wilson interval. The grid has the same bounds, 7 even ratios, both swaps, and per-seed lines
with Fieller's interval. It has as many seeds as it needs

    grid       for its median interval to be as narrow as the search's
    promised   for 95 % of its intervals to be as narrow as asked, as all are of a search that ends narrow

`share` is the cells of the median search over the cells of a grid. `oracle` is the share, of the first grid, of a design that is
told the true line: every pair at the threshold, as many as make its median interval as narrow as the search's. `limit` is what
that share tends to as the width asked goes to 0, where a t interval no longer costs a grid of few seeds more: no search does better.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from scipy.special import expit, logit
from scipy.stats import binomtest, chi2

from persona_lab.config.schema import Adaptive
from persona_lab.science.search.adaptive import Decision, Pairs, Posterior, Search, decide
from persona_lab.science.thresholds import RELIABLE_Z, fieller, fit_line, t_quantile

TARGET = float(np.log(9))
GRID_RATIOS = 7
GRID_SWEEPS = 200
MOST_SEEDS = 400
PROMISED = 0.95
"""Share of grids that are as narrow as asked."""


@dataclass(frozen=True)
class Truth:
    """What a simulated assistant does."""

    slope: float
    bias: float
    tau: float
    sigma: float
    lexical: float = 0.2
    wobble: float = 0.0
    lapse: float = 0.0

    def reached(self, eta: float) -> float:
        """The ln R at which the mean run has these log-odds; infinite where none has."""
        share = (expit(eta) - self.lapse) / (1 - 2 * self.lapse)
        return float((logit(share) - self.bias) / self.slope) if self.slope > 0 and share < 1 else np.inf

    @property
    def threshold(self) -> float:
        """The true ln R at which the mean run reaches a log-odds of ln 9."""
        return self.reached(TARGET)

    @property
    def reliable(self) -> float:
        """The true ln R at which nine runs in ten favour the first; `wobble` is not part of it."""
        return self.reached(RELIABLE_Z * float(np.hypot(np.hypot(self.tau, self.sigma), self.lexical)))

    def train(self, x_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Log-odds (N, 2) of one fresh seed in both swaps at every ln ratio."""
        n = len(x_N)
        slope_N = self.slope + self.wobble * random.standard_normal(n)
        middle_N = logit(self.lapse + (1 - 2 * self.lapse) * expit(self.bias + slope_N * x_N)) + self.tau * random.standard_normal(n)
        lexical_N = self.lexical * random.standard_normal(n)
        return np.stack([middle_N + lexical_N, middle_N - lexical_N], axis=1) + self.sigma * random.standard_normal((n, 2))


TRUTHS = (
    Truth(slope=1.2, bias=0.0, tau=0.3, sigma=0.3),
    Truth(slope=1.5, bias=0.5, tau=0.5, sigma=0.3),
    Truth(slope=1.0, bias=0.3, tau=0.2, sigma=0.4),
    Truth(slope=2.0, bias=-0.3, tau=0.6, sigma=0.4),
    Truth(slope=1.2, bias=0.0, tau=0.5, sigma=0.2),
    Truth(slope=0.9, bias=0.5, tau=0.3, sigma=0.2),
    Truth(slope=1.5, bias=1.5, tau=0.1, sigma=0.4),
    Truth(slope=1.4, bias=0.2, tau=0.3, sigma=0.3, wobble=0.2),
)

HARD = (
    Truth(slope=1.2, bias=0.0, tau=1.0, sigma=0.3),
    Truth(slope=1.2, bias=0.0, tau=1.5, sigma=0.5),
    Truth(slope=1.2, bias=0.0, tau=0.3, sigma=0.3, wobble=0.5),
    Truth(slope=1.05, bias=0.0, tau=0.3, sigma=0.3),
    Truth(slope=0.95, bias=0.0, tau=0.3, sigma=0.3),
    Truth(slope=0.6, bias=0.0, tau=0.3, sigma=0.3),
    Truth(slope=0.1, bias=0.0, tau=0.3, sigma=0.3),
    Truth(slope=0.0, bias=0.0, tau=0.3, sigma=0.3),
    Truth(slope=-0.5, bias=0.0, tau=0.3, sigma=0.3),
    Truth(slope=1.0, bias=6.0, tau=0.3, sigma=0.3),
    Truth(slope=1.2, bias=0.0, tau=0.3, sigma=0.3, lapse=0.02),
    Truth(slope=1.2, bias=0.0, tau=0.3, sigma=0.3, lapse=0.05),
    Truth(slope=1.2, bias=0.0, tau=0.3, sigma=0.3, lapse=0.08),
    Truth(slope=2.0, bias=-0.3, tau=0.6, sigma=0.4, lapse=0.05),
    Truth(slope=4.0, bias=0.0, tau=0.3, sigma=0.3, lapse=0.02),
    Truth(slope=4.0, bias=0.0, tau=0.3, sigma=0.3, lapse=0.05),
    Truth(slope=2.0, bias=0.0, tau=0.3, sigma=0.3, lapse=0.03),
    Truth(slope=2.0, bias=0.0, tau=0.3, sigma=0.3, lapse=0.12),
    Truth(slope=4.0, bias=0.0, tau=0.3, sigma=0.3, lapse=0.25),
)


def search_of(asked: Adaptive) -> Search:
    """The search that a config asks for."""
    return Search(TARGET, asked.bounds[0], asked.bounds[1], asked.batch, asked.width, asked.budget)


def sweep(truth: Truth, asked: Adaptive, random: np.random.Generator) -> tuple[Decision, Posterior]:
    """One search from its opening to its end."""
    search, x_N = search_of(asked), np.array(asked.opening)
    pairs = Pairs(x_N, truth.train(x_N, random))
    while (decision := decide(search, pairs)).ratios:
        x_N = np.array(decision.ratios)
        pairs = Pairs(np.concatenate([pairs.x_N, x_N]), np.concatenate([pairs.eta_N2, truth.train(x_N, random)]))
    return decision, Posterior(search, pairs)


@dataclass(frozen=True)
class Measured:
    """What many sweeps of one truth gave."""

    covered: int
    reliable_covered: int
    cells: list[int]
    widths: list[float]
    verdicts: Counter[str]


def measure(truth: Truth, asked: Adaptive, sweeps: int, random: np.random.Generator) -> Measured:
    """Search `sweeps` times."""
    cells, widths, verdicts = list[int](), list[float](), Counter[str]()
    covered = reliable = 0
    for _ in range(sweeps):
        decision, posterior = sweep(truth, asked, random)
        low, high = decision.ends
        covered += low <= truth.threshold <= high
        reliable += posterior.reliable[1][0] <= truth.reliable <= posterior.reliable[1][1]
        cells.append(2 * decision.pairs)
        widths.append(high - low)
        verdicts[decision.verdict] += 1
    return Measured(covered, reliable, cells, widths, verdicts)


def grid_width(truth: Truth, asked: Adaptive, seeds: int, share: float = 0.5) -> float:
    """The width that this share of the grid's intervals of ln R stays within; the seed's effect is the same at all of its ratios."""
    random, widths = np.random.default_rng(0), []
    x, seed = np.tile(np.linspace(asked.bounds[0], asked.bounds[1], GRID_RATIOS), seeds), np.repeat(np.arange(seeds), GRID_RATIOS)
    for _ in range(GRID_SWEEPS):
        slope, effect = truth.slope + truth.wobble * random.standard_normal(seeds), truth.bias + truth.tau * random.standard_normal(seeds)
        y = effect[seed] + slope[seed] * x + truth.sigma / 2**0.5 * random.standard_normal(len(x))
        line = fit_line(x, y, seed)
        ends = fieller(line, TARGET) if line else None
        widths.append(ends[1] - ends[0] if ends else np.inf)
    return float(np.quantile(widths, share, method="higher"))


def grid_cells(truth: Truth, asked: Adaptive, width: float, share: float = 0.5) -> int:
    """Cells of the smallest grid of whose intervals this share is no wider."""
    few, many = 1, MOST_SEEDS
    while many - few > 1:
        middle = min((few + many) // 2, 2 * few + 2)
        few, many = (few, middle) if grid_width(truth, asked, middle, share) <= width else (middle, many)
    return 2 * GRID_RATIOS * many


def oracle_cells(truth: Truth, width: float) -> int:
    """Cells of the smallest design with every pair at the threshold, of whose t intervals on n - 2 degrees of freedom half are no wider."""
    error = (truth.tau**2 + truth.sigma**2 / 2 + (truth.wobble * truth.threshold) ** 2) ** 0.5 / truth.slope
    widths = (2 * t_quantile(n - 2, 0.95) * error * (chi2.median(n - 2) / (n - 2) / n) ** 0.5 for n in count(3))
    return 2 * next(n for n, w in enumerate(widths, start=3) if w <= width)


def limit(truth: Truth, asked: Adaptive) -> float:
    """Variance at the threshold of a pair placed there, over that of a grid for each of its pairs."""
    x = np.linspace(asked.bounds[0], asked.bounds[1], GRID_RATIOS)
    seed, run = truth.tau**2 + (truth.wobble * truth.threshold) ** 2, truth.sigma**2 / 2
    return (seed + run) / (GRID_RATIOS * seed + run * (1 + (truth.threshold - x.mean()) ** 2 / x.var()))


def wilson(hits: int, n: int) -> str:
    """A share with its 95 % interval, per cent."""
    ends = binomtest(hits, n).proportion_ci(method="wilson")
    return f"{100 * hits / n:.1f} [{100 * ends.low:.1f}, {100 * ends.high:.1f}]"


def against_the_grid(truth: Truth, asked: Adaptive, found: Measured) -> str:
    """Cells of a search, and their share of the grids'."""
    cells, width = float(np.median(found.cells)), float(np.median(found.widths))
    grid, promised = grid_cells(truth, asked, width), grid_cells(truth, asked, asked.width, PROMISED)
    shares = f"{grid:5} {cells / grid:5.2f} {promised:9} {cells / promised:5.2f} {oracle_cells(truth, width) / grid:7.2f} {limit(truth, asked):6.2f}"
    return f"{cells:5.0f} {np.mean(found.cells):5.1f} {width:6.2f} {shares}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1200, help="of each truth")
    parser.add_argument("--width", type=float, default=0.5, help="of ln R, asked for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hard", action="store_true", help="lapses, large spreads, thresholds near and outside the bounds; no grid beside them")
    options = parser.parse_args(arguments)
    asked = Adaptive(search="adaptive", width=options.width, budget=200)
    random, start = np.random.default_rng(options.seed), time.perf_counter()
    covered = reliable = 0
    truths = HARD if options.hard else TRUTHS
    beside = "cells  how they end" if options.hard else "cells  mean  width  grid share  promised share  oracle  limit"
    print(f"{'slope':>5} {'bias':>5} {'tau':>4} {'sigma':>5} {'wobble':>6} {'lapse':>5} {'ln R':>5}  {'coverage, %':<20} {'R_reliable, %':<20} {beside}")
    for truth in truths:
        found = measure(truth, asked, options.sweeps, random)
        covered, reliable = covered + found.covered, reliable + found.reliable_covered
        rates = f"{wilson(found.covered, options.sweeps):<20} {wilson(found.reliable_covered, options.sweeps):<20}"
        beside = f"{np.median(found.cells):5.0f}  {dict(found.verdicts)}" if options.hard else against_the_grid(truth, asked, found)
        print(f"{truth.slope:5} {truth.bias:5} {truth.tau:4} {truth.sigma:5} {truth.wobble:6} {truth.lapse:5} {truth.threshold:5.2f}  {rates} {beside}", flush=True)
    n = options.sweeps * len(truths)
    print(f"all {n} sweeps: coverage {wilson(covered, n)} %, R_reliable {wilson(reliable, n)} %; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
