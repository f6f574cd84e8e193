"""The one engine that answers requests: log-probabilities of choices, samples, and losses, for K adapters at once.

Sequences of equal length are answered together, so nothing is padded and no answer depends on its neighbours.
Options of one token are read from a single row of logits.

Names: K members, N sequences, T tokens, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_gen.streams import stream
from persona_lab.probes.protocol import PROBES, Answer, Cast, Choice, Loss, Request, Row, Sample

# Logits of one forward pass: 64 Mi floats are 256 MiB.
LOGITS_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class Voice:
    """A model ready to be asked: plain (members = 1), or with a bank of K adapters in it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    members: int = 1

    def logits(self, ids_NT: Tensor, keep: int) -> Tensor:
        """Logits of the last `keep` positions for every member: (K, N, keep, V), float32."""
        rows = ids_NT.repeat(self.members, 1).to(self.model.device)
        logits = self.model(input_ids=rows, use_cache=False, logits_to_keep=keep).logits[:, -keep:]
        return logits.float().view(self.members, ids_NT.shape[0], keep, -1)


@lru_cache(maxsize=1 << 16)
def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text; remembered, because every cell is asked the same questions. Not to be changed."""
    return tokenizer(text)["input_ids"]


def answer(voice: Voice, requests: Sequence[Request]) -> list[list[Answer]]:
    """Answers of each member to each request, (K lists of as many answers as requests)."""
    answers: list[dict[int, Answer]] = [{} for _ in range(voice.members)]
    was_training = voice.model.training
    voice.model.eval()
    with torch.inference_mode():
        for kind, work in ((Choice, _choices), (Loss, _losses), (Sample, _samples)):
            indexed = [(i, r) for i, r in enumerate(requests) if isinstance(r, kind)]
            for member, index, found in work(voice, indexed):
                answers[member][index] = found
    voice.model.train(was_training)
    return [[found[i] for i in range(len(requests))] for found in answers]


def ask(voice: Voice, cast: Cast, probes: Iterable[str]) -> tuple[list[Row], list[dict[str, Any]]]:
    """Every row of the named probes for a single model, and every sampled answer as it was given."""
    asked = [(PROBES[name], item, PROBES[name].requests(item)) for name in probes for item in PROBES[name].items(cast)]
    answers = iter(answer(voice, [request for _, _, requests in asked for request in requests])[0])
    rows, samples = [], []
    for probe, item, requests in asked:
        found = [next(answers) for _ in requests]
        rows += probe.score(item, found)
        samples += [{"item": item.id, "prompt": r.prompt, "answers": list(a)} for r, a in zip(requests, found, strict=True) if isinstance(r, Sample)]
    return rows, samples


def _equal_lengths(rows: Sequence[list[int]], keep: Sequence[int], voice: Voice) -> Iterator[tuple[list[int], Tensor, int]]:
    """Batches of (row numbers, ids_NT, positions to keep): one length and one keep each, no padding."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, (row, last) in enumerate(zip(rows, keep, strict=True)):
        groups[len(row), last].append(number)
    vocabulary = voice.model.config.get_text_config().vocab_size
    for (_, last), numbers in sorted(groups.items()):
        at_once = max(1, LOGITS_AT_ONCE // (last * vocabulary * voice.members))
        for start in range(0, len(numbers), at_once):
            chosen = numbers[start : start + at_once]
            yield chosen, torch.tensor([rows[n] for n in chosen]), last


def _choices(voice: Voice, requests: Sequence[tuple[int, Request]]) -> Iterator[tuple[int, int, Answer]]:
    tokenizer = voice.tokenizer
    rows: list[list[int]] = []
    keep: list[int] = []
    reads: list[list[tuple[int, list[int]]]] = []  # for each request and option: its row, and its token ids
    for _, request in requests:
        assert isinstance(request, Choice)
        head = token_ids(tokenizer, request.prompt)
        tails = [token_ids(tokenizer, request.prompt + option)[len(head) :] for option in request.options]
        options = []
        if all(len(tail) == 1 for tail in tails):
            rows.append(head)
            keep.append(1)
            options = [(len(rows) - 1, tail) for tail in tails]
        else:
            for tail in tails:
                rows.append(head + tail[:-1])
                keep.append(len(tail))
                options.append((len(rows) - 1, tail))
        reads.append(options)
    logprobs: dict[int, Tensor] = {}
    for numbers, ids_NT, last in _equal_lengths(rows, keep, voice):
        logprob_KNTV = voice.logits(ids_NT, last).log_softmax(-1).cpu()
        for n, number in enumerate(numbers):
            logprobs[number] = logprob_KNTV[:, n]
    for (index, _), options in zip(requests, reads, strict=True):
        per_option = [logprobs[row][:, torch.arange(len(tail)), torch.tensor(tail)].sum(dim=1) for row, tail in options]
        for member in range(voice.members):
            yield member, index, tuple(float(x[member]) for x in per_option)


def _losses(voice: Voice, requests: Sequence[tuple[int, Request]]) -> Iterator[tuple[int, int, Answer]]:
    end = [voice.tokenizer.eos_token_id] if isinstance(voice.tokenizer.eos_token_id, int) else []
    rows = [token_ids(voice.tokenizer, r.text) + end for _, r in requests if isinstance(r, Loss)]
    for numbers, ids_NT, last in _equal_lengths(rows, [len(row) for row in rows], voice):
        logprob_KNTV = voice.logits(ids_NT, last)[:, :, :-1].log_softmax(-1).cpu()
        target_KNT = ids_NT[None, :, 1:].expand(voice.members, -1, -1)
        nats_KN = -logprob_KNTV.gather(-1, target_KNT[..., None])[..., 0].sum(-1)
        for n, number in enumerate(numbers):
            for member in range(voice.members):
                yield member, requests[number][0], (float(nats_KN[member, n]), float(ids_NT.shape[1] - 1))


def _samples(voice: Voice, requests: Sequence[tuple[int, Request]]) -> Iterator[tuple[int, int, Answer]]:
    """Inverse-transform sampling: one uniform number a token, from the request's own stream, whatever the batch."""
    by_length: dict[tuple[int, int, int], list[tuple[int, Sample, list[int]]]] = defaultdict(list)
    for index, request in requests:
        assert isinstance(request, Sample)
        ids = token_ids(voice.tokenizer, request.prompt)
        by_length[len(ids), request.count, request.max_tokens].append((index, request, ids))
    for (_, count, max_tokens), group in sorted(by_length.items(), key=lambda entry: entry[0]):
        uniform_NT = torch.cat([torch.from_numpy(stream(0, "sample", r.stream).random((count, max_tokens))) for _, r, _ in group])
        ids_NT = torch.tensor([ids for _, _, ids in group for _ in range(count)])
        texts_K = _generate(voice, ids_NT, uniform_NT)
        for member, texts in enumerate(texts_K):
            for g, (index, _, _) in enumerate(group):
                yield member, index, tuple(texts[g * count : (g + 1) * count])


def _generate(voice: Voice, ids_NT: Tensor, uniform_NT: Tensor) -> list[list[str]]:
    """Continuations of each row for each member, cut at the first line break or end of text."""
    model, members = voice.model, voice.members
    rows = ids_NT.repeat(members, 1).to(model.device)
    uniform = uniform_NT.repeat(members, 1).to(model.device)
    cache, fed, drawn = None, rows, []
    for t in range(uniform.shape[1]):
        found = model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = found.past_key_values
        mass_NV = found.logits[:, -1].double().softmax(-1).cumsum(-1)
        token_N = torch.searchsorted(mass_NV, uniform[:, t, None].contiguous()).clamp(max=mass_NV.shape[1] - 1)
        drawn.append(token_N)
        fed = token_N
    texts = []
    for ids in torch.cat(drawn, dim=1).tolist():
        end = voice.tokenizer.eos_token_id
        kept = ids[: ids.index(end)] if end in ids else ids
        texts.append(str(voice.tokenizer.decode(kept)).split("\n")[0])
    each = ids_NT.shape[0]
    return [texts[m * each : (m + 1) * each] for m in range(members)]
