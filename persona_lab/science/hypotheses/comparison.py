"""Which hypothesis predicts conditions that it has not seen: differences with their errors, verdicts, stacking weights.

    lpd_KC     log density of condition c given all others, one row for each hypothesis, nats
    elpd       its sum; a difference below 4 nats or below 2 standard errors is undecided (reference 4.4)

The standard error is that of a sum over conditions, sqrt(C var(difference)); with few conditions it is optimistic, up to twice too small.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from persona_lab.science.hypotheses.families import NESTED

LEAST, ERRORS = 4.0, 2.0
"""Nats, and standard errors, that a difference must reach to be decided."""
FEWEST_SEEDS = 3
"""With fewer, nothing is supported."""
RESAMPLES = 200

Pair = tuple[str, str]


@dataclass(frozen=True)
class Difference:
    """elpd of one hypothesis minus that of another."""

    one: str
    other: str
    value: float
    error: float

    @property
    def decided(self) -> bool:
        """Large enough in nats and in errors."""
        return abs(self.value) >= LEAST and abs(self.value) >= ERRORS * self.error

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


def difference(one: str, other: str, lpd_C: np.ndarray, other_C: np.ndarray) -> Difference:
    """Elpd difference with its paired standard error over conditions."""
    gap_C = lpd_C - other_C
    return Difference(one, other, float(gap_C.sum()), float((len(gap_C) * gap_C.var(ddof=1)) ** 0.5))


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
        return Verdict(id, "refuted", f"{best} predicts untouched conditions better by {gap.value:.1f} nats (standard error {gap.error:.1f})")
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
