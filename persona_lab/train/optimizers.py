"""The optimizers: AdamW over the rows of an adapter bank, and Muon for the matrices of the embedded base.

Names: K members, P parameters of one adapter.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def warmed_up(step: int, warmup: int, total: int) -> float:
    """Share of the learning rate in the update after `step` of `total` steps: up to 1 within `warmup` steps, then down to 0, both linear.

    As transformers' `get_linear_schedule_with_warmup`, by which most published recipes were trained: the very first update has rate 0.
    """
    return step / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))


def pace(square_P: Tensor, step: int) -> Tensor:
    """1 / (sqrt v + eps): how far a gradient moves each parameter after so many steps. `square_P` is as it is kept, not corrected for its start at zero."""
    return 1 / ((square_P / (1 - BETA_2**step)).sqrt() + EPSILON)


class BankAdam:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) on K adapters at once: rate, decay, clipping and step count are each member's own."""

    def __init__(self, weight_KP: Tensor, grad_KP: Tensor, *, rate_K: Tensor, clip_K: Tensor, decay_K: Tensor | None = None) -> None:
        self.weight_KP, self.grad_KP = weight_KP, grad_KP
        self.rate_K, self.clip_K = rate_K.to(weight_KP), clip_K.to(weight_KP)
        self.decay_K = None if decay_K is None or not decay_K.any() else decay_K.to(weight_KP)
        self.mean_KP = torch.zeros_like(weight_KP)
        self.square_KP = torch.zeros_like(weight_KP)
        self.steps_K = torch.zeros(weight_KP.shape[0], dtype=weight_KP.dtype, device=weight_KP.device)

    @torch.no_grad()
    def step(self) -> Tensor:
        """Clip, update, and clear the gradients; returns each member's gradient norm before clipping, (K,)."""
        norm_K = torch.linalg.vector_norm(self.grad_KP, dim=1)
        # The same rule as torch.nn.utils.clip_grad_norm_, one member at a time.
        self.grad_KP.mul_((self.clip_K / (norm_K + 1e-6)).clamp(max=1.0)[:, None])
        self.steps_K += 1
        self.mean_KP.lerp_(self.grad_KP, 1 - BETA_1)
        self.square_KP.mul_(BETA_2).addcmul_(self.grad_KP, self.grad_KP, value=1 - BETA_2)
        if self.decay_K is not None:
            self.weight_KP.mul_((1 - self.rate_K * self.decay_K)[:, None])
        rate_K = self.rate_K / (1 - BETA_1**self.steps_K)
        scale_KP = (self.square_KP / (1 - BETA_2**self.steps_K)[:, None]).sqrt_().add_(EPSILON)
        self.weight_KP.sub_(rate_K[:, None] * self.mean_KP / scale_KP)
        self.grad_KP.zero_()
        return norm_K

    @torch.no_grad()
    def retire(self, row: int) -> None:
        """Set a member to zero, where it stays: without A and B neither gets a gradient."""
        for of_KP in (self.weight_KP, self.mean_KP, self.square_KP, self.grad_KP):
            of_KP[row] = 0

    def keep(self, rows: Sequence[int], weight_KP: Tensor, grad_KP: Tensor) -> None:
        """Go on with some of the members, whose weights and gradients are elsewhere now."""
        self.weight_KP, self.grad_KP, kept = weight_KP, grad_KP, list(rows)
        self.mean_KP, self.square_KP = self.mean_KP[kept], self.square_KP[kept]
        self.rate_K, self.clip_K, self.steps_K = self.rate_K[kept], self.clip_K[kept], self.steps_K[kept]
        self.decay_K = None if self.decay_K is None else self.decay_K[kept]


def orthogonalize(matrices_NIO: Tensor, iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, by the quintic Newton-Schulz iteration of Muon (Jordan et al. 2024).

    In float32: on processors without bfloat16 arithmetic that is 50 times faster than `torch.optim.Muon`, which casts.
    """
    x = matrices_NIO / (torch.linalg.matrix_norm(matrices_NIO, keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Momentum, orthogonalized: for the matrices inside the blocks of the embedded base."""

    def __init__(self, matrices: Iterable[nn.Parameter], *, rate: float, momentum: float = 0.95) -> None:
        self.rate, self.momentum = rate, momentum
        self.by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            self.by_shape[matrix.shape].append(matrix)
        self.mean_NIO = {shape: group[0].new_zeros(len(group), *shape) for shape, group in self.by_shape.items()}

    @torch.no_grad()
    def step(self) -> None:
        """One update with Nesterov momentum; clears the gradients."""
        for shape, group in self.by_shape.items():
            grad_NIO = torch.stack([m.grad for m in group if m.grad is not None])
            mean_NIO = self.mean_NIO[shape].lerp_(grad_NIO, 1 - self.momentum)
            update_NIO = orthogonalize(grad_NIO.lerp(mean_NIO, self.momentum))
            stretch = max(1.0, shape[0] / shape[1]) ** 0.5
            for matrix, update in zip(group, update_NIO, strict=True):
                matrix.sub_(self.rate * stretch * update)
                matrix.grad = None
