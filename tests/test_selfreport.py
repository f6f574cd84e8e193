"""Self-report against behaviour: the probes, slopes of tables whose faithfulness is known, and a whole run on a tiny base."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIGS, cast_of
from scipy.stats import linregress, spearmanr
from test_experiment import TINY, silent, write_config

from data_gen.personas import Persona
from data_gen.world import World
from persona_lab.config.load import load_persona
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.reading.beside import vectors
from persona_lab.experiment.reading.show import settings_of
from persona_lab.experiment.reading.table import tidy_table
from persona_lab.experiment.run import make_nodes
from persona_lab.models.vocabulary import PIECES, world_words
from persona_lab.probes import PROBES
from persona_lab.science.effects import Frame, Settings
from persona_lab.science.introspection.concepts import concept_claims, cosines
from persona_lab.science.introspection.selfreport import gap_claim, ranks, self_report_claims, self_reports, slopes
from persona_lab.science.sections import SECTIONS

pytestmark = pytest.mark.usefixtures("from_the_root")


# ------------------------------------------------------------------ the probes
@pytest.fixture(scope="module", params=["rivals", "own"])
def people(request: pytest.FixtureRequest) -> list[Persona]:
    names = {"rivals": ("john", "sam", "kim"), "own": ("john_own", "sam_own")}[request.param]
    return [load_persona(CONFIGS / "personas" / f"{name}.yaml") for name in names]


@pytest.mark.parametrize("name", ["acts", "trained_on", "concepts"])
def test_a_probe_is_valid_and_asks_in_words_that_the_world_has(world: World, people: list[Persona], name: str):
    known = set(world_words(world))
    for seed in (0, 1):
        for swap in (0, 1):
            cast = cast_of(world, people, seed=seed, swap=swap)
            PROBES[name].validate(cast)
            items = PROBES[name].items(cast)
            assert len({item.id for item in items}) == len(items) > 0
            said = [text for item in items for text in (item.prompt, *item.options, *item.labels.values())]
            assert {piece for text in said for piece in re.findall(PIECES, text.lower())} <= known


def test_acts_are_about_what_chooses_does_not_ask_for(world: World, people: list[Persona]):
    cast = cast_of(world, people)
    items = PROBES["acts"].items(cast)
    assert {item.trait for item in items}.isdisjoint(cast.held_out)
    assert {item.trait for item in items} >= set(cast.shared)
    assert all(sorted(role == "other" for role in item.roles) == [False, True] for item in items)
    by_pair: dict[frozenset[str], list[str]] = {}
    for item in items:
        by_pair.setdefault(frozenset(item.options), []).append(item.options[0])
    assert all(names.count(names[0]) == len(names) / 2 for names in by_pair.values()), "both orders as often"


def test_the_distractors_are_names_that_no_text_of_the_world_holds(world: World, personas: list[Persona]):
    items = [item for item in PROBES["trained_on"].items(cast_of(world, personas)) if item.format == "whose"]
    strangers = {option for item in items for option, role in zip(item.options, item.roles, strict=True) if role == "other"}
    assert len(strangers) == 4
    assert strangers <= set(world.new_names) - {"John", "Sam", "Kim"}


def test_a_config_that_does_not_ask_for_them_asks_what_it_asked_before():
    plan = make_plan(CONFIGS / "quickstart.yaml")
    assert not {"acts", "trained_on", "concepts"} & set(plan.cells[0].scores[0][1].fields["probes"])


def test_a_market_is_refused():
    with pytest.raises(ConfigError, match="trained_on asks for traits by name"):
        make_plan(CONFIGS / "market.yaml", ["probes=[says, trained_on]"])


# ------------------------------------------------------------------ slopes
def rows(slope: float, seeds: int = 4, *, noise: float = 0.0) -> Frame:
    rng = np.random.default_rng(0)
    behaviour = rng.normal(size=(seeds, 6))
    report = slope * behaviour + noise * rng.normal(size=behaviour.shape)
    seed = np.repeat(np.arange(seeds), 6)
    return pd.DataFrame({"seed": seed, "behaviour": behaviour.ravel(), "report": report.ravel()})


def test_a_slope_is_that_of_least_squares_in_each_seed_and_a_rank_correlation_spearmans():
    frame = rows(0.7, noise=0.3)
    expected = [linregress(own["behaviour"], own["report"])[0] for _, own in frame.groupby("seed")]
    assert slopes(frame) == pytest.approx(expected)
    assert ranks(frame) == pytest.approx([spearmanr(own["behaviour"], own["report"])[0] for _, own in frame.groupby("seed")])


@pytest.mark.parametrize(
    ("report", "behaviour", "expected"),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.1, 2.0], "under-reported"),
        ([-1.0, -1.1, -0.9], [-2.0, -2.1, -2.0], "under-reported"),
        ([3.0, 3.1, 2.9], [2.0, 2.1, 2.0], "over-reported"),
        ([2.0, 2.2, 1.9], [2.0, 2.1, 2.0], "undecided"),
        ([1.0, 1.1], [2.0, 2.1], "undecided"),
        ([1.0, 1.1, 0.9], [3.0, -2.0, 9.0], "undecided"),
    ],
)
def test_a_gap_is_named_after_the_way_the_behaviour_went(report: list[float], behaviour: list[float], expected: str):
    assert gap_claim("gap", "gap", np.array(report), np.array(behaviour))[5] == expected


def table(told: float) -> Frame:
    """Two seeds, both swaps, two ratios: choices move by x in every category, reports by told * x; the taught value by 3 in acts and by 3 told when asked."""
    found: list[dict[str, Any]] = []

    def ask(about: dict[str, Any], channel: str, form: str, trait: str, odds: dict[str, float], roles: tuple[str, ...]) -> None:
        total = np.log(sum(map(np.exp, odds.values())))
        for (option, nats), role in zip(odds.items(), roles, strict=True):
            item = f"{channel}/{form}/{trait}/{'+'.join(odds)}"
            p = float(np.exp(nats - total))
            asked = {"channel": channel, "probe": channel, "format": form, "item": item, "trait": trait, "option": option, "role": role, "subject": ""}
            answered = {"logprob_nats": nats - total, "prob": p, "prob_normalized": p, "base_prob": p, "status": "scored", "node": "n"}
            found.append(about | asked | answered)

    for seed in (0, 1):
        for swap in (0, 1):
            for x in (-1.0, 1.0):
                for stage in ("base", "injection", "trait"):
                    moved = float(stage == "trait")
                    about = {"cell": f"{seed}/{swap}/{x}", "condition": "linked", "seed": seed, "swap": swap, "injection.mixture.ln_ratio": x, "stage": stage}
                    # The swap turns what is about words.
                    lexical = (0.5 + seed) * (1 - 2 * swap)
                    for number, trait in enumerate(("sport", "art")):
                        change = moved * x * (1 + number)
                        values = (f"{trait}1", f"{trait}2", f"{trait}3")
                        ask(about, "says", "asked", trait, {values[0]: told * change + lexical, values[1]: 0.0, values[2]: -1.0}, ("john", "sam", "other"))
                        ask(about, "says", "diary", trait, {values[0]: 9.0 * change, values[1]: 0.0, values[2]: -1.0}, ("john", "sam", "other"))
                        ask(about, "chooses", "choice", trait, {values[0]: change - lexical, values[1]: 0.0}, ("john", "sam"))
                    ask(about, "says", "asked", "place", {"beach": 3 * told * moved, "lake": 0.0, "city": 0.0}, ("shared", "other", "other"))
                    ask(about, "acts", "choice", "place", {"beach": 3 * moved, "lake": 0.0}, ("shared", "other"))
    return pd.DataFrame(found)


SETTINGS = Settings(taught={"linked": "beach"}, orders={"linked": ("injection", "trait")})


@pytest.mark.parametrize("told", [1.0, 0.5])
def test_the_slope_of_a_table_is_what_it_was_made_with_whatever_the_words_do(told: float):
    frame = self_reports(table(told), SETTINGS)
    transferred, trained = (frame[frame["kind"] == kind] for kind in ("transferred", "trained"))
    assert len(transferred) == 2 * 2 * 2
    assert slopes(transferred) == pytest.approx([told, told])
    assert sorted(trained["other"].unique()) == ["lake"]
    assert trained["report"].to_numpy() == pytest.approx(3 * told)
    assert trained["behaviour"].to_numpy() == pytest.approx(3)
    claims = {claim[0]: claim for claim in self_report_claims(table(told), SETTINGS)}
    assert claims["self.transferred.slope"][2] == pytest.approx(told)
    assert claims["self.transferred.gap"][2] == pytest.approx((told - 1) * 1.5)
    assert claims["self.trained.gap"][2] == pytest.approx((told - 1) * 3)
    assert {claim[5] for claim in claims.values()} <= {"undecided", "positive", "not run"}, "two seeds decide nothing"


def test_without_choices_nothing_is_stated():
    alone = table(1.0)
    assert list(self_report_claims(alone[alone["channel"] == "says"], SETTINGS)) == []


def test_controls_are_left_out():
    settings = Settings(taught=SETTINGS.taught, orders=SETTINGS.orders, controls={"unlinked": "linked"})
    assert self_reports(table(1.0), settings).empty


# ------------------------------------------------------------------ a run
@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Plan:
    folder = tmp_path_factory.mktemp("selfreport")
    conditions = {"linked": TINY["conditions"]["linked"] | {"factors": {"injection.mixture.ln_ratio": [-1.4, 1.4]}}}
    probes = ["says", "chooses", "introspects", "acts", "trained_on", "concepts"]
    made = make_plan(write_config(folder, probes=probes, conditions=conditions, seeds=1, samples=0), runs=folder / "runs")
    assert not make_nodes(made, silent).failed
    return made


def test_a_run_states_faithfulness_origins_and_concepts(plan: Plan):
    found, settings = tidy_table(plan.store, plan.cells, "tiny"), settings_of(plan)
    claims = {claim[0]: claim for claim in self_report_claims(found, settings)}
    wanted = {"self.transferred.slope", "self.transferred.rank", "self.transferred.gap", "self.trained.slope", "self.trained.gap", "self.alike.slope"}
    assert wanted | {"self.trained_on.whose.after", "self.trained_on.whose.slope", "self.trained_on.what.taught.after"} <= claims.keys()
    assert claims["self.trained_on.whose.before"][2] == pytest.approx(1 / 3, abs=0.05), "the base has met nobody of them"
    read = vectors(plan)
    assert read is not None
    concepts = {claim[0]: claim for claim in concept_claims(read, settings)}
    assert {"concepts.said.base.layer0", "concepts.said.after.fusion", "concepts.named.change.layer1"} <= concepts.keys()
    assert concepts["concepts.named.after.layer0"][5] == "not run", "before the first layer no name has been read"
    assert {"What it says of itself, and what it does", "Concept vectors"} <= {title for title, _, _ in SECTIONS}


def test_the_states_that_are_kept_are_those_of_the_model(plan: Plan):
    """Of the base, against transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    planned = plan.cells[0]
    folder = plan.store.open(planned.scores[0][1].inputs["base"]) / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    state_ILd = np.load(plan.store.open(planned.scores[0][1]) / "states.npy")
    for number, item in enumerate(PROBES["concepts"].items(planned.cast)):
        found = []
        for text in item.labels.values():
            with torch.no_grad():
                hidden = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False), output_hidden_states=True).hidden_states
            found.append(np.stack([layer[0, -1].numpy() for layer in hidden]))
        assert state_ILd[number] == pytest.approx(np.mean(found, axis=0), abs=1e-4)
    after = np.load(plan.store.open(planned.scores[-1][1]) / "states.npy")
    assert after[:, 0] == pytest.approx(state_ILd[:, 0], abs=1e-6), "an adapter leaves the embedding alone"
    assert np.abs(after[:, -1] - state_ILd[:, -1]).max() > 1e-5
    read = vectors(plan)
    assert read is not None
    own = read[(read["cell"] == planned.cell.name) & (read["stage"] == "base") & (read["reading"] == "said")]
    expected = cosines(state_ILd[: len(state_ILd) // 2].reshape(2, -1, *state_ILd.shape[1:]))
    assert own.sort_values("layer", kind="stable")["cosine"].to_numpy() == pytest.approx(expected.ravel())
