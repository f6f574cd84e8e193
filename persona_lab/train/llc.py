"""Langevin chains around a trained adapter, for its local learning coefficient (M6; `science.processes.llc` reads their losses).

    w <- w* + d (w - w*) - (1 - d) / pull * n beta grad L_n(w) + sqrt((1 - d^2) / pull) * noise          d = exp(-step/2 * m * pull)

For a small step this is w - step/2 * m * (n beta grad L_n(w) + pull * (w - w*)) + sqrt(step * m) * noise, with m = 1 or one number a parameter; but what the
spring alone does is exact (exponential Euler), so that a strong spring lets chains mix within a few draws and does not bias them.
A constant m leaves the distribution as it is and only lets every parameter move at its own pace (preconditioned Langevin dynamics), for instance
1 / (sqrt v + eps) of the Adam state in which training left the adapter. Chains are members of one bank: all of them take a step together. The
coefficient is that of the adapter's own parameters A and B, so only adapters of one shape can be compared.

Training leaves an adapter beside the minimum of any few documents, and the loss that the chains gain by going there would be taken off the coefficient. So
chains begin at the mode of the distribution that they draw from, which steps without noise find; for a quadratic loss the estimate is then exact:

    lambda = 1/2 sum_i n beta h_i / (n beta h_i + pull)          h_i the curvatures

Names: C chains, P parameters of one adapter, D draws that are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from persona_lab.models.bank import AdapterBank
from persona_lab.train.batches import Row, collate
from persona_lab.train.loop import BankLoss

Losses = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From weights (C, P) to the loss of each chain (C,) and its gradient (C, P)."""


@dataclass(frozen=True)
class Sampler:
    """Settings; equal for all solutions that are compared."""

    step: float
    pull: float
    """Strength of the spring to the solution, above 0: what keeps the chains local. By itself it lets them go sqrt(P / pull) far."""
    burn: int
    """Draws that are thrown away."""
    draws: int
    chains: int = 4
    seed: int = 0
    settle: int = 0
    """Steps without noise before the first draw."""


def chain_losses(losses: Losses, start_P: Tensor, nbeta: float, sampler: Sampler, pace_P: Tensor | None = None) -> tuple[float, np.ndarray]:
    """L_n where the draws begin, and the losses of those that are kept, (C, D) float64; not finite from where a chain leaves for infinity.

    Args:
        losses: the loss L_n, nats a document, and its gradient.
        start_P: w*.
        nbeta: n beta.
        sampler: the settings.
        pace_P: m, positive; None: 1 for every parameter.
    """
    generator = torch.Generator().manual_seed(sampler.seed)
    weight_CP = start_P.repeat(sampler.chains, 1)  # (C, P)
    stay_P = torch.exp(-sampler.step / 2 * sampler.pull * (torch.ones_like(start_P) if pace_P is None else pace_P.to(start_P)))
    kept: list[np.ndarray] = []
    first = None
    for draw in range(-sampler.settle, sampler.burn + sampler.draws + 1):
        loss_C, grad_CP = losses(weight_CP)
        if draw == 0:
            first = float(loss_C[0])
        if draw > sampler.burn:
            kept.append(loss_C.double().cpu().numpy())
        weight_CP = start_P + stay_P * (weight_CP - start_P) - (1 - stay_P) / sampler.pull * nbeta * grad_CP
        if draw >= 0:
            noise_CP = torch.randn(weight_CP.shape, generator=generator, dtype=torch.float64).to(weight_CP)
            weight_CP = weight_CP + ((1 - stay_P**2) / sampler.pull).sqrt() * noise_CP
    assert first is not None
    return first, np.stack(kept, axis=1)


def adapter_losses(bank: AdapterBank, rows: Sequence[Row], *, pad: int, micro_batch: int) -> Losses:
    """The loss of every chain on the same documents, nats a document that is learnt, each chain a member of the bank; without dropout.

    Documents that are held near the base (`Row.price`) add their price of KL(base || adapter), as they did in training.
    """
    learner, batch = BankLoss(bank), collate([rows] * bank.members, pad)
    parts, learnt = list(batch.parts(micro_batch)), sum(row.price is None for row in rows)
    bank.model.eval()

    def losses(weight_CP: Tensor) -> tuple[Tensor, Tensor]:
        bank.weight_KP.copy_(weight_CP)
        bank.grad_KP.zero_()
        loss_C = torch.zeros(bank.members, device=bank.model.device)
        for part in parts:
            part_C = learner.loss_sums(part) / learnt
            part_C.sum().backward()
            loss_C += part_C.detach()
        return loss_C, bank.grad_KP.clone()

    return losses
