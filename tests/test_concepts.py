"""Concept vectors: cosines by hand, and an alignment that is found where there is one and nowhere else."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn.metrics.pairwise import cosine_similarity

from persona_lab.science.effects import Settings
from persona_lab.science.introspection.concepts import aligned, array_of, by_phase, concept_claims, cosines, random_cosine


def states(seed: int, *, fused: float, layers: int = 3, width: int = 24, categories: int = 5) -> np.ndarray:
    """Both rivals in every category and layer; from layer 1 on, the first has a direction of its own, of a strength."""
    rng = np.random.default_rng(seed)
    state_RCLd = rng.normal(size=(2, categories, layers, width))
    persona_d = rng.normal(size=width)
    state_RCLd[0, :, 1:] += fused * persona_d
    return state_RCLd


def test_cosines_are_those_of_scikit_learn():
    state_RCLd = states(0, fused=1.0)
    vector_CLd = state_RCLd[0] - state_RCLd[1]
    for layer, found_Q in enumerate(cosines(state_RCLd)):
        expected = cosine_similarity(vector_CLd[:, layer])
        assert found_Q == pytest.approx([expected[pair] for pair in combinations(range(5), 2)])


def test_states_that_are_the_same_have_no_cosine():
    state_RCLd = states(0, fused=0.0)
    state_RCLd[:, :, 0] = 1.0
    found_LQ = cosines(state_RCLd)
    assert np.isnan(found_LQ[0]).all()
    assert np.isfinite(found_LQ[1:]).all()
    found = aligned(np.stack([found_LQ, found_LQ]))
    assert np.isnan(found.p_L[0])
    assert np.isfinite(found.p_L[1:]).all()


def test_two_random_directions_have_the_cosine_that_they_should():
    pair = np.random.default_rng(0).normal(size=(4000, 2, 64))
    measured = np.abs([cosine_similarity(a[None], b[None])[0, 0] for a, b in pair[:1000]]).mean()
    assert random_cosine(64) == pytest.approx(measured, rel=0.08)


def test_traits_that_share_a_direction_are_aligned_from_the_layer_that_has_it():
    found = aligned(np.stack([cosines(states(seed, fused=1.5)) for seed in range(4)]))
    assert found.fused == 1
    assert found.p_L[0] > 0.05
    assert (found.p_L[1:] < 0.01).all()
    assert found.alignment_SL.shape == (4, 3)


def test_exchanged_owners_are_found_as_seldom_as_they_should():
    """Under the null, over 200 experiments, no more than a binomial of 5 % allows."""
    rejected = sum(aligned(np.stack([cosines(states(100 * n + seed, fused=0.0)) for seed in range(2)])).fused is not None for n in range(200))
    assert rejected <= binom.ppf(0.999, 200, 0.05)


def test_one_seed_of_five_categories_cannot_be_significant():
    found = aligned(cosines(states(0, fused=9.0))[None])
    assert found.p_L.min() == pytest.approx(2 / 2**5), "all or none turned are the same"


def frame(seeds: int, fused: float) -> pd.DataFrame:
    rows = []
    for seed in range(seeds):
        for stage, strength in (("base", 0.0), ("injection", fused), ("trait", fused)):
            for swap in (0, 1):
                for layer, cosine_Q in enumerate(cosines(states(seed, fused=strength))):
                    for pair, cosine in enumerate(cosine_Q):
                        about = {"cell": f"{seed}/{swap}", "condition": "linked", "seed": seed, "stage": stage, "reading": "said", "width": 24}
                        rows.append({**about, "layer": layer, "pair": f"pair{pair}", "cosine": cosine})
    return pd.DataFrame(rows)


SETTINGS = Settings(orders={"linked": ("injection", "trait")})


def test_every_layer_of_every_phase_is_stated_and_the_change_of_the_last_stage():
    claims = {claim[0]: claim for claim in concept_claims(frame(4, 1.5), SETTINGS)}
    assert claims["concepts.said.base.fusion"][2:] == (None, None, "layer", "undecided")
    assert claims["concepts.said.before.fusion"][2:] == (1.0, None, "layer", "fused")
    assert claims["concepts.said.after.layer2"][5] == "aligned"
    assert claims["concepts.said.change.layer2"][2] == 0
    expected = np.mean([cosines(states(seed, fused=1.5))[2].mean() for seed in range(4)])
    assert claims["concepts.said.after.layer2"][2] == pytest.approx(expected)


def test_two_seeds_are_undecided_however_small_p_is():
    assert {claim[5] for claim in concept_claims(frame(2, 9.0), SETTINGS)} <= {"undecided", "", "positive", "negative"}
    assert all(claim[5] == "undecided" for claim in concept_claims(frame(2, 9.0), SETTINGS) if claim[0].endswith("fusion"))


def test_rows_become_arrays_whatever_their_order():
    rows = by_phase(frame(3, 1.0), SETTINGS)
    own = rows[rows["phase"] == "after"]
    expected = np.stack([cosines(states(seed, fused=1.0)) for seed in range(3)])
    assert array_of(own) == pytest.approx(expected)
    assert np.sort(array_of(own.sample(frac=1, random_state=0)), axis=-1) == pytest.approx(np.sort(expected, axis=-1))
