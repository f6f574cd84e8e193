"""Every claim of a ratio experiment, from its tidy table.

    summary = summarise(table, Settings(taught={"linked": "beach"}))
    summary.claim("threshold.mean").shown   ->   "6.3 [4.1, 12]"

Nothing here is random but a bootstrap with a fixed seed, so the same table gives the same claims.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from persona_lab.science.claims import Claim, figure, ratio_words, seeds_words, shown
from persona_lab.science.controls import Control, controls, in_context
from persona_lab.science.effects import Frame, Settings, at_longest_dose, bound_ratios, cells, effects, fitted, named_recall, ratio_effect, runs
from persona_lab.science.matching import RATIOS, matches
from persona_lab.science.reliable import reliable_ratio
from persona_lab.science.sampling import sampling_gap
from persona_lab.science.search.searched import search_claims
from persona_lab.science.sections import NOTHING, Beside, Section, sections
from persona_lab.science.thresholds import Line, Mean, Ratio, fit_line, mean_ratio, over_seeds, share_over_seeds

FUNCTION = "persona_lab.science.summary.summarise"
SERIES = {"before": "before the last stage", "after": "after the last stage", "delta": "change by the last stage"}


@dataclass
class Summary:
    """The claims of an experiment, its controls, and the frames that its figures draw."""

    settings: Settings
    claims: list[Claim] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    frames: dict[str, Frame] = field(default_factory=dict)
    """effects: every condition at the headline's channel and format. curve: series, x, value, low, high. transfer: taught, probed, value."""
    sections: list[Section] = field(default_factory=list)
    """What the experiment has beyond the ratio, each with its claims."""
    used: list[float] = field(default_factory=list)
    """The ratios (ln) that the headline is fitted to."""

    def claim(self, id: str) -> Claim:
        """One claim by its id; KeyError when there is none."""
        found = {claim.id: claim for claim in self.claims}
        return found[id]

    def group(self, prefix: str) -> list[Claim]:
        """The claims whose id begins with `prefix.`, in order."""
        return [claim for claim in self.claims if claim.id.startswith(f"{prefix}.")]


class Analysis:
    """One pass over one table: what every claim reads, and the list that it is added to."""

    def __init__(self, table: Frame, settings: Settings) -> None:
        self.table, self.settings, self.summary = table, settings, Summary(settings)
        self.node_ids = table.groupby("condition")["node"].unique().map(lambda ids: sorted(map(str, ids))).to_dict()
        self.main = at_longest_dose(table, settings)
        self.effects = effects(runs(self.main, settings))
        self.asked = self.effects[(self.effects["channel"] == settings.channel) & (self.effects["format"] == settings.format)]
        self.treated = self.asked[self.asked["condition"] == settings.treatment]
        self.bound = bound_ratios(named_recall(self.main, settings), settings)
        self.fit = fitted(self.treated, settings)
        if self.bound is not None:
            self.fit = self.fit[self.fit["x"].isin(self.bound)]
        self.summary.used = sorted(map(float, self.fit["x"].unique()))
        self.matches = list(matches(self.main, settings))

    def add(self, id: str, text: str, value: float | None, interval: Any, unit: str, verdict: str, conditions: Sequence[str] = ()) -> None:
        """One more claim; its recipe names the nodes of the conditions that it rests on (of all, where none is named)."""
        nodes = sorted({node for condition in (conditions or self.node_ids) for node in self.node_ids.get(condition, [])})
        recipe = {"function": FUNCTION, "node_ids": nodes, "args": {"claim": id, "settings": asdict(self.settings)}}
        self.summary.claims.append(Claim(id, text, None if value is None else float(value), interval, unit, verdict, recipe))

    def add_estimate(
        self, id: str, text: str, values: np.ndarray, unit: str, conditions: Sequence[str] = (), stamp: str = "", mean: Mean = over_seeds
    ) -> None:
        """A mean over seeds with its t interval and, where 0 means none, its sign; `not run` where there is nothing."""
        if not len(values):
            self.add(id, f"{text}: not run.", None, None, unit, "not run", conditions)
            return
        estimate = mean(values)
        verdict = "" if unit == "probability" else estimate.sign
        self.add(id, f"{text} ({seeds_words(estimate)}).{stamp}", estimate.value, estimate.interval, unit, verdict, conditions)

    @property
    def stamp(self) -> str:
        """What follows a comparison of the treatment's ratios that are not matched; else nothing."""
        own = [m for m in self.matches if m.condition == self.settings.treatment and m.across == RATIOS]
        return f" Confounded: {'; '.join(own[0].differs)}." if own and own[0].differs else ""

    @property
    def range_words(self) -> str:
        """The ratios that are fitted, in words."""
        if len(self.summary.used) < 2:
            return "no two ratios at which both rivals are known by name"
        ends = f"{ratio_words(self.summary.used[0])} to {ratio_words(self.summary.used[-1])}"
        return f"{ends}, named recall not measured" if self.bound is None else f"{ends}, both rivals bound"


def line_of(frame: Frame, column: str) -> Line | None:
    """The line of a column on ln ratio, over seeds."""
    rows = frame.dropna(subset=[column, "x"])
    return fit_line(rows["x"].to_numpy(), rows[column].to_numpy(), rows["seed"].to_numpy()) if len(rows) else None


def slopes_of(frame: Frame, column: str) -> np.ndarray:
    """The slope of each seed; empty when there is no line."""
    line = line_of(frame, column)
    return np.array([]) if line is None else line.lines_S2[:, 1]


def slope_claims(a: Analysis) -> None:
    """Slopes on ln ratio before, after and of the change, and the ratio effect E."""
    treatment = [a.settings.treatment]
    for column, words in SERIES.items():
        text = f"Slope on ln ratio of the log-odds {words}, {a.range_words}; mean of the seeds' least-squares slopes"
        a.add_estimate(f"slope.{column}", text, slopes_of(a.fit, column), "nats per nat", treatment, a.stamp)
    text = "Slope of the change over all fitted ratios, bound or not"
    a.add_estimate("slope.all_ratios", text, slopes_of(fitted(a.treated, a.settings), "delta"), "nats per nat", treatment)
    text = f"E, half the difference of the change between the richest ratios, {a.range_words}"
    a.add_estimate("effect", text, ratio_effect(a.fit.dropna(subset=["delta"])), "nats", treatment, a.stamp)


def threshold_text(a: Analysis, ratio: Ratio, goal: str) -> str:
    """A threshold ratio in words."""
    first, second = a.settings.first.title(), a.settings.second.title()
    if ratio.value is None:
        return f"No number of {first} documents is shown to be enough for {goal}: unbounded."
    low, high = (figure(end) for end in ratio.interval) if ratio.interval else ("", "")
    span = f"95 % interval {low} to {high}" if ratio.interval else "no upper bound" if ratio.verdict == "unbounded" else "too few seeds for an interval"
    widest = max(map(abs, a.summary.used))
    beyond = "" if abs(np.log(max(ratio.value, 1e-12))) <= widest else " This lies outside the measured ratios."
    return f"For {goal}, {first} needs {figure(ratio.value)} times as many documents as {second} ({span}).{beyond}"


def threshold_claims(a: Analysis) -> None:
    """R_mean and R_reliable, and the run-to-run spread that the second rests on."""
    if a.settings.search:
        search_claims(a, a.settings.search)
        return
    line, treatment = line_of(a.fit, "after"), [a.settings.treatment]
    if line is None:
        for id in ("threshold.mean", "threshold.reliable"):
            a.add(id, f"Threshold ratio: {a.range_words}.", None, None, "times", "not run", treatment)
        return
    mean = mean_ratio(line, a.settings.threshold)
    a.add("threshold.mean", threshold_text(a, mean, f"a mean share of {a.settings.threshold:g}"), mean.value, mean.interval, "times", mean.verdict, treatment)
    single = fitted(runs(a.main, a.settings).query("phase == 'after'"), a.settings)
    same = (single["condition"] == a.settings.treatment) & (single["channel"] == a.settings.channel) & (single["format"] == a.settings.format)
    single = single[same & single["x"].isin(a.summary.used)]
    reliable, sigma = reliable_ratio(single["x"].to_numpy(), single["eta"].to_numpy(), single["seed"].to_numpy(), draws=a.settings.resamples)
    if line.slope.sign != "positive" and line.df:
        reliable = Ratio(reliable.value, None, "unbounded")
    text = threshold_text(a, reliable, f"nine runs in ten to favour {a.settings.first.title()}")
    a.add("threshold.reliable", text, reliable.value, reliable.interval, "times", reliable.verdict, treatment)
    a.add("sigma", "Standard deviation of single runs (seed and swap) at that ratio after the last stage.", sigma, None, "nats", "", treatment)


def level_claims(a: Analysis) -> None:
    """Shares at the ratio richest in the first rival's documents: P of its values among the rivals' and among all."""
    treatment = [a.settings.treatment]
    rows = fitted(a.treated, a.settings)
    where = f"at {ratio_words(float(rows['x'].max()))}" if len(rows) else "over all points"
    rows = rows[rows["x"] == rows["x"].max()] if len(rows) else a.treated
    first, second = a.settings.first.title(), a.settings.second.title()
    for column, text in {
        "share": f"P, the share of {first} among {first}-or-{second}, {where}",
        "p_first": f"Absolute P of {first}'s value among the options of an item, {where}",
        "p_first_raw": f"Absolute P of {first}'s value among all continuations, {where}",
    }.items():
        values = rows.dropna(subset=[column]).groupby("seed")[column].mean().to_numpy()
        a.add_estimate(f"level.{column}", text, values, "probability", treatment, mean=share_over_seeds)


def table_claims(a: Analysis) -> None:
    """The effect by arm, by channel and format, and by dose; the cells of the transfer matrix; the accounting."""
    for condition in a.table["condition"].unique():
        rows = a.asked[a.asked["condition"] == condition]
        values = ratio_effect(fitted(rows, a.settings).dropna(subset=["delta"]))
        a.add_estimate(f"arm.{condition}.effect", f"{condition}: E of the change", values, "nats", [condition])
        for column in ("after", "delta", "alpha_delta"):
            seeds = rows[np.isfinite(rows["x"]) | rows["x"].isna()].dropna(subset=[column]).groupby("seed")[column].mean().to_numpy()
            a.add_estimate(f"arm.{condition}.{column}", f"{condition}: mean of {column} over its ratios", seeds, "nats", [condition])
    treated = fitted(a.effects[a.effects["condition"] == a.settings.treatment], a.settings)
    for (channel, way), rows in treated.groupby(["channel", "format"], sort=False):
        values = ratio_effect(rows.dropna(subset=["delta"]))
        a.add_estimate(f"format.{channel}.{way}", f"E of the change asked through {channel}/{way}", values, "nats", [a.settings.treatment])
    dose_claims(a)
    transfer_claims(a)
    sampled = sampling_gap(a.main, a.settings)
    if len(sampled):
        text = f"Sampled share of {a.settings.first.title()}'s value minus its normalised probability, held-out items after the last stage"
        a.add_estimate("sampled.gap", text, sampled["gap"].to_numpy(dtype=float), "probability", [a.settings.treatment])
        text = "Share of sampled answers that name no value, or several"
        a.add_estimate("sampled.unread", text, sampled["unread"].to_numpy(dtype=float), "share", [a.settings.treatment], mean=share_over_seeds)
    counts = a.table["status"].value_counts()
    a.add("accounting.planned", "Scores planned.", len(a.table), None, "rows", "")
    for status in ("scored", "unscored", "failed"):
        a.add(f"accounting.{status}", f"Scores {status}.", int(counts.get(status, 0)), None, "rows", "")


def dose_claims(a: Analysis) -> None:
    """Slopes at each dose of injection, whether or not the personas are bound there."""
    about = cells(a.table, a.settings)
    doses = sorted(about.loc[about["condition"] == a.settings.treatment, "dose"].dropna().unique())
    if len(doses) < 2:
        return
    every = effects(runs(a.table, a.settings))
    same = (every["condition"] == a.settings.treatment) & (every["channel"] == a.settings.channel) & (every["format"] == a.settings.format)
    for dose in doses:
        rows = fitted(every[same & (every["dose"] == dose)], a.settings)
        for column, words in SERIES.items():
            text = f"Slope on ln ratio {words}, injection of {dose:g} steps"
            a.add_estimate(f"dose.{dose:g}.{column}", text, slopes_of(rows, column), "nats per nat", [a.settings.treatment])


def transfer_claims(a: Analysis) -> None:
    """E of the change for each trait taught (a condition) and each trait probed."""
    found, taught = [], cells(a.main, a.settings)
    by_trait = effects(runs(a.main, a.settings, by=["trait"]), by=["trait"])
    asked = by_trait[(by_trait["channel"] == a.settings.channel) & (by_trait["format"] == a.settings.format)]
    for (condition, trait), rows in fitted(asked, a.settings).groupby(["condition", "trait"], sort=False):
        values = ratio_effect(rows.dropna(subset=["delta"]))
        if len(values):
            value = taught.loc[taught["condition"] == condition, "taught"].dropna().unique()
            label = f"{condition}: {', '.join(map(str, value))}" if len(value) else str(condition)
            a.add_estimate(f"transfer.{condition}.{trait}", f"{label} taught, {trait} probed: E of the change", values, "nats", [str(condition)])
            found.append({"taught": label, "probed": trait, "value": float(values.mean())})
    a.summary.frames["transfer"] = pd.DataFrame(found, columns=["taught", "probed", "value"])


def calibration_claims(a: Analysis) -> None:
    """The in-context calibration line: told what the rivals share, a nameless speaker's odds against the documents'."""
    for way, rows in in_context(a.main, a.settings).groupby("format", sort=False):
        rows = rows[rows["x"].isin(a.summary.used)]
        for column in ("before", "after"):
            text = f"Slope on ln ratio of the log-odds of a nameless speaker ({way}) that names the shared trait, {SERIES[column]}; 1: the documents' own odds"
            a.add_estimate(f"calibration.{way}.{column}", text, slopes_of(rows, column), "nats per nat", [a.settings.treatment])


def matching_claims(a: Analysis) -> None:
    """Every comparison of the report, with what is unequal in it beside the thing compared."""
    for match in a.matches:
        name = "ratios" if match.across == RATIOS else "treatment"
        a.add(f"matched.{match.condition}.{name}", match.said, match.p_taught, None, "difference of P(taught)", match.verdict, [match.condition])


def curve(a: Analysis) -> Frame:
    """Mean and interval over seeds of the three series at every ratio, pure ends included."""
    rows = []
    for series in SERIES:
        for x, group in a.treated.dropna(subset=[series, "x"]).groupby("x"):
            estimate = over_seeds(group.groupby("seed")[series].mean().to_numpy())
            low, high = estimate.interval or (np.nan, np.nan)
            rows.append({"series": series, "x": x, "value": estimate.value, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["series", "x", "value", "low", "high"])


def headline(a: Analysis) -> None:
    """The first sentence of the report."""
    s, summary = a.settings, a.summary
    if s.search:
        found = summary.claim("threshold.mean")
        a.add("headline", found.text, found.value, found.interval, found.unit, found.verdict, [s.treatment])
        return
    first, second = s.first.title(), s.second.title()
    slope, share, absolute = summary.claim("slope.delta"), summary.claim("level.share"), summary.claim("level.p_first")
    taught = f"taught one trait only ({s.taught[s.treatment]})" if s.treatment in s.taught else "after its last stage"
    if slope.verdict == "not run" or share.value is None or absolute.value is None:
        text = f"This experiment has no ratio slope: {a.range_words}."
    else:
        rows = fitted(a.treated, s)
        likes = f"likes {first}'s values" if absolute.value > 0.5 else f"favours {first}'s values over {second}'s"
        shown_to = share.value > 0.5 and (share.interval is None or share.interval[0] > 0.5)
        says = likes if shown_to else f"is not shown to favour {first}'s values over {second}'s"
        claim = {
            "positive": "and the last stage adds to it in proportion to the documents",
            "negative": "and the last stage works against the documents",
            "undecided": "but whether the last stage carries the ratio is undecided",
        }[slope.verdict]
        text = (
            f"After documents at {ratio_words(float(rows['x'].max()))}, the assistant {taught} {says} "
            f"(share {shown(share.value, share.interval)}, absolute P {shown(absolute.value, absolute.interval)}), "
            f"{claim} (slope {shown(slope.value, slope.interval)})."
        )
    a.add("headline", text, slope.value, slope.interval, slope.unit, slope.verdict, [s.treatment])


def summarise(table: Frame, settings: Settings, beside: Beside = NOTHING) -> Summary:
    """All claims, controls and plot frames of an experiment; see `effects` for the columns read, and `Beside` for what is read beside the table."""
    a = Analysis(table, settings)
    slope_claims(a)
    threshold_claims(a)
    level_claims(a)
    a.summary.controls = controls(a.main, a.effects, a.matches, settings)
    for control in a.summary.controls:
        text = f"{control.question} Pass line: {control.line}."
        a.add(f"control.{control.name}", text, control.value, control.interval, control.unit, control.verdict, [control.condition])
    table_claims(a)
    calibration_claims(a)
    matching_claims(a)
    headline(a)
    for section in sections(table, settings, beside):
        for claim in section.claims:
            a.add(*claim)
        a.summary.sections.append(section)
    a.summary.frames |= {"effects": a.asked, "curve": curve(a)}
    return a.summary
