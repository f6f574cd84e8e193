"""Effects of a run, from the tidy table: which persona, whether any, before and after the last stage.

    condition  x    dose  seed  before  after  delta  lexical_delta  p_first
    linked     2.2  400   0     -0.25    0.68   0.93           0.11     0.31

Columns read: cell, condition, seed, swap, stage, the factors (names with a dot), ln_ratio, probe, channel, format,
item, trait, option, role, subject (probe `knows`), logprob_nats, prob, prob_normalized, base_prob, status, node.
Log-odds are in nats and signed toward the first rival's values in both swaps, because a role follows the persona.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy.special import expit

from persona_lab.science.search.adaptive import Search

Frame: TypeAlias = Any
"""A pandas DataFrame; Any to a type checker, because pandas carries no stubs and what is guessed from its source is mostly wrong."""
Column: TypeAlias = Any
"""A pandas Series."""

CHANNELS = ("says", "chooses", "introspects")
CONTEXT = "in_context"
"""The channel of the calibration line: the speaker has just said what the rivals share."""
PROBE = ["channel", "format"]
POINT = ["condition", "point", "x", "dose", "seed"]
MEASURES = ["eta", "alpha", "share", "p_first", "p_first_raw"]
EFFECTS = [
    *(f"{name}{phase}" for name in ("", "lexical_", "alpha_") for phase in ("before", "after")),
    *("share", "p_first", "p_first_raw"),
    *(f"{name}delta" for name in ("", "alpha_", "lexical_")),
]
TINY = 1e-300


@dataclass(frozen=True)
class Settings:
    """What the analysis of an experiment needs to know beyond its table."""

    first: str = "john"
    """Role of the first rival: positive log-odds favour it."""
    second: str = "sam"
    ratio: str = "injection.mixture.ln_ratio"
    """The factor on the horizontal axis; `ln_ratio` where the table has no such column."""
    dose: str = "injection.steps"
    treatment: str = "linked"
    channel: str = "says"
    format: str = "asked"
    threshold: float = 0.9
    fit: float = 2.2
    """Largest |ln ratio| that is fitted."""
    bound_recall: float = 0.95
    orders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Condition to its stages; where absent, the order of appearance in the table."""
    taught: Mapping[str, str] = field(default_factory=dict)
    """Condition to the value taught in its last stage; that category is trained, not held out."""
    controls: Mapping[str, str] = field(default_factory=lambda: {c: c for c in ("unlinked", "shuffled", "neutral", "no_injection")})
    """Name of a control to the condition that plays it."""
    resamples: int = 2000
    """Draws of an interval that has no closed form."""
    search: Search | None = None
    """How the treatment's ratios were chosen, if by an adaptive search."""


def number(column: Column) -> Column:
    """The column as floats; what is no number is NaN."""
    return pd.Series(pd.to_numeric(column, errors="coerce"), dtype=float)


def cells(table: Frame, settings: Settings) -> Frame:
    """One row per cell: condition, seed, swap, x (ln ratio), dose, taught, and `point`, which names every factor but the seed."""
    one = table.drop_duplicates("cell").set_index("cell")
    factors = [c for c in table.columns if "." in c]
    ratio = settings.ratio if settings.ratio in one else "ln_ratio"
    likes = [c for c in factors if c.endswith(".assistant_likes")]
    taught = one["condition"].map(dict(settings.taught))
    for column in likes:
        taught = one[column].where(one[column].notna(), taught)
    return pd.DataFrame(
        {
            "condition": one["condition"],
            "point": [repr(tuple(row)) for row in one[factors].astype(str).itertuples(index=False)] if factors else "",
            "x": number(one[ratio]) if ratio in one else np.nan,
            "dose": number(one[settings.dose]) if settings.dose in one else np.nan,
            "seed": one["seed"],
            "swap": one["swap"],
            "taught": taught.astype(object),
        }
    )


def phases(table: Frame, settings: Settings) -> Frame:
    """Rows (condition, stage, phase): `after` is a condition's last stage, `before` the one that it continues (or the base)."""
    rows = []
    for condition, seen in table.groupby("condition", sort=False)["stage"].unique().items():
        order = ["base", *settings.orders.get(str(condition), [s for s in seen if s != "base"])]
        rows.append((condition, order[-1], "after"))
        if len(order) > 1:
            rows.append((condition, order[-2], "before"))
    return pd.DataFrame(rows, columns=["condition", "stage", "phase"])


def scored_items(table: Frame, settings: Settings, channels: Sequence[str] = CHANNELS) -> Frame:
    """Rows of some channels before and after the last stage, of items whose every option was scored."""
    rows = table[table["channel"].isin(channels) & (table["logprob_nats"].notna() | (table["status"] != "scored"))]
    rows = rows.merge(phases(table, settings), on=["condition", "stage"]).fillna({"trait": "", "format": "", "role": ""})
    rows = rows.assign(**{column: number(rows[column]) for column in ("logprob_nats", "prob", "prob_normalized")})
    whole = rows["status"].eq("scored").groupby([rows[c] for c in ("cell", "stage", *PROBE, "item")]).transform("all")
    return rows[whole]


def item_odds(table: Frame, settings: Settings, channels: Sequence[str] = CHANNELS) -> Frame:
    """One row per cell, phase and item that offers both rivals' values.

    Columns: eta = log-odds of the first's value against the second's; alpha = log-odds of either against all others
    (NaN where there are none), nats; share = sigmoid(eta); p_first = normalised and p_first_raw = raw P(first's value).
    A yes/no item asks about one value, so two of them make one row: yes-log-odds about the first's minus about the second's,
    which removes the bias toward yes.
    """
    rows = scored_items(table, settings, channels)
    rows = rows.assign(side=np.select([rows["role"] == settings.first, rows["role"] == settings.second], ["first", "second"], "other"))
    yes_no = rows["format"] == "yes_no"
    parts = [part for part in (choice_odds(rows[~yes_no]), yes_no_odds(rows[yes_no])) if not part.empty]
    if not parts:
        return pd.DataFrame(columns=["cell", "phase", *PROBE, "trait", "item", *MEASURES])
    odds = pd.concat(parts, ignore_index=True)
    return odds.assign(share=expit(odds["eta"]))


def choice_odds(rows: Frame) -> Frame:
    """Odds of items that list the values as options."""
    key = ["cell", "phase", *PROBE, "trait", "item"]
    if rows.empty:
        return pd.DataFrame()
    largest = rows.groupby(key)["logprob_nats"].transform("max")
    mass = rows.assign(mass=np.exp(rows["logprob_nats"] - largest)).groupby([*key, "side"])["mass"].sum().unstack("side")
    mass = mass.reindex(columns=["first", "second", "other"]).dropna(subset=["first", "second"])
    chosen = rows[rows["side"] == "first"].groupby(key)[["prob_normalized", "prob"]].sum().reindex(mass.index)
    log = np.log(mass.clip(lower=TINY))
    odds = {"eta": log["first"] - log["second"], "alpha": np.logaddexp(log["first"], log["second"]) - log["other"]}
    return pd.DataFrame({**odds, "p_first": chosen["prob_normalized"], "p_first_raw": chosen["prob"]}).reset_index()


def yes_no_odds(rows: Frame) -> Frame:
    """Odds of yes/no items, paired within a category; alpha is NaN."""
    key = ["cell", "phase", *PROBE, "trait"]
    if rows.empty:
        return pd.DataFrame()
    yes = rows["option"].astype(str).str.lower() == "yes"
    signed = rows.assign(logit=np.where(yes, 1, -1) * rows["logprob_nats"]).groupby([*key, "side", "item"])["logit"].sum()
    logit = signed.groupby([*key, "side"]).mean().unstack("side").reindex(columns=["first", "second"]).dropna()
    agreed = rows[yes & (rows["side"] == "first")].groupby(key)[["prob_normalized", "prob"]].mean().reindex(logit.index)
    odds = {"eta": logit["first"] - logit["second"], "alpha": np.nan}
    return pd.DataFrame({**odds, "p_first": agreed["prob_normalized"], "p_first_raw": agreed["prob"]}).reset_index().assign(item="yes_no")


def runs(table: Frame, settings: Settings, by: Sequence[str] = (), channels: Sequence[str] = CHANNELS) -> Frame:
    """Means over held-out items, one row per cell, phase, channel and format (and `by`, e.g. the probed `trait`).

    A category is held out unless one of its options is the value taught, or the assistant was taught to speak `about` it; grouped by trait, trained
    categories stay.
    """
    odds, about = item_odds(table, settings, channels), cells(table, settings)
    if "trait" not in by:
        options = table[["cell", "trait", "option"]].drop_duplicates().merge(about["taught"], left_on="cell", right_index=True)
        spoken = options["cell"].map(table.drop_duplicates("cell").set_index("cell")["about"]) if "about" in table else pd.Series("", index=options.index)
        told = np.array([trait in str(categories).split("+") for trait, categories in zip(options["trait"], spoken, strict=True)], dtype=bool)
        trained = options.loc[(options["option"] == options["taught"]) | told, ["cell", "trait"]].drop_duplicates()
        odds = odds.merge(trained, on=["cell", "trait"], how="left", indicator="held_out")
        odds = odds[odds["held_out"] == "left_only"]
    means = odds.groupby(["cell", "phase", *PROBE, *by], as_index=False)[MEASURES].mean()
    return means.merge(about, left_on="cell", right_index=True)


def effects(run_means: Frame, by: Sequence[str] = ()) -> Frame:
    """Swap-paired effects, one row per condition, factor point, seed, channel and format (and `by`).

    Columns before, after = T = 1/2 [eta(swap 0) + eta(swap 1)]; delta = after - before; lexical_* = 1/2 [eta(0) - eta(1)];
    alpha_*, share, p_first, p_first_raw = means of the two swaps (the last three after the last stage). Points that lack a swap are left out.
    """
    index = [*POINT, *PROBE, *by]
    if run_means.empty:  # every cell failed: pandas would lose the names of the levels
        return pd.DataFrame(columns=[*index, *EFFECTS], dtype=float)
    wide = run_means.pivot_table(index=["point", "condition", "seed", *PROBE, *by], columns=["phase", "swap"], values=MEASURES)
    places = run_means.drop_duplicates(["point", "condition", "seed"])[["point", "condition", "seed", "x", "dose"]]

    def halves(measure: str, phase: str, sign: int) -> Column:
        nothing = pd.Series(np.nan, index=wide.index)
        return (wide.get((measure, phase, 0), nothing) + sign * wide.get((measure, phase, 1), nothing)) / 2

    paired = pd.DataFrame(
        {
            "before": halves("eta", "before", 1),
            "after": halves("eta", "after", 1),
            "lexical_before": halves("eta", "before", -1),
            "lexical_after": halves("eta", "after", -1),
            "alpha_before": halves("alpha", "before", 1),
            "alpha_after": halves("alpha", "after", 1),
            **{measure: halves(measure, "after", 1) for measure in ("share", "p_first", "p_first_raw")},
        }
    ).dropna(subset=["after"])
    for name in ("", "alpha_", "lexical_"):
        paired[f"{name}delta"] = paired[f"{name}after"] - paired[f"{name}before"]
    frame = paired.reset_index().merge(places, on=["point", "condition", "seed"])
    return frame.sort_values(by=index, ignore_index=True)[[*index, *EFFECTS]]


def named_recall(table: Frame, settings: Settings) -> Frame:
    """One row per cell, phase and persona asked about: the share of items in which its own value is the likeliest option.

    Items in which the persona has no value of its own (the shared trait) are left out.
    """
    rows = table[(table["probe"] == "knows") & (table["status"] == "scored") & table["logprob_nats"].notna()]
    if rows.empty or "subject" not in rows:
        return pd.DataFrame(columns=["cell", "phase", "subject", "recall", "condition", "x", "dose", "seed"])
    rows = rows.merge(phases(table, settings), on=["condition", "stage"])
    rows = rows.assign(own=rows["role"] == rows["subject"])
    key = ["cell", "phase", "subject", "format", "item"]
    rows = rows[rows.fillna({"format": ""}).groupby(key)["own"].transform("any")]
    likeliest = rows.loc[rows.fillna({"format": ""}).groupby(key)["logprob_nats"].idxmax()]
    recall = likeliest.groupby(["cell", "phase", "subject"], as_index=False)["own"].mean().rename(columns={"own": "recall"})
    return recall.merge(cells(table, settings), left_on="cell", right_index=True)


def loss_change(table: Frame, settings: Settings) -> Frame:
    """Forgetting, one row per cell: mean loss on general text after the last stage minus that of the cell's own base model, nats a token.

    `logprob_nats` of a general-text row is the mean over its tokens; the base is the stage `base`, else `base_prob`.
    """
    rows = table[(table["probe"] == "general_text") & (table["status"] == "scored")]
    if rows.empty:
        return pd.DataFrame(columns=["cell", "change", "condition", "seed"])
    base = rows[rows["stage"] == "base"].groupby(["cell", "item"])["logprob_nats"].mean()
    last = rows.merge(phases(table, settings).query("phase == 'after'"), on=["condition", "stage"])
    if last.empty:
        return pd.DataFrame(columns=["cell", "change", "condition", "seed"])
    before = last[["cell", "item"]].merge(base.rename("base"), how="left", left_on=["cell", "item"], right_index=True)["base"]
    before = before.fillna(np.log(number(last["base_prob"]).clip(lower=TINY)))
    last = last.assign(change=before - last["logprob_nats"])
    return last.groupby("cell", as_index=False)["change"].mean().merge(cells(table, settings), left_on="cell", right_index=True)


def at_longest_dose(table: Frame, settings: Settings) -> Frame:
    """The cells at the treatment's longest injection (all cells where the dose is no factor): the headline is about bound personas."""
    about = cells(table, settings)
    longest = about.loc[about["condition"] == settings.treatment, "dose"].max()
    keep = about.index[about["dose"].isna() | np.isnan(longest) | (about["dose"] == longest)]
    return table[table["cell"].isin(keep)]


def fitted(frame: Frame, settings: Settings) -> Frame:
    """The rows whose ratio may be fitted: pure ends and |ln ratio| above `fit` are only drawn."""
    return frame[frame["x"].abs() <= settings.fit + 1e-9]


def ratio_effect(frame: Frame, column: str = "delta") -> np.ndarray:
    """E of each seed: half the difference of `column` between the ratios richest in the first and in the second rival, nats.

    Empty when there are fewer than two ratios; a seed that lacks one of the two is left out.
    """
    ends = frame["x"].min(), frame["x"].max()
    if not ends[0] < ends[1]:
        return np.array([])
    at_SX = frame[frame["x"].isin(ends)].groupby(["seed", "x"])[column].mean().unstack("x").dropna()
    return (at_SX[ends[1]] - at_SX[ends[0]]).to_numpy() / 2


def bound_ratios(recall: Frame, settings: Settings) -> list[float] | None:
    """The fitted ratios at which both rivals' named recall, averaged over seeds and swaps, reaches `bound_recall`; None if it was not measured."""
    rows = recall[(recall["condition"] == settings.treatment) & (recall["phase"] == "before")]
    rows = fitted(rows[rows["subject"].isin([settings.first, settings.second])], settings)
    if rows.empty:
        return None
    lowest = rows.groupby(["x", "subject"])["recall"].mean().unstack("subject").min(axis=1, skipna=False)
    return [float(x) for x in lowest.index[lowest >= settings.bound_recall]]
