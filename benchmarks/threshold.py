"""Coverage and cost of the adaptive threshold, on simulated sweeps whose truth is known.

    python -m benchmarks.threshold --sweeps 1200

A run has eta = bias + slope ln R + seed effect (sd tau) +- lexical (sd, by swap) + its own error (sd sigma), nats; where
`wobble` is not 0 the slope differs between seeds as well. Every sweep is searched to a 95 % interval of ln R_.9 no wider
than asked. Coverage: the share of sweeps whose interval holds the true ln R, with its Wilson interval. The grid has the
same bounds, 7 even ratios, both swaps, and as many seeds as it needs for its own median interval (per-seed lines, Fieller)
to be as narrow as the search's; `share` is the cells of the median search over the cells of that grid.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from persona_lab.config.schema import Adaptive
from persona_lab.science.search.adaptive import Decision, Pairs, Posterior, Search, decide
from persona_lab.science.thresholds import RELIABLE_Z, fieller, fit_line

TARGET = float(np.log(9))
GRID_RATIOS = 7
GRID_SWEEPS = 200
MOST_SEEDS = 400


@dataclass(frozen=True)
class Truth:
    """What a simulated assistant does."""

    slope: float
    bias: float
    tau: float
    sigma: float
    lexical: float = 0.2
    wobble: float = 0.0

    @property
    def threshold(self) -> float:
        """The true ln R at which the mean run reaches a log-odds of ln 9."""
        return (TARGET - self.bias) / self.slope

    @property
    def reliable(self) -> float:
        """The true ln R at which nine runs in ten favour the first; `wobble` is not part of it."""
        return (RELIABLE_Z * float(np.hypot(np.hypot(self.tau, self.sigma), self.lexical)) - self.bias) / self.slope

    def train(self, x_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Log-odds (N, 2) of one fresh seed in both swaps at every ln ratio."""
        n = len(x_N)
        slope_N = self.slope + self.wobble * random.standard_normal(n)
        middle_N = self.bias + slope_N * x_N + self.tau * random.standard_normal(n)
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


def measure(truth: Truth, asked: Adaptive, sweeps: int, random: np.random.Generator) -> Measured:
    """Search `sweeps` times."""
    cells, widths = list[int](), list[float]()
    covered = reliable = 0
    for _ in range(sweeps):
        decision, posterior = sweep(truth, asked, random)
        low, high = decision.ends
        covered += low <= truth.threshold <= high
        reliable += posterior.reliable[1][0] <= truth.reliable <= posterior.reliable[1][1]
        cells.append(2 * decision.pairs)
        widths.append(high - low)
    return Measured(covered, reliable, cells, widths)


def grid_width(truth: Truth, asked: Adaptive, seeds: int) -> float:
    """Median width of the grid's interval of ln R; the seed's effect is the same at all of its ratios."""
    random, widths = np.random.default_rng(0), []
    x, seed = np.tile(np.linspace(asked.bounds[0], asked.bounds[1], GRID_RATIOS), seeds), np.repeat(np.arange(seeds), GRID_RATIOS)
    for _ in range(GRID_SWEEPS):
        slope, effect = truth.slope + truth.wobble * random.standard_normal(seeds), truth.bias + truth.tau * random.standard_normal(seeds)
        y = effect[seed] + slope[seed] * x + truth.sigma / 2**0.5 * random.standard_normal(len(x))
        line = fit_line(x, y, seed)
        ends = fieller(line, TARGET) if line else None
        widths.append(ends[1] - ends[0] if ends else np.inf)
    return float(np.median(widths))


def grid_cells(truth: Truth, asked: Adaptive, width: float) -> int:
    """Cells of the smallest grid whose median interval is no wider."""
    few, many = 2, MOST_SEEDS
    while many - few > 1:
        middle = min((few + many) // 2, 2 * few + 2)
        few, many = (few, middle) if grid_width(truth, asked, middle) <= width else (middle, many)
    return 2 * GRID_RATIOS * many


def wilson(hits: int, n: int) -> str:
    """A share with its 95 % interval, per cent."""
    ends = binomtest(hits, n).proportion_ci(method="wilson")
    return f"{100 * hits / n:.1f} [{100 * ends.low:.1f}, {100 * ends.high:.1f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1200, help="of each truth")
    parser.add_argument("--width", type=float, default=0.5, help="of ln R, asked for")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    asked = Adaptive(search="adaptive", width=options.width, budget=200)
    random, start = np.random.default_rng(options.seed), time.perf_counter()
    covered = reliable = 0
    print(f"{'slope':>5} {'bias':>5} {'tau':>4} {'sigma':>5} {'wobble':>6} {'ln R':>5}  coverage, %          R_reliable, %        cells  width  grid  share")
    for truth in TRUTHS:
        found = measure(truth, asked, options.sweeps, random)
        covered, reliable = covered + found.covered, reliable + found.reliable_covered
        cells, width = float(np.median(found.cells)), float(np.median(found.widths))
        grid = grid_cells(truth, asked, width)
        rates = f"{wilson(found.covered, options.sweeps):<20} {wilson(found.reliable_covered, options.sweeps):<20}"
        print(f"{truth.slope:5} {truth.bias:5} {truth.tau:4} {truth.sigma:5} {truth.wobble:6} {truth.threshold:5.2f}  {rates} {cells:5.0f}  {width:5.2f} {grid:5} {cells / grid:6.2f}")
    n = options.sweeps * len(TRUTHS)
    print(f"all {n} sweeps: coverage {wilson(covered, n)} %, R_reliable {wilson(reliable, n)} %; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
