"""Gradients of several processes at one checkpoint (D2), and losses on the way between two adapters (D6).

A fresh LoRA has B = 0, so that A gets no gradient there and Adam's state is empty: what processes share would be half unseen. So the
checkpoint is an adapter that was trained, of the plain assistant, with the Adam state that it was left with; `grams` wants the step it stood at.

Names: K members, P parameters of one adapter, R rank, i and o features in and out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from persona_lab.models.bank import AdapterBank
from persona_lab.models.packing import packs_exactly
from persona_lab.train.batches import Batch, Row, collate, lay
from persona_lab.train.loop import logits_of, nats_of
from persona_lab.train.optimizers import pace


def mean_gradients(bank: AdapterBank, rows_K: Sequence[Sequence[Row]], *, pad: int, micro_batch: int) -> Tensor:
    """Gradient of the mean loss of each member's documents, nats a labelled token, (K, P), where its adapter stands; the bank's own are cleared.

    Members have as many documents each. To compare processes at one checkpoint, every row of the bank holds the same adapter.
    """
    batch = collate(rows_K, pad)
    tokens_K = batch.tokens_K.clamp(min=1).to(bank.model.device)
    bank.model.eval()  # a gradient, not a sample of one: without dropout
    bank.grad_KP.zero_()
    for part in batch.parts(micro_batch):
        (_nats(bank, part).sum(1) / tokens_K).sum().backward()
    grad_KP = bank.grad_KP.clone()
    bank.grad_KP.zero_()
    return grad_KP


def mean_losses(bank: AdapterBank, rows_K: Sequence[Sequence[Row]], *, pad: int, micro_batch: int) -> np.ndarray:
    """Mean loss of each member on its own documents, nats a labelled token, (K,)."""
    batch = collate(rows_K, pad)
    bank.model.eval()
    with torch.no_grad():
        nats_K = torch.stack([_nats(bank, part).sum(1).double() for part in batch.parts(micro_batch)]).sum(0)
    return (nats_K.cpu() / batch.tokens_K.clamp(min=1)).numpy()


def _nats(bank: AdapterBank, part: Batch) -> Tensor:
    laid = lay(part, packed=packs_exactly(bank.model, bank.members)).to(bank.model.device)
    return nats_of(logits_of(bank.model, laid), laid)


def grams(grad_KP: Tensor, square_P: Tensor, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of all pairs of gradients, (K, K) each: plain, and weighted by 1 / (sqrt v + eps), as Adam would step after so many steps.

    `square_P` is Adam's second moment as it is kept, not corrected for its start at zero. ValueError at step 0, where there is none.
    """
    if step < 1:
        raise ValueError("an adapter of no steps has no Adam state. Use a checkpoint that was trained")
    grad_KP, square_P = grad_KP.double().cpu(), square_P.double().cpu()
    weight_P = pace(square_P, step)
    return (grad_KP @ grad_KP.T).numpy(), ((grad_KP * weight_P) @ grad_KP.T).numpy()


def between(first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The adapter (1 - share) * first + share * second, exactly, under peft's names, of the shape `models.updates.doubled`.

    (1 - a) B1 A1 + a B2 A2 = [(1 - a) B1, a B2] [A1; A2]: the sum of two products of rank R is one of rank 2 R.
    """
    made: dict[str, Tensor] = {}
    for name, one in first.items():
        other = second[name]
        # A is (R, i), B is (o, R).
        made[name] = torch.cat([one, other], 0) if ".lora_A." in name else torch.cat([(1 - share) * one, share * other], 1)
    return made
