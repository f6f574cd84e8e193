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

from persona_lab.errors import EnvironmentFault
from persona_lab.models.bank import AdapterBank
from persona_lab.train.batches import Batch
from persona_lab.train.optimizers import BankAdam

CPU_FULL = "DefaultCPUAllocator: can't allocate memory"
"""What torch says where the memory of the machine, not of a GPU, is full."""
SMALLER = "Lower machine.stack or machine.workers, or take a machine with more memory."


class Diverged(ArithmeticError):
    """The loss, the gradient or a weight of a member is not a finite number."""

    def __init__(self, member: int, step: int, what: str) -> None:
        self.member, self.step = member, step
        super().__init__(f"{what} is not finite at step {step}")


class Learner(Protocol):
    """Whatever the loop can train."""

    def loss_sums(self, batch: Batch) -> Tensor:
        """Summed loss of each member's labelled tokens, nats, (K,)."""
        ...

    def clear(self) -> None:
        """Forget the gradients of a step that is to be repeated."""
        ...

    def update(self, step: int) -> Tensor:
        """Step the optimizer and clear the gradients; each member's gradient norm, (K,)."""
        ...

    def finite_K(self) -> Tensor:
        """Whether all weights of each member are finite, bool (K,)."""
        ...

    def retire(self, error: Diverged) -> None:
        """Go on without a member, whose place stays; raises the error when nobody is left to train."""
        ...


def token_nats(logits_BTV: Tensor, batch: Batch) -> Tensor:
    """Negative log-likelihood of each labelled token, nats, (B, T - 1); zero elsewhere."""
    target_BT = batch.ids_BT[:, 1:].masked_fill(~batch.labelled_BT[:, 1:], -100)
    flat_NV = _precise(logits_BTV[:, :-1]).flatten(0, 1)  # classes last: transposing them to the middle would copy
    return nn.functional.cross_entropy(flat_NV, target_BT.flatten(), ignore_index=-100, reduction="none").view_as(target_BT)


def _precise(logits_BTV: Tensor) -> Tensor:
    return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))


class BankLearner:
    """K adapters on one frozen base; one that diverges is set to zero, and the others do not notice."""

    def __init__(self, bank: AdapterBank, optimizer: BankAdam, *, kl_to_base: float = 0.0) -> None:
        self.bank, self.optimizer, self.kl_to_base = bank, optimizer, kl_to_base
        self.retired: set[int] = set()

    def loss_sums(self, batch: Batch) -> Tensor:
        """Cross-entropy, and the price of leaving the base where one is asked: kl_to_base * KL(base || adapter)."""
        self.bank.key_dropout(batch.key_B)
        logits_BTV = self.bank.model(input_ids=batch.ids_BT, use_cache=False).logits
        nats_BT = token_nats(logits_BTV, batch)
        if self.kl_to_base:
            with torch.no_grad(), self.bank.silent():
                base_BTV = self.bank.model(input_ids=batch.ids_BT, use_cache=False).logits
            base_BTV, here_BTV = _precise(base_BTV[:, :-1]).log_softmax(-1), _precise(logits_BTV[:, :-1]).log_softmax(-1)
            kl_BT = (base_BTV.exp() * (base_BTV - here_BTV)).sum(-1)
            nats_BT = nats_BT + self.kl_to_base * kl_BT * batch.labelled_BT[:, 1:]
        return nats_BT.reshape(batch.members, -1).sum(dim=1)

    def clear(self) -> None:
        """The gradients of every member are zero."""
        self.bank.grad_KP.zero_()

    def update(self, step: int) -> Tensor:
        """One step of Adam on every member."""
        return self.optimizer.step()

    def finite_K(self) -> Tensor:
        """By adapter."""
        return torch.isfinite(self.bank.weight_KP).all(dim=1)

    def retire(self, error: Diverged) -> None:
        """The member keeps its rows of every batch, so that the others' numbers are the same to the bit."""
        if error.member in self.retired:
            return
        self.retired.add(error.member)
        self.optimizer.retire(error.member)
        if len(self.retired) == self.bank.members:
            raise error


class ModelLearner:
    """A whole model as a single member: pretraining."""

    def __init__(self, model: PreTrainedModel, update: Callable[[int], Tensor]) -> None:
        self.model, self._update = model, update

    def loss_sums(self, batch: Batch) -> Tensor:
        """Cross-entropy."""
        logits_BTV = self.model(input_ids=batch.ids_BT, use_cache=False).logits
        return token_nats(logits_BTV, batch).sum()[None]

    def clear(self) -> None:
        """No parameter has a gradient."""
        self.model.zero_grad()

    def update(self, step: int) -> Tensor:
        """One step of the optimizers it was given."""
        return self._update(step)

    def finite_K(self) -> Tensor:
        """Of the only member."""
        return torch.stack([torch.isfinite(p).all() for p in self.model.parameters()]).all()[None]

    def retire(self, error: Diverged) -> None:
        """There is no other member."""
        raise error


def train(
    learner: Learner,
    batch_at: Callable[[int], Batch],
    *,
    start: int,
    stop: int,
    accelerator: Accelerator,
    micro_batch: int,
    on_step: Callable[[int, Tensor, Tensor], None],
    on_shrink: Callable[[int, int], None],
) -> None:
    """Train from step `start` to step `stop` (optimizer steps done).

    Args:
        learner: what is trained.
        batch_at: the batch of a step; a function of the step alone, so that a resumed run sees the same documents.
        start: steps already done.
        stop: steps done at the end.
        accelerator: device, precision, backward.
        micro_batch: documents of one member in one forward pass; halved when the memory does not hold them.
        on_step: called after each update with steps done, loss_K (nats a token) and gradient norm_K.
        on_shrink: called with the step that is repeated and its new micro-batch.

    Raises:
        Diverged: a loss, gradient or weight is not finite, and no other member is left.
        EnvironmentFault: a single document does not fit into the memory.
    """
    for step in range(start, stop):
        batch = batch_at(step).to(accelerator.device)
        while (loss_K := _gradients(learner, batch, accelerator, micro_batch)) is None:
            micro_batch = _halved(micro_batch, batch, step)
            on_shrink(step, micro_batch)
        norm_K = learner.update(step)
        for what, finite_K in (("loss", loss_K.isfinite()), ("gradient norm", norm_K.isfinite()), ("a weight", learner.finite_K())):
            for member in (~finite_K).nonzero()[:, 0].tolist():
                learner.retire(Diverged(member, step, what))
        on_step(step + 1, loss_K, norm_K)


def _gradients(learner: Learner, batch: Batch, accelerator: Accelerator, micro_batch: int) -> Tensor | None:
    """Accumulate the gradients of a step; its loss_K, or None, with no gradient left behind, when the memory is full."""
    tokens_K = batch.tokens_K.clamp(min=1)
    loss_K = torch.zeros(batch.members, device=accelerator.device)
    try:
        for part in batch.parts(micro_batch):
            with accelerator.autocast():
                part_K = learner.loss_sums(part) / tokens_K
            accelerator.backward(part_K.sum())
            loss_K += part_K.detach()
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and CPU_FULL not in str(error):
            raise
    else:
        return loss_K
    # Here, because until its except clause ends the error holds on to the activations.
    learner.clear()
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _halved(micro_batch: int, batch: Batch, step: int) -> int:
    documents = min(micro_batch, batch.documents)
    if documents == 1:
        raise EnvironmentFault("PL5201", f"step {step}", f"one document for each of {batch.members} adapters does not fit into the memory. {SMALLER}")
    return documents // 2
