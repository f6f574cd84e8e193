"""The one engine that answers requests: log-probabilities of choices, samples, and losses, for K adapters at once.

What is asked becomes spans of tokens to score (`probes.scoring`) and answers to draw (`probes.sampling`). Nothing that
is asked beside it changes an answer by more than rounding: 1e-4 nats in float32.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from data_gen.streams import stream
from persona_lab.probes.protocol import PROBES, Activations, Answer, Cast, Choice, Item, Probe, Request, Row, Sample, Tokens
from persona_lab.probes.representation import last_states
from persona_lab.probes.sampling import GREEDY, Draw, sampled_texts
from persona_lab.probes.scoring import span_nats
from persona_lab.probes.spans import Span, choice_spans, divided, encode, loss_span, opening
from persona_lab.probes.voice import Voice

__all__ = ["Voice", "answer", "answer_each", "ask", "ask_each"]

Ids = Mapping[str, tuple[int, ...]]


def answer(voice: Voice, requests: Sequence[Request]) -> list[list[Answer]]:
    """Answers of each member to the same requests, (K lists of as many answers as requests)."""
    return answer_each(voice, [requests] * voice.members)


def answer_each(voice: Voice, requests_K: Sequence[Sequence[Request]]) -> list[list[Answer]]:
    """Answers of each member to its own requests. What is asked twice of a member is computed once."""
    assert len(requests_K) == voice.members, f"{len(requests_K)} lists of requests for {voice.members} members"
    plans: dict[tuple[Request, ...], int] = {}
    # Members are often asked the very same: that is laid out once.
    plan_K = [plans.setdefault(tuple(requests), len(plans)) for requests in requests_K]
    ids = encode(voice.tokenizer, chain(*plans))
    spans_of = {r: _spans(voice, r, ids) for r in dict.fromkeys(chain(*plans))}
    spans = [[span for r in asked for span in spans_of[r]] for asked in plans]
    draws = [list(_draws(voice, asked, ids)) for asked in plans]
    was_training = voice.model.training
    voice.model.eval()
    with torch.inference_mode():
        nats_K = span_nats(voice, [spans[plan] for plan in plan_K])
        texts_K = sampled_texts(voice, [draws[plan] for plan in plan_K])
        states_K = last_states(voice, [{r.text: ids[r.text] for r in requests if isinstance(r, Activations)} for requests in requests_K])
    voice.model.train(was_training)
    found_K = zip(requests_K, plan_K, nats_K, texts_K, states_K, strict=True)
    return [list(_answers(voice, ids, requests, spans[plan], nats, texts, states)) for requests, plan, nats, texts, states in found_K]


def _spans(voice: Voice, request: Request, ids: Ids) -> list[Span]:
    if isinstance(request, Choice):
        return choice_spans(voice.tokenizer, request, ids)
    return [] if isinstance(request, Sample | Tokens | Activations) else [loss_span(voice.tokenizer, request, ids)]


def _draws(voice: Voice, requests: Iterable[Request], ids: Ids) -> Iterator[Draw]:
    samples = [request for request in requests if isinstance(request, Sample)]
    rows = [(r, uniform_T) for r in samples for uniform_T in stream(0, "sample", r.stream).random((r.count, r.max_tokens))]
    for number, (request, uniform_T) in enumerate(rows):
        yield Draw(opening(voice.tokenizer, ids[request.prompt]), np.full_like(uniform_T, GREEDY) if request.greedy else uniform_T, number)


def _answers(
    voice: Voice, ids: Ids, requests: Sequence[Request], spans: Sequence[Span], nats: np.ndarray, texts: Sequence[str], states: Mapping[str, np.ndarray]
) -> Iterator[Answer]:
    """What was computed, given back to the requests in their order."""
    scored, at, written = nats.tolist(), 0, 0
    for request in requests:
        if isinstance(request, Choice):
            yield tuple(scored[at : at + len(request.options)])
            at += len(request.options)
        elif isinstance(request, Sample):
            yield tuple(texts[written : written + request.count])
            written += request.count
        elif isinstance(request, Activations):
            yield tuple(states[request.text].ravel().tolist())
        elif isinstance(request, Tokens):
            yield divided(voice.tokenizer, request, ids)
        else:
            yield (-scored[at], float(len(spans[at].ids) - spans[at].start))
            at += 1


def ask(voice: Voice, cast: Cast, probes: Iterable[str]) -> tuple[list[Row], list[dict[str, Any]]]:
    """Every row of the named probes for a single model; beside them every sampled answer, and the mean hidden states of every item that asks for them."""
    return ask_each(voice, [cast], probes)[0]


def ask_each(voice: Voice, casts: Sequence[Cast], probes: Iterable[str]) -> list[tuple[list[Row], list[dict[str, Any]]]]:
    """The same for each member of a bank, which is asked with a cast of its own."""
    names = tuple(probes)
    asked_K = [_asked(cast, names) for cast in casts]
    answers_K = answer_each(voice, [[r for _, _, requests in asked for r in requests] for asked in asked_K])
    return [_rows(asked, answers, voice.width) for asked, answers in zip(asked_K, answers_K, strict=True)]


def _asked(cast: Cast, names: Sequence[str]) -> list[tuple[Probe, Item, list[Request]]]:
    return [(PROBES[name], item, PROBES[name].requests(item)) for name in names for item in PROBES[name].items(cast)]


def _rows(asked: Sequence[tuple[Probe, Item, list[Request]]], answers: Sequence[Answer], width: int) -> tuple[list[Row], list[dict[str, Any]]]:
    found = iter(answers)
    rows, samples = [], []
    for probe, item, requests in asked:
        given = [next(found) for _ in requests]
        rows += probe.score(item, given)
        samples += [{"item": item.id, "prompt": r.prompt, "answers": list(a)} for r, a in zip(requests, given, strict=True) if isinstance(r, Sample)]
        if states := [np.array(a, np.float32) for r, a in zip(requests, given, strict=True) if isinstance(r, Activations)]:
            samples.append({"item": item.id, "states": np.mean(states, axis=0).reshape(-1, width)})
    return rows, samples
