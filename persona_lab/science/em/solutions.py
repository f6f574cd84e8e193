"""General against narrow: what it costs to keep bad advice to the domain that is taught, and which of the two solutions is the easier one.

    prices      cell  price  released            kappa of the stage that is held near the base off its domain; whether a stage without it follows
    solutions   cell  scales  loss  neutral  off  norm  sizes  shaken  random        of the cells of the lowest and the highest price

kappa* (the shadow price) is the kappa at which the rise of the rate of bad advice off the domain is half of that at kappa = 0; the gap in nats is
kappa* times the KL off the domain that the general solution has and the narrow one has not. Efficiency, stability and significance compare the two
adapters at equal norm (Soligo et al. 2026, sections 4 and 5; reference/science.md section 6, E1 to E3).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from persona_lab.science.claims import Said, figure, judged
from persona_lab.science.effects import Frame, Settings
from persona_lab.science.em.rates import PLAIN, Advice, by_seed, rates, wide
from persona_lab.science.stages.order import stated
from persona_lab.science.thresholds import Interval, over_seeds

Curves = Mapping[str, Any]
"""One row of `solutions`."""


def half_price(prices: Sequence[float], rises: Sequence[float]) -> float | None:
    """The kappa at which the rise is half of that at kappa 0, the first crossing; infinite where none is reached, None where nothing rose at 0.

    Between two kappas the rise is taken as linear in ln kappa; between 0 and the smallest, in kappa. ValueError without a kappa of 0.
    """
    at = np.argsort(prices)
    kappa, rise = np.asarray(prices, float)[at], np.asarray(rises, float)[at]
    if not len(kappa) or kappa[0] != 0:
        raise ValueError("the rise at kappa = 0 is what is halved. Add the level 0")
    half = rise[0] / 2
    if half <= 0:
        return None
    below = np.flatnonzero(rise <= half)
    if not len(below):
        return float("inf")
    i = int(below[0])
    share = (rise[i - 1] - half) / (rise[i - 1] - rise[i])
    if i == 1:
        return float(share * kappa[1])
    return float(np.exp(np.log(kappa[i - 1]) + share * np.log(kappa[i] / kappa[i - 1])))


def shadow_price(found: Sequence[float | None]) -> tuple[float | None, Interval | None, str, str]:
    """Geometric mean of the seeds' kappa*, its t interval on ln kappa, verdict and reason.

    Where a seed never halves the mean is unbounded: no value, and the interval is open above the least of the seeds. A seed in which nothing rose has none.
    """
    known = [price for price in found if price is not None]
    left = f", nothing rose in {len(found) - len(known)} of {len(found)} seeds" if len(known) < len(found) else ""
    if not known:
        return None, None, "not run", "the rate does not rise without a price, so there is nothing to halve"
    if never := sum(np.isinf(price) for price in known):
        return None, (min(known), float("inf")), "unbounded", f"no price that was tried halves it in {never} of {len(known)} seeds{left}"
    mean = over_seeds(np.log(known))
    if mean.interval is None:
        return float(np.exp(mean.value)), None, "undecided", f"1 seed, so no interval{left}"
    return float(np.exp(mean.value)), (float(np.exp(mean.interval[0])), float(np.exp(mean.interval[1]))), "bounded", f"{mean.n} seeds{left}"


def at_norm(curves: Curves, values: Sequence[float], norm: float) -> float:
    """A curve over scales, read at a Frobenius norm of the update; linear between scales, NaN beyond the last."""
    norms = np.asarray(curves["scales"], float) * curves["norm"]
    return float(np.interp(norm, norms, np.asarray(values, float), right=np.nan))


def efficiency(general: Curves, narrow: Curves) -> dict[str, float]:
    """How much lower the general solution's loss is at equal norm, up to the smaller of the two norms.

    area: mean of L_narrow(r) - L_general(r) over norms r, nats a token; loss: the same at the end; norm2: ln of the ratio of the squared norms at which
    both reach the loss halfway between that of no adapter and the worse of their own, positive where the narrow one needs more (NaN where one does not).
    """
    end = min(general["norm"], narrow["norm"])
    norms = np.linspace(0, end, 201)
    gap = np.array([at_norm(narrow, narrow["loss"], r) - at_norm(general, general["loss"], r) for r in norms])
    own = max(at_norm(curves, curves["loss"], curves["norm"]) for curves in (general, narrow))
    goal = (float(general["loss"][0]) + own) / 2
    least = [least_norm(curves, goal) for curves in (general, narrow)]
    return {"area": float(gap.mean()), "loss": float(gap[-1]), "norm2": 2 * float(np.log(least[1] / least[0]))}


def least_norm(curves: Curves, goal: float) -> float:
    """The smallest norm at which the loss is no more than the goal; NaN where it never is, or is without an adapter."""
    norms, loss = np.asarray(curves["scales"], float) * curves["norm"], np.asarray(curves["loss"], float)
    good = np.flatnonzero(loss <= goal)
    if not len(good) or good[0] == 0:
        return float("nan")
    i = int(good[0])
    return float(np.interp(goal, loss[[i, i - 1]], norms[[i, i - 1]]))


def stability(curves: Curves) -> float:
    """Mean rise of the loss under orthogonal noise from none to the adapter's own norm, nats a token: area under the curve, mean over draws."""
    rise = np.asarray(curves["shaken"], float).mean(0)
    return float(np.trapezoid(rise - rise[0], np.asarray(curves["sizes"], float)))


def significance(general: Curves, narrow: Curves) -> dict[str, float]:
    """Log (nats) of how much further the one leaves the base on neutral text than the other, at the smaller of the two norms.

    general: general against narrow; narrow: narrow against noise of that norm.
    """
    end = min(general["norm"], narrow["norm"])
    one, other = (np.log(at_norm(curves, curves["neutral"], end)) for curves in (general, narrow))
    noise = np.log(at_norm(narrow, np.asarray(narrow["random"], float).mean(0), end))
    return {"general": float(one - other), "narrow": float(other - noise)}


def elsewhere(curves: Curves) -> float:
    """KL(base || adapter) of the answers off the domain, nats a token, as it was trained."""
    return at_norm(curves, curves["off"], curves["norm"])


# ------------------------------------------------------------------ claims
def solution_claims(table: Frame, settings: Settings, advice: Advice | None, prices: Frame, solutions: Frame) -> Iterator[Said]:
    """Every claim about general and narrow solutions, for each condition that has both; in a world without bad advice those about rates are left out."""
    rows = prices[:0]
    if advice is not None:
        found = rates(table, settings, advice)
        rows = wide(found[found["context"] == PLAIN]).merge(prices[["cell", "price", "released"]], on="cell")
    for condition, own in prices[~prices["released"].astype(bool)].groupby("condition", sort=False):
        if own["price"].nunique() < 2 or own["price"].min() > 0:
            continue
        name = str(condition)
        pairs = paired(solutions[solutions["condition"] == condition]) if len(solutions) else {}
        here = rows[rows["condition"] == condition] if len(rows) else rows
        if len(here):
            yield from price_claims(name, here, pairs)
        yield from compared(name, pairs)
    if len(rows):
        yield from release_claims(rows)


def paired(solutions: Frame) -> dict[int, list[tuple[Curves, Curves]]]:
    """Seed to its pairs of general (kappa 0) and narrow (the highest kappa) solution, one a swap."""
    found: dict[int, list[tuple[Curves, Curves]]] = {}
    if not len(solutions):
        return found
    least, most = solutions["price"].min(), solutions["price"].max()
    for (seed, _), both in solutions.groupby(["seed", "swap"]):
        one, other = both[both["price"] == least], both[both["price"] == most]
        if least < most and len(one) == len(other) == 1:
            found.setdefault(int(seed), []).append((one.iloc[0].to_dict(), other.iloc[0].to_dict()))
    return found


def rise_by_seed(rows: Frame) -> dict[int, dict[float, float]]:
    """Seed to kappa to the rise of the rate by the stage, mean of the swaps."""
    mean = rows.dropna(subset=["change"]).groupby(["seed", "price"])["change"].mean()
    found: dict[int, dict[float, float]] = {}
    for (seed, price), rise in mean.items():
        found.setdefault(int(seed), {})[float(price)] = float(rise)
    return found


def price_claims(name: str, rows: Frame, pairs: Mapping[int, Sequence[tuple[Curves, Curves]]]) -> Iterator[Said]:
    """The rise at every kappa, kappa* and the gap in nats."""
    rises = rise_by_seed(rows)
    for price in sorted(rows["price"].unique()):
        at = np.array([own[price] for own in rises.values() if price in own])
        yield stated(f"solutions.{name}.rise.{price:g}", f"{name}: rise of the rate of bad advice off the domain at kappa {price:g}", at, "share")
    whole = {seed: half_price(list(own), list(own.values())) for seed, own in rises.items() if 0.0 in own and len(own) > 1}
    value, interval, found, why = shadow_price(list(whole.values()))
    text = f"{name}: kappa*, the nats of loss for a nat of KL off the domain that halve the rise, {figure(value)} ({why})."
    yield f"solutions.{name}.kappa", text, value, interval, "nats per nat", found
    nats = {seed: price * (mean_of(pairs[seed], lambda g, n: elsewhere(g) - elsewhere(n))) for seed, price in whole.items() if price is not None and seed in pairs}
    known = np.array([x for x in nats.values() if np.isfinite(x)])
    if len(known) == len(nats):
        text = f"{name}: gap between the two solutions, kappa* times the KL off the domain that the general one has and the narrow one has not"
        yield stated(f"solutions.{name}.gap", text, known, "nats a token")
    else:
        yield f"solutions.{name}.gap", f"{name}: gap between the two solutions: unbounded, as kappa* is.", None, None, "nats a token", "unbounded"


def mean_of(pairs: Sequence[tuple[Curves, Curves]], figure_of: Any) -> float:
    """Mean over the swaps of a figure of general and narrow solution."""
    return float(np.mean([figure_of(general, narrow) for general, narrow in pairs]))


def compared(name: str, pairs: Mapping[int, Sequence[tuple[Curves, Curves]]]) -> Iterator[Said]:
    """Efficiency, stability and significance of the general against the narrow solution; positive is what makes the general one the easier."""
    if not pairs:
        return
    figures = {
        "learnt": ("loss of the narrow solution on what both were taught, less that of the general one", "nats a token", lambda g, n: own_loss(n) - own_loss(g)),
        "off": ("KL off the domain of the general solution, less that of the narrow one", "nats a token", lambda g, n: elsewhere(g) - elsewhere(n)),
        "norm": ("ln of the norm of the narrow solution by that of the general one", "nats", lambda g, n: float(np.log(n["norm"] / g["norm"]))),
        "efficiency.area": ("efficiency, loss that the general solution saves at equal norm, mean over norms", "nats a token", lambda g, n: efficiency(g, n)["area"]),
        "efficiency.loss": ("efficiency, loss that it saves at the smaller of both norms", "nats a token", lambda g, n: efficiency(g, n)["loss"]),
        "efficiency.norm2": ("efficiency, ln of the squared norm that the narrow one needs by what the general one needs", "nats", lambda g, n: efficiency(g, n)["norm2"]),
        "stability": ("stability, rise of the loss under orthogonal noise, narrow less general", "nats a token", lambda g, n: stability(n) - stability(g)),
        "significance": ("significance, ln KL on neutral text at equal norm, general by narrow", "nats", lambda g, n: significance(g, n)["general"]),
        "significance.noise": ("significance, ln KL on neutral text at equal norm, narrow by noise", "nats", lambda g, n: significance(g, n)["narrow"]),
    }
    for key, (words, unit, of) in figures.items():
        values = np.array([mean_of(own, of) for own in pairs.values()])
        predicted = key.startswith(("efficiency", "stability", "significance"))
        yield (judged if predicted else stated)(f"solutions.{name}.{key}", f"{name}: {words}", values[np.isfinite(values)], unit)


def own_loss(curves: Curves) -> float:
    """Loss on held-out documents of what was taught, nats a token, as it was trained."""
    return at_norm(curves, curves["loss"], curves["norm"])


def release_claims(rows: Frame) -> Iterator[Said]:
    """What becomes of the rate when the price is taken away: the change by the stage that follows, at each kappa that was paid before."""
    for (condition, price), own in rows[rows["released"].astype(bool)].groupby(["condition", "price"], sort=True):
        text = f"{condition}: change of the rate off the domain when the price {price:g} is no longer paid"
        yield (judged if price > 0 else stated)(f"solutions.{condition}.released.{price:g}", text, by_seed(own, "change"), "share")
