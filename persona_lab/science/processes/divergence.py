"""Distances between processes that need no training from one to the other: D2, D4, D5, D6; and whether they foretell the one that does (D1).

    D2  1 - cos(g_P, g_Q)            gradients of both processes at one checkpoint, plain or as Adam sees them
    D4  JS(p_P, p_Q)                 answers to the same prompts, nats
    D5  |mu_P - mu_Q| in units of the spread over contexts, and 1 - cos of what is left when the common mean is taken away
    D6  max_a L(a) - [(1 - a) L(0) + a L(1)]      on the straight line between two adapters, nats a token

reference/science.md section 3. Gradients come as Gram matrices (K, K): what is needed of them, however many parameters they have.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from math import factorial

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from persona_lab.science.effects import Frame
from persona_lab.science.processes.metric import FEW, FEWEST_SEEDS, Tested, incomplete
from persona_lab.science.thresholds import over_seeds

LEAST_RHO = 0.5
"""Rank correlation with D1 below which a cheaper distance is dropped as its proxy."""
FEWEST_PAIRS = 6
"""Pairs that a rank correlation needs: of four processes."""
MOST_ORDERS = 5040
"""Permutations of processes that are tried one by one; beyond, so many are drawn."""


# ---------------------------------------------------------------------------------------------------------------- D2
def cosines(gram_KK: np.ndarray) -> np.ndarray:
    """Cosines of all pairs from their inner products; NaN where a gradient is zero."""
    size_K = np.sqrt(np.diag(gram_KK))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size_K[:, None] * size_K > 0, gram_KK / (size_K[:, None] * size_K), np.nan)


def centred(gram_KK: np.ndarray) -> np.ndarray:
    """Inner products of what is left when the mean of all K is taken away: what is common to all, such as the format, tells no two apart."""
    share_KK = np.eye(len(gram_KK)) - 1 / len(gram_KK)
    return share_KK @ gram_KK @ share_KK


def transfer(gram_KK: np.ndarray) -> np.ndarray:
    """T_lin (K, K): by first order, what a step on the row's documents gains on the column's, in units of what it gains on its own."""
    own_K = np.diag(gram_KK)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(own_K[:, None] > 0, gram_KK / own_K[:, None], np.nan)


# ---------------------------------------------------------------------------------------------------------------- D4
def jensen_shannon(p_NV: np.ndarray, q_NV: np.ndarray) -> float:
    """1/2 KL(P || M) + 1/2 KL(Q || M), M their mean, nats, mean over N distributions; at most ln 2."""
    return float(_entropy((p_NV + q_NV) / 2).mean() - (_entropy(p_NV) + _entropy(q_NV)).mean() / 2)


def kullback_leibler(p_NV: np.ndarray, q_NV: np.ndarray) -> float:
    """KL(P || Q), nats, mean over N distributions; infinite where Q rules out what P says."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(p_NV > 0, p_NV * (np.log(p_NV) - np.log(q_NV)), 0).sum(-1).mean())


def _entropy(p_NV: np.ndarray) -> np.ndarray:
    return -np.where(p_NV > 0, p_NV * np.log(np.where(p_NV > 0, p_NV, 1)), 0).sum(-1)


def slots(rows: Frame) -> np.ndarray:
    """Answers of one model where a trait is said, (N, V + 1): probabilities of an item's options, and of all else; items in the order of their names.

    Where an item has fewer options than another, what it lacks has probability 0. Reads the score rows item, option, prob, status; ValueError when an
    option was not scored.
    """
    if (rows["status"] != "scored").any():
        raise ValueError(f"{int((rows['status'] != 'scored').sum())} options have no probability")
    ordered = rows.sort_values(["item", "option"])
    prob_NV = ordered.assign(place=ordered.groupby("item").cumcount()).pivot(index="item", columns="place", values="prob").fillna(0).to_numpy(float)
    return np.column_stack([prob_NV, np.clip(1 - prob_NV.sum(1), 0, 1)])


def answers_apart(rows: Mapping[str, Frame]) -> np.ndarray:
    """Jensen-Shannon divergence of the answers of all pairs of models, nats, (K, K), in the order of the mapping."""
    said = [slots(each) for each in rows.values()]
    found = np.zeros((len(said), len(said)))
    for i, j in combinations(range(len(said)), 2):
        found[i, j] = found[j, i] = max(0.0, jensen_shannon(said[i], said[j]))
    return found


# ---------------------------------------------------------------------------------------------------------------- D5
def whitened(state_KNd: np.ndarray) -> np.ndarray:
    """Hidden states of K processes that read the same N texts, in units of how contexts differ: process means, common mean taken away, (K, N or d).

    Rows are whitened by the covariance of the texts' means, shrunk toward a multiple of the identity as far as N texts need (Ledoit & Wolf
    2004): Euclidean distances between them are Mahalanobis distances. ValueError below two texts.
    """
    if state_KNd.shape[1] < 2:
        raise ValueError("whitening needs at least two texts")
    mean_Nd = state_KNd.mean(0) - state_KNd.mean((0, 1))
    left, size, axes = np.linalg.svd(mean_Nd, full_matrices=False)
    shrink, level = ledoit_wolf(mean_Nd)
    apart_Kd = state_KNd.mean(1) - state_KNd.mean((0, 1))
    spread = (1 - shrink) * size**2 / len(left) + shrink * level
    inside_KN = apart_Kd @ axes.T
    outside_Kd = apart_Kd - inside_KN @ axes
    if shrink * level <= 0:
        return inside_KN / np.sqrt(np.maximum(spread, np.finfo(float).tiny))
    return np.concatenate([inside_KN / np.sqrt(spread), outside_Kd / np.sqrt(shrink * level)], axis=1)


def ledoit_wolf(centred_Nd: np.ndarray) -> tuple[float, float]:
    """(weight of the target, its level): the covariance is (1 - weight) S + weight * level * I; level is the mean variance."""
    samples, width = centred_Nd.shape
    gram_NN = centred_Nd @ centred_Nd.T
    level = float(np.trace(gram_NN)) / (samples * width)
    square = float((gram_NN**2).sum()) / samples**2
    gap = square / width - level**2
    noise = (float((np.diag(gram_NN) ** 2).sum()) / samples - square) / (samples * width)
    return (float(np.clip(noise / gap, 0, 1)) if gap > 0 else 1.0), level


def apart(point_Kd: np.ndarray) -> np.ndarray:
    """Euclidean distances of all pairs."""
    return np.linalg.norm(point_Kd[:, None] - point_Kd[None], axis=-1)


# ---------------------------------------------------------------------------------------------------------------- D6
def barrier(loss_A: Sequence[float], share_A: Sequence[float]) -> float:
    """The most by which the loss on the way lies above the straight line between its ends, nats a token; negative where all of it lies below."""
    loss, share = np.asarray(loss_A, float), np.asarray(share_A, float)
    over = loss - ((1 - share) * loss[0] + share * loss[-1])
    return float(over[1:-1].max())


def one_basin(barrier_SKK: np.ndarray) -> Tested:
    """The highest barrier of all pairs, nats a token, mean over seeds: one basin when its interval lies at 0 or below, several when it lies above."""
    rows, columns = np.triu_indices(barrier_SKK.shape[-1], 1)
    found = over_seeds(barrier_SKK[:, rows, columns].max(1))
    if found.interval is None or found.n < FEWEST_SEEDS:
        return Tested(found.value, found.interval, found.n, "undecided", FEW)
    return Tested(found.value, found.interval, found.n, "one basin" if found.interval[1] <= 0 else "several" if found.interval[0] > 0 else "undecided")


# ---------------------------------------------------------------------------------------------------------------- all
def agreement(proxy_SKK: np.ndarray, d_SKK: np.ndarray, name: str) -> Tested:
    """Spearman correlation over pairs of processes of a cheap distance with D1, mean over seeds (t interval).

    Predicts: its interval lies above 1/2. Dropped: the value lies below. Pairs share processes: `mantel` says how often chance does as well.
    """
    rows, columns = np.triu_indices(d_SKK.shape[-1], 1)
    pairs = [(x_KK[rows, columns], y_KK[rows, columns]) for x_KK, y_KK in zip(proxy_SKK, d_SKK, strict=True)]
    if len(rows) < FEWEST_PAIRS:
        return Tested(None, None, 0, "undefined", f"{len(rows)} pairs of processes, a rank correlation needs {FEWEST_PAIRS}: name 4 processes or more")
    if (missing := incomplete(d_SKK, 2)) is not None:
        return missing
    if any(np.isnan([x, y]).any() or np.ptp(x) == 0 or np.ptp(y) == 0 for x, y in pairs):
        return Tested(None, None, 0, "undefined", "a distance is not known, or all of them are the same")
    found = over_seeds(np.array([np.corrcoef(rankdata(x), rankdata(y))[0, 1] for x, y in pairs]))
    value, ends = found.value, (max(-1.0, found.interval[0]), min(1.0, found.interval[1])) if found.interval else None
    if found.n < FEWEST_SEEDS:
        return Tested(value, ends, found.n, "undecided", FEW)
    if value < LEAST_RHO:
        return Tested(value, ends, found.n, "dropped", f"{name} is dropped as a proxy")
    if ends is not None and ends[0] >= LEAST_RHO:
        return Tested(value, ends, found.n, "predicts")
    return Tested(value, ends, found.n, "undecided")


def mantel(one_KK: np.ndarray, other_KK: np.ndarray) -> float:
    """Share of the relabellings of the processes whose rank correlation is at least that of the data, the data among them (Mantel 1967)."""
    count = len(one_KK)
    rows, columns = np.triu_indices(count, 1)
    ranks = rankdata(one_KK[rows, columns])
    rank_KK = np.zeros_like(other_KK, dtype=float)
    rank_KK[rows, columns] = rank_KK[columns, rows] = rankdata(other_KK[rows, columns])
    if factorial(count) <= MOST_ORDERS:
        every = np.array(list(permutations(range(count))))  # the first leaves all as they are
    else:
        every = np.random.default_rng(0).permuted(np.tile(np.arange(count), (MOST_ORDERS, 1)), axis=1)
        every[0] = np.arange(count)
    sums = rank_KK[every[:, rows], every[:, columns]] @ ranks
    return float((sums >= sums[0] - 1e-9).mean())


def concept_map(distance_KK: np.ndarray, names: Sequence[str]) -> tuple[Frame, float]:
    """Classical scaling (Torgerson 1952): columns process, x, y, whose distances come nearest to the given ones; and the share of them that two axes show.

    The share is of the absolute eigenvalues, so distances that no space can hold lower it. NaN in a distance leaves nothing to draw: ValueError.
    """
    if np.isnan(distance_KK).any():
        raise ValueError("a distance of the map is not known")
    both_KK = (distance_KK + distance_KK.T) / 2
    np.fill_diagonal(both_KK, 0)
    value, vector = np.linalg.eigh(-centred(both_KK**2) / 2)
    most = np.argsort(-value)[:2]
    point_K2 = vector[:, most] * np.sqrt(np.maximum(value[most], 0))
    point_K2 *= np.where(point_K2[np.abs(point_K2).argmax(0), [0, 1]] < 0, -1, 1)
    shown = float(np.maximum(value[most], 0).sum() / np.abs(value).sum()) if np.abs(value).sum() > 0 else 0.0
    return pd.DataFrame({"process": list(names), "x": point_K2[:, 0], "y": point_K2[:, 1]}), shown
