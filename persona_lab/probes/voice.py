"""A model that answers: logits of the tokens that are needed, for K adapters at once.

Names: K members, B rows (K times as many, member by member), T tokens, N tokens of a member whose logits are wanted, V vocabulary.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from persona_lab.models.packing import read_at

LOGITS_AT_ONCE = 1 << 26
"""Of one forward pass: 64 Mi floats are 256 MiB."""


@dataclass(frozen=True)
class Voice:
    """A model ready to be asked: plain (members = 1), or with a bank of K adapters in it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    members: int = 1

    @property
    def vocabulary(self) -> int:
        """Logits of one token."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def width(self) -> int:
        """Features of a token."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def takes_trees(self) -> bool:
        """Whether the model can be told each token's position and what it sees."""
        given = inspect.signature(self.model.forward).parameters
        return "position_ids" in given and self.model.config._attn_implementation in ("eager", "sdpa") and self.model.get_output_embeddings() is not None

    @property
    def takes_caches(self) -> bool:
        """Whether the model can go on from a cache behind padded prompts."""
        given = inspect.signature(self.model.forward).parameters
        return {"position_ids", "attention_mask", "past_key_values"} <= given.keys() and self.model.get_output_embeddings() is not None

    def plain_logits(self, ids_BT: Tensor) -> Tensor:
        """Logits of rows of equal length, each a sequence of its own: (B, T, V). No trick: what all the others are held against."""
        return self.model(input_ids=ids_BT, use_cache=False).logits

    def tree_logits(self, ids_BT: Tensor, position_BT: Tensor, end_BT: Tensor, at_KN: Tensor) -> Tensor:
        """Logits (K * N, V) at some of the B * T tokens of rows of trees (`probes.forest`), as many of each member."""
        mask_BTT = seen(end_BT, next(self.model.parameters()).dtype)
        with read_at(self.model, at_KN.flatten()), last_mlp_at(self.model, at_KN, ids_BT.shape):
            return self.model(input_ids=ids_BT, position_ids=position_BT, attention_mask=mask_BTT[:, None], use_cache=False).logits[0]


def seen(end_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, (B, T, T): 0 where a token sees another, the least number where not."""
    slot_T = torch.arange(end_BT.shape[1], device=end_BT.device)
    sees_BTT = (slot_T[:, None] >= slot_T) & (slot_T[:, None] < end_BT[:, None, :])
    return torch.zeros(sees_BTT.shape, dtype=dtype, device=end_BT.device).masked_fill_(~sees_BTT, torch.finfo(dtype).min)


@contextmanager
def last_mlp_at(model: PreTrainedModel, at_KN: Tensor, shape_BT: torch.Size) -> Iterator[None]:
    """Inside, the MLP of the last layer works on some of the B * T tokens alone, and gives 0 to the others: no token sees another behind it.

    Models whose MLP has another name, or is given more than its tokens, are left as they are, and so is every model where most tokens are wanted.
    """
    last = f".{model.config.get_text_config().num_hidden_layers - 1}.mlp"
    mlp = next((module for name, module in model.named_modules() if name.endswith(last)), None)
    if mlp is None or len(inspect.signature(mlp.forward).parameters) > 1 or 2 * at_KN.numel() > shape_BT.numel():
        yield
        return

    def pick(_: nn.Module, given: tuple[Any, ...]) -> Tensor:
        return given[0].flatten(0, 1)[at_KN]

    def put(_: nn.Module, __: tuple[Any, ...], found: Any) -> Any:
        # Some mixtures of experts give more than what they add to their tokens.
        some_KNd, *others = found if isinstance(found, tuple) else (found,)
        every_Sd = some_KNd.new_zeros(shape_BT.numel(), some_KNd.shape[-1])
        every_Sd[at_KN] = some_KNd
        every_BTd = every_Sd.unflatten(0, shape_BT)
        return (every_BTd, *others) if others else every_BTd

    hooks = [mlp.register_forward_pre_hook(pick), mlp.register_forward_hook(put)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
