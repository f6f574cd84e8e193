"""The adaptive threshold: its interval covers, its choices are the best ones, and any worker that asks gets the same rounds."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit
from scipy.special import expit, logit
from scipy.stats import t

from benchmarks.threshold import TARGET, TRUTHS, Truth, grid_width, limit, measure, search_of, sweep
from persona_lab.config import expand, load_experiment
from persona_lab.config.schema import Adaptive
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.plan import DECISION, Plan, make_plan, open_plan
from persona_lab.experiment.planning.scores import failed_rows
from persona_lab.experiment.reading.show import settings_of
from persona_lab.experiment.reading.table import tidy_table
from persona_lab.experiment.rounds import advance
from persona_lab.science import summarise
from persona_lab.science.search.adaptive import Pairs, Posterior, decide, next_batch
from persona_lab.science.search.curves import NO_LAPSE, fit_curves
from persona_lab.store.files import read_json

pytestmark = pytest.mark.usefixtures("from_the_root")
ASKED = Adaptive(search="adaptive", budget=200)
SEARCH = search_of(ASKED)
LINE = replace(SEARCH, lapses=(0.0,))
RATIO = "injection.mixture.ln_ratio"


def measured(truth: Truth, x: list[float], seed: int = 0) -> Pairs:
    return Pairs(np.array(x), truth.train(np.array(x), np.random.default_rng(seed)))


# ------------------------------------------------------------------ the interval
def test_the_interval_covers_and_costs_a_quarter_of_the_grid_at_equal_width():
    random, covered, reliable, sweeps = np.random.default_rng(7), 0, 0, 40
    # The seventh costs .25 itself: too near to the line for forty sweeps.
    for truth in TRUTHS[:6]:
        found = measure(truth, ASKED, sweeps, random)
        covered, reliable = covered + found.covered, reliable + found.reliable_covered
        seeds = int(np.median(found.cells) / 0.25 / 14)
        assert grid_width(truth, ASKED, seeds) > np.median(found.widths), f"a grid four times as large is no narrower: {truth}"
    assert 0.91 <= covered / (6 * sweeps) <= 0.985
    assert 0.91 <= reliable / (6 * sweeps) <= 0.985


def test_where_grid_and_pairs_at_the_threshold_measure_alike_no_search_costs_a_quarter():
    """By hand: the threshold is the middle ratio, and without a seed effect one run tells as much as another; with nothing but seed effects 7 ratios of a seed tell as much as 1."""
    middle = {"bias": TARGET, "slope": 1.0}
    assert limit(Truth(tau=0.0, sigma=0.3, **middle), ASKED) == pytest.approx(1)
    assert limit(Truth(tau=0.3, sigma=0.0, **middle), ASKED) == pytest.approx(1 / 7)


def test_a_lapse_moves_the_threshold_and_ends_it_where_the_mean_share_never_arrives():
    truth = Truth(slope=2.0, bias=0.3, tau=0.0, sigma=0.0, lexical=0.0, lapse=0.05)
    share = 1 / (1 + np.exp(-truth.train(np.array([truth.threshold]), np.random.default_rng(0))))
    assert share == pytest.approx(np.full((1, 2), 0.9))
    assert Truth(slope=2.0, bias=0.3, tau=0.0, sigma=0.0, lapse=0.11).threshold == math.inf


def test_the_ends_of_the_interval_are_where_the_t_test_of_the_regression_line_turns():
    pairs = measured(TRUTHS[0], [-2.2, -1, 0, 1, 2, 2.2])
    posterior = Posterior(LINE, pairs)
    slope, intercept = np.polyfit(pairs.x_N, pairs.eta_N2.mean(1), 1)
    assert posterior.line == pytest.approx([intercept, slope])
    residual = pairs.eta_N2.mean(1) - intercept - slope * pairs.x_N
    spread, middle = ((pairs.x_N - pairs.x_N.mean()) ** 2).sum(), pairs.x_N.mean()
    for end, sign in zip(posterior.interval(), (1, -1), strict=True):
        error = math.sqrt((residual**2).sum() / 4 * (1 / 6 + (end - middle) ** 2 / spread))
        assert (TARGET - intercept - slope * end) / error == pytest.approx(sign * t.ppf(0.975, 3)), "6 pairs, a line, and the choice when to stop"
        assert posterior.below(end) == pytest.approx(0.5 + sign * 0.475)


def test_a_curve_is_fitted_as_scipy_fits_it():
    x = np.linspace(-2.2, 2.2, 12)
    y = Truth(slope=2.0, bias=0.3, tau=0.2, sigma=0.1, lapse=0.04).train(x, np.random.default_rng(4)).mean(1)
    curves = fit_curves(x, y, TARGET, (0.0, 0.04))
    (a, s), covariance = curve_fit(lambda x, a, s: logit(0.04 + 0.92 * expit(a + s * x)), x, y, (0, 1))
    assert curves.line_K2[1] == pytest.approx([a, s], rel=2e-3), "the ridge moves it by less"
    assert curves.variance_K[1] * curves.inverse_K22[1] == pytest.approx(covariance, rel=0.02)
    assert curves.line_K2[0] == pytest.approx(np.polyfit(x, y, 1)[::-1])
    assert curves.height_K == pytest.approx([TARGET, logit((0.9 - 0.04) / 0.92)])


def test_the_weights_of_lapses_are_their_integrals():
    x = np.linspace(-2.2, 2.2, 20)
    y = Truth(slope=1.6, bias=0.3, tau=0.3, sigma=0.2, lapse=0.03).train(x, np.random.default_rng(2)).mean(1)
    curves = fit_curves(x, y, TARGET, (0.0, 0.04))
    a, s = np.meshgrid(np.linspace(-2, 3, 251), np.linspace(0.2, 5, 241))
    # Over v under 1/v the likelihood is SS^(-n/2); the half-Cauchy prior of the slope has the scale 2.
    share = expit(a[..., None] + s[..., None] * x)
    integral = [(((y - logit(lapse + (1 - 2 * lapse) * share)) ** 2).sum(-1) ** (-len(x) / 2) / (1 + (s / 2) ** 2)).sum() for lapse in (0, 0.04)]
    odds = integral[1] / integral[0] * (1 - NO_LAPSE) / NO_LAPSE
    assert 0.01 < odds < 100, "neither lapse is ruled out"
    assert curves.weight_K[1] / curves.weight_K[0] == pytest.approx(odds, rel=0.2)


def test_the_interval_ends_where_the_mean_over_lapses_says():
    posterior = Posterior(SEARCH, measured(Truth(slope=2.0, bias=0.3, tau=0.1, sigma=0.1, lapse=0.03), [-2.2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2.2]))
    curves = posterior.curves
    assert np.sort(curves.weight_K)[-2] > 0.01, "more than one lapse is likely"
    for end, beyond in zip(posterior.interval(), (0.975, 0.025), strict=True):
        error_K = np.sqrt(curves.variance_K * np.array([np.array([1, end]) @ v @ np.array([1, end]) for v in curves.inverse_K22]))
        assert curves.weight_K @ t.cdf((curves.height_K - curves.line_K2 @ [1, end]) / error_K, 6) == pytest.approx(beyond, abs=1e-6)


@pytest.mark.parametrize("truth", [Truth(slope=4.0, bias=0.0, tau=0.3, sigma=0.3, lapse=0.02), Truth(slope=4.0, bias=0.0, tau=0.3, sigma=0.3, lapse=0.05)])
def test_the_interval_covers_where_log_odds_level_off(truth: Truth):
    x, random = np.linspace(-2.2, 2.2, 15), np.random.default_rng(11)
    covered = dict.fromkeys((LINE, SEARCH), 0)
    for _ in range(40):
        pairs = Pairs(x, truth.train(x, random))
        for search in covered:
            low, high = Posterior(search, pairs).interval()
            covered[search] += low <= truth.threshold <= high
    assert covered[LINE] <= 4, "a line puts the threshold elsewhere"
    assert covered[SEARCH] >= 34
    assert measure(truth, ASKED, 40, random).covered >= 34, "and so where the search chose the ratios"


@pytest.mark.parametrize("lapse", [0.15, 0.25, 0.4])
def test_a_mean_share_that_levels_off_below_has_no_narrow_threshold(lapse: float):
    for slope in (1.5, 4.0):
        for seed in range(3):
            decision, posterior = sweep(Truth(slope=slope, bias=0.0, tau=0.2, sigma=0.2, lapse=lapse), ASKED, np.random.default_rng(seed))
            assert decision.verdict in {"above", "budget"}
            assert posterior.interval()[1] > SEARCH.high


def test_a_line_that_does_not_rise_has_no_threshold_and_an_open_interval():
    flat = Pairs(np.array([-2.2, -0.7, 0.7, 2.2]), np.array([[0.4, 0.3], [4.0, 3.9], [0.2, 0.5], [0.1, 0.2]]))
    posterior = Posterior(SEARCH, flat)
    assert posterior.value is None
    assert posterior.interval() == (-math.inf, math.inf)
    assert decide(SEARCH, flat).verdict == "continue"


# ------------------------------------------------------------------ the choice
def test_every_pair_of_a_batch_is_the_best_addition_to_those_before_it():
    pairs = measured(TRUTHS[1], [-2.2, -0.7, 0.7, 2.2])
    posterior = Posterior(LINE, pairs)
    likely = np.clip([end for level in (0.1, 0.3, 0.5, 0.7, 0.9) for end in posterior.interval(level)], -2.2, 2.2)

    def expected(extra: list[float]) -> float:
        x = np.concatenate([pairs.x_N, extra])
        design = np.stack([np.ones_like(x), x], axis=1)
        return float(np.mean([np.array([1, q]) @ np.linalg.inv(design.T @ design) @ np.array([1, q]) for q in likely]))

    greedy: list[float] = []
    chosen, before, after = next_batch(posterior)
    for _ in chosen:
        greedy.append(float(min(SEARCH.candidates, key=lambda c: expected([*greedy, float(c)]))))
    assert expected(list(chosen)) == pytest.approx(expected(greedy))
    scale = math.sqrt(posterior.variance) / posterior.slope
    assert (before, after) == pytest.approx((scale * math.sqrt(expected([])), scale * math.sqrt(expected(greedy))))


@pytest.mark.parametrize(
    ("truth", "asked", "verdict"),
    [
        (Truth(slope=1.2, bias=0.0, tau=0.1, sigma=0.1), ASKED, "narrow"),
        (Truth(slope=0.3, bias=0.0, tau=0.1, sigma=0.1), ASKED, "above"),
        (Truth(slope=1.0, bias=6.0, tau=0.1, sigma=0.1), ASKED, "below"),
        (Truth(slope=1.2, bias=0.0, tau=0.9, sigma=0.9), ASKED.model_copy(update={"budget": 32}), "budget"),
    ],
)
def test_a_search_ends_and_says_why(truth: Truth, asked: Adaptive, verdict: str):
    decision, _ = sweep(truth, asked, np.random.default_rng(3))
    assert (decision.verdict, decision.ratios) == (verdict, ())
    assert decision.ends[0] <= truth.threshold <= decision.ends[1]
    assert 2 * decision.pairs <= asked.budget
    assert verdict != "narrow" or (decision.ends[1] - decision.ends[0] <= asked.width and decision.pairs >= 6)
    assert json.loads(json.dumps(decision.to_json(), allow_nan=False))["verdict"] == verdict


def test_a_batch_ends_where_the_interval_is_expected_to_be_narrow_enough():
    pairs = measured(TRUTHS[0], [-2.2, -0.7, 0.7, 2.2, 1.5, 1.9, 1.7])

    def expected(n: int) -> float:
        """Width by the delta method with the pairs of a batch of n, which Fieller's is close to here."""
        batch, _, after = next_batch(Posterior(replace(LINE, batch=2 * n, width=0.0), pairs))
        assert len(batch) == n
        return float(2 * t.ppf(0.975, 7 + n - 3) * after)

    for width in (0.5, 0.4, 0.35):
        chosen, *_ = next_batch(Posterior(replace(LINE, width=width, batch=20), pairs))
        widths = [expected(n) for n in range(1, 11)]
        assert abs(len(chosen) - next((n for n, w in enumerate(widths, start=1) if w <= width), 10)) <= 1


def test_the_last_round_spends_what_is_left_of_the_budget():
    noisy = Truth(slope=1.2, bias=0.0, tau=0.9, sigma=0.9)
    decision, _ = sweep(noisy, ASKED.model_copy(update={"budget": 30}), np.random.default_rng(3))
    assert (decision.verdict, 2 * decision.pairs) == ("budget", 30)


def test_too_few_scored_pairs_end_the_search():
    decision = decide(SEARCH, measured(TRUTHS[0], [1.0, 2.0]))
    assert (decision.verdict, decision.ratios, decision.line) == ("failed", (), None)


# ------------------------------------------------------------------ the experiment file
def asks(factor: str, *more: str) -> tuple[str, list[str]]:
    return "configs/quickstart.yaml", [f"factors.{RATIO}={factor}", "seeds=[5]", *more]


def test_a_search_opens_from_bound_to_bound_with_a_fresh_seed_for_each_ratio():
    loaded = load_experiment(*asks("{search: adaptive, bounds: [-2, 2.2], batch: 6}"))
    assert [(cell.point[RATIO], cell.seed, cell.swap) for cell in expand(loaded)] == [(x, 5 + i, swap) for i, x in enumerate((-2, 0.1, 2.2)) for swap in (0, 1)]
    tried = [-2, 0.1, 2.2, 2.2]
    assert [(cell.point[RATIO], cell.seed) for cell in expand(loaded, tried) if cell.swap] == [(x, 5 + i) for i, x in enumerate(tried)]


@pytest.mark.parametrize(
    ("factor", "more", "said"),
    [
        ("{search: adaptiv}", [], "must be adaptive, got the text 'adaptiv'"),
        ("{search: adaptive, widht: 1}", [], r"unknown key 'widht'.*Did you mean width\?"),
        ("{search: adaptive, bounds: [2, 1]}", [], "must be two ln ratios that rise"),
        ("{search: adaptive, batch: 7}", [], "must be even.*Use 8"),
        ("{search: adaptive, bounds: [-3, 3]}", [], "reach beyond analysis.fit = 2.2"),
        ("{search: adaptive}", ["factors.injection.steps=[1, 2]"], "crossed with nothing, got injection.steps beside it"),
        ("{search: adaptive}", ["conditions.other={order: [injection]}"], "also reaches the condition other"),
        ("[0]", ["factors.trait.steps={search: adaptive}"], "factors.trait.steps is no ratio"),
    ],
)
def test_what_is_wrong_with_a_search_is_said(factor: str, more: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        load_experiment(*asks(factor, *more))


# ------------------------------------------------------------------ rounds in the store
def planned(runs: Path) -> Plan:
    """Nothing is made yet: six cells, at most four rounds."""
    factor = "{search: adaptive, batch: 6, budget: 24, width: .1}"
    config, overrides = asks(factor, "probes=[says]", "samples=0", "conditions.linked.order=[injection]", "analysis.threshold=.6")
    return make_plan(config, overrides, runs)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Plan:
    """Scored and decided until the search has ended."""
    plan = planned(tmp_path_factory.mktemp("search") / "runs")
    score(plan)
    while grown := advance(plan):
        score(plan := grown)
    return plan


def score(plan: Plan, without: str = "") -> None:
    """Put the scores of a known line into the store, for every cell but one seed's."""
    for one in plan.searched:
        node, cell = one.scores[-1][1], one.cell
        if plan.store.has(node) or f"/{without}/" in cell.name:
            continue
        seed = 0.3 * np.random.default_rng(cell.seed).standard_normal()
        eta = float(cell.point[RATIO]) + seed + (0.2 if cell.swap else -0.2)
        odds = {"john": eta / 2, "sam": -eta / 2}
        rows = [vars(row) | {"logprob_nats": odds.get(row.role, -1.0), "prob": 0.1, "prob_normalized": 0.1, "status": "scored"} for row in failed_rows(node, "")]
        with plan.store.attempt(node) as attempt:
            pd.DataFrame(rows).to_parquet(attempt.folder / "rows.parquet", index=False)


def decisions(plan: Plan) -> list[dict[str, Any]]:
    return [read_json(plan.store.open(node) / DECISION) for node in plan.rounds]


def test_rounds_are_decided_once_and_followed_by_every_plan(done: Plan):
    found = decisions(done)
    assert [len(decision["ratios"]) for decision in found] == [3, 3, 3, 0]
    assert found[-1]["verdict"] == "budget"
    assert len(done.cells) == 24 == len({one.cell.name for one in done.cells})
    chosen = [one.cell.point[RATIO] for one in done.cells if not one.cell.swap]
    assert chosen == [*Adaptive(search="adaptive", batch=6).opening, *(x for decision in found for x in decision["ratios"])]
    late = planned(done.runs)
    assert late.rounds == done.rounds, "a worker that comes late goes straight to the last round"
    assert advance(late) is None
    done.write()
    assert open_plan(done.folder).nodes == done.nodes


def test_a_seed_that_failed_is_left_out_of_the_decision_that_follows(tmp_path: Path):
    plan = planned(tmp_path / "runs")
    assert plan.rounds[0] in plan.nodes, "a run is not finished while a decision is missing"
    assert len(plan.searched) == 6
    score(plan)
    grown = advance(plan)
    assert grown is not None
    assert grown.folder == plan.folder, "a run keeps its name while its search goes on"
    score(grown, without="seed8")
    last = advance(grown)
    assert last is not None
    assert [decision["pairs"] for decision in decisions(grown)] == [3, 5]
    assert len(last.searched) == 18


def test_the_claims_tell_the_search_as_it_was_decided(done: Plan):
    summary = summarise(tidy_table(done.store, done.cells, "search"), settings_of(done))
    rounds = summary.group("search")
    for claim, decision in zip(rounds, decisions(done), strict=True):
        assert decision["reason"] in claim.text
        assert claim.verdict == decision["verdict"]
        assert claim.value is None or math.log(claim.value) == pytest.approx(decision["value"])
    mean = summary.claim("threshold.mean")
    assert mean.interval is not None
    assert mean.interval[0] < 0.6 / 0.4 < mean.interval[1], "the line that was planted has slope 1 and no bias"
    assert summary.claim("headline").text == mean.text
    assert "24 cells in 4 rounds" in mean.text
