"""Convergent validity: correlations, their intervals, and the verdict, against scipy and planted truths."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr

from data_gen.streams import stream
from persona_lab.science.processes.measure import (
    Measured,
)
from persona_lab.science.processes.validity import agreement, measure_claims, reliability, table_of


def planted(share: float, n: int = 24, estimators: tuple[str, ...] = ("M1", "M3", "M5", "M8", "M9")) -> pd.DataFrame:
    """Estimators that have a share of their variance in common."""
    rng = stream(1, "planted", str(share))
    common = rng.normal(size=n)
    return pd.DataFrame({name: share**0.5 * common + (1 - share) ** 0.5 * rng.normal(size=n) for name in estimators}, index=[f"p{i}" for i in range(n)])


def test_correlations_are_scipy_s_and_their_intervals_hold_them():
    table = planted(0.5)
    table.loc["p3", "M5"] = np.nan
    pairs = agreement(table).pairs.set_index(["first", "second"])
    for (first, second), pair in pairs.iterrows():
        both = table[[first, second]].dropna()
        assert pair["n"] == len(both)
        assert pair["pearson"] == pytest.approx(pearsonr(both[first], both[second]).statistic)
        assert pair["spearman"] == pytest.approx(spearmanr(both[first], both[second]).statistic)
        assert pair["spearman_low"] < pair["spearman"] < pair["spearman_high"]


def test_a_bootstrap_interval_of_a_correlation_covers_it():
    rng, covered = stream(2, "cover"), 0
    for _ in range(200):
        xy = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=60)
        pair = agreement(pd.DataFrame(xy, columns=["M1", "M5"]), resamples=200).pairs.iloc[0]
        covered += pair["pearson_low"] <= 0.6 <= pair["pearson_high"]
    assert 0.88 < covered / 200 <= 0.99, "a percentile interval at 60 processes"


def test_measure_is_one_thing_only_when_estimators_share_most_of_their_ranks():
    assert agreement(planted(0.95)).verdict == "one thing"
    assert agreement(planted(0.02)).verdict == "not one thing"
    assert "Measure is not one thing here" in agreement(planted(0.02)).sentence
    few = agreement(planted(0.95, n=8))
    assert few.verdict == "undecided"
    assert "12 processes or more" in few.sentence
    table = planted(0.5)
    doubled = table.assign(**{"M1 words apart": table["M1"]})
    assert agreement(doubled).mean == pytest.approx(agreement(table).mean), "two readings of one estimator count once"
    twins = planted(0.95, estimators=("M1", "M1 words apart"))
    assert agreement(twins).mean is None, "two readings of one estimator say nothing of convergence"


def test_what_does_not_vary_is_compared_with_nothing():
    table = planted(0.9).assign(**{"M7 rank": 0.0})
    agreed = agreement(table)
    pairs = agreed.pairs
    none, some = Measured("M3", "p0", None, None, "bits", "why"), Measured("M1", "p0", -2.0, (-3.0, -1.0), "bits")
    claims = {claim[0]: claim[1:] for claim in measure_claims([none, some], agreed)}
    assert claims["measure.m3.p0"] == ("M3 of p0: why.", None, None, "bits", "undefined")
    assert claims["measure.m1.p0"] == ("M1 of p0.", -2.0, (-3.0, -1.0), "bits", "measured")
    assert claims["measure.agreement.m1.m7_rank"][4] == "undefined"
    assert claims["measure.agreement"] == (agreed.sentence, agreed.mean, agreed.interval, "", agreed.verdict)
    assert len(claims) == 2 + len(pairs) + 1
    constant = pairs[pairs["second"] == "M7 rank"]
    assert constant["spearman"].isna().all()
    assert set(constant["reason"]) == {"one of them is the same for every process"}
    assert agreement(planted(0.9, n=3)).pairs["reason"].str.contains("at least 4").all()


def test_reliability_is_cronbach_s_alpha():
    rng = stream(3, "alpha")
    part_PI = rng.normal(size=(20, 1)) + 0.7 * rng.normal(size=(20, 6)) + np.arange(6)
    found = [Measured("M1", f"p{i}", float(row.mean()), None, "bits", parts=tuple(row)) for i, row in enumerate(part_PI)]
    alpha = 6 / 5 * (1 - part_PI.var(axis=0, ddof=1).sum() / part_PI.sum(axis=1).var(ddof=1))
    assert reliability(found, "M1") == pytest.approx(alpha)
    assert reliability(found[:2], "M1") is None
    assert list(table_of(found).columns) == ["M1"]
