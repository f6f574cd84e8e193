"""Exact evidence of a linear-Gaussian family with seed effects, for many data sets at once.

    y = offset + X b + z w + a_seed + noise,   b ~ N(b0, S0),  w a sum of normals cut off at 0,  a ~ N(0, tau^2),  noise ~ N(0, sigma^2)

At one node (shape, sigma, tau) b is integrated out in closed form and leaves log Z(w) = A + B w - C w^2 / 2, so that w is too; sigma and tau
are sums over a rule for their half-normal priors (trapezoid in log sigma, Gauss-Legendre in the quantiles of tau). The inverse of
V = sigma^2 I + tau^2 G G' needs only each seed's sums: a' V^-1 b = [a.b - sum_g k_g a_g b_g] / sigma^2, k_g = tau^2 / (sigma^2 + tau^2 n_g).
A run that is left out is simply not summed, so leaving out a condition is a refit, and log p(y_c | others) = log Z(all) - log Z(others).

Letters of shapes: B data sets, N runs, P columns, Q coefficients of either sign, V shapes, S sigmas, T taus, J pieces of the positive prior, G seeds.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from persona_lab.science.effects import Frame
from persona_lab.science.hypotheses.families import LEAST_SIGMA, NOISE, Family, groups
from persona_lab.science.hypotheses.priors import NODES, LogNormal, Normal, Pieces, half_normal_nodes

TAUS = 12
STEP, FINE_STEP = 1.8, 0.7
"""Between values of log sigma, in standard deviations of its posterior (about 1 / sqrt(2 n)): for evidence, where a trapezoid rule is exact to
.5 %, and for drawing sigma."""


@dataclass(frozen=True)
class Noise:
    """A rule for the two standard deviations."""

    sigma_S: np.ndarray
    log_weight_S: np.ndarray
    tau_T: np.ndarray
    log_weight_T: np.ndarray


def noise_rule(runs: int, largest: float, step: float = STEP) -> Noise:
    """The rule for so many runs; `largest` is the root mean square of what is to be explained, nats."""
    step = min(0.2, step / (2 * runs) ** 0.5)
    # Where a family fits so badly that sigma has to grow against its prior, -n ln s - n r^2 / 2 s^2 - 2 s^2 is largest at (n r^2 / 4)^(1/4).
    top = max(2.5, 1.7 * (runs * largest**2 / 4) ** 0.25)
    log_S = np.arange(np.log(LEAST_SIGMA), np.log(top) + step, step)
    weight_S = log_S - 0.5 * (np.exp(log_S) / NOISE.sd) ** 2
    tau_T, weight_T = half_normal_nodes(NOISE.sd, TAUS)
    return Noise(np.exp(log_S), weight_S - np.logaddexp.reduce(weight_S), tau_T, weight_T)


@dataclass(frozen=True)
class Model:
    """A family on a frame: numbers only."""

    offset_N: np.ndarray
    columns_VNP: np.ndarray
    """The positive coefficient's column last."""
    shape_V: np.ndarray
    log_weight_V: np.ndarray
    mean_Q: np.ndarray
    sd_Q: np.ndarray
    pieces: Pieces | None
    group_N: np.ndarray

    @property
    def normals(self) -> int:
        """Coefficients of either sign."""
        return len(self.mean_Q)


def model_of(family: Family, frame: Frame, widen: float = 1.0, nodes: int = NODES) -> Model:
    """The family's model of the frame's runs; `widen` scales the priors of its coefficients and shape, `nodes` are the values of its shape."""
    shape_V, log_weight_V = np.ones(1), np.zeros(1)
    if family.shape:
        prior = family.shape.prior.at(frame).scaled(widen)
        assert isinstance(prior, LogNormal), "a shape has a log-normal prior"
        shape_V, log_weight_V = prior.nodes(nodes)
    columns_VNP = np.stack([family.design(frame, float(shape))[0] for shape in shape_V])
    normals = [p.prior.scaled(widen) for p in family.linear if isinstance(p.prior, Normal)]
    pieces = None
    if family.positive:
        prior = family.positive.prior.at(frame).scaled(widen)
        assert not isinstance(prior, Normal), "a positive coefficient has a prior on the positive numbers"
        pieces = prior.pieces()
    means, sds = np.array([p.mean for p in normals]), np.array([p.sd for p in normals])
    return Model(family.offset(frame), columns_VNP, shape_V, log_weight_V, means, sds, pieces, groups(frame))


@dataclass(frozen=True)
class Conditional:
    """log Z(w) = A + B w - C w^2 / 2 at every (sigma, tau), and the coefficients of either sign given w."""

    constant_STB: np.ndarray
    slope_STB: np.ndarray
    curve_ST: np.ndarray
    h_STBQ: np.ndarray
    precision_STQQ: np.ndarray
    cross_STQ: np.ndarray
    """Given w, b ~ N(precision^-1 (h - w cross), precision^-1)."""


class Sums:
    """Inner products a' V^-1 b of some runs at every (sigma, tau)."""

    def __init__(self, group_N: np.ndarray, noise: Noise) -> None:
        self.onehot_NG = (group_N[:, None] == np.unique(group_N)).astype(float)
        n_G = self.onehot_NG.sum(0)
        variance_S11, tau_1T1 = noise.sigma_S[:, None, None] ** 2, noise.tau_T[None, :, None] ** 2
        self.k_STG = tau_1T1 / (variance_S11 + tau_1T1 * n_G)
        self.variance_ST = np.broadcast_to(variance_S11[..., 0], self.k_STG.shape[:2])
        self.log_det_ST = len(group_N) * np.log(self.variance_ST) + np.log1p(tau_1T1 * n_G / variance_S11).sum(-1)

    def __call__(self, a_NI: np.ndarray, b_NI: np.ndarray) -> np.ndarray:
        """Of each column of a with the same column of b: (S, T, I)."""
        by_seed_GI = (self.onehot_NG.T @ a_NI) * (self.onehot_NG.T @ b_NI)
        return ((a_NI * b_NI).sum(0) - self.k_STG @ by_seed_GI) / self.variance_ST[..., None]

    def pairs(self, a_NI: np.ndarray, b_NK: np.ndarray) -> np.ndarray:
        """Of each column of a with each column of b: (S, T, I, K)."""
        i, k = a_NI.shape[1], b_NK.shape[1]
        flat = self(np.repeat(a_NI, k, axis=1), np.tile(b_NK, (1, i)))
        return flat.reshape(*flat.shape[:2], i, k)


def conditional(model: Model, v: int, rest_BN: np.ndarray, keep_N: np.ndarray, noise: Noise) -> Conditional:
    """The runs kept, their offset taken off, under one shape."""
    rest_NB, sums, q = rest_BN[:, keep_N].T, Sums(model.group_N[keep_N], noise), model.normals
    columns_NP = model.columns_VNP[v][keep_N]
    x_NQ, z_N1 = columns_NP[:, :q], columns_NP[:, q:]
    prior_Q = model.sd_Q**-2.0
    precision_STQQ = sums.pairs(x_NQ, x_NQ) + np.diag(prior_Q)
    h_STBQ = sums.pairs(rest_NB, x_NQ) + prior_Q * model.mean_Q
    log_z_STB = -0.5 * (sums(rest_NB, rest_NB) + sums.log_det_ST[..., None] + len(columns_NP) * np.log(2 * np.pi))
    cross_STQ, slope_STB, curve_ST = np.zeros(precision_STQQ.shape[:3]), np.zeros_like(log_z_STB), np.zeros(log_z_STB.shape[:2])
    if z_N1.shape[1]:
        cross_STQ = sums.pairs(x_NQ, z_N1)[..., 0]
        slope_STB, curve_ST = sums.pairs(rest_NB, z_N1)[..., 0], sums(z_N1, z_N1)[..., 0]
    if q:
        inverse_STQQ = np.linalg.inv(precision_STQQ)
        solved_STBQ = h_STBQ @ inverse_STQQ
        occam_ST = np.linalg.slogdet(precision_STQQ)[1] - np.log(prior_Q).sum() + (prior_Q * model.mean_Q**2).sum()
        log_z_STB = log_z_STB + 0.5 * ((h_STBQ * solved_STBQ).sum(-1) - occam_ST[..., None])
        slope_STB = slope_STB - (solved_STBQ @ cross_STQ[..., None])[..., 0]
        curve_ST = curve_ST - np.einsum("sti,stij,stj->st", cross_STQ, inverse_STQQ, cross_STQ)
    return Conditional(log_z_STB, slope_STB, np.maximum(curve_ST, 0), h_STBQ, precision_STQQ, cross_STQ)


def piece_mass(found: Conditional, pieces: Pieces, j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one piece of the positive prior: log of its weight times its integral (S, T, B), and mean and sd of w there before the cut."""
    mean, sd = pieces.mean_J[j], pieces.sd_J[j]
    precision_ST1 = found.curve_ST[..., None] + sd**-2
    sd_ST1 = precision_ST1**-0.5
    mean_STB = (found.slope_STB + mean / sd**2) / precision_ST1
    log_STB = 0.5 * precision_ST1 * mean_STB**2 + (np.log(sd_ST1 / sd) - 0.5 * (mean / sd) ** 2 + pieces.log_weight_J[j] - log_ndtr(mean / sd))
    # The cut matters only to a piece of which some lies below 0.
    return log_STB + (log_ndtr(mean_STB / sd_ST1) if mean < 4 * sd else 0.0), mean_STB, sd_ST1


def log_nodes(found: Conditional, pieces: Pieces | None, noise: Noise) -> np.ndarray:
    """Log of weight times likelihood at every (sigma, tau): (S, T, B)."""
    total_STB = found.constant_STB + (noise.log_weight_S[:, None] + noise.log_weight_T)[..., None]
    if pieces is None:
        return total_STB
    inside_STB = piece_mass(found, pieces, 0)[0]
    for j in range(1, len(pieces.mean_J)):
        np.logaddexp(inside_STB, piece_mass(found, pieces, j)[0], out=inside_STB)
    return total_STB + inside_STB


def log_sum(values_STB: np.ndarray) -> np.ndarray:
    """Log of the sum of exponentials over sigma and tau (B)."""
    top_B = values_STB.max((0, 1))
    return top_B + np.log(np.exp(values_STB - top_B).sum((0, 1)))


def log_evidence(model: Model, y_BN: np.ndarray, keep_LN: np.ndarray) -> np.ndarray:
    """Log of the probability density of the runs that each row keeps, nats: (B, L). No run kept: 0."""
    rest_BN = y_BN - model.offset_N
    noise = noise_rule(y_BN.shape[1], float((rest_BN**2).mean(1).max() ** 0.5))
    found_BL = np.full((len(y_BN), len(keep_LN)), -np.inf)
    for column, keep_N in enumerate(keep_LN):
        if not keep_N.any():
            found_BL[:, column] = 0
            continue
        for v, weight in enumerate(model.log_weight_V):
            log_B = weight + log_sum(log_nodes(conditional(model, v, rest_BN, keep_N, noise), model.pieces, noise))
            found_BL[:, column] = np.logaddexp(found_BL[:, column], log_B)
    return found_BL


def without_each(labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct labels (C), and for each of them which runs remain without it (C, N)."""
    names_C = np.unique(labels_N)
    return names_C, labels_N != names_C[:, None]


def held_out(model: Model, y_BN: np.ndarray, condition_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log evidence (B), and log density of each condition given all others (B, C), nats; conditions in sorted order."""
    _, keep_CN = without_each(condition_N)
    found_BL = log_evidence(model, y_BN, np.vstack([np.ones((1, len(condition_N)), bool), keep_CN]))
    return found_BL[:, 0], found_BL[:, :1] - found_BL[:, 1:]
