"""Sampled continuations, for every adapter of a bank together.

Inverse-transform sampling: the t-th token of an answer is where the t-th uniform number of its own stream falls in the
distribution. So the same stream gives the same answer alone, in any batch, and in any bank; two computations of one
distribution differ by rounding, and an answer changes with them only where its number falls between the two.

Each prompt is computed once for all its answers. Prompts are padded on the left, and what stands there is never seen;
a model that does not answer then as it does without, which is tried, is given whole rows of equal length at every step.

Names: K members, B prompts (K times as many, member by member), N answers (the same), T tokens, V vocabulary.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from persona_lab.models.packing import TOLERANCE, read_at
from persona_lab.probes.voice import LOGITS_AT_ONCE, Voice

CACHED_AT_ONCE = 1 << 16
"""Tokens of all the answers that are written together."""

GREEDY = -1.0
"""In the place of a random number: the likeliest token."""

Writer = Generator[Tensor, Tensor, None]
"""Gives logits_NV of the next token of each answer, and is sent the token_N that was chosen."""

_exact: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


class Draw(NamedTuple):
    """One answer to be sampled."""

    ids: tuple[int, ...]
    """The prompt."""
    uniform_T: np.ndarray
    """A number for each token, or `GREEDY`; at most as many tokens as there are numbers."""
    number: int
    """Its place among the member's draws."""


def sampled_texts(voice: Voice, draws_K: Sequence[Sequence[Draw]]) -> list[list[str]]:
    """For each member the text of each draw, in order of their numbers: up to the first line break or end of text."""
    texts_K = [[""] * len(draws) for draws in draws_K]
    if not any(draws_K):
        return texts_K
    cached = continues_exactly(voice)
    for together_K in _batches(voice, draws_K, equal_lengths=not cached):
        prompts, answer_N = _prompts(together_K)
        writer = cached_writer(voice, prompts, answer_N) if cached else plain_writer(voice, [prompts[b] for b in answer_N])
        asked = [(texts, draw) for texts, draws in zip(texts_K, together_K, strict=True) for draw in draws]
        uniform_NT = torch.from_numpy(_padded([draw.uniform_T for _, draw in asked])).to(voice.model.device)
        written = write_tokens(writer, uniform_NT, lambda token: ends_answer(voice.tokenizer, token))
        for (texts, draw), ids in zip(asked, written, strict=True):
            if draw.number >= 0:
                texts[draw.number] = _text(voice.tokenizer, ids[: len(draw.uniform_T)])
    return texts_K


def continues_exactly(voice: Voice) -> bool:
    """Whether this model continues padded prompts from its cache as it does without either; tried once on made-up tokens."""
    if voice.model not in _exact:
        _exact[voice.model] = voice.takes_caches and _trial(voice)
    return _exact[voice.model]


def _trial(voice: Voice) -> bool:
    made_up = [int(x) for x in np.random.default_rng(1).integers(0, voice.vocabulary, 16)]
    prompts = [tuple(made_up[:3]), tuple(made_up[3:12])] * voice.members
    token_N = torch.tensor(made_up[-2:] * voice.members, device=voice.model.device)
    cached = cached_writer(voice, prompts, list(range(len(prompts))))
    plain = [plain_writer(voice, prompts[i::2]) for i in (0, 1)]
    tolerance = TOLERANCE[next(voice.model.parameters()).dtype]
    steps = [(next(cached), [next(w) for w in plain])]
    steps += [(cached.send(token_N), [w.send(token_N[i::2]) for i, w in enumerate(plain)]) for _ in range(2)]
    return all(float((a[i::2].log_softmax(-1) - b.log_softmax(-1)).abs().max()) <= tolerance for a, both in steps for i, b in enumerate(both))


def cached_writer(voice: Voice, prompts: Sequence[tuple[int, ...]], answer_N: Sequence[int]) -> Writer:
    """Answer n continues prompt `answer_N[n]`; the prompts are computed once, then a token a step from the cache."""
    model, longest = voice.model, max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in prompts], device=model.device)
    length_B = torch.tensor([len(ids) for ids in prompts], device=model.device)
    real_BT = (torch.arange(longest, device=model.device) >= longest - length_B[:, None]).long()
    answers = torch.tensor(answer_N, device=model.device)
    last_B = torch.arange(1, len(prompts) + 1, device=model.device) * longest - 1
    with read_at(model, last_B):
        found = model(input_ids=ids_BT, attention_mask=real_BT, position_ids=(real_BT.cumsum(1) - 1).clamp_min(0), use_cache=True)
    cache, logits_NV, real_NT = found.past_key_values, found.logits[0][answers], real_BT[answers]
    cache.batch_select_indices(answers)
    while True:
        token_N = yield logits_NV
        real_NT = torch.cat([real_NT, torch.ones_like(real_NT[:, :1])], dim=1)
        place_N1 = real_NT.sum(1, keepdim=True) - 1
        found = model(input_ids=token_N[:, None], attention_mask=real_NT, position_ids=place_N1, past_key_values=cache, use_cache=True)
        logits_NV = found.logits[:, -1]


def plain_writer(voice: Voice, prompts: Sequence[tuple[int, ...]]) -> Writer:
    """One answer a prompt, all of one length, computed from the beginning at every step."""
    ids_NT = torch.tensor([list(ids) for ids in prompts], device=voice.model.device)
    while True:
        token_N = yield voice.plain_logits(ids_NT)[:, -1]
        ids_NT = torch.cat([ids_NT, token_N[:, None]], dim=1)


def write_tokens(writer: Writer, uniform_NT: Tensor, ends: Callable[[int], bool], *, temperature: float = 1.0, top_p: float = 1.0) -> list[list[int]]:
    """Token ids of each answer, until every one of them has a token that ends it, or has used its numbers; where one is `GREEDY`, the likeliest token."""
    tokens: list[list[int]] = [[] for _ in range(len(uniform_NT))]
    open_answers = set(range(len(tokens)))
    logits_NV = next(writer)
    for t in range(uniform_NT.shape[1]):
        prob_NV = (logits_NV.double() / temperature).softmax(-1)
        mass_NV = (prob_NV if top_p == 1 else nucleus(prob_NV, top_p)).cumsum(-1)
        token_N = torch.searchsorted(mass_NV, uniform_NT[:, t, None].contiguous())[:, 0].clamp(max=mass_NV.shape[1] - 1)
        token_N = torch.where(uniform_NT[:, t] == GREEDY, logits_NV.argmax(-1), token_N)
        for n, token in enumerate(token_N.tolist()):
            tokens[n].append(token)
            if ends(token):
                open_answers.discard(n)
        if not open_answers or t + 1 == uniform_NT.shape[1]:
            break
        logits_NV = writer.send(token_N)
    return tokens


def nucleus(prob_NV: Tensor, top_p: float) -> Tensor:
    """The distribution over the fewest tokens that hold `top_p` of it (Holtzman et al. 2020, 3.1)."""
    sorted_NV, order_NV = prob_NV.sort(-1, descending=True)
    kept_NV = torch.where(sorted_NV.cumsum(-1) - sorted_NV < top_p, sorted_NV, 0.0)
    return torch.zeros_like(prob_NV).scatter(-1, order_NV, kept_NV / kept_NV.sum(-1, keepdim=True))


@lru_cache(maxsize=1 << 16)
def ends_line(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether nothing after this token is part of an answer."""
    return token == tokenizer.eos_token_id or "\n" in str(tokenizer.decode([token]))


def ends_answer(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether an answer ends with this token: a line does, or a turn in the chat template that is in force."""
    return ends_line(tokenizer, token) or (bool(tokenizer.chat_template) and _ends_turn(tokenizer, token))


@lru_cache(maxsize=1 << 16)
def _ends_turn(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    return token in tokenizer.added_tokens_decoder


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    last = next((t for t, token in enumerate(ids) if ends_answer(tokenizer, token)), len(ids))
    # The line break's token may begin with text; the end of the text or of a turn never does.
    kept = ids[: last + 1] if last < len(ids) and ends_line(tokenizer, ids[last]) and ids[last] != tokenizer.eos_token_id else ids[:last]
    return str(tokenizer.decode(list(kept))).split("\n")[0]


def _batches(voice: Voice, draws_K: Sequence[Sequence[Draw]], *, equal_lengths: bool) -> Iterator[list[list[Draw]]]:
    """Draws that are written together, as many of every member: one that has fewer is filled up with draws numbered -1."""
    lengths = sorted({len(draw.ids) for draws in draws_K for draw in draws})
    for group in [[length] for length in lengths] if equal_lengths else [lengths]:
        chosen_K = [sorted((d for d in draws if len(d.ids) in group), key=lambda d: (len(d.ids), d.ids)) for draws in draws_K]
        rows = max(map(len, chosen_K))
        steps = max(len(d.uniform_T) for draws in chosen_K for d in draws)
        at_once = max(1, min(CACHED_AT_ONCE // (group[-1] + steps), LOGITS_AT_ONCE // voice.vocabulary) // voice.members)
        filler = Draw((0,) * group[0], np.full(1, 0.5), -1)
        for start in range(0, rows, at_once):
            size = min(at_once, rows - start)
            yield [[*draws[start : start + size], *[filler] * (size - len(draws[start : start + size]))] for draws in chosen_K]


def _prompts(draws_K: Sequence[Sequence[Draw]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Each member's distinct prompts, as many of every member, and which of them all each draw continues."""
    distinct_K = [list(dict.fromkeys(draw.ids for draw in draws)) for draws in draws_K]
    most = max(map(len, distinct_K))
    prompts = [ids for distinct in distinct_K for ids in [*distinct, *[distinct[0]] * (most - len(distinct))]]
    place_K = [{ids: k * most + i for i, ids in enumerate(distinct)} for k, distinct in enumerate(distinct_K)]
    return prompts, [place[draw.ids] for place, draws in zip(place_K, draws_K, strict=True) for draw in draws]


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    longest = max(map(len, rows))
    return np.stack([np.pad(row, (0, longest - len(row)), constant_values=0.5) for row in rows])
