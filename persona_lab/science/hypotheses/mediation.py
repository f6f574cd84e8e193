"""Are measure and metric all that matters of a checkpoint? The mediation test, and start-point dependence.

    mediation(frame)                        eta ~ m + d  against  eta ~ m + d + x + o + format, left-out conditions (reference 4.4)
    start_points(frame, "plumber", "ai")    two starts with equal m and different d: is the nearer rival adopted more? (SCIENCE.md section 2)

If ratio, order or format still predict the end once the checkpoint's M1 and D1 are known, two numbers do not describe it. What the last
stage's documents say for a rival (D e) is no property of the checkpoint and stands on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from persona_lab.science.claims import Said
from persona_lab.science.effects import Frame
from persona_lab.science.hypotheses.comparison import FEWEST_SEEDS, LEAST, Difference, difference
from persona_lab.science.hypotheses.families import Family, Parameter, none, product, read_runs
from persona_lab.science.hypotheses.gaussian import held_out, model_of
from persona_lab.science.hypotheses.posterior import Posterior, posteriors
from persona_lab.science.hypotheses.priors import Normal
from persona_lab.science.thresholds import Estimate, equivalent, over_seeds

SAME_MEASURE = 0.1
"""Nats of M1 within which two starts count as equal."""
NO_DIFFERENCE = 0.2
"""Nats of eta within which two ends count as equal."""
RAW = ("x", "o", "format")


@dataclass(frozen=True)
class Mediation:
    """Whether raw covariates still help once measure and metric are known."""

    verdict: str
    """sufficient, incomplete, undecided or not testable."""
    said: str
    """The sentence that a report shows."""
    added: Difference | None
    """elpd with all raw covariates minus elpd of measure and metric alone, nats."""
    each: tuple[tuple[str, Difference], ...] = ()
    """The same with one covariate added."""
    base: Difference | None = None
    """elpd of measure and metric minus that of a constant."""
    coefficients: tuple[Posterior, ...] = ()
    """Of the model with everything, in nats of eta for a standard deviation of the column (for a format: for being of it)."""

    def claims(self) -> list[Said]:
        """As (id, text, value, interval, unit, verdict)."""
        if self.added is None:
            return [("mediation", self.said, None, None, "nats", self.verdict)]
        found: list[Said] = [("mediation", self.said, self.added.value, self.added.interval, "nats", self.verdict)]
        if self.base:
            text = "Measure and metric against a constant: elpd over left-out conditions."
            found.append(("mediation.base", text, self.base.value, self.base.interval, "nats", "decided" if self.base.decided else "undecided"))
        for name, gap in self.each:
            text = f"{name} added to measure and metric: elpd over left-out conditions."
            found.append((f"mediation.{name}", text, gap.value, gap.interval, "nats", "decided" if gap.decided else "undecided"))
        for p in self.coefficients:
            found.append((f"mediation.coefficient.{p.name}", f"{p.means}, all else known; posterior mean.", p.value, p.interval, p.unit, ""))
        return found


def columns_of(runs: Frame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Standardised columns that vary, by name; a format gives one column for each but the commonest."""
    found: dict[str, np.ndarray] = {}
    for name in names:
        if name == "format":
            for level in runs["format"].value_counts().index[1:]:
                found[f"format {level}"] = (runs["format"] == level).to_numpy(dtype=float)
            continue
        values = product(runs, name)
        if np.ptp(values) > 1e-9:
            found[name] = (values - values.mean()) / values.std()
    return found


def regression(runs: Frame, names: Sequence[str]) -> Family:
    """A linear family of eta on standardised columns, every coefficient N(0, 1) nat."""
    found = columns_of(runs, names)
    parameters = [Parameter(name, Normal(0, 1), "nats", f"eta for one standard deviation of {name}", 0.0) for name in found]

    def design(frame: Frame, shape: float) -> list[np.ndarray]:
        return [np.ones(len(frame)), *found.values()]

    constant = Parameter("constant", Normal(0, 1), "nats", "eta at the means", 0.0)
    return Family("regression", "regression", " + ".join(found) or "a constant", (), (), none, design, (constant, *parameters))


def mediation(frame: Frame, raw: Sequence[str] = RAW, seed: int = 0) -> Mediation:
    """Elpd of eta ~ m + d + raw minus that of eta ~ m + d, refitted without each condition; D e stands in both where it varies.

    incomplete: decidedly better with them. sufficient: m and d beat a constant, and a gain of 4 nats is outside the interval, with
    three seeds or more. ConfigError (PL1220) as read_runs.
    """
    runs = read_runs(frame)
    for name in ("m", "d"):
        values = runs[name].to_numpy(dtype=float) if name in runs else np.full(len(runs), np.nan)
        if not np.isfinite(values).all():
            missing = int((~np.isfinite(values)).sum())
            return Mediation("not testable", f"Mediation not testable here: column {name} is not measured in {missing} of {len(runs)} runs.", None)
        if np.ptp(values) < 1e-9:
            return Mediation("not testable", f"Mediation not testable here: column {name} does not vary.", None)
    present = [name for name in raw if name in runs and runs[name].notna().all() and runs[name].nunique() > 1]
    if not present:
        return Mediation("not testable", f"Mediation not testable here: none of {', '.join(raw)} varies.", None)
    known = ["m", "d", *(["D e"] if {"D", "e"} <= set(runs) and runs[["D", "e"]].notna().all(axis=None) else [])]
    y_BN, condition_N = runs["eta"].to_numpy(dtype=float)[None], runs["condition"].astype(str).to_numpy()

    def lpd(names: Sequence[str]) -> np.ndarray:
        return held_out(model_of(regression(runs, names), runs), y_BN, condition_N)[1][0]

    base_C, full_C = lpd(known), lpd([*known, *present])
    added, base = difference("m + d + raw", "m + d", full_C, base_C), difference("m + d", "constant", base_C, lpd(known[2:]))
    each = tuple((name, difference(f"m + d + {name}", "m + d", lpd([*known, name]), base_C)) for name in present)
    found = posteriors(regression(runs, [*known, *present]), runs, np.random.default_rng(seed))
    verdict, said = conclude(added, base, each, present, int(runs["seed"].nunique()))
    return Mediation(verdict, said, added, each, base, found)


def conclude(added: Difference, base: Difference, each: Sequence[tuple[str, Difference]], raw: Sequence[str], seeds: int) -> tuple[str, str]:
    """Verdict and sentence."""
    number = f"elpd difference {added.said}"
    what = {"x": "the ratio of documents", "o": "the order", "format": "the format"}
    names = ", ".join(what.get(name, name) for name in raw)
    if added.better:
        which = [what.get(name, name) for name, gap in each if gap.better]
        alone = f"; on its own, {' and '.join(which)}" if which else ""
        return (
            "incomplete",
            f"Measure and metric do not describe a checkpoint: with both known, {names} still improve the prediction of the end ({number}){alone}.",
        )
    if not base.better:
        return (
            "undecided",
            f"Measure and metric themselves do not decidedly predict the end ({base.said} above a constant).",
        )
    if added.interval[1] < LEAST:
        if seeds < FEWEST_SEEDS:
            return "undecided", f"With measure and metric known, {names} add nothing here ({number}), but {seeds} seeds cannot support that."
        return "sufficient", f"Measure and metric suffice: with both known, {names} add nothing to the prediction of the end ({number})."
    return "undecided", f"Whether {names} add to measure and metric is undecided ({number})."


@dataclass(frozen=True)
class StartPoints:
    """Two starts, the same last stage, two ends."""

    verdict: str
    """supported (the nearer rival is adopted more), refuted, undecided, or not a test."""
    said: str
    effect: Estimate | None
    """End-eta of the start nearer to the first rival minus that of the farther, nats."""
    measure_gap: Estimate | None
    """The same difference of m, nats."""
    metric_gap: Estimate | None
    """d of the farther minus d of the nearer, nats to adopt; positive."""

    def claims(self) -> list[Said]:
        """As (id, text, value, interval, unit, verdict)."""
        effect = self.effect
        found: list[Said] = [("start_point", self.said, effect.value if effect else None, effect.interval if effect else None, "nats", self.verdict)]
        for name, gap in (("measure", self.measure_gap), ("metric", self.metric_gap)):
            if gap:
                found.append((f"start_point.{name}", f"Difference of the {name} of the two starts.", gap.value, gap.interval, "nats", ""))
        return found


def by_replicate(frame: Frame, condition: str) -> Frame:
    """Swap means of eta, m and d for each replicate that has both swaps."""
    rows = frame[(frame["condition"] == condition) & np.isfinite(frame["eta"].astype(float))]
    both = rows.groupby(["base_seed", "seed"])["swap"].transform("nunique") == 2
    rows = rows[both].assign(**{name: pd.to_numeric(rows[name]) if name in rows else np.nan for name in ("eta", "m", "d")})
    return rows.groupby(["base_seed", "seed"])[["eta", "m", "d"]].mean()


def start_points(frame: Frame, one: str, other: str) -> StartPoints:
    """Compare the ends of two starts (conditions), paired over replicates, each the mean of its two swaps; t intervals.

    Not a test when M1 differs by more than .1 nat or D1 is not shown to differ. Refuted: the farther rival is adopted more, or the ends are
    equal within .2 nats. Two seeds never support.
    """
    pair = by_replicate(frame, one).join(by_replicate(frame, other), rsuffix="_other", how="inner")
    if pair.empty:
        return StartPoints("not a test", f"Not a test: {one} and {other} share no replicate with both swaps and a finite eta.", None, None, None)
    if pair[["m", "m_other", "d", "d_other"]].isna().any(axis=None):
        return StartPoints("not a test", f"Not a test: M1 and D1 are not measured at both starts ({one}, {other}).", None, None, None)
    sign = 1 if (pair["d_other"] - pair["d"]).mean() >= 0 else -1
    near, far = (one, other) if sign > 0 else (other, one)
    effect, measure = (over_seeds(sign * (pair[name] - pair[f"{name}_other"]).to_numpy()) for name in ("eta", "m"))
    metric = over_seeds(sign * (pair["d_other"] - pair["d"]).to_numpy())
    found = (effect, measure, metric)
    if abs(measure.value) > SAME_MEASURE:
        return StartPoints("not a test", f"Not a test: M1 of {near} and {far} differs by {measure.value:.2f} nats, more than {SAME_MEASURE}.", *found)
    seeds = int(pair.index.get_level_values("seed").nunique())
    if metric.sign != "positive":
        return StartPoints("not a test", f"Not a test: D1 of {near} and {far} is not shown to differ ({effect.n} replicates).", *found)
    apart = f"{near} starts {metric.value:.3g} nats nearer than {far} at equal M1 (difference {measure.value:.2f} nats)"
    value = f"{effect.value:.2f}" + (f" [{effect.interval[0]:.2f}, {effect.interval[1]:.2f}]" if effect.interval else "")
    same = equivalent(sign * (pair["eta"] - pair["eta_other"]).to_numpy(), NO_DIFFERENCE)
    verdict = "refuted" if same or effect.sign == "negative" else "supported" if effect.sign == "positive" else "undecided"
    verdict = verdict if seeds >= FEWEST_SEEDS else "undecided"
    few = "" if seeds >= FEWEST_SEEDS else f" {seeds} seeds cannot decide."
    return StartPoints(verdict, f"Start-point dependence {verdict}: {apart} and ends {value} nats nearer to the first rival.{few}", *found)
