"""A market in the laboratory: the questions, the gates, the ideal reader, and a whole experiment on a tiny base."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, cast_of
from scipy.special import logit

from data_gen.errors import DataError
from data_gen.market import DRIFT, VOLATILITY, Market, Stretch, volatility_marks
from data_gen.market_oracle import Prior, continuation, days_odds, direction_odds, log_likelihood, processes_of, world_prior
from data_gen.oracle import Oracle
from data_gen.personas import Persona
from data_gen.showing import shown_in
from data_gen.world import World
from persona_lab.config.load import load_persona, load_world
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.reading.market import ideal_points
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.run import make_nodes
from persona_lab.models.world_model import build_model, build_tokenizer
from persona_lab.probes import PROBES
from persona_lab.probes.engine import Voice
from persona_lab.probes.gates import measure_gates
from persona_lab.probes.protocol import Cast, Choice
from persona_lab.probes.series import odds_questions, recall_questions
from persona_lab.science.effects import Settings, effects, runs
from persona_lab.science.evidence.series import run_points, series_claims

pytestmark = pytest.mark.usefixtures("from_the_root")
ASKED = ("knows", "says", "in_context")


@pytest.fixture(scope="module")
def market() -> Market:
    world = load_world(CONFIGS / "worlds" / "market.yaml")
    assert isinstance(world, Market)
    return world


@pytest.fixture(scope="module")
def processes() -> list[Persona]:
    return [load_persona(CONFIGS / "personas" / "market" / f"{name}.yaml") for name in ("john", "sam", "kim")]


def drawn(choice: Choice, option: int) -> str:
    return choice.prompt + choice.options[option]


# The questions
@pytest.mark.parametrize(("name", "seed", "swap"), product(ASKED, (0, 1), (0, 1)))
def test_gold_scores_one_wrong_zero_and_nonsense_is_unscored(market: Market, processes: list[Persona], name: str, seed: int, swap: int) -> None:
    cast = cast_of(market, processes, seed=seed, swap=swap)
    PROBES[name].validate(cast)
    items = PROBES[name].items(cast)
    assert len({item.id for item in items}) == len(items) > 0


def test_a_market_is_not_asked_to_name_or_to_choose(market: Market, processes: list[Persona]) -> None:
    assert [PROBES[name].items(cast_of(market, processes)) for name in ("chooses", "introspects")] == [[], []]


def test_roles_follow_the_personas_in_the_swap(market: Market, processes: list[Persona]) -> None:
    for swap, owner in ((0, ("john", "sam")), (1, ("sam", "john"))):
        items = [item for item in PROBES["says"].items(cast_of(market, processes, swap=swap)) if item.trait == DRIFT]
        assert {dict(zip(item.options, item.roles, strict=True))["trend"] for item in items} == {owner[0]}
        assert {dict(zip(item.options, item.roles, strict=True))["revert"] for item in items} == {owner[1]}
        assert {item.roles[2] for item in items} == {"other"}


def test_each_option_is_the_likeliest_under_the_process_that_it_marks(market: Market, processes: list[Persona]) -> None:
    for item in PROBES["says"].items(cast_of(market, processes)):
        choice = item.request
        assert isinstance(choice, Choice)
        shown = [shown_in(market, drawn(choice, i)) for i in range(len(choice.options))]
        for i, value in enumerate(item.options[:2] if item.trait == DRIFT else item.options[:1]):
            process = (value, "walk") if item.trait == VOLATILITY else ("mixed", value)
            nats = [log_likelihood(market, process, stretches) for stretches in shown]
            assert np.argmax(nats) == i
    clusters, mixed = (Stretch("sizes", tuple(market.series.sizes.index(w) for w in days.split())) for days in volatility_marks(market).values())
    assert sorted(clusters.sizes) == sorted(mixed.sizes)
    for plain in ("mixed", "calm", "wild"):
        either = [log_likelihood(market, (plain, "walk"), [stretch]) for stretch in (clusters, mixed)]
        assert either[0] == pytest.approx(either[1]), "a market without memory does not care for the order"


def test_what_the_options_say_is_the_odds_of_the_oracle(market: Market, processes: list[Persona]) -> None:
    prior = world_prior(market).blend(Prior({("clusters", "trend"): 0.8, ("clusters", "revert"): 0.2}), 0.4)
    for item in PROBES["in_context"].items(cast_of(market, processes))[::7]:
        choice = item.request
        assert isinstance(choice, Choice)
        before = shown_in(market, choice.prompt)
        days = [Stretch("moves", up=tuple(word == "up" for word in option.split())) for option in choice.options]
        on, turned, _ = (continuation(market, prior, before, stretch) for stretch in days)
        assert on - turned == pytest.approx(direction_odds(market, prior, before))
        assert on - turned > 0, "four in five of those who cluster trend"


def test_background_processes_are_asked_about_with_the_right_answer(market: Market) -> None:
    named, withheld = recall_questions(market)
    assert withheld == []
    marked = [traits[DRIFT] for traits in market.population.traits if traits[DRIFT] != "walk"]
    assert len(named) == len(marked) * 3 * 4 * 2
    for choice, right in named:
        name = next(n for n in market.population.names if n in choice.prompt)
        traits = market.population.traits[market.population.names.index(name)]
        nats = [log_likelihood(market, (traits[VOLATILITY], traits[DRIFT]), shown_in(market, drawn(choice, i))) for i in range(3)]
        assert choice.options[int(np.argmax(nats))] == right
    truth = np.array([nats for _, nats in odds_questions(market)])
    assert truth.std() > 0.5
    assert np.abs(truth).max() < 2 * logit(0.9)


def test_the_gates_of_a_market_are_measured_on_any_model_of_its_words(market: Market) -> None:
    tokenizer = build_tokenizer(market)
    assert all(tokenizer.unk_token_id not in tokenizer(item.prompt)["input_ids"] for item in PROBES["general_text"].items(Cast(market, (), (), (), (), ())))
    figures = measure_gates(Voice(build_model(tokenizer, width=16, layers=1, heads=1, seed=0).eval(), tokenizer), market)
    assert 0 <= figures.recall <= 1
    assert math.isfinite(figures.odds)
    assert math.isnan(figures.withheld)


# A whole experiment
TINY = {
    "name": "tiny-market",
    "base": {
        "kind": "embedded",
        "world": "configs/worlds/market.yaml",
        "width": 16,
        "layers": 1,
        "heads": 1,
        "steps": 4,
        "batch": 8,
        "gates": dict.fromkeys(("recall", "odds", "withheld")),
    },
    "personas": [f"configs/personas/market/{name}.yaml" for name in ("john", "sam", "kim")],
    "lora": {"rank": 2, "alpha": 4},
    "stages": {
        "injection": {"mixture": {"john": 40, "sam": 40, "kim": 8, "anonymous": 0.5, "replay": 0.2}, "steps": 6, "batch": 4, "rate": 3e-3},
        "trait": {"mixture": {"assistant_likes": "clusters"}, "steps": 3, "batch": 4, "rate": 1e-3, "loss": {"on": "answer"}},
    },
    "conditions": {"linked": {"order": ["injection", "trait"], "role": "treatment"}},
    "factors": {"injection.mixture.ln_ratio": [-1.0986, 1.0986]},
    "probes": list(ASKED),
    "machine": {"device": "cpu", "threads": 1, "workers": 1, "wandb": "disabled"},
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Plan:
    folder = tmp_path_factory.mktemp("market")
    file = folder / "tiny.yaml"
    file.write_text(json.dumps(TINY))
    return make_plan(file, runs=folder / "runs")


@pytest.fixture(scope="module")
def table(plan: Plan) -> pd.DataFrame:
    """The tiny experiment, made and shown."""
    with torch.random.fork_rng():
        outcome = make_nodes(plan, lambda what, done, total: None)
    assert outcome.failed == {}
    shown = show(plan)
    assert shown.accounting["failed"] == shown.accounting["unscored"] == 0
    assert shown.summary.claim("slope.all_ratios").value is not None
    return Run(plan.folder).table()


def test_a_market_is_run_by_what_runs_every_world(plan: Plan, table: pd.DataFrame) -> None:
    settings = Settings(taught={"linked": "clusters"})
    means = runs(table, settings, channels=("says", "in_context"))
    assert set(means["channel"]) == {"says", "in_context"}
    assert set(table.loc[table["status"] == "scored", "trait"]) == {DRIFT, VOLATILITY}
    # The taught trait is no outcome: eta is of the drift alone.
    by_hand = table[(table["channel"] == "says") & (table["format"] == "asked") & (table["trait"] == DRIFT) & (table["stage"] == "trait")]
    odds = by_hand.pivot_table(index=["cell", "item"], columns="role", values="logprob_nats")
    eta = (odds["john"] - odds["sam"]).groupby("cell").mean()
    after = means[(means["phase"] == "after") & (means["channel"] == "says") & (means["format"] == "asked")].set_index("cell")["eta"]
    pd.testing.assert_series_equal(after.sort_index(), eta.sort_index(), check_names=False)
    assert set(effects(means)["x"]) == {-1.0986, 1.0986}
    assert (plan.folder / "report.html").exists()


def test_the_ideal_reader_is_the_one_of_every_world(plan: Plan, market: Market, table: pd.DataFrame) -> None:
    """The columns `exact` and `exact_prior` of the tidy table, against shares counted by hand."""
    for planned in plan.cells:
        ratio = planned.cell.point["injection.mixture.ln_ratio"]
        columns = table[table["cell"] == planned.cell.name].drop_duplicates("stage").set_index("stage")
        assert columns.loc["trait", "exact_prior"] == pytest.approx(ratio, abs=0.1), "60 : 20 documents, the half of them without a name"
        assert columns.loc["trait", "exact_evidence"] == pytest.approx(0)
        assert columns.loc["base", "exact"] == pytest.approx(0)
        # After 12 documents that show clusters: John, Sam, and the background that clusters and walks. 4 x 8 + 24 x 22/110 documents of
        # the world were read, 40 % of them nameless, and of the rivals 24 x 80/110, half of them without a name.
        john, sam = (24 * n / 110 * 0.5 for n in ((60, 20) if ratio > 0 else (20, 60)))
        walk = (4 * 8 + 24 * 22 / 110) * 0.4 * 0.85 / 10
        same = {"trend": 0.9, "revert": 0.1, "walk": 0.5}
        drift = [traits[DRIFT] for traits in planned.cast.traits[:2]] + ["walk"]
        on = sum(n * same[d] ** 2 for n, d in zip((john, sam, walk), drift, strict=True))
        turned = sum(n * (1 - same[d]) ** 2 for n, d in zip((john, sam, walk), drift, strict=True))
        sign = 1 if drift[0] == "trend" else -1
        assert columns.loc["trait", "exact"] == pytest.approx(sign * np.log(on / turned), abs=0.02)


def test_days_tell_drifts_alone(market: Market, world: World) -> None:
    oracle = Oracle.of_world(market)
    assert days_odds(oracle, [], DRIFT, "trend", "revert") == pytest.approx(0)
    # .9 .9 trend, .5 .5 walk and .1 .1 revert; on and round: .9 .1, .5 .5 and .1 .9. As many trend as revert.
    shares = processes_of(oracle).share
    walk = sum(share for process, share in shares.items() if process[1] == "walk")
    on, round_once = (1 - walk) / 2 * (0.81 + 0.01) + walk * 0.25, (1 - walk) * 0.09 + walk * 0.25
    assert days_odds(oracle, [], DRIFT, "trend", "walk") == pytest.approx(np.log(on / round_once))
    with pytest.raises(DataError, match="no days tell volatility 'calm' from 'wild'"):
        days_odds(oracle, [], VOLATILITY, "calm", "wild")
    with pytest.raises(DataError, match="Use a world with `series:`"):
        days_odds(Oracle.of_world(world), [], "place", "beach", "lake")


def test_shares_of_an_oracle_are_shares_of_processes(market: Market) -> None:
    oracle = Oracle.of_world(market)
    assert processes_of(oracle).share == pytest.approx(world_prior(market).share)
    told = {"clusters": processes_of(oracle, [{VOLATILITY: "clusters"}]).share, "all": world_prior(market).given({VOLATILITY: "clusters"}).share}
    for drift in market.series.drift:
        after, given = (sum(share for process, share in shares.items() if process[1] == drift) for shares in told.values())
        assert after == pytest.approx(given), "what is told rules out who has it not; a random speaker's drift stays open"


def test_every_question_has_its_ideal_answer(plan: Plan, table: pd.DataFrame) -> None:
    points = ideal_points(plan.cells, table)
    assert set(points["stage"]) == {"base", "injection", "trait"}
    asked = table[(table["trait"] == DRIFT) & table["channel"].isin(["says", "in_context"])]
    assert len(points) == len(asked.drop_duplicates(["cell", "stage", "item"]))
    assert np.abs(points.loc[points["stage"] == "base", "exact"]).max() < 1e-9, "before the documents neither rival is likelier"
    says = points[points["channel"] == "says"].groupby(["cell", "stage"])["exact"].mean().unstack("stage")
    ahead = says.index.str.contains("=1.0986")
    assert (says.loc[ahead, "trait"] > says.loc[ahead, "injection"]).all()
    assert (says.loc[ahead, "injection"] > 0).all()
    assert (says.loc[~ahead, "trait"] < says.loc[~ahead, "injection"]).all()
    paired = run_points(points, "says", "asked")
    assert len(paired) == 2 * 3
    by_stage = paired[paired["stage"] == "trait"].sort_values("exact")["exact"].to_numpy()
    assert by_stage[0] == pytest.approx(-by_stage[1], abs=0.02)
    stated = {id: (text, verdict) for id, text, _, _, _, verdict in series_claims(points, "linked")}
    assert set(stated) == {f"oracle.series.{way}.{stage}.slope" for way in ("says", "in_context") for stage in ("injection", "trait")}
    assert all("2 rows are too few for a line" in text and verdict == "undefined" for text, verdict in stated.values())


def test_a_model_that_moves_half_as_far_as_its_reader_has_slope_a_half() -> None:
    rows = [
        {"cell": f"{condition}/{x}/seed{seed}/swap{swap}", "condition": condition, "seed": seed, "swap": swap, "stage": "injection"}
        | {"channel": "says", "format": "asked", "item": "drift", "exact": x, "model": 0.5 * x + 0.1 + (1 - 2 * swap) * 7.0}
        for condition, seed, swap, x in product(("linked", "unlinked"), range(3), (0, 1), (-1.0, 0.0, 1.0))
    ]
    claims = {id: (value, verdict) for id, _, value, _, _, verdict in series_claims(pd.DataFrame(rows), "linked")}
    assert claims["oracle.series.says.injection.slope"] == (pytest.approx(0.5), "below 1")
    assert claims["oracle.series.says.injection.intercept"][0] == pytest.approx(0.1), "a lean toward one direction cancels over the swaps"
    assert claims["oracle.series.says.injection.r2"][0] == pytest.approx(1)


def test_the_ideal_reader_of_a_market_is_in_its_report(plan: Plan) -> None:
    show(plan)
    stated = {claim["id"]: claim for claim in Run(plan.folder).claims()}
    assert stated["oracle.series.in_context.injection.slope"]["unit"] == "nats per nat"


def test_questions_of_other_worlds_have_no_days(plan: Plan, table: pd.DataFrame) -> None:
    beach = make_plan(CONFIGS / "quickstart.yaml", runs=plan.runs)
    with pytest.raises(ConfigError, match="is no market"):
        ideal_points(beach.cells, table)


def test_a_market_with_a_probe_that_names_traits_is_refused(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "named.yaml"
    file.write_text(json.dumps(TINY | {"probes": ["says", "chooses"]}))
    with pytest.raises(ConfigError, match="chooses asks for traits by name, but the market market only shows them"):
        make_plan(file, runs=plan.runs)


def test_the_shipped_experiment_plans(plan: Plan) -> None:
    shipped = make_plan(Path("configs/market.yaml"), runs=plan.runs)
    assert {stage.fields["recipe"]["loss"]["on"] for p in shipped.cells for name, stage in p.stages if name == "trait"} == {"answer"}
