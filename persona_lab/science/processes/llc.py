"""The local learning coefficient of a trained adapter (M6), from chains of losses; it compares two solutions, never two processes.

    lambda = n beta (E_{w ~ exp(-n beta L_n - gamma/2 |w - w*|^2)} L_n(w) - L_n(w*)),      beta = 1 / log n

n counts the documents of which L_n is the mean loss, nats a document (Watanabe 2013; Lau et al. 2308.12108; reference/science.md, M6). Half the number of
parameters for a regular minimum, less for a flat one. A number is given only when the chains pass every check of their settings.

    flatness_claims(chains)      the general against the narrow solution of every seed, with the checks

    chains      condition  seed  swap  price  pull  step  start  nbeta  losses        one row for each setting of the sampler of each solution

Names: C chains, D draws that were kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from persona_lab.science.claims import Said, figure, judged, seeds_words
from persona_lab.science.effects import Frame
from persona_lab.science.thresholds import Interval, over_seeds

MOST_RHAT = 1.1
"""Largest split R-hat of chains that agree (Gelman et al.)."""
MOST_DRIFT = 0.1
"""Largest change of the estimate from the first half of the draws to the second, as a share of it, where the chains agree that there is one."""
MOST_STEP = 0.15
"""Largest relative change of the estimate when the step of the sampler is halved."""


@dataclass(frozen=True)
class Coefficient:
    """An estimate; `value` is None where the sampler's settings fail a check, and `reasons` say which."""

    value: float | None
    interval: Interval | None
    """95 %, t over chains."""
    reasons: tuple[str, ...]


def inverse_temperature(documents: int) -> float:
    """The factor n beta = n / log n. ValueError for fewer than two documents: log 1 is 0."""
    if documents < 2:
        raise ValueError(f"a local learning coefficient needs two documents or more, got {documents}")
    return documents / log(documents)


def split_rhat(loss_CD: np.ndarray) -> float:
    """Split R-hat of the chains' losses: 1 when halves of all chains have one mean (Gelman et al., Bayesian Data Analysis 3rd ed., section 11.4)."""
    half = loss_CD.shape[1] // 2
    halves_HD = np.concatenate([loss_CD[:, :half], loss_CD[:, -half:]])
    within = halves_HD.var(axis=1, ddof=1).mean()
    between = half * halves_HD.mean(axis=1).var(ddof=1)
    return float(np.sqrt(((half - 1) * within + between) / half / within)) if within > 0 else np.inf


def drift_of(loss_CD: np.ndarray) -> np.ndarray:
    """Mean loss of the second half of each chain less that of the first, (C,)."""
    half = loss_CD.shape[1] // 2
    return loss_CD[:, -half:].mean(axis=1) - loss_CD[:, :half].mean(axis=1)


def coefficient(loss_CD: np.ndarray, start: float, nbeta: float) -> Coefficient:
    """The coefficient from the chains, and what is wrong with their settings.

    Args:
        loss_CD: losses of the draws that were kept, nats a document.
        start: the loss where the draws began: L_n(w*), or at the mode beside it.
        nbeta: n beta.
    """
    if loss_CD.shape[0] < 2 or loss_CD.shape[1] < 8:
        return Coefficient(None, None, (f"{loss_CD.shape[0]} chains of {loss_CD.shape[1]} draws, at least 2 of 8 are needed",))
    if not np.isfinite(loss_CD).all():
        return Coefficient(None, None, ("a chain left for infinity: lower the step",))
    lambda_C = nbeta * (loss_CD.mean(axis=1) - start)
    found = over_seeds(lambda_C)
    drift = over_seeds(nbeta * drift_of(loss_CD))
    reasons = []
    if found.value <= 0:
        reasons.append("negative: the start is no minimum of this loss, train longer or take the documents it was trained on")
    if abs(drift.value) > MOST_DRIFT * abs(found.value) and drift.sign != "undecided":
        reasons.append(f"no plateau: the second half of the draws gives {drift.value:+.3g} over the first, draw longer")
    if (rhat := split_rhat(loss_CD)) > MOST_RHAT:
        reasons.append(f"chains disagree: split R-hat {rhat:.3g}, draw longer")
    return Coefficient(None, None, tuple(reasons)) if reasons else Coefficient(found.value, found.interval, ())


def settled(whole: Coefficient, halved: Coefficient) -> Coefficient:
    """The estimate at half the step, when both steps give nearly the same; a sampler's bias falls with its step."""
    if whole.value is None or halved.value is None:
        return Coefficient(None, None, tuple(dict.fromkeys([*whole.reasons, *halved.reasons])))
    change = halved.value / whole.value - 1
    if abs(change) > MOST_STEP:
        return Coefficient(None, None, (f"half the step changes the estimate by {change:+.0%}: lower it further",))
    return halved


def simpler(first: list[Coefficient], second: list[Coefficient]) -> str:
    """Which of two solutions has the smaller coefficient at every setting of the sampler: `first`, `second`, or `undecided`.

    Solutions are compared at equal settings alone; one setting at which an interval overlaps, or a check fails, leaves it undecided.
    """
    signs = set[str]()
    for one, other in zip(first, second, strict=True):
        if one.interval is None or other.interval is None:
            return "undecided"
        signs.add("first" if one.interval[1] < other.interval[0] else "second" if other.interval[1] < one.interval[0] else "undecided")
    return signs.pop() if len(signs) == 1 else "undecided"


# ------------------------------------------------------------------ claims
GENERAL, NARROW = "general", "narrow"


def chains_of(row: Frame) -> np.ndarray:
    """The losses of one row, (C, D); NaN from where a chain left for infinity."""
    return np.array([[np.nan if loss is None else loss for loss in chain] for chain in row["losses"]], float)


def estimate(rows: Frame) -> Coefficient:
    """The coefficient of one solution under one spring, from its rows at a step and at half of it."""
    return settled(*(coefficient(chains_of(row), row["start"], row["nbeta"]) for _, row in rows.sort_values("step", ascending=False).iterrows()))


def flatness_claims(chains: Frame) -> Iterator[Said]:
    """The coefficients of general and narrow solutions of every condition, which of them is the smaller one, and the checks of the sampler's settings."""
    for condition, own in chains.groupby("condition", sort=False):
        if own["price"].nunique() < 2:
            continue
        which = own["price"].map({own["price"].min(): GENERAL, own["price"].max(): NARROW})
        found = {key: estimate(rows) for key, rows in own.assign(which=which).groupby(["which", "pull", "seed", "swap"])}
        seeds = {pull: paired_seeds(found, float(pull)) for pull in sorted(own["pull"].unique())}
        for pull, pairs in seeds.items():
            yield from spring_claims(f"flatness.{condition}.{pull:g}", f"{condition}, spring {pull:g}", pairs, [c for key, c in found.items() if key[1] == pull])
            yield from check_claims(f"flatness.{condition}.{pull:g}", f"{condition}, spring {pull:g}", own[own["pull"] == pull])
        yield local_claim(str(condition), list(seeds.values()))


def paired_seeds(found: dict[tuple[str, float, int, int], Coefficient], pull: float) -> np.ndarray:
    """Coefficients of general and narrow solution under one spring, mean of the swaps, one row a seed of which every estimate counts, (S, 2)."""
    table: dict[int, list[tuple[float | None, float | None]]] = {}
    for (which, at, seed, swap), one in found.items():
        if which == GENERAL and at == pull and (other := found.get((NARROW, at, seed, swap))):
            table.setdefault(seed, []).append((one.value, other.value))
    whole = [pairs for pairs in table.values() if all(value is not None for pair in pairs for value in pair)]
    return np.array([np.mean(np.array(pairs, float), axis=0) for pairs in whole]).reshape(-1, 2)


def spring_claims(lead: str, words: str, pairs_S2: np.ndarray, each: Sequence[Coefficient]) -> Iterator[Said]:
    """Both coefficients under one spring, and their difference; what fails a check is no number."""
    reasons = dict.fromkeys(reason.split(":")[0] for one in each for reason in one.reasons)
    left = f"; {sum(one.value is None for one in each)} of {len(each)} estimates fail a check: {', '.join(reasons)}" if reasons else ""
    for column, which in enumerate((GENERAL, NARROW)):
        text = f"{words}: local learning coefficient of the {which} solution"
        if not len(pairs_S2):
            yield f"{lead}.{which}", f"{text}: no seed passes the checks{left}.", None, None, "", "undecided"
            continue
        mean = over_seeds(pairs_S2[:, column])
        yield f"{lead}.{which}", f"{text} ({seeds_words(mean)}{left}).", mean.value, mean.interval, "", ""
    yield judged(f"{lead}.difference", f"{words}: coefficient of the narrow solution less that of the general one", pairs_S2[:, 1] - pairs_S2[:, 0], "")


def check_claims(lead: str, words: str, rows: Frame) -> Iterator[Said]:
    """The worst of every check over the solutions under one spring."""
    worst = max(split_rhat(chains_of(row)) for _, row in rows.iterrows())
    yield f"{lead}.rhat", f"{words}: largest split R-hat of the chains (at most {MOST_RHAT}).", worst, None, "", "pass" if worst <= MOST_RHAT else "fail"
    sizes = [one for _, own in rows.groupby(["price", "seed", "swap"]) if (one := halving(own)) is not None]
    if sizes:
        mean = over_seeds(np.array(sizes))
        text = f"{words}: relative change of a coefficient when the step is halved, mean over solutions (each at most {MOST_STEP:.0%})."
        yield f"{lead}.step", text, mean.value, mean.interval, "", "pass" if max(map(abs, sizes)) <= MOST_STEP else "fail"


def halving(rows: Frame) -> float | None:
    """The relative change of one solution's estimate when the step is halved; None where there is no estimate."""
    whole, halved = (coefficient(chains_of(row), row["start"], row["nbeta"]).value for _, row in rows.sort_values("step", ascending=False).iterrows())
    return None if whole is None or halved is None else halved / whole - 1


def local_claim(condition: str, springs: Sequence[np.ndarray]) -> Said:
    """Whether the general solution has the smaller coefficient under every spring: a comparison that turns with the spring is none."""
    verdicts = {judged("", "", pairs_S2[:, 1] - pairs_S2[:, 0], "")[-1] for pairs_S2 in springs}
    share = [float((pairs_S2[:, 1] > pairs_S2[:, 0]).mean()) for pairs_S2 in springs if len(pairs_S2)]
    said = f"share of seeds {figure(min(share))} under the spring where it is least" if share else "no seed passes the checks"
    text = f"{condition}: the general solution has the smaller local learning coefficient under every spring ({said})."
    return f"flatness.{condition}.simpler", text, min(share) if share else None, None, "share", verdicts.pop() if len(verdicts) == 1 else "undecided"
