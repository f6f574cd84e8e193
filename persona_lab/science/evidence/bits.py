"""Bits: what the documents of the last stage supply, what is needed, and what becomes of it.

    condition  documents  replay  seed  needed  supplied_either  realised_either  supplied_which  realised_which
    linked           960       0     0     4.1            612.0              1.3             0.0             0.2

Needed = log2(target odds / prior odds), the prior from M1 before the stage. Supplied = documents x mean over the stage's own
paraphrases of log2 p0(x | persona named) - log2 p0(x | nameless), under the model before the stage (SCIENCE.md section 7, reference
4.3, M2). Realised = change of the log-odds by the stage. Two questions have a ledger each:

    either   is it one of the rivals?   log2 of the mean of both rivals' p0(x | named) over p0(x | nameless); the odds are alpha
    which    the first or the second?   e / ln 2 with e = log L_first - log L_second; the odds are eta

A ledger compares a persona with the speaker as it is, so `either` bounds what a Bayesian would add by it: the speaker's own odds rise
with every document. The weight w is realised over supplied; it is undefined, and says so, where the documents supply nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import log

import numpy as np
import pandas as pd
from scipy.special import logit

from persona_lab.science.claims import figure
from persona_lab.science.effects import Column, Frame, Settings, cells, number, phases, runs
from persona_lab.science.thresholds import Interval, fit_line, over_seeds

NAMELESS = "assistant"
"""`subject` of a ledger row whose speaker has no name."""
LN2 = log(2)
LEAST = 1.0
"""Bits below which the documents of a stage count as having supplied nothing."""
QUESTIONS = {"either": "either rival against everybody else", "which": "the first rival against the second"}
FACTORS = ("replay", "steps", "rate")
FLOATS = [f"{what}_{question}" for question in QUESTIONS for what in ("supplied", "realised")] + ["needed", "e", "bits_first", "bits_second"]


@dataclass(frozen=True)
class Weight:
    """w, realised bits for each supplied one; `value` is None where it is undefined, and `reason` says why."""

    value: float | None
    interval: Interval | None
    verdict: str
    """positive, negative, undecided or undefined."""
    reason: str = ""


def framed(columns: Mapping[str, Column]) -> Frame:
    """A table of columns."""
    return pd.DataFrame(columns)


def needed_bits(log_odds: Column | float, target: float = 0.9) -> Column | float:
    """Bits from some log-odds (nats) to a target probability; negative where it is passed already."""
    return (logit(target) - log_odds) / LN2


def ledger(table: Frame, settings: Settings) -> Frame:
    """What one document of the last stage supplies, one row per cell: bits_first, bits_second, bits_either, and e, nats.

    Means over the stage's paraphrases, under the model before the stage. Cells whose last stage teaches no value that the probe
    `ledger` asks for are left out.
    """
    columns = ["cell", "bits_first", "bits_second", "bits_either", "e"]
    rows = table[(table["probe"] == "ledger") & (table["status"] == "scored")].merge(
        phases(table, settings).query("phase == 'before'"), on=["condition", "stage"]
    )
    if rows.empty:
        return pd.DataFrame(columns=columns)
    taught = rows["cell"].map(cells(table, settings)["taught"])
    rows = rows[rows["option"] == taught]
    # ledger/place/3/John: the same paraphrase by every speaker.
    rows = rows.assign(paraphrase=rows["item"].str.rsplit("/", n=1).str[0], nats=number(rows["logprob_nats"]))
    by = rows.pivot_table(index=["cell", "paraphrase"], columns="subject", values="nats")
    by = by.reindex(columns=[settings.first, settings.second, NAMELESS]).dropna()
    first, second, nameless = (by[name] for name in (settings.first, settings.second, NAMELESS))
    found = {
        "bits_first": (first - nameless) / LN2,
        "bits_second": (second - nameless) / LN2,
        "bits_either": (np.logaddexp(first, second) - LN2 - nameless) / LN2,
        "e": first - second,
    }
    return framed(found).groupby("cell").mean().reset_index()[columns]


def stage_documents(table: Frame, settings: Settings) -> Frame:
    """One row per cell: documents of the last stage (its replay is none of them), and its replay, steps and rate where they are factors."""
    after = table.drop_duplicates(["cell", "stage"]).merge(phases(table, settings).query("phase == 'after'"), on=["condition", "stage"]).set_index("cell")
    found = framed({"documents": number(after["documents"])})
    for name, path in (("replay", "mixture.replay"), ("steps", "steps"), ("rate", "rate")):
        found[name] = np.nan
        for stage in after["stage"].unique():
            if (column := f"{stage}.{path}") in after:
                found.loc[after["stage"] == stage, name] = number(after[column])
    return found.reset_index()


def accounts(table: Frame, settings: Settings) -> Frame:
    """Needed, supplied and realised bits, one row per condition, factor point and seed; means of the two swaps.

    Columns besides: documents, replay, steps, rate (NaN where no factor), bits of one document, e (nats), and alpha, eta before and
    after (nats). Points that lack a swap, a ledger or scores before the stage are left out.
    """
    asked = runs(table, settings)
    asked = asked[(asked["channel"] == settings.channel) & (asked["format"] == settings.format)]
    about = ["condition", "point", "seed", "swap"]
    names = ["documents", "replay", "steps", "rate"]
    # A table without answers of the channel has no columns to turn.
    wide = asked.pivot_table(index=["cell", *about], columns="phase", values=["eta", "alpha"]) if len(asked) else asked
    if wide.empty or not {("eta", "before"), ("alpha", "before"), ("eta", "after"), ("alpha", "after")} <= set(wide.columns):
        return pd.DataFrame(columns=[*about[:3], *names, *FLOATS, "alpha_before", "alpha_after", "eta_before", "eta_after"])
    wide.columns = [f"{measure}_{phase}" for measure, phase in wide.columns]
    frame = wide.reset_index().merge(ledger(table, settings), on="cell").merge(stage_documents(table, settings), on="cell")
    frame["needed"] = needed_bits(frame["alpha_before"], settings.threshold)
    for question, odds, bits in (("either", "alpha", frame["bits_either"]), ("which", "eta", frame["e"] / LN2)):
        frame[f"supplied_{question}"] = frame["documents"] * bits
        frame[f"realised_{question}"] = (frame[f"{odds}_after"] - frame[f"{odds}_before"]) / LN2
    key = about[:3]
    both = frame.groupby(key)["swap"].transform("nunique") == 2
    return frame[both].groupby(key, as_index=False, sort=False).mean(numeric_only=True).drop(columns=["swap"])


def weight_of(values_S: np.ndarray) -> Weight:
    """The mean of one number per seed, with its t interval."""
    estimate = over_seeds(values_S)
    return Weight(estimate.value, estimate.interval, estimate.sign, "" if estimate.interval else "1 seed, so no interval")


def ratio_weight(supplied: np.ndarray, realised: np.ndarray, seed: np.ndarray) -> Weight:
    """W of one design point: the mean over seeds of realised over supplied bits, with its t interval.

    Undefined where a seed's documents supply less than one bit in all.
    """
    frame = framed({"supplied": supplied, "realised": realised, "seed": seed}).dropna().groupby("seed").mean()
    if frame.empty:
        return Weight(None, None, "undefined", "nothing was measured")
    least = float(frame["supplied"].abs().min())
    if least < LEAST or frame["supplied"].min() < 0 < frame["supplied"].max():
        return Weight(None, None, "undefined", f"the documents of a seed supply {figure(least)} bits in all, too few to be weighed")
    return weight_of((frame["realised"] / frame["supplied"]).to_numpy())


def slope_weight(supplied: np.ndarray, realised: np.ndarray, seed: np.ndarray) -> Weight:
    """W over several design points: the mean over seeds of the seeds' least-squares slopes of realised on supplied bits, with its t interval.

    A drift that every point has cancels. Undefined where what is supplied varies by less than one bit within each seed.
    """
    frame = framed({"supplied": supplied, "realised": realised, "seed": seed}).dropna()
    if frame.empty:
        return Weight(None, None, "undefined", "nothing was measured")
    ranges = frame.groupby("seed")["supplied"].agg(lambda x: x.max() - x.min())
    if ranges.max() < LEAST:
        return Weight(None, None, "undefined", f"what the documents supply varies by {figure(float(ranges.max()))} bits, too little for a slope")
    frame = frame[frame["seed"].map(ranges) >= LEAST]
    line = fit_line(frame["supplied"].to_numpy(), frame["realised"].to_numpy(), frame["seed"].to_numpy())
    assert line is not None, "a seed whose supplied bits vary has a slope"
    return weight_of(line.lines_S2[:, 1])


def weights_by(frame: Frame, factor: str, question: str) -> Iterator[tuple[float, Weight]]:
    """W at each level of a factor (replay, steps, rate, dose): ratios for `either`, for which no evidence means no change; slopes for `which`."""
    weigh = ratio_weight if question == "either" else slope_weight
    for level, rows in frame.dropna(subset=[factor]).groupby(factor):
        yield float(level), weigh(*(rows[c].to_numpy() for c in (f"supplied_{question}", f"realised_{question}", "seed")))


def matched_weights(frame: Frame) -> tuple[float, np.ndarray, list[float]] | None:
    """W on `either` at every level of replay and the same number of documents: (documents, w (S, L), levels).

    Replay takes the place of documents, and w falls with their number, so that levels are only comparable at an equal one: the geometric
    middle of the range that all levels cover, between whose points the realised bits of each seed are interpolated in ln documents. None where
    there are fewer than two levels, where the ranges do not meet, or where a seed's documents supply less than one bit there.
    """
    by = dict(iter(frame.dropna(subset=["replay"]).groupby("replay")))
    ends = [(rows["documents"].min(), rows["documents"].max()) for rows in by.values()]
    if len(by) < 2 or max(low for low, _ in ends) > min(high for _, high in ends):
        return None
    documents = float(np.sqrt(max(low for low, _ in ends) * min(high for _, high in ends)))
    seeds = sorted(set.intersection(*(set(rows["seed"]) for rows in by.values())))
    weight_SL = np.full((len(seeds), len(by)), np.nan)
    for column, rows in enumerate(by.values()):
        for row, seed in enumerate(seeds):
            one = rows[rows["seed"] == seed].sort_values("documents")
            supplied = documents * float((one["supplied_either"] / one["documents"]).mean())
            if abs(supplied) >= LEAST:
                weight_SL[row, column] = np.interp(np.log(documents), np.log(one["documents"]), one["realised_either"]) / supplied
    return (documents, weight_SL, [float(level) for level in by]) if len(seeds) and np.isfinite(weight_SL).all() else None
