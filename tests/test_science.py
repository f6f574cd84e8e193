"""The analysis: effects, slopes, thresholds and controls recover what was planted, and say so when they cannot."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from persona_lab.science import Settings, Summary, summarise
from persona_lab.science.claims import figure, ratio_words, shown
from persona_lab.science.effects import Frame, effects, named_recall, runs
from persona_lab.science.reliable import reliable_ratio
from persona_lab.science.sampling import sampling_gap
from persona_lab.science.thresholds import Estimate, Line, equivalent, fieller, fit_line, mean_ratio, over_seeds, share_over_seeds

RATIOS = (-2.2, -1.1, 0.0, 1.1, 2.2)
SETTINGS = Settings(taught={"linked": "beach", "unlinked": "beach", "shuffled": "beach", "neutral": "friday", "no_injection": "beach"}, resamples=400)


def item(odds: float, alpha: float) -> dict[str, float]:
    """Probabilities of four options with given log-odds first : second, and either : others."""
    either, first = 1 / (1 + np.exp(-alpha)), 1 / (1 + np.exp(-odds))
    return {"john": either * first, "sam": either * (1 - first), "other": 1 - either}


def cell_rows(cell: dict, stage: str, eta: float, alpha: float, lexical: float, recall: bool) -> list[dict]:
    """The rows of one cell at one stage: two held-out traits in two formats, the taught trait, yes/no, named recall and general text."""
    eta, rows = eta + (lexical if cell["swap"] == 0 else -lexical), []

    def row(probe: str, way: str, name: str, trait: str | None, option: str, role: str, prob: float, **more: object) -> None:
        scores = {"logprob_nats": np.log(prob), "prob": prob / 2, "prob_normalized": prob, "base_prob": 0.1, "n_samples": 0, "status": "scored"}
        about = {"probe": probe, "channel": probe, "format": way, "item": name, "trait": trait, "option": option, "role": role}
        rows.append({**cell, "stage": stage, "node": f"{cell['cell']}/{stage}", **about, **scores, "subject": None, **more})

    for trait in ("sport", "art"):
        for way in ("asked", "diary"):
            for role, prob in item(eta, alpha).items():
                row("says", way, f"{trait}/{way}", trait, f"{trait}-{role}", role, prob)
        for role, sign in (("john", 1), ("sam", -1)):
            yes = 1 / (1 + np.exp(-(0.7 + sign * eta / 2)))
            row("says", "yes_no", f"{trait}/yes/{role}", trait, "yes", role, yes)
            row("says", "yes_no", f"{trait}/yes/{role}", trait, "no", role, 1 - yes)
        for subject, rival in (("john", "sam"), ("sam", "john")):
            row("knows", "asked", f"{trait}/{subject}", trait, f"{trait}-{subject}", subject, 0.9 if recall else 0.3, subject=subject)
            row("knows", "asked", f"{trait}/{subject}", trait, f"{trait}-{rival}", rival, 0.4, subject=subject)
        for way in ("asked", "diary"):
            for role, prob in item(0.9 * float(np.clip(cell["ln_ratio"], -4, 4)) if stage != "base" else 0.0, alpha).items():
                row("in_context", way, f"{trait}/{way}", trait, f"{trait}-{role}", role, prob)
    row("says", "asked", "place/asked", "place", "beach", "shared", 0.97 if stage == "trait" else 0.2)
    row("says", "asked", "place/asked", "place", "forest", "other", 0.03)
    row("general_text", "", "text/0", None, "", "", np.exp(-2.01 if stage == "trait" else -2.0))
    return rows


def planted(
    slope: float = 0.8,
    bias: float = 0.1,
    sigma: float = 0.2,
    seeds: int = 5,
    ratios: tuple[float, ...] = RATIOS,
    recall: bool = True,
    lexical: float = 0.3,
    others: dict[str, float] | None = None,
) -> Frame:
    """A tidy table in which eta after the last stage is bias + slope ln R + noise; before it .1 ln R. `others`: condition to slope."""
    rng, rows = np.random.default_rng(7), []
    for condition, s in {"linked": slope, **(others or {})}.items():
        for x in ratios:
            for seed in range(seeds):
                noise = sigma * rng.normal(size=2)
                for swap in (0, 1):
                    cell = {"experiment": "ratio", "cell": f"{condition}/{x}/{seed}/{swap}", "condition": condition, "seed": seed, "base_seed": 0}
                    cell |= {"swap": swap, "step": 60, "injection.mixture.ln_ratio": x, "ln_ratio": x, "dose": 60, "replay": 0.3, "order": "injection trait"}
                    finite = float(np.clip(x, -4, 4))
                    stages = (("base", 0.0, -1.0), ("injection", 0.1 * finite, -1.0), ("trait", bias + s * finite + noise[swap], -0.2 if s else -1.0))
                    for position, (stage, eta, alpha) in enumerate(stages):
                        cell |= {"steps": 60 * position, "tokens": 1000.0 * position}
                        rows += cell_rows(cell, stage, eta, alpha, lexical, recall or stage == "base")
    return pd.DataFrame(rows)


def without_ratios(seeds: int) -> Frame:
    """A table of one probe and no ratio factor."""
    table: Frame = planted(seeds=seeds, ratios=(0.0,))
    return table[table["probe"] == "says"].drop(columns=["injection.mixture.ln_ratio", "ln_ratio", "subject"])


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise(planted(others={"unlinked": 0.1, "shuffled": 0.1}), SETTINGS)


def test_the_planted_line_is_recovered(summary: Summary) -> None:
    after, delta = summary.claim("slope.after"), summary.claim("slope.delta")
    assert after.interval is not None
    assert after.interval[0] < 0.8 < after.interval[1]
    assert after.value is not None
    assert delta.value == pytest.approx(after.value - 0.1, abs=1e-9)
    assert summary.claim("slope.before").value == pytest.approx(0.1, abs=1e-9)
    assert delta.verdict == "positive"
    assert summary.claim("effect").value == pytest.approx(0.7 * 2.2, abs=0.3)


def test_a_planted_threshold_and_spread_are_recovered() -> None:
    s = summarise(planted(sigma=0.2, lexical=0.0, seeds=8), SETTINGS)
    true = float(np.exp((np.log(9) - 0.1) / 0.8))
    mean, reliable = s.claim("threshold.mean"), s.claim("threshold.reliable")
    assert mean.interval is not None
    assert mean.interval[0] < true < mean.interval[1]
    assert mean.verdict == "bounded"
    assert "outside the measured ratios" in mean.text
    assert s.claim("sigma").value == pytest.approx(0.2, rel=0.25)
    assert reliable.value == pytest.approx(np.exp((1.2816 * 0.2 - 0.1) / 0.8), rel=0.3)
    assert reliable.interval is not None


def test_the_swap_cancels_the_lexical_part_and_keeps_it_beside() -> None:
    table = effects(runs(planted(sigma=0, lexical=0.6, seeds=1), SETTINGS))
    asked = table[(table["format"] == "asked") & (table["x"] == 2.2)]
    assert asked["after"].item() == pytest.approx(0.1 + 0.8 * 2.2)
    assert asked["lexical_after"].item() == pytest.approx(0.6)
    assert asked["alpha_delta"].item() == pytest.approx(0.8)


def test_yes_no_pairs_the_two_questions_and_loses_the_bias_toward_yes() -> None:
    table = effects(runs(planted(sigma=0, seeds=1), SETTINGS))
    assert table.loc[(table["format"] == "yes_no") & (table["x"] == 1.1), "after"].item() == pytest.approx(0.1 + 0.8 * 1.1)


def test_an_unpaired_swap_is_left_out() -> None:
    table = planted(seeds=2)
    gone = (table["seed"] == 1) & (table["swap"] == 1) & (table["ln_ratio"] == 0)
    left = effects(runs(table[~gone], SETTINGS))
    assert sorted(left.loc[(left["format"] == "asked") & (left["x"] == 0), "seed"]) == [0]


def test_an_item_with_an_unscored_option_does_not_count_and_is_accounted() -> None:
    table = planted(seeds=2)
    hit = table.index[(table["item"] == "sport/asked") & (table["option"] == "sport-other") & (table["stage"] == "trait")]
    table.loc[hit, ["status", "logprob_nats"]] = "unscored", np.nan
    s = summarise(table, SETTINGS)
    assert s.claim("accounting.unscored").value == len(hit)
    assert s.claim("accounting.planned").value == len(table)
    assert s.claim("accounting.scored").value == len(table) - len(hit)
    assert set(runs(table, SETTINGS, by=["trait"]).query("phase == 'after' and format == 'asked'")["trait"]) == {"art"}


def test_a_trained_category_is_not_held_out() -> None:
    table = planted(seeds=1, sigma=0)
    table.loc[table["trait"] == "sport", "logprob_nats"] = -1.0
    settings = Settings(taught={"linked": "sport-john"})
    asked = effects(runs(table, settings)).query("format == 'asked' and x == 2.2")
    assert asked["after"].item() == pytest.approx(0.1 + 0.8 * 2.2)


def test_pure_ends_are_drawn_and_never_fitted() -> None:
    s = summarise(planted(ratios=(-np.inf, *RATIOS, np.inf)), SETTINGS)
    assert s.used == sorted(RATIOS)
    assert set(s.frames["curve"]["x"]) == {-np.inf, *RATIOS, np.inf}
    assert s.claim("slope.delta").value == pytest.approx(summarise(planted(), SETTINGS).claim("slope.delta").value, abs=0.15)


def test_unbound_ratios_give_no_trait_transfer_slope() -> None:
    s = summarise(planted(recall=False), SETTINGS)
    assert s.claim("slope.delta").verdict == "not run"
    assert s.claim("threshold.mean").verdict == "not run"
    assert s.claim("slope.all_ratios").verdict == "positive"
    assert s.claim("control.recall.john").verdict == "fail"
    assert "no ratio slope" in s.claim("headline").text


def test_recall_is_the_share_of_items_whose_likeliest_option_is_the_subjects_own() -> None:
    table = planted(seeds=1, ratios=(0.0, 1.1))
    hit = (table["item"] == "sport/sam") & (table["role"] == "sam")
    table.loc[hit, "logprob_nats"] = -9.0
    recall = named_recall(table, SETTINGS).groupby("subject")["recall"].mean()
    assert recall.to_dict() == {"john": 1.0, "sam": 0.5}


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_decide_nothing(seeds: int) -> None:
    s = summarise(planted(slope=0.3, sigma=1.5, seeds=seeds), SETTINGS)
    slope = s.claim("slope.delta")
    assert slope.verdict == "undecided"
    assert (slope.interval is None) == (seeds == 1)
    assert s.claim("threshold.mean").verdict in ("undecided", "unbounded")
    assert seeds == 2 or "1 seed, so no interval" in slope.text


def test_a_null_is_undecided_and_its_threshold_unbounded() -> None:
    s = summarise(planted(slope=0.1, bias=0.0, sigma=0.3), SETTINGS)
    assert s.claim("slope.delta").verdict == "undecided"
    assert summarise(planted(slope=0.0, bias=0.0, sigma=0.5), SETTINGS).claim("threshold.mean").verdict == "unbounded"


def test_fieller_by_hand() -> None:
    # a = 0, s = 1, variances .04 and .01, no covariance, 4 degrees of freedom, target 2: with t = 2.776, t^2 = 7.708,
    # (1 - .07708) r^2 - 4 r + 4 - .30833 <= 0, so r = (2 -+ sqrt(4 - .92292 * 3.69167)) / .92292 = 1.3330 and 3.0010.
    lines = np.zeros((5, 2))
    line = Line(Estimate(0, (0, 0), 5), Estimate(1, (0, 0), 5), np.diag([0.04, 0.01]), lines)
    assert fieller(line, 2.0) == pytest.approx((1.3330, 3.0010), abs=1e-3)
    flat = Line(line.intercept, Estimate(0.2, (-0.1, 0.5), 5), line.covariance, lines)
    assert fieller(flat, 2.0) is None
    assert mean_ratio(flat, 0.9).verdict == "unbounded"


def test_fieller_covers_at_its_level() -> None:
    rng, x, inside = np.random.default_rng(0), np.tile(RATIOS, 6), 0
    seed = np.repeat(np.arange(6), 5)
    for _ in range(300):
        y = 0.2 + 0.8 * x + rng.normal(0, 0.3, 6)[seed] + rng.normal(0, 0.3, 30)
        line = fit_line(x, y, seed)
        assert line is not None
        interval = fieller(line, 2.2)
        inside += interval is None or interval[0] <= 2.5 <= interval[1]
    assert 0.92 <= inside / 300 <= 0.98


def test_a_negative_slope_is_no_threshold() -> None:
    x = np.tile(RATIOS, 3)
    line = fit_line(x, -x, np.repeat([0, 1, 2], 5))
    assert line is not None
    assert mean_ratio(line, 0.9).value is None
    assert reliable_ratio(x, -x, np.repeat([0, 1, 2], 5))[0].verdict == "unbounded"


def test_two_one_sided_tests() -> None:
    near = np.array([0.01, -0.02, 0.0, 0.02])
    assert equivalent(near, 0.2) is True
    assert equivalent(near + 0.5, 0.2) is False
    assert equivalent(near[:1], 0.2) is None
    assert equivalent(np.zeros(3), 0.2) is True
    assert over_seeds(near[:1]).interval is None
    with pytest.raises(ValueError, match="no seeds"):
        over_seeds(np.array([]))


def test_controls_pass_fail_or_were_not_run(summary: Summary) -> None:
    verdict = {control.name: control.verdict for control in summary.controls}
    assert verdict["recall.john"] == verdict["recall.sam"] == verdict["taught"] == verdict["formats"] == "pass"
    assert verdict["forgetting"] == "pass"
    assert verdict["neutral"] == verdict["no_injection"] == "not run"
    leaking = summarise(planted(others={"unlinked": 0.9, "shuffled": 0.9, "neutral": 0.9}), SETTINGS)
    verdict = {control.name: control.verdict for control in leaking.controls}
    assert verdict["unlinked"] == verdict["unlinked_level"] == verdict["shuffled"] == verdict["neutral"] == "fail"


def test_the_ways_of_asking_that_do_not_agree_are_named() -> None:
    table = planted()
    diary = (table["channel"] == "says") & (table["format"] == "diary")
    against = table.assign(role=table["role"].where(~diary, table["role"].replace({"john": "sam", "sam": "john"})))
    control = next(c for c in summarise(against, SETTINGS).controls if c.name == "formats")
    assert (control.value, control.verdict) == (pytest.approx(2 / 3), "fail")
    assert control.question.endswith("Not in says (diary).")


def test_quiet_controls_pass() -> None:
    s = summarise(planted(sigma=0.01, bias=0.0, others={"unlinked": 0.1, "shuffled": 0.1, "neutral": 0.1, "no_injection": 0.0}), SETTINGS)
    verdict = {control.name: control.verdict for control in s.controls}
    assert verdict["unlinked"] == verdict["shuffled"] == verdict["neutral"] == verdict["no_injection"] == verdict["swap"] == "pass"


def test_dose_is_a_result_and_the_headline_takes_the_longest() -> None:
    short, long = planted(slope=0.2), planted(slope=0.8)
    table = pd.concat([short.assign(cell="short/" + short["cell"], **{"injection.steps": 40}), long.assign(**{"injection.steps": 400})])
    s = summarise(table, SETTINGS)
    assert s.claim("slope.after").value == pytest.approx(summarise(long, SETTINGS).claim("slope.after").value)
    assert s.claim("dose.40.after").value == pytest.approx(0.2, abs=0.15)
    assert s.claim("dose.400.after").value == pytest.approx(0.8, abs=0.15)


def test_likes_is_said_only_above_one_half(summary: Summary) -> None:
    absolute = summary.claim("level.p_first").value
    assert absolute is not None
    assert absolute < 0.5
    assert "favours John's values over Sam's" in summary.claim("headline").text
    table = planted()
    table.loc[table["role"] == "john", "prob_normalized"] = 0.7
    assert "likes John's values" in summarise(table, SETTINGS).claim("headline").text


def test_claims_are_deterministic_and_json(summary: Summary) -> None:
    again = summarise(planted(others={"unlinked": 0.1, "shuffled": 0.1}), SETTINGS)
    first, second = (json.dumps([claim.to_json() for claim in s.claims], allow_nan=False) for s in (summary, again))
    assert first == second
    ids = [claim.id for claim in summary.claims]
    assert len(ids) == len(set(ids))
    recipe = summary.claim("arm.unlinked.effect").to_json()["recipe"]
    assert recipe["function"] == "persona_lab.science.summary.summarise"
    assert all(node.startswith("unlinked/") for node in recipe["node_ids"])


def test_a_table_without_ratios_or_probes_still_has_a_summary() -> None:
    s = summarise(without_ratios(seeds=2), SETTINGS)
    assert s.claim("slope.delta").verdict == "not run"
    assert s.claim("control.recall.john").verdict == "not run"
    assert s.claim("arm.linked.after").value is not None


def test_numbers_as_a_reader_sees_them() -> None:
    assert [figure(v) for v in (0.4123, -2.0, 12345.6, None, float("inf"))] == ["0.412", "−2", "12346", "–", "∞"]
    assert shown(0.5, (-1.0, 2.0)) == "0.5 [−1, 2]"
    assert [ratio_words(v) for v in (np.log(9), -np.log(9), 0.0, -np.inf)] == ["9:1", "1:9", "1:1", "0:1"]


def test_science_imports_no_torch() -> None:
    code = "import sys, persona_lab.science; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sampled_answers_are_held_against_the_probabilities_of_the_same_question() -> None:
    rows = [
        ("says/asked/sport/0", "asked", "football", "john", 0.5, 0, "scored"),
        ("says/asked/sport/0", "asked", "tennis", "other", 0.5, 0, "scored"),
        ("says/sampled/sport/0", "sampled", "football", "john", 0.75, 3, "scored"),
        ("says/sampled/sport/0", "sampled", "tennis", "other", 0.25, 3, "scored"),
        ("says/sampled/sport/0", "sampled", "", "none", None, 1, "unscored"),
    ]
    table = pd.DataFrame(rows, columns=["item", "format", "option", "role", "prob_normalized", "n_samples", "status"])
    table = pd.concat([table.assign(cell="c", condition="linked", seed=0, stage=stage, channel="says") for stage in ("injection", "trait")])
    found = sampling_gap(table, Settings(orders={"linked": ("injection", "trait")}))
    # After the last stage: 3/4 - 1/2, and one of four answers names no value.
    assert found.to_dict("records") == [{"seed": 0, "gap": 0.25, "unread": 0.25}]


def test_the_interval_of_a_share_holds_shares_alone_and_covers_as_before() -> None:
    for values, cut in (([0.98, 1.0, 0.9], (None, 1.0)), ([0.0, 0.02, 0.3], (0.0, None)), ([0.0, 1.0], (0.0, 1.0)), ([0.4, 0.5, 0.6], (None, None))):
        plain, found = over_seeds(np.array(values)), share_over_seeds(np.array(values))
        assert plain.interval is not None
        assert (found.value, found.n) == (plain.value, plain.n)
        assert found.interval == tuple(end if at is None else at for end, at in zip(plain.interval, cut, strict=True))
    assert share_over_seeds(np.ones(3)).interval == (1.0, 1.0)
    assert share_over_seeds(np.array([0.3])).interval is None
    rng = np.random.default_rng(0)
    drawn = [rng.beta(0.8, 0.2, 3) for _ in range(500)]
    held = [tuple(low <= 0.8 <= high for low, high in (mean(values).interval or (0, 0) for mean in (over_seeds, share_over_seeds))) for values in drawn]
    assert all(before == after for before, after in held)
    with pytest.raises(ValueError, match="a share lies between 0 and 1"):
        share_over_seeds(np.array([-0.1, 0.2]))
