"""Log-probabilities of spans, for every adapter of a bank together, each shared prefix computed once.

Sequences become rows of trees (`probes.forest`). A model of which that is not exactly the same as one sequence after
the other, which is tried and not looked up, is asked in rows of equal length instead: slower, and always right.

Names: K members, R rows of a member, B = K * R, T tokens of a row, N tokens of a member whose logits are wanted, M reads of
them by the spans of all members, V vocabulary.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from persona_lab.models.packing import TOLERANCE
from persona_lab.probes.forest import Forest, plant, stand_alone
from persona_lab.probes.spans import Span
from persona_lab.probes.voice import LOGITS_AT_ONCE, Voice

FEATURES_AT_ONCE = defaultdict(lambda: 1 << 26, cpu=1 << 19)
"""Tokens times width of one forward pass, all members together: on a CPU what its caches hold, elsewhere what fills the device."""

_exact: WeakKeyDictionary[PreTrainedModel, dict[tuple[int, int], bool]] = WeakKeyDictionary()


def span_nats(voice: Voice, spans_K: Sequence[Sequence[Span]]) -> list[np.ndarray]:
    """For each member, log P of the scored tokens of each of its spans, nats, float64; NaN where a span scores none.

    A member's list of spans may be another's too, the same object: it is laid out once.
    """
    planted = {id(spans): plant(spans, voice.width) for spans in {id(spans): spans for spans in spans_K}.values()}
    forests_K = [planted[id(spans)] for spans in spans_K]
    tokens = max((len(tree.ids) for forest in planted.values() for tree in forest.rows), default=0)
    if tokens == 0 or shares_exactly(voice, tokens, max(forest.deepest for forest in planted.values())):
        return _in_trees(voice, spans_K, forests_K)
    return _one_by_one(voice, spans_K)


def shares_exactly(voice: Voice, tokens: int, deepest: int) -> bool:
    """Whether this model answers in rows of trees of that many tokens, `deepest` at most one below the other, as it does to sequences alone.

    Tried once, on a row of made-up tokens: so positions or masks that are ignored are seen, and windows that are narrower
    than the row or the sequence.
    """
    known = _exact.setdefault(voice.model, {})
    # Rounded up, so that few sizes are tried: what holds for a row holds for a shorter one. No model knows a position beyond its last.
    tokens, deepest = (max(32, 1 << (n - 1).bit_length()) for n in (tokens, deepest))
    deepest = min(deepest, getattr(voice.model.config.get_text_config(), "max_position_embeddings", deepest))
    if (tokens, deepest) not in known:
        known[tokens, deepest] = voice.takes_trees and _trial(voice, tokens, deepest)
    return known[tokens, deepest]


def _trial(voice: Voice, tokens: int, deepest: int) -> bool:
    """One stem, and from it long and short branches in turn: behind a long one the stem is far away in the row, and near in the sequence."""
    branches = max(2, tokens // deepest)
    ids = np.random.default_rng(0).integers(0, voice.vocabulary, (2 * branches, deepest + 1))
    ids[:, :4] = ids[0, :4]
    ids[:, 4] = np.arange(2 * branches) % voice.vocabulary
    long, short = ids[::2].tolist(), ids[1::2, :8].tolist()
    spans = [Span(tuple(branch), len(branch) - 3) for branch in (*long, *short)]
    spans_K = [spans] * voice.members
    forest = plant(spans, voice.width, branches * (deepest + 8))
    once, again = _in_trees(voice, spans_K, [forest] * voice.members), _one_by_one(voice, spans_K)
    tolerance = TOLERANCE[next(voice.model.parameters()).dtype] * 3
    return all(bool((np.abs(a - b) <= tolerance).all()) for a, b in zip(once, again, strict=True))


def _in_trees(voice: Voice, spans_K: Sequence[Sequence[Span]], forests_K: Sequence[Forest]) -> list[np.ndarray]:
    nats_K = [np.full(len(spans), math.nan) for spans in spans_K]
    _read(voice, forests_K, nats_K, trees=True)
    return nats_K


def _one_by_one(voice: Voice, spans_K: Sequence[Sequence[Span]]) -> list[np.ndarray]:
    """Rows of equal length together, so that nothing is padded and nothing is masked."""
    nats_K = [np.full(len(spans), math.nan) for spans in spans_K]
    for length in sorted({len(span.ids) for spans in spans_K for span in spans}):
        _read(voice, [stand_alone(spans, length) for spans in spans_K], nats_K, trees=False)
    return nats_K


def _read(voice: Voice, forests_K: Sequence[Forest], nats_K: Sequence[np.ndarray], *, trees: bool) -> None:
    """The log-probabilities of all spans that are read in these forests."""
    for nats, forest in zip(nats_K, forests_K, strict=True):
        nats[forest.reads_4N[3]] = 0.0
    for rows in _batches(voice, forests_K):
        _score(voice, forests_K, rows, nats_K, trees=trees)


def _batches(voice: Voice, forests_K: Sequence[Forest]) -> Iterator[range]:
    """Rows that go through the model together, the same numbers of every member; one that has fewer is filled up."""
    tokens_at_once = FEATURES_AT_ONCE[voice.model.device.type] // voice.width
    last = max(len(forest.rows) for forest in forests_K)
    start, tokens, reads = 0, 0, 0
    for row in range(last):
        longest = max(tokens, *(len(forest.rows[row].ids) for forest in forests_K if row < len(forest.rows)))
        more = max(forest.reads(range(row, row + 1)).shape[1] for forest in forests_K) * voice.members
        full = longest * (row + 1 - start) * voice.members > tokens_at_once or (reads + more) * voice.vocabulary > LOGITS_AT_ONCE
        if row > start and full:
            yield range(start, row)
            start, reads = row, 0
        tokens, reads = longest, reads + more
    if last:
        yield range(start, last)


def _score(voice: Voice, forests_K: Sequence[Forest], rows: range, nats_K: Sequence[np.ndarray], *, trees: bool) -> None:
    """Add the log-probabilities that are read in some rows to their spans."""
    tokens = max((len(tree.ids) for forest in forests_K for tree in forest.rows[rows.start : rows.stop]), default=0)
    laid = np.concatenate([forest.arrays(rows, tokens) for forest in forests_K], axis=1)
    ids_BT, position_BT, end_BT = torch.from_numpy(laid).to(voice.model.device)
    reads_K = [forest.reads(rows) for forest in forests_K]
    found_K = [np.unique((row - rows.start) * tokens + slot, return_inverse=True) for row, slot, _, _ in reads_K]
    # As many of each member as of the one that needs most: what is left over is its first token.
    most = max(len(at) for at, _ in found_K)
    padded_KN = np.stack([np.pad(at, (0, most - len(at))) + k * len(rows) * tokens for k, (at, _) in enumerate(found_K)])
    at_KN = torch.from_numpy(padded_KN).to(voice.model.device)
    logits_SV = voice.tree_logits(ids_BT, position_BT, end_BT, at_KN) if trees else voice.plain_logits(ids_BT).flatten(0, 1)[at_KN.flatten()]
    where_M = np.concatenate([k * most + where for k, (_, where) in enumerate(found_K)])
    logprob_M = _logprobs(logits_SV, where_M, np.concatenate([reads[2] for reads in reads_K]))
    parts = np.split(logprob_M, np.cumsum([reads.shape[1] for reads in reads_K])[:-1])
    for nats, reads, found in zip(nats_K, reads_K, parts, strict=True):
        np.add.at(nats, reads[3], found)


def _logprobs(logits_SV: Tensor, where_M: np.ndarray, id_M: np.ndarray) -> np.ndarray:
    """Log-probability of a token for each of M reads of S = K * N logits, in float32 at least."""
    logits_SV = logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))
    where, token = (torch.from_numpy(x).to(logits_SV.device) for x in (where_M, id_M))
    return (logits_SV[where, token] - logits_SV.logsumexp(-1)[where]).double().cpu().numpy()
