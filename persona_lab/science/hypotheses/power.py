"""What a design can tell apart, before any run is made, in seconds.

Noncentrality of a rival: how far its best refit stays from a hypothesis' typical prediction, (mu - mu')' V^-1 (mu - mu'), with V from sigma and tau.
6 or more, about 3 nats of log-likelihood, counts as separable (reference 4.1). A pair of which the hypothesis is a special case of the
rival can never separate, and is not counted.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from persona_lab.errors import ConfigError
from persona_lab.science.effects import Frame
from persona_lab.science.hypotheses.families import BY_ID, FAMILIES, NESTED, Family, groups

SEPARABLE = 6.0
ENOUGH = 0.9
"""Share of the pairs that a design must separate."""
SHAPES = 49
"""Values of a shape that a refit tries."""


@dataclass(frozen=True)
class Power:
    """What a design separates."""

    ids: tuple[str, ...]
    noncentrality_KK: np.ndarray
    """Row: the truth; column: the rival, at its best refit."""
    untestable: dict[str, str]

    def pairs(self) -> list[tuple[str, str, float]]:
        """(truth, rival, noncentrality) of every ordered pair that could separate."""
        both = [(i, j) for i in range(len(self.ids)) for j in range(len(self.ids)) if i != j]
        found = [(self.ids[i], self.ids[j], float(self.noncentrality_KK[i, j])) for i, j in both]
        return [pair for pair in found if pair[:2] not in NESTED]

    @property
    def missing(self) -> list[tuple[str, str, float]]:
        """The pairs that it does not separate."""
        return [pair for pair in self.pairs() if pair[2] < SEPARABLE]

    @property
    def share(self) -> float:
        """Separable pairs over those that could be."""
        return 1 - len(self.missing) / len(self.pairs())

    def table(self) -> str:
        """Noncentralities as text: truths down, rivals across; `=` marks a rival that contains the truth."""
        lines = ["truth " + "".join(f"{id:>8}" for id in self.ids)]
        for i, truth in enumerate(self.ids):
            cells = ["." if i == j else "=" if (truth, rival) in NESTED else brief(self.noncentrality_KK[i, j]) for j, rival in enumerate(self.ids)]
            lines.append(f"{truth:<6}" + "".join(f"{cell:>8}" for cell in cells))
        return "\n".join(lines)


def brief(value: float) -> str:
    """At most seven characters."""
    return f"{value:.1f}" if value < 1e4 else f"{value:.1e}"


def planned(frame: Frame) -> Frame:
    """The frame with what is not manipulated, or not yet measured, at 0; one row for each run."""
    columns = {name: pd.to_numeric(frame[name]) if name in frame else np.nan for name in ("x", "p", "m", "D", "e", "o", "d", "c", "k")}
    filled = frame.assign(**columns)
    filled[list(columns)] = filled[list(columns)].fillna(0.0)
    return filled[np.isfinite(filled["x"])].reset_index(drop=True)


def whitened(values_NP: np.ndarray, group_N: np.ndarray, sigma: float, tau: float) -> np.ndarray:
    """V^-1/2 of each column: every seed's mean is shrunk by 1 - 1 / sqrt(1 + n tau^2 / sigma^2)."""
    onehot_NG = (group_N[:, None] == np.unique(group_N)).astype(float)
    n_G = onehot_NG.sum(0)
    part_G = (1 - (1 + n_G * (tau / sigma) ** 2) ** -0.5) / n_G
    return (values_NP - onehot_NG @ (part_G[:, None] * (onehot_NG.T @ values_NP))) / sigma


def misfits(rival: Family, frame: Frame, mean_NK: np.ndarray, sigma: float = 0.5, tau: float = 0.5) -> np.ndarray:
    """Noncentrality (K) of the rival's best refit to each mean; least squares under the sign of its positive coefficient, the prior not used."""
    group_N, shapes = groups(frame), np.ones(1)
    if rival.shape:
        shapes = rival.shape.prior.one(frame) * np.exp(np.linspace(-4, 4, SHAPES))
    least_K = np.full(mean_NK.shape[1], np.inf)
    for shape in shapes:
        columns_NP, offset_N = rival.design(frame, float(shape))
        white_NI = whitened(np.column_stack([columns_NP, mean_NK - offset_N[:, None]]), group_N, sigma, tau)
        least_K = np.minimum(least_K, left_over(white_NI[:, : columns_NP.shape[1]], white_NI[:, columns_NP.shape[1] :], rival.positive is not None))
    return least_K


def left_over(columns_NP: np.ndarray, target_NK: np.ndarray, last_positive: bool) -> np.ndarray:
    """Sum of squares (K) that no combination of the columns explains. Under one sign constraint the best fit is the free one, or has the last at 0."""
    coefficients_PK = np.linalg.lstsq(columns_NP, target_NK, rcond=1e-10)[0]
    free_K = ((target_NK - columns_NP @ coefficients_PK) ** 2).sum(0)
    if not last_positive or (coefficients_PK[-1] >= 0).all():
        return free_K
    return np.where(coefficients_PK[-1] >= 0, free_K, left_over(columns_NP[:, :-1], target_NK, False))


def power(frame: Frame, families: tuple[Family, ...] = FAMILIES, sigma: float = 0.5, tau: float = 0.5) -> Power:
    """Noncentrality of every ordered pair at typical parameters, on planned or measured runs (eta is not read)."""
    runs = planned(frame)
    mean_NK = np.stack([family.mean(runs, family.planted(runs)) for family in families], axis=1)
    found = np.stack([misfits(rival, runs, mean_NK, sigma, tau) for rival in families], axis=1)
    untestable = {family.id: why for family in families if (why := family.untestable(frame))}
    return Power(tuple(family.id for family in families), found, untestable)


@dataclass(frozen=True)
class DesignVerdict:
    """Whether a design can answer the question."""

    verdict: str
    """enough or underpowered."""
    share: float
    said: str


def verdict_on_design(frame: Frame, families: tuple[Family, ...] = FAMILIES, need: float = ENOUGH) -> DesignVerdict:
    """`underpowered` when less than `need` of the pairs separate; the sentence names the pairs and the columns that are not varied.

    Raises ConfigError (PL1221) when the hypotheses leave no pair that could separate.
    """
    found = power(frame, families)
    total = len(found.pairs())
    if not total:
        raise ConfigError("PL1221", "hypotheses", f"{', '.join(found.ids)} leave no pair to tell apart. Name two that do not contain each other.")
    verdict = "enough" if found.share >= need else "underpowered"
    said = f"{total - len(found.missing)} of {total} ordered pairs of hypotheses are separable ({100 * found.share:.0f} %; {100 * need:.0f} % asked)."
    if found.missing:
        by_truth = {truth: [rival for first, rival, _ in found.missing if first == truth] for truth, _, _ in found.missing}
        pairs = "; ".join(f"{truth} ({BY_ID[truth].name}) from {', '.join(rivals)}" for truth, rivals in by_truth.items())
        said += f" Not separable: {pairs}."
    reasons = [f"{id}: {why.removeprefix('not testable here: ')}" for id, why in found.untestable.items()]
    if reasons:
        said += f" Not testable: {'; '.join(reasons)}."
    return DesignVerdict(verdict, found.share, said)
