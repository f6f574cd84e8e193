"""What a family's parameters are, given runs: draws from the exact posterior, and what it predicts of untouched runs.

The posterior is a mixture over the nodes (shape, sigma, tau, piece) of persona_lab.science.hypotheses.gaussian; a draw picks a node by its weight,
then the positive coefficient from its cut normal, then the others given it, then the seeds' effects. Nothing is a chain: draws are
independent, and the same seed gives the same ones.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import kstest

from persona_lab.science.effects import Frame
from persona_lab.science.hypotheses.families import NOISE, Family
from persona_lab.science.hypotheses.gaussian import FINE_STEP, Conditional, Model, Noise, conditional, log_evidence, log_nodes, model_of, noise_rule, piece_mass
from persona_lab.science.thresholds import Interval

DRAWS = 4000
FINE_NODES = 73
"""Values of a shape for drawing it."""


@dataclass(frozen=True)
class Draws:
    """Independent draws (M) from a posterior."""

    sigma_M: np.ndarray
    tau_M: np.ndarray
    coefficients_MP: np.ndarray
    """The positive one last."""
    at_M: np.ndarray
    """Index of the shape's value."""


@dataclass(frozen=True)
class Posterior:
    """One parameter: mean and central 95 % interval."""

    name: str
    unit: str
    means: str
    value: float
    interval: Interval


@dataclass(frozen=True)
class Forward:
    """How untouched runs were predicted from the others."""

    trained: str
    untouched: str
    runs: int
    log_score: float
    """log density of all untouched runs together given the others, nats."""
    inside: float
    """Share of untouched runs within their central 95 % predictive interval."""
    pit_N: np.ndarray
    """Predictive probability of less than what came, one for each run; even over 0 to 1 when the predictions are calibrated."""
    pit_p: float
    """Kolmogorov-Smirnov p-value of evenness, which takes the runs for independent."""


def pick(log_weight: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Indices of `count` cells of an array, drawn by weight."""
    weight = np.exp(log_weight - log_weight.max()).ravel()
    return np.unravel_index(np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(count)).clip(max=weight.size - 1), log_weight.shape)


def cut_normal(mean_M: np.ndarray, sd_M: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One draw of each normal, cut off below 0 (by its inverse distribution function, taken from the far side to stay exact)."""
    above_M = ndtr(mean_M / sd_M)
    return np.maximum(mean_M - sd_M * ndtri(np.maximum(above_M * rng.random(len(mean_M)), 1e-300)), 0.0)


def positive_draws(found: Conditional, model: Model, at: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The positive coefficient at drawn (sigma, tau)."""
    assert model.pieces is not None, "asked for a coefficient that the model has not"
    parts = [piece_mass(found, model.pieces, j) for j in range(len(model.pieces.mean_J))]
    log_JM = np.stack([log_STB[(*at, 0)] for log_STB, _, _ in parts])
    gumbel_JM = log_JM + rng.gumbel(size=log_JM.shape)
    which_M, row_M = gumbel_JM.argmax(0), np.arange(len(at[0]))
    mean_JM, sd_JM = np.stack([mean_STB[(*at, 0)] for _, mean_STB, _ in parts]), np.stack([sd_ST1[(*at, 0)] for _, _, sd_ST1 in parts])
    return cut_normal(mean_JM[which_M, row_M], sd_JM[which_M, row_M], rng)


def coefficient_draws(found: Conditional, model: Model, at: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """All coefficients (M, P) at drawn (sigma, tau)."""
    count, q = len(at[0]), model.normals
    positive_MI = positive_draws(found, model, at, rng)[:, None] if model.pieces else np.zeros((count, 0))
    if not q:
        return positive_MI
    precision_MQQ, h_MQ = found.precision_STQQ[at], found.h_STBQ[(*at, 0)]
    for i in range(positive_MI.shape[1]):
        h_MQ = h_MQ - positive_MI[:, [i]] * found.cross_STQ[at]
    mean_MQ1 = np.linalg.solve(precision_MQQ, h_MQ[..., None])
    # precision = L L', so L'^-1 z has covariance precision^-1.
    spread_MQ1 = np.linalg.solve(np.linalg.cholesky(precision_MQQ).swapaxes(1, 2), rng.standard_normal((count, q, 1)))
    return np.hstack([(mean_MQ1 + spread_MQ1)[..., 0], positive_MI])


def posterior_draws(model: Model, y_N: np.ndarray, keep_N: np.ndarray, rng: np.random.Generator, count: int = DRAWS) -> Draws:
    """Draws of every parameter given the runs kept."""
    rest_BN = (y_N - model.offset_N)[None]
    noise = noise_rule(len(y_N), float((rest_BN**2).mean() ** 0.5), FINE_STEP)
    found_V = [conditional(model, v, rest_BN, keep_N, noise) for v in range(len(model.shape_V))]
    log_VST = np.stack([weight + log_nodes(found, model.pieces, noise)[..., 0] for weight, found in zip(model.log_weight_V, found_V, strict=True)])
    v_M, s_M, t_M = pick(log_VST, count, rng)
    coefficients_MP = np.zeros((count, model.columns_VNP.shape[2]))
    for v in np.unique(v_M):
        here = v_M == v
        coefficients_MP[here] = coefficient_draws(found_V[v], model, (s_M[here], t_M[here]), rng)
    return Draws(between(noise.sigma_S, s_M, rng), tau_within(noise, t_M, rng), coefficients_MP, v_M)


def between(values_S: np.ndarray, at_M: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values of an even log grid, spread over their cells."""
    return values_S[at_M] * (values_S[1] / values_S[0]) ** (rng.random(len(at_M)) - 0.5)


def tau_within(noise: Noise, at_M: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values of tau spread over the quantiles of its prior that their node stands for."""
    top_T = np.cumsum(np.exp(noise.log_weight_T))
    u_M = top_T[at_M] - np.exp(noise.log_weight_T)[at_M] * rng.random(len(at_M))
    return NOISE.sd * ndtri(0.5 + np.clip(u_M, 1e-12, 1 - 1e-12) / 2)


def parameter_draws(family: Family, draws: Draws, shape_V: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws (M) of each named parameter, sigma and tau too."""
    coefficients = [*family.linear, *([family.positive] if family.positive else [])]
    own = {p.name: draws.coefficients_MP[:, i] for i, p in enumerate(coefficients)}
    shape = {family.shape.name: between(shape_V, draws.at_M, rng)} if family.shape else {}
    return {**own, **shape, "sigma": draws.sigma_M, "tau": draws.tau_M}


def parameter_samples(family: Family, frame: Frame, rng: np.random.Generator, count: int = DRAWS) -> dict[str, np.ndarray]:
    """Draws (M) of each named parameter of a family given all runs of a frame, sigma and tau too."""
    model, y_N = model_of(family, frame, nodes=FINE_NODES), frame["eta"].to_numpy(dtype=float)
    return parameter_draws(family, posterior_draws(model, y_N, np.ones(len(y_N), bool), rng, count), model.shape_V, rng)


def posteriors(family: Family, frame: Frame, rng: np.random.Generator, count: int = DRAWS) -> tuple[Posterior, ...]:
    """Mean and 95 % interval of every named parameter of a family."""
    units = {p.name: (p.unit, p.means) for p in family.parameters}
    units |= {"sigma": ("nats", "standard deviation of a run around its prediction"), "tau": ("nats", "standard deviation of the seeds' effects")}
    found = []
    for name, values_M in parameter_samples(family, frame, rng, count).items():
        low, high = np.quantile(values_M, [0.025, 0.975])
        found.append(Posterior(name, *units[name], float(values_M.mean()), (float(low), float(high))))
    return tuple(found)


def predictive(model: Model, y_N: np.ndarray, keep_N: np.ndarray, rng: np.random.Generator, count: int = DRAWS) -> np.ndarray:
    """Probability of less than y of every run that is not kept, given those kept (PIT)."""
    draws = posterior_draws(model, y_N, keep_N, rng, count)
    columns_MNP = model.columns_VNP[draws.at_M]
    mean_MN = model.offset_N + np.einsum("mnp,mp->mn", columns_MNP, draws.coefficients_MP)
    onehot_NG = (model.group_N[:, None] == np.unique(model.group_N)).astype(float)
    # Seeds' effects given what their kept runs leave over; a seed with no kept run has its prior.
    precision_MG = draws.tau_M[:, None] ** -2 + onehot_NG[keep_N].sum(0) / draws.sigma_M[:, None] ** 2
    left_MG = ((y_N - mean_MN)[:, keep_N] @ onehot_NG[keep_N]) / draws.sigma_M[:, None] ** 2
    effect_MG = left_MG / precision_MG + rng.standard_normal(left_MG.shape) * precision_MG**-0.5
    z_MN = (y_N - mean_MN - effect_MG @ onehot_NG.T) / draws.sigma_M[:, None]
    return ndtr(z_MN[:, ~keep_N]).mean(0)


def forward(family: Family, frame: Frame, rng: np.random.Generator, trained: tuple[int, ...] = (1, 2, 3)) -> Forward | str:
    """Fit the runs of some blocks, predict those of the others; why not, where that cannot be done."""
    if "block" not in frame:
        return "no forward prediction: the runs belong to no blocks"
    keep_N = frame["block"].isin(trained).to_numpy()
    if not keep_N.any() or keep_N.all():
        return f"no forward prediction: blocks {blocks(frame['block'].unique())} were run; it needs some of {blocks(trained)} and one more"
    why = family.untestable(frame[keep_N].reset_index(drop=True))
    if why:
        return f"no forward prediction from blocks {blocks(trained)}: {why.removeprefix('not testable here: ')}"
    model, y_N = model_of(family, frame), frame["eta"].to_numpy(dtype=float)
    log_B2 = log_evidence(model, y_N[None], np.stack([np.ones_like(keep_N), keep_N]))
    pit_N = predictive(model, y_N, keep_N, rng)
    inside = float(((pit_N > 0.025) & (pit_N < 0.975)).mean())
    untouched = blocks(frame.loc[~keep_N, "block"].unique())
    return Forward(blocks(trained), untouched, len(pit_N), float(log_B2[0, 0] - log_B2[0, 1]), inside, pit_N, float(kstest(pit_N, "uniform").pvalue))


def blocks(numbers: tuple[int, ...] | np.ndarray) -> str:
    """Block numbers in words: `1, 2, 3`."""
    return ", ".join(str(int(n)) for n in sorted(numbers))
