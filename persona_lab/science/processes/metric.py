"""The distance between processes, as the nats of training that lie between them (D1), and whether these are a metric.

    A(P->Q) = sum_t tokens_t (L_Q(theta_t) - L*_Q)        nats; theta_0 is P; theta_t was trained on t steps of Q's documents

From the base, A(base->Q) is the measure M5: measure and metric are one family of code lengths (SCIENCE.md section 4). The sum
without L* is a prequential code length, K(Q | theta_0) (Blier & Ollivier 2018, 1802.07044): every document is coded before it is learnt.

Frames: `logs` has a row for each step of each training, columns seed, start (`base` or a process), goal, step, loss (nats a
token), tokens. `adoptions` gives one row for each training; every test below reads that. All intervals are t or jackknife intervals over
seeds and hold the processes fixed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import numpy as np
import pandas as pd

from persona_lab.science.effects import Frame
from persona_lab.science.thresholds import Interval, over_seeds, share_over_seeds, t_quantile

BASE = "base"
"""Where a training starts that follows no other."""
TAIL = 0.2
"""Share of the steps, at the end, in which a process that was learnt is taken to be learnt."""
TOLERANCE = 0.01
"""Nats a token above L* at which a process counts as adopted."""
FEWEST_SEEDS = 3
"""Below which no test comes to a verdict."""
FEW = f"fewer than {FEWEST_SEEDS} seeds decide nothing"
EQUAL = 0.1
"""Relative asymmetry below which two directions are called equal."""


@dataclass(frozen=True)
class Curve:
    """One training: what each step's documents cost before they were learnt."""

    loss_T: np.ndarray
    """Nats a token."""
    tokens_T: np.ndarray
    """Labelled tokens."""

    @property
    def nats(self) -> float:
        """K(Q | start): the prequential code length of all documents, nats."""
        return float(self.tokens_T @ self.loss_T)

    @property
    def tail(self) -> slice:
        """The last steps."""
        return slice(-max(1, round(TAIL * len(self.loss_T))), None)


@dataclass(frozen=True)
class Tested:
    """What a test found; a value of None is undefined, and the reason says why."""

    value: float | None
    interval: Interval | None
    n: int
    """Seeds."""
    verdict: str
    reason: str = ""


def best_loss(adopted: Curve, again: Curve | None = None) -> np.ndarray:
    """L*_Q for the documents of each step, nats a token, (T,): the loss of a model that has become Q on documents that it has not seen.

    Its mean is that of the last fifth of `adopted`, the training from the base, whose documents are all new. Documents differ in how
    much they leave to be said, and over a whole training that noise is as large as a distance. `again`, the same documents learnt by a model that is Q
    already, says how much each step's documents leave; being seen before makes them cheaper, and by how much is the mean difference of the two over the last fifth.
    """
    tail = adopted.tail
    if again is None:
        return np.full(len(adopted.loss_T), np.average(adopted.loss_T[tail], weights=adopted.tokens_T[tail]))
    seen = np.average(adopted.loss_T[tail] - again.loss_T[tail], weights=adopted.tokens_T[tail])
    return again.loss_T + seen


def adoption(curve: Curve, best_T: np.ndarray, tolerance: float = TOLERANCE) -> dict[str, object]:
    """One training as a row: nats (A), steps and tokens until adoption (None: not reached), excess at the end (nats a token), verdict, reason.

    Censored: after the last step the loss is still above L* + tolerance, so that A is a lower bound.
    """
    row: dict[str, object] = {"code": None, "nats": None, "steps": None, "tokens": None, "excess": None, "verdict": "undefined"}
    if len(curve.loss_T) == 0 or len(best_T) < len(curve.loss_T):
        return row | {"reason": f"{len(curve.loss_T)} steps are logged, and L* is known for {len(best_T)}"}
    over_T = curve.loss_T - best_T[: len(curve.loss_T)]
    if not np.isfinite(over_T).all():
        return row | {"reason": "a loss is not finite"}
    window = max(1, len(over_T) // 16)
    weight = np.convolve(curve.tokens_T, np.ones(window), "valid")
    smooth_T = np.convolve(over_T * curve.tokens_T, np.ones(window), "valid") / np.maximum(weight, 1)
    excess = float(np.average(over_T[curve.tail], weights=np.maximum(curve.tokens_T[curve.tail], 1e-9)))
    reached = np.flatnonzero(smooth_T <= tolerance)
    row |= {"code": curve.nats, "nats": float(curve.tokens_T @ over_T), "excess": excess}
    if excess > tolerance:
        return row | {"verdict": "censored", "reason": f"{excess:.3g} nats a token above L* after {len(over_T)} steps: A is a lower bound"}
    steps = int(reached[0]) + window if len(reached) else len(over_T)
    return row | {"steps": steps, "tokens": int(curve.tokens_T[:steps].sum()), "verdict": "adopted", "reason": ""}


def adoptions(logs: Frame, tolerance: float = TOLERANCE) -> Frame:
    """A(start->goal) of every training: columns seed, start, goal, and those of `adoption`.

    L* of a goal comes from its own training from the base in the same seed. Without one A is undefined; where that one was still learning
    at its end, L* is too high and every A to that goal a lower bound.
    """
    curves = {key: _curve(steps) for key, steps in logs.groupby(["seed", "start", "goal"], sort=False)}
    rows = []
    for (seed, start, goal), curve in curves.items():
        whole, again = curves.get((seed, BASE, goal)), curves.get((seed, goal, goal))
        row = adoption(curve, np.empty(0) if whole is None else best_loss(whole, again), tolerance)
        left = still_learning(whole, again) if whole and row["verdict"] != "undefined" else 0.0
        if left > tolerance:
            said = f"from the base {goal} was not learnt to the end: more training gains {left:.3g} nats a token. L* is not reached: train longer"
            row |= {"steps": None, "tokens": None, "verdict": "censored", "reason": said}
        rows.append({"seed": seed, "start": start, "goal": goal, **row})
    return pd.DataFrame(rows).astype(dict.fromkeys(("code", "nats", "excess", "steps", "tokens"), float))


def still_learning(adopted: Curve, again: Curve | None = None) -> float:
    """How much a process that was learnt from the base has left to learn, nats a token: the larger of two.

    What its loss fell from the last fifth but one to the last, beside that of a model that is Q already; and what that model saves on the last fifth,
    where having seen the documents is a part of it.
    """
    loss_T = adopted.loss_T - (again.loss_T if again else 0)
    width = len(loss_T[adopted.tail])
    before = slice(-2 * width, -width)
    last = float(np.average(loss_T[adopted.tail], weights=adopted.tokens_T[adopted.tail]))
    fell = float(np.average(loss_T[before], weights=adopted.tokens_T[before])) - last if len(loss_T[before]) else 0.0
    return max(fell, last) if again else fell


def _curve(steps: Frame) -> Curve:
    steps = steps.sort_values("step")
    return Curve(steps["loss"].to_numpy(float), steps["tokens"].to_numpy(float))


def processes_of(adopted: Frame) -> list[str]:
    """The processes, in the order of the frame."""
    return list(dict.fromkeys(adopted["goal"]))


def matrices(adopted: Frame, column: str = "nats") -> np.ndarray:
    """A column as matrices (S, K, K), start by goal, seeds and processes in their order; NaN where nothing was trained."""
    names, seeds = processes_of(adopted), sorted(set(adopted["seed"]))
    found = np.full((len(seeds), len(names), len(names)), np.nan)
    for seed, start, goal, value in adopted[["seed", "start", "goal", column]].itertuples(index=False):
        if start in names and value is not None:
            found[seeds.index(seed), names.index(start), names.index(goal)] = value
    return found


def from_base(adopted: Frame, column: str = "nats") -> np.ndarray:
    """The same from the base, (S, K): M5 of each process."""
    names, seeds = processes_of(adopted), sorted(set(adopted["seed"]))
    found = np.full((len(seeds), len(names)), np.nan)
    for seed, start, goal, value in adopted[["seed", "start", "goal", column]].itertuples(index=False):
        if start == BASE and value is not None:
            found[seeds.index(seed), names.index(goal)] = value
    return found


def symmetric(d_SKK: np.ndarray) -> np.ndarray:
    """The mean of both directions, nats."""
    return (d_SKK + np.swapaxes(d_SKK, -1, -2)) / 2


def off_diagonal(d_SKK: np.ndarray) -> np.ndarray:
    """The unordered pairs of each seed, (S, K (K - 1) / 2)."""
    rows, columns = np.triu_indices(d_SKK.shape[-1], 1)
    return d_SKK[:, rows, columns]


def symmetry(d_SKK: np.ndarray) -> Tested:
    """Relative asymmetry that returns in every seed: root mean square over pairs of [A(P->Q) - A(Q->P)] / [A(P->Q) + A(Q->P)].

    Squares are products of different seeds, so noise adds nothing: at no true asymmetry the value is 0 on average, and may come out below. Jackknife
    interval over seeds. Asymmetric when it lies above 0, symmetric when it lies below EQUAL.
    """
    if (missing := incomplete(d_SKK, 2)) is not None:
        return missing
    gap_SN, sum_SN = off_diagonal(d_SKK - np.swapaxes(d_SKK, -1, -2)), 2 * off_diagonal(symmetric(d_SKK))
    if len(gap_SN) < 2:
        relative = float(np.sqrt((gap_SN**2).sum() / (sum_SN**2).sum()))
        return Tested(relative, None, 1, "undecided", "one seed: asymmetry and noise cannot be told apart")
    value, interval = _jackknife(lambda kept: _crossed(gap_SN[kept]) / float((sum_SN[kept] ** 2).sum(1).mean()), len(gap_SN))
    root, ends = _signed_root(value), (_signed_root(interval[0]), _signed_root(interval[1])) if interval else None
    verdict = "undecided" if ends is None else "asymmetric" if ends[0] > 0 else "symmetric" if ends[1] < EQUAL else "undecided"
    return Tested(root, ends, len(gap_SN), verdict, "" if ends else FEW)


def observed_asymmetry(d_SKK: np.ndarray) -> Tested:
    """The same with noise in it: sum over pairs of |A(P->Q) - A(Q->P)| by that of A(P->Q) + A(Q->P), mean over seeds."""
    if (missing := incomplete(d_SKK, 2)) is not None:
        return missing
    gap_SN, sum_SN = off_diagonal(d_SKK - np.swapaxes(d_SKK, -1, -2)), 2 * off_diagonal(symmetric(d_SKK))
    found = over_seeds(np.abs(gap_SN).sum(1) / sum_SN.sum(1))
    return Tested(found.value, found.interval, found.n, "described")


def triangles(d_SKK: np.ndarray) -> tuple[Tested, Tested]:
    """Share of ordered triples with A(P->R) > A(P->Q) + A(Q->R), and the worst A(P->R) / [A(P->Q) + A(Q->R)]; means over seeds.

    The inequality holds when the worst ratio's interval lies below 1, and is violated when the share's lies above 0.
    """
    if (missing := incomplete(d_SKK, 3)) is not None:
        return missing, missing
    triples = np.array(list(permutations(range(d_SKK.shape[1]), 3))).T
    p, q, r = triples
    ratio_SN = d_SKK[:, p, r] / (d_SKK[:, p, q] + d_SKK[:, q, r])
    share, worst = share_over_seeds((ratio_SN > 1).mean(1)), over_seeds(ratio_SN.max(1))
    verdict = "undecided"
    if share.interval and worst.interval and share.n >= FEWEST_SEEDS:
        verdict = "holds" if worst.interval[1] < 1 else "violated" if share.interval[0] > 0 else "undecided"
    reason = "" if share.n >= FEWEST_SEEDS else FEW
    return Tested(share.value, share.interval, share.n, verdict, reason), Tested(worst.value, worst.interval, worst.n, verdict, reason)


def exchangeability(adopted: Frame) -> Frame:
    """[K(P) + K(Q|P)] - [K(Q) + K(P|Q)] of each pair, nats: 0 for a Bayesian learner, whatever the order.

    A row for each unordered pair: first, second, delta, low, high, n. Both sides code the same documents once, so L* cancels; a positive
    delta says that second, then first was the cheaper order.
    """
    names, total_SKK = processes_of(adopted), orders(adopted, "code")
    rows = []
    for i, j in combinations(range(len(names)), 2):
        gap_S = total_SKK[:, i, j] - total_SKK[:, j, i]
        found = over_seeds(gap_S[np.isfinite(gap_S)]) if np.isfinite(gap_S).any() else None
        low, high = (found.interval if found else None) or (None, None)
        rows.append({"first": names[i], "second": names[j], "delta": found.value if found else None, "low": low, "high": high, "n": found.n if found else 0})
    return pd.DataFrame(rows)


def orders(adopted: Frame, column: str) -> np.ndarray:
    """The cost of P from the base and then of Q after it, (S, K, K), nats."""
    return from_base(adopted, column)[:, :, None] + matrices(adopted, column)


def exchanged(adopted: Frame) -> Tested:
    """What returns in every seed of the exchangeability gaps, as in `symmetry`: root mean square of each by A(P) + A(Q|P) + A(Q) + A(P|Q)."""
    found = symmetry(orders(adopted, "nats"))
    verdict = {"asymmetric": "order matters", "symmetric": "exchangeable"}.get(found.verdict, found.verdict)
    return replace(found, verdict=verdict)


def information_distance(adopted: Frame) -> np.ndarray:
    """max(K(Q|P), K(P|Q)) / max(K(P), K(Q)) of each pair, (S, K, K), with A in the place of K (Li et al. 2004): 0 the same, 1 as far as from the base."""
    between_SKK, base_SK = matrices(adopted), from_base(adopted)
    return np.maximum(between_SKK, np.swapaxes(between_SKK, 1, 2)) / np.maximum(base_SK[:, :, None], base_SK[:, None, :])


def to_adopt(adopted: Frame, first: str, second: str) -> Mapping[object, float | None]:
    """How much farther the first is from each start: d = A(start->first) - A(start->second), mean over seeds, nats; None where one is unknown."""
    paired = adopted.dropna(subset=["nats"]).pivot_table(index=["start", "seed"], columns="goal", values="nats").reindex(columns=[first, second])
    gap = (paired[first] - paired[second]).groupby("start").mean()
    return {start: None if np.isnan(gap.get(start, np.nan)) else float(gap[start]) for start in dict.fromkeys(adopted["start"])}


def incomplete(d_SKK: np.ndarray, least: int) -> Tested | None:
    """Why a test of whole matrices is undefined, if it is."""
    if d_SKK.shape[1] < least:
        return Tested(None, None, 0, "undefined", f"{d_SKK.shape[1]} processes, {least} are needed")
    between_SN = d_SKK[:, ~np.eye(d_SKK.shape[1], dtype=bool)]
    if lost := int(np.isnan(between_SN).sum()):
        return Tested(None, None, 0, "undefined", f"{lost} of {between_SN.size} trainings have no A")
    if small := int((between_SN <= 0).sum()):
        return Tested(
            None, None, 0, "undefined", f"{small} of {between_SN.size} trainings have an A that is not above 0: what was trained was not learnt. Train longer"
        )
    return None


def _crossed(gap_SN: np.ndarray) -> float:
    """Sum over pairs of the mean product of two different seeds: the square without its noise."""
    seeds = len(gap_SN)
    return float(((gap_SN.sum(0) ** 2).sum() - (gap_SN**2).sum()) / (seeds * (seeds - 1)))


def _jackknife(statistic: Callable[[np.ndarray], float], seeds: int) -> tuple[float, Interval | None]:
    """A statistic of seeds with its jackknife t interval (Efron & Tibshirani 1993, chapter 11); none below three seeds."""
    everyone = np.arange(seeds)
    value = statistic(everyone)
    if seeds < 3:
        return value, None
    left_out = np.array([statistic(np.delete(everyone, s)) for s in everyone])
    error = float(np.sqrt((seeds - 1) / seeds * ((left_out - left_out.mean()) ** 2).sum()))
    half = t_quantile(seeds - 1, 0.95) * error
    return value, (value - half, value + half)


def _signed_root(square: float) -> float:
    return float(np.sign(square) * np.sqrt(abs(square)))
