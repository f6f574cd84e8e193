"""Cheaper distances between processes, and whether they foretell the nats to adopt: against scipy, scikit-learn and brute force."""

import math
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon, pdist, squareform
from scipy.stats import entropy, spearmanr
from sklearn.covariance import LedoitWolf

from persona_lab.science.processes.divergence import (
    agreement,
    answers_apart,
    apart,
    barrier,
    centred,
    concept_map,
    cosines,
    jensen_shannon,
    kullback_leibler,
    ledoit_wolf,
    mantel,
    one_basin,
    slots,
    transfer,
    whitened,
)


def test_divergences_are_those_of_scipy():
    rng = np.random.default_rng(4)
    p, q = rng.dirichlet(np.ones(7), 20), rng.dirichlet(np.ones(7), 20)
    assert jensen_shannon(p, q) == pytest.approx(np.mean([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)]))
    assert kullback_leibler(p, q) == pytest.approx(np.mean(entropy(p, q, axis=1)))
    assert kullback_leibler(np.eye(2), np.eye(2)[::-1]) == math.inf
    assert jensen_shannon(np.eye(2), np.eye(2)[::-1]) == pytest.approx(math.log(2))


def scores(prob: dict[str, list[float]], status: str = "scored") -> pd.DataFrame:
    return pd.DataFrame([{"item": item, "option": f"o{i}", "prob": p, "status": status} for item, each in prob.items() for i, p in enumerate(each)])


def test_answers_that_are_none_of_the_options_count_as_one_more():
    one, other = scores({"b": [0.5, 0.25], "a": [0.1, 0.1]}), scores({"a": [0.1, 0.1], "b": [0.25, 0.5]}).sample(frac=1, random_state=0)
    assert slots(one).tolist() == [[0.1, 0.1, pytest.approx(0.8)], [0.5, 0.25, 0.25]]
    found = answers_apart({"one": one, "other": other})
    assert found[0, 1] == pytest.approx(jensenshannon([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]) ** 2 / 2)
    with pytest.raises(ValueError, match="4 options have no probability"):
        slots(scores({"a": [0.1, 0.1], "b": [0.1, 0.1]}, "unscored"))


def test_an_item_may_have_fewer_options_than_another():
    one, other = scores({"a": [0.1], "b": [0.3, 0.2]}), scores({"a": [0.4], "b": [0.3, 0.2]})
    assert slots(one).tolist() == [[0.1, 0.0, 0.9], [0.3, 0.2, 0.5]]
    assert answers_apart({"one": one, "other": other})[0, 1] == pytest.approx(jensenshannon([0.1, 0.9], [0.4, 0.6]) ** 2 / 2)


def test_gradients_in_common_tell_nobody_apart():
    rng = np.random.default_rng(5)
    grad = rng.normal(size=(4, 50)) + 10
    gram = grad @ grad.T
    assert cosines(gram)[0, 1] == pytest.approx(grad[0] @ grad[1] / np.linalg.norm(grad[0]) / np.linalg.norm(grad[1]))
    assert cosines(gram)[0, 1] > 0.9
    assert np.allclose(centred(gram), (grad - grad.mean(0)) @ (grad - grad.mean(0)).T)
    assert abs(cosines(centred(gram))[0, 1]) < 0.9
    assert transfer(gram)[0, 1] == pytest.approx(grad[0] @ grad[1] / (grad[0] @ grad[0]))
    assert np.isnan(cosines(np.zeros((2, 2)))).all()


@pytest.mark.parametrize("width", [5, 60])
def test_whitened_distances_are_mahalanobis_distances(width: int):
    rng = np.random.default_rng(6)
    texts = rng.normal(size=(1, 24, width)) * np.linspace(0.1, 9, width)
    state = texts + rng.normal(size=(3, 1, width)) + 0.01 * rng.normal(size=(3, 24, width))
    judge = LedoitWolf().fit(state.mean(0))
    assert ledoit_wolf(state.mean(0) - state.mean((0, 1)))[0] == pytest.approx(judge.shrinkage_)
    gap = state[0].mean(0) - state[1].mean(0)
    assert apart(whitened(state))[0, 1] == pytest.approx(math.sqrt(gap @ np.linalg.inv(judge.covariance_) @ gap))


def test_a_barrier_is_what_lies_above_the_straight_line():
    assert barrier([1.0, 2.5, 2.0], [0.0, 0.5, 1.0]) == pytest.approx(1.0)
    assert barrier([1.0, 1.0, 2.0], [0.0, 0.5, 1.0]) == pytest.approx(-0.5)
    assert barrier([1.0, 1.5, 1.75, 2.0], [0.0, 0.5, 0.75, 1.0]) == pytest.approx(0.0)


def test_one_basin_has_no_barrier_between_any_two():
    low = np.stack([squareform([-0.5, -0.3, -0.1 - 0.01 * s]) for s in range(3)])
    assert one_basin(low).verdict == "one basin"
    assert one_basin(-low).value == pytest.approx(0.5)
    assert one_basin(-low + np.random.default_rng(0).normal(0, 0.01, low.shape)).verdict == "several"
    assert {one_basin(low[:n]).verdict for n in (1, 2)} == {"undecided"}


def spearman(x: Any, y: Any) -> float:
    found: Any = spearmanr(x, y)
    return float(found.statistic)


def test_a_proxy_predicts_is_dropped_or_is_undecided():
    rng = np.random.default_rng(7)
    truth = np.stack([squareform(rng.uniform(1, 9, 15)) for _ in range(4)])
    assert agreement(truth**2, truth, "D").verdict == "predicts"
    other = np.stack([squareform(rng.uniform(1, 9, 15)) for _ in range(4)])
    found = agreement(other, truth, "D2")
    rows, columns = np.triu_indices(6, 1)
    assert found.value == pytest.approx(np.mean([spearman(a[rows, columns], b[rows, columns]) for a, b in zip(other, truth, strict=True)]))
    assert (found.verdict, found.reason) == ("dropped", "D2 is dropped as a proxy")
    assert {agreement(truth[:n], truth[:n], "D").verdict for n in (1, 2)} == {"undecided"}
    assert agreement(truth[:, :3, :3], truth[:, :3, :3], "D").value is None
    assert "not above 0" in agreement(truth, -truth, "D").reason
    assert "not known" in agreement(np.ones_like(truth), truth, "D").reason


def test_chance_is_every_relabelling():
    rng = np.random.default_rng(8)
    one, other = squareform(rng.uniform(1, 9, 6)), squareform(rng.uniform(1, 9, 6))
    pairs = list(combinations(range(4), 2))
    said = [spearman([one[i, j] for i, j in pairs], [other[o[i], o[j]] for i, j in pairs]) for o in permutations(range(4))]
    assert mantel(one, other) == pytest.approx(np.mean(np.array(said) >= said[0] - 1e-9))
    many = squareform(rng.uniform(1, 9, 36))
    assert mantel(many, many) == 1 / 5040


def test_a_map_of_points_in_a_plane_shows_them_all():
    point = np.random.default_rng(9).normal(size=(6, 2))
    chart, shown = concept_map(squareform(pdist(point)), list("abcdef"))
    assert np.allclose(pdist(chart[["x", "y"]].to_numpy()), pdist(point))
    assert shown == pytest.approx(1)
    assert concept_map(squareform(np.ones(15)), list("abcdef"))[1] < 0.5
    with pytest.raises(ValueError, match="not known"):
        concept_map(np.full((3, 3), np.nan), list("abc"))
