"""Belief curves: how the log-odds of a persona rise with the number of shots N in the context, and what a document is worth in shots.

    log o(N) = b + gamma N^(1 - alpha)        nats; alpha from 0 (every shot counts alike) to nearly 1 (only the first one counts)

The form of Bigelow et al. 2025 (2511.00617) without steering, as in reference section 2, M8: evidence accumulates, discounted by
a power law. N50 is where P = 1/2; b and gamma are fitted in each seed and averaged, alpha is one for all seeds, by least squares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import logit

from persona_lab.science.effects import Frame, Settings, cells, item_odds, number, phases
from persona_lab.science.evidence.bits import Weight
from persona_lab.science.thresholds import Interval, Line, fieller, fit_line, over_seeds

SHARED, NOTHING = "shared", "none"
"""Whose traits a shot told: what the rivals share, nobody's."""

DISCOUNTS = np.round(np.arange(0, 0.96, 0.05), 2)
"""Values of alpha that are tried."""


@dataclass(frozen=True)
class Reached:
    """How many shots it takes. `value` is None where it is not reached within the shots that were told."""

    value: float | None
    interval: Interval | None
    verdict: str
    """reached, not reached, or undecided: reached, but with one seed, or with no upper end."""


@dataclass(frozen=True)
class Curve:
    """A fitted belief curve."""

    line: Line
    """On N^(1 - alpha): b and gamma, nats, means over seeds."""
    seeds: tuple[int | float | str, ...]
    """Whose lines `line.lines_S2` are, in order."""
    discount: float
    """alpha."""
    most: float
    """Most shots told."""
    residual: float
    """Root mean square of what the seeds' curves leave, nats."""

    def at(self, shots: float) -> float:
        """Log-odds after so many shots, nats."""
        return self.line.intercept.value + self.line.slope.value * shots ** (1 - self.discount)

    def shots_for(self, log_odds: float = 0.0) -> Reached:
        """Where the mean curve reaches some log-odds, with Fieller's interval over seeds at the fitted alpha; 0 nats: N50.

        Nothing lies between no shot and the first, so what is reached there takes one. Ends beyond the most shots told are open: nothing
        is extrapolated.
        """
        if self.line.intercept.value >= log_odds:
            found = 0.0
        elif self.line.slope.value <= 0 or (found := self._shots((log_odds - self.line.intercept.value) / self.line.slope.value)) > self.most:
            return Reached(None, None, "not reached")
        ends = fieller(self.line, log_odds) if self.line.df >= 1 else None
        if ends is None:
            return Reached(found, None, "undecided")
        low, high = (self._shots(end) for end in ends)
        bounded = high <= self.most
        return Reached(found, (low, high if bounded else np.inf), "reached" if bounded else "undecided")

    def shots_of_seeds(self, log_odds_S: np.ndarray) -> np.ndarray:
        """Shots that do what brings each seed's own curve to its own log-odds, (S,); below 1 they are the share of what the first shot does.

        NaN where it is never reached, or only beyond the most shots told.
        """
        intercept_S, gain_S = self.line.lines_S2.T
        with np.errstate(divide="ignore", invalid="ignore"):
            power_S = (np.asarray(log_odds_S, float) - intercept_S) / gain_S
            shots_S = np.where((gain_S > 0) & (power_S >= 0), np.abs(power_S) ** (1 / (1 - self.discount)), np.nan)
        shots_S = np.where(power_S < 1, np.where(np.isnan(shots_S), np.nan, power_S), shots_S)
        return np.where(shots_S <= self.most, shots_S, np.nan)

    def _shots(self, power: float) -> float:
        """N of N^(1 - alpha), at least 1 when it is not 0; beyond any number told, infinite."""
        if power <= 0:
            return 0.0
        return max(1.0, float(power ** (1 / (1 - self.discount)))) if power <= 1e3 else float("inf")


def belief_curve(shots: np.ndarray, log_odds: np.ndarray, seed: np.ndarray) -> Curve | None:
    """The curve of log-odds (nats) against shots; `seed` names the cluster that rows share.

    None when a seed lacks what the others were told, or fewer than three numbers of shots were told: alpha has no value then.
    """
    shots, log_odds, seed = np.asarray(shots, float), np.asarray(log_odds, float), np.asarray(seed)
    finite = np.isfinite(log_odds)
    shots, log_odds, seed = shots[finite], log_odds[finite], seed[finite]
    told = {one: frozenset(shots[seed == one].tolist()) for one in np.unique(seed)}
    if len(set(told.values())) != 1 or len(next(iter(told.values()))) < 3:
        return None
    # Rows of one seed and number of shots are one mean: how many questions were asked is no weight.
    counts = np.array(sorted(next(iter(told.values()))))
    mean_SN = np.array([[log_odds[(seed == one) & (shots == n)].mean() for n in counts] for one in told])
    errors = [_residuals(counts ** (1 - alpha), mean_SN) for alpha in DISCOUNTS]
    best = int(np.argmin(errors))
    discount = float(DISCOUNTS[best])
    line = fit_line(np.tile(counts ** (1 - discount), len(told)), mean_SN.ravel(), np.repeat(np.arange(len(told)), len(counts)))
    if line is None:
        return None
    return Curve(line, tuple(one.item() for one in told), discount, float(counts.max()), float(np.sqrt(errors[best] / mean_SN.size)))


def _residuals(power_N: np.ndarray, mean_SN: np.ndarray) -> float:
    """Sum of squares that the least-squares line of each seed leaves."""
    design_N2 = np.stack([np.ones_like(power_N), power_N], axis=1)
    left_NS = mean_SN.T - design_N2 @ np.linalg.lstsq(design_N2, mean_SN.T, rcond=None)[0]
    return float((left_NS**2).sum())


def stacked(frames: Sequence[Frame]) -> Frame:
    """Tables below each other."""
    return pd.concat(frames, ignore_index=True)


def adoption(table: Frame, settings: Settings) -> Frame:
    """Shots and what they do: cell, phase, format, whose, shots, item, condition, point, seed, swap, and three log-odds, nats.

    own: of the told persona's value against all others; alpha: of either rival's; eta: of the first rival's against the second's. What
    was asked with nothing told stands once for every persona and once for the shared trait, as N = 0.
    """
    rows = table[(table["channel"] == "shots") & (table["status"] == "scored")].merge(phases(table, settings), on=["condition", "stage"])
    if rows.empty:
        return pd.DataFrame(columns=["cell", "phase", "format", "whose", "shots", "item", "condition", "point", "seed", "swap", "own", "alpha", "eta"])
    parts = rows["item"].str.split("/", expand=True)
    rows = rows.assign(whose=parts[2].str.lower(), shots=number(parts[3]), prob=number(rows["prob_normalized"]))
    key = ["cell", "phase", "format", "whose", "shots", "item"]
    mass = rows.pivot_table(index=key, columns="role", values="prob", aggfunc="sum").reset_index()
    told = [*mass.loc[~mass["whose"].isin([NOTHING, SHARED]), "whose"].unique(), SHARED]
    untold = [mass[mass["whose"] == NOTHING].assign(whose=name) for name in told]
    every = stacked([mass[mass["whose"] != NOTHING], *untold])
    prob_RP = every.reindex(columns=told).to_numpy(dtype=float)
    own = pd.Series(prob_RP[np.arange(len(every)), [told.index(name) for name in every["whose"]]], index=every.index)
    odds = item_odds(table, settings, ["shots"])[["cell", "phase", "item", "alpha", "eta"]]
    every = every.assign(own=logit(own.clip(1e-12, 1 - 1e-12)))[[*key, "own"]].merge(odds, on=["cell", "phase", "item"], how="left")
    return every.merge(cells(table, settings)[["condition", "point", "seed", "swap"]], left_on="cell", right_index=True)


def curve_of(shots: Frame, measure: str) -> Curve | None:
    """The belief curve of one measure over the seeds of some rows of `adoption`."""
    rows = shots.dropna(subset=[measure])
    return belief_curve(rows["shots"].to_numpy(), rows[measure].to_numpy(), rows["seed"].to_numpy())


def exchange(curve: Curve, after: Mapping[int | float | str, float], documents: float) -> Weight:
    """Documents worth one shot: documents of the stage over the shots that raise the same speaker as far, geometric mean over seeds.

    Args:
        curve: Of the model before the stage, told the shared trait.
        after: Seed to the log-odds after the stage, nats, of the same questions as the curve.
        documents: Of evidence in the stage.
    """
    both = [seed for seed in curve.seeds if seed in after]
    if not both or documents <= 0:
        return Weight(None, None, "undefined", "no seed has both a curve and a stage with documents")
    if curve.line.slope.sign != "positive" and curve.line.df:
        return Weight(None, None, "undefined", "shots are not shown to raise the odds")
    shots_S = curve.shots_of_seeds(np.array([after.get(seed, np.nan) for seed in curve.seeds]))[[seed in after for seed in curve.seeds]]
    lost = int((~np.isfinite(shots_S) | (shots_S <= 0)).sum())
    if lost:
        return Weight(None, None, "undefined", f"in {lost} of {len(both)} seeds no number of shots from 0 to {curve.most:g} does what the documents do")
    rate = over_seeds(np.log(documents / shots_S))
    interval = None if rate.interval is None else (float(np.exp(rate.interval[0])), float(np.exp(rate.interval[1])))
    return Weight(float(np.exp(rate.value)), interval, "measured" if interval else "undecided", "" if interval else "1 seed, so no interval")
