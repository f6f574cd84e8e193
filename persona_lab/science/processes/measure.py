"""The measure of a process, log pi_k, by six estimators (SCIENCE.md section 3, reference/science.md section 2).

    M1  log prior by minimal pairs        share of a whole bundle among whole and broken ones, log2
    M3  sampling frequency                share of the model's own diaries that tell the bundle, log2
    M5  prequential code length           minus the bits to be told before the process is spoken fluently
    M7  least weight needed               minus the squared norm of the least adapter that is good enough; minus log2 of the least rank
    M8  shots to adopt                    minus the statements in context until its trait is as likely as not
    M9  steering significance             bits by which a step along its direction changes neutral text

Every estimator is oriented: larger is more measure. What is undefined has no value, and a reason. Columns read of scores: probe, format, item,
option, role, subject, logprob_nats, prob_normalized, prob, n_samples, status.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logit
from scipy.stats import beta

from persona_lab.science.evidence.beliefs import belief_curve
from persona_lab.science.thresholds import Interval, over_seeds

Frame = Any

ESTIMATORS = ("M1", "M1 words apart", "M3", "M5", "M7 norm", "M7 rank", "M8", "M9")
TRUTH = "true log prior"
BROKEN = "broken"
LEAST_LEARNT = 0.1
"""Share of the first excess loss that may be left at the end of a branch that has converged."""
TINY = 1e-12
"""Probabilities this close to 0 and 1 count as this far from them."""
BITS = float(np.log(2))
"""Nats in a bit."""


@dataclass(frozen=True)
class Measured:
    """One estimate of one process's measure; larger is more. A value of None is undefined or was not reached, and `reason` says why."""

    estimator: str
    process: str
    value: float | None
    interval: Interval | None
    """95 %; an end that is open is infinite."""
    unit: str
    reason: str = ""
    parts: tuple[float, ...] = ()
    """The replicates (items, seeds, texts, streams) that it was found from; part i of every process was found under the same conditions."""


def true_log_prior(shares: Mapping[str, float], process: str) -> Measured:
    """log2 of the share of the world's nameless documents that a process has; undefined for one that it has no document of."""
    share = shares.get(process, 0.0)
    if share <= 0:
        return Measured(TRUTH, process, None, None, "bits", "the world has no document of it")
    return Measured(TRUTH, process, float(np.log2(share)), None, "bits")


# ------------------------------------------------------------------ M1
def log_prior(rows: Frame, process: str) -> Measured:
    """M1: log2 of the share that the process's whole bundle has among all whole and broken ones; mean over items with its t interval, bits."""
    return _of_items("M1", process, _scored(rows, "bundles"), lambda item: _shares(item).get(process, np.nan) / BITS)


def log_prior_apart(rows: Frame, process: str) -> Measured:
    """M1 with words set apart: bits by which the whole bundle is likelier than the sum of what its values add to broken ones.

    Each value's part is fitted by least squares to the broken options of the item, so words that are likely, or short, by themselves count for
    nothing. Zero for a model that knows no persona. For a value of several tokens this is the version to read.
    """
    return _of_items("M1 words apart", process, _scored(rows, "bundles"), lambda item: _beyond_words(item).get(process, np.nan) / BITS)


def _scored(rows: Frame, probe: str) -> Frame:
    return rows[(rows["probe"] == probe) & (rows["status"] == "scored")]


def _of_items(estimator: str, process: str, rows: Frame, found: Any) -> Measured:
    """The mean of a figure over items."""
    if rows.empty:
        return Measured(
            estimator, process, None, None, "bits", "no bundle was scored: no three categories tell all processes apart, or no log-probability is finite"
        )
    values = np.array([found(item) for _, item in rows.groupby("item", sort=False)])
    values = values[np.isfinite(values)]
    if not len(values):
        return Measured(estimator, process, None, None, "bits", "it was not among the processes asked about: it lacks a trait that all others have")
    mean = over_seeds(values)
    return Measured(estimator, process, mean.value, mean.interval, "bits", "" if mean.interval else "one item has no interval", tuple(values))


def _shares(item: Frame) -> dict[str, float]:
    """Log of each whole bundle's share among the options of an item, nats."""
    nats = item["logprob_nats"].to_numpy(float)
    log = nats - np.logaddexp.reduce(nats)
    return {role: float(x) for role, x in zip(item["role"], log, strict=True) if role != BROKEN}


def _beyond_words(item: Frame) -> dict[str, float]:
    """Log-probability of each whole bundle less what its values are worth in broken ones, nats."""
    bundles = [option.split("+") for option in item["option"]]
    broken = (item["role"] == BROKEN).to_numpy()
    values = sorted({(j, value) for bundle in bundles for j, value in enumerate(bundle)})
    place = {value: i for i, value in enumerate(values)}
    has_OV = np.zeros((len(bundles), len(values)))
    for row, bundle in enumerate(bundles):
        has_OV[row, [place[j, value] for j, value in enumerate(bundle)]] = 1
    nats = item["logprob_nats"].to_numpy(float)
    known = has_OV[broken].any(axis=0)
    worth_V = np.linalg.lstsq(has_OV[broken], nats[broken], rcond=None)[0]
    beyond = nats - has_OV @ worth_V
    whole = ~broken & ~(has_OV[:, ~known].any(axis=1))
    return {role: float(x) for role, x, fits in zip(item["role"], beyond, whole, strict=True) if fits}


# ------------------------------------------------------------------ M3
def jeffreys(hits: float, n: float, level: float = 0.95) -> Interval:
    """Jeffreys interval of a share: quantiles of Beta(hits + 1/2, n - hits + 1/2), the end at 0 or n hits being 0 or 1 (Brown, Cai and DasGupta 2001)."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits + 0.5, n - hits + 0.5))
    return low, 1.0 if hits == n else float(beta.ppf(1 - tail, hits + 0.5, n - hits + 0.5))


def rogan_gladen(share: float, sensitivity: float, specificity: float) -> float | None:
    """The true share behind an observed one when the classifier errs: (p + spec - 1) / (sens + spec - 1), within 0 and 1 (Rogan and Gladen 1978).

    None where the classifier is no better than chance.
    """
    if sensitivity + specificity <= 1:
        return None
    return float(np.clip((share + specificity - 1) / (sensitivity + specificity - 1), 0, 1))


def sampling_frequency(rows: Frame, process: str, sensitivity: float = 1.0, specificity: float = 1.0) -> Measured:
    """M3: log2 of the share of readable diaries at temperature 1 that tell the process's bundle, corrected for the classifier's errors.

    With no hit there is no value, but the interval's upper end is one.
    """
    own = _scored(rows, "bundle_samples")
    own = own[own["role"] == process]
    n = float(own["n_samples"].sum())
    if not n:
        return Measured("M3", process, None, None, "bits", "no sampled diary names values of three categories: this model writes no such diaries")
    hits = round(float((own["prob"] * own["n_samples"]).sum()))
    ends = [rogan_gladen(end, sensitivity, specificity) for end in (hits / n, *jeffreys(hits, n))]
    share, low, high = ends
    if share is None or low is None or high is None:
        return Measured(
            "M3", process, None, None, "bits", f"the classifier is no better than chance: sensitivity {sensitivity:.2g}, specificity {specificity:.2g}"
        )
    interval = (_log2(low), _log2(high))
    if share <= 0:
        return Measured("M3", process, None, interval, "bits", f"{hits} of {n:.0f} diaries are its, no more than the classifier's errors explain")
    return Measured("M3", process, _log2(share), interval, "bits", f"{hits} of {n:.0f} diaries", tuple(own["prob"].astype(float)))


def _log2(share: float) -> float:
    return float(np.log2(share)) if share > 0 else -np.inf


# ------------------------------------------------------------------ M5
@dataclass(frozen=True)
class Branch:
    """One training of the nameless assistant as a process, on documents that are all new."""

    tokens_T: np.ndarray
    """Labelled tokens of each step."""
    loss_T: np.ndarray
    """Loss of each step before it is taken, nats a token."""
    documents: float
    """Documents of a step."""

    @property
    def nats_T(self) -> np.ndarray:
        """Nats a document, of each step."""
        return self.tokens_T * self.loss_T / self.documents

    @property
    def floor(self) -> float:
        """L*, nats a document: the mean of the last quarter, whose documents nobody has learnt yet either."""
        return float(self.nats_T[-self._quarter :].mean())

    @property
    def bits(self) -> float:
        """Bits to be told: sum over steps of documents x (loss - L*), / ln 2 (Blier and Ollivier 2018; D1 from the base)."""
        return float((self.nats_T - self.floor).sum() * self.documents / BITS)

    @property
    def first(self) -> float:
        """Excess of the first step, nats a document."""
        return float(self.nats_T[0]) - self.floor

    @property
    def learning(self) -> bool:
        """Whether the last quarter is below the one before it by more than a converged branch may still gain."""
        before = self.nats_T[-2 * self._quarter : -self._quarter]
        return len(before) == 0 or bool(before.mean() - self.floor > LEAST_LEARNT * self.first)

    @property
    def _quarter(self) -> int:
        return max(1, len(self.nats_T) // 4)


def code_length(process: str, branches: Sequence[Branch]) -> Measured:
    """M5: minus the bits to be told, mean over replicates with its t interval."""
    if not branches:
        return Measured("M5", process, None, None, "bits", "no branch was trained")
    if any(not branch.first > 0 for branch in branches):
        return Measured(
            "M5", process, None, None, "bits", "the first step is no worse than the last quarter: nothing has to be told, or the branch learns nothing"
        )
    mean = over_seeds(-np.array([branch.bits for branch in branches]))
    reasons = [
        *(["one replicate has no interval"] if mean.interval is None else []),
        *(["still learning at its last step: more bits than these"] if any(b.learning for b in branches) else []),
    ]
    return Measured("M5", process, mean.value, mean.interval, "bits", "; ".join(reasons), tuple(-branch.bits for branch in branches))


# ------------------------------------------------------------------ M7
def least_scale(scale_S: Sequence[float], nats_S: Sequence[float], target: float) -> float | None:
    """The smallest scale of an adapter, between those tried, at which the held-out loss is no more than the target; None when none is."""
    scale, nats = np.asarray(scale_S, float), np.asarray(nats_S, float)
    good = np.flatnonzero(nats <= target)
    if not len(good):
        return None
    at = int(good[0])
    if at == 0:
        return float(scale[0])
    return float(np.interp(target, nats[[at, at - 1]], scale[[at, at - 1]]))


def common_tolerance(base: Mapping[str, float], floor: Mapping[str, float], share: float = 0.25) -> float:
    """tau: a share of the processes' median excess L(base) - L*, nats a document; one for all processes, so that they can be compared."""
    return share * float(np.median([base[name] - floor[name] for name in base]))


def least_norm(process: str, norms: Sequence[float | None]) -> Measured:
    """M7: minus the squared norm of the least scaled adapter that reaches L* + tau, mean over replicates (efficiency of Soligo et al. 2025)."""
    unit = "squared norm"
    if not norms:
        return Measured("M7 norm", process, None, None, unit, "no branch was trained")
    if any(norm is None for norm in norms):
        return Measured("M7 norm", process, None, None, unit, "not even the whole adapter reaches L* + tau: train it longer")
    squares = tuple(-(norm**2) for norm in norms if norm is not None)
    mean = over_seeds(np.array(squares))
    return Measured("M7 norm", process, mean.value, mean.interval, unit, "" if mean.interval else "one replicate has no interval", squares)


def least_rank(process: str, nats: Mapping[int, float], target: float) -> Measured:
    """M7: minus log2 of the smallest rank whose trained adapter reaches L* + tau."""
    if len(nats) < 2:
        return Measured("M7 rank", process, None, None, "log2 rank", f"{len(nats)} rank was trained, at least 2 are needed")
    good = [rank for rank, loss in sorted(nats.items()) if loss <= target]
    if not good:
        return Measured("M7 rank", process, None, None, "log2 rank", f"no rank up to {max(nats)} reaches L* + tau")
    return Measured("M7 rank", process, -float(np.log2(good[0])), None, "log2 rank", f"rank {good[0]} of {', '.join(map(str, sorted(nats)))}")


# ------------------------------------------------------------------ M8
def shots_to_adopt(rows: Frame, process: str, traits: Mapping[str, str]) -> Measured:
    """M8: minus the statements of the process's own traits in context after which another trait of it is as likely as not.

    From the belief curve log o(N) = b + gamma N^(1 - alpha) (`evidence.beliefs`) of the log-odds of its own value against all others of the category;
    a cluster is a form, a category and a variant of the question. Columns read: item as `probes.shots` names it, option, prob_normalized.
    """
    unit = "statements"
    own = _scored(rows, "shots")
    parts = own["item"].str.split("/", expand=True).reindex(columns=range(6))
    own = own.assign(form=parts[1], whose=parts[2].str.lower(), told=parts[3].astype(float), category=parts[4], variant=parts[5])
    own = own[own["whose"].isin([process, "none"]) & (own["option"] == own["category"].map(dict(traits)))]
    if not (own["whose"] == process).any():
        return Measured("M8", process, None, None, unit, "no statements of it were put into a context")
    cluster = own["form"] + "/" + own["category"] + "/" + own["variant"]
    # Long contexts may not fit: only what every question was asked after.
    everywhere = own.groupby("told")["item"].nunique() == cluster.nunique()
    own, cluster = own[own["told"].map(everywhere)], cluster[own["told"].map(everywhere)]
    curve = belief_curve(own["told"].to_numpy(), logit(own["prob_normalized"].clip(TINY, 1 - TINY)).to_numpy(float), pd.factorize(cluster)[0])
    if curve is None:
        return Measured("M8", process, None, None, unit, "fewer than three numbers of statements were put before every question, too few for a belief curve")
    reached = curve.shots_for(0.0)
    interval = None if reached.interval is None else (-reached.interval[1], -reached.interval[0])
    if reached.value is None:
        return Measured("M8", process, None, interval, unit, f"not reached: its other traits stay below one half after {curve.most:.0f} statements")
    each = -curve.shots_of_seeds(np.zeros(len(curve.seeds)))
    return Measured("M8", process, -reached.value, interval, unit, "", tuple(each) if np.isfinite(each).all() else ())


# ------------------------------------------------------------------ M9
def steering(process: str, nats_N: np.ndarray) -> Measured:
    """M9: KL of neutral text's next tokens, without against with a step of fixed norm along the process's direction; mean over texts, bits a token."""
    if not len(nats_N) or not np.isfinite(nats_N).all():
        return Measured("M9", process, None, None, "bits a token", "its direction is zero, or the steered model is not finite")
    mean = over_seeds(np.asarray(nats_N, float) / BITS)
    return Measured("M9", process, mean.value, mean.interval, "bits a token", parts=tuple(np.asarray(nats_N, float) / BITS))
