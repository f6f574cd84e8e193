"""Packing: the documents of a step laid end to end, so that no product is spent on padding, and none sees another.

All of a model but its attention treats tokens one by one, so there a row is whatever it is. Attention gets a row for
each document, as it would without packing: `PACKED` is an attention of transformers (`AttentionInterface`) that moves
the tokens there, asks transformers' own, and moves what it says back. Whether a model answers so as it answers to one
document after the other is tried, not looked up: there are models that count positions themselves, or mix tokens in
other places.

Names: K members, a row each, N tokens of a row; B documents (K * b), T tokens of the longest; H heads; S of whatever
is in one line.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PACKED = "persona_lab_packed"
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Nats a token by which two ways to compute the same log-probability may differ."""

_exact: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Layout:
    """Where tokens stand in K packed rows of N, and where in attention: S places, a row for each document, like lengths together.

    Every packed row ends in padding, at least one token of it, of which nothing is ever asked: its gradient is zero.
    """

    position_KN: Tensor
    """Of each token in its document."""
    packed_S: Tensor
    """For each place in attention, its token among the K * N; behind a document's end, the end of the packed row."""
    spread_S: Tensor
    """For each of the K * N tokens, its place in attention; for padding, the place of the member's first token."""
    padding_S: Tensor
    """Which of the K * N tokens are padding."""
    token_S: Tensor
    """For each of the K * N tokens, where it is in documents padded to the longest of all, (B * T); for padding, the member's first."""
    groups: tuple[tuple[int, int], ...]
    """Documents and length of each rectangle of attention, one behind the other."""

    def to(self, device: torch.device) -> "Layout":
        """The layout on a device."""
        moved = {f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **moved)


def lay_end_to_end(lengths: Sequence[int], members: int) -> Layout:
    """The layout of documents of the given lengths in tokens, the first `len(lengths) / members` of them member 0's."""
    length_B = np.array(lengths)
    length_Kb = length_B.reshape(members, -1)
    width, each = int(length_Kb.sum(1).max()) + 1, length_Kb.shape[1]
    start_B = (np.arange(members)[:, None] * width + length_Kb.cumsum(1) - length_Kb).flatten()
    last_B = np.repeat(np.arange(1, members + 1) * width - 1, each)
    # What attention costs grows with the square of a rectangle's length: within one, lengths differ by less than a factor of sqrt 2.
    size_B = np.ceil(2 * np.log2(length_B))
    packed, groups, spread_S = [], [], np.zeros(members * width, dtype=np.int64)
    for size in np.unique(size_B):
        of_D = np.flatnonzero(size_B == size)
        place_T = np.arange(length_B[of_D].max())
        real_DT = place_T < length_B[of_D][:, None]
        packed_DT = np.where(real_DT, start_B[of_D][:, None] + place_T, last_B[of_D][:, None])
        spread_S[packed_DT[real_DT]] = sum(d * t for d, t in groups) + np.flatnonzero(real_DT)
        packed.append(packed_DT.flatten())
        groups.append(real_DT.shape)
    document_S = np.repeat(np.arange(len(lengths)), length_B)
    position_S = np.arange(len(document_S)) - np.repeat(length_B.cumsum() - length_B, length_B)
    tokens_S = start_B[document_S] + position_S
    position_KN, padding_S = np.zeros(members * width, dtype=np.int64), np.ones(members * width, dtype=bool)
    position_KN[tokens_S], padding_S[tokens_S] = position_S, False
    token_S = np.repeat(np.arange(members) * each * length_B.max(), width)
    token_S[tokens_S] = document_S * length_B.max() + position_S
    first_S = np.repeat(spread_S[np.arange(members) * width], width)
    spread_S[padding_S] = first_S[padding_S]
    return Layout(
        position_KN=torch.from_numpy(position_KN.reshape(members, width)),
        packed_S=torch.from_numpy(np.concatenate(packed)),
        spread_S=torch.from_numpy(spread_S),
        padding_S=torch.from_numpy(np.flatnonzero(padding_S)),
        token_S=torch.from_numpy(token_S),
        groups=tuple(groups),
    )


class Moved(torch.autograd.Function):
    """Rows of a matrix taken to other places; going back, a gradient takes the opposite way, and padding gets none."""

    @staticmethod
    def forward(ctx: Any, rows_Sf: Tensor, there_S: Tensor, back_S: Tensor, padding_S: Tensor | None) -> Tensor:
        """The row of each place."""
        ctx.save_for_backward(back_S, padding_S)
        return rows_Sf.index_select(0, there_S)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Of the rows alone."""
        back_S, padding_S = ctx.saved_tensors
        back_Sf = grads[0].index_select(0, back_S)
        return back_Sf if padding_S is None else back_Sf.index_fill_(0, padding_S, 0), None, None, None


def packed_attention(
    module: nn.Module, query_KHND: Tensor, key_KHND: Tensor, value_KHND: Tensor, attention_mask: Tensor | None, *, layout: Layout, **given: Any
) -> tuple[Tensor, None]:
    """Attention in each document of packed rows, (K, N, H, D); whatever else the model says goes on to `sdpa`."""
    members, tokens = query_KHND.shape[0], query_KHND.shape[2]
    sizes = [documents * longest for documents, longest in layout.groups]

    def spread(x_KHND: Tensor) -> tuple[Tensor, ...]:
        rows_Sf = x_KHND.transpose(1, 2).flatten(2).flatten(0, 1)
        return Moved.apply(rows_Sf, layout.packed_S, layout.spread_S, layout.padding_S).unflatten(1, (x_KHND.shape[1], -1)).split(sizes)

    found = []
    for (documents, longest), *qkv in zip(layout.groups, spread(query_KHND), spread(key_KHND), spread(value_KHND), strict=True):
        window = given.get("sliding_window")
        band_TT = band(longest, window, query_KHND.device) if window and window < longest else None
        rows_DHTD = [x_SHD.unflatten(0, (documents, longest)).transpose(1, 2) for x_SHD in qkv]
        found_DTHD, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *rows_DHTD, band_TT, **given)
        found.append(found_DTHD.flatten(2).flatten(0, 1))
    found_Sf = Moved.apply(torch.cat(found), layout.spread_S, layout.packed_S, None)
    return found_Sf.view(members, tokens, query_KHND.shape[1], -1), None


def band(tokens: int, window: int, device: torch.device) -> Tensor:
    """Which tokens a token sees where it sees only the last `window`, itself among them: bool (T, T)."""
    far_TT = torch.arange(tokens, device=device)[:, None] - torch.arange(tokens, device=device)
    return (far_TT >= 0) & (far_TT < window)


AttentionInterface.register(PACKED, packed_attention)


@contextmanager
def packing(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model takes packed rows and nothing else: `position_ids` and `layout` go with them."""
    config = model.config
    before, config._attn_implementation = config._attn_implementation, PACKED
    try:
        yield
    finally:
        config._attn_implementation = before


def packs_exactly(model: PreTrainedModel, members: int) -> bool:
    """Whether the model, with a bank of so many adapters in it or none, answers to packed documents as to one after the other; tried once."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return False  # backward would compute attention again, and by then nothing says that rows are packed
    if model not in _exact:
        _exact[model] = model.config._attn_implementation in ("sdpa", "eager") and model.get_output_embeddings() is not None and _trial(model, members)
    return _exact[model]


@torch.no_grad()
def _trial(model: PreTrainedModel, members: int) -> bool:
    """A short document between two long ones, for each member."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", 48)
    lengths = [min(n, most) for n in (48, 7, 40)] * members
    drawn = np.random.default_rng(0).integers(0, model.config.get_text_config().vocab_size, (len(lengths), max(lengths)))
    ids_BT = torch.from_numpy(drawn).to(model.device)
    layout = lay_end_to_end(lengths, members).to(model.device)
    was_training = model.training
    model.eval()
    try:
        with packing(model):
            packed_KNV = model(input_ids=packed_ids(ids_BT, layout), position_ids=layout.position_KN, layout=layout, use_cache=False).logits
        one_by_one_BTV = model(input_ids=ids_BT, use_cache=False).logits
    except (TypeError, ValueError):  # said by models that do not take one of these, or not with `sdpa`
        return False
    finally:
        model.train(was_training)
    apart_SV = packed_KNV.flatten(0, 1).log_softmax(-1) - one_by_one_BTV.flatten(0, 1)[layout.token_S].log_softmax(-1)
    apart_SV[layout.padding_S] = 0
    return bool(apart_SV.abs().max() <= 3 * TOLERANCE[packed_KNV.dtype])


def packed_ids(ids_BT: Tensor, layout: Layout) -> Tensor:
    """Token ids of documents, padded on the right to the longest, end to end: (K, N)."""
    return ids_BT.flatten()[layout.token_S].view_as(layout.position_KN)


@contextmanager
def read_at(model: PreTrainedModel, at_S: Tensor) -> Iterator[None]:
    """Inside, the output layer sees only some of the tokens of all rows, and `logits` is (1, S, V).

    Not `logits_to_keep`, which keeps the same tokens of each row; nor the output layer called from here, because
    some models scale or cap what it returns.
    """

    def pick(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0].flatten(0, 1).index_select(0, at_S)[None], *given[1:])

    head = model.get_output_embeddings()
    assert head is not None, "models without an output layer are told apart before"
    hook = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()
