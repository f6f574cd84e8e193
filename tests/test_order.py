"""Orders: recency is recovered and is nobody's prior, what chats leave of it; unequal arms say so."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIGS
from scipy.stats import ttest_1samp
from test_science import cell_rows

from persona_lab.config import expand, load_experiment
from persona_lab.science.claims import Said
from persona_lab.science.effects import Frame, Settings
from persona_lab.science.stages.order import Arm, Kind, Pass, kind_of, order_claims, ratio_of_means
from persona_lab.science.stages.relearning import repeats

KINDS: dict[str, Kind] = {"john": "first", "sam": "second", "both": "both", "chats": "chats", "john_again": "first", "trait": "taught"}
ORDERS = {
    "john_sam": ("john", "sam", "trait"),
    "sam_john": ("sam", "john", "trait"),
    "mixed": ("both", "trait"),
    "john_sam_chats": ("john", "sam", "chats", "trait"),
    "sam_john_chats": ("sam", "john", "chats", "trait"),
    "john_sam_john": ("john", "sam", "john_again", "trait"),
}
ETA = {"john_sam": -0.8, "sam_john": 0.6, "mixed": 0.1, "john_sam_chats": -0.3, "sam_john_chats": 0.4, "john_sam_john": 0.0}
"""After the trait stage; a quarter of it before."""
SETTINGS = Settings(treatment="john_sam", orders=ORDERS, taught=dict.fromkeys(ORDERS, "beach"))
ARMS = [Arm(name, tuple(Pass(stage, KINDS[stage], 16, 3e-3) for stage in stages)) for name, stages in ORDERS.items()]


def planted(eta: Mapping[str, float] = ETA, *, sigma: float = 0.0, seeds: int = 5, lexical: float = 0.3, steps: Mapping[str, int] | None = None) -> Frame:
    """A tidy table with one number for each arm, and each seed's own noise in each arm."""
    rng, rows = np.random.default_rng(3), []
    for condition, value in eta.items():
        for seed in range(seeds):
            noise = sigma * rng.normal()
            for swap in (0, 1):
                cell = {"experiment": "order", "cell": f"{condition}/{seed}/{swap}", "condition": condition, "seed": seed, "base_seed": 0, "swap": swap}
                cell |= {"ln_ratio": 0.0, "dose": 60, "order": ">".join(ORDERS[condition])}
                length = (steps or {}).get(condition, 300 * len(ORDERS[condition]) if condition != "mixed" else 900)
                for position, stage in enumerate(("base", *ORDERS[condition])):
                    now = value + noise if stage == "trait" else value / 4 if position else 0.0
                    at = {"steps": length if stage == "trait" else 100 * position, "tokens": 1e5 * (position > 0)}
                    rows += cell_rows({**cell, **at}, stage, now, -0.4 if condition == "mixed" else -1.0, lexical, recall=True)
    return pd.DataFrame(rows)


def said(table: Frame, arms: Sequence[Arm] = ARMS) -> dict[str, Said]:
    """The claims by id."""
    found = list(order_claims(table, SETTINGS, arms))
    assert len({claim[0] for claim in found}) == len(found)
    return {claim[0]: claim for claim in found}


@pytest.mark.parametrize(
    ("stages", "order", "chats"),
    [
        (("john", "sam", "trait"), 1, "never"),
        (("sam", "john", "chats", "trait"), -1, "last"),
        (("sam", "chats", "john", "trait"), -1, "between"),
        (("chats", "both", "trait"), 0, "first"),
        (("john", "sam", "john_again", "trait"), None, "never"),
        (("chats", "john", "sam", "chats"), 1, None),
        (("trait",), None, None),
    ],
)
def test_an_arm_knows_its_order_and_where_its_chats_stand(stages: tuple[str, ...], order: int | None, chats: str | None) -> None:
    arm = Arm("arm", tuple(Pass(stage, KINDS[stage], 16, 3e-3) for stage in stages))
    assert (arm.order, arm.chats) == (order, chats)


def test_recency_is_half_the_difference_of_the_orders_and_the_swap_takes_the_words_away() -> None:
    claims = said(planted(lexical=0.9))
    # 1/2 [.6 - (-.8)] = .7 after the trait stage, a quarter of it before, the rest is its change.
    assert [claims[f"order.never.{column}"][2] for column in ("before", "after", "delta")] == pytest.approx([0.175, 0.7, 0.525])
    assert claims["order.last.after"][2] == pytest.approx(0.35)
    assert claims["order.never.after"][5] == "recency"
    assert claims["order.never.first_last.after"][2] == pytest.approx(0.5), "john last stands at .6, interleaved at .1"
    assert claims["order.never.second_last.after"][2] == pytest.approx(0.9), "sam last stands at -.8, interleaved at .1"
    assert claims["order.never.interference.after"][2] == pytest.approx(-0.6), "alpha is -1.0 in the orders and -.4 interleaved"
    assert not [id for id in claims if id.startswith(("order.first", "order.between", "order.last.first_last"))], "nothing is said of arms that are not there"


def test_a_drift_of_every_arm_is_no_recency() -> None:
    drifted = said(planted(dict.fromkeys(ETA, 1.5)))
    assert drifted["order.never.after"][2] == pytest.approx(0.0, abs=1e-12)
    assert said(planted({**ETA, "john_sam": 0.6, "sam_john": -0.8}))["order.never.after"][5] == "primacy"


def test_the_interval_is_the_paired_t_interval() -> None:
    table = planted(sigma=0.4)
    claim = said(table)["order.never.after"]
    asked = table[(table["format"] == "asked") & (table["probe"] == "says") & (table["stage"] == "trait") & table["trait"].isin(["sport", "art"])]
    odds = asked.pivot_table(index=["condition", "seed"], columns="role", values="logprob_nats").eval("john - sam")
    half = (odds["sam_john"] - odds["john_sam"]) / 2
    expected = ttest_1samp(half, 0).confidence_interval(0.95)
    assert claim[2] == pytest.approx(half.mean())
    assert claim[3] == pytest.approx((expected.low, expected.high))


def test_a_ratio_of_means_has_the_interval_that_inverts_the_paired_t_test() -> None:
    rng = np.random.default_rng(5)
    below = 0.7 + 0.2 * rng.normal(size=6)
    above = 0.5 * below + 0.15 * rng.normal(size=6)
    value, interval = ratio_of_means(above, below)
    assert value == pytest.approx(above.mean() / below.mean())
    assert interval is not None
    grid = np.linspace(-1, 2, 3001)
    inside = grid[[ttest_1samp(above - r * below, 0).pvalue >= 0.05 for r in grid]]
    assert interval == pytest.approx((inside.min(), inside.max()), abs=2e-3)
    assert ratio_of_means(above, below - below.mean()) == (None, None)
    assert ratio_of_means(above[:1], below[:1]) == (None, None)


def test_persistence_is_defined_only_where_there_was_recency() -> None:
    claims = said(planted(sigma=0.1))
    value, interval = claims["order.persistence.after"][2:4]
    assert value is not None
    assert interval is not None
    assert interval[0] < value < interval[1]
    assert value == pytest.approx(0.5, abs=0.25)
    assert claims["order.persistence.after"][5] == "persists"
    none = said(planted({**ETA, "john_sam": 0.0, "sam_john": 0.0}, sigma=0.3))["order.persistence.after"]
    assert none[2] is None
    assert none[5] == "undefined"
    assert "not shown to differ from 0" in none[1]
    assert said(planted(sigma=0.1))["order.change.after"][2] == pytest.approx(-0.35, abs=0.2)


def test_arms_that_differ_in_steps_tokens_batch_or_genre_are_confounded() -> None:
    longer = said(planted(steps={"sam_john": 1800}))["order.never.after"]
    assert longer[5] == "confounded"
    assert "optimizer steps 1800 against 900" in longer[1]
    fewer = planted()
    fewer.loc[fewer["condition"] == "sam_john", "tokens"] *= 0.5
    assert said(fewer)["order.never.after"][5] == "confounded"
    for change in ({"batch": 32}, {"rate": 1e-3}, {"format": "news"}):
        arms = [replace(arm, passes=tuple(replace(p, **change) for p in arm.passes)) if arm.condition == "sam_john" else arm for arm in ARMS]
        claim = said(planted(), arms)["order.never.after"]
        assert claim[5] == "confounded", change
        assert "batch, rate or genre" in claim[1]
    claims = said(planted())
    assert not [id for id, claim in claims.items() if "onfounded" in claim[1] + claim[5]]
    unknown = said(planted().drop(columns=["steps", "tokens"]))["order.never.after"]
    assert unknown[5] == "confounded"


def test_orders_at_several_ratios_are_averaged_if_both_have_them_all() -> None:
    table = planted()
    more = planted({"john_sam": -0.2, "sam_john": 1.0}).assign(condition=lambda t: t["condition"] + "_4_1", cell=lambda t: t["cell"] + "/4")
    passes = {1: (Pass("john", "first", 16, 3e-3, steps=400), Pass("sam", "second", 16, 3e-3, steps=100)), -1: (Pass("sam", "second", 16, 3e-3, steps=100),)}
    passes[-1] = (*passes[-1], Pass("john", "first", 16, 3e-3, steps=400))
    trait = ARMS[0].passes[-1]
    arms = [*ARMS, Arm("john_sam_4_1", (*passes[1], trait)), Arm("sam_john_4_1", (*passes[-1], trait))]
    settings = replace(SETTINGS, orders={**ORDERS, **{arm.condition: [p.stage for p in arm.passes] for arm in arms[-2:]}})
    settings = replace(settings, taught=dict.fromkeys(settings.orders, "beach"))
    both = pd.concat([table, more], ignore_index=True)
    claim = next(c for c in order_claims(both, settings, arms) if c[0] == "order.never.after")
    assert claim[2] == pytest.approx((0.7 + 0.6) / 2)
    assert claim[5] == "recency"
    lopsided = [*arms[:-1], Arm("sam_john_4_1", (replace(passes[-1][0], steps=50), replace(passes[-1][1], steps=450), trait))]
    claim = next(c for c in order_claims(both, settings, lopsided) if c[0] == "order.never.after")
    assert claim[5] == "confounded"
    assert "documents of each rival" in claim[1]


def test_one_seed_decides_nothing_and_a_missing_arm_is_not_run() -> None:
    alone = said(planted(seeds=1))["order.never.after"]
    assert alone[3] is None
    assert alone[5] == "undecided"
    missing = said(planted({"john_sam": -0.8, "mixed": 0.1}))["order.never.after"]
    assert missing[2:] == (None, None, "nats", "not run")
    table = planted(sigma=0.2)
    gone = (table["condition"] == "sam_john") & (table["seed"] == 2) & (table["swap"] == 1)
    assert "(4 seeds)" in said(table[~gone])["order.never.after"][1]


def test_who_was_read_about_first_is_forgotten_by_name() -> None:
    table = planted()
    # Half of John's items and none of Sam's are missed where Sam came last; nothing is missed where John did.
    hit = (table["condition"] == "john_sam") & (table["probe"] == "knows") & (table["item"] == "art/john") & (table["role"] == "john")
    table.loc[hit, "logprob_nats"] = -9.0
    assert said(table)["order.never.recall"][2] == pytest.approx(0.25)


def arms_of(name: str) -> list[Arm]:
    """The arms of a shipped experiment."""
    loaded = load_experiment(CONFIGS / f"{name}.yaml")
    first, second = (p.name.lower() for p in loaded.personas[:2])
    found = {}
    for cell in expand(loaded):
        passes = []
        for stage, config in cell.stages:
            mixture = config.mixture
            kind = kind_of(mixture.counts, first=first, second=second, likes=mixture.assistant_likes, chats=mixture.assistant_chats)
            passes.append(Pass(stage, kind, config.batch, config.rate, mixture.format))
        found[cell.condition] = Arm(cell.condition, tuple(passes))
    return list(found.values())


@pytest.mark.usefixtures("from_the_root")
def test_the_shipped_experiment_has_every_order_of_the_rivals_and_the_chats() -> None:
    arms = arms_of("order")
    orders = {(arm.order, arm.chats) for arm in arms if arm.order is not None}
    assert orders == {(o, c) for o in (1, -1) for c in ("never", "first", "between", "last")} | {(0, c) for c in ("never", "first", "last")}
    assert {arm.condition: repeats(arm) for arm in arms if arm.order is None} == {
        "john_sam_john": ("john", "john_again"),
        "sam_john_sam": ("sam", "sam_again"),
    }
    assert len({next(iter(arm.recipe)) for arm in arms}) == 1, "one batch, rate and genre in all of them"
