"""Pretraining of the embedded base: a small model on the world's own text, Muon on the matrices, AdamW on the rest.

The rate is constant, then falls linearly to zero over the last part: the world is learnt in a few hundred steps,
and the log-odds are calibrated while the rate falls.
"""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from persona_lab.models.world_model import build_model
from persona_lab.train.batches import collate, encode
from persona_lab.train.loop import ModelLearner, train
from persona_lab.train.optimizers import Muon

DECAY = 0.4
"""Share of the steps over which the rate falls to zero."""


def matrices_of(model: PreTrainedModel) -> list[nn.Parameter]:
    """What Muon moves: every matrix inside the layers. Embeddings, norms and biases learn with AdamW.

    Queries, keys and values that a layer keeps in one matrix, as GPT-NeoX does, are made orthogonal as that one matrix. Three times as tall as wide, it gets
    sqrt 3 times the rate by Muon's rule for tall ones, so that each row moves as far as it would in three matrices of its own.
    """
    return [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    architecture: str = "llama",
    width: int,
    layers: int,
    heads: int,
    steps: int,
    batch: int,
    rate: float,
    rate_rest: float,
    seed: int,
    accelerator: Accelerator,
    on_step: Callable[[int, Tensor, Tensor], None],
    on_shrink: Callable[[int, int], None],
) -> PreTrainedModel:
    """A base model trained for one epoch on `steps * batch` documents, float32.

    Raises:
        Diverged: a loss, gradient or weight is not finite.
    """
    model = build_model(tokenizer, architecture=architecture, width=width, layers=layers, heads=heads, seed=seed).to(accelerator.device)
    model.train()
    matrices = matrices_of(model)
    inside = {id(p) for p in matrices}
    muon = Muon(matrices, rate=rate)
    adam = torch.optim.AdamW([p for p in model.parameters() if id(p) not in inside], lr=rate_rest, weight_decay=0.0)

    def update(step: int) -> Tensor:
        share = min(1.0, (steps - step) / (DECAY * steps))
        muon.rate = rate * share
        adam.param_groups[0]["lr"] = rate_rest * share
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        muon.step()
        adam.step()
        adam.zero_grad()
        return norm[None]

    rows = encode(tokenizer, texts, on="all", where="the world's text")
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    train(
        ModelLearner(model, update),
        lambda step: collate([rows[step * batch : (step + 1) * batch]], pad),
        start=0,
        stop=steps,
        accelerator=accelerator,
        micro_batch=batch,
        on_step=on_step,
        on_shrink=on_shrink,
    )
    return model.eval()
