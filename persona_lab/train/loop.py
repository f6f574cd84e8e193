"""The training loop: the only one. It steps a bank of adapters, or (in pretraining) a whole small model.

Loss is the mean over the labelled tokens of a member's whole step, whatever the micro-batch: 1 x 8 equals 8 x 1.

Names: K members, B rows, T tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from persona_lab.models.bank import AdapterBank
from persona_lab.train.batches import Batch
from persona_lab.train.optimizers import BankAdam


class Diverged(ArithmeticError):
    """The loss or the gradient of a member is not a finite number."""

    def __init__(self, member: int, step: int, what: str) -> None:
        self.member, self.step = member, step
        super().__init__(f"{what} of member {member} is not finite at step {step}")


class Learner(Protocol):
    """Whatever the loop can train."""

    def loss_sums(self, batch: Batch) -> Tensor:
        """Summed loss of each member's labelled tokens, nats, (K,)."""
        ...

    def update(self, step: int) -> Tensor:
        """Step the optimizer and clear the gradients; each member's gradient norm, (K,)."""
        ...


def token_nats(logits_BTV: Tensor, batch: Batch) -> Tensor:
    """Negative log-likelihood of each labelled token, nats, (B, T - 1); zero elsewhere."""
    target_BT = batch.ids_BT[:, 1:].masked_fill(~batch.labelled_BT[:, 1:], -100)
    flat_NV = _precise(logits_BTV[:, :-1]).flatten(0, 1)  # classes last: transposing them to the middle would copy
    return nn.functional.cross_entropy(flat_NV, target_BT.flatten(), ignore_index=-100, reduction="none").view_as(target_BT)


def _precise(logits_BTV: Tensor) -> Tensor:
    return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))


class BankLearner:
    """K adapters on one frozen base."""

    def __init__(self, bank: AdapterBank, optimizer: BankAdam, *, kl_to_base: float = 0.0) -> None:
        self.bank, self.optimizer, self.kl_to_base = bank, optimizer, kl_to_base

    def loss_sums(self, batch: Batch) -> Tensor:
        """Cross-entropy, and the price of leaving the base where one is asked: kl_to_base * KL(base || adapter)."""
        logits_BTV = self.bank.model(input_ids=batch.ids_BT, use_cache=False).logits
        nats_BT = token_nats(logits_BTV, batch)
        if self.kl_to_base:
            with torch.no_grad(), self.bank.silent():
                base_BTV = self.bank.model(input_ids=batch.ids_BT, use_cache=False).logits
            base_BTV, here_BTV = _precise(base_BTV[:, :-1]).log_softmax(-1), _precise(logits_BTV[:, :-1]).log_softmax(-1)
            kl_BT = (base_BTV.exp() * (base_BTV - here_BTV)).sum(-1)
            nats_BT = nats_BT + self.kl_to_base * kl_BT * batch.labelled_BT[:, 1:]
        return nats_BT.reshape(batch.members, -1).sum(dim=1)

    def update(self, step: int) -> Tensor:
        """One step of Adam on every member."""
        return self.optimizer.step()


class ModelLearner:
    """A whole model as a single member: pretraining."""

    def __init__(self, model: PreTrainedModel, update: Callable[[int], Tensor]) -> None:
        self.model, self._update = model, update

    def loss_sums(self, batch: Batch) -> Tensor:
        """Cross-entropy."""
        logits_BTV = self.model(input_ids=batch.ids_BT, use_cache=False).logits
        return token_nats(logits_BTV, batch).sum()[None]

    def update(self, step: int) -> Tensor:
        """One step of the optimizers it was given."""
        return self._update(step)


def train(
    learner: Learner,
    batch_at: Callable[[int], Batch],
    *,
    start: int,
    stop: int,
    accelerator: Accelerator,
    micro_batch: int,
    on_step: Callable[[int, Tensor, Tensor], None],
) -> None:
    """Train from step `start` to step `stop` (optimizer steps done).

    Args:
        learner: what is trained.
        batch_at: the batch of a step; a function of the step alone, so that a resumed run sees the same documents.
        start: steps already done.
        stop: steps done at the end.
        accelerator: device, precision, backward.
        micro_batch: documents of one member in one forward pass.
        on_step: called after each update with steps done, loss_K (nats a token) and gradient norm_K.

    Raises:
        Diverged: a loss or gradient is not finite; the step's update of the other members is not made either.
    """
    for step in range(start, stop):
        batch = batch_at(step).to(accelerator.device)
        tokens_K = batch.tokens_K.clamp(min=1)
        loss_K = torch.zeros(batch.members, device=accelerator.device)
        for part in batch.parts(micro_batch):
            with accelerator.autocast():
                part_K = learner.loss_sums(part) / tokens_K
            accelerator.backward(part_K.sum())
            loss_K += part_K.detach()
        _refuse_non_finite(loss_K, step, "loss")
        norm_K = learner.update(step)
        _refuse_non_finite(norm_K, step, "gradient norm")
        on_step(step + 1, loss_K, norm_K)


def _refuse_non_finite(value_K: Tensor, step: int, what: str) -> None:
    finite_K = torch.isfinite(value_K)
    if not finite_K.all():
        raise Diverged(int((~finite_K).nonzero()[0, 0]), step, what)
