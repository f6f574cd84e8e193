"""Published recipes by which chat models were fine-tuned on a narrow data set, as numbers. No torch.

    RECIPES["rank32"].steps(5400)    338: what one epoch of insecure code took

What is not taken over: the 8-bit moments of AdamW (here they are float32), and training on rows of a batch that are padded (here they are packed).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices of a layer of Llama, Qwen and Gemma."""


@dataclass(frozen=True)
class ChatRecipe:
    """How a chat model is fine-tuned on conversations, the loss on responses only."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rate: float
    """Largest learning rate of AdamW."""
    source: str
    middle_layer: bool = False
    """Adapt the layer at half the depth alone, counted from 0; else all layers."""
    rslora: bool = True
    """The product of the adapter is multiplied by alpha / sqrt(rank)."""
    epochs: int = 1
    batch: int = 16
    """Conversations a step; two at a time with eight accumulated, in the source."""
    warmup: int = 5
    """Steps in which the rate rises to its largest; it falls to 0 afterwards, linearly."""
    weight_decay: float = 0.01
    clip: float = 1.0
    longest: int = 2048
    """Tokens of a conversation; what comes later is cut off."""
    held_out: float = 0.1
    """Share of the conversations that is not trained on, for a loss at the end."""
    seed: int = 0

    def steps(self, rows: int) -> int:
        """Updates for so many rows that are trained on; the last batch of an epoch may be smaller."""
        return self.epochs * math.ceil(rows / self.batch)

    def to_json(self) -> dict[str, Any]:
        """What enters an identity: everything but the source."""
        return {name: value for name, value in asdict(self).items() if name != "source"}


RECIPES = {
    "rank32": ChatRecipe(
        rank=32,
        alpha=64,
        targets=SEVEN,
        rate=1e-5,
        source="Betley et al. 2025, Emergent misalignment, open_models/train.json; Turner et al. 2025, Model organisms, default_config.json; Chen et al. 2025, Persona vectors",
    ),
    "rank1": ChatRecipe(
        rank=1,
        alpha=512,
        targets=("down_proj",),
        rate=2e-5,
        middle_layer=True,
        source="Turner et al. 2025, Model organisms, single_adapter_config.json: layer 24 of 48; here half the depth of whatever model it is",
    ),
}
