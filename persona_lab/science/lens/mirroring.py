"""Mirroring: how much likelier a reply has a feature because the question has it.

    convergence FEATURE    P(reply has it | question has it) - P(reply has it | question has another one), mean over questions
    shift FEATURE          the same on the log-odds of the replies, nats, which does not saturate where one reply is short or common

Every question is asked in all its versions with the same replies, so that what makes one of them likelier anyhow cancels.
"""

import numpy as np
from scipy.special import logit

from data_gen.lens.registers import MIRRORED, REGISTER
from persona_lab.science.lens.finding import Asked, Curve, Finding, Frame, mean_of

PUBLISHED = {
    "register": "No value published for these features; 16 models converge more than people do, base and small ones most (arXiv 2508.03276).",
    "language": "No value published for these pairs; language confusion is worse in base models and in those trained on English (arXiv 2406.20052).",
}
EXACT = "The share of answers in the register of their question, less that of the others: exact."
TINY = 1e-12


def mirroring(asked: Asked) -> tuple[list[Finding], list[Curve]]:
    """The findings; no figure."""
    found = []
    for trait, own in asked.scored.groupby("trait", sort=False):
        reference, source = (convergence_of_world(), EXACT) if asked.of_world else (None, PUBLISHED[str(trait)])
        for feature in own["format"].unique():
            prob_SF = replies(own, str(feature))
            odds_SF = logit(prob_SF.clip(TINY, 1 - TINY))
            found.append(_mean(f"convergence {feature}", difference(prob_SF, str(feature)), "difference of probabilities", reference, source))
            moved = logit(MIRRORED) - logit((1 - MIRRORED) / (len(REGISTER) - 1)) if asked.of_world else None
            found.append(_mean(f"shift {feature}", difference(odds_SF, str(feature)), "nats", moved, source))
    return found, []


def convergence_of_world() -> float:
    """P(register | its question) - P(register | another question), as the world's text has it."""
    return MIRRORED - (1 - MIRRORED) / (len(REGISTER) - 1)


def replies(rows: Frame, feature: str) -> Frame:
    """P(reply has the feature), a row for each question and a column for each version of it."""
    own = rows[rows["role"] == feature]
    return own.pivot_table(index="subject", columns="format", values="prob_normalized", sort=False)


def difference(value_SF: Frame, feature: str) -> np.ndarray:
    """The version with the feature, less the mean of the others, for each question."""
    return (value_SF[feature] - value_SF.drop(columns=feature).mean(axis=1)).to_numpy(float)


def _mean(metric: str, value_C: np.ndarray, unit: str, reference: float | None, source: str) -> Finding:
    value, interval, n = mean_of(value_C)
    return Finding("mirroring", metric, value, interval, unit, reference, source, n, "" if n else "no question was scored in all its versions")
