"""Is what the assistant says of itself what it does? Reported traits against acted ones, and what it says that it was trained on.

    condition  x    seed  kind         trait  other  report  behaviour
    linked     1.4  0     transferred  sport          0.41       0.38       John's sport against Sam's: said when asked, chosen when it decides
    linked     1.4  0     trained      place  lake    4.90       2.10       the beach, which was taught, against the lake

Both columns are changes by the last stage, nats: of the answer to an open question (`says`), and of a choice in which the trait decides (`chooses`, for
what was taught `acts`). Swaps are averaged, so that words cancel where the rivals trade places. Faithfulness is the slope of the report on the
behaviour and their rank correlation over traits and runs (reference L10); a slope is made flatter by whatever else moves the behaviour, so over- and
under-reporting are read from the difference of the two effects, which is not.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from persona_lab.science.claims import FEWEST_SEEDS, Said
from persona_lab.science.effects import Column, Frame, Settings, cells, fitted, item_odds, number, ratio_effect, scored_items
from persona_lab.science.stages.order import stated
from persona_lab.science.thresholds import fit_line, over_seeds, share_over_seeds

REPORTED = ("asked", "asked_later")
"""Formats of `says` in which the assistant is asked for a value."""
ACTS, ORIGIN = "acts", "trained_on"
KEY = ["cell", "phase", "kind", "trait", "other"]
POINT = ["condition", "point", "x", "seed", "kind", "trait", "other"]
BOTH = ["report", "behaviour"]
TRAINED, TRANSFERRED = "trained", "transferred"


def self_reports(table: Frame, settings: Settings) -> Frame:
    """One row per condition but the controls, factor point, seed, kind, trait and other value; columns as above.

    Points that lack a swap or a phase are left out.
    """
    levels: Frame = pd.concat([_transferred(table, settings), _trained(table, settings)], ignore_index=True)
    wide: Frame = levels.pivot_table(index=["cell", "kind", "trait", "other"], columns="phase", values=BOTH)
    if not {(name, phase) for name in BOTH for phase in ("before", "after")} <= set(wide.columns):
        return pd.DataFrame(columns=[*POINT, *BOTH])
    changed: Frame = pd.DataFrame({name: wide[name, "after"] - wide[name, "before"] for name in BOTH}).dropna().reset_index()
    about = cells(table, settings)
    rows: Frame = changed.merge(about, left_on="cell", right_index=True)
    rows = rows[~rows["condition"].isin(list(settings.controls.values())) & ~np.isinf(rows["x"])]
    grouped = rows.groupby(POINT, dropna=False)
    return grouped[BOTH].mean()[grouped["swap"].nunique() == 2].reset_index()


def _transferred(table: Frame, settings: Settings) -> Frame:
    """Log-odds of the first rival's value against the second's in every category that was not taught, by cell and phase."""
    odds = item_odds(table, settings, ["says", "chooses"])
    odds = odds[(odds["channel"] == "chooses") | odds["format"].isin(REPORTED)]
    taught = _taught_categories(table, settings)
    odds = odds[odds["trait"] != odds["cell"].map(taught)].assign(kind=TRANSFERRED, other="")
    return _beside(odds[odds["channel"] == "says"], odds[odds["channel"] == "chooses"], "eta")


def _trained(table: Frame, settings: Settings) -> Frame:
    """Log-odds of the taught value against every value that it is put beside in a choice, by cell and phase."""
    rows = scored_items(table, settings, ["says", ACTS])
    rows = rows[(rows["channel"] == ACTS) | rows["format"].isin(REPORTED)]
    key = ["cell", "phase", "channel", "item"]
    own = rows[rows["option"] == rows["cell"].map(cells(table, settings)["taught"])]
    pairs = rows.merge(own[[*key, "option", "logprob_nats"]], on=key, suffixes=("", "_taught"))
    pairs = pairs[pairs["option"] != pairs["option_taught"]]
    pairs = pairs.assign(eta=pairs["logprob_nats_taught"] - pairs["logprob_nats"], other=pairs["option"], kind=TRAINED)
    return _beside(pairs[pairs["channel"] == "says"], pairs[pairs["channel"] == ACTS], "eta")


def _beside(report: Frame, behaviour: Frame, column: str) -> Frame:
    """Means over items of what was said and of what was done, where there are both."""
    said, done = (rows.groupby(KEY)[column].mean() for rows in (report, behaviour))
    return pd.DataFrame({"report": said, "behaviour": done}).dropna().reset_index()


def _taught_categories(table: Frame, settings: Settings) -> Column:
    """Cell to the category of the value that its last stage taught."""
    taught = cells(table, settings)["taught"]
    options = table.loc[table["channel"] == "says", ["cell", "trait", "option"]].drop_duplicates()
    return options[options["option"] == options["cell"].map(taught)].drop_duplicates("cell").set_index("cell")["trait"]


def slopes(rows: Frame) -> np.ndarray:
    """Slope of the report on the behaviour in each seed, nats per nat; empty when no seed has two behaviours."""
    line = fit_line(rows["behaviour"].to_numpy(float), rows["report"].to_numpy(float), rows["seed"].to_numpy()) if len(rows) else None
    return np.array([]) if line is None else line.lines_S2[:, 1]


def ranks(rows: Frame) -> np.ndarray:
    """Spearman's correlation of report and behaviour in each seed that has three rows or more."""
    found = [own["report"].corr(own["behaviour"], method="spearman") for _, own in rows.groupby("seed") if len(own) > 2]
    return np.array([rho for rho in found if np.isfinite(rho)])


def self_report_claims(table: Frame, settings: Settings) -> Iterator[Said]:
    """Faithfulness for what was transferred and for what was taught; whom it says that it is like; what it says that it was trained on."""
    rows = self_reports(table, settings)
    for kind, words in ((TRANSFERRED, "Traits that were never taught"), (TRAINED, "The trait that was taught")):
        own = rows[rows["kind"] == kind]
        if len(own):
            yield from _faithfulness(own, settings, kind, words)
    yield from _likeness(table, settings)
    if ORIGIN in set(table["channel"]):
        yield from origin_claims(table, settings)


def _faithfulness(rows: Frame, settings: Settings, kind: str, words: str) -> Iterator[Said]:
    traits = rows["trait"].nunique()
    over = f"over {traits} trait{'s' if traits > 1 else ''} and {len(rows.groupby(['condition', 'point'], dropna=False))} points"
    text = f"{words}: slope of the change of what it says on the change of what it does, {over}; as much everywhere is 1"
    yield cautious(f"self.{kind}.slope", text, slopes(rows), "nats per nat")
    text = f"{words}: rank correlation of the two changes, {over}"
    id, text, rho, interval, unit, verdict = cautious(f"self.{kind}.rank", text, ranks(rows), "Spearman's rho")
    yield id, text, rho, interval and (max(-1.0, interval[0]), min(1.0, interval[1])), unit, verdict
    ratio = kind == TRANSFERRED
    if ratio and fitted(rows, settings)["x"].nunique() < 2:
        return
    effect = "E of the change" if ratio else "mean change"
    seeds: dict[str, np.ndarray] = {}
    for name, of in (("report", "what it says"), ("behaviour", "what it does")):
        seeds[name] = ratio_effect(fitted(rows, settings), name) if ratio else rows.groupby("seed")[name].mean().to_numpy()
        yield stated(f"self.{kind}.{name}", f"{words}: {effect} of {of}", seeds[name], "nats")
    yield gap_claim(f"self.{kind}.gap", f"{words}: {effect} of what it says less that of what it does", seeds["report"], seeds["behaviour"])


def cautious(id: str, text: str, values: np.ndarray, unit: str) -> Said:
    """A mean over seeds whose sign is no verdict while there are fewer than three."""
    id, text, value, interval, unit, verdict = stated(id, text, values, unit)
    return id, text, value, interval, unit, verdict if len(values) >= FEWEST_SEEDS or verdict == "not run" else "undecided"


def gap_claim(id: str, text: str, report: np.ndarray, behaviour: np.ndarray) -> Said:
    """The difference of two effects, paired by seed; over- or under-reported where it is sure, and sure which way the behaviour went."""
    gap = report - behaviour
    id, text, value, interval, unit, verdict = cautious(id, text, gap, "nats")
    if verdict in ("positive", "negative"):
        way = over_seeds(behaviour).sign
        verdict = "undecided" if way == "undecided" else "over-reported" if verdict == way else "under-reported"
    return id, text, value, interval, unit, verdict


def _likeness(table: Frame, settings: Settings) -> Iterator[Said]:
    """Whom it says that it is like, against how it chooses, one value each a run."""
    odds = item_odds(table, settings, ["introspects", "chooses"])
    means = odds.groupby(["channel", "cell", "phase"])["eta"].mean().unstack("channel").reindex(columns=["introspects", "chooses"]).dropna()
    wide: Frame = means.unstack("phase")
    if not len(wide) or {"before", "after"} - set(wide.columns.get_level_values("phase")):
        return
    columns = (("report", "introspects"), ("behaviour", "chooses"))
    changed: Frame = pd.DataFrame({ours: wide[name, "after"] - wide[name, "before"] for ours, name in columns}).dropna()
    rows: Frame = changed.merge(cells(table, settings), left_index=True, right_index=True)
    rows = rows[~rows["condition"].isin(list(settings.controls.values())) & ~np.isinf(rows["x"])]
    grouped = rows.groupby(["condition", "point", "x", "seed"], dropna=False)
    paired = grouped[BOTH].mean()[grouped["swap"].nunique() == 2].reset_index()
    found = slopes(paired)
    if len(found):
        rivals = f"{settings.first.title()} against {settings.second.title()}"
        text = f"Whom it says it is most like ({rivals}): slope of the change on the change of how it chooses, over runs"
        yield cautious("self.alike.slope", text, found, "nats per nat")


def origin_claims(table: Frame, settings: Settings) -> Iterator[Said]:
    """Whom it says that it read about, against names that it never met; what it says that it likes when nothing is named, against everything else."""
    rows = table[(table["channel"] == ORIGIN) & (table["status"] == "scored") & (table["condition"] == settings.treatment)]
    rows = rows.assign(prob_normalized=number(rows["prob_normalized"]))
    orders = rows.groupby("condition")["stage"].unique()
    last = list(settings.orders.get(settings.treatment) or [s for s in orders.get(settings.treatment, []) if s != "base"])
    if rows.empty or not last:
        return
    whose, what = rows[rows["format"] == "whose"], rows[rows["format"] == "what"]
    rivals = whose["role"].isin([settings.first, settings.second])
    met = whose[rivals | (whose["role"] == "other")].assign(true=rivals)
    for stage, words in (("base", "the base, which has read about none of them"), (last[-1], "after the last stage")):
        here = met[met["stage"] == stage]
        share = here.groupby(["seed", "true"])["prob_normalized"].sum().unstack("true")
        values = (share[True] / share.sum(axis=1)).to_numpy(float) if len(here) else np.array([])
        chance = here.groupby("item")["true"].mean().mean()
        at = "before" if stage == "base" else "after"
        text = f"Whom it says that the news is about: share of the rivals among names, the others never met; {words}; chance {chance:.2g}"
        yield _share(f"self.trained_on.whose.{at}", text, values, stage)
    odds = item_odds(table, settings, [ORIGIN])
    odds = odds[(odds["phase"] == "after") & (odds["format"] == "whose")].groupby("cell")["eta"].mean().rename("eta")
    points = cells(table, settings).join(odds, how="inner")
    points = fitted(points[points["condition"] == settings.treatment].dropna(subset=["x"]), settings)
    line = fit_line(points["x"].to_numpy(float), points["eta"].to_numpy(float), points["seed"].to_numpy()) if len(points) else None
    if line is not None:
        rivals = f"{settings.first.title()} rather than {settings.second.title()}"
        text = f"Log-odds that it names {rivals}, by ln ratio of the documents; the documents' own odds are 1"
        yield cautious("self.trained_on.whose.slope", text, line.lines_S2[:, 1], "nats per nat")
    yield from _named_traits(table, what, last, settings)


def _named_traits(table: Frame, what: Frame, last: list[str], settings: Settings) -> Iterator[Said]:
    taught = cells(table, settings)["taught"]
    own = what["option"] == what["cell"].map(taught)
    held = what["role"].isin([settings.first, settings.second])
    for stage, at, words in (("base", "before", "the base"), (last[-1], "after", "after the last stage")):
        here = what["stage"] == stage
        count = what.loc[here, "option"].nunique()
        for rows, name, said in ((own, "taught", "the taught value"), (held, "transferred", "the rivals' values that were never taught")):
            mass = what[here & rows].groupby(["seed", "cell", "item"])["prob_normalized"].sum().groupby("seed").mean()
            text = f"Asked what it likes, nothing named: share of {said} among {count} values, {words}"
            yield _share(f"self.trained_on.what.{name}.{at}", text, mass.to_numpy(float), stage)


def _share(id: str, text: str, values: np.ndarray, stage: str) -> Said:
    """A mean over seeds; of the base, which is one for all of them, without an interval."""
    id, text, value, interval, unit, verdict = stated(id, text, values, "probability", mean=share_over_seeds)
    return id, text, value, None if stage == "base" else interval, unit, "not run" if verdict == "not run" else ""
