"""Convergent validity: do the estimators of the measure rank the processes alike? If they do not, measure is not one thing.

    first   second  n   pearson            spearman           reason
    M1      M5      24  .81 [.62, .91]     .78 [.55, .90]
    M1      M7 rank 24  -                  -                  one of them is the same for every process

All estimators are oriented, larger is more measure (`processes.measure`), so that agreement is a positive correlation (Campbell and Fiske 1959;
SCIENCE.md section 3).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from persona_lab.science.claims import Said
from persona_lab.science.processes.measure import ESTIMATORS, TRUTH, Frame, Measured
from persona_lab.science.thresholds import Interval

ONE_THING = 0.5
"""Mean correlation of the estimators above which the measure is one thing."""
FEWEST_PERSONAS = 12
CORRELATIONS = ("pearson", "pearson_low", "pearson_high", "spearman", "spearman_low", "spearman_high")


@dataclass(frozen=True)
class Agreement:
    """How far the estimators agree over processes."""

    pairs: Frame
    """One row a pair: first, second, n, pearson, pearson_low, pearson_high, spearman, spearman_low, spearman_high, reason."""
    mean: float | None
    """Mean Spearman correlation of the estimators with each other; the truth is left out, and two readings of one estimator count once."""
    interval: Interval | None
    verdict: str
    """one thing, not one thing, or undecided."""
    sentence: str


def reliability(found: Sequence[Measured], estimator: str) -> float | None:
    """How well an estimator's replicates agree about the processes: ICC(3, k), the consistency of their mean (Shrout and Fleiss 1979).

    1 - (mean square left over) / (mean square of processes): 1 when replicates differ by constants alone, 0 or less when they tell processes apart by
    chance. No estimator can correlate with anything better than the square root of it. None where processes have not the same two replicates or more.
    """
    parts = [m.parts for m in found if m.estimator == estimator and m.value is not None]
    if len(parts) < 3 or len({len(p) for p in parts}) > 1 or len(parts[0]) < 2:
        return None
    part_PI = np.array(parts)
    processes, items = part_PI.shape
    of_P = part_PI.mean(1, keepdims=True)
    between = items * float(((of_P - part_PI.mean()) ** 2).sum()) / (processes - 1)
    left = float(((part_PI - of_P - part_PI.mean(0) + part_PI.mean()) ** 2).sum()) / ((processes - 1) * (items - 1))
    return 1 - left / between if between > 0 else None


def table_of(found: Sequence[Measured]) -> Frame:
    """Processes x estimators; NaN where there is no value."""
    order = [name for name in (TRUTH, *ESTIMATORS) if any(m.estimator == name for m in found)]
    long = pd.DataFrame([(m.process, m.estimator, np.nan if m.value is None else m.value) for m in found], columns=["process", "estimator", "value"])
    return long.pivot(index="process", columns="estimator", values="value").reindex(index=list(dict.fromkeys(long["process"])), columns=order)


def agreement(table: Frame, *, resamples: int = 2000, seed: int = 0) -> Agreement:
    """Pearson and Spearman correlation of every pair of columns with bootstrap intervals over processes (percentile, the same resamples for all pairs)."""
    rng = np.random.default_rng(seed)
    drawn_RN = rng.integers(0, len(table), (resamples, len(table))) if len(table) else np.zeros((0, 0), int)
    rows, families = [], dict[frozenset[str], list[tuple[float, np.ndarray]]]()
    for first, second in combinations(table.columns, 2):
        row, ranks_R = _pair(table[first].to_numpy(float), table[second].to_numpy(float), drawn_RN)
        rows.append({"first": first, "second": second, **row})
        pair = frozenset((first.split()[0], second.split()[0]))
        if TRUTH not in (first, second) and len(pair) == 2 and not row["reason"]:
            families.setdefault(pair, []).append((row["spearman"], ranks_R))
    return _judged(pd.DataFrame(rows, columns=["first", "second", "n", *CORRELATIONS, "reason"]), list(families.values()), len(table))


def _pair(x: np.ndarray, y: np.ndarray, drawn_RN: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """The correlations of two estimators, and the Spearman one of each resample."""
    both = np.isfinite(x) & np.isfinite(y)
    n = int(both.sum())
    x, y = (np.where(both, values, np.nan) for values in (x, y))
    if n < 4 or np.ptp(x[both]) == 0 or np.ptp(y[both]) == 0:
        reason = f"{n} processes have both, at least 4 are needed" if n < 4 else "one of them is the same for every process"
        return {"n": n, **dict.fromkeys(CORRELATIONS), "reason": reason}, np.array([])
    found: dict[str, Any] = {"n": n}
    resampled = np.array([])
    for name, one, other in (("pearson", x, y), ("spearman", _ranks(x), _ranks(y))):
        found[name] = float(_correlations(one[None], other[None])[0])
        drawn = (one[drawn_RN], other[drawn_RN])
        resampled = _correlations(*(map(_ranks, drawn) if name == "spearman" else drawn))
        low, high = np.nanquantile(resampled, (0.025, 0.975))
        found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return {**found, "reason": ""}, resampled


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis; what is missing stays missing."""
    return rankdata(values, axis=-1, nan_policy="omit")


def _correlations(x_RN: np.ndarray, y_RN: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row over the processes that have both; NaN where one does not vary."""
    both = np.isfinite(x_RN) & np.isfinite(y_RN)
    n_R1 = np.maximum(both.sum(1, keepdims=True), 1)
    x, y = (np.where(both, values, 0.0) for values in (x_RN, y_RN))
    x, y = (np.where(both, values - values.sum(1, keepdims=True) / n_R1, 0.0) for values in (x, y))
    spread = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.where(spread > 1e-12, (x * y).sum(1) / np.where(spread > 1e-12, spread, 1), np.nan)


def _judged(pairs: Frame, families: Sequence[Sequence[tuple[float, np.ndarray]]], processes: int) -> Agreement:
    """The verdict, from the Spearman correlations of every two estimators with their resamples: two readings of one count once."""
    if not families:
        return Agreement(pairs, None, None, "undecided", "No two estimators can be compared, so nothing is said of whether measure is one thing.")
    mean = float(np.mean([np.mean([value for value, _ in family]) for family in families]))
    # A resample in which something does not vary tells nothing of that pair; it counts where every pair is known.
    resampled_FR = np.array([np.mean([resampled for _, resampled in family], axis=0) for family in families])
    resampled_R = resampled_FR[:, np.isfinite(resampled_FR).all(axis=0)].mean(axis=0)
    if not len(resampled_R):
        said = "no resample of the processes has every pair, so the mean rank correlation has no interval"
        return Agreement(pairs, mean, None, "undecided", f"Whether measure is one thing is undecided: {said}.")
    low, high = (float(end) for end in np.quantile(resampled_R, (0.025, 0.975)))
    verdict = "one thing" if low > ONE_THING else "not one thing" if high < ONE_THING else "undecided"
    if processes < FEWEST_PERSONAS:
        verdict = "undecided"
    said = f"the mean rank correlation of {len(families)} pairs of estimators over {processes} processes is {mean:.2f} [{low:.2f}, {high:.2f}]"
    few = f"; {FEWEST_PERSONAS} processes or more would decide" if processes < FEWEST_PERSONAS else ""
    opening = {
        "one thing": "Measure is one thing here",
        "not one thing": "Measure is not one thing here",
        "undecided": "Whether measure is one thing is undecided",
    }[verdict]
    return Agreement(pairs, mean, (low, high), verdict, f"{opening}: {said}, against {ONE_THING:g}{few}.")


def measure_claims(found: Sequence[Measured], agreed: Agreement) -> Iterator[Said]:
    """Every estimate, then every pair's rank correlation, then whether measure is one thing; a verdict is `measured`, `undefined`, or that of the sentence."""
    for one in found:
        said = f"{one.estimator} of {one.process}" + (f": {one.reason}" if one.reason else "")
        slug = one.estimator.lower().replace(" ", "_")
        yield f"measure.{slug}.{one.process}", f"{said}.", one.value, one.interval, one.unit, "undefined" if one.value is None else "measured"
    for pair in agreed.pairs.to_dict("records"):
        interval = None if pair["reason"] else (pair["spearman_low"], pair["spearman_high"])
        slug = f"{pair['first']}.{pair['second']}".lower().replace(" ", "_")
        said = f"Rank correlation of {pair['first']} and {pair['second']} over {pair['n']} processes" + (f": {pair['reason']}" if pair["reason"] else "")
        yield f"measure.agreement.{slug}", f"{said}.", None if pair["reason"] else pair["spearman"], interval, "", "undefined" if pair["reason"] else "measured"
    yield "measure.agreement", agreed.sentence, agreed.mean, agreed.interval, "", agreed.verdict
