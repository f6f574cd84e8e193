"""The adapter bank: K LoRA adapters on one frozen base, trained and probed together.

Every targeted linear gets A (K, r, d_in) and B (K, d_out, r) beside it. A batch is cell-major: the first b rows
belong to member 0, the next b to member 1. Parameters of all members lie in one buffer (K, P), a row a member, so
that clipping, Adam, snapshots and compaction are operations on rows. K = 1 is the same path.

Names: K members, B rows (K * b), T tokens, R rank, P parameters of one adapter.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from persona_lab.errors import ModelError

GOLDEN = 0x1E3779B9
"""Steps of the counters: odd, so that no two of them meet."""


@dataclass(frozen=True)
class LoraShape:
    """What an adapter looks like: Hu et al. 2021, section 4.1."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ("all-linear",)
    """Leaf names of the modules to adapt, or `all-linear`: every linear but the output layer."""
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by: alpha / rank."""
        return self.alpha / self.rank


def scrambled(counters: Tensor) -> Tensor:
    """A 32-bit hash of each int32 (Wellons' `lowbias32`), in place: a stream of random numbers without a state.

    Counters instead of a generator (Salmon et al. 2011), because what a generator gives depends on all it gave before.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, 1)):
        # Torch shifts the sign in from the left; the hash shifts in zeros.
        counters ^= (counters >> shift) & ((1 << (32 - shift)) - 1)
        counters *= factor
    return counters


def dropout_mask(key_B: Tensor, tokens: int, width: int, dropout: float) -> Tensor:
    """Which inputs dropout keeps, bool (B, tokens, width): a function of each row's key, so of nothing that happened before.

    Neither the other members of a stack, nor the micro-batch, nor an interruption changes it.
    """
    token_T, input_i = (torch.arange(n, dtype=torch.int32, device=key_B.device) * GOLDEN for n in (tokens, width))
    token_BT = scrambled(key_B[:, None] + token_T)
    return scrambled(token_BT[..., None] + input_i) >= round(dropout * (1 << 32)) - (1 << 31)


class StackedLora(nn.Module):
    """One frozen linear with K adapters beside it."""

    def __init__(self, base: nn.Linear | Conv1D, shape: LoraShape) -> None:
        super().__init__()
        self.base = base
        self.shape = shape
        rows, columns = base.weight.shape
        self.d_in, self.d_out = (rows, columns) if isinstance(base, Conv1D) else (columns, rows)
        self.a_KRi: Tensor
        self.b_KoR: Tensor
        self.silent = False
        self.key_B: Tensor | None = None

    @property
    def size(self) -> int:
        """Parameters of one member in this module."""
        return self.shape.rank * (self.d_in + self.d_out)

    def forward(self, x_BTi: Tensor) -> Tensor:
        """The frozen product plus each member's own low-rank product on its rows."""
        y_BTo = self.base(x_BTi)
        if self.silent:
            return y_BTo
        members = self.a_KRi.shape[0]
        x_KNi = x_BTi.reshape(members, -1, self.d_in).to(self.a_KRi.dtype)
        if self.training and self.shape.dropout:
            assert self.key_B is not None, "a model in training with dropout needs AdapterBank.key_dropout"
            kept_KNi = dropout_mask(self.key_B, x_KNi.shape[0] * x_KNi.shape[1] // len(self.key_B), self.d_in, self.shape.dropout).view_as(x_KNi)
            x_KNi = x_KNi * kept_KNi / (1 - self.shape.dropout)
        low_KNR = torch.bmm(x_KNi, self.a_KRi.transpose(1, 2))
        if y_BTo.dtype == low_KNR.dtype:
            y_KNo = y_BTo.reshape(members, -1, self.d_out)
            return torch.baddbmm(y_KNo, low_KNR, self.b_KoR.transpose(1, 2), alpha=self.shape.scale).view_as(y_BTo)
        update_KNo = torch.bmm(low_KNR, self.b_KoR.transpose(1, 2)) * self.shape.scale
        return y_BTo + update_KNo.view_as(y_BTo).to(y_BTo.dtype)


def target_names(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Full names of the modules to adapt, in the model's own order; the same whether or not a bank is in it.

    Raises:
        ModelError: a target matches no linear of the model.
    """
    apart = {id(model.get_output_embeddings()), *(id(m.base) for m in model.modules() if isinstance(m, StackedLora))}
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D | StackedLora) and id(m) not in apart]
    if tuple(targets) == ("all-linear",):
        return linears
    leaves = {n.rsplit(".", 1)[-1] for n in linears}
    for target in targets:
        if target not in leaves:
            raise ModelError("PL4101", str(model.name_or_path) or "the base model", f"lora.targets: no linear is called {target!r}. Use all-linear or some of: {', '.join(sorted(leaves))}.")
    return [n for n in linears if n.rsplit(".", 1)[-1] in targets]


class AdapterBank:
    """K adapters on one model. The model's linears are wrapped in place; `remove` puts them back."""

    def __init__(self, model: PreTrainedModel, shape: LoraShape, members: int = 1) -> None:
        self.model = model
        self.shape = shape
        model.requires_grad_(False)
        self.layers: dict[str, StackedLora] = {}
        for name in target_names(model, shape.targets):
            parent, _, leaf = name.rpartition(".")
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear | Conv1D), f"{name} has adapters already"
            layer = StackedLora(linear, shape)
            setattr(model.get_submodule(parent), leaf, layer)
            self.layers[name] = layer
        self.size = sum(layer.size for layer in self.layers.values())
        self.resize(members)

    @property
    def members(self) -> int:
        """How many adapters the bank holds: K."""
        return self.weight_KP.shape[0]

    def resize(self, members: int) -> None:
        """Hold `members` adapters, all of them zero until `load_row` or `init_row`."""
        like = next(self.model.parameters())
        # A bfloat16 base trains float32 adapters: small updates would be rounded away.
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.weight_KP = torch.zeros(members, self.size, dtype=dtype, device=like.device)
        self.grad_KP = torch.zeros_like(self.weight_KP)
        at = 0
        for layer in self.layers.values():
            split = self.shape.rank * layer.d_in
            layer.a_KRi = self._leaf(at, split, (members, self.shape.rank, layer.d_in))
            layer.b_KoR = self._leaf(at + split, layer.size - split, (members, layer.d_out, self.shape.rank))
            at += layer.size

    def _leaf(self, start: int, length: int, shape: tuple[int, ...]) -> Tensor:
        # A leaf tensor and its gradient, both windows on the bank's buffers: autograd adds in place.
        leaf = self.weight_KP[:, start : start + length].view(shape).detach().requires_grad_()
        leaf.grad = self.grad_KP[:, start : start + length].view(shape)
        return leaf

    def keep(self, rows: Sequence[int]) -> None:
        """Compact the bank to some of its members; the others are gone."""
        kept_KP = self.weight_KP[list(rows)].clone()
        self.resize(len(rows))
        self.weight_KP.copy_(kept_KP)

    def init_row(self, row: int, seed: int) -> None:
        """A fresh adapter as peft makes it: A is Kaiming-uniform, B is zero."""
        generator = torch.Generator().manual_seed(seed)
        for _, name, window_K in self._windows():
            if name == "lora_A":
                bound = math.sqrt(1 / window_K.shape[-1])  # kaiming_uniform with a = sqrt(5)
                value = torch.rand(window_K.shape[1:], generator=generator) * 2 * bound - bound
                window_K[row].copy_(value)
            else:
                window_K[row].zero_()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, the model answers as the plain base."""
        for layer in self.layers.values():
            layer.silent = True
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.silent = False

    def key_dropout(self, key_B: Tensor | None) -> None:
        """What decides dropout in the next forward pass: one int32 a document; every layer makes its own of them."""
        for number, layer in enumerate(self.layers.values()):
            layer.key_B = None if key_B is None else scrambled(key_B ^ number)

    def _windows(self) -> Iterator[tuple[str, str, Tensor]]:
        for name, layer in self.layers.items():
            yield name, "lora_A", layer.a_KRi.detach()
            yield name, "lora_B", layer.b_KoR.detach()

    def row_tensors(self, row: int) -> dict[str, Tensor]:
        """One member's tensors under peft's names, on the CPU."""
        return {f"base_model.model.{n}.{kind}.weight": w_K[row].cpu().clone() for n, kind, w_K in self._windows()}

    def load_row(self, row: int, tensors: Mapping[str, Tensor], where: str) -> None:
        """Fill one member from tensors under peft's names: with all of them, or, refused, with none.

        Raises:
            ModelError: a key is missing or unexpected, a shape differs, or a value is not finite.
        """
        wanted = {f"base_model.model.{n}.{kind}.weight": w_K[row] for n, kind, w_K in self._windows()}
        missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
        if missing or extra:
            raise ModelError("PL4102", where, f"adapter does not fit the base: missing {missing[:3]}, unexpected {extra[:3]}. Use an adapter of this base and these targets.")
        for key, window in wanted.items():
            if tensors[key].shape != window.shape:
                raise ModelError("PL4103", where, f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(window.shape)}. Use an adapter of rank {self.shape.rank}.")
            if not torch.isfinite(tensors[key]).all():
                raise ModelError("PL4104", where, f"{key} holds a value that is not finite. Train the adapter again.")
        for key, window in wanted.items():
            window.copy_(tensors[key])

    def remove(self) -> None:
        """Put the frozen linears back: the model is the plain base again."""
        for name, layer in self.layers.items():
            parent, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(parent), leaf, layer.base)
        self.layers = {}
