"""Drift over turns: what becomes of a speaker's own answer while turns go by that say nothing of it.

    own FORMAT        P(the speaker's own answer) without a turn in between, among the options
    drift FORMAT      its change with each turn, mean over speakers of the slope; 0 for an ideal reader
"""

import numpy as np
import pandas as pd

from persona_lab.science.lens.finding import Asked, Curve, Finding, Frame, by_level, mean_of

NAMED = "In the world's text a named speaker always has its own value: exact."
EXACT = "Such turns say nothing of the speaker: exact."
PUBLISHED = "0 for an ideal reader; persona fidelity decays over more than 100 turns (arXiv 2512.12775), no value for so few."
WORDS = {"named": "by name", "told": "after two of its traits", "described": "after a description"}


def drift(asked: Asked) -> tuple[list[Finding], list[Curve]]:
    """The findings, and the curve over turns."""
    rows = asked.scored
    own = rows[rows["role"] == "own"].assign(turns=lambda table: table["trait"].astype(float))
    found, curves = [], []
    for form, asked_so in own.groupby("format", sort=False):
        value, interval, n = mean_of(asked_so[asked_so["turns"] == 0]["prob_normalized"].to_numpy(float))
        reference, source = (1.0, NAMED) if asked.of_world and form == "named" else (None, "None published.")
        found.append(Finding("drift", f"own {form}", value, interval, "probability", reference, source, n, "" if n else "no item was scored"))
        value, interval, n = mean_of(slopes(asked_so))
        source = EXACT if asked.of_world else PUBLISHED
        found.append(Finding("drift", f"drift {form}", value, interval, "probability a turn", 0.0, source, n, "" if n else "nobody was asked after two numbers of turns"))
        curves.append(by_level(asked_so["turns"].to_numpy(float), asked_so["prob_normalized"].to_numpy(float), WORDS.get(str(form), str(form))))
    if not curves:
        return [Finding("drift", "drift", None, None, "probability a turn", 0.0, EXACT, 0, "no item was scored")], []
    return found, [Curve("Drift: the speaker's own answer after turns about other things", "turns in between", "P(own answer)", pd.concat(curves, ignore_index=True))]


def slopes(own: Frame) -> np.ndarray:
    """For each speaker the least-squares slope of P(own answer) on turns; those with fewer than two numbers of turns are left out."""
    found = []
    for _, speaker in own.groupby("subject", sort=False):
        turns, prob = speaker["turns"].to_numpy(float), speaker["prob_normalized"].to_numpy(float)
        spread = float(((turns - turns.mean()) ** 2).sum())
        if spread > 0:
            found.append(float(((turns - turns.mean()) * (prob - prob.mean())).sum() / spread))
    return np.array(found)
