"""The model against the exact oracle: is it Bayesian, in its context and in its weights?

    shots  item                      option    exact   model      log-odds of one option against all others, nats
    2      believes/diary/Mary/2...  tennis     2.71    2.34

(i) in context: the base's answers after a nameless speaker told 0-3 traits, against the exact posterior predictive (probe `believes`).
(ii) in weights: eta after the last stage against the exact log-odds of the same values, run by run. There the exact log-odds divide
into the prior's (documents) and the evidence's (what the stage said), and model = intercept + rho prior + w evidence: rho = w = 1 is
the calibrated definition of Bayesian (reference 8.3, H4b), and so is a slope s of 1 on ln of the documents' ratio.

Lines are least squares over all rows; intervals are from leaving out one cluster (persona, seed) at a time: the jackknife CV3 of
MacKinnon, Nielsen and Webb 2023 with t on clusters - 1, which stays honest with few clusters. Pure functions of tables.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from persona_lab.science.claims import Said
from persona_lab.science.effects import Frame, Settings, number, runs
from persona_lab.science.evidence.bits import Weight
from persona_lab.science.thresholds import Estimate, Interval, t_quantile


@dataclass(frozen=True)
class Calibration:
    """Least squares of the model's log-odds (nats) on the exact ones."""

    slopes: tuple[Estimate, ...]
    """One for each regressor."""
    intercept: Estimate
    r2: float
    """Share of the model's variance that the line explains."""
    r2_interval: Interval | None
    rows: int

    @property
    def slope(self) -> Estimate:
        """The slope of a single regressor."""
        return self.slopes[0]


@dataclass(frozen=True)
class Undefined:
    """A line that does not exist, and why."""

    reason: str


def against_rest(logprob: np.ndarray) -> np.ndarray:
    """Log-odds of each of V options against all others, nats: (..., V) to (..., V), whatever the log-probabilities sum to."""
    logprob = np.asarray(logprob, float)
    others = [logsumexp(np.delete(logprob, v, axis=-1), axis=-1) for v in range(logprob.shape[-1])]
    return logprob - np.stack(others, axis=-1)


def believed(table: Frame, exact: Frame) -> Frame:
    """The model beside the oracle, one row per option: item, option, role, format, whose (the persona told, or none), shots, exact, model (nats).

    Args:
        table: Scored rows of a probe of shots of one model: item, option, role, logprob_nats. Items with an unscored option are left out.
        exact: item, option and prob, from `probes.shots.exact_answers`.

    Raises:
        ValueError: the oracle was not asked the same questions.
    """
    rows = table.assign(logprob=number(table["logprob_nats"]).where(table["status"] == "scored"))[["item", "option", "role", "logprob"]]
    if not set(rows["item"]) <= set(exact["item"]):
        raise ValueError("the oracle was not asked about every item of the table. Use the items of the same probe and cast")
    both = exact[exact["item"].isin(rows["item"])].merge(rows, on=["item", "option"], how="left").sort_values("item", kind="stable")
    both = both[np.isfinite(both["logprob"]).groupby(both["item"]).transform("all")]
    if both.empty:
        return pd.DataFrame(columns=["item", "option", "role", "format", "whose", "shots", "exact", "model"])
    options = both.groupby("item")["option"].transform("size").to_numpy(dtype=int)
    odds_N2 = np.full((len(both), 2), np.nan)
    for size in np.unique(options):  # items of as many options are one table
        here = options == size
        for column, log_N in enumerate((np.log(both["prob"].to_numpy(dtype=float)), both["logprob"].to_numpy(dtype=float))):
            odds_N2[here, column] = against_rest(log_N[here].reshape(-1, size)).ravel()
    named = both["item"].str.split("/", expand=True).reindex(columns=range(4))
    points = both.assign(format=named[1], whose=named[2].str.split("+").str[0], shots=number(named[3]), exact=odds_N2[:, 0], model=odds_N2[:, 1])
    return points[["item", "option", "role", "format", "whose", "shots", "exact", "model"]].reset_index(drop=True)


def calibrate(exact: np.ndarray, model: np.ndarray, cluster: np.ndarray) -> Calibration | Undefined:
    """The line of the model's log-odds (N,) on the exact ones, (N,) or (N, R) for R regressors; rows with anything not finite are left out.

    Undefined, with the reason, for too few rows, or where a regressor does not vary, or not apart from the others. One cluster: no intervals.
    """
    exact, model, cluster = np.asarray(exact, float), np.asarray(model, float), np.asarray(cluster)
    exact_NR = exact if exact.ndim == 2 else exact[:, None]
    finite = np.isfinite(exact_NR).all(axis=1) & np.isfinite(model)
    exact_NR, model, cluster = exact_NR[finite], model[finite], cluster[finite]
    if len(model) < exact_NR.shape[1] + 2:
        return Undefined(f"{len(model)} rows are too few for a line")
    found = _line(exact_NR, model)
    if found is None:
        return Undefined("the exact log-odds do not vary" if exact_NR.shape[1] == 1 else "the exact log-odds do not vary apart from each other")
    left_out = [_line(exact_NR[cluster != one], model[cluster != one]) for one in np.unique(cluster)]
    groups = len(left_out)
    errors = None
    if groups > 1 and all(line is not None for line in left_out):
        errors = np.sqrt((groups - 1) / groups * ((np.array(left_out) - found) ** 2).sum(axis=0)) * t_quantile(groups - 1, 0.95)
    ends = [None if errors is None else (float(v - e), float(v + e)) for v, e in zip(found, np.zeros_like(found) if errors is None else errors, strict=True)]
    *slopes, intercept, r2 = (Estimate(float(v), end, groups) for v, end in zip(found, ends, strict=True))
    within = None if r2.interval is None else (max(r2.interval[0], 0.0), min(r2.interval[1], 1.0))
    return Calibration(tuple(slopes), intercept, r2.value, within, len(model))


def _line(exact_NR: np.ndarray, model: np.ndarray) -> np.ndarray | None:
    """Slopes, intercept and R2, (R + 2,); None for a singular design."""
    if len(model) < exact_NR.shape[1] + 1:
        return None
    spread_R = exact_NR.std(axis=0)
    if (spread_R < 1e-9).any():
        return None
    if np.linalg.matrix_rank((exact_NR - exact_NR.mean(axis=0)) / spread_R, tol=1e-6 * len(model) ** 0.5) < exact_NR.shape[1]:
        return None
    design_NQ = np.column_stack([exact_NR, np.ones(len(model))])
    found_Q = np.linalg.lstsq(design_NQ, model, rcond=None)[0]
    total = float(((model - model.mean()) ** 2).sum())
    left = float(((model - design_NQ @ found_Q) ** 2).sum())
    return np.append(found_Q, 1 - left / total if total > 0 else np.nan)


def verdict(slope: Estimate) -> str:
    """Where a slope lies against 1, the ideal reader's: below 1, above 1, or undecided."""
    if slope.interval is None or slope.interval[0] <= 1 <= slope.interval[1]:
        return "undecided"
    return "below 1" if slope.interval[1] < 1 else "above 1"


def fine_tuned(table: Frame, settings: Settings, exact: Mapping[str, Mapping[str, float]]) -> Frame:
    """The model beside the ideal reader of each run: cell, condition, seed, swap, model = eta after the last stage, and the exact parts, nats.

    Args:
        table: The tidy table.
        settings: Whose channel and format are read.
        exact: Cell to its `ideal.ideal_odds`; cells without an ideal reader are left out.
    """
    asked = runs(table, settings)
    asked = asked[
        (asked["channel"] == settings.channel) & (asked["format"] == settings.format) & (asked["phase"] == "after") & asked["cell"].isin(exact.keys())
    ]
    parts = pd.DataFrame([exact[cell] for cell in asked["cell"]], index=asked.index, columns=["exact", "exact_prior", "exact_evidence"])
    return asked[["cell", "condition", "seed", "swap"]].assign(model=asked["eta"], **{name: parts[name] for name in parts}).reset_index(drop=True)


def bayesian_weights(frame: Frame) -> dict[str, Weight]:
    """s, rho and w relative to the oracle, from rows of runs: model, exact, exact_prior, exact_evidence (all nats), seed.

    s: slope of the model on the exact posterior log-odds, of runs whose last stage says nothing between the rivals, because what a
    thousand documents say to an ideal reader would drown all else. rho, w: slopes on the prior's and the evidence's part. With only one
    of the parts varying, the other is undefined. 1 is Bayesian.
    """
    parts = {"rho": "exact_prior", "w": "exact_evidence"}
    silent = frame[frame["exact_evidence"].fillna(0) == 0]
    weights = {"s": _as_weight(calibrate(silent["exact"].to_numpy(), silent["model"].to_numpy(), silent["seed"].to_numpy()), 0)}
    whole = frame[np.isfinite(frame[[*parts.values(), "model"]].to_numpy(dtype=float)).all(axis=1)]
    varying = [name for name, column in parts.items() if len(whole) and np.ptp(whole[column].to_numpy(dtype=float)) > 1e-9]
    joint = calibrate(whole[[parts[name] for name in varying]].to_numpy(), whole["model"].to_numpy(), whole["seed"].to_numpy()) if varying else Undefined("")
    for name, column in parts.items():
        weights[name] = _as_weight(joint, varying.index(name)) if name in varying else Weight(None, None, "undefined", f"{column} does not vary")
    return weights


def weight_claims(frame: Frame) -> Iterator[Said]:
    """s, rho and w of fine-tuning relative to the oracle, of the rows that `bayesian_weights` reads."""
    texts = {
        "s": "Log-odds after the last stage on the ideal reader's log-odds of the same values, where the stage says nothing between the rivals",
        "rho": "Log-odds after the last stage on the prior's part of the ideal reader's",
        "w": "Log-odds after the last stage on the evidence's part of the ideal reader's",
    }
    for name, weight in bayesian_weights(frame).items():
        reason = f" {weight.reason}." if weight.reason else ""
        yield f"oracle.weights.{name}", f"{texts[name]}: slope; 1 is Bayesian.{reason}", weight.value, weight.interval, "nats per nat", weight.verdict


def _as_weight(line: Calibration | Undefined, which: int) -> Weight:
    if isinstance(line, Undefined):
        return Weight(None, None, "undefined", line.reason)
    slope = line.slopes[which]
    return Weight(slope.value, slope.interval, verdict(slope), "" if slope.interval else "1 seed, so no interval")


def calibration_claims(id: str, text: str, points: Frame, cluster: str) -> Iterator[Said]:
    """Slope, intercept and R2 of some points (exact, model, nats) as claims; `undefined`, with the reason, where there is no line."""
    line = calibrate(points["exact"].to_numpy(), points["model"].to_numpy(), points[cluster].to_numpy()) if len(points) else Undefined("nothing was measured")
    if isinstance(line, Undefined):
        yield f"{id}.slope", f"{text}: {line.reason}.", None, None, "nats per nat", "undefined"
        return
    clusters = "1 cluster, so no interval" if line.slope.n == 1 else f"{line.rows} log-odds, {line.slope.n} clusters"
    yield (
        f"{id}.slope",
        f"{text}: slope on the exact log-odds; 1 is an ideal reader ({clusters}).",
        line.slope.value,
        line.slope.interval,
        "nats per nat",
        verdict(line.slope),
    )
    yield f"{id}.intercept", f"{text}: intercept; 0 is an ideal reader.", line.intercept.value, line.intercept.interval, "nats", line.intercept.sign
    yield f"{id}.r2", f"{text}: share of variance explained.", line.r2, line.r2_interval, "share", ""


def context_claims(points: Frame) -> Iterator[Said]:
    """Calibration in context, of `believed` points, clusters are the personas told: over all, of the persona's own value, by number told, by format."""
    yield from calibration_claims("oracle.context", "The base after 0 to 3 told traits, every option", points, "whose")
    yield from calibration_claims(
        "oracle.context.own", "The base after 1 to 3 told traits, the told persona's own value", points[points["role"] == "own"], "whose"
    )
    for shots, rows in points.groupby("shots"):
        yield from calibration_claims(f"oracle.context.{shots:g}", f"The base after {shots:g} told traits, every option", rows, "whose")
    for way, rows in points.groupby("format"):
        yield from calibration_claims(f"oracle.context.{way}", f"The base after 0 to 3 traits told as {way}, every option", rows, "whose")
