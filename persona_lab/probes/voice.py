"""A model that answers: logits of the tokens that are needed, for K adapters at once.

Names: K members, B rows (K times as many, member by member), T tokens, N tokens whose logits are wanted, V vocabulary.
"""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor
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

    def tree_logits(self, ids_BT: Tensor, position_BT: Tensor, end_BT: Tensor, at_N: Tensor) -> Tensor:
        """Logits (N, V) at some of the B * T tokens of rows of trees (`probes.forest`)."""
        mask_BTT = seen(end_BT, next(self.model.parameters()).dtype)
        with read_at(self.model, at_N):
            return self.model(input_ids=ids_BT, position_ids=position_BT, attention_mask=mask_BTT[:, None], use_cache=False).logits[0]


def seen(end_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, (B, T, T): 0 where a token sees another, the least number where not."""
    slot_T = torch.arange(end_BT.shape[1], device=end_BT.device)
    sees_BTT = (slot_T[:, None] >= slot_T) & (slot_T[:, None] < end_BT[:, None, :])
    return torch.zeros(sees_BTT.shape, dtype=dtype, device=end_BT.device).masked_fill_(~sees_BTT, torch.finfo(dtype).min)
