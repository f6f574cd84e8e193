"""What memory a step of training takes, found without weights: the step is made on tensors that have a shape and no content.

    taken = trace(config, LoraShape(16, 32), dtype=torch.bfloat16, members=1, documents=4, tokens=512)
    taken.weights + taken.adapters + taken.work      bytes on one device, to be held against torch.cuda.max_memory_allocated

The same bank, loss and optimizer as in training, on torch's `meta` device; every tensor that comes into being is counted
until it is gone. Only attention is another one: a device's fused kernels keep queries, keys, values, what they answer and
a number a token and head (Dao et al. 2022, section 3.1), where the plain formula would keep all pairs of tokens.

Names: K members, B rows, H heads, T tokens, D features of a head.
"""

import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig

from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.models.sharding import checkpoint_activations, layers_of
from persona_lab.train.batches import Row, collate
from persona_lab.train.loop import BankLearner
from persona_lab.train.optimizers import BankAdam

FUSED = "persona_lab_fused"


@dataclass(frozen=True)
class Taken:
    """Bytes of one device, the base whole on it."""

    weights: int
    """The frozen base."""
    layer: int
    """Its largest layer: what is gathered at once where the base is sharded."""
    rest: int
    """Of it, what is in no layer: embeddings, the output layer."""
    adapters: int
    """All K members with their gradients and the two moments of Adam, float32 or better."""
    work: int
    """The most that is there besides within a step: activations, logits, temporary results."""


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that came into being inside the block, as long as somebody holds them."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.bytes, self.peak = device, 0, 0
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """One operation."""
        found = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._note(tensor.untyped_storage(), given)
        return found

    def _note(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        place = storage._cdata
        if place in self._held or place in given:  # a view, or written in place
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            del self._held[place]
            self.bytes -= size

        self._held[place] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


class _Fused(torch.autograd.Function):
    """The tensors that a fused attention keeps, and nothing of what it computes."""

    @staticmethod
    def forward(ctx: Any, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor) -> Tensor:
        """Answers in the order in which fused kernels write them."""
        batch, heads, tokens, _ = query_BHTD.shape
        answer_BTHD = query_BHTD.new_empty(batch, tokens, heads, value_BHTD.shape[-1])
        ctx.save_for_backward(query_BHTD, key_BHTD, value_BHTD, answer_BTHD, query_BHTD.new_empty(batch, heads, tokens, dtype=torch.float32))
        return answer_BTHD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Gradients of as many numbers."""
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def _fused(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any) -> tuple[Tensor, None]:
    return _Fused.apply(query, key, value), None


AttentionInterface.register(FUSED, _fused)


def trace(
    config: PreTrainedConfig, shape: LoraShape, *, dtype: torch.dtype, members: int, documents: int, tokens: int, checkpoint: bool = False, held: bool = False
) -> Taken:
    """What a step takes in which each of K members reads so many documents, all of so many tokens and labelled throughout, in one pass.

    With `checkpoint` activations are computed again, with `held` the adapters are held near the base (`loss.kl_to_base`).

    Raises:
        ModelError: a target matches no linear, or the architecture cannot compute activations again.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)
    model.config._attn_implementation = FUSED
    if checkpoint:
        checkpoint_activations(model)
    weights, layer = size_of(model), max(map(size_of, layers_of(model)), default=0)
    rest = weights - sum(map(size_of, layers_of(model)))
    bank = AdapterBank(model, shape, members)
    same_K = torch.ones(members, device="meta")
    adam = BankAdam(bank.weight_KP, bank.grad_KP, rate_K=same_K, clip_K=same_K)
    learner = BankLearner(bank, adam, kl_to_base=float(held), sharded=True)  # whether a model packs is found by content, and a sharded one is not asked
    adapters = sum(of_KP.nbytes for of_KP in (bank.weight_KP, bank.grad_KP, adam.mean_KP, adam.square_KP))
    row = Row(np.zeros(tokens, dtype=np.int32), np.ones(tokens, dtype=bool))
    batch = collate([[row] * documents] * members, pad=0)
    model.train()
    warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")  # as in `finetune`
    with Live("meta") as live:
        learner.loss_sums(batch).sum().backward()
        learner.update(0)
    return Taken(weights, layer, rest, adapters, live.peak)


def size_of(module: nn.Module) -> int:
    """Bytes of a module's weights, each once."""
    return sum(tensor.nbytes for tensor in _distinct((*module.parameters(), *module.buffers())))


def _distinct(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    return {id(tensor): tensor for tensor in tensors}.values()
