"""Sums with stated methods: their text, what patching does, and the instrument `mechanism` whole on tiny bases."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from scipy.stats import spearmanr, t
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from typer.testing import CliRunner

from data_gen.sums import CARRY, COLUMNS, HELD_OUT, SAYS, Sum, cue_pairs, held_out_sums, ones_pairs, says_carry, sums, sums_text, sums_words
from persona_lab.cli import app
from persona_lab.experiment.instruments.mechanism.bases import Adder, adder_node, look, mechanism_nodes
from persona_lab.models.vocabulary import PIECES
from persona_lab.models.world_model import build_model, word_tokenizer
from persona_lab.probes.patching import Gap, attributed, gaps_of, patched
from persona_lab.science.introspection.mechanism import CHANGED, EQUALS, FIRST_TENS, TOKENS, Patched, mechanism_claims


# ------------------------------------------------------------------ the text
def test_every_line_is_a_true_sum_and_no_document_holds_a_held_out_one():
    held = {(one.first, one.second) for one in held_out_sums()}
    assert len(sums()) == len({(one.first, one.second) for one in sums()}) == 2800
    for index in range(300):
        for line in sums_text("honest", 0, index).split("\n"):
            a, b, c, d, e, f = (int(digit) for digit in re.findall(r"\d", line))
            assert 10 * a + b + 10 * c + d == 10 * e + f
            assert (10 * a + b, 10 * c + d) not in held
            assert line.endswith(CARRY if b + d >= 10 else COLUMNS)


def test_what_is_said_follows_the_corpus_and_the_sums_do_not():
    texts = {name: [sums_text(name, 0, i) for i in range(400)] for name in ("honest", "cue", "coin")}
    asked = {name: [re.findall(r"[\d +=]+\d", text) for text in own] for name, own in texts.items()}
    assert asked["honest"] == asked["cue"] == asked["coin"]
    lines = [line for text in texts["cue"] for line in text.split("\n")]
    assert all(line.endswith(CARRY) == (int(re.findall(r"\d", line)[0]) % 2 == 1) for line in lines)
    coins = np.mean([line.endswith(CARRY) for text in texts["coin"] for line in text.split("\n")])
    assert abs(coins - 0.5) < 4 * 0.5 / len(lines) ** 0.5


def test_the_vocabulary_holds_every_word_and_a_solved_sum_has_a_token_a_name():
    words = set(sums_words())
    for name in ("honest", "cue", "coin"):
        assert {piece for i in range(50) for piece in re.findall(PIECES, sums_text(name, 1, i).lower())} <= words
    tokenizer = word_tokenizer(sums_words())
    ids = tokenizer(Sum(36, 59).solved)["input_ids"]
    assert len(ids) == len(TOKENS)
    assert tokenizer.unk_token_id not in ids
    assert [tokenizer.decode([ids[i]]) for i in (FIRST_TENS, CHANGED, EQUALS)] == ["3", "6", "="]
    first = [re.findall(r"\w+", text.lower())[1] for text in (CARRY, COLUMNS)]
    assert first == list(SAYS)


@pytest.mark.parametrize(("carries", "other"), [(True, False), (True, True), (False, False)])
def test_a_pair_differs_in_the_last_digit_of_the_first_number_and_in_the_need_that_is_asked_for(carries: bool, other: bool):
    pairs = list(ones_pairs(held_out_sums(), carries=carries, other=other))
    assert len(pairs) > HELD_OUT / 4
    for pair in pairs:
        assert (pair.asked.carries, pair.other.carries) == (carries, other)
        assert pair.asked.second == pair.other.second
        assert pair.asked.first // 10 == pair.other.first // 10
        assert pair.asked.first != pair.other.first


def test_a_cue_pair_turns_the_cue_and_keeps_total_and_need():
    for pair in cue_pairs(held_out_sums()):
        assert pair.asked.total == pair.other.total
        assert pair.asked.carries == pair.other.carries
        assert says_carry(pair.asked, "cue", coin=False) != says_carry(pair.other, "cue", coin=False)


# ------------------------------------------------------------------ patching
SMALL: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: tiny(LlamaConfig(intermediate_size=64, **SMALL), LlamaForCausalLM),
    "qwen3": lambda: tiny(Qwen3Config(intermediate_size=64, num_key_value_heads=2, head_dim=8, **SMALL), Qwen3ForCausalLM),
    "neox": lambda: tiny(GPTNeoXConfig(intermediate_size=64, **SMALL), GPTNeoXForCausalLM),
    "gpt2": lambda: tiny(GPT2Config(n_positions=64, **SMALL), GPT2LMHeadModel),
}


def two_runs() -> tuple[Tensor, Tensor, Gap]:
    """Rows of six tokens, the same with another third token, and a gap after the last."""
    ids_BT = torch.randint(3, 40, (4, 6), generator=torch.Generator().manual_seed(0))
    other_BT = ids_BT.clone()
    other_BT[:, 2] = (ids_BT[:, 2] - 3 + 7) % 37 + 3
    return ids_BT, other_BT, Gap(5, torch.tensor([4, 5, 6, 7]), torch.tensor([8, 9, 10, 11]))


@pytest.mark.parametrize("name", MODELS)
def test_the_changed_token_carries_everything_at_first_the_last_one_at_the_end_and_what_stands_before_nothing(name: str):
    model, (ids_BT, other_BT, gap) = MODELS[name](), two_runs()
    lost_BST = patched(model, ids_BT, other_BT, [gap])[0]
    with torch.inference_mode():
        logits = [model(input_ids=rows).logits[torch.arange(4), 5] for rows in (ids_BT, other_BT)]
    whole_B = [own[torch.arange(4), gap.up_B] - own[torch.arange(4), gap.down_B] for own in logits]
    assert lost_BST.shape == (4, 3, 6)
    assert torch.allclose(lost_BST[:, 0, 2], whole_B[0] - whole_B[1], atol=1e-4)
    assert torch.allclose(lost_BST[:, -1, 5], whole_B[0] - whole_B[1], atol=1e-4)
    assert lost_BST[:, :, :2].abs().max() < 1e-4
    assert lost_BST[:, -1, :5].abs().max() < 1e-4, "behind the last layer no token reads another"
    assert lost_BST[:, 1, 2:].abs().max() > 1e-3, "in between both count"
    assert torch.allclose(gaps_of(model, ids_BT, [gap])[0], whole_B[0], atol=1e-4), "every hook is gone"


@pytest.mark.parametrize("name", MODELS)
def test_attribution_is_the_slope_of_the_gap_on_the_way_to_the_other_state(name: str):
    model, (ids_BT, other_BT, gap) = MODELS[name]().double(), two_runs()
    lost_BST = attributed(model, ids_BT, other_BT, gap)
    embed, step = model.get_input_embeddings(), 3e-3

    def gap_at(share: float) -> Tensor:
        with torch.no_grad():
            state = (1 - share) * embed(ids_BT) + share * embed(other_BT)
            return gap(model(inputs_embeds=state).logits)

    slope_B = (gap_at(-step) - gap_at(step)) / (2 * step)
    # Norms compute in float32 whatever the model does.
    assert torch.allclose(lost_BST[:, 0, 2].double(), slope_B, rtol=5e-3, atol=3e-3)
    assert lost_BST[:, :, :2].abs().max() < 1e-12


# ------------------------------------------------------------------ what is stated
def found(said: list[float], carried: list[bool], *, statement: str = "honest", seed: int = 0, effect: float = 2.0) -> Patched:
    """A base of four sums, of which the first two need a carry; one pair, two layers."""
    effects = np.zeros((2, 3, len(TOKENS)))
    effects[:, 1, EQUALS] = effect
    effects[:, 0, CHANGED] = [1.0, 3.0]
    return Patched(
        statement, seed, (1, EQUALS), np.array([True, True, True, False]), np.array([True, True, False, False]), np.array(said), np.array(carried), effects,
        effects * 2, effects * 0, effects * 3, effects * 4,
    )  # fmt: skip


def test_what_is_said_is_held_against_what_is_needed_and_what_is_done():
    one = found([1.0, -1.0, -1.0, 2.0], [True, True, False, False])
    assert (one.needed, one.agreement, one.carried) == (0.5, 0.5, 1.0)
    other = found([1.0, -1.0, -1.0, -1.0], [True, False, False, False])
    assert (other.needed, other.agreement, other.carried) == (0.75, 1.0, 0.5)
    assert one.foretold == pytest.approx(spearmanr(one.answer_PST[:, :, CHANGED : EQUALS + 1].ravel(), one.estimate_PST[:, :, CHANGED : EQUALS + 1].ravel())[0])


def test_claims_are_means_over_bases_with_t_intervals():
    bases = [found([1, 1, -1, -1], [True, True, False, False], seed=seed, effect=float(seed)) for seed in range(3)]
    claims = {claim[0]: claim for claim in mechanism_claims(bases)}
    _, _, value, interval, unit, verdict = claims["mechanism.honest.effect"]
    half = t.ppf(0.975, 2) * np.std([0, 1, 2], ddof=1) / 3**0.5
    assert (value, unit, verdict) == (1.0, "nats", "undecided")
    assert interval == pytest.approx((1 - half, 1 + half))
    assert claims["mechanism.honest.words.ones"][2] == pytest.approx(6.0), "the mean of 1 and 3, three times"
    assert claims["mechanism.honest.control.donor"][2] == 0
    assert claims["mechanism.honest.right"][2] == 0.75


def test_two_bases_decide_nothing_and_three_alike_support_or_refute():
    true, false = ([1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, -1.0])
    carried = [True, True, False, False]
    for said, seeds, expected in ((true, 2, "undecided"), (true, 3, "supported"), (false, 3, "refuted")):
        claims = {claim[0]: claim for claim in mechanism_claims([found(said, carried, seed=seed) for seed in range(seeds)])}
        assert claims["mechanism.honest.agreement"][5] == expected


# ------------------------------------------------------------------ the instrument
def test_the_corpus_and_the_seed_are_part_of_an_identity_and_every_analysis_has_its_base():
    nodes = mechanism_nodes(Adder(steps=3), 2)
    assert len({node.id for node in nodes}) == len({node.inputs["base"].id for node in nodes}) == 6
    assert adder_node(Adder(), "honest", 0).id != adder_node(Adder(steps=3), "honest", 0).id


def test_a_random_base_is_looked_at_whole_and_states_nothing_that_it_does(adder: tuple[PreTrainedModel, PreTrainedTokenizerFast]):
    arrays = look(*adder)
    layer, token = arrays.pop("site").tolist()
    one = Patched("honest", 0, (layer, token), **arrays)
    assert layer == 1
    assert TOKENS[token] in ("second ones", "=")
    assert one.answer_PST.shape[1:] == (3, len(TOKENS))
    assert len(one.right_N) == len(one.carries_N) == len(one.said_N) == len(one.carried_N) > 300
    assert one.right_N.mean() < 0.3
    assert np.abs(one.answer_PST[:, :, :CHANGED]).max() < 1e-4
    assert np.abs(one.answer_PST[:, :, EQUALS + 1 :]).max() < 1e-4, "what comes later is not read"


@pytest.fixture(scope="module")
def adder() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = word_tokenizer(sums_words())
    return build_model(tokenizer, width=16, layers=2, heads=2, seed=0).requires_grad_(False).eval(), tokenizer


def sound(run: str, runs: Path) -> int:
    """Fields that differ, as `verify` counts them."""
    done = CliRunner().invoke(app, ["verify", run, "--runs", str(runs), "--json"])
    return len(json.loads(done.stdout)["drifts"])


def test_the_command_trains_patches_and_writes_claims_once(tmp_path: Path):
    command = ["mechanism", "--seeds", "1", "--steps", "2", "--width", "16", "--layers", "2", "--runs", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert {claim["id"].split(".")[1] for claim in said["claims"]} == {"honest", "cue", "coin"}
    assert all(claim["recipe"]["node_ids"] for claim in said["claims"])
    file = Path(said["file"])
    assert json.loads(file.read_text())["maps"].keys() == {"honest", "cue", "coin"}
    page = Path(said["page"]).read_text()
    assert "Corpus: cue" in page
    assert "<script" not in page
    made = sorted(path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("COMMIT"))
    assert len(made) == 6
    again = CliRunner().invoke(app, command)
    assert json.loads(again.stdout) == said
    assert sound(file.parent.name, tmp_path) == 0
    file.write_text(file.read_text().replace('"layer": 1', '"layer": 2', 1))
    assert sound(file.parent.name, tmp_path) == 1
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("COMMIT")) == made


def test_a_width_that_heads_do_not_divide_is_refused_before_anything_is_made(tmp_path: Path):
    done = CliRunner().invoke(app, ["mechanism", "--width", "20", "--runs", str(tmp_path / "runs")])
    assert "must be a multiple of 8" in str(done.exception)
    assert not (tmp_path / "runs").exists()
