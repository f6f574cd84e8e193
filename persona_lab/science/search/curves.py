"""Curves of log-odds over ln ratio that may level off: one fit for each lapse, and what they say together.

    curves = fit_curves(x_N, y_N, target=2.2)       one curve for each lapse, with its posterior weight
    curves.below(1.2, df=9)                         the probability that the mean run at ln ratio 1.2 has not reached 2.2 nats

A curve is  m(x) = logit(l + (1 - 2 l) sigmoid(a + s x)):  a share 2 l of the answers is given at even odds, whatever was
trained (the lapse of Wichmann and Hill 2001, the same at both ends). With l = 0 it is the line a + s x. At every lapse (a, s)
are fitted by least squares, and are Student's t around the fit with the covariance v (J'J)^-1, J the curve's derivative by
(a, s): exact for the line, a linear approximation beyond it (Bates and Watts 1988, 2.3). Integrated over a, s and the error's
variance v under p(l) p(s) / v, a lapse has the weight p(l) p(s) |J'J|^(-1/2) SS^(-(n - 2) / 2), SS its sum of squares (Laplace).
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import expit, logit, stdtr

from persona_lab.science.thresholds import FARTHEST

LAPSES = (0.0, 0.01, 0.02, 0.04, 0.08, 0.12, 0.16)
"""Those reckoned with."""
NO_LAPSE = 0.9
"""Prior probability that log-odds do not level off. With a half in its place a search of runs without a lapse costs half as much again."""
TYPICAL_LAPSE = 0.02
"""Mean of the exponential prior of a lapse, where there is one."""
TYPICAL_SLOPE = 2.0
"""Scale of the slope's half-Cauchy prior, nats a nat: without one a step, which fits anything, would be as likely as a slope that was ever seen."""
RIDGE = 1e-3
"""Pull of (a, s) towards 0, nats^2: a curve that pairs do not determine is fitted all the same."""
STEPS = 12
"""Of the fit."""
NEAREST = 0.02
"""Of a share to 0 and 1, where the fit starts."""
SMALLEST = 1e-12
"""Least sum of squares, nats^2."""


def prior(lapses: np.ndarray) -> np.ndarray:
    """Prior weights (K,) of lapses that rise from 0: each of the others stands for the lapses around it."""
    if len(lapses) < 3:
        return np.array([NO_LAPSE, 1 - NO_LAPSE])[: len(lapses)]
    weights = np.gradient(lapses[1:]) * np.exp(-lapses[1:] / TYPICAL_LAPSE)
    return np.concatenate([[NO_LAPSE], (1 - NO_LAPSE) * weights / weights.sum()])


def height(target: np.ndarray | float, lapses: np.ndarray) -> np.ndarray:
    """Height of a + s x where a curve reaches the target, nats; infinite where it levels off below."""
    share = (expit(target) - lapses) / (1 - 2 * lapses)
    return np.where(share < 1, logit(np.clip(share, 0, 1)), np.inf)


def curve(u_KN: np.ndarray, lapse_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds at u = a + s x, and their derivative by u."""
    rest = 1 - 2 * lapse_K[:, None]
    up, down = expit(u_KN), expit(-u_KN)
    first, second = lapse_K[:, None] + rest * up, lapse_K[:, None] + rest * down
    return np.log(first / second), rest * up * down / (first * second)


@dataclass(frozen=True)
class Curves:
    """The fits of K lapses."""

    lapse_K: np.ndarray
    weight_K: np.ndarray
    """Posterior probability of each lapse."""
    line_K2: np.ndarray
    """(a, s)."""
    inverse_K22: np.ndarray
    """(J'J)^-1."""
    variance_K: np.ndarray
    """Of a pair's mean around the curve, nats^2."""
    height_K: np.ndarray
    """a + s x where a curve reaches the target; infinite where it levels off below."""

    @property
    def likeliest(self) -> int:
        """Index of the lapse with the largest weight."""
        return int(np.argmax(self.weight_K))

    def design(self, x_C: np.ndarray) -> np.ndarray:
        """Derivatives of m by a and s (K, C, 2) at ln ratios."""
        u_KC = self.line_K2[:, :1] + self.line_K2[:, 1:] * x_C
        return curve(u_KC, self.lapse_K)[1][:, :, None] * np.stack([np.ones_like(x_C), x_C], axis=1)

    def below(self, x: float, df: int) -> float:
        """The probability that the mean run at x has not reached the target."""
        v = self.inverse_K22
        error_K = np.sqrt(self.variance_K * (v[:, 0, 0] + 2 * x * v[:, 0, 1] + x * x * v[:, 1, 1]))
        gap_K = self.height_K - self.line_K2[:, 0] - self.line_K2[:, 1] * x
        return float(self.weight_K @ stdtr(df, gap_K / error_K))

    def crossing(self, probability: float, df: int) -> float | None:
        """The x at which `below` falls to a probability; None where it is not above it far to the left and under it far to the right."""

        def over(x: float) -> float:
            return self.below(x, df) - probability

        return root_scalar(over, bracket=(-FARTHEST, FARTHEST), xtol=1e-9).root if over(-FARTHEST) > 0 > over(FARTHEST) else None

    def after(self, design_K2: np.ndarray) -> "Curves":
        """With one more pair, should it lie on every curve (Sherman and Morrison)."""
        moved_K2 = np.einsum("kij,kj->ki", self.inverse_K22, design_K2)
        own_K = np.einsum("ki,ki->k", moved_K2, design_K2)
        return replace(self, inverse_K22=self.inverse_K22 - moved_K2[:, :, None] * moved_K2[:, None, :] / (1 + own_K)[:, None, None])


def fit_curves(x_N: np.ndarray, y_N: np.ndarray, target: float, lapses: tuple[float, ...] = LAPSES) -> Curves:
    """Every lapse's curve through pairs' mean log-odds y at ln ratios x. Needs three pairs at two ratios."""
    lapse_K, n = np.array(lapses), len(x_N)
    ridge_K22 = np.where(lapse_K > 0, RIDGE, 0.0)[:, None, None] * np.eye(2)
    points_N2 = np.stack([np.ones_like(x_N), x_N], axis=1)

    def fitted(line_K2: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        m_KN, slope_KN = curve(line_K2 @ points_N2.T, lapse_K)
        error_KN = y_N - m_KN
        return error_KN, slope_KN[:, :, None] * points_N2, (error_KN**2).sum(1) + np.einsum("ki,kij,kj->k", line_K2, ridge_K22, line_K2)

    # Levenberg and Marquardt, from the line through the shares without their lapse.
    share_KN = np.clip((expit(y_N) - lapse_K[:, None]) / (1 - 2 * lapse_K[:, None]), NEAREST, 1 - NEAREST)
    start_KN = np.where(lapse_K[:, None] > 0, logit(share_KN), y_N)
    line_K2, damping_K = start_KN @ np.linalg.pinv(points_N2).T, np.full(len(lapse_K), 1e-3)
    error_KN, j_KN2, loss_K = fitted(line_K2)
    for _ in range(STEPS):
        information_K22 = np.einsum("kni,knj->kij", j_KN2, j_KN2) + ridge_K22
        gradient_K2 = np.einsum("kni,kn->ki", j_KN2, error_KN) - np.einsum("kij,kj->ki", ridge_K22, line_K2)
        damped_K22 = information_K22 + damping_K[:, None, None] * np.einsum("kii->ki", information_K22)[:, :, None] * np.eye(2)
        tried_K2 = line_K2 + np.linalg.solve(damped_K22, gradient_K2[:, :, None])[:, :, 0]
        better_K = fitted(tried_K2)[2] < loss_K
        line_K2, damping_K = np.where(better_K[:, None], tried_K2, line_K2), np.where(better_K, damping_K / 10, damping_K * 10)
        error_KN, j_KN2, loss_K = fitted(line_K2)
    information_K22 = np.einsum("kni,knj->kij", j_KN2, j_KN2) + ridge_K22
    squares_K = np.maximum((error_KN**2).sum(1), SMALLEST)
    log_K = np.log(prior(lapse_K)) - np.log1p((line_K2[:, 1] / TYPICAL_SLOPE) ** 2) - np.linalg.slogdet(information_K22)[1] / 2 - (n - 2) / 2 * np.log(squares_K)
    weight_K = np.exp(log_K - log_K.max())
    return Curves(lapse_K, weight_K / weight_K.sum(), line_K2, np.linalg.inv(information_K22), squares_K / (n - 2), height(target, lapse_K))
