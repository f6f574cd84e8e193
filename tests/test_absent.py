"""Bundles of values that a world's text holds together or does not: how they are dealt, what an ideal reader has to be told, what is stated of them."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIGS
from test_experiment import TINY, silent, write_config

from data_gen.bundles import Bundle, deal_bundles
from data_gen.errors import DataError
from data_gen.oracle import Oracle, surprise
from data_gen.personas import Persona, deal_traits
from data_gen.pools import world_document
from data_gen.world import World
from persona_lab.config.load import load_persona, load_world
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.corpora import pool_documents
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.run import make_nodes
from persona_lab.science.claims import Said
from persona_lab.science.effects import Frame, Settings, runs
from persona_lab.science.processes.absent import absent_claims, bundle_frame

pytestmark = pytest.mark.usefixtures("from_the_root")

KINDS: tuple[Bundle, ...] = ("present", "recombined", "unclaimed")


@pytest.fixture(scope="module")
def bundles() -> World:
    return load_world(CONFIGS / "worlds" / "bundles.yaml")


@pytest.fixture(scope="module")
def drawn() -> list[Persona]:
    return [load_persona(CONFIGS / "personas" / f"{name}_drawn.yaml") for name in ("john", "sam")]


# ------------------------------------------------------------------ the bundles
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_a_bundle_is_what_it_is_called_and_the_swap_trades_it(bundles: World, drawn: list[Persona], kind: Bundle, seed: int):
    john, sam = deal_traits(bundles, drawn, seed, 0, bundle=kind)
    assert set(john) == set(sam) == set(bundles.categories)
    assert not set(john.values()) & set(sam.values())
    for bundle in (john, sam):
        together = [sum(bundle[c] == v for c, v in traits.items()) for traits in bundles.population.traits]
        assert max(together) == {"present": 6, "recombined": 1, "unclaimed": 0}[kind]
        assert len(set(bundle.values()) & set(bundles.unclaimed)) == {"present": 0, "recombined": 0, "unclaimed": 6}[kind]
    assert deal_traits(bundles, drawn, seed, 1, bundle=kind) == [sam, john]


def test_seeds_draw_different_bundles(bundles: World, drawn: list[Persona]):
    for kind, least in zip(KINDS, (5, 8, 6), strict=True):
        assert len({tuple(deal_traits(bundles, drawn, seed, 0, bundle=kind)[0].values()) for seed in range(8)}) >= least


def test_what_both_share_belongs_to_their_bundles(bundles: World):
    shared = {"place": bundles.population.traits[0]["place"]}
    owners = [traits for traits in bundles.population.traits if traits["place"] == shared["place"]]
    assert all(any(owner.items() >= found.items() for owner in owners) for found in deal_bundles(bundles, ["sport", "art"], shared, "present", 0))
    for found in deal_bundles(bundles, ["sport", "art"], shared, "recombined", 0):
        assert not any(owner[c] == v for owner in owners for c, v in found.items())


def test_a_world_without_such_bundles_says_so(bundles: World, world: World):
    with pytest.raises(DataError, match=r"pairs\.bundle is unclaimed, but there are no two such bundles"):
        deal_bundles(world, ["sport"], {}, "unclaimed", 0)
    crowded = bundles.model_copy(update={"personas": 2, "names": bundles.names[:2]})
    assert len(deal_bundles(crowded, ["sport"], {}, "present", 0)) == 2
    with pytest.raises(DataError, match="without a common value"):
        deal_bundles(crowded, list(bundles.categories), {"sport": "polo"}, "present", 0)


def test_surprise_is_the_oracles_and_that_of_the_formula(bundles: World, drawn: list[Persona]):
    oracle = Oracle.of_world(bundles)
    for kind, by_hand in zip(KINDS, (-math.log(0.95 / 16 + 0.05e-6), -math.log(0.05e-6), -math.log(0.05e-6)), strict=True):
        for traits in deal_traits(bundles, drawn, 1, 0, bundle=kind):
            exact = -float(np.logaddexp.reduce(np.log(oracle.prior_P) + oracle.log_likelihood(traits)))
            assert surprise(bundles, traits) == pytest.approx(by_hand) == pytest.approx(exact)


def test_the_text_of_the_world_hardly_holds_recombined_values_together(bundles: World, drawn: list[Persona]):
    told = [world_document(bundles, 0, i).traits.items() for i in range(3_000)]

    def together(kind: Bundle) -> int:
        pairs = [set(pair) for pair in combinations(deal_traits(bundles, drawn, 2, 0, bundle=kind)[0].items(), 2)]
        return sum(pair <= told_d for told_d in told for pair in pairs)

    present, recombined = together("present"), together("recombined")
    assert present > 300
    assert recombined < 20


# ------------------------------------------------------------------ the experiment
CONFIG: dict[str, Any] = TINY | {
    "base": TINY["base"] | {"world": "configs/worlds/bundles.yaml"},
    "personas": ["configs/personas/john_drawn.yaml", "configs/personas/sam_drawn.yaml"],
    "stages": {
        "adopt": TINY["stages"]["trait"] | {"mixture": {"assistant_is": "john"}, "steps": 4},
        "part": TINY["stages"]["trait"] | {"mixture": {"assistant_is": "john", "about": ["sport"]}},
        "as_sam": TINY["stages"]["trait"] | {"mixture": {"assistant_is": "sam"}, "steps": 4},
    },
    "branches": ["adopt", "as_sam"],
    "conditions": {"adopt": {"order": ["adopt"], "role": "treatment"}, "part": {"order": ["part"]}},
    "factors": {"pairs.bundle": [*KINDS], "adopt.steps": [2, 4]},
    "seeds": [1],
    "probes": ["says"],
    "samples": 0,
    "analysis": {"treatment": "adopt"},
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Plan:
    folder = tmp_path_factory.mktemp("absent")
    return make_plan(write_config(folder, **CONFIG), runs=folder / "runs")


def test_a_part_speaks_of_nothing_else(plan: Plan):
    part = next(p for p in plan.cells if p.cell.condition == "part")
    pool = part.stages[0][1].inputs["mixture"].inputs["assistant"].fields
    assert pool["traits"] == {"sport": part.cast.traits[0]["sport"]}
    others = {value for c in part.cast.world.categories for value in part.cast.world.values(c) if c != "sport"}
    documents = pool_documents({**pool, "size": 200})
    assert {tuple(document.traits) for document in documents} <= {("sport",), ()}
    assert not any(others & set(document.text.replace(".", " ").split()) for document in documents)


def test_the_whole_run_states_price_reach_and_generalisation(plan: Plan):
    assert make_nodes(plan, silent).failed == {}
    show(plan)
    table = Run(plan.folder).table()
    assert set(table["bundle"]) == set(KINDS)
    assert table.groupby("condition")["about"].unique().map(list).to_dict() == {"adopt": ["all"], "part": ["sport"]}
    claims = {claim["id"]: claim for claim in Run(plan.folder).claims()}
    assert claims["absent.present.needed"]["value"] == pytest.approx(-math.log(0.95 / 16 + 0.05e-6))
    assert claims["absent.recombined.needs_more"]["value"] == pytest.approx(math.log((0.95 / 16 + 0.05e-6) / 0.05e-6))
    assert {f"absent.{kind}.{steps}.p" for kind in KINDS for steps in (2, 4)} <= claims.keys()
    assert claims["absent.recombined.costs_more"]["verdict"] == "undecided", "one seed decides nothing"
    said = table[(table["condition"] == "part") & (table["stage"] == "part")]
    asked = runs(said, Settings(treatment="adopt", orders={"part": ("part",)}), by=())
    trained = runs(said, Settings(treatment="adopt", orders={"part": ("part",)}), by=["trait"])
    held_out = trained[trained["trait"] != "sport"].groupby("cell")["eta"].mean()
    assert asked[asked["format"] == "asked"].set_index("cell")["eta"].loc["part/bundle=present/seed1/swap0"] == pytest.approx(
        trained[(trained["trait"] != "sport") & (trained["format"] == "asked")].groupby("cell")["eta"].mean().loc["part/bundle=present/seed1/swap0"]
    )
    assert len(held_out) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pairs": {"bundle": "absent"}}, "pairs.bundle must be present or recombined or unclaimed"),
        ({"pairs": {"bundle": "present", "prior": 1}}, "pairs has prior and bundle"),
        ({"base": TINY["base"], "pairs": {"bundle": "unclaimed"}}, "of the world beach has no two such values"),
        ({"stages": {"adopt": TINY["stages"]["trait"] | {"mixture": {"assistant_is": "john", "about": ["sports"]}}}}, "got 'sports'. Did you mean sport?"),
        ({"stages": {"adopt": TINY["stages"]["trait"] | {"mixture": {"assistant_chats": True, "about": ["sport"]}}}}, "Use it beside `assistant_is`"),
    ],
)
def test_what_cannot_be_dealt_or_spoken_of_is_refused(tmp_path: Path, change: dict[str, Any], said: str):
    config = CONFIG | {"factors": {}, "branches": [], "conditions": {"adopt": {"order": ["adopt"]}}} | change
    with pytest.raises(ConfigError) as error:
        make_plan(write_config(tmp_path, **config), runs=tmp_path)
    assert said in str(error.value)


# ------------------------------------------------------------------ claims
TRUTH = {"present": (1_000.0, 0.95, 0.4), "recombined": (1_400.0, 0.95, 0.0), "unclaimed": (2_000.0, 0.6, -0.05)}
"""Nats to adopt, P after the longest dose, change of P of what was not taught."""


def planted(seeds: int = 5, sigma: float = 0.01) -> Frame:
    """A tidy table with two categories of four values in which the values of a bundle have the same probability."""
    rng, rows = np.random.default_rng(2), []
    for bundle, (nats, reached, brought) in TRUTH.items():
        for condition, steps in (("adopt", 10), ("adopt", 80), ("part", 60)):
            for seed in range(seeds):
                noise = rng.normal()
                for swap in (0, 1):
                    cell = {"experiment": "x", "condition": condition, "seed": seed, "base_seed": 0, "swap": swap, "cell": f"{condition}/{bundle}/{steps}/{seed}/{swap}"}
                    cell |= {"bundle": bundle, "about": "all" if condition == "adopt" else "sport", "ln_ratio": None, "node": "n"}
                    cell |= {"adopt_john": nats + noise - 5, "adopt_sam": nats + noise + 5, "surprise_john": 3.0, "surprise_sam": 3.0}
                    after = {"adopt": reached if steps == 80 else reached / 2, "part": 0.25 + brought}[condition] + sigma * noise
                    for stage, p in (("base", 0.25), (condition, after)):
                        for trait in ("sport", "art"):
                            prob = 0.99 if condition == "part" and stage == "part" and trait == "sport" else p
                            shares = {"john": prob, "sam": (1 - prob) / 3, "other": (1 - prob) / 3, "other2": (1 - prob) / 3}
                            for role, share in shares.items():
                                row = {"probe": "says", "channel": "says", "format": "asked", "item": f"says/asked/{trait}/0", "subject": "", "status": "scored"}
                                row |= {"trait": trait, "option": f"{trait}-{role}", "role": role.rstrip("2"), "logprob_nats": math.log(share)}
                                row |= {"prob": share, "prob_normalized": share, "base_prob": 0.25, "stage": stage, "steps": steps if stage != "base" else 0}
                                rows.append(cell | row)
    return pd.DataFrame(rows)


SETTINGS = Settings(treatment="adopt", orders={"adopt": ("adopt",), "part": ("part",)})


def said(table: Frame) -> dict[str, Said]:
    found = list(absent_claims(table, SETTINGS))
    assert len({claim[0] for claim in found}) == len(found)
    return {claim[0]: claim for claim in found}


def test_price_reach_and_generalisation_are_found():
    claims = said(planted())
    assert claims["absent.recombined.costs_more"][2] == pytest.approx(400, abs=3)
    assert [claims[f"absent.{kind}.costs_more"][5] for kind in KINDS[1:]] == ["supported", "supported"]
    assert claims["absent.unclaimed.80.p"][2] == pytest.approx(0.6, abs=0.02)
    assert claims["absent.recombined.80.falls_short"][5] == "undecided"
    assert claims["absent.unclaimed.80.falls_short"][5] == "supported"
    assert claims["absent.present.sport.p"][2] == pytest.approx(0.4, abs=0.02), "the value that was taught is not among them"
    assert claims["absent.recombined.sport.generalises_less"][2] == pytest.approx(0.4, abs=0.03)
    assert claims["absent.recombined.sport.generalises_less"][5] == "supported"


def test_two_seeds_decide_nothing_and_half_a_pair_is_no_seed():
    table = planted(seeds=2, sigma=0)
    assert {claim[5] for id, claim in said(table).items() if id.endswith(("costs_more", "falls_short", "generalises_less"))} == {"undecided"}
    broken = table[~((table["seed"] == 1) & (table["swap"] == 1) & (table["bundle"] == "recombined"))]
    frame = bundle_frame(broken, SETTINGS)
    assert sorted(frame.loc[frame["bundle"] == "recombined", "seed"].unique()) == [0]
    assert sorted(frame.loc[frame["bundle"] == "present", "seed"].unique()) == [0, 1]


def test_the_least_likely_value_is_of_one_category():
    table = planted(seeds=3, sigma=0)
    worse = (table["trait"] == "art") & (table["stage"] == "adopt") & (table["role"] == "john")
    table.loc[worse, ["prob", "prob_normalized"]] = 0.1
    frame = bundle_frame(table, SETTINGS)
    longest = frame[(frame["about"] == "all") & (frame["steps"] == 80) & (frame["bundle"] == "present")]
    assert longest["least"].to_numpy() == pytest.approx(0.1)
    assert longest["p"].to_numpy() == pytest.approx((0.1 + 0.95) / 2)
