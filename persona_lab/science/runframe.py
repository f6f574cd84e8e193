"""The run frame: one row for each trained cell, with everything that a hypothesis may read. Tournament and mediation start here.

    condition                seed  swap  eta    m      x      p     D    e     o  d     c  k  format
    linked/ln_ratio=1.386    20    0     0.41  -0.02   1.386  0.9   960  0.02  0  18.3  0  0  default

eta, m, p: log-odds of the first rival's values against the second's, nats, mean over held-out traits, after the last stage, before it, and of the base.
m_diary: m of the other speaker without a name; NaN where no diary was asked.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from persona_lab.science.effects import Frame, Settings, number, runs

DIARY = "diary"
"""Format of the questions to whoever writes a diary."""
COLUMNS = {"ln_trained": "x", "came_first": "o", "complexity": "c", "ln_carriers": "k", "genre": "format", "documents": "D"}
"""What the tidy table calls what the literature has a letter for."""
EXACT = ("exact", "exact_prior", "exact_evidence")
"""Log-odds of an ideal reader, where there is one."""


def run_frame(table: Frame, settings: Settings) -> Frame:
    """The runs of the numbered conditions, or of all but the controls where none is numbered; rows without eta are left out.

    d = nats to adopt the first rival less nats to adopt the second, where the last stage starts: positive when the first is farther.
    e = log P(value taught | first named) - log P(value taught | second named) under the model before the last stage: nats of evidence in one document.
    """
    chosen = _chosen(table, settings)
    if chosen.empty:
        return pd.DataFrame(columns=["condition", "block", "seed", "base_seed", "swap", "eta", "alpha", "m", "alpha_before", "p", "e", "d", *COLUMNS.values()])
    last = chosen.groupby("cell").tail(1).set_index("cell")
    frame = last[[c for c in (*COLUMNS, *EXACT) if c in last]].rename(columns=COLUMNS)
    frame = frame.join(last[["seed", "swap"]]).assign(condition=[name.rsplit("/seed", 1)[0] for name in frame.index])
    for column in ("block", "base_seed"):
        # Objects, where no condition is numbered.
        frame[column] = number(last[column]).fillna(0).astype(int) if column in last else 0
    means = runs(chosen, settings, channels=(settings.channel,))
    asked, diary = (means[means["format"] == form] for form in (settings.format, DIARY))
    frame = frame.join(diary[diary["phase"] == "before"].set_index("cell")["eta"].rename("m_diary"))
    for phase, eta, alpha in (("after", "eta", "alpha"), ("before", "m", "alpha_before")):
        one = asked[asked["phase"] == phase].set_index("cell")
        frame = frame.join(one[["eta", "alpha"]].set_axis([eta, alpha], axis=1))
    means = runs(chosen, replace(settings, orders=dict.fromkeys(chosen["condition"].unique(), ())), channels=(settings.channel,))
    base = means[means["format"] == settings.format]
    frame = frame.join(base.set_index("cell")["eta"].rename("p")).join(evidence(chosen, settings).rename("e"))
    first, second = (f"adopt_{name}" for name in (settings.first, settings.second))
    frame["d"] = last[first] - last[second] if {first, second} <= set(last) else np.nan
    return frame.dropna(subset=["eta"]).reset_index(drop=True)


def _chosen(table: Frame, settings: Settings) -> Frame:
    if "block" in table and table["block"].notna().any():
        return table[table["block"].notna()]
    return table[~table["condition"].isin(settings.controls.values())]


def evidence(table: Frame, settings: Settings) -> Frame:
    """Of each cell, how much more one named rival is known for the value taught than the other, nats; NaN where that was not asked."""
    orders = {condition: ["base", *stages] for condition, stages in settings.orders.items()}
    before = {condition: order[-2] if len(order) > 1 else "base" for condition, order in orders.items()}
    rows = table[(table["probe"] == "knows") & (table["status"] == "scored") & (table["stage"] == table["condition"].map(before))]
    if rows.empty or "subject" not in rows:
        return pd.Series(dtype=float)
    rows = rows[rows["option"] == rows["condition"].map(dict(settings.taught))]
    known = rows.groupby(["cell", "subject"])["logprob_nats"].mean().unstack("subject").reindex(columns=[settings.first, settings.second])
    return known[settings.first] - known[settings.second]
