"""Which hypothesis predicts conditions that it has not seen: differences with their intervals, verdicts, stacking weights.

    lpd_KC     log density of condition c given all others, one row for each hypothesis, nats
    elpd       its sum; a difference below 4 nats, or whose 95 % interval holds 0, is undecided (reference 4.4)

The interval is that of the sum over resampled conditions. A normal one, of two standard errors, would have a hypothesis that fails utterly in a few
conditions (by thousands of nats, where the evidence is taken at full weight) undecided because it fails so much: its standard error grows with
its failure. Over few conditions both are optimistic, up to twice too narrow.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import minimize

from persona_lab.science.hypotheses.families import NESTED
from persona_lab.science.thresholds import Interval

LEAST = 4.0
"""Nats that a difference must reach to be decided."""
FEWEST_SEEDS = 3
"""With fewer, nothing is supported."""
RESAMPLES = 200
"""Of the weights, each of which is a search."""
RESAMPLED_SUMS = 4000

Pair = tuple[str, str]


@dataclass(frozen=True)
class Difference:
    """elpd of one hypothesis minus that of another."""

    one: str
    other: str
    value: float
    interval: Interval
    """95 %, over resampled conditions."""

    @property
    def decided(self) -> bool:
        """Large enough in nats, and of one sign whatever conditions are drawn."""
        low, high = self.interval
        return abs(self.value) >= LEAST and not low <= 0 <= high

    @property
    def said(self) -> str:
        """Value and interval as text."""
        low, high = self.interval
        return f"{self.value:.1f} nats [{low:.1f}, {high:.1f}]"

    @property
    def better(self) -> bool:
        """The first is decidedly better."""
        return self.decided and self.value > 0


@dataclass(frozen=True)
class Verdict:
    """What the runs say of one hypothesis."""

    id: str
    verdict: str
    """supported, refuted, undecided or not testable."""
    reason: str


@cache
def drawn_often(conditions: int) -> np.ndarray:
    """How often each condition is drawn, (resamples, conditions): always the same, so that a difference has one interval."""
    return np.random.default_rng(0).multinomial(conditions, np.full(conditions, 1 / conditions), size=RESAMPLED_SUMS).astype(float)


def difference(one: str, other: str, lpd_C: np.ndarray, other_C: np.ndarray) -> Difference:
    """Elpd difference, and the percentiles of its sum over resampled conditions."""
    gap_C = lpd_C - other_C
    low, high = np.quantile(drawn_often(len(gap_C)) @ gap_C, [0.025, 0.975])
    return Difference(one, other, float(gap_C.sum()), (float(low), float(high)))


def differences(ids: list[str], lpd_KC: np.ndarray) -> dict[Pair, Difference]:
    """Of every ordered pair."""
    both = [(i, j) for i in range(len(ids)) for j in range(len(ids)) if i != j]
    return {(ids[i], ids[j]): difference(ids[i], ids[j], lpd_KC[i], lpd_KC[j]) for i, j in both}


def verdict_of(id: str, ids: list[str], against: dict[Pair, Difference], seeds: int) -> Verdict:
    """Refuted: some rival is decidedly better. Supported: decidedly better than every rival, where a rival that contains it need only not be better.

    A hypothesis that contains a simpler one must beat it. Only what one theory contains of another counts (NESTED): hypotheses that a design makes
    alike, because it varies too little, stay undecided.
    """
    rivals = [other for other in ids if other != id]
    beaten = [other for other in rivals if against[other, id].better]
    if beaten:
        best = max(beaten, key=lambda other: against[other, id].value)
        gap = against[best, id]
        return Verdict(id, "refuted", f"{best} predicts untouched conditions better by {gap.said}")
    close = [other for other in rivals if not against[id, other].better and (id, other) not in NESTED]
    if close:
        return Verdict(id, "undecided", f"not decidedly better than {', '.join(close)}")
    if not rivals:
        return Verdict(id, "undecided", "there is no rival that can be tested here")
    if seeds < FEWEST_SEEDS:
        return Verdict(id, "undecided", f"best, but {seeds} seed{'s' * (seeds != 1)} cannot support a hypothesis: run {FEWEST_SEEDS} or more")
    return Verdict(id, "supported", f"decidedly better than all {len(rivals)} rivals but those that contain it, and those are no better")


def verdicts(ids: list[str], lpd_KC: np.ndarray, seeds: int) -> list[Verdict]:
    """One verdict for each hypothesis."""
    against = differences(ids, lpd_KC)
    return [verdict_of(id, ids, against, seeds) for id in ids]


def stack(lpd_KC: np.ndarray, times_C: np.ndarray | None = None) -> np.ndarray:
    """Weights (K) of the mixture that predicts left-out conditions best: max sum_c log sum_k w_k exp(lpd_kc) on the simplex (Yao et al. 2018)."""
    density_KC = np.exp(lpd_KC - lpd_KC.max(0))
    times_C = np.ones(lpd_KC.shape[1]) if times_C is None else times_C
    total = times_C.sum()

    def loss(w_K: np.ndarray) -> tuple[float, np.ndarray]:
        mixed_C = np.maximum(w_K @ density_KC, 1e-300)
        return -float(times_C @ np.log(mixed_C)) / total, -(density_KC @ (times_C / mixed_C)) / total

    k = len(lpd_KC)
    even = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones_like(w)}
    found = minimize(loss, np.full(k, 1 / k), jac=True, method="SLSQP", bounds=[(0, 1)] * k, constraints=[even], options={"ftol": 1e-10, "maxiter": 500})
    weight_K = np.clip(found.x, 0, 1)
    return weight_K / weight_K.sum()


def stacking(lpd_KC: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K), and their 95 % percentile intervals (K, 2) over resampled conditions."""
    conditions = lpd_KC.shape[1]
    drawn_RC = rng.multinomial(conditions, np.full(conditions, 1 / conditions), size=resamples).astype(float)
    weight_RK = np.stack([stack(lpd_KC, times_C) for times_C in drawn_RC])
    return stack(lpd_KC), np.quantile(weight_RK, [0.025, 0.975], axis=0).T
