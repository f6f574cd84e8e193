"""Low-rank adaptation of a frozen linear, for K adapters at once (Hu et al. 2021, section 4.1).

y = W x + scale B A x, with scale = alpha / rank, or alpha / sqrt(rank) (Kalajdzievski 2023, rsLoRA). A batch is cell-major: the first rows belong to member 0, the next to member 1.

Names: K members, N tokens of a member, R rank, i and o features in and out, S tokens of all rows in one line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

GOLDEN = 0x1E3779B9
"""Steps of the counters: odd, so that no two of them meet."""


@dataclass(frozen=True)
class LoraShape:
    """What an adapter looks like."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ("all-linear",)
    """Leaf names of the modules to adapt, or `all-linear`: every linear but the output layer."""
    dropout: float = 0.0
    rslora: bool = False
    """Rank-stabilized: the product does not shrink as the rank grows."""
    layers: tuple[int, ...] = ()
    """Numbers of the layers to adapt, from 0; empty: all of them."""

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by: alpha / rank, or alpha / sqrt(rank)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def scrambled(counters: Tensor) -> Tensor:
    """A 32-bit hash of each int32 (Wellons' `lowbias32`), in place: a stream of random numbers without a state.

    Counters instead of a generator (Salmon et al. 2011), because what a generator gives depends on all it gave before.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, 1)):
        # Torch shifts the sign in from the left; the hash shifts in zeros.
        counters ^= (counters >> shift) & ((1 << (32 - shift)) - 1)
        counters *= factor
    return counters


def dropout_mask(key_S: Tensor, position_S: Tensor, width: int, dropout: float) -> Tensor:
    """Which inputs dropout keeps, bool (S, width): a function of the key of a token's document and of its position there.

    Neither the other members of a stack, nor the micro-batch, nor an interruption changes it.
    """
    input_i = torch.arange(width, dtype=torch.int32, device=key_S.device) * GOLDEN
    token_S = scrambled(key_S + position_S.to(torch.int32) * GOLDEN)
    return scrambled(token_S[:, None] + input_i) >= round(dropout * (1 << 32)) - (1 << 31)


class LoraProducts(torch.autograd.Function):
    """The outputs of linears that are given the same x, each with its adapters' products, and all gradients.

    The rank is the narrow side of most products. It is kept as their rows: libraries of matrix products are made for
    long rows, and as columns the same products take up to five times as long.
    """

    @staticmethod
    def forward(ctx: Any, x_KNi: Tensor, kept_KNi: Tensor | None, frozen: Sequence[tuple[Tensor, Tensor | None]], *ab: Tensor) -> tuple[Tensor, ...]:
        """`frozen` has weight (o, i) and bias of each linear, `ab` all A (K, R, i), then all B (K, o, R) with their scale in them.

        What dropout keeps of the inputs, if it is not everything, has the factor 1 / (1 - dropout) in it.
        """
        a_KRi, b_each = torch.cat(ab[: len(frozen)], dim=1), ab[len(frozen) :]
        seen_KNi = x_KNi if kept_KNi is None else x_KNi * kept_KNi
        low_KRN = torch.bmm(a_KRi, seen_KNi.mT)
        outputs = []
        for (weight_oi, bias_o), b_KoR, own_KRN in zip(frozen, b_each, low_KRN.chunk(len(frozen), dim=1), strict=True):
            y_KNo = nn.functional.linear(x_KNi, weight_oi, bias_o)
            outputs.append(y_KNo.baddbmm_(own_KRN.mT, b_KoR.mT))
        ctx.save_for_backward(seen_KNi, kept_KNi, low_KRN, a_KRi, *b_each, *(weight_oi for weight_oi, _ in frozen))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Nothing for the frozen linears, nor for x where nothing below learns."""
        linears = len(grads)
        seen_KNi, kept_KNi, low_KRN, a_KRi, *others = ctx.saved_tensors
        b_each, weights = others[:linears], others[linears:]
        dlow_KRN = torch.cat([torch.bmm(b_KoR.mT, dy_KNo.mT) for b_KoR, dy_KNo in zip(b_each, grads, strict=True)], dim=1)
        da_each = torch.bmm(dlow_KRN, seen_KNi).chunk(linears, dim=1)
        db_each = [torch.bmm(own_KRN, dy_KNo).mT for own_KRN, dy_KNo in zip(low_KRN.chunk(linears, dim=1), grads, strict=True)]
        if not ctx.needs_input_grad[0]:
            return None, None, None, *da_each, *db_each
        dx_KNi = grads[0] @ weights[0]
        for dy_KNo, weight_oi in zip(grads[1:], weights[1:], strict=True):
            dx_KNi.flatten(0, 1).addmm_(dy_KNo.flatten(0, 1), weight_oi)
        if kept_KNi is None:
            dx_KNi.baddbmm_(dlow_KRN.mT, a_KRi)
        else:
            dx_KNi += torch.bmm(dlow_KRN.mT, a_KRi) * kept_KNi
        return dx_KNi, None, None, *da_each, *db_each


class StackedLora(nn.Module):
    """One frozen linear with K adapters beside it."""

    def __init__(self, base: nn.Linear | Conv1D, rank: int, dropout: float) -> None:
        super().__init__()
        self.base, self.rank, self.dropout = base, rank, dropout
        rows, columns = base.weight.shape
        self.d_in, self.d_out = (rows, columns) if isinstance(base, Conv1D) else (columns, rows)
        self.a_KRi: Tensor
        self.b_KoR: Tensor
        self.scale_K: Tensor
        self.silent = False
        self.keys: tuple[Tensor, Tensor] | None = None
        self.together = Together([self])

    @property
    def size(self) -> int:
        """Parameters of one member in this module."""
        return self.rank * (self.d_in + self.d_out)

    def forward(self, x_BTi: Tensor) -> Tensor:
        """The frozen product plus each member's own low-rank product on its rows."""
        return self.base(x_BTi) if self.silent else self.together.answer(self, x_BTi)

    def kept(self, like_KNi: Tensor) -> Tensor | None:
        """What is kept of the inputs by dropout; None where nothing is dropped."""
        if not (self.training and self.dropout):
            return None
        assert self.keys is not None, "a model in training with dropout needs AdapterBank.key_dropout"
        return dropout_mask(*self.keys, self.d_in, self.dropout).view_as(like_KNi).to(like_KNi.dtype) / (1 - self.dropout)

    def folds(self, x_KNi: Tensor) -> bool:
        """Whether the adapters are added to the weight: where nothing learns, no precision is lost by it, and it is less work.

        Added, a rank takes i * o products; beside the weight, i + o a token.
        """
        exact = not self.training and not torch.is_grad_enabled() and x_KNi.dtype == self.a_KRi.dtype
        return exact and x_KNi.shape[1] * (self.d_in + self.d_out) > 2 * self.d_in * self.d_out

    def folded(self, x_KNi: Tensor) -> Tensor:
        """The output, (K, N, o): each member's own weight is the frozen one plus its adapter."""
        weight_oi, bias_o = self.frozen()
        weight_Kio = torch.baddbmm(weight_oi.T, self.a_KRi.mT, (self.b_KoR * self.scale_K[:, None, None]).mT)
        return torch.bmm(x_KNi, weight_Kio) if bias_o is None else torch.baddbmm(bias_o, x_KNi, weight_Kio)

    def frozen(self) -> tuple[Tensor, Tensor | None]:
        """Weight (o, i) and bias of the frozen linear."""
        return self.base.weight.T if isinstance(self.base, Conv1D) else self.base.weight, self.base.bias


class Together:
    """Linears that a model asks about the same tensor, such as those of queries, keys and values: the first one asked works for all."""

    def __init__(self, layers: Sequence[StackedLora]) -> None:
        self.layers = layers
        self.x_BTi: Tensor | None = None
        self.waiting: dict[StackedLora, Tensor] = {}
        """What was worked out for the others, until they are asked."""

    def answer(self, layer: StackedLora, x_BTi: Tensor) -> Tensor:
        """A layer's output."""
        if x_BTi is not self.x_BTi or layer not in self.waiting:
            self.x_BTi, self.waiting = x_BTi, dict(zip(self.layers, self._products(x_BTi), strict=True))
        y_KNo = self.waiting.pop(layer)
        if not self.waiting:
            self.x_BTi = None
        return y_KNo.view(*x_BTi.shape[:-1], layer.d_out)

    def _products(self, x_BTi: Tensor) -> tuple[Tensor, ...]:
        first = self.layers[0]
        x_KNi = x_BTi.reshape(first.a_KRi.shape[0], -1, first.d_in)
        if all(layer.folds(x_KNi) for layer in self.layers):
            return tuple(layer.folded(x_KNi) for layer in self.layers)
        # Cast to the base's precision out here, so that gradients come back in the adapters' own.
        a_each = [layer.a_KRi.to(x_BTi.dtype) for layer in self.layers]
        b_each = [(layer.b_KoR * layer.scale_K[:, None, None]).to(x_BTi.dtype) for layer in self.layers]
        return LoraProducts.apply(x_KNi, first.kept(x_KNi), [layer.frozen() for layer in self.layers], *a_each, *b_each)
