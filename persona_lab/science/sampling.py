"""Sampled answers beside log-probabilities: what the model says when it is let speak, and where the two disagree.

A sampled item `says/sampled/sport/2` asks what the scored item `says/asked/sport/2` asks.
"""

from typing import Any

import pandas as pd

from persona_lab.science.effects import Settings, phases

Frame = Any


def sampling_gap(table: Frame, settings: Settings) -> Frame:
    """After the treatment's last stage, one row per seed: `gap`, `unread`.

    gap: sampled share minus normalised probability of the first rival's value, mean over held-out items; unbiased however
    few the samples. unread: share of the sampled answers that name no value of the category, or several.
    """
    empty = pd.DataFrame(columns=["seed", "gap", "unread"])
    rows = table[(table["condition"] == settings.treatment) & (table["channel"] == "says") & table["format"].isin(["sampled", "asked"])]
    rows = rows.merge(phases(table, settings).query("phase == 'after'"), on=["condition", "stage"])
    sampled = rows[rows["format"] == "sampled"]
    if sampled.empty:
        return empty
    question = rows["item"].str.split("/", n=2).str[2]
    own = rows.assign(question=question)[(rows["role"] == settings.first) & (rows["status"] == "scored")]
    by_format = own.pivot_table(index=["seed", "cell", "question"], columns="format", values="prob_normalized")
    if not {"sampled", "asked"} <= set(by_format.columns):
        return empty
    gap = (by_format["sampled"] - by_format["asked"]).dropna().groupby("seed").mean()
    lost = sampled[sampled["role"] == "none"].groupby("seed")["n_samples"].sum()
    read = sampled[sampled["role"] != "none"].drop_duplicates(["cell", "item"]).groupby("seed")["n_samples"].sum()
    unread = (lost.reindex(read.index, fill_value=0) / (read + lost.reindex(read.index, fill_value=0))).rename("unread")
    return pd.concat([gap.rename("gap"), unread], axis=1).reset_index()
