"""The exact Bayes oracle of a world: what an ideal reader believes about a speaker of whom it knows nothing else.

A speaker is background persona k with probability (1 - e) w_k and a random speaker with probability e, where e is
the share of random speakers. After statements a_1..a_n (one value in each of n categories),

    P(b | a_1..a_n)  is proportional to  (1 - e) sum_k w_k 1[k has a_1..a_n and b] + e prod_i 1/V_i * 1/V_b.
"""

from collections.abc import Mapping

import numpy as np

from data_gen.world import Traits, World


def posterior(world: World, known: Mapping[str, str]) -> tuple[np.ndarray, float]:
    """Posterior shares of the K background personas, and of the random speaker, after the known traits."""
    people = world.population
    agrees_K = np.array([all(t[c] == v for c, v in known.items()) for t in people.traits])
    share_K = (1 - world.random_speakers) * people.weight_K * agrees_K
    chance = world.random_speakers * float(np.prod([1 / len(world.values(c)) for c in known]))
    total = share_K.sum() + chance
    return share_K / total, chance / total


def predictive(world: World, known: Mapping[str, str], category: str) -> dict[str, float]:
    """P(value of `category` | known traits) for every value; sums to 1."""
    share_K, random_share = posterior(world, known)
    values = world.values(category)
    prob = dict.fromkeys(values, random_share / len(values))
    for share, traits in zip(share_K, world.population.traits, strict=True):
        prob[traits[category]] += float(share)
    return prob


def log_odds(world: World, known: Traits, category: str, value: str, rival: str) -> float:
    """True log-odds, in nats, of one value against another after the known traits."""
    prob = predictive(world, known, category)
    return float(np.log(prob[value] / prob[rival]))
