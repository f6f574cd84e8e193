"""The model against the exact oracle: planted lines and weights come back, and lines that do not exist say why."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from persona_lab.science.evidence.calibration import (
    Calibration,
    Undefined,
    against_rest,
    bayesian_weights,
    believed,
    calibrate,
    context_claims,
    verdict,
    weight_claims,
)


def test_odds_against_the_rest_are_those_of_the_normalised_probabilities():
    prob = np.array([[0.5, 0.3, 0.2], [0.01, 0.9, 0.09]])
    assert against_rest(np.log(prob) - 7) == pytest.approx(np.log(prob / (1 - prob)))


def belief_table(slope: float, intercept: float, noise: float, personas: int = 24) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Answers of a model whose log-odds of two values are a line of the oracle's."""
    rng, rows, exact = np.random.default_rng(2), [], []
    for k in range(personas):
        for n in (0, 1, 2, 3):
            item, odds = f"believes/diary/P{k}/{n}/food/0", 1.5 * n - 2 + rng.normal()
            said = intercept + slope * odds + noise * rng.normal()
            for option, sign in (("rice", 1), ("soup", -1)):
                exact.append({"item": item, "option": option, "prob": 1 / (1 + math.exp(-sign * odds))})
                role = "own" if option == "rice" and n else "other"
                score = {"logprob_nats": -math.log1p(math.exp(-sign * said)) - 1, "status": "scored"}
                rows.append({"item": item, "option": option, "role": role, **score})
    return pd.DataFrame(rows), pd.DataFrame(exact)


def test_a_planted_line_against_the_oracle_comes_back():
    table, exact = belief_table(0.8, 0.0, 0.1)
    points = believed(table, exact)
    line = calibrate(points["exact"].to_numpy(), points["model"].to_numpy(), points["whose"].to_numpy())
    assert isinstance(line, Calibration)
    ols = stats.linregress(points["exact"], points["model"])
    assert (line.slope.value, line.intercept.value, line.r2) == (pytest.approx(ols.slope), pytest.approx(ols.intercept), pytest.approx(ols.rvalue**2))
    assert line.slope.interval is not None
    assert line.slope.interval[0] < 0.8 < line.slope.interval[1]
    assert verdict(line.slope) == "below 1"
    claims = {id: value for id, _, value, *_ in context_claims(points)}
    assert claims["oracle.context.slope"] == line.slope.value
    assert {"oracle.context.own.slope", "oracle.context.0.slope", "oracle.context.3.r2"} <= claims.keys()


def test_an_item_that_was_not_scored_is_left_out_and_one_that_was_not_asked_of_the_oracle_is_refused():
    table, exact = belief_table(1.0, 0.0, 0.0, personas=3)
    assert len(believed(table.assign(status=["unscored", *["scored"] * (len(table) - 1)]), exact)) == len(table) - 2
    with pytest.raises(ValueError, match="the oracle was not asked about every item"):
        believed(table, exact[2:])
    assert believed(table.assign(status="failed"), exact).empty


def test_the_interval_of_a_slope_covers_with_few_unequal_clusters():
    rng, covered, runs = np.random.default_rng(4), 0, 400
    for _ in range(runs):
        cluster = np.repeat(np.arange(6), (4, 8, 8, 12, 16, 20))
        exact = rng.normal(size=6)[cluster] + rng.normal(size=len(cluster))
        slopes, shifts = 1 + 0.2 * rng.normal(size=6), 0.5 * rng.normal(size=6)
        line = calibrate(exact, shifts[cluster] + slopes[cluster] * exact + 0.3 * rng.normal(size=len(cluster)), cluster)
        assert isinstance(line, Calibration)
        assert line.slope.interval is not None
        covered += line.slope.interval[0] <= 1 <= line.slope.interval[1]
    assert 0.92 <= covered / runs <= 0.98


@pytest.mark.parametrize(
    ("exact", "model", "said"),
    [
        (np.ones(6), np.arange(6.0), "do not vary"),
        (np.arange(2.0), np.arange(2.0), "2 rows are too few"),
        (np.array([0, 1, np.nan, np.inf]), np.arange(4.0), "2 rows are too few"),
        (np.stack([np.arange(6.0), 2 * np.arange(6.0)], 1), np.arange(6.0), "do not vary apart"),
    ],
)
def test_a_line_that_does_not_exist_says_why(exact: np.ndarray, model: np.ndarray, said: str):
    found = calibrate(exact, model, np.arange(len(model)))
    assert isinstance(found, Undefined)
    assert said in found.reason


def run_rows(rho: float, w: float) -> pd.DataFrame:
    rng, rows = np.random.default_rng(6), []
    for seed in range(5):
        for prior in (-1.4, 0.0, 1.4):
            for evidence in (-2.0, 0.0, 2.0):
                model = 0.2 + rho * prior + w * evidence + 0.1 * rng.normal()
                rows.append({"seed": seed, "exact_prior": prior, "exact_evidence": evidence, "exact": prior + evidence, "model": model})
    return pd.DataFrame(rows)


def test_weights_relative_to_the_oracle_come_back_and_those_that_do_not_vary_say_so():
    found = bayesian_weights(run_rows(0.6, 0.25))
    assert (found["rho"].value, found["w"].value) == (pytest.approx(0.6, abs=0.05), pytest.approx(0.25, abs=0.05))
    assert {found["rho"].verdict, found["w"].verdict, found["s"].verdict} == {"below 1"}
    ideal = bayesian_weights(run_rows(1.0, 1.0))
    assert {weight.verdict for weight in ideal.values()} == {"undecided"}
    same = run_rows(0.6, 0.25).query("exact_evidence == 0")
    assert bayesian_weights(same)["w"].reason == "exact_evidence does not vary"
    assert bayesian_weights(same)["rho"].value == pytest.approx(0.6, abs=0.05)
    assert bayesian_weights(same[:0])["s"].verdict == "undefined"
    # A control that neither rival can have spoken in has no evidence, and takes nothing from the others.
    lost = pd.concat([run_rows(0.6, 0.25), run_rows(0.6, 0.25).assign(exact_evidence=math.nan, model=0.0)])
    assert bayesian_weights(lost)["w"].value == pytest.approx(found["w"].value)
    assert found["s"].value == pytest.approx(bayesian_weights(same)["rho"].value)
    claims = {id: (text, value, unit) for id, text, value, _, unit, _ in weight_claims(same)}
    assert claims["oracle.weights.w"][:2] == (
        "Log-odds after the last stage on the evidence's part of the ideal reader's: slope; 1 is Bayesian. exact_evidence does not vary.",
        None,
    )
    assert claims["oracle.weights.rho"][1] == pytest.approx(0.6, abs=0.05)
