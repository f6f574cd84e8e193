"""Do 95 % intervals hold the truth 95 times in a hundred? Simulated runs with few and unequal seeds, through the lab's own estimators.

    python -m benchmarks.coverage_order --simulations 1000 --figure docs/coverage.svg

A run has eta = bias + (slope + a seed's own) ln R + the seed's effect +- lexical (by swap) + its own error, nats, at seven ratios in both swaps. In
`differ` the seeds' slopes differ, in `tails` every error is Student's t with 4 degrees of freedom (scaled to the same variance). `8, some lost`:
a fifth of the points are lost, so seeds have unlike ratios. O: two orders, paired by seed; persistence: O before and after chats.
R_reliable is the ratio at which 90 % of all runs, seeds and swaps together, favour the first rival; under `tails` its truth is found by drawing.
The estimator takes 90 % to lie 1.2816 standard deviations out, as they do where runs scatter normally; `mean at 1.28 sd` is the same interval against
the ratio at which that holds, which under `tails` is another one (.627 for .560): what is missed there is the shape of the tails, not the spread.
An interval that is open, or an estimate that is called unbounded or undefined, is no false statement and counts as holding the truth; `open` is
their share. The figure shows coverage at every level from 50 % to 99 %, each from the same simulations.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
from scipy.special import stdtr
from scipy.stats import binomtest

from persona_lab.report.figures import rule, to_svg
from persona_lab.science.effects import Frame
from persona_lab.science.reliable import reliable_ratio, spread_of
from persona_lab.science.stages.order import ratio_of_means
from persona_lab.science.thresholds import RELIABLE_Z, Interval, fit_line, mean_ratio, over_seeds

RATIOS = np.log([1 / 9, 1 / 4, 1 / 2, 1, 2, 4, 9])
TARGET = float(np.log(9))
SEEDS = (3, 5, 8, 12)
LOST = 0.2
LEVELS = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
DRAWS = 512
"""Of the pivot of R_reliable: half of what the lab takes."""


@dataclass(frozen=True)
class Truth:
    """What simulated runs are made of, nats."""

    name: str
    slope: float = 0.8
    bias: float = 0.1
    tau: float = 0.3
    lexical: float = 0.2
    sigma: float = 0.3
    wobble: float = 0.0
    heavy: bool = False
    recency: float = 0.5
    kept: float = 0.6
    """Share of the recency that chats leave."""

    def error(self, random: np.random.Generator, size: int | tuple[int, ...]) -> np.ndarray:
        """Standard errors: normal, or heavy-tailed with the same variance."""
        return random.standard_t(4, size) / 2**0.5 if self.heavy else random.standard_normal(size)

    def runs(self, random: np.random.Generator, seeds: int, lost: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ln ratio, log-odds and seed of every run."""
        seed, x = np.repeat(np.arange(seeds), 2 * len(RATIOS)), np.tile(np.repeat(RATIOS, 2), seeds)
        height, tilt, words = (scale * self.error(random, seeds) for scale in (self.tau, self.wobble, self.lexical))
        swap = np.tile([1.0, -1.0], seeds * len(RATIOS))
        eta = self.bias + height[seed] + (self.slope + tilt[seed]) * x + words[seed] * swap + self.sigma * self.error(random, len(x))
        keep = np.repeat(random.random(seeds * len(RATIOS)) >= lost, 2)
        return x[keep], eta[keep], seed[keep]

    def orders(self, random: np.random.Generator, seeds: int, lost: float) -> tuple[np.ndarray, np.ndarray]:
        """O of each seed without chats and after them; seeds that lost an arm are gone from both."""
        eta_S4 = self.tau * self.error(random, (seeds, 1)) + self.sigma * self.error(random, (seeds, 4))
        own_S = self.wobble * self.error(random, seeds)
        pre_S = (eta_S4[:, 0] - eta_S4[:, 1]) / 2 + self.recency + own_S
        post_S = (eta_S4[:, 2] - eta_S4[:, 3]) / 2 + self.kept * (self.recency + own_S)
        keep = (random.random((seeds, 4)) >= lost).all(1) | (np.arange(seeds) < 2)
        return pre_S[keep], post_S[keep]

    def far_enough(self) -> float:
        """Ln R at which the mean of all runs is 1.2816 of their standard deviations: R_reliable where errors are normal."""
        x = np.linspace(-2, 6, 80_001)
        sd = np.sqrt(self.tau**2 + self.lexical**2 + self.sigma**2 + (self.wobble * x) ** 2)
        return float(x[np.argmax(self.bias + self.slope * x >= RELIABLE_Z * sd)])

    def reliable(self) -> float:
        """The true ln R_reliable."""
        if not self.heavy:
            return self.far_enough()
        random = np.random.default_rng(0)
        off = sum(scale * self.error(random, 2_000_000) for scale in (self.tau, self.lexical, self.sigma))
        return float((-np.quantile(off, 0.1) - self.bias) / self.slope)


TRUTHS = (Truth("equal"), Truth("differ", wobble=0.2), Truth("tails", heavy=True))


@dataclass(frozen=True)
class Held:
    """One interval against the truth."""

    inside: bool
    open: bool
    level: float
    """The smallest level at which the interval holds the truth."""


def held(interval: Interval | None, truth: float, level: float) -> Held:
    """Whether an interval holds the truth."""
    if interval is None:
        return Held(True, True, level)
    return Held(bool(interval[0] <= truth <= interval[1]), not np.isfinite(interval).all(), level)


def logs(interval: Interval | None) -> Interval | None:
    """An interval of a ratio as one of its logarithm."""
    with np.errstate(divide="ignore"):
        return None if interval is None else (float(np.log(interval[0])), float(np.log(interval[1])))


def p_of(values_S: np.ndarray) -> float:
    """Two-sided p of a mean of 0."""
    t, df = values_S.mean() / (values_S.std(ddof=1) / len(values_S) ** 0.5), len(values_S) - 1
    return float(2 * stdtr(df, -abs(t)))


def once(truth: Truth, reliable: float, random: np.random.Generator, seeds: int, lost: float) -> dict[str, Held]:
    """One simulated experiment through every estimator."""
    x, eta, seed = truth.runs(random, seeds, lost)
    line, spread = fit_line(x, eta, seed), spread_of(x, eta, seed)
    pre_S, post_S = truth.orders(random, seeds, lost)
    found = {
        "O": held(over_seeds(pre_S).interval, truth.recency, 1 - p_of(pre_S - truth.recency)),
        "persistence": held(ratio_of_means(post_S, pre_S)[1], truth.kept, 1 - p_of(post_S - truth.kept * pre_S)),
    }
    if line is None or spread is None:
        return found
    threshold = (TARGET - truth.bias) / truth.slope
    found["slope"] = held(line.slope.interval, truth.slope, 1 - p_of(line.lines_S2[:, 1] - truth.slope))
    found["R_mean"] = held(logs(mean_ratio(line, 0.9).interval), threshold, 1 - p_of(line.lines_S2 @ [1, threshold] - TARGET))
    ratio, _ = reliable_ratio(x, eta, seed, draws=DRAWS)
    below = float((spread.pivot(np.array([reliable]), 4 * DRAWS)[:, 0] <= 0).mean())
    found["R_reliable"] = held(logs(ratio.interval), reliable, abs(2 * below - 1))
    if truth.heavy:
        found["mean at 1.28 sd"] = held(logs(ratio.interval), truth.far_enough(), abs(2 * below - 1))
    return found


def simulate(truth: Truth, seeds: int, lost: float, simulations: int, seed: int) -> dict[str, list[Held]]:
    """Many simulated experiments, by estimator."""
    random, reliable, found = np.random.default_rng([seed, TRUTHS.index(truth), seeds, int(100 * lost)]), truth.reliable(), defaultdict[str, list[Held]](list)
    for _ in range(simulations):
        for name, one in once(truth, reliable, random, seeds, lost).items():
            found[name].append(one)
    return found


def wilson(hits: int, n: int) -> str:
    """A share with its 95 % interval, per cent."""
    ends = binomtest(hits, n).proportion_ci(method="wilson")
    return f"{100 * hits / n:5.1f} [{100 * ends.low:.1f}, {100 * ends.high:.1f}]"


def draw(curves: Frame, simulations: int, file: Path) -> None:
    """Coverage at every level minus that level, one panel for each number of seeds; the band is where 95 % of such figures fall by chance."""
    edge = 1.96 * np.sqrt(LEVELS * (1 - LEVELS) / simulations)
    band = pd.DataFrame({"level": LEVELS, "low": -edge, "high": edge})
    x = alt.X("level:Q", title="level of the interval", scale=alt.Scale(domain=[0.5, 1.0]), axis=alt.Axis(format="%", values=[0.5, 0.7, 0.9, 1.0], grid=False))
    y = alt.Y("over:Q", title="coverage minus level", axis=alt.Axis(format="+.0%"))
    panels = []
    for seeds, rows in curves.groupby("seeds", sort=False):
        chance = alt.Chart(band).mark_area(opacity=0.25, color="#888").encode(x, alt.Y("low:Q"), alt.Y2("high:Q"))
        lines = alt.Chart(rows).mark_line(strokeWidth=1.6, point=True).encode(x, y, alt.Color("estimator:N", sort=list(curves["estimator"].unique())))
        panels.append(alt.layer(rule(0.0, field="over"), chance, lines).properties(width=250, height=200, title=f"seeds: {seeds}"))
    file.write_text(to_svg(alt.concat(*panels, columns=2)), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000, help="of each truth and design")
    parser.add_argument("--truths", nargs="+", default=[truth.name for truth in TRUTHS], help="which of them")
    parser.add_argument("--figure", type=Path, help="an SVG of coverage at every level, over the truths `equal` and `differ`")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    start, curves = time.perf_counter(), []
    print(f"{'truth':<8} {'seeds':<13} {'estimator':<15} {'coverage, %':<20} open, %")
    designs = [(f"{seeds}", seeds, 0.0) for seeds in SEEDS] + [("8, some lost", 8, LOST)]
    for truth in (truth for truth in TRUTHS if truth.name in options.truths):
        for label, seeds, lost in designs:
            for name, all_held in simulate(truth, seeds, lost, options.simulations, options.seed).items():
                n = len(all_held)
                print(
                    f"{truth.name:<8} {label:<13} {name:<15} {wilson(sum(h.inside for h in all_held), n)} {100 * sum(h.open for h in all_held) / n:8.1f}",
                    flush=True,
                )
                if not truth.heavy:
                    curves += [(label, name, level, float(np.mean([h.level <= level for h in all_held])) - level) for level in LEVELS]
    if options.figure:
        frame = (
            pd.DataFrame(curves, columns=["seeds", "estimator", "level", "over"]).groupby(["seeds", "estimator", "level"], sort=False, as_index=False).mean()
        )
        draw(frame, 2 * options.simulations, options.figure)
    print(f"{options.simulations} simulations each, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
