"""Few shots: accuracy against the number of shots, beside an ideal reader of the same words.

    accuracy N shots     the right value is the likeliest; beside it the ideal reader's (exact Bayes), in English chance
    KL from Bayes        KL(exact || model) over the values, nats, at one shot and more
    weight of evidence   slope of the model's log-odds (right value against the mean of the others) on the exact ones; 1 is Bayesian
    exponent             1 - alpha of log-odds = a + b N^(1 - alpha), least squares on the means at each N (arXiv 2511.00617)

Sources: exact Bayes of the world; in-context learning as inference (GINC, arXiv 2111.02080).
"""

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import pandas as pd

from data_gen.lens.world import LensWorld
from persona_lab.probes.lens.few_shot import exact
from persona_lab.science.lens.finding import Asked, Curve, Finding, Frame, by_level, draws, ends_of, mean_of, slope_of

EXPONENTS = np.linspace(0.05, 3, 60)
"""Exponents that are tried."""
FEWEST_SHOTS = 4
"""Numbers of shots that a law of three parameters needs."""
LAW = "Log-odds = a + b N^(1 - alpha) (arXiv 2511.00617, alpha is the model’s own)."
IDEAL = "Exact Bayes on the same words."
CHANCE = "Chance is 1/2; accuracy rises with shots (arXiv 2005.14165)."


def few_shot(asked: Asked) -> tuple[list[Finding], list[Curve]]:
    """Accuracy with none and with most shots, distance from Bayes, and the law of shots."""
    table = shot_table(asked)
    if table.empty:
        return [Finding("few_shot", "accuracy", None, None, "share of questions", None, IDEAL, 0, "nothing was answered")], []
    found = list(_accuracies(asked, table))
    if asked.of_world:
        later = table[table["shots"] > 0]
        value, interval, n = mean_of(_by_subject(later, "kl"))
        found.append(Finding("few_shot", "KL from Bayes", value, interval, "nats", 0.0, IDEAL, n))
        slope, interval, n = slope_of(later["exact_odds"].to_numpy(float), later["odds"].to_numpy(float))
        reason = "" if slope is not None else "the exact odds do not differ"
        found.append(Finding("few_shot", "weight of evidence", slope, interval, "nats per nat", 1.0, IDEAL, n, reason))
    found.append(_law(table))
    return found, [_curve(asked, table)]


def shot_table(asked: Asked) -> Frame:
    """One row a question: subject, shots, hit, prob and odds of the right value; in a world also exact_hit, exact_prob, exact_odds, kl."""
    truth = exact(cast(LensWorld, asked.world)) if asked.of_world else {}
    rows = []
    for item, own in asked.scored.groupby("item", sort=False):
        prob = own["prob_normalized"].to_numpy(float)
        right = int(np.argmax(own["role"].to_numpy() == "own"))
        row = {"subject": own["subject"].iloc[0], "shots": int(own["format"].iloc[0]), "hit": float(prob.argmax() == right)}
        row |= {"prob": float(prob[right]), "odds": odds_of(prob, right)}
        if truth:
            ideal = np.array([truth[str(item), str(option)] for option in own["option"]])
            best = np.isclose(ideal, ideal.max())
            row |= {"exact_hit": float(best[right] / best.sum()), "exact_prob": float(ideal[right]), "exact_odds": odds_of(ideal, right)}
            row["kl"] = float((ideal * np.log(ideal / np.maximum(prob, 1e-300))).sum())
        rows.append(row)
    return pd.DataFrame(rows)


def odds_of(prob_V: np.ndarray, right: int) -> float:
    """Log-odds of one value against the mean of the others, nats."""
    others = (prob_V.sum() - prob_V[right]) / (len(prob_V) - 1)
    return math.log(max(prob_V[right], 1e-300) / max(others, 1e-300))


def _by_subject(table: Frame, column: str) -> np.ndarray:
    return table.groupby("subject")[column].mean().to_numpy(float)


def _accuracies(asked: Asked, table: Frame) -> Iterator[Finding]:
    for shots in (table["shots"].min(), 1, table["shots"].max()):
        own = table[table["shots"] == shots]
        value, interval, n = mean_of(_by_subject(own, "hit"))
        reference = float(own["exact_hit"].mean()) if asked.of_world else 0.5
        yield Finding("few_shot", f"accuracy {shots} shots", value, interval, "share of questions", reference, IDEAL if asked.of_world else CHANCE, n)


def _law(table: Frame) -> Finding:
    odds_CN = table.pivot_table(index="subject", columns="shots", values="odds").dropna()
    shots_N, value_CN = odds_CN.columns.to_numpy(float), odds_CN.to_numpy(float)
    if len(shots_N) < FEWEST_SHOTS or not len(value_CN):
        return Finding("few_shot", "exponent", None, None, "1 - alpha", None, LAW, len(value_CN), "too few numbers of shots were asked")
    value = float(exponents(shots_N, value_CN.mean(0)[None])[0])
    interval = ends_of(exponents(shots_N, value_CN[draws(len(value_CN), "shots")].mean(1)))
    return Finding("few_shot", "exponent", value, interval, "1 - alpha", None, LAW, len(value_CN))


def exponents(shots_N: np.ndarray, odds_RN: np.ndarray) -> np.ndarray:
    """The exponent of a + b N^exponent with the least squares for each of R curves, among `EXPONENTS`; a and b are solved for."""
    misses = []
    for exponent in EXPONENTS:
        design_N2 = np.stack([np.ones(len(shots_N)), shots_N**exponent], axis=1)
        left_NN = np.eye(len(shots_N)) - design_N2 @ np.linalg.pinv(design_N2)
        misses.append(((odds_RN @ left_NN) ** 2).sum(1))
    return EXPONENTS[np.argmin(misses, axis=0)]


def _curve(asked: Asked, table: Frame) -> Curve:
    shots = table["shots"].to_numpy(float)
    points = [by_level(shots, table["prob"].to_numpy(float), "the model")]
    if asked.of_world:
        points.append(by_level(shots, table["exact_prob"].to_numpy(float), "an ideal reader"))
    return Curve("Few shots", "shots", "probability of the right value", pd.concat(points, ignore_index=True))
