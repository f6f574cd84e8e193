"""Langevin chains around a trained adapter, for its local learning coefficient (M6; `science.processes.llc` reads their losses).

    w <- w - step/2 * m * (n beta grad L_n(w) + pull * (w - w*)) + sqrt(step * m) * noise          m = 1, or one number a parameter

A constant m leaves the distribution as it is and only lets every parameter move at its own pace (preconditioned Langevin dynamics), for instance
1 / (sqrt v + eps) of the Adam state in which training left the adapter. Chains are members of one bank: all of them take a step together. The
coefficient is that of the adapter's own parameters A and B, so only adapters of one shape can be compared.

Names: C chains, P parameters of one adapter, D draws that are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from persona_lab.models.bank import AdapterBank
from persona_lab.models.packing import packs_exactly
from persona_lab.train.batches import Row, collate, lay
from persona_lab.train.loop import logits_of, nats_of

Losses = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From weights (C, P) to the loss of each chain (C,) and its gradient (C, P)."""


@dataclass(frozen=True)
class Sampler:
    """Settings; equal for all solutions that are compared."""

    step: float
    pull: float
    """Strength of the spring to where the chains began: what keeps them local."""
    burn: int
    """Draws that are thrown away."""
    draws: int
    chains: int = 4
    seed: int = 0


def chain_losses(losses: Losses, start_P: Tensor, nbeta: float, sampler: Sampler, pace_P: Tensor | None = None) -> tuple[float, np.ndarray]:
    """L_n where the chains begin, and the losses of their draws, (C, D) float64; not finite from where a chain leaves for infinity.

    Args:
        losses: the loss L_n, nats a document, and its gradient.
        start_P: w*.
        nbeta: n beta.
        sampler: the settings.
        pace_P: m, positive; None: 1 for every parameter.
    """
    generator = torch.Generator().manual_seed(sampler.seed)
    weight_CP = start_P.repeat(sampler.chains, 1)
    pace_P = torch.ones_like(start_P) if pace_P is None else pace_P.to(start_P)
    kept: list[np.ndarray] = []
    first = None
    for draw in range(sampler.burn + sampler.draws + 1):
        loss_C, grad_CP = losses(weight_CP)
        if first is None:
            first = float(loss_C[0])
        if draw > sampler.burn:
            kept.append(loss_C.double().cpu().numpy())
        noise_CP = torch.randn(weight_CP.shape, generator=generator, dtype=torch.float64).to(weight_CP)
        force_CP = nbeta * grad_CP + sampler.pull * (weight_CP - start_P)
        weight_CP = weight_CP - sampler.step / 2 * pace_P * force_CP + (sampler.step * pace_P).sqrt() * noise_CP
    assert first is not None
    return first, np.stack(kept, axis=1)


def adapter_losses(bank: AdapterBank, rows: Sequence[Row], *, pad: int, micro_batch: int) -> Losses:
    """The loss of every chain on the same documents, nats a document, each chain a member of the bank; without dropout."""
    batch = collate([rows] * bank.members, pad)
    parts = list(batch.parts(micro_batch))
    packed = packs_exactly(bank.model, bank.members)
    bank.model.eval()

    def losses(weight_CP: Tensor) -> tuple[Tensor, Tensor]:
        bank.weight_KP.copy_(weight_CP)
        bank.grad_KP.zero_()
        loss_C = torch.zeros(bank.members, device=bank.model.device)
        for part in parts:
            laid = lay(part, packed=packed).to(bank.model.device)
            part_C = nats_of(logits_of(bank.model, laid), laid).sum(1) / len(rows)
            part_C.sum().backward()
            loss_C += part_C.detach()
        return loss_C, bank.grad_KP.clone()

    return losses
