"""What a design can tell apart, and whether the tournament finds what was planted: the standard design, a ratio sweep, shuffled labels."""

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from benchmarks.coverage import main
from persona_lab.science.hypotheses.comparison import verdicts
from persona_lab.science.hypotheses.families import BY_ID, FAMILIES, NESTED
from persona_lab.science.hypotheses.planned import ratio_frame, standard_conditions, standard_frame
from persona_lab.science.hypotheses.power import SEPARABLE, misfits, planned, power, verdict_on_design
from persona_lab.science.hypotheses.recovery import confusion, coverage, left_out_densities, shuffled


# ------------------------------------------------------------------ power
def test_the_standard_design_separates_and_a_ratio_sweep_does_not() -> None:
    standard, ratio = power(standard_frame()), power(ratio_frame())
    assert len(standard.pairs()) == 13 * 12 - len(NESTED)
    assert standard.share >= 0.9
    assert 0.4 <= ratio.share <= 0.5
    assert set(ratio.untestable) == {"H4", "H6", "H7", "H8", "H9", "H10", "H12"}
    assert {(truth, rival) for truth, rival, _ in standard.missing} == {("H8", "H5"), ("H8", "H7")}
    assert standard.table().splitlines()[2].split()[3] == "="


def test_the_verdict_on_a_design_names_what_it_cannot_do() -> None:
    assert verdict_on_design(standard_frame()).verdict == "enough"
    said = verdict_on_design(ratio_frame())
    assert said.verdict == "underpowered"
    assert "H0 (no transfer) from H2" in said.said
    assert "H6: column d does not vary" in said.said
    assert "H12: column k does not vary" in said.said


def test_more_noise_separates_less_and_more_seeds_more() -> None:
    linear = tuple(family for family in FAMILIES if not family.shape)
    small, large, noisy = power(standard_frame(1), linear), power(standard_frame(6), linear), power(standard_frame(1), linear, sigma=3.0)
    assert noisy.share < small.share <= large.share
    assert (large.noncentrality_KK >= small.noncentrality_KK - 1e-6).all()


def test_the_standard_design_has_its_blocks() -> None:
    blocks = [point["block"] for point in standard_conditions().values()]
    assert [blocks.count(b) for b in range(1, 8)] == [18, 6, 6, 4, 2, 6, 6]
    runs = standard_frame()
    assert len(runs) == 48 * 2 * 2
    assert (runs[runs["swap"] == 0]["p"].to_numpy() == -runs[runs["swap"] == 1]["p"].to_numpy()).all()


@pytest.mark.parametrize("truth", ["H0", "H6", "H10"])
def test_a_rival_s_best_refit_is_the_constrained_least_squares_fit(truth: str) -> None:
    runs = planned(standard_frame())
    mean = BY_ID[truth].mean(runs, BY_ID[truth].planted(runs))
    covariance = 0.25 * np.eye(len(runs)) + 0.25 * (runs["seed"].to_numpy()[:, None] == runs["seed"].to_numpy())
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    for id in ("H2", "H4", "H7", "H8"):
        columns, offset = BY_ID[id].design(runs)
        low = np.full(columns.shape[1], -np.inf)
        low[-1] = 0 if BY_ID[id].positive else -np.inf
        judge = lsq_linear(root @ columns, root @ (mean - offset), bounds=(low, np.inf), tol=1e-14)
        assert misfits(BY_ID[id], runs, mean[:, None])[0] == pytest.approx(2 * judge.cost, rel=1e-4)


# ------------------------------------------------------------------ recovery
def test_what_is_planted_is_found_or_undecided() -> None:
    found = confusion(standard_frame(2, own=0.3), sets=1, judged_as=3)
    assert found.false_share == 0
    assert found.recovered_share >= 11 / 13
    assert not any(found.refuted.values())
    assert len(found.table().splitlines()) == 14


def test_two_seeds_attribute_nothing() -> None:
    families = tuple(BY_ID[id] for id in ("H1", "H2", "H6"))
    found = confusion(standard_frame(2, own=0.3), sets=2, families=families)
    assert [dict(counts) for counts in found.attributed.values()] == [{"undecided": 2}] * 3


def test_shuffled_labels_support_nothing() -> None:
    frame, rng = standard_frame(2, own=0.3), np.random.default_rng(5)
    results = []
    for id in ("H4", "H7"):
        runs = frame.assign(eta=BY_ID[id].simulate(frame, BY_ID[id].planted(frame), rng))
        results += [shuffled(runs, rng)["eta"].to_numpy() for _ in range(2)]
    ids = [family.id for family in FAMILIES]
    for lpd_KC in left_out_densities(FAMILIES, planned(frame), np.stack(results)):
        assert "supported" not in {v.verdict for v in verdicts(ids, lpd_KC, seeds=3)}


def test_shuffling_moves_conditions_whole() -> None:
    frame = standard_frame(3)
    runs = frame.assign(eta=np.arange(len(frame), dtype=float))
    dealt = shuffled(runs, np.random.default_rng(0))
    assert sorted(dealt["eta"]) == sorted(runs["eta"])
    before = {tuple(rows) for _, rows in runs.groupby("condition")["eta"]}
    assert {tuple(rows) for _, rows in dealt.groupby("condition")["eta"]} == before
    assert (dealt["eta"] != runs["eta"]).mean() > 0.8


def test_coverage_counts_what_it_says() -> None:
    frame = standard_frame(2)
    some = frame[frame["block"] == 1].reset_index(drop=True)
    fixed = {"s": 0.5, "ln b": 0.0, "sigma": 0.3, "tau": 0.2}
    found = {c.name: c for c in coverage(BY_ID["H2"], some, 10, fixed=fixed, draws=200)}
    assert found.keys() == fixed.keys()
    assert found["s"].mean_N.mean() == pytest.approx(0.5, abs=0.05)
    inside = (found["s"].rank_N > 0.025) & (found["s"].rank_N < 0.975)
    assert (found["s"].covered, found["s"].sets) == (inside.sum(), 10)


def test_the_benchmark_prints_coverage_and_confusion(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--sets", "3", "--confusion", "0", "--only", "H2"])
    printed = capsys.readouterr().out
    assert "H2    s " in printed
    assert SEPARABLE == 6
