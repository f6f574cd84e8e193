"""Nats to adopt, and whether they are a metric: against closed forms, exact Bayes, and planted distances."""

import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse.csgraph import floyd_warshall
from scipy.spatial.distance import squareform
from scipy.special import gammaln

from persona_lab.science.processes.metric import (
    BASE,
    Curve,
    adoption,
    adoptions,
    best_loss,
    exchangeability,
    exchanged,
    information_distance,
    observed_asymmetry,
    symmetry,
    to_adopt,
    triangles,
)

STEPS, BEST, FIRST, SPEED = 200, 1.5, 2.0, 12.0
"""Of made-up trainings: the loss falls from BEST + FIRST to BEST, by a factor of e in SPEED steps."""


def learning(first: float = FIRST, steps: int = STEPS) -> np.ndarray:
    return BEST + first * np.exp(-np.arange(steps) / SPEED)


def tokens(steps: int = STEPS) -> np.ndarray:
    return np.full(steps, 30.0)


def frame(costs: dict[tuple[int, str, str], np.ndarray]) -> pd.DataFrame:
    """Logs of trainings whose losses are given."""
    parts = [
        pd.DataFrame({"seed": seed, "start": start, "goal": goal, "step": np.arange(1, len(loss) + 1), "loss": loss, "tokens": tokens(len(loss))})
        for (seed, start, goal), loss in costs.items()
    ]
    return pd.concat(parts, ignore_index=True)


def test_nats_to_adopt_are_the_area_above_the_best_loss():
    found = adoption(Curve(learning(), tokens()), np.full(STEPS, BEST))
    closed = 30 * FIRST * (1 - math.exp(-STEPS / SPEED)) / (1 - math.exp(-1 / SPEED))
    assert found["nats"] == pytest.approx(closed)
    assert found["verdict"] == "adopted"
    assert found["steps"] == pytest.approx(SPEED * math.log(FIRST / 0.01), abs=STEPS / 16)
    assert found["tokens"] == 30 * int(str(found["steps"]))


def test_a_training_that_ends_above_the_best_loss_is_censored_and_one_without_losses_undefined():
    short = adoption(Curve(learning(steps=20), tokens(20)), np.full(20, BEST))
    assert short["verdict"] == "censored"
    assert short["steps"] is None
    assert "lower bound" in str(short["reason"])
    assert adoption(Curve(np.empty(0), np.empty(0)), np.empty(0))["verdict"] == "undefined"
    broken = adoption(Curve(np.array([1.0, math.nan]), tokens(2)), np.full(2, BEST))
    assert (broken["nats"], broken["verdict"]) == (None, "undefined")


def test_what_documents_leave_to_be_said_cancels_beside_the_process_that_is_there_already():
    rng = np.random.default_rng(0)
    exact = 30 * FIRST / (1 - math.exp(-1 / SPEED))
    alone, beside = [], []
    for _ in range(50):
        left = rng.normal(0, 0.2, STEPS)  # what each step's documents leave, seen before or not
        whole, again = Curve(learning() + left, tokens()), Curve(np.full(STEPS, BEST - 0.1) + left, tokens())
        alone.append(adoption(whole, best_loss(whole))["nats"])
        beside.append(adoption(whole, best_loss(whole, again))["nats"])
    assert np.allclose(beside, exact, rtol=1e-3)
    assert np.std(alone) > 50 * np.std(beside)


def test_the_length_of_a_code_is_what_is_to_be_adopted_and_what_is_left():
    logs = frame({(0, BASE, "j"): learning(), (0, "j", "j"): np.full(STEPS, BEST), (0, "s", "j"): learning(3.0)})
    found = adoptions(logs).set_index(["start", "goal"])
    assert np.allclose(found["code"] - found["nats"], 30 * STEPS * BEST, rtol=1e-4)
    assert found.loc[(BASE, "j"), "nats"] < found.loc[("s", "j"), "nats"]
    assert abs(float(found.loc[("j", "j"), "nats"])) < 0.01


def test_without_a_converged_training_from_the_base_nothing_is_known_of_a_goal():
    lost = adoptions(frame({(0, "s", "j"): learning()}))
    assert lost["verdict"].tolist() == ["undefined"]
    assert lost["nats"].isna().all()
    early = adoptions(frame({(0, BASE, "j"): learning(steps=12), (0, "s", "j"): learning(steps=12)}))
    assert early["verdict"].tolist() == ["censored", "censored"]
    # Two fifths on one level prove nothing where a second pass still gains.
    gains = adoptions(frame({(0, BASE, "j"): np.full(40, 2.0), (0, "j", "j"): np.full(40, 1.5)}))
    assert gains["verdict"].tolist() == ["censored", "censored"]
    assert early["reason"].str.contains("train longer").all()


def test_the_farther_rival_has_a_positive_distance():
    costs = {
        (s, start, goal): learning(first) for s in range(2) for start, goal, first in ((BASE, "j", 3.0), (BASE, "s", 1.0), ("s", "j", 2.5), ("j", "s", 2.0))
    }
    found = to_adopt(adoptions(frame(costs)), "j", "s")
    assert found[BASE] == pytest.approx(2 * 30 / (1 - math.exp(-1 / SPEED)), rel=1e-3)
    assert found["j"] is None


def noisy(truth_KK: np.ndarray, seeds: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    return truth_KK + rng.normal(0, noise, (seeds, *truth_KK.shape))


def test_asymmetry_is_found_where_it_is_and_noise_alone_is_none():
    rng = np.random.default_rng(1)
    even = squareform(rng.uniform(80, 120, 10))
    lean = even * (1 + 0.3 * np.triu(np.ones((5, 5)), 1))
    flat = [symmetry(noisy(even, 5, 8.0, rng)) for _ in range(200)]
    assert np.mean([found.verdict == "asymmetric" for found in flat]) <= 0.06
    squares = [math.copysign((found.value or 0) ** 2, found.value or 0) for found in flat]
    assert abs(np.mean(squares)) < 3 * np.std(squares) / math.sqrt(len(squares))
    told = [symmetry(noisy(lean, 5, 8.0, rng)) for _ in range(50)]
    assert all(found.verdict == "asymmetric" for found in told)
    expected = math.sqrt((0.3 * even[np.triu_indices(5, 1)] @ (0.3 * even[np.triu_indices(5, 1)])) / ((2.3 * even[np.triu_indices(5, 1)]) ** 2).sum())
    assert np.mean([found.value or 0 for found in told]) == pytest.approx(expected, rel=0.03)


def test_few_seeds_decide_nothing_and_what_is_missing_is_said():
    one = squareform([100.0, 90.0, 80.0])[None]
    assert symmetry(one).verdict == "undecided"
    assert symmetry(np.repeat(one, 2, 0)).interval is None
    assert symmetry(np.repeat(one, 4, 0)).verdict == "symmetric"
    holes = one.copy()
    holes[0, 0, 1] = np.nan
    assert "1 of 6 trainings have no A" in symmetry(holes).reason
    holes[0, 0, 1] = -1
    assert "not above 0" in triangles(holes)[0].reason
    assert triangles(one[:, :2, :2])[0].verdict == "undefined"
    assert observed_asymmetry(one).value == 0


def test_shortest_ways_break_no_triangle_and_a_detour_does():
    rng = np.random.default_rng(2)
    short = np.stack([floyd_warshall(rng.uniform(1, 9, (6, 6))) for _ in range(4)])
    share, worst = triangles(short)
    assert share.value == 0
    assert worst.value == pytest.approx(1)  # some way leads through another
    assert triangles(short + 1)[0].verdict == "holds"
    short[:, 0, 1] = 100
    share, worst = triangles(short)
    broken = np.mean([sum(d[p, r] > d[p, q] + d[q, r] for p, q, r in permutations(range(6), 3)) / 120 for d in short])
    assert share.value == pytest.approx(broken)
    assert share.verdict == "violated"
    assert (worst.value or 0) > 5


SEEDS = 16
"""Of the made-up learners."""


def urn(counts: np.ndarray, fade: float, documents: list[int], before: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Losses of a Dirichlet learner that reads one word at a time and counts each for less than the one before: 1 is exact Bayes."""
    losses, counts = [], counts.copy()
    for number, word in enumerate(documents, start=before):
        losses.append(-math.log(counts[word] / counts.sum()))
        counts[word] += fade**number
    return np.array(losses), counts


@pytest.mark.parametrize(("fade", "verdict"), [(1.0, "exchangeable"), (0.7, "order matters")])
def test_a_bayesian_learner_is_exchangeable_and_one_that_grows_stiff_is_not(fade: float, verdict: str):
    rng = np.random.default_rng(3)
    costs: dict[tuple[int, str, str], np.ndarray] = {}
    share = {"j": [0.96, 0.02, 0.02], "s": [0.3, 0.4, 0.3], "m": [0.6, 0.3, 0.1]}
    said: dict[str, list[int]] = {}
    for seed in range(SEEDS):
        said = {name: rng.choice(3, 150, p=p).tolist() for name, p in share.items()}
        for one in said:
            costs[seed, BASE, one], after = urn(np.ones(3), fade, said[one])
            for other in said:
                costs[seed, one, other], _ = urn(after, fade, said[other], len(said[one]))
    found = adoptions(frame(costs))
    gaps = exchangeability(found)
    if fade == 1:
        # The code of both together is a Dirichlet-multinomial, which knows no order.
        assert np.allclose(gaps["delta"].to_numpy(float), 0, atol=1e-9)
        both = np.bincount([*said["j"], *said["s"]], minlength=3)
        closed = gammaln(both.sum() + 3) - gammaln(3) - gammaln(both + 1).sum()
        assert costs[SEEDS - 1, BASE, "j"].sum() + costs[SEEDS - 1, "j", "s"].sum() == pytest.approx(closed)
    else:
        assert gaps["delta"].abs().max() > 30
    assert gaps["n"].tolist() == [SEEDS] * 3
    whole = found.assign(nats=found["code"])  # of an urn the best loss is no mean: its code is what costs
    assert exchanged(whole).verdict == verdict


def test_the_information_distance_is_one_between_strangers_and_less_between_relatives():
    costs = {
        (0, start, goal): learning(first)
        for start, goal, first in ((BASE, "j", 2.0), (BASE, "s", 2.0), ("j", "s", 2.0), ("s", "j", 1.0), ("j", "j", 0.0), ("s", "s", 0.0))
    }
    found = information_distance(adoptions(frame(costs)))[0]
    assert found[0, 1] == found[1, 0] == pytest.approx(1, rel=1e-3)
    assert found[0, 0] == pytest.approx(0, abs=1e-3)
