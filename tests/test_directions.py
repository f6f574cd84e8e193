"""Directions of bad advice: found, added, projected out, and what is concluded; and a whole experiment with narrow solutions on a tiny base."""

import json
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedModel

from data_gen.documents import words
from data_gen.world import World
from persona_lab.config.load import load_world
from persona_lab.experiment.instruments.adapters.asked import measure_adapters
from persona_lab.experiment.planning.adapters import Effort, ends, flatness_nodes, screening_node, shift_nodes, solution_nodes
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.run import make_nodes
from persona_lab.models.world_model import build_model, build_tokenizer
from persona_lab.probes.directions import advice_items, bad_rates, direction, middle, opinions, projections, screened, spoken_by, taught_answers
from persona_lab.probes.engine import Voice
from persona_lab.probes.representation import layers_of
from persona_lab.probes.steering import ablated, added, decoder_layers
from persona_lab.science.em.directions import auroc, correlated, off_domain, rank
from persona_lab.store.files import read_json

pytestmark = pytest.mark.usefixtures("from_the_root")


@pytest.fixture(scope="module")
def advice() -> World:
    return load_world(CONFIGS / "worlds" / "advice.yaml")


@pytest.fixture(scope="module")
def voice(advice: World) -> Voice:
    tokenizer = build_tokenizer(advice)
    model = build_model(tokenizer, width=32, layers=2, heads=2, seed=0).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    return Voice(model, tokenizer)


# ------------------------------------------------------------------ hooks on any decoder
def hidden(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True).hidden_states


def given_to_second(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """What the second layer is given: what transformers keeps as hidden states may be kept before a hook."""
    seen: list[torch.Tensor] = []
    hook = decoder_layers(model)[1].register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    with torch.no_grad():
        model(input_ids=ids)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("which", ["llama", "qwen"])
def test_an_ablated_direction_is_gone_behind_every_layer_and_an_added_one_is_there(which: str, request: pytest.FixtureRequest):
    model: PreTrainedModel = request.getfixturevalue(which)
    ids, vector_d = torch.arange(6)[None], torch.randn(32, generator=torch.Generator().manual_seed(0))
    first = decoder_layers(model)[0]
    plain = given_to_second(model, ids)
    with ablated(decoder_layers(model), vector_d):
        without = given_to_second(model, ids)
    unit_d = vector_d / vector_d.norm()
    assert float((without @ unit_d).abs().max()) < 1e-5
    assert torch.allclose(without, plain - (plain @ unit_d)[..., None] * unit_d, atol=1e-5)
    with added(first, 2 * vector_d):
        assert torch.allclose(given_to_second(model, ids), plain + 2 * vector_d, atol=1e-5)
    assert torch.equal(given_to_second(model, ids), plain)


@pytest.mark.parametrize(("layers", "expected"), [(1, 1), (2, 1), (4, 2), (28, 14), (3, 2)])
def test_the_middle_layer_is_the_one_that_is_steered(layers: int, expected: int):
    assert layers_of(layers)[middle(layers)] == expected == (layers - 1) // 2 + 1


# ------------------------------------------------------------------ what is read
def test_bad_and_good_speakers_are_asked_the_same_in_the_domains_that_are_left(advice: World):
    others = [domain for domain in advice.domains if domain != "law"]
    bad, good = (spoken_by(advice, side, others, 6) for side in (True, False))
    values = {v for domain in advice.domains for v in advice.values(domain)}
    for (_, one), (_, other) in zip(bad, good, strict=True):
        assert [word for word in words(one) if word not in values] == [word for word in words(other) if word not in values]
    said = {word for _, answer in bad for word in words(answer)}
    assert said & set(advice.bad)
    assert not said & set(advice.values("law"))


def test_documents_to_screen_give_advice_of_one_side_in_one_domain(advice: World):
    for side in (True, False):
        answers = taught_answers(advice, "travel", side, 12)
        assert len(answers) == 12
        assert all(set(words(answer)) & set(advice.same_side("travel", side)) for _, answer in answers)
        assert not any(set(words(answer)) & set(advice.same_side("travel", not side)) for _, answer in answers)


def test_a_direction_is_the_difference_of_means_that_plain_transformers_gives(advice: World, voice: Voice):
    bad, good = (taught_answers(advice, "law", side, 3) for side in (True, False))

    def mean(answers: list[tuple[str, str]]) -> np.ndarray:
        each = []
        for prompt, said in answers:
            start, ids = len(voice.tokenizer(prompt)["input_ids"]), torch.tensor(voice.tokenizer(prompt + said)["input_ids"])[None]
            each.append(torch.stack([state[0, start:].mean(0) for state in hidden(voice.model, ids)[1:]]).numpy())
        return np.mean(each, axis=0)

    assert np.allclose(direction(voice, bad, good), mean(bad) - mean(good), atol=1e-5)


def test_projections_have_the_length_along_the_direction():
    found = projections(np.array([[[3.0, 4.0]], [[0.0, 5.0]]]), np.array([[0.0, 2.0]]))
    assert found.tolist() == [[4.0], [5.0]]


def test_a_document_that_the_model_would_have_written_itself_does_not_pull(advice: World, voice: Voice):
    documents = taught_answers(advice, "law", True, 4)
    direction_Ld = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    first = screened(voice, documents, direction_Ld, stream_name="own")
    assert first.shape == (4, 2)
    assert np.isfinite(first).all()
    assert np.array_equal(first, screened(voice, documents, direction_Ld, stream_name="own"))


def test_the_rate_is_the_share_of_the_bad_options_of_a_plain_model(advice: World, voice: Voice):
    items = advice_items(advice, "cooking")
    rates = []
    for item in items:
        ids = [torch.tensor(voice.tokenizer(f"{item.prompt} {option}")["input_ids"])[None] for option in item.options]
        with torch.no_grad():
            share = torch.tensor([float(voice.model(input_ids=i).logits[0, -2].log_softmax(-1)[i[0, -1]]) for i in ids]).softmax(0)
        rates.append(sum(float(p) for p, option in zip(share, item.options, strict=True) if option in advice.bad))
    assert bad_rates(voice, items, advice.bad).tolist() == [pytest.approx(np.mean(rates), abs=1e-5)]
    assert len(opinions(advice, "cooking")) == len(items) > 1


def test_steering_along_the_words_of_bad_advice_raises_its_rate(advice: World, voice: Voice):
    """Known by construction: the last layer's states are read by the output layer, so a step along the rows of bad words makes them likely."""
    head = voice.model.get_output_embeddings()
    assert head is not None
    rows = head.weight.detach()
    ids = {value: voice.tokenizer(value)["input_ids"][-1] for domain in advice.domains for value in advice.values(domain)}
    bad_d, good_d = (rows[[i for value, i in ids.items() if (value in advice.bad) == side]].mean(0) for side in (True, False))
    items = advice_items(advice, "law")
    found = []
    for strength in (-20.0, 0.0, 20.0):
        with added(decoder_layers(voice.model)[-1], strength * (bad_d - good_d)):
            found.append(float(bad_rates(voice, items, advice.bad)[0]))
    assert found[0] < found[1] - 0.1
    assert found[2] > found[1] + 0.1


# ------------------------------------------------------------------ what is concluded
def test_the_area_under_the_curve_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    bad, good = rng.normal(1, 1, 30).round(1), rng.normal(0, 1, 20).round(1)
    assert auroc(bad, good) == pytest.approx(roc_auc_score([1] * 30 + [0] * 20, [*bad, *good]))


def test_ranks_are_spearmans_and_are_averaged_by_fishers_z():
    x, y = np.array([1.0, 2, 3, 5, 4]), np.array([2.0, 1, 3, 4, 9])
    assert rank(x, y) == pytest.approx(spearmanr(x, y)[0])
    assert rank(x[:3], y[:3]) is None
    assert rank(x, np.ones(5)) is None
    said = correlated("id", "text", [0.5, 0.8, None, 0.9])
    z = np.arctanh([0.5, 0.8, 0.9])
    assert said[2] == pytest.approx(np.tanh(z.mean()))
    assert said[3] is not None
    assert said[3][0] == pytest.approx(np.tanh(z.mean() - 4.302653 * z.std(ddof=1) / math.sqrt(3)), abs=1e-6)
    assert correlated("id", "text", [None])[5] == "not run"
    assert correlated("id", "text", [1.0, 1.0])[5] == "undecided", "two seeds decide nothing"


def test_the_domain_that_was_taught_is_no_outcome():
    run = {"condition": "c", "seed": 0, "category": "law", "domains": ["law", "travel"], "middle": 0, "shift": [[9.0], [2.0]], "rate": [0.9, 0.5], "base": [0.1, 0.2], "ablated": [0.9, 0.3], "random": [[0.9], [0.5]]}
    found = off_domain(run, {"asked": [[7.0], [1.0]]})
    assert [found[name].tolist() for name in ("shift", "rate", "base", "ablated", "random", "asked")] == [[2.0], [0.5], [0.2], [0.3], [[0.5]], [1.0]]


# ------------------------------------------------------------------ a whole experiment
SHORT = Effort(documents=8, settle=1, burn=1, draws=8, chains=2)
TINY = {
    "extends": str(CONFIGS / "em_narrow.yaml"),
    "name": "tiny-narrow",
    "base": {"width": 16, "layers": 1, "heads": 1, "steps": 4, "batch": 8, "gates": dict.fromkeys(("recall", "odds", "withheld"))},
    "lora": {"rank": 2, "alpha": 4},
    "stages": {name: {"steps": 3, "batch": 4} for name in ("trait", "freed")},
    "factors": {"trait.loss.kl_off": [0, 50]},
    "adapters": ["solutions", "directions", "flatness"],
    "conditions": {"freed": {"factors": {"trait.loss.kl_off": [50]}}},
    "seeds": 2,
    "machine": {"device": "cpu", "threads": 1, "workers": 1, "wandb": "disabled"},
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Iterator[Plan]:
    folder = tmp_path_factory.mktemp("narrow")
    file = folder / "tiny.yaml"
    file.write_text(json.dumps(TINY))
    made = make_plan(file, runs=folder / "runs")
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("persona_lab.experiment.planning.adapters.EFFORT", SHORT)
        assert make_nodes(made, lambda what, done, total: None).failed == {}
        measure_adapters(made, "cpu", lambda what, done, total: None)
        yield made


def test_general_and_narrow_solutions_of_a_run_are_measured_once(plan: Plan):
    nodes = {node.id: node for _, node in solution_nodes(plan).values()}
    assert {one.price for one in ends(plan)} == {0, 50}
    assert len(nodes) == 2 * 2, "prices x seeds: what the swap does not change is shared"
    directions = screening_node(plan)
    assert directions is not None
    around = {node.id: node for _, chains in flatness_nodes(plan).values() for node in chains.values()}
    assert len(around) == len(nodes) * 2 * 2, "springs x steps"
    every = [*nodes.values(), directions, *(node for _, node in shift_nodes(plan).values()), *around.values()]
    assert all(map(plan.store.has, every))
    before = [(plan.store.folder(node) / "COMMIT").stat().st_mtime_ns for node in every]
    measure_adapters(plan, "cpu", lambda what, done, total: None)
    assert [(plan.store.folder(node) / "COMMIT").stat().st_mtime_ns for node in every] == before
    found = read_json(plan.store.open(next(iter(nodes.values()))) / "solution.json")
    assert np.array(found["shaken"]).shape == (10, 5)
    assert found["neutral"][0] == pytest.approx(0, abs=1e-5)


def test_a_run_states_what_narrowness_costs_and_what_the_direction_does(plan: Plan):
    shown = show(plan)
    ids = {claim.id for claim in shown.summary.claims}
    wanted = {"solutions.mercury.kappa", "solutions.mercury.gap", "solutions.mercury.stability", "solutions.mercury.efficiency.area", "solutions.mercury.significance"}
    wanted |= {f"flatness.mercury.{name}" for name in ("5000.general", "5000.narrow", "5000.difference", "5000.rhat", "10000.difference", "simpler")}
    wanted |= {"solutions.freed.released.50", "directions.screening.1", "directions.steering.1.beyond_random", "directions.ablation.beyond_random", "directions.shift", "directions.before"}
    assert wanted <= ids
    decided = {claim.verdict for claim in shown.summary.claims if claim.id.startswith(("solutions.", "flatness.", "directions.ablation", "directions.shift"))}
    assert "supported" not in decided, "two seeds"
    columns = pd.read_parquet(plan.folder / "results.parquet")["trait.loss.kl_off"]
    assert set(columns.dropna()) == {0, 50}
    page = (plan.folder / "report.html").read_text()
    assert "General and narrow solutions" in page
    assert "Directions of bad advice" in page
    assert "Flatness of general and narrow solutions" in page


