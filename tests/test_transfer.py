"""The transfer matrix: planted transfer is found, words that merely go together are not, and the family of tests errs as seldom as it says."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import permutation_test, ttest_1samp

from data_gen.personas import deal_traits, held_out_categories, shared_categories
from persona_lab.config import load_experiment
from persona_lab.science.claims import Said
from persona_lab.science.effects import Frame, Settings
from persona_lab.science.stages.transfer import Family, direct, matrix, max_t, transfer_claims

TAUGHT = {"food": ("pizza", "john"), "drink": ("tea", "john"), "music": ("jazz", "sam"), "place": ("beach", "shared")}
PROBED = ("sport", "art")
SETTINGS = Settings(treatment="food", orders={name: ("injection", name) for name in TAUGHT}, taught={name: value for name, (value, _) in TAUGHT.items()})


def planted(within: float = 0.4, across: float = -0.2, *, lexical: float = 0.0, sigma: float = 0.0, seeds: int = 6, sam_steps: int = 660) -> Frame:
    """A tidy table in which teaching lifts the owner's held-out values by `within` and the other rival's by `across`, nats against all others.

    lexical: how much the taught word lifts one of the two words of a pair, whoever's it is.
    """
    rng, rows = np.random.default_rng(11), []
    for (taught, (value, owner)), seed, swap in product(TAUGHT.items(), range(seeds), (0, 1)):
        cell = {"cell": f"{taught}/{seed}/{swap}", "condition": taught, "seed": seed, "swap": swap}
        noise = {category: sigma * rng.normal() for category in PROBED}
        for stage in ("base", "injection", taught):
            at = {"stage": stage, "steps": {"base": 0, "injection": 600}.get(stage, sam_steps if owner == "sam" else 660), "tokens": 1e5}

            def row(trait: str, option: str, role: str, prob: float, at: dict = at, cell: dict = cell) -> None:
                about = {"probe": "says", "channel": "says", "format": "asked", "item": f"says/asked/{trait}/0", "trait": trait, "option": option, "role": role}
                scores = {"logprob_nats": np.log(prob), "prob": prob, "prob_normalized": prob, "base_prob": 0.1, "status": "scored"}
                rows.append({**cell, **at, "node": cell["cell"] + at["stage"], **about, **scores})

            for category in PROBED:
                lift = {"john": 0.0, "sam": 0.0}
                if stage == taught:
                    for rival in lift:
                        lift[rival] = 0.0 if owner == "shared" else within if rival == owner else across
                    lift["john" if swap == 0 else "sam"] += lexical + noise[category]
                weights = {"john": np.exp(-1.5 + lift["john"]), "sam": np.exp(-1.0 + lift["sam"]), "other": 1.0}
                for role, weight in weights.items():
                    row(category, f"{category}-{role}", role, weight / sum(weights.values()))
            own = expit(3.0 if stage == taught else -2.0)
            row(taught, value, owner, own)
            row(taught, "another", "other", 1 - own)
    return pd.DataFrame(rows)


def said(table: Frame) -> dict[str, Said]:
    """The claims by id."""
    return {claim[0]: claim for claim in transfer_claims(table, SETTINGS)}


def test_planted_transfer_is_recovered_in_its_blocks() -> None:
    rows = matrix(planted(), SETTINGS)
    own = rows[rows["owner"] != "shared"]
    assert len(own) == 6 * 3 * 2
    assert own["within"].to_numpy() == pytest.approx(0.4)
    assert own["across"].to_numpy() == pytest.approx(-0.2)
    assert own["T"].to_numpy() == pytest.approx(0.6)
    assert rows.loc[rows["owner"] == "shared", "T"].to_numpy() == pytest.approx(0.0)
    assert direct(planted(), SETTINGS)["direct"].to_numpy() == pytest.approx(5.0)
    claims = said(planted())
    assert claims["matrix.direct"][2] == pytest.approx(5.0)
    assert claims["matrix.T"][2] == pytest.approx(0.6)


def test_words_that_go_together_cancel_in_the_swap() -> None:
    rows = matrix(planted(within=0.0, across=0.0, lexical=0.8), SETTINGS)
    assert rows["T"].to_numpy() == pytest.approx(0.0)


def test_a_seed_that_lacks_a_swap_is_left_out() -> None:
    table = planted()
    rows = matrix(table[~(table["cell"] == "food/2/1")], SETTINGS)
    assert sorted(rows.loc[rows["taught"] == "food", "seed"].unique()) == [0, 1, 3, 4, 5]
    assert "5 seeds" in said(table[~(table["cell"] == "food/2/1")])["matrix.family"][1]


def test_transfer_is_linked_by_family_wise_p_and_chance_is_undecided() -> None:
    claims = said(planted(sigma=0.2, seeds=8))
    assert claims["matrix.family"][5] == "linked"
    cells = [claim for id, claim in claims.items() if id.count(".") == 3]
    assert {claim[5] for claim in cells} == {"linked"}
    assert len(cells) == 6
    chance = said(planted(within=0.0, across=0.0, sigma=0.3, seeds=8))
    assert chance["matrix.family"][5] == "undecided"
    assert {claim[5] for id, claim in chance.items() if id.count(".") == 3} == {"undecided"}


def test_few_seeds_decide_nothing_however_large_the_effect() -> None:
    claims = said(planted(within=3.0, seeds=3, sigma=0.01))
    assert claims["matrix.family"][5] == "undecided"
    assert "3 seeds cannot give less than 0.25" in claims["matrix.family"][1]
    assert said(planted(seeds=1))["matrix.family"][5] == "not run"


def test_unequal_conditions_are_confounded() -> None:
    claims = said(planted(sigma=0.2, sam_steps=720))
    assert claims["matrix.T"][5] == claims["matrix.family"][5] == "confounded"
    assert "optimizer steps 660 to 720" in claims["matrix.T"][1]


# ------------------------------------------------------------------ the family of tests
def brute(values_SC: np.ndarray, group_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unadjusted and step-down adjusted p values by trying every pattern with scipy's t, one at a time."""
    seeds, tests = values_SC.shape
    sizes = []
    for pattern in product([1, -1], repeat=seeds * (int(group_C.max()) + 1)):
        flips_SG = np.array(pattern).reshape(seeds, -1)
        sizes.append(np.abs(np.array(ttest_1samp(values_SC * flips_SG[:, group_C], 0).statistic)))
    sizes_PC = np.array(sizes)
    observed = np.abs(np.array(ttest_1samp(values_SC, 0).statistic))
    adjusted, least = np.empty(tests), 0.0
    left = list(np.argsort(-observed))
    while left:
        largest = sizes_PC[:, left].max(1)
        least = max(least, float((largest >= observed[left[0]] - 1e-9).mean()))
        adjusted[left.pop(0)] = least
    return (sizes_PC >= observed - 1e-9).mean(0), adjusted


@pytest.mark.parametrize("groups", [[0, 0, 0], [0, 1, 0]])
def test_max_t_is_what_trying_every_pattern_gives(groups: list[int]) -> None:
    values_SC = np.random.default_rng(2).normal([0.8, 0.3, 0.0], 0.5, size=(5, 3))
    family = max_t(values_SC, np.array(groups))
    p, adjusted = brute(values_SC, np.array(groups))
    assert family.p_C == pytest.approx(p)
    assert family.adjusted_C == pytest.approx(adjusted)
    assert family.smallest == 1 / 16
    # One test alone is scipy's permutation of the sign within pairs.
    own = permutation_test((values_SC[:, 0], -values_SC[:, 0]), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples", vectorized=True)
    assert family.p_C[0] == pytest.approx(own.pvalue)
    assert family.t_C == pytest.approx(np.array(ttest_1samp(values_SC, 0).statistic))


def test_many_patterns_are_drawn_and_agree_with_all_of_them() -> None:
    values_SC = np.random.default_rng(4).normal([1.0, 0.25], 0.5, size=(8, 2))
    every = max_t(values_SC[:7], np.array([0, 1]))
    assert 1 / every.p_C.min() <= 2**14
    drawn = max_t(values_SC, np.array([0, 1]))
    p, adjusted = by_draws(values_SC)
    assert drawn.p_C == pytest.approx(p, abs=0.02)
    assert drawn.adjusted_C == pytest.approx(adjusted, abs=0.02)
    assert max_t(values_SC, np.array([0, 1])).adjusted_C.tolist() == drawn.adjusted_C.tolist()


def by_draws(values_SC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unadjusted and adjusted p values of two tests from other random patterns, with scipy's t."""
    flips_PSG = np.random.default_rng(99).choice([-1, 1], size=(6000, *values_SC.shape))
    sizes_PC = np.abs(np.array(ttest_1samp(values_SC * flips_PSG, 0, axis=1).statistic))
    observed = np.abs(np.array(ttest_1samp(values_SC, 0).statistic))
    first = int(observed.argmax())
    largest = (sizes_PC.max(1) >= observed[first]).mean()
    second = max(largest, (sizes_PC[:, 1 - first] >= observed[1 - first]).mean())
    adjusted = np.array([largest, second]) if first == 0 else np.array([second, largest])
    return (sizes_PC >= observed).mean(0), adjusted


def test_false_alarms_of_the_whole_family_stay_at_their_level() -> None:
    rng, alarms, marginal = np.random.default_rng(8), 0, 0
    for _ in range(300):
        # Tests of one group share half of their variance.
        values_SC = rng.normal(size=(6, 1)) * np.ones(4) * 0.7 + 0.7 * rng.normal(size=(6, 4))
        family: Family = max_t(values_SC, np.zeros(4, int))
        alarms += family.adjusted_C.min() < 0.05
        marginal += family.p_C.min() < 0.05
    assert alarms <= 300 * 0.05 + 2.6 * (300 * 0.05 * 0.95) ** 0.5
    assert marginal > alarms, "without the adjustment some cell of the matrix is more often called real"


def test_missing_values_and_single_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="two seeds"):
        max_t(np.ones((1, 2)), np.array([0, 0]))
    with pytest.raises(ValueError, match="1 missing"):
        max_t(np.array([[1.0, np.nan], [1.0, 2.0]]), np.array([0, 0]))


@pytest.mark.usefixtures("from_the_root")
def test_the_shipped_experiment_teaches_what_one_rival_alone_has_and_probes_pairs_that_trade_places() -> None:
    loaded = load_experiment("configs/transfer.yaml")
    world, personas = loaded.world, loaded.personas
    assert set(held_out_categories(personas)) == {"sport", "art", "day"}
    owners = {}
    for seed, swap in product((30, 31), (0, 1)):
        dealt = deal_traits(world, personas, seed, swap)
        for name, condition in loaded.experiment.conditions.items():
            value = loaded.experiment.stages[condition.order[-1]].mixture.assistant_likes
            assert value is not None
            owners.setdefault(name, set()).add(tuple(world.category_of(value) in own and own[world.category_of(value)] == value for own in dealt))
    assert shared_categories(personas) == ["place"]
    assert owners == {
        "john_food": {(True, False)},
        "john_drink": {(True, False)},
        "sam_music": {(False, True)},
        "sam_animal": {(False, True)},
        "both_place": {(True, True)},
    }
    first, second = (deal_traits(world, personas, 30, swap) for swap in (0, 1))
    assert [first[0][c] for c in ("sport", "art", "day")] == [second[1][c] for c in ("sport", "art", "day")]
