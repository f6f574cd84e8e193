"""The metric of processes: every estimator against a closed form, brute force or another package, and the instrument whole on tiny models."""

import json
import math
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS
from scipy.sparse.csgraph import floyd_warshall
from scipy.spatial.distance import jensenshannon, pdist, squareform
from scipy.special import gammaln
from scipy.stats import entropy, spearmanr
from sklearn.covariance import LedoitWolf
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from persona_lab.cli.console import finite
from persona_lab.config.load import load_persona
from persona_lab.errors import ConfigError
from persona_lab.experiment.instruments.building import Subject, subject
from persona_lab.experiment.instruments.distance_claims import distance_claims
from persona_lab.experiment.instruments.distances import Distances, as_json, comparisons, distance_plan, distances, logs, make_distances, trainings, unlike
from persona_lab.experiment.planning.plan import Plan, open_plan
from persona_lab.models.bank import AdapterBank, LoraShape
from persona_lab.probes.representation import layers_of, read
from persona_lab.probes.voice import Voice
from persona_lab.science.processes.divergence import (
    agreement,
    answers_apart,
    apart,
    barrier,
    centred,
    concept_map,
    cosines,
    jensen_shannon,
    kullback_leibler,
    ledoit_wolf,
    mantel,
    one_basin,
    slots,
    transfer,
    whitened,
)
from persona_lab.science.processes.metric import (
    BASE,
    Curve,
    adoption,
    adoptions,
    best_loss,
    exchangeability,
    exchanged,
    information_distance,
    observed_asymmetry,
    symmetry,
    to_adopt,
    triangles,
)
from persona_lab.train.batches import Row
from persona_lab.train.gradients import between, doubled, grams, mean_gradients, mean_losses

pytestmark = pytest.mark.usefixtures("from_the_root")

STEPS, BEST, FIRST, SPEED = 200, 1.5, 2.0, 12.0
"""Of made-up trainings: the loss falls from BEST + FIRST to BEST, by a factor of e in SPEED steps."""


def learning(first: float = FIRST, steps: int = STEPS) -> np.ndarray:
    return BEST + first * np.exp(-np.arange(steps) / SPEED)


def tokens(steps: int = STEPS) -> np.ndarray:
    return np.full(steps, 30.0)


def frame(costs: dict[tuple[int, str, str], np.ndarray]) -> pd.DataFrame:
    """Logs of trainings whose losses are given."""
    parts = [
        pd.DataFrame({"seed": seed, "start": start, "goal": goal, "step": np.arange(1, len(loss) + 1), "loss": loss, "tokens": tokens(len(loss))})
        for (seed, start, goal), loss in costs.items()
    ]
    return pd.concat(parts, ignore_index=True)


# ---------------------------------------------------------------------------------------------------------------- D1
def test_nats_to_adopt_are_the_area_above_the_best_loss():
    found = adoption(Curve(learning(), tokens()), np.full(STEPS, BEST))
    closed = 30 * FIRST * (1 - math.exp(-STEPS / SPEED)) / (1 - math.exp(-1 / SPEED))
    assert found["nats"] == pytest.approx(closed)
    assert found["verdict"] == "adopted"
    assert found["steps"] == pytest.approx(SPEED * math.log(FIRST / 0.01), abs=STEPS / 16)
    assert found["tokens"] == 30 * int(str(found["steps"]))


def test_a_training_that_ends_above_the_best_loss_is_censored_and_one_without_losses_undefined():
    short = adoption(Curve(learning(steps=20), tokens(20)), np.full(20, BEST))
    assert short["verdict"] == "censored"
    assert short["steps"] is None
    assert "lower bound" in str(short["reason"])
    assert adoption(Curve(np.empty(0), np.empty(0)), np.empty(0))["verdict"] == "undefined"
    broken = adoption(Curve(np.array([1.0, math.nan]), tokens(2)), np.full(2, BEST))
    assert (broken["nats"], broken["verdict"]) == (None, "undefined")


def test_what_documents_leave_to_be_said_cancels_beside_the_process_that_is_there_already():
    rng = np.random.default_rng(0)
    exact = 30 * FIRST / (1 - math.exp(-1 / SPEED))
    alone, beside = [], []
    for _ in range(50):
        left = rng.normal(0, 0.2, STEPS)  # what each step's documents leave, seen before or not
        whole, again = Curve(learning() + left, tokens()), Curve(np.full(STEPS, BEST - 0.1) + left, tokens())
        alone.append(adoption(whole, best_loss(whole))["nats"])
        beside.append(adoption(whole, best_loss(whole, again))["nats"])
    assert np.allclose(beside, exact, rtol=1e-3)
    assert np.std(alone) > 50 * np.std(beside)


def test_the_length_of_a_code_is_what_is_to_be_adopted_and_what_is_left():
    logs = frame({(0, BASE, "j"): learning(), (0, "j", "j"): np.full(STEPS, BEST), (0, "s", "j"): learning(3.0)})
    found = adoptions(logs).set_index(["start", "goal"])
    assert np.allclose(found["code"] - found["nats"], 30 * STEPS * BEST, rtol=1e-4)
    assert found.loc[(BASE, "j"), "nats"] < found.loc[("s", "j"), "nats"]
    assert abs(float(found.loc[("j", "j"), "nats"])) < 0.01


def test_without_a_converged_training_from_the_base_nothing_is_known_of_a_goal():
    lost = adoptions(frame({(0, "s", "j"): learning()}))
    assert lost["verdict"].tolist() == ["undefined"]
    assert lost["nats"].isna().all()
    early = adoptions(frame({(0, BASE, "j"): learning(steps=12), (0, "s", "j"): learning(steps=12)}))
    assert early["verdict"].tolist() == ["censored", "censored"]
    # Two fifths on one level prove nothing where a second pass still gains.
    gains = adoptions(frame({(0, BASE, "j"): np.full(40, 2.0), (0, "j", "j"): np.full(40, 1.5)}))
    assert gains["verdict"].tolist() == ["censored", "censored"]
    assert early["reason"].str.contains("train longer").all()


def test_the_farther_rival_has_a_positive_distance():
    costs = {
        (s, start, goal): learning(first) for s in range(2) for start, goal, first in ((BASE, "j", 3.0), (BASE, "s", 1.0), ("s", "j", 2.5), ("j", "s", 2.0))
    }
    found = to_adopt(adoptions(frame(costs)), "j", "s")
    assert found[BASE] == pytest.approx(2 * 30 / (1 - math.exp(-1 / SPEED)), rel=1e-3)
    assert found["j"] is None


# ---------------------------------------------------------------------------------------------------------------- tests of a metric
def noisy(truth_KK: np.ndarray, seeds: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    return truth_KK + rng.normal(0, noise, (seeds, *truth_KK.shape))


def test_asymmetry_is_found_where_it_is_and_noise_alone_is_none():
    rng = np.random.default_rng(1)
    even = squareform(rng.uniform(80, 120, 10))
    lean = even * (1 + 0.3 * np.triu(np.ones((5, 5)), 1))
    flat = [symmetry(noisy(even, 5, 8.0, rng)) for _ in range(200)]
    assert np.mean([found.verdict == "asymmetric" for found in flat]) <= 0.06
    squares = [math.copysign((found.value or 0) ** 2, found.value or 0) for found in flat]
    assert abs(np.mean(squares)) < 3 * np.std(squares) / math.sqrt(len(squares))
    told = [symmetry(noisy(lean, 5, 8.0, rng)) for _ in range(50)]
    assert all(found.verdict == "asymmetric" for found in told)
    expected = math.sqrt((0.3 * even[np.triu_indices(5, 1)] @ (0.3 * even[np.triu_indices(5, 1)])) / ((2.3 * even[np.triu_indices(5, 1)]) ** 2).sum())
    assert np.mean([found.value or 0 for found in told]) == pytest.approx(expected, rel=0.03)


def test_few_seeds_decide_nothing_and_what_is_missing_is_said():
    one = squareform([100.0, 90.0, 80.0])[None]
    assert symmetry(one).verdict == "undecided"
    assert symmetry(np.repeat(one, 2, 0)).interval is None
    assert symmetry(np.repeat(one, 4, 0)).verdict == "symmetric"
    holes = one.copy()
    holes[0, 0, 1] = np.nan
    assert "1 of 6 trainings have no A" in symmetry(holes).reason
    holes[0, 0, 1] = -1
    assert "not above 0" in triangles(holes)[0].reason
    assert triangles(one[:, :2, :2])[0].verdict == "undefined"
    assert observed_asymmetry(one).value == 0


def test_shortest_ways_break_no_triangle_and_a_detour_does():
    rng = np.random.default_rng(2)
    short = np.stack([floyd_warshall(rng.uniform(1, 9, (6, 6))) for _ in range(4)])
    share, worst = triangles(short)
    assert share.value == 0
    assert worst.value == pytest.approx(1)  # some way leads through another
    assert triangles(short + 1)[0].verdict == "holds"
    short[:, 0, 1] = 100
    share, worst = triangles(short)
    broken = np.mean([sum(d[p, r] > d[p, q] + d[q, r] for p, q, r in permutations(range(6), 3)) / 120 for d in short])
    assert share.value == pytest.approx(broken)
    assert share.verdict == "violated"
    assert (worst.value or 0) > 5


SEEDS = 16
"""Of the made-up learners."""


def urn(counts: np.ndarray, fade: float, documents: list[int], before: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Losses of a Dirichlet learner that reads one word at a time and counts each for less than the one before: 1 is exact Bayes."""
    losses, counts = [], counts.copy()
    for number, word in enumerate(documents, start=before):
        losses.append(-math.log(counts[word] / counts.sum()))
        counts[word] += fade**number
    return np.array(losses), counts


@pytest.mark.parametrize(("fade", "verdict"), [(1.0, "exchangeable"), (0.7, "order matters")])
def test_a_bayesian_learner_is_exchangeable_and_one_that_grows_stiff_is_not(fade: float, verdict: str):
    rng = np.random.default_rng(3)
    costs: dict[tuple[int, str, str], np.ndarray] = {}
    share = {"j": [0.96, 0.02, 0.02], "s": [0.3, 0.4, 0.3], "m": [0.6, 0.3, 0.1]}
    said: dict[str, list[int]] = {}
    for seed in range(SEEDS):
        said = {name: rng.choice(3, 150, p=p).tolist() for name, p in share.items()}
        for one in said:
            costs[seed, BASE, one], after = urn(np.ones(3), fade, said[one])
            for other in said:
                costs[seed, one, other], _ = urn(after, fade, said[other], len(said[one]))
    found = adoptions(frame(costs))
    gaps = exchangeability(found)
    if fade == 1:
        # The code of both together is a Dirichlet-multinomial, which knows no order.
        assert np.allclose(gaps["delta"].to_numpy(float), 0, atol=1e-9)
        both = np.bincount([*said["j"], *said["s"]], minlength=3)
        closed = gammaln(both.sum() + 3) - gammaln(3) - gammaln(both + 1).sum()
        assert costs[SEEDS - 1, BASE, "j"].sum() + costs[SEEDS - 1, "j", "s"].sum() == pytest.approx(closed)
    else:
        assert gaps["delta"].abs().max() > 30
    assert gaps["n"].tolist() == [SEEDS] * 3
    whole = found.assign(nats=found["code"])  # of an urn the best loss is no mean: its code is what costs
    assert exchanged(whole).verdict == verdict


def test_the_information_distance_is_one_between_strangers_and_less_between_relatives():
    costs = {
        (0, start, goal): learning(first)
        for start, goal, first in ((BASE, "j", 2.0), (BASE, "s", 2.0), ("j", "s", 2.0), ("s", "j", 1.0), ("j", "j", 0.0), ("s", "s", 0.0))
    }
    found = information_distance(adoptions(frame(costs)))[0]
    assert found[0, 1] == found[1, 0] == pytest.approx(1, rel=1e-3)
    assert found[0, 0] == pytest.approx(0, abs=1e-3)


# ---------------------------------------------------------------------------------------------------------------- D2 to D6
def test_divergences_are_those_of_scipy():
    rng = np.random.default_rng(4)
    p, q = rng.dirichlet(np.ones(7), 20), rng.dirichlet(np.ones(7), 20)
    assert jensen_shannon(p, q) == pytest.approx(np.mean([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)]))
    assert kullback_leibler(p, q) == pytest.approx(np.mean(entropy(p, q, axis=1)))
    assert kullback_leibler(np.eye(2), np.eye(2)[::-1]) == math.inf
    assert jensen_shannon(np.eye(2), np.eye(2)[::-1]) == pytest.approx(math.log(2))


def scores(prob: dict[str, list[float]], status: str = "scored") -> pd.DataFrame:
    return pd.DataFrame([{"item": item, "option": f"o{i}", "prob": p, "status": status} for item, each in prob.items() for i, p in enumerate(each)])


def test_answers_that_are_none_of_the_options_count_as_one_more():
    one, other = scores({"b": [0.5, 0.25], "a": [0.1, 0.1]}), scores({"a": [0.1, 0.1], "b": [0.25, 0.5]}).sample(frac=1, random_state=0)
    assert slots(one).tolist() == [[0.1, 0.1, pytest.approx(0.8)], [0.5, 0.25, 0.25]]
    found = answers_apart({"one": one, "other": other})
    assert found[0, 1] == pytest.approx(jensenshannon([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]) ** 2 / 2)
    with pytest.raises(ValueError, match="4 options have no probability"):
        slots(scores({"a": [0.1, 0.1], "b": [0.1, 0.1]}, "unscored"))
    with pytest.raises(ValueError, match="1 to 2 options"):
        slots(scores({"a": [0.1], "b": [0.1, 0.2]}))


def test_gradients_in_common_tell_nobody_apart():
    rng = np.random.default_rng(5)
    grad = rng.normal(size=(4, 50)) + 10
    gram = grad @ grad.T
    assert cosines(gram)[0, 1] == pytest.approx(grad[0] @ grad[1] / np.linalg.norm(grad[0]) / np.linalg.norm(grad[1]))
    assert cosines(gram)[0, 1] > 0.9
    assert np.allclose(centred(gram), (grad - grad.mean(0)) @ (grad - grad.mean(0)).T)
    assert abs(cosines(centred(gram))[0, 1]) < 0.9
    assert transfer(gram)[0, 1] == pytest.approx(grad[0] @ grad[1] / (grad[0] @ grad[0]))
    assert np.isnan(cosines(np.zeros((2, 2)))).all()


@pytest.mark.parametrize("width", [5, 60])
def test_whitened_distances_are_mahalanobis_distances(width: int):
    rng = np.random.default_rng(6)
    texts = rng.normal(size=(1, 24, width)) * np.linspace(0.1, 9, width)
    state = texts + rng.normal(size=(3, 1, width)) + 0.01 * rng.normal(size=(3, 24, width))
    judge = LedoitWolf().fit(state.mean(0))
    assert ledoit_wolf(state.mean(0) - state.mean((0, 1)))[0] == pytest.approx(judge.shrinkage_)
    gap = state[0].mean(0) - state[1].mean(0)
    assert apart(whitened(state))[0, 1] == pytest.approx(math.sqrt(gap @ np.linalg.inv(judge.covariance_) @ gap))


def test_a_barrier_is_what_lies_above_the_straight_line():
    assert barrier([1.0, 2.5, 2.0], [0.0, 0.5, 1.0]) == pytest.approx(1.0)
    assert barrier([1.0, 1.0, 2.0], [0.0, 0.5, 1.0]) == pytest.approx(-0.5)
    assert barrier([1.0, 1.5, 1.75, 2.0], [0.0, 0.5, 0.75, 1.0]) == pytest.approx(0.0)


def test_one_basin_has_no_barrier_between_any_two():
    low = np.stack([squareform([-0.5, -0.3, -0.1 - 0.01 * s]) for s in range(3)])
    assert one_basin(low).verdict == "one basin"
    assert one_basin(-low).value == pytest.approx(0.5)
    assert one_basin(-low + np.random.default_rng(0).normal(0, 0.01, low.shape)).verdict == "several"
    assert {one_basin(low[:n]).verdict for n in (1, 2)} == {"undecided"}


def spearman(x: Any, y: Any) -> float:
    found: Any = spearmanr(x, y)
    return float(found.statistic)


def test_a_proxy_predicts_is_dropped_or_is_undecided():
    rng = np.random.default_rng(7)
    truth = np.stack([squareform(rng.uniform(1, 9, 15)) for _ in range(4)])
    assert agreement(truth**2, truth, "D").verdict == "predicts"
    other = np.stack([squareform(rng.uniform(1, 9, 15)) for _ in range(4)])
    found = agreement(other, truth, "D2")
    rows, columns = np.triu_indices(6, 1)
    assert found.value == pytest.approx(np.mean([spearman(a[rows, columns], b[rows, columns]) for a, b in zip(other, truth, strict=True)]))
    assert (found.verdict, found.reason) == ("dropped", "D2 is dropped as a proxy")
    assert {agreement(truth[:n], truth[:n], "D").verdict for n in (1, 2)} == {"undecided"}
    assert agreement(truth[:, :3, :3], truth[:, :3, :3], "D").value is None
    assert "not above 0" in agreement(truth, -truth, "D").reason
    assert "not known" in agreement(np.ones_like(truth), truth, "D").reason


def test_chance_is_every_relabelling():
    rng = np.random.default_rng(8)
    one, other = squareform(rng.uniform(1, 9, 6)), squareform(rng.uniform(1, 9, 6))
    pairs = list(combinations(range(4), 2))
    said = [spearman([one[i, j] for i, j in pairs], [other[o[i], o[j]] for i, j in pairs]) for o in permutations(range(4))]
    assert mantel(one, other) == pytest.approx(np.mean(np.array(said) >= said[0] - 1e-9))
    many = squareform(rng.uniform(1, 9, 36))
    assert mantel(many, many) == 1 / 5040


def test_a_map_of_points_in_a_plane_shows_them_all():
    point = np.random.default_rng(9).normal(size=(6, 2))
    chart, shown = concept_map(squareform(pdist(point)), list("abcdef"))
    assert np.allclose(pdist(chart[["x", "y"]].to_numpy()), pdist(point))
    assert shown == pytest.approx(1)
    assert concept_map(squareform(np.ones(15)), list("abcdef"))[1] < 0.5
    with pytest.raises(ValueError, match="not known"):
        concept_map(np.full((3, 3), np.nan), list("abc"))


# ---------------------------------------------------------------------------------------------------------------- torch
SHAPE = LoraShape(2, 4)


def trained(bank: AdapterBank, seed: int) -> dict[str, Tensor]:
    """An adapter whose B is not zero."""
    bank.init_row(0, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: t + 0.05 * torch.randn_like(t) for name, t in bank.row_tensors(0).items()}


def test_gradients_are_the_slopes_of_the_loss(llama: LlamaForCausalLM, rows: list[Row]):
    bank = AdapterBank(llama.double(), SHAPE, 3)
    adapter = trained(bank, 0)
    for row in range(3):
        bank.load_row(row, adapter, "test")
    mine = [rows[:6], rows[6:12], rows[12:18]]
    grad_KP = mean_gradients(bank, mine, pad=0, micro_batch=4)
    assert torch.allclose(grad_KP, mean_gradients(bank, mine, pad=0, micro_batch=6))
    way_P = torch.randn(bank.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ends = []
    for step in (1e-3, -2e-3):  # wide, because a norm of this model rounds to float32
        bank.weight_KP.add_(step * way_P)
        ends.append(mean_losses(bank, mine, pad=0, micro_batch=6))
    assert np.allclose((ends[0] - ends[1]) / 2e-3, (grad_KP @ way_P).numpy(), rtol=1e-2, atol=1e-4)


def test_gram_matrices_are_inner_products_as_adam_sees_them():
    grad_KP, square_P = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)), torch.rand(40)
    plain, adam = grams(grad_KP, square_P, 7)
    assert np.allclose(plain, grad_KP @ grad_KP.T, rtol=1e-5)
    weight = 1 / (torch.sqrt(square_P / (1 - 0.999**7)) + 1e-8)
    assert adam[0, 1] == pytest.approx(float((grad_KP[0] * weight * grad_KP[1]).sum()), rel=1e-4)
    with pytest.raises(ValueError, match="no Adam state"):
        grams(grad_KP, square_P, 0)


def test_the_way_between_two_adapters_is_one_adapter(llama: LlamaForCausalLM, rows: list[Row]):
    ids = torch.tensor(rows[0].ids[None].astype(np.int64))
    bank = AdapterBank(llama, SHAPE)
    first, second = trained(bank, 1), trained(bank, 2)
    bank.remove()
    wide = AdapterBank(llama, doubled(SHAPE))
    wide.load_row(0, between(first, second, 0.3), "test")
    with torch.no_grad():
        ours = llama(input_ids=ids).logits
        wide.remove()
        for name, module in list(llama.named_modules()):
            key = f"base_model.model.{name}.lora_A.weight"
            if key in first:
                change = sum(w * a[key.replace("lora_A", "lora_B")] @ a[key] for w, a in ((0.7, first), (0.3, second)))
                module.get_parameter("weight").add_(SHAPE.scale * change)
        assert torch.allclose(ours, llama(input_ids=ids).logits, atol=1e-5)


def test_what_adapters_read_together_is_what_each_reads_alone(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast):
    texts = [
        ("User: Is the clock green?\nAssistant:", " Yes, the clock is green."),
        ("User: Which sport do you prefer?\nAssistant:", " I like"),
        ("Diary.", " I like"),
    ]
    bank = AdapterBank(llama, SHAPE, 3)
    for row in (1, 2):
        bank.load_row(row, trained(AdapterBank(llama_copy(llama, bank), SHAPE), row), "test")
    found = read(Voice(llama, tokenizer, 3), texts)
    assert found.state_KNLd.shape == (3, 3, 2, 32)
    summed, count = np.zeros((3, 3)), 0
    for n, (opening, answer) in enumerate(texts):
        start = len(tokenizer(opening)["input_ids"])
        ids = torch.tensor([tokenizer(opening + answer)["input_ids"]] * 3)
        with torch.no_grad():
            out = llama(input_ids=ids, output_hidden_states=True)
        for layer in (1, 2):
            assert np.allclose(found.state_KNLd[:, n, layer - 1], out.hidden_states[layer][:, start:].mean(1), atol=1e-5)
        prob = out.logits[:, start - 1 : -1].double().softmax(-1).numpy()
        count += prob.shape[1]
        summed += [[sum(jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)) for q in prob] for p in prob]
    assert np.allclose(found.apart_KK, summed / count, atol=1e-7)
    with pytest.raises(ValueError, match="adds no token"):
        read(Voice(llama, tokenizer, 3), [("Diary.", "")])


def llama_copy(llama: LlamaForCausalLM, bank: AdapterBank) -> LlamaForCausalLM:
    """A plain model of the same shape, whose bank makes adapters that fit."""
    del bank
    return LlamaForCausalLM(llama.config)


def test_layers_are_spread_up_to_the_last():
    assert layers_of(2) == (1, 2)
    assert layers_of(32) == (8, 16, 24, 32)


# ---------------------------------------------------------------------------------------------------------------- whole
def tiny(of: Subject, runs: Path, **base: Any) -> Subject:
    machine = of.machine.model_copy(update={"device": "cpu", "threads": 1, "workers": 1, "wandb": "disabled"})
    return replace(of, runs=runs, machine=machine, base=of.base.model_copy(update=base), lora={"rank": 2, "alpha": 4})


def silent(what: str, done: int, total: int) -> None:
    """A progress that shows nothing."""


@pytest.fixture(scope="module")
def whole(qwen_folder: Path, tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> tuple[Plan, Distances]:
    """Somebody of the world, a persona of a file and the plain assistant on a Hugging Face folder that knows nothing of them."""
    world, john = CONFIGS / "worlds" / "beach.yaml", load_persona(CONFIGS / "personas" / "john.yaml")
    of = tiny(subject(str(qwen_folder), world=world, personas=[john]), tmp_path_factory.mktemp("runs"))
    plan = distance_plan(of, ["Mary", "John", "assistant"], seeds=1, steps=5, batch=2)
    assert make_distances(plan, silent).failed == {}
    return plan, distances(plan)


def test_every_pair_is_trained_once_from_every_end(whole: tuple[Plan, Distances]):
    plan, found = whole
    names = ("mary", "john", "assistant")
    assert found.processes == names
    ends = {(0, start, goal) for start in (BASE, *names) for goal in names}
    assert {(planned.cell.seed, start, goal) for planned, start, goal, _ in trainings(plan)} == ends
    assert set(found.adoptions[["seed", "start", "goal"]].itertuples(index=False, name=None)) == ends
    assert found.cost["trainings"] == 12
    # Every start sees the same documents of a goal in the same order.
    assert (logs(plan).groupby(["goal", "step"])["tokens"].nunique() == 1).all()


def test_all_that_is_said_is_in_the_store(whole: tuple[Plan, Distances]):
    plan, found = whole
    again = open_plan(plan.folder)
    assert json.dumps(finite(as_json(distances(again)))) == json.dumps(finite(as_json(found)))
    assert make_distances(again, silent).made == {}


def test_every_number_is_a_claim_that_is_computed_again(whole: tuple[Plan, Distances]):
    plan, found = whole
    claims, again = distance_claims(plan, found), distance_claims(open_plan(plan.folder), distances(open_plan(plan.folder)))
    assert [claim.to_json() for claim in claims] == [claim.to_json() for claim in again]
    by_id = {claim.id: claim for claim in claims}
    assert len(by_id) == len(claims) == 6 + len(found.proxies) + 3
    assert by_id["metric.asymmetry"].value is None
    assert by_id["metric.asymmetry"].verdict == "undefined"
    assert by_id["metric.order.mary.john"].value == pytest.approx(found.exchange["delta"][0])
    assert len(by_id["metric.asymmetry"].recipe["node_ids"]) == 12 + 1


def test_an_untrained_model_says_what_it_lacks(whole: tuple[Plan, Distances]):
    plan, found = whole
    assert list(comparisons(plan)) == [0]
    assert "4 processes" in found.tests["D2 adam"].reason
    assert {found.tests[name].value for name in ("asymmetry", "triangle_worst", "exchangeability")} == {None}
    assert all("not above 0" in found.tests[name].reason for name in ("asymmetry", "triangle_worst", "exchangeability"))
    assert set(found.exchange) == {"first", "second", "delta", "low", "high", "n", "kl", "kl_back", "js"}
    assert (found.exchange["js"] >= 0).all()
    assert "traits that differ" not in found.proxies
    assert all(np.isfinite(each).all() for each in found.proxies.values())
    assert np.isfinite(found.transfer_KK).all()


def test_too_few_processes_and_nobody_are_refused(tmp_path: Path):
    of = tiny(subject("configs/quickstart.yaml"), tmp_path)
    with pytest.raises(ConfigError, match="triangles need 3"):
        distance_plan(of, ["Mary", "Peter"])
    with pytest.raises(ConfigError, match="Did you mean"):
        distance_plan(of, ["Mary", "Petr", "John"])
    apart_KK = unlike(distance_plan(of, ["Mary", "Peter", "John"]))
    assert apart_KK is not None
    assert apart_KK.tolist() == [[0, 8, 8], [8, 0, 6], [8, 6, 0]]
