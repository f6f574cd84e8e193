"""The adapter bank: K LoRA adapters on one frozen base, trained and probed together.

Every targeted linear gets A (K, R, d_in) and B (K, d_out, R) beside it (`models.lora`). Parameters of all members lie
in one buffer (K, P), a row a member, so that clipping, Adam, snapshots and compaction are operations on rows. A member
of a smaller rank has zeros where it has nothing: neither A nor B gets a gradient there, so they stay. K = 1 is the same
path.

Names: K members, R rank of the bank, P parameters of one adapter of that rank.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from persona_lab.errors import ModelError
from persona_lab.models.lora import LoraShape, StackedLora, Together, scrambled

LAYER = re.compile(r".*\.[^.]*\.(\d+)\.")
"""The number of the layer in a module's name, as peft reads it for `layers_to_transform`."""


def target_names(model: PreTrainedModel, targets: Sequence[str], layers: Sequence[int] = ()) -> list[str]:
    """Full names of the modules to adapt, in the model's own order; the same whether or not a bank is in it.

    Raises:
        ModelError: a target matches no linear of the model, or there is no layer of a number.
    """
    names = _targeted(model, targets)
    if not layers:
        return names
    of_layer = {name: int(found[1]) for name in names if (found := LAYER.match(name))}
    for layer in layers:
        if layer not in of_layer.values():
            most = max(of_layer.values(), default=-1)
            raise ModelError("PL4101", _name_of(model), f"no layer {layer} has one of the targets. Use layers from 0 to {most}.")
    return [name for name in names if of_layer.get(name) in layers]


def _name_of(model: PreTrainedModel) -> str:
    return str(model.name_or_path) or "the base model"


def _targeted(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """The targets of every layer."""
    apart = {id(model.get_output_embeddings()), *(id(m.base) for m in model.modules() if isinstance(m, StackedLora))}
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D | StackedLora) and id(m) not in apart]
    if tuple(targets) == ("all-linear",):
        return linears
    leaves = {n.rsplit(".", 1)[-1] for n in linears}
    for target in targets:
        if target not in leaves:
            raise ModelError("PL4101", _name_of(model), f"lora.targets: no linear is called {target!r}. Use all-linear or some of: {', '.join(sorted(leaves))}.")
    return [n for n in linears if n.rsplit(".", 1)[-1] in targets]


class AdapterBank:
    """K adapters on one model. The model's linears are wrapped in place; `remove` puts them back."""

    def __init__(self, model: PreTrainedModel, shape: LoraShape, members: int = 1) -> None:
        self.model = model
        self.shape = shape
        model.requires_grad_(False)
        self.layers: dict[str, StackedLora] = {}
        for name in target_names(model, shape.targets, shape.layers):
            parent, _, leaf = name.rpartition(".")
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear | Conv1D), f"{name} has adapters already"
            layer = StackedLora(linear, shape.rank, shape.dropout)
            setattr(model.get_submodule(parent), leaf, layer)
            self.layers[name] = layer
        self.size = sum(layer.size for layer in self.layers.values())
        self.resize(members)
        if not shape.dropout:  # of which every linear has its own
            self._share_inputs()

    @property
    def members(self) -> int:
        """How many adapters the bank holds: K."""
        return self.weight_KP.shape[0]

    def resize(self, members: int, shapes: Sequence[LoraShape] | None = None) -> None:
        """Hold `members` adapters, all of them zero until `load_row` or `init_row`; of the bank's shape unless others are given.

        Their ranks may be smaller than the bank's, their alphas any; targets and dropout are the bank's.
        """
        self.shapes = tuple(shapes or [self.shape] * members)
        assert len(self.shapes) == members, f"{len(self.shapes)} shapes for {members} members"
        assert all(s.rank <= self.shape.rank for s in self.shapes), f"{self.shapes} in a bank of rank {self.shape.rank}"
        like = next(self.model.parameters())
        # A bfloat16 base trains float32 adapters: small updates would be rounded away.
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.weight_KP = torch.zeros(members, self.size, dtype=dtype, device=like.device)
        self.grad_KP = torch.zeros_like(self.weight_KP)
        scale_K = torch.tensor([s.scale for s in self.shapes], dtype=dtype, device=like.device)
        at = 0
        for layer in self.layers.values():
            split = layer.rank * layer.d_in
            layer.scale_K = scale_K
            layer.a_KRi = self._leaf(at, split, (members, layer.rank, layer.d_in))
            layer.b_KoR = self._leaf(at + split, layer.size - split, (members, layer.d_out, layer.rank))
            at += layer.size

    def _leaf(self, start: int, length: int, shape: tuple[int, ...]) -> Tensor:
        # A leaf tensor and its gradient, both windows on the bank's buffers: autograd adds in place.
        leaf = self.weight_KP[:, start : start + length].view(shape).detach().requires_grad_()
        leaf.grad = self.grad_KP[:, start : start + length].view(shape)
        return leaf

    @torch.no_grad()
    def _share_inputs(self) -> None:
        """Let linears that are given the same tensor, one right after the other, share their products."""
        asked: list[tuple[StackedLora, Tensor]] = []

        def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
            assert isinstance(layer, StackedLora)
            asked.append((layer, given[0]))

        hooks = [layer.register_forward_pre_hook(note) for layer in self.layers.values()]
        self.model(input_ids=torch.zeros(self.members, 2, dtype=torch.int64, device=self.model.device), use_cache=False)
        for hook in hooks:
            hook.remove()
        groups: list[list[tuple[StackedLora, Tensor]]] = []
        for layer, x_BTi in asked:
            if groups and groups[-1][-1][1] is x_BTi:
                groups[-1].append((layer, x_BTi))
            else:
                groups.append([(layer, x_BTi)])
        for group in groups:
            together = Together([layer for layer, _ in group])
            for layer, _ in group:
                layer.together = together

    def keep(self, rows: Sequence[int]) -> None:
        """Compact the bank to some of its members; the others are gone."""
        kept_KP = self.weight_KP[list(rows)].clone()
        self.resize(len(rows), [self.shapes[row] for row in rows])
        self.weight_KP.copy_(kept_KP)

    def init_row(self, row: int, seed: int) -> None:
        """A fresh adapter as peft makes it: A is Kaiming-uniform, B is zero."""
        generator = torch.Generator().manual_seed(seed)
        for _, name, window in self._windows(row):
            if name == "lora_A":
                bound = math.sqrt(1 / window.shape[-1])  # kaiming_uniform with a = sqrt(5)
                window.copy_(torch.rand(window.shape, generator=generator) * 2 * bound - bound)
            else:
                window.zero_()

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

    @contextmanager
    def holding(self, weight_KP: Tensor) -> Iterator[None]:
        """Inside, the members answer with other weights, and without dropout."""
        kept_KP, training = self.weight_KP.clone(), self.model.training
        self.weight_KP.copy_(weight_KP)
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)
            self.weight_KP.copy_(kept_KP)

    def key_dropout(self, key_RN: Tensor | None, position_RN: Tensor) -> None:
        """What decides dropout in the next forward pass: an int32 a document, for each of its tokens; every layer makes its own of them."""
        for number, layer in enumerate(self.layers.values()):
            layer.keys = None if key_RN is None else (scrambled(key_RN.flatten() ^ number), position_RN.flatten())

    def _windows(self, row: int) -> Iterator[tuple[str, str, Tensor]]:
        """A member's own tensors as windows on the buffer."""
        rank = self.shapes[row].rank
        for name, layer in self.layers.items():
            yield name, "lora_A", layer.a_KRi.detach()[row, :rank]
            yield name, "lora_B", layer.b_KoR.detach()[row, :, :rank]

    def row_tensors(self, row: int) -> dict[str, Tensor]:
        """One member's tensors under peft's names, on the CPU."""
        return {f"base_model.model.{n}.{kind}.weight": window.cpu().clone(memory_format=torch.contiguous_format) for n, kind, window in self._windows(row)}

    def own(self, row: int, of_KP: Tensor) -> Tensor:
        """What belongs to one member in a buffer like the bank's, on the CPU: as many as its own rank has parameters."""
        return of_KP[row][self._owned(self.shapes[row].rank)].cpu()

    def put(self, row: int, of_KP: Tensor, owned_P: Tensor) -> None:
        """Put back what `own` gave; it may come from a bank of another rank."""
        of_KP[row][self._owned(self.shapes[row].rank)] = owned_P.to(of_KP)

    def _owned(self, rank: int) -> Tensor:
        """Which of the P parameters an adapter of a rank has, bool."""
        parts = []
        for layer in self.layers.values():
            has_R = torch.arange(layer.rank) < rank
            parts += [has_R.repeat_interleave(layer.d_in), has_R.repeat(layer.d_out)]
        return torch.cat(parts).to(self.weight_KP.device)

    def load_row(self, row: int, tensors: Mapping[str, Tensor], where: str) -> None:
        """Fill one member from tensors under peft's names: with all of them, or, refused, with none.

        Raises:
            ModelError: a key is missing or unexpected, a shape differs, or a value is not finite.
        """
        wanted = {f"base_model.model.{n}.{kind}.weight": window for n, kind, window in self._windows(row)}
        missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
        if missing or extra:
            raise ModelError("PL4102", where, f"adapter does not fit the base: missing {missing[:3]}, unexpected {extra[:3]}. Use an adapter of this base and these targets.")
        for key, window in wanted.items():
            if tensors[key].shape != window.shape:
                raise ModelError("PL4103", where, f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(window.shape)}. Use an adapter of rank {self.shapes[row].rank}.")
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
