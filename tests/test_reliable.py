"""R_reliable: its interval is the exact one where there is one, covers with few seeds, and is open where it must be."""

import numpy as np
import pytest
from scipy.stats import nct

from persona_lab.science.reliable import reliable_ratio, spread_of
from persona_lab.science.thresholds import RELIABLE_Z

RATIOS = np.array([-2.2, -1.1, 0.0, 1.1, 2.2])


def runs(
    rng: np.random.Generator,
    *,
    seeds: int,
    slope: float = 0.8,
    bias: float = 0.0,
    tau: float = 0.3,
    wobble: float = 0.0,
    lexical: float = 0.2,
    sigma: float = 0.3,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ln ratio, log-odds and seed of every run: each seed in both swaps at every ratio."""
    seed, x = np.repeat(np.arange(seeds), 2 * len(RATIOS)), np.tile(np.repeat(RATIOS, 2), seeds)
    swap = np.tile([1.0, -1.0], seeds * len(RATIOS))
    height, tilt, words = (scale * rng.normal(size=seeds) for scale in (tau, wobble, lexical))
    return x, bias + height[seed] + (slope + tilt[seed]) * x + words[seed] * swap + sigma * rng.normal(size=len(x)), seed


def test_the_parts_of_the_variance_by_hand() -> None:
    # Two seeds, ratios 0 and 1, both swaps. Seed 0: means 1 and 2, swaps 1 apart; seed 1: means 3 and 6, swaps 3 apart.
    x = np.tile([0.0, 0.0, 1.0, 1.0], 2)
    eta = np.array([0.5, 1.5, 1.5, 2.5, 1.5, 4.5, 4.5, 7.5])
    spread = spread_of(x, eta, np.repeat([0, 1], 4))
    assert spread is not None
    assert spread.lines_S2 == pytest.approx(np.array([[1.0, 1.0], [3.0, 3.0]]))
    assert spread.swaps == pytest.approx((0.5**2 + 1.5**2) / 2)
    assert (spread.swaps_df, spread.residual, spread.residual_df) == (2, 0.0, 0)
    mean, over, share = spread.at(np.array([0.0, 2.0]))
    assert mean == pytest.approx([2.0, 6.0])
    assert over == pytest.approx([2.0, 18.0]), "1 and 3 at ln ratio 0, 3 and 9 at 2"
    # h(0) = 1/2 + .25/.5 = 1, h(2) = 1/2 + 2.25/.5 = 5.
    assert share == pytest.approx([0.0, -4.0])
    assert spread.gap(np.array([0.0]))[0] == pytest.approx(2.0 - RELIABLE_Z * (2.0 + 1.25) ** 0.5)


def test_the_parts_of_the_variance_are_unbiased() -> None:
    rng, found = np.random.default_rng(1), []
    for _ in range(400):
        spread = spread_of(*runs(rng, seeds=5, wobble=0.2))
        assert spread is not None
        _, over, share = spread.at(np.array([0.0, 2.0]))
        found.append(over + spread.swaps + share * spread.residual)
    # tau^2 + wobble^2 x^2 + lexical^2 + sigma^2 at x = 0 and 2.
    assert np.mean(found, axis=0) == pytest.approx([0.22, 0.38], rel=0.05)


def test_without_any_other_error_the_limits_are_those_of_the_noncentral_t() -> None:
    rng, seeds = np.random.default_rng(2), 6
    height = rng.normal(0.3, 0.5, size=seeds)
    x, seed = np.tile([0.0, 1.0], seeds), np.repeat(np.arange(seeds), 2)
    spread = spread_of(x, height[seed] + 0.8 * x, seed)
    assert spread is not None
    pivot = spread.pivot(np.array([0.4]), 2**16)[:, 0]
    # P(pivot <= 0) is the p value of "nine in ten lie above 0" in a sample of normal values: t = mean / se is noncentral with sqrt(n) z.
    values = height + 0.8 * 0.4
    t = values.mean() / (values.std(ddof=1) / seeds**0.5)
    assert (pivot <= 0).mean() == pytest.approx(nct.sf(t, seeds - 1, seeds**0.5 * RELIABLE_Z), abs=0.004)


@pytest.mark.parametrize("seeds", [5, 10])
def test_the_interval_covers_with_few_seeds(seeds: int) -> None:
    rng, inside = np.random.default_rng(3), 0
    truth = RELIABLE_Z * (0.3**2 + 0.2**2 + 0.3**2) ** 0.5 / 0.8
    for _ in range(150):
        ratio, _ = reliable_ratio(*runs(rng, seeds=seeds), draws=400)
        inside += ratio.interval is None or np.log(ratio.interval[0]) <= truth <= np.log(ratio.interval[1])
    assert 0.90 <= inside / 150 <= 0.99


def test_a_planted_ratio_is_found_and_the_same_runs_give_the_same_interval() -> None:
    x, eta, seed = runs(np.random.default_rng(4), seeds=400)
    ratio, sd = reliable_ratio(x, eta, seed)
    assert ratio.value == pytest.approx(np.exp(RELIABLE_Z * 0.22**0.5 / 0.8), rel=0.07)
    assert sd == pytest.approx(0.22**0.5, rel=0.05)
    assert ratio.verdict == "bounded"
    assert reliable_ratio(x, eta, seed)[0] == ratio


def test_a_spread_that_outgrows_the_mean_is_unbounded() -> None:
    x, eta, seed = runs(np.random.default_rng(5), seeds=12, slope=0.4, wobble=0.6)
    ratio, _ = reliable_ratio(x, eta, seed)
    assert ratio.verdict == "unbounded"
    assert reliable_ratio(x, -np.abs(eta) - x, seed)[0].value is None


def test_unequal_seeds_are_used_and_too_few_are_undecided() -> None:
    x, eta, seed = runs(np.random.default_rng(6), seeds=6)
    keep = ~((seed == 0) & (x > 1)) & ~((seed == 1) & (x < 0))
    assert reliable_ratio(x[keep], eta[keep], seed[keep])[0].verdict == "bounded"
    two = reliable_ratio(x[seed < 2], eta[seed < 2], seed[seed < 2])[0]
    assert two.verdict == "undecided"
    assert two.interval is None
    one_ratio = x == 0
    assert reliable_ratio(x[one_ratio], eta[one_ratio], seed[one_ratio]) == (type(two)(None, None, "undecided"), None)
