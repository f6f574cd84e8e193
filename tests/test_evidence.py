"""Evidence: planted ledgers, weights and belief curves come back, and what is undefined says so."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import curve_fit

from persona_lab.science import Settings
from persona_lab.science.evidence.account import evidence_claims, exchange_claims
from persona_lab.science.evidence.beliefs import SHARED, adoption, belief_curve, curve_of, exchange
from persona_lab.science.evidence.bits import LEAST, accounts, ledger, matched_weights, needed_bits, ratio_weight, slope_weight, weights_by
from persona_lab.science.evidence.calibration import fine_tuned

LN2 = math.log(2)
SETTINGS = Settings(taught=dict.fromkeys(("linked", "john_typical", "sam_typical", "unlinked"), "beach"))
SEEDS, STEPS, REPLAYS = (0, 1, 2), (6, 60, 600), (0.0, 0.5, 0.9)
E = {"linked": 0.0, "john_typical": 0.4, "sam_typical": -0.4, "unlinked": 0.0}
W_EITHER = {0.0: 0.02, 0.5: 0.04, 0.9: 0.1}
W_WHICH, DRIFT, LEXICAL = 0.03, 0.5, 0.7
CURVE = (-2.0, 1.1, 0.3)
"""b, gamma, alpha of the planted belief curve."""


def option_rows(cell: dict, stage: str, probe: str, way: str, item: str, trait: str, prob: dict[str, float], subject: str = "") -> list[dict]:
    """One item: role to normalised probability; the options are all of probability half of that."""
    return [
        {**cell, "stage": stage, "node": f"{cell['cell']}/{stage}", "probe": probe, "channel": probe, "format": way, "item": item, "trait": trait}
        | {"option": f"{trait}-{role}", "role": role, "subject": subject, "logprob_nats": math.log(p / 2), "prob": p / 2, "prob_normalized": p}
        | {"base_prob": 0.1, "n_samples": 0, "status": "scored"}
        for role, p in prob.items()
    ]


def three(eta: float, alpha: float) -> dict[str, float]:
    either, first = 1 / (1 + math.exp(-alpha)), 1 / (1 + math.exp(-eta))
    return {"john": either * first, "sam": either * (1 - first), "other": 1 - either}


def ledger_rows(cell: dict, e: float, bits: float) -> list[dict]:
    """Eight paraphrases by four speakers: the mean of both rivals' likelihoods is `bits` above the nameless speaker's."""
    rows = []
    for i in range(8):
        nameless = -3.0 - 0.1 * i
        first = nameless + bits * LN2 + LN2 - np.logaddexp(0, -e)
        for speaker, nats in (("Assistant", nameless), ("John", first), ("Sam", first - e), ("Kim", -9.0)):
            for value, less in (("beach", 0.0), ("forest", 4.0)):
                about = {"probe": "ledger", "channel": "ledger", "format": "asked", "item": f"ledger/place/{i}/{speaker}", "trait": "place"}
                score = {"logprob_nats": nats - less, "prob": 0.1, "prob_normalized": 0.5, "base_prob": 0.1, "n_samples": 0, "status": "scored"}
                role = "shared" if value == "beach" else "other"
                rows.append({**cell, "stage": "injection", "node": "n", **about, "option": value, "role": role, "subject": speaker.lower(), **score})
    return rows


def shot_rows(cell: dict, stage: str, alpha_0: float) -> list[dict]:
    """The shared trait told 0 to 8 times, John's own up to 5 times."""
    b, gamma, discount = CURVE
    rows = option_rows(cell, stage, "shots", "asked", "shots/asked/none/0/sport/0", "sport", three(0.0, alpha_0))
    for n in (1, 2, 4, 8):
        rows += option_rows(cell, stage, "shots", "asked", f"shots/asked/shared/{n}/sport/0", "sport", three(0.0, b + gamma * n ** (1 - discount)), "shared")
    for n in (1, 2, 3, 4, 5):
        own = 1 / (1 + math.exp(-(math.log(three(0.0, alpha_0)["john"] / (1 - three(0.0, alpha_0)["john"])) + 0.6 * n)))
        rest = {"john": own, "sam": (1 - own) / 3, "other": 2 * (1 - own) / 3}
        rows += option_rows(cell, stage, "shots", "asked", f"shots/asked/John/{n}/sport/0", "sport", rest, "john")
    return rows


def planted(
    bits: float = 0.5, noise: float = 0.0, seeds: tuple[int, ...] = SEEDS, conditions: tuple[str, ...] = ("linked", "john_typical", "sam_typical")
) -> pd.DataFrame:
    """A tidy table in which either moves by W_EITHER bits a bit, and which by W_WHICH bits a bit and a drift."""
    rng, rows = np.random.default_rng(3), []
    for condition in conditions:
        for replay in REPLAYS:
            for steps in STEPS:
                for seed in seeds:
                    error = noise * rng.normal(size=2)
                    for swap in (0, 1):
                        cell = {"cell": f"{condition}/{replay}/{steps}/{seed}/{swap}", "condition": condition, "seed": seed, "swap": swap}
                        cell |= {
                            "trait.mixture.replay": replay,
                            "trait.steps": steps,
                            "documents": 16 * steps * (1 - replay),
                            "ln_ratio": 0.0,
                            "step": steps,
                            "steps": 400 + steps,
                        }
                        documents, alpha, eta = 16 * steps * (1 - replay), CURVE[0], (-1) ** swap * LEXICAL
                        rows += ledger_rows(cell, E[condition], bits) + shot_rows(cell, "injection", alpha)
                        rows += option_rows(cell, "injection", "says", "asked", "sport/asked", "sport", three(eta, alpha))
                        alpha += LN2 * (documents * bits * W_EITHER[replay] + error[0]) if documents < 400 else 3.0
                        eta += DRIFT + W_WHICH * documents * E[condition] * (documents < 2000) + LN2 * error[1]
                        rows += option_rows(cell, "trait", "says", "asked", "sport/asked", "sport", three(eta, alpha)) + shot_rows(cell, "trait", alpha)
    return pd.DataFrame(rows)


TABLE = planted()


# The ledger and its accounts


def test_bits_of_a_document_are_the_planted_ones():
    by = ledger(TABLE, SETTINGS).set_index("cell")
    linked, typical = by.loc["linked/0.0/60/0/0"], by.loc["john_typical/0.0/60/0/0"]
    assert linked["bits_either"] == pytest.approx(0.5)
    assert linked["bits_first"] == linked["bits_second"] == pytest.approx(0.5)
    assert (linked["e"], typical["e"]) == (pytest.approx(0), pytest.approx(0.4))
    assert typical["bits_either"] == pytest.approx(0.5)
    assert typical["bits_first"] - typical["bits_second"] == pytest.approx(0.4 / LN2)
    assert ledger(TABLE, Settings(taught=dict.fromkeys(E, "tuesday"))).empty, "the stage teaches what the ledger does not ask"
    assert ledger(TABLE[TABLE["probe"] != "ledger"], SETTINGS).empty


def test_accounts_are_swap_balanced_and_count_the_documents_of_evidence_alone():
    frame = accounts(TABLE, SETTINGS)
    assert len(frame) == 3 * 3 * 3 * 3
    row = frame[(frame["condition"] == "linked") & (frame["replay"] == 0.9) & (frame["steps"] == 60) & (frame["seed"] == 1)].iloc[0]
    assert row["documents"] == pytest.approx(96)
    assert row["supplied_either"] == pytest.approx(48)
    assert row["realised_either"] == pytest.approx(4.8)
    assert row["supplied_which"] == pytest.approx(0)
    assert row["realised_which"] == pytest.approx(DRIFT / LN2), "the lexical part cancels over the swaps"
    assert row["needed"] == pytest.approx(math.log2(9 / math.exp(CURVE[0])))
    lost = TABLE[TABLE["cell"] != "linked/0.9/60/1/1"]
    assert len(accounts(lost, SETTINGS)) == len(frame) - 1, "a point that lacks a swap is left out"
    assert accounts(TABLE[TABLE["stage"] == "trait"], SETTINGS).empty


@pytest.mark.parametrize(("odds", "target", "bits"), [(1.0, 0.5, 0.0), (1 / 3, 0.9, math.log2(27)), (99.0, 0.9, math.log2(9 / 99))])
def test_needed_bits_are_the_logarithm_of_the_odds_ratio(odds: float, target: float, bits: float):
    assert needed_bits(math.log(odds), target) == pytest.approx(bits)


# Weights


def test_the_planted_weights_come_back_at_each_replay():
    frame = accounts(planted(noise=0.02), SETTINGS)
    small = frame[(frame["condition"] == "linked") & (frame["documents"] < 400)]
    for level, weight in weights_by(small, "replay", "either"):
        assert weight.value == pytest.approx(W_EITHER[level], abs=0.01)
        assert weight.interval is not None
        assert weight.interval[0] < W_EITHER[level] < weight.interval[1]
        assert weight.verdict == "positive"
    typical = frame[frame["documents"] < 2000]
    for _, weight in weights_by(typical, "replay", "which"):
        assert weight.value == pytest.approx(W_WHICH, abs=0.005)


def test_the_drift_that_every_condition_has_is_no_weight():
    own = accounts(TABLE, SETTINGS).query("documents < 2000")
    weight = slope_weight(*(own[c].to_numpy() for c in ("supplied_which", "realised_which", "seed")))
    assert weight.value == pytest.approx(W_WHICH, abs=1e-6)


def test_a_slope_is_the_mean_of_the_seeds_slopes_and_its_interval_students():
    rng = np.random.default_rng(0)
    seed = np.repeat(np.arange(4), 5)
    supplied = rng.uniform(0, 100, size=20)
    realised = 0.1 * supplied + rng.normal(size=20)
    weight = slope_weight(supplied, realised, seed)
    slopes = [stats.linregress(supplied[seed == s], realised[seed == s]).slope for s in range(4)]
    assert weight.value == pytest.approx(np.mean(slopes))
    assert weight.interval == pytest.approx(stats.t.interval(0.95, 3, np.mean(slopes), stats.sem(slopes)))


@pytest.mark.parametrize(
    ("weigh", "supplied", "said"),
    [
        (slope_weight, [5.0, 5.2, 5.0, 5.3], "varies by 0.3 bits, too little for a slope"),
        (slope_weight, [0.0, 0.0, 0.0, 0.0], "varies by 0 bits"),
        (ratio_weight, [0.4, 0.2, 30.0, 40.0], "supply 0.3 bits in all"),
        (ratio_weight, [9.0, 9.0, -9.0, -9.0], "supply 9 bits in all"),
        (ratio_weight, [math.nan] * 4, "nothing was measured"),
        (slope_weight, [math.nan] * 4, "nothing was measured"),
    ],
)
def test_a_weight_is_undefined_where_the_documents_supply_nothing(weigh, supplied: list[float], said: str):
    weight = weigh(np.array(supplied), np.ones(4), np.array([0, 0, 1, 1]))
    assert (weight.value, weight.interval, weight.verdict) == (None, None, "undefined")
    assert said in weight.reason


def test_one_seed_gives_a_weight_without_an_interval():
    weight = ratio_weight(np.array([10.0, 20.0]), np.array([1.0, 2.0]), np.array([0, 0]))
    assert (weight.value, weight.interval, weight.verdict) == (pytest.approx(0.1), None, "undecided")


def test_replays_are_compared_at_equal_documents():
    linked = accounts(TABLE, SETTINGS).query("condition == 'linked'")
    found = matched_weights(linked)
    assert found is not None
    documents, weight_SL, levels = found
    # No replay: 96 to 9600 documents; .9: 9.6 to 960.
    assert documents == pytest.approx(math.sqrt(96 * 960))
    assert levels == list(REPLAYS)
    rows = linked[(linked["replay"] == 0.0) & (linked["seed"] == 0)].sort_values("documents")
    realised = np.interp(math.log(documents), np.log(rows["documents"]), rows["realised_either"])
    assert weight_SL[0, 0] == pytest.approx(realised / (documents * 0.5))
    assert matched_weights(linked[linked["replay"] == 0.5]) is None
    apart = linked[((linked["replay"] == 0) & (linked["steps"] == 600)) | ((linked["replay"] == 0.9) & (linked["steps"] == 6))]
    assert matched_weights(apart) is None, "the ranges do not meet"
    nothing = linked.assign(supplied_either=LEAST / 2000)
    assert matched_weights(nothing) is None


# Belief curves


def test_a_planted_curve_comes_back_as_by_nonlinear_least_squares():
    rng = np.random.default_rng(1)
    shots = np.tile(np.arange(7), 5)
    seed = np.repeat(np.arange(5), 7)
    odds = -1.9 + 1.2 * shots**0.7 + 0.02 * rng.normal(size=len(shots))
    curve = belief_curve(shots, odds, seed)
    assert curve is not None
    (b, gamma, alpha), _ = curve_fit(lambda n, b, g, a: b + g * n ** (1 - a), shots, odds, p0=(-2, 1, 0.2))
    assert curve.discount == pytest.approx(alpha, abs=0.03)
    assert curve.line.intercept.value == pytest.approx(b, abs=0.03)
    assert curve.at(3) == pytest.approx(b + gamma * 3 ** (1 - alpha), abs=0.03)
    half = curve.shots_for()
    assert half.value == pytest.approx((1.9 / 1.2) ** (1 / 0.7), rel=0.02)
    assert half.interval is not None
    assert half.interval[0] < half.value < half.interval[1]
    assert half.verdict == "reached"


def test_the_interval_of_n50_covers_what_was_planted():
    rng, covered, runs = np.random.default_rng(5), 0, 300
    true = (1.9 / 1.2) ** (1 / 0.7)
    for _ in range(runs):
        shots, seed = np.tile(np.arange(6), 4), np.repeat(np.arange(4), 6)
        b, gamma = -1.9 + 0.25 * rng.normal(size=4), 1.2 * np.exp(0.15 * rng.normal(size=4))
        curve = belief_curve(shots, b[seed] + gamma[seed] * shots**0.7 + 0.15 * rng.normal(size=24), seed)
        assert curve is not None
        interval = curve.shots_for().interval
        covered += interval is None or interval[0] <= true <= interval[1]
    assert 0.92 <= covered / runs <= 0.98


def curve_at(gain: float, start: float, seeds: int = 3):
    """A curve without noise over 0 to 4 shots; seeds differ by a constant."""
    shots, seed = np.tile(np.arange(5), seeds), np.repeat(np.arange(seeds), 5)
    found = belief_curve(shots, start + gain * shots + 0.1 * seed, seed)
    assert found is not None
    return found


def test_a_threshold_that_no_number_of_shots_reaches_is_not_reached():
    flat, falling, far, there = curve_at(0.0, -2), curve_at(-0.5, -2), curve_at(0.3, -2), curve_at(0.3, 1)
    for curve in (flat, falling, far):
        assert (curve.shots_for().value, curve.shots_for().interval, curve.shots_for().verdict) == (None, None, "not reached")
    assert there.shots_for().value == 0
    assert far.shots_for(-1.4).value == pytest.approx(5 / 3, abs=0.01)
    early = curve_at(2.0, -1).shots_for()
    assert (early.value, early.verdict) == (1, "reached"), "half a shot is none"
    one = curve_at(0.6, -1, seeds=1).shots_for()
    assert (one.value, one.interval, one.verdict) == (pytest.approx(1 / 0.6, abs=0.01), None, "undecided")


def test_two_numbers_of_shots_or_unlike_seeds_have_no_curve():
    assert belief_curve(np.array([0, 1, 0, 1]), np.zeros(4), np.array([0, 0, 1, 1])) is None
    assert belief_curve(np.array([0, 1, 2, 0, 1]), np.zeros(5), np.array([0, 0, 0, 1, 1])) is None
    assert belief_curve(np.array([0, 1, 2]), np.array([0.0, math.nan, 1.0]), np.zeros(3)) is None


def test_shots_are_read_with_nothing_told_as_their_start():
    shots = adoption(TABLE, SETTINGS)
    one = shots[(shots["cell"] == "linked/0.0/60/0/0") & (shots["phase"] == "before")]
    shared = one[one["whose"] == "shared"].sort_values("shots")
    assert shared["shots"].tolist() == [0, 1, 2, 4, 8]
    b, gamma, discount = CURVE
    assert shared["alpha"].to_numpy() == pytest.approx([b + gamma * n ** (1 - discount) if n else b for n in (0, 1, 2, 4, 8)])
    own = one[one["whose"] == "john"].sort_values("shots")["own"].to_numpy()
    assert np.diff(own) == pytest.approx([0.6] * 5)
    curve = curve_of(one[one["whose"] == "john"], "own")
    assert curve is not None
    assert curve.discount == 0
    assert adoption(TABLE[TABLE["probe"] == "says"], SETTINGS).empty


# Documents for shots


def test_the_exchange_rate_is_documents_over_the_shots_that_do_the_same():
    shots = adoption(TABLE, SETTINGS)
    before = shots[(shots["condition"] == "linked") & (shots["whose"] == "shared") & (shots["phase"] == "before")]
    curve = curve_of(before, "alpha")
    assert curve is not None
    assert curve.discount == pytest.approx(CURVE[2])
    b, gamma, discount = CURVE
    after = {seed: b + gamma * n ** (1 - discount) for seed, n in zip(SEEDS, (2, 3, 4), strict=True)}
    rate = exchange(curve, after, 96)
    assert rate.value == pytest.approx(96 / (2 * 3 * 4) ** (1 / 3))
    assert rate.interval is not None
    assert rate.interval[0] < 32 < rate.interval[1]
    half = exchange(curve, dict.fromkeys(SEEDS, b + gamma / 2), 96)
    assert half.value == pytest.approx(192), "half of what the first shot does"
    for beyond in ({**after, 0: 9.0}, {**after, 0: b - 1}):
        refused = exchange(curve, beyond, 96)
        assert (refused.value, refused.verdict) == (None, "undefined")
        assert "in 1 of 3 seeds no number of shots from 0 to 8" in refused.reason
    assert exchange(curve, {}, 96).value is None
    rng = np.random.default_rng(8)
    noise = belief_curve(np.tile(np.arange(5), 3), rng.normal(size=15), np.repeat(np.arange(3), 5))
    assert noise is not None
    assert exchange(noise, dict.fromkeys(range(3), 0.0), 96).reason == "shots are not shown to raise the odds"
    assert exchange(curve, after, 0).value is None


def test_points_that_differ_before_the_last_stage_have_exchange_rates_of_their_own():
    cells = {f"point {x}": f"ratios/ln_ratio={x}/steps=60/seed0/swap0" for x in (-1.4, 1.4)}
    account = pd.DataFrame([{"condition": "ratios", "point": point, "documents": 960.0, "replay": None, "steps": 60.0, "rate": None} for point in cells])
    told = {"condition": "ratios", "whose": SHARED, "format": "asked", "phase": "before", "shots": 0, "seed": 0, "alpha": 0.0}
    shots = pd.DataFrame([told | {"point": point, "cell": cell} for point, cell in cells.items()])
    assert [id for id, *_ in exchange_claims(shots, account)] == [f"exchange.asked.ratios.ln_ratio={x},steps=60" for x in (-1.4, 1.4)]
    assert [id for id, *_ in exchange_claims(shots, account[:1])] == ["exchange.asked.ratios.steps=60"]


def test_every_claim_of_a_planted_table_has_a_number_or_a_reason():
    claims = {id: (text, value, interval, unit, kind) for id, text, value, interval, unit, kind in evidence_claims(TABLE, SETTINGS)}
    assert claims["evidence.bits_first.linked"][1] == pytest.approx(0.5)
    assert claims["evidence.needed.linked"][1] == pytest.approx(math.log2(9 / math.exp(CURVE[0])))
    assert claims["evidence.weight.either.linked.replay=0.9"][3:] == ("bits per bit", "positive")
    assert claims["evidence.matched.linked.replay"][0].startswith("linked: weight on either at 304 documents of evidence, at a replay of 0.9 less that at 0")
    assert claims["exchange.asked.linked.replay=0,steps=6"][3] == "documents per shot"
    assert claims["shots.asked.john.linked.before"][4] in ("reached", "undecided")
    assert all(value is not None or ":" in text for text, value, *_ in claims.values())
    no_names = planted(conditions=("linked",))
    without = {id: rest for id, *rest in evidence_claims(no_names, SETTINGS)}
    assert without["evidence.weight.which"][1] is None
    assert "too little for a slope" in without["evidence.weight.which"][0]
    assert list(evidence_claims(TABLE[TABLE["probe"] == "says"], SETTINGS)) == []


def test_runs_stand_beside_their_ideal_readers_and_those_without_one_are_left_out():
    cells = TABLE.drop_duplicates("cell").query("condition != 'sam_typical'")
    exact = {
        row["cell"]: {"exact": row["swap"] + 0.5, "exact_prior": 0.0, "exact_evidence": float(row["documents"]), "exact_before": 0.0}
        for _, row in cells.iterrows()
    }
    frame = fine_tuned(TABLE, SETTINGS, exact).set_index("cell")
    assert set(frame["condition"]) == {"linked", "john_typical"}
    assert len(frame) == len(cells)
    one = frame.loc["john_typical/0.9/60/2/1"]
    assert (one["exact"], one["exact_evidence"], one["seed"]) == (1.5, pytest.approx(96), 2)
    assert one["model"] == pytest.approx(-LEXICAL + DRIFT + W_WHICH * 96 * 0.4), "the swap turns the lexical part"
