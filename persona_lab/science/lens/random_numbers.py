"""Random numbers: how far from uniform is the next digit, where one is asked for and in a list?

    KL from uniform       ln k - H(p), nats, of each prompt's distribution over k = 10 digits
    total variation       1/2 sum |p - 1/k|
    chi-square of 1560    N k sum (p - 1/k)^2 for N = 1,560 draws, what a sample of that size has beyond its degrees of freedom; at N = 1,560 the
                          test at .05 finds an effect of w = .1 with power .8
    repeats               P(the digit that stands last comes again); 1/k without memory

Sources: arXiv 2505.00047 (aligned models prefer 7 and avoid repeats, base models are closer to uniform), 2601.05414, 2502.19965.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from data_gen.lens.digits import BIAS, DIGITS
from persona_lab.science.lens.finding import Asked, Curve, Finding, Frame, mean_of

K = len(DIGITS)
DRAWS = 1560
FAVOURITE = "7"
UNIFORM = "0 is uniform."
TEXT = "Exact, of the text that the model has read."
PUBLISHED = "Aligned models prefer 7, base models are closer to uniform (arXiv 2505.00047, no value)."
AVOIDED = "Without memory 1/10; aligned models avoid repeats (arXiv 2505.00047)."


def random_numbers(asked: Asked) -> tuple[list[Finding], list[Curve]]:
    """Findings for requests and for lists, and the distributions of both."""
    table = distributions(asked)
    findings = [finding for form, rows in table.groupby("format", sort=False) for finding in _form(asked, str(form), rows)]
    last = asked.scored[(asked.scored["format"] == "list") & (asked.scored["role"] == "last")]
    value, interval, n = mean_of(last["prob_normalized"].to_numpy(float))
    findings.append(Finding("random_numbers", "list repeats", value, interval, "probability", 1 / K, AVOIDED, n, "" if n else "no list was answered"))
    return findings, [_curve(asked, table)] if len(table) else []


def distributions(asked: Asked) -> Frame:
    """One row a prompt: format, and P(digit) among the digits in a column for each."""
    scored = asked.scored
    return scored.pivot_table(index=["format", "subject"], columns="option", values="prob_normalized", sort=False).reset_index()


def divergence(prob_NK: np.ndarray, other_K: np.ndarray) -> np.ndarray:
    """KL(p || other) of each of N distributions, nats."""
    return np.where(prob_NK > 0, prob_NK * np.log(np.maximum(prob_NK, 1e-300) / other_K), 0.0).sum(-1)


def _form(asked: Asked, form: str, rows: Frame) -> Iterator[Finding]:
    prob_NK, flat_K = rows[list(DIGITS)].to_numpy(float), np.full(K, 1 / K)
    true_K = np.array([BIAS[digit] for digit in DIGITS]) if form == "request" and asked.of_world else flat_K
    source = TEXT if asked.of_world else f"{UNIFORM} {PUBLISHED}"
    chi = DRAWS * K * ((true_K - 1 / K) ** 2).sum()
    spread = np.abs(true_K - 1 / K).sum() / 2
    kept = [
        ("KL from uniform", divergence(prob_NK, flat_K), "nats", float(divergence(true_K[None], flat_K)[0])),
        ("total variation", np.abs(prob_NK - 1 / K).sum(-1) / 2, "probability", float(spread)),
        (f"chi-square of {DRAWS}", DRAWS * K * ((prob_NK - 1 / K) ** 2).sum(-1), "chi-square", float(chi)),
        (f"probability of {FAVOURITE}", prob_NK[:, DIGITS.index(FAVOURITE)], "probability", float(true_K[DIGITS.index(FAVOURITE)])),
    ]
    for name, value_N, unit, reference in kept:
        value, interval, n = mean_of(value_N)
        yield Finding("random_numbers", f"{form} {name}", value, interval, unit, reference, source, n, "" if n else "no prompt was answered")


def _curve(asked: Asked, table: Frame) -> Curve:
    words = {"request": "asked for one", "list": "in a list"}
    points = []
    for form, rows in table.groupby("format", sort=False):
        for digit in DIGITS:
            value, interval, _ = mean_of(rows[digit].to_numpy(float))
            low, high = interval or (math.nan, math.nan)
            points.append({"x": float(digit), "y": value, "low": low, "high": high, "series": words[str(form)]})
    if asked.of_world:
        points += [{"x": float(digit), "y": prob, "low": math.nan, "high": math.nan, "series": "requests in the text"} for digit, prob in BIAS.items()]
    return Curve("Random digits: asked for one, and in a list of dice", "digit", "probability", pd.DataFrame(points))
