"""The tournament: verdicts by their rule, stacking weights against closed forms, the mediation test and start-point dependence on planted truths."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, norm

from persona_lab.errors import ConfigError
from persona_lab.science.hypotheses.comparison import differences, stack, stacking, verdicts
from persona_lab.science.hypotheses.families import BY_ID, read_runs
from persona_lab.science.hypotheses.mediation import mediation, regression, start_points
from persona_lab.science.hypotheses.planned import ratio_frame, standard_frame
from persona_lab.science.hypotheses.posterior import Forward, posteriors
from persona_lab.science.hypotheses.tournament import Tournament, base_agreement, tournament

CONDITIONS = 40


def measured(id: str, seeds: int = 3, seed: int = 0, sigma: float = 0.4) -> pd.DataFrame:
    """The standard design's runs as one hypothesis would have them."""
    frame = standard_frame(seeds, own=0.3)
    return frame.assign(eta=BY_ID[id].simulate(frame, BY_ID[id].planted(frame, sigma=sigma, tau=0.3), np.random.default_rng(seed)))


@pytest.fixture(scope="module")
def of_seven() -> pd.DataFrame:
    return measured("H7")


@pytest.fixture(scope="module")
def found(of_seven: pd.DataFrame) -> Tournament:
    return tournament(of_seven, resamples=50)


# ------------------------------------------------------------------ the rule
def judged(gaps: dict[str, float], seeds: int = 5, spread: float = 0.0) -> dict[str, str]:
    """Verdicts of hypotheses whose elpd lies so many nats behind, evenly over conditions but for a spread of all but the first."""
    wave = spread * np.resize([1.0, -1.0], CONDITIONS)
    lpd = np.stack([-1.0 - gap / CONDITIONS + wave * (k > 0) for k, gap in enumerate(gaps.values())])
    return {v.id: v.verdict for v in verdicts(list(gaps), lpd, seeds)}


def test_decidedly_best_is_supported_and_the_rest_refuted() -> None:
    assert judged({"H1": 0, "H0": 10, "H6": 20}) == {"H1": "supported", "H0": "refuted", "H6": "refuted"}


def test_less_than_four_nats_or_an_interval_over_zero_is_undecided() -> None:
    assert judged({"H1": 0, "H0": 3.9}) == {"H1": "undecided", "H0": "undecided"}
    assert judged({"H1": 0, "H0": 4.1}) == {"H1": "supported", "H0": "refuted"}
    # A resampled sum of 40 differences +-1 has a standard deviation of 40^.5 = 6.3, and even steps.
    assert judged({"H1": 0, "H0": 11.5}, spread=1.0) == {"H1": "undecided", "H0": "undecided"}
    assert judged({"H1": 0, "H0": 14.5}, spread=1.0) == {"H1": "supported", "H0": "refuted"}


def test_one_or_two_seeds_support_nothing_but_may_refute() -> None:
    for seeds in (1, 2):
        assert judged({"H1": 0, "H0": 10}, seeds) == {"H1": "undecided", "H0": "refuted"}


def test_of_a_nested_pair_the_simpler_wins_a_draw_and_the_richer_must_earn_it() -> None:
    assert judged({"H5": 0, "H7": 0, "H0": 9}) == {"H5": "supported", "H7": "undecided", "H0": "refuted"}
    assert judged({"H5": 1, "H7": 0, "H0": 9}) == {"H5": "supported", "H7": "undecided", "H0": "refuted"}
    assert judged({"H5": 9, "H7": 0, "H0": 9}) == {"H5": "refuted", "H7": "supported", "H0": "refuted"}


def test_of_two_that_predict_alike_neither_is_supported() -> None:
    assert judged({"H1": 0, "H3": 0, "H0": 9}) == {"H1": "undecided", "H3": "undecided", "H0": "refuted"}
    assert judged({"H1": 0}) == {"H1": "undecided"}


def test_a_difference_and_its_interval_are_those_of_scipy() -> None:
    gap_C = np.random.default_rng(3).gamma(0.5, 2.0, size=30) - 0.2
    found = differences(["A", "B"], np.stack([gap_C, np.zeros(30)]))["A", "B"]
    theirs = bootstrap((gap_C,), np.sum, method="percentile", n_resamples=50_000, rng=np.random.default_rng(1)).confidence_interval
    assert found.value == pytest.approx(gap_C.sum())
    assert found.interval == pytest.approx((theirs.low, theirs.high), abs=0.7)


def test_a_hypothesis_that_fails_utterly_somewhere_and_a_little_everywhere_is_refuted() -> None:
    # Of 22 conditions one nat behind in 19 and 1,400 nats in 3: the sum is 4,219 and its standard error 2,305.
    gap_C = np.r_[np.ones(19), np.full(3, 1400.0)]
    value, error = gap_C.sum(), (22 * gap_C.var(ddof=1)) ** 0.5
    assert value < 2 * error
    assert differences(["A", "B"], np.stack([gap_C, np.zeros(22)]))["A", "B"].better
    # Where nothing but the few conditions speaks, it is undecided: they might not have been planned.
    assert not differences(["A", "B"], np.stack([np.where(gap_C > 1, gap_C, 0.0), np.zeros(22)]))["A", "B"].decided


# ------------------------------------------------------------------ stacking
def test_weights_of_two_that_are_each_right_somewhere_have_a_closed_form() -> None:
    # One is right in 7 of 10 conditions, by a factor of e^6: the best mixture's weight is .7 but for e^-6.
    right = np.repeat([0.0, -6.0], [70, 30])
    weights, intervals = stacking(np.stack([right, -6.0 - right]), np.random.default_rng(0))
    assert weights == pytest.approx([0.7, 0.3], abs=0.003)
    # A resampled share of 70 in 100 has a standard error of .046.
    assert intervals[0] == pytest.approx([0.7 - 0.09, 0.7 + 0.09], abs=0.03)


def test_weights_are_the_fixed_point_of_expectation_maximisation() -> None:
    lpd = norm.logpdf(np.random.default_rng(0).normal(0.4, 1.3, (1, 60)), [[0.0], [1.0], [-1.0], [0.4]], [[1.0], [1.0], [2.0], [1.6]])
    weights = np.full(4, 0.25)
    for _ in range(20_000):
        responsible = weights[:, None] * np.exp(lpd)
        weights = (responsible / responsible.sum(0)).mean(1)
    assert stack(lpd) == pytest.approx(weights, abs=0.01)
    assert stack(lpd) @ np.exp(lpd) == pytest.approx(weights @ np.exp(lpd), rel=1e-3)


def test_a_much_better_hypothesis_has_all_the_weight_however_small_the_densities() -> None:
    assert stack(np.array([[-900.0] * 5, [-2000.0] * 5])) == pytest.approx([1, 0], abs=1e-6)


# ------------------------------------------------------------------ whole
def test_the_planted_hypothesis_is_found(found: Tournament) -> None:
    assert found.verdict == "supported: H7"
    best = found.best
    assert best.id == "H7"
    assert best.weight > 0.8
    assert {entry.id for entry in found.entries if entry.verdict.verdict == "refuted"} == {e.id for e in found.entries} - {"H7"}
    named = {p.name: p for p in best.parameters}
    assert named["s"].interval[0] < 0.8 < named["s"].interval[1]
    assert named["lambda"].interval[0] < 1 < named["lambda"].interval[1]
    assert all(value is not None and value > 20 for value in best.bayes_factor.values())
    assert isinstance(best.forward, Forward)


def test_its_claims_are_complete(found: Tournament) -> None:
    said = list(found.claims())
    ids = [id for id, *_ in said]
    assert len(ids) == len(set(ids)) > 100
    by_id = {id: rest for id, *rest in said}
    assert by_id["tournament.verdict"][4] == "supported: H7"
    assert by_id["tournament.H7.weight"][4] == "supported"
    assert by_id["tournament.H5.elpd_diff"][1] < -4
    assert by_id["tournament.nested.H7.H5"][1] > 0
    for _, text, value, interval, unit, _ in said:
        assert text.endswith(".")
        assert value is None or np.isfinite(value)
        assert interval is None or interval[0] <= interval[1]
        assert isinstance(unit, str)


def test_the_same_runs_give_the_same_claims(of_seven: pd.DataFrame) -> None:
    few = of_seven[of_seven["block"] == 2]
    assert list(tournament(few, resamples=20).claims()) == list(tournament(few.copy(), resamples=20).claims())


def test_two_seeds_never_support(of_seven: pd.DataFrame) -> None:
    two = tournament(of_seven[of_seven["seed"] < 2], families=tuple(BY_ID[id] for id in ("H0", "H2", "H5", "H7")), resamples=10)
    assert two.verdict == "undecided"
    assert two.best.id == "H7"
    assert two.best.verdict.reason == "best, but 2 seeds cannot support a hypothesis: run 3 or more"
    assert "With 2 seeds no hypothesis can be supported." in two.headline


def test_base_seeds_that_contradict_each_other_are_reported(of_seven: pd.DataFrame) -> None:
    few = tuple(BY_ID[id] for id in ("H1", "H5", "H7"))
    other = measured("H1", seed=1).assign(base_seed=1)
    assert base_agreement(of_seven, few) == []
    (same,) = base_agreement(pd.concat([of_seven, measured("H7", seed=1).assign(base_seed=1)]), few)
    assert (same[2], same[5]) == (0, "agree")
    (unlike,) = base_agreement(pd.concat([of_seven, other]), few)
    assert (unlike[2], unlike[5]) == (2, "disagree")
    assert "H7, best on base seed 0, is refuted on base seed 1" in unlike[1]


def test_predictions_that_miss_by_hundreds_of_nats_are_only_very_bad() -> None:
    frame = standard_frame(3, doses=(240, 480, 960))
    runs = frame.assign(eta=BY_ID["H2"].simulate(frame, BY_ID["H2"].planted(frame), np.random.default_rng(0)))
    found = tournament(runs, families=tuple(BY_ID[id] for id in ("H2", "H3", "H4")), resamples=10)
    assert found.verdict == "supported: H2"
    assert -1e5 < found.entry("H3").elpd < -500
    weight = next(p for p in found.entry("H4").parameters if p.name == "w")
    assert weight.interval[1] < 0.05


def test_what_a_ratio_sweep_cannot_test_is_said_and_has_no_number() -> None:
    frame = ratio_frame()
    few = tournament(frame.assign(eta=BY_ID["H2"].simulate(frame, BY_ID["H2"].planted(frame), np.random.default_rng(0))), resamples=10)
    reasons = {v.id: v.reason for v in few.untestable}
    assert reasons["H6"] == "not testable here: column d does not vary"
    assert set(reasons) == {"H4", "H6", "H7", "H8", "H9", "H10", "H12"}
    assert [(id, value) for id, _, value, _, _, verdict in few.claims() if verdict == "not testable"] == [(f"tournament.{id}.weight", None) for id in reasons]
    assert few.verdict == "undecided"


def test_nothing_testable_is_an_error() -> None:
    frame = ratio_frame().drop(columns=["p", "m"]).assign(x=0.0, eta=0.1)
    with pytest.raises(ConfigError, match=r"PL1220.*no hypothesis can be tested on it: H0"):
        tournament(frame)


# ------------------------------------------------------------------ mediation
def test_measure_and_metric_suffice_when_they_are_all_there_is(of_seven: pd.DataFrame) -> None:
    said = mediation(of_seven)
    assert said.verdict == "sufficient"
    assert said.said.startswith("Measure and metric suffice: with both known, the ratio of documents, the order add nothing")
    assert said.base is not None
    assert said.base.better
    assert len({id for id, *_ in said.claims()}) == len(said.claims())


def test_a_ratio_that_helps_beside_them_is_found(of_seven: pd.DataFrame) -> None:
    said = mediation(of_seven.assign(eta=of_seven["eta"] + 0.5 * of_seven["x"]))
    assert said.verdict == "incomplete"
    assert said.said.endswith("on its own, the ratio of documents.")
    assert dict(said.each)["x"].better
    assert not dict(said.each)["o"].better


def test_a_format_that_helps_beside_them_is_found(of_seven: pd.DataFrame) -> None:
    told = of_seven.assign(format=np.where(of_seven["condition"].str.endswith("1:1"), "news", "profile"))
    assert mediation(told).verdict == "sufficient"
    said = mediation(told.assign(eta=told["eta"] + 1.5 * (told["format"] == "news")))
    assert said.verdict == "incomplete"
    assert dict(said.each)["format"].better


def test_sufficiency_needs_seeds_and_something_to_suffice_for(of_seven: pd.DataFrame) -> None:
    two = mediation(of_seven[of_seven["seed"] < 2])
    assert (two.verdict, "2 seeds cannot support that" in two.said) == ("undecided", True)
    noise = of_seven.assign(eta=np.random.default_rng(0).normal(size=len(of_seven)))
    assert mediation(noise).said.startswith("Measure and metric themselves do not decidedly predict the end")
    assert mediation(of_seven.assign(d=2.0)).said == "Mediation not testable here: column d does not vary."
    assert mediation(of_seven.drop(columns="m")).verdict == "not testable"
    assert mediation(of_seven.assign(x=0.0, o=0.0)).said == "Mediation not testable here: none of x, o, format varies."


def test_the_regression_is_least_squares_where_data_swamp_the_prior(of_seven: pd.DataFrame) -> None:
    runs = read_runs(of_seven)
    ours = {p.name: p for p in posteriors(regression(runs, ["m", "d", "x"]), runs, np.random.default_rng(0))}
    x = np.column_stack([np.ones(len(runs)), *((runs[name] - runs[name].mean()) / runs[name].std(ddof=0) for name in ("m", "d", "x"))])
    fitted, squares, *_ = np.linalg.lstsq(x, runs["eta"].to_numpy())
    errors = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * squares / (len(runs) - 4))
    for i, name in enumerate(("m", "d", "x"), 1):
        assert ours[name].value == pytest.approx(fitted[i], abs=0.01)
        assert np.subtract(*ours[name].interval) == pytest.approx(-2 * 1.96 * errors[i], rel=0.1)


# ------------------------------------------------------------------ start points
def starts(effect: float, seeds: int = 6, gap: float = 0.0, d: float = 5.0) -> pd.DataFrame:
    """Two starts: `near` is d nats nearer and its end is `effect` higher; lexical +-.4 by swap, the seed's effect shared."""
    rng, rows = np.random.default_rng(1), []
    for seed in range(seeds):
        own = rng.normal(0, 0.5)
        for swap in (0, 1):
            for condition, nearer in (("near", 1), ("far", 0)):
                eta = own + 0.4 * (1 - 2 * swap) + effect * nearer + rng.normal(0, 0.1)
                rows.append(
                    {"condition": condition, "seed": seed, "base_seed": 0, "swap": swap, "eta": eta, "m": gap * nearer, "d": -d * nearer + rng.normal(0, 0.1)}
                )
    return pd.DataFrame(rows)


def test_a_nearer_start_that_ends_nearer_is_shown_whichever_is_named_first() -> None:
    for pair in (("near", "far"), ("far", "near")):
        found = start_points(starts(0.6), *pair)
        assert found.verdict == "supported"
        assert found.effect is not None
        assert found.effect.interval is not None
        assert found.effect.interval[0] < 0.6 < found.effect.interval[1]
        assert found.effect.interval[1] - found.effect.interval[0] < 0.4  # the seed's effect and the lexical part cancel
        assert found.metric_gap is not None
        assert found.metric_gap.value == pytest.approx(5, abs=0.2)
    assert [id for id, *_ in found.claims()] == ["start_point", "start_point.measure", "start_point.metric"]


def test_equal_ends_or_a_farther_winner_refute_start_point_dependence() -> None:
    assert start_points(starts(0.0), "near", "far").verdict == "refuted"
    assert start_points(starts(-0.6), "near", "far").verdict == "refuted"


def test_what_is_not_a_test_of_it_is_said() -> None:
    assert "M1 of near and far differs by 0.30 nats" in start_points(starts(0.6, gap=0.3), "near", "far").said
    assert "D1 of near and far is not shown to differ" in start_points(starts(0.6, d=0.0), "near", "far").said.replace("far and near", "near and far")
    assert "share no replicate" in start_points(starts(0.6), "near", "elsewhere").said
    assert "not measured" in start_points(starts(0.6).drop(columns="d"), "near", "far").said
    one_swap = starts(0.6)[lambda f: (f["swap"] == 0) | (f["condition"] == "near")]
    assert start_points(one_swap, "near", "far").verdict == "not a test"
    two = start_points(starts(0.6, seeds=2), "near", "far")
    assert (two.verdict, two.said.endswith("2 seeds cannot decide.")) == ("undecided", True)
