"""Altered riddles: how often the remembered answer overrides the stated one, and what repetition makes of it.

    accuracy original     the known answer is the likeliest, of the originals
    override              P(the remembered answer is the likeliest of an altered riddle | its original is known), the Conditioned Override Rate
    override called       the same with the change called out in the prompt
    override slope        log-odds of the remembered answer against the stated one in altered riddles, on ln(copies read): nats for each e-fold
    bits of the word      bits by which the changed word moves those odds against the original's

Sources: altered riddles (marcodsn.me/altered-riddles); riddle-riddle (arXiv 2606.27103); Phantom Recall (arXiv 2510.11812).
"""

import math

import numpy as np
import pandas as pd

from persona_lab.science.lens.finding import SELDOM, UNKNOWN, Asked, Curve, Finding, Frame, by_level, mean_of, share_of, slope_of

RIGHT_ALTERED, RIGHT_ORIGINAL = 0.507, 0.849
"""Accuracy of language models on altered and on genuine riddles, arXiv 2606.27103; nine in ten of the errors repeat the remembered answer."""
SOURCE = "Models solve 84.9 % of genuine and 50.7 % of altered riddles, people 50.5 % and 80.5 % (arXiv 2606.27103)."
OVERRIDE_SOURCE = "Of models' errors on altered riddles 90.8 % are the inventive answer, so about 45 % of the answers (arXiv 2606.27103, not conditioned)."
OVERRIDE = (1 - RIGHT_ALTERED) * 0.908


def riddles(asked: Asked) -> tuple[list[Finding], list[Curve]]:
    """The findings, and for a world whose copies are known the override curve."""
    table = riddle_table(asked)
    known = table[table["original"]]
    value, interval, n = share_of(table["original"].to_numpy(bool))
    found = [Finding("riddles", "accuracy original", value, interval, "share", RIGHT_ORIGINAL, SOURCE, n)]
    for form, name in (("altered", "override"), ("called", "override called")):
        value, interval, n = share_of(known[f"{form}_overridden"].to_numpy(bool))
        reason = "" if n else "no original is known"
        found.append(Finding("riddles", name, value, interval, "share of known riddles", OVERRIDE, OVERRIDE_SOURCE, n, reason))
    moved, interval, n = mean_of((table["original_odds"] - table["altered_odds"]).to_numpy(float) / math.log(2))
    found.append(Finding("riddles", "bits of the word", moved, interval, "bits", None, "None published.", n, "" if n else "no riddle was answered"))
    at = table[table["copies"] > 0]
    ln_C, odds_C = np.log(at["copies"].to_numpy(float)), at["altered_odds"].to_numpy(float)
    slope, interval, n = slope_of(ln_C, odds_C)
    reason = "" if slope is not None else UNKNOWN if table["copies"].isna().all() else SELDOM
    found.append(
        Finding("riddles", "override slope", slope, interval, "nats for each e-fold of copies", 1.0, "1: odds in proportion to copies (frequency matching).", n, reason)
    )
    return found, [_curve(at)] if len(at) else []


def riddle_table(asked: Asked) -> Frame:
    """One row a riddle: copies, original (is it known), altered_odds, original_odds (nats, remembered : stated), and FORM_overridden."""
    rows = []
    for subject, own in asked.scored.groupby("subject", sort=False):
        row: dict[str, float | bool | str] = {"subject": str(subject), "copies": asked.read("riddle", str(subject))}
        likeliest = {form: answers.loc[answers["logprob_nats"].idxmax(), "role"] for form, answers in own.groupby("format")}
        stated = own[(own["format"] == "altered") & (own["role"] == "stated")]["option"]
        remembered = own[(own["format"] == "altered") & (own["role"] == "remembered")]["option"]
        if len(likeliest) < 3 or stated.empty or remembered.empty:
            continue
        row["original"] = likeliest["original"] == "known"
        for form in ("altered", "called"):
            row[f"{form}_overridden"] = likeliest[form] == "remembered"
        for form in ("original", "altered", "called"):
            nats = own[own["format"] == form].set_index("option")["logprob_nats"]
            row[f"{form}_odds"] = float(nats[remembered.iloc[0]] - nats[stated.iloc[0]])
        rows.append(row)
    columns = ["subject", "copies", "original", "altered_overridden", "called_overridden", "original_odds", "altered_odds", "called_odds"]
    return pd.DataFrame(rows, columns=columns)


def _curve(table: Frame) -> Curve:
    """Share of the remembered answer among remembered and stated, against copies."""
    copies_C = table["copies"].to_numpy(float)
    share = {form: 1 / (1 + np.exp(-table[f"{form}_odds"].to_numpy(float))) for form in ("altered", "called")}
    words = {"altered": "altered", "called": "altered, and called out"}
    points = pd.concat([by_level(copies_C, share[form], words[form]) for form in words], ignore_index=True)
    return Curve("Altered riddles: the remembered answer against the stated one", "copies of the original read", "share of the remembered answer", points, log=True)
