"""The local learning coefficient of a trained adapter (M6), from chains of losses; it compares two solutions, never two processes.

    lambda = n beta (E_{w ~ exp(-n beta L_n - gamma/2 |w - w*|^2)} L_n(w) - L_n(w*)),      beta = 1 / log n

n counts the documents of which L_n is the mean loss, nats a document (Watanabe 2013; Lau et al. 2308.12108; reference/science.md, M6). Half the number of
parameters for a regular minimum, less for a flat one. A number is given only when the chains pass every check of their settings.

Names: C chains, D draws that were kept.
"""

from dataclasses import dataclass
from math import log

import numpy as np

from persona_lab.science.thresholds import Interval, over_seeds

MOST_RHAT = 1.1
"""Largest split R-hat of chains that agree (Gelman et al.)."""
MOST_DRIFT = 0.1
"""Largest change of the estimate from the first half of the draws to the second, as a share of it."""
MOST_STEP = 0.15
"""Largest relative change of the estimate when the step of the sampler is halved."""


@dataclass(frozen=True)
class Coefficient:
    """An estimate; `value` is None where the sampler's settings fail a check, and `reasons` say which."""

    value: float | None
    interval: Interval | None
    """95 %, t over chains."""
    reasons: tuple[str, ...]


def inverse_temperature(documents: int) -> float:
    """The factor n beta = n / log n. ValueError for fewer than two documents: log 1 is 0."""
    if documents < 2:
        raise ValueError(f"a local learning coefficient needs two documents or more, got {documents}")
    return documents / log(documents)


def split_rhat(loss_CD: np.ndarray) -> float:
    """Split R-hat of the chains' losses: 1 when halves of all chains have one mean (Gelman et al., Bayesian Data Analysis 3rd ed., section 11.4)."""
    half = loss_CD.shape[1] // 2
    halves_HD = np.concatenate([loss_CD[:, :half], loss_CD[:, -half:]])
    within = halves_HD.var(axis=1, ddof=1).mean()
    between = half * halves_HD.mean(axis=1).var(ddof=1)
    return float(np.sqrt(((half - 1) * within + between) / half / within)) if within > 0 else np.inf


def coefficient(loss_CD: np.ndarray, start: float, nbeta: float) -> Coefficient:
    """The coefficient from the chains, and what is wrong with their settings.

    Args:
        loss_CD: losses of the draws that were kept, nats a document.
        start: L_n(w*), the loss where the chains began.
        nbeta: n beta.
    """
    if loss_CD.shape[0] < 2 or loss_CD.shape[1] < 8:
        return Coefficient(None, None, (f"{loss_CD.shape[0]} chains of {loss_CD.shape[1]} draws, at least 2 of 8 are needed",))
    if not np.isfinite(loss_CD).all():
        return Coefficient(None, None, ("a chain left for infinity: lower the step",))
    lambda_C = nbeta * (loss_CD.mean(axis=1) - start)
    found = over_seeds(lambda_C)
    half = loss_CD.shape[1] // 2
    drift = nbeta * float(loss_CD[:, -half:].mean() - loss_CD[:, :half].mean())
    reasons = []
    if found.value <= 0:
        reasons.append("negative: the start is no minimum of this loss, train longer or take the documents it was trained on")
    if abs(drift) > MOST_DRIFT * abs(found.value):
        reasons.append(f"no plateau: the second half of the draws gives {drift:+.3g} over the first, draw longer")
    if (rhat := split_rhat(loss_CD)) > MOST_RHAT:
        reasons.append(f"chains disagree: split R-hat {rhat:.3g}, draw longer")
    return Coefficient(None, None, tuple(reasons)) if reasons else Coefficient(found.value, found.interval, ())


def settled(whole: Coefficient, halved: Coefficient) -> Coefficient:
    """The estimate at half the step, when both steps give nearly the same; a sampler's bias falls with its step."""
    if whole.value is None or halved.value is None:
        return Coefficient(None, None, tuple(dict.fromkeys([*whole.reasons, *halved.reasons])))
    change = halved.value / whole.value - 1
    if abs(change) > MOST_STEP:
        return Coefficient(None, None, (f"half the step changes the estimate by {change:+.0%}: lower it further",))
    return halved


def simpler(first: list[Coefficient], second: list[Coefficient]) -> str:
    """Which of two solutions has the smaller coefficient at every setting of the sampler: `first`, `second`, or `undecided`.

    Solutions are compared at equal settings alone; one setting at which an interval overlaps, or a check fails, leaves it undecided.
    """
    signs = set[str]()
    for one, other in zip(first, second, strict=True):
        if one.interval is None or other.interval is None:
            return "undecided"
        signs.add("first" if one.interval[1] < other.interval[0] else "second" if other.interval[1] < one.interval[0] else "undecided")
    return signs.pop() if len(signs) == 1 else "undecided"
