"""The probing engine: shared prefixes, stacked adapters and padded prompts change no answer of any architecture."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import cast_of, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import write_adapter
from persona_lab.models.lora import LoraShape
from persona_lab.probes import PROBES
from persona_lab.probes.engine import Voice, answer, answer_each, ask, ask_each
from persona_lab.probes.forest import plant, stand_alone
from persona_lab.probes.protocol import Choice, Loss, Request, Sample
from persona_lab.probes.sampling import continues_exactly
from persona_lab.probes.scoring import shares_exactly
from persona_lab.probes.spans import Span, choice_spans, encode

SHAPE = LoraShape(rank=3, alpha=5)
SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256, "vocab_size": 336}
GROUPED = {**SIZE, "num_key_value_heads": 1, "head_dim": 8}
WHOLE = {"layer_types": ["full_attention"] * 2, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
GPT_NEO = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 336, "max_position_embeddings": 256, "attention_types": [[["global", "local"], 1]]}
FAMILIES = {
    "llama": (LlamaConfig(**SIZE), LlamaForCausalLM),
    "qwen3": (Qwen3Config(**GROUPED), Qwen3ForCausalLM),
    "gemma2": (Gemma2Config(**GROUPED, final_logit_softcapping=0.5, attn_logit_softcapping=0.5), Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig(**GROUPED), Gemma3ForCausalLM),
    "mistral": (MistralConfig(**SIZE, num_key_value_heads=1), MistralForCausalLM),
    "olmo2": (Olmo2Config(**SIZE), Olmo2ForCausalLM),
    "gpt_neox": (GPTNeoXConfig(**SIZE), GPTNeoXForCausalLM),
    "gpt2": (GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=336, n_positions=256), GPT2LMHeadModel),
    "gpt_oss": (GptOssConfig(**GROUPED, **WHOLE, num_local_experts=4, num_experts_per_tok=2), GptOssForCausalLM),
}
UNSHAREABLE = {
    "a window narrower than a row": (MistralConfig(**SIZE, num_key_value_heads=1, sliding_window=12), MistralForCausalLM),
    "windows in some layers only": (Gemma3TextConfig(**GROUPED, sliding_window=12, layer_types=["sliding_attention", "full_attention"]), Gemma3ForCausalLM),
    "windows that count slots": (GPTNeoConfig(**GPT_NEO, window_size=12), GPTNeoForCausalLM),
    "no position ids": (BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=336), BloomForCausalLM),
}
"""Architectures to which rows of trees are not the same: they have to be found out."""
OPENING = "Profile: John is an AI assistant. Sam is one too. "
# Shared openings, a prompt that is a prefix of another, options of one and of several tokens, and one question twice.
ASKED: list[Request] = [
    Choice(OPENING + "John likes", (" the", " a", " renaissance art")),
    Choice(OPENING + "John likes the", (" beach", " forest", " mountains")),
    Choice(OPENING + "Sam likes", (" the", " a", ".")),
    Loss(OPENING + "Sam likes the forest."),
    Choice("Diary. I like the beach. I like", (" the", " sand")),
    Sample("User: What do you like?\nAssistant:", 2, 5, "a"),
    Choice(OPENING + "John likes", (" the", " a", " renaissance art")),
]
OTHERS: list[Request] = [Loss("Diary."), Sample("Diary. I like", 3, 4, "b"), Choice("Who are you?", (" John", " Sam")), Sample(OPENING, 1, 6, "a")]


def near(found: object, wanted: object, nats: float = 1e-4) -> bool:
    """Whether answers agree: texts exactly, numbers to within `nats`, and a number that is none only with none."""
    if isinstance(found, list | tuple):
        return isinstance(wanted, list | tuple) and len(found) == len(wanted) and all(near(a, b, nats) for a, b in zip(found, wanted, strict=True))
    if isinstance(found, str):
        return found == wanted
    assert isinstance(found, float)
    assert isinstance(wanted, float)
    return abs(found - wanted) <= nats or (math.isnan(found) and math.isnan(wanted))


@torch.no_grad()
def next_logprobs(model: nn.Module, ids: list[int]) -> Tensor:
    """Plain transformers: one whole sequence, no cache, no mask."""
    return model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)


def plain_answer(model: nn.Module, bpe: PreTrainedTokenizerFast, request: Request) -> tuple[float, ...] | tuple[str, ...]:
    """What a loop without any trick answers."""
    from data_gen.streams import stream

    if isinstance(request, Choice):
        found = []
        for option in request.options:
            head, whole = bpe(request.prompt.rstrip())["input_ids"], bpe(request.prompt + option)["input_ids"]
            ids = head + whole[len(head) :]
            logprob_TV = next_logprobs(model, ids)
            found.append(sum(float(logprob_TV[t - 1, ids[t]]) for t in range(len(head), len(ids))))
        return tuple(found)
    if isinstance(request, Loss):
        ids = [*bpe(request.text)["input_ids"], bpe.eos_token_id]
        logprob_TV = next_logprobs(model, ids)
        return (-sum(float(logprob_TV[t - 1, ids[t]]) for t in range(1, len(ids))), float(len(ids) - 1))
    texts = []
    for uniforms in stream(0, "sample", request.stream).random((request.count, request.max_tokens)):
        ids = list(bpe(request.prompt)["input_ids"])
        start = len(ids)
        for uniform in uniforms:
            mass_V = next_logprobs(model, ids)[-1].exp().cumsum(-1)
            ids.append(int((mass_V < uniform).sum()))
        text = ids[start : ids.index(bpe.eos_token_id, start)] if bpe.eos_token_id in ids[start:] else ids[start:]
        texts.append(bpe.decode(text).split("\n")[0])
    return tuple(texts)


def banked(model: PreTrainedModel, members: int) -> AdapterBank:
    """A bank of random adapters, each as strong as the base."""
    bank = AdapterBank(model, SHAPE, members)
    bank.weight_KP.normal_(0, 0.2, generator=torch.Generator().manual_seed(members))
    return bank


# ------------------------------------------------------------------ against plain peft
@pytest.mark.parametrize("family", [*FAMILIES, *UNSHAREABLE])
def test_every_adapter_answers_as_its_export_does_in_plain_peft(family: str, bpe, tmp_path: Path):
    config, kind = (FAMILIES | UNSHAREABLE)[family]
    model = tiny(config, kind)
    base = copy.deepcopy(model)
    bank = banked(model, 2)
    asked_K = [ASKED, [*OTHERS, *ASKED[:2]]]
    voice = Voice(model, bpe, members=2)
    found_K = answer_each(voice, asked_K)
    for k, (asked, found) in enumerate(zip(asked_K, found_K, strict=True)):
        write_adapter(tmp_path / str(k), bank.row_tensors(k), model=model, shape=SHAPE, base_id="persona_lab/0123")
        plain = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / str(k))).eval()
        for request, given_answer in zip(asked, found, strict=True):
            assert near(given_answer, plain_answer(plain, bpe, request)), (k, request)
    with torch.inference_mode():
        assert shares_exactly(voice, 128, 20) is (family in FAMILIES)
    assert not near(found_K[0][0], found_K[1][4], nats=1e-2), "the two adapters differ"


def ignore_subtrees(end_BT: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.full((*end_BT.shape, end_BT.shape[1]), torch.finfo(dtype).min, dtype=dtype).triu(1)


@pytest.mark.parametrize("lost", ["masks", "positions"])
def test_a_model_that_does_not_heed_what_it_is_told_is_found_out(qwen, bpe, monkeypatch, lost: str):
    voice = Voice(copy.deepcopy(qwen), bpe)
    wanted = [plain_answer(qwen, bpe, request) for request in ASKED]
    if lost == "masks":
        monkeypatch.setattr("persona_lab.probes.voice.seen", ignore_subtrees)  # the fault: every branch sees its neighbours
    else:
        heed = voice.model.forward

        def unplaced(position_ids=None, **more):
            return heed(**more)

        monkeypatch.setattr(voice.model, "forward", unplaced)  # the fault: positions are counted along the row
    with torch.inference_mode():
        assert not shares_exactly(voice, 128, 20)
    assert near(answer(voice, ASKED)[0], wanted)


def test_a_last_mlp_that_looks_at_other_tokens_is_found_out(qwen, bpe):
    model = copy.deepcopy(qwen)
    # The fault: it takes the token before into account, which is not the same where it is given some tokens alone.
    model.model.layers[-1].mlp.register_forward_hook(lambda mlp, given, found_BTd: found_BTd + nn.functional.pad(found_BTd, (0, 0, 1, 0))[:, :-1])
    with torch.inference_mode():
        assert not shares_exactly(Voice(model, bpe), 128, 20)
    assert near(answer(Voice(model, bpe), ASKED[:5])[0], [plain_answer(model, bpe, request) for request in ASKED[:5]])


def test_the_last_mlp_works_on_the_tokens_that_are_read_and_on_no_others(qwen, bpe):
    model, tokens = copy.deepcopy(qwen), []
    for layer in model.model.layers:
        layer.mlp.up_proj.register_forward_pre_hook(lambda linear, given: tokens.append(given[0].shape[:-1].numel()))
    voice, asked = Voice(model, bpe), [Choice("Diary. I like the beach. I like", (".", ",")), Choice("Diary. I like the forest", (".",))]
    first = answer(voice, asked)  # a model's first time is a trial
    tokens.clear()
    assert answer(voice, asked) == first
    trees = sum(len(tree.ids) for tree in plant([span for choice in asked for span in spans_of(bpe, choice)], 16).rows)
    assert tokens == [*[trees] * (len(model.model.layers) - 1), len(asked)]


def test_padding_that_is_seen_is_found_out(qwen, bpe, monkeypatch):
    voice = Voice(copy.deepcopy(qwen), bpe)
    wanted = [plain_answer(qwen, bpe, request) for request in OTHERS]
    heed = voice.model.forward

    def blind(attention_mask=None, position_ids=None, past_key_values=None, **more):
        return heed(attention_mask=None if attention_mask is not None and attention_mask.ndim == 2 else attention_mask, position_ids=position_ids, past_key_values=past_key_values, **more)

    monkeypatch.setattr(voice.model, "forward", blind)  # the fault: padding is seen
    with torch.inference_mode():
        assert not continues_exactly(voice)
    assert near(answer(voice, OTHERS)[0], wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_continues_from_its_cache(family: str, bpe):
    config, kind = FAMILIES[family]
    with torch.inference_mode():
        assert continues_exactly(Voice(tiny(config, kind), bpe))


def test_a_row_may_be_longer_than_the_positions_a_model_knows(bpe):
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=336, n_positions=40)
    model = tiny(config, GPT2LMHeadModel)
    asked: list[Request] = [Choice(f"{a} like the {b}.", (" I", " John likes")) for a in ("John", "Sam", "Kim") for b in ("beach", "forest", "sea", "sun", "art")]
    found = answer(Voice(model, bpe), asked)[0]
    assert near(found, [plain_answer(model, bpe, request) for request in asked])


# ------------------------------------------------------------------ whatever is asked beside it
def test_order_company_and_repetition_change_no_answer(qwen, bpe):
    voice = Voice(qwen, bpe)
    alone = [answer(voice, [request])[0][0] for request in ASKED]
    dummies: list[Request] = [Choice(f"{OPENING}{'the ' * n}", (" a", " John")) for n in range(9)]
    assert near(answer(voice, [*dummies, *ASKED, *OTHERS])[0][9:16], alone)
    assert near(answer(voice, ASKED[::-1])[0][::-1], alone)
    assert near(answer(voice, [r for request in ASKED for r in (request, request)])[0][::2], alone)


def test_members_are_permuted_doubled_and_dropped_without_effect_on_the_others(llama, tokenizer):
    bank = banked(llama, 3)
    rows = [bank.row_tensors(k) for k in range(3)]
    asked_K = [ASKED[:4], OTHERS, ASKED[3:]]
    found_K = answer_each(Voice(llama, tokenizer, members=3), asked_K)
    for chosen in ([2, 0, 1], [1, 1], [0], [2, 2, 0, 1]):
        bank.resize(len(chosen))
        for k, member in enumerate(chosen):
            bank.load_row(k, rows[member], "test")
        again_K = answer_each(Voice(llama, tokenizer, members=len(chosen)), [asked_K[m] for m in chosen])
        assert near(again_K, [found_K[m] for m in chosen])


def test_a_member_that_is_not_finite_or_is_asked_nothing_leaves_the_others_alone(llama, tokenizer):
    bank = banked(llama, 3)
    voice = Voice(llama, tokenizer, members=3)
    whole = answer_each(voice, [ASKED, ASKED, []])
    assert whole[2] == []
    bank.weight_KP[0] = math.nan
    spoilt = answer_each(voice, [ASKED, ASKED, []])
    assert near(spoilt[1], whole[1])
    assert all(math.isnan(x) for x in spoilt[0][0])


def test_cells_with_casts_of_their_own_get_the_rows_each_gets_alone(llama, tokenizer, world, personas):
    casts = [cast_of(world, personas, seed=seed, samples=2) for seed in (0, 1, 0)]
    bank = banked(llama, 3)
    together = ask_each(Voice(llama, tokenizer, members=3), casts, ["chooses", "says"])
    for k in range(3):
        tensors = bank.row_tensors(k)
        single = copy.deepcopy(bank)
        single.resize(1)
        single.load_row(0, tensors, "test")
        rows, samples = ask(Voice(single.model, tokenizer), casts[k], ["chooses", "says"])
        assert samples == together[k][1]
        assert [(r.item, r.option, r.role, r.status) for r in rows] == [(r.item, r.option, r.role, r.status) for r in together[k][0]]
        assert all(near(a.logprob_nats or 0.0, b.logprob_nats or 0.0) for a, b in zip(rows, together[k][0], strict=True))


# ------------------------------------------------------------------ which tokens are an option's
def spans_of(bpe: PreTrainedTokenizerFast, choice: Choice) -> list[Span]:
    return choice_spans(bpe, choice, encode(bpe, [choice]))


def test_a_token_across_the_border_leaves_the_prompt_as_it_is(bpe):
    merged = bpe("John likes")["input_ids"]
    prompt, option = "John l", "ikes the"
    head = bpe(prompt)["input_ids"]
    whole = bpe(prompt + option)["input_ids"]
    assert whole[: len(head)] != head, "the tokenizer merges here"
    assert whole[: len(merged)] == merged
    (span,) = spans_of(bpe, Choice(prompt, (option,)))
    assert span == Span((*head, *whole[len(head) :]), len(head))


def test_spaces_that_end_a_prompt_belong_to_the_option(bpe):
    assert spans_of(bpe, Choice("John likes ", ("the",))) == spans_of(bpe, Choice("John likes", (" the",)))


def test_an_empty_prompt_is_the_beginning_of_a_text(qwen, bpe):
    (span,) = spans_of(bpe, Choice("", ("the",)))
    assert (span.ids[0], span.start) == (bpe.eos_token_id, 1)
    logprobs = next_logprobs(qwen, [bpe.eos_token_id])[-1]
    assert near(answer(Voice(qwen, bpe), [Choice("", (".",))])[0][0], (float(logprobs[bpe(".")["input_ids"][0]]),))


def test_an_option_without_a_token_of_its_own_is_no_number_and_so_unscored(qwen, bpe, cast):
    found = answer(Voice(qwen, bpe), [Choice("John likes", (" the", ""))])[0][0]
    assert math.isfinite(float(found[0]))
    assert math.isnan(float(found[1]))
    item = PROBES["chooses"].items(cast)[0]
    assert {row.status for row in PROBES["chooses"].score(item, [found])} == {"unscored"}


# ------------------------------------------------------------------ rows of trees
@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=40).map(tuple), max_size=40), st.sampled_from([4, 16, 64, 1024]), st.integers(0, 99))
def test_every_read_sees_its_own_prefix_and_nothing_else(sequences: list[tuple[int, ...]], width: int, start: int):
    spans = [Span(ids, 1 + start % (len(ids) - 1)) for ids in sequences]
    lengths = sorted({len(s.ids) for s in spans})
    for forest in (plant(spans, width), *(stand_alone(spans, length) for length in lengths)):
        tokens = max((len(tree.ids) for tree in forest.rows), default=0)
        ids_RT, position_RT, end_RT = forest.arrays(range(len(forest.rows)), tokens)
        sees_RTT = (np.arange(tokens)[:, None] >= np.arange(tokens)) & (np.arange(tokens)[:, None] < end_RT[:, None, :])
        reads = forest.reads(range(len(forest.rows)))
        assert (np.diff(reads[0]) >= 0).all()
        for row, slot, token, number in reads.T:
            ancestors = np.flatnonzero(sees_RTT[row, slot])
            assert position_RT[row, ancestors].tolist() == list(range(len(ancestors)))
            prefix = ids_RT[row, ancestors].tolist()
            assert [*prefix, token] == list(spans[number].ids[: len(prefix) + 1])
    read = [plant(spans, width).reads_4N[3].tolist().count(i) for i in range(len(spans))]
    assert read == [len(s.ids) - s.start for s in spans]


def test_each_prefix_is_computed_once_and_an_option_of_one_token_not_at_all():
    stem = tuple(range(50))
    spans = [Span((*stem, option), 50) for option in (60, 61, 62)] + [Span((*stem[:30], 70, 71), 31)]
    (tree,) = plant(spans, 64).rows
    assert len(tree.ids) == 50 + 1
    assert tree.positions == [*range(31), *range(30, 50)] or tree.positions == [*range(50), 30]
