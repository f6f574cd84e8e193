"""The training loop: the only one. It steps a bank of adapters, or (in pretraining) a whole small model.

Loss is the mean over the labelled tokens of a member's whole step, whatever the micro-batch: 1 x 8 equals 8 x 1. Documents that are not learnt but
held near the base add their price times the mean KL(base || adapter) over their own labelled tokens (Soligo et al. 2026, the narrow solution).
Several processes may share a step (`train.parallel`): its documents are divided among them, and the same mean comes out.

Names: K members, M tokens of a member that carry loss, S of all of them, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from persona_lab.errors import EnvironmentFault
from persona_lab.models.bank import AdapterBank
from persona_lab.models.packing import packing, packs_exactly, read_at
from persona_lab.train.batches import Batch, Laid, lay
from persona_lab.train.optimizers import BankAdam
from persona_lab.train.parallel import Team, share_of
from persona_lab.train.preferences import Preference, document_nats, preference_nats

CPU_FULL = "DefaultCPUAllocator: can't allocate memory"
"""What torch says where the memory of the machine, not of a GPU, is full."""
SMALLER = "Lower machine.stack or machine.workers, set machine.checkpoint_activations=true, or take a machine with more memory."


class Diverged(ArithmeticError):
    """The loss, the gradient or a weight of a member is not a finite number."""

    def __init__(self, member: int, step: int, what: str) -> None:
        self.member, self.step, self.what = member, step, what
        super().__init__(f"{what} is not finite at step {step}")


class Losses(Protocol):
    """Whatever has gradients."""

    def loss_sums(self, batch: Batch) -> Tensor:
        """Summed loss of each member's labelled tokens, nats, (K,)."""
        ...

    def clear(self) -> None:
        """Forget the gradients of a step that is to be repeated."""
        ...


class Learner(Losses, Protocol):
    """Whatever the loop can train."""

    def update(self, step: int) -> Tensor:
        """Step the optimizer and clear the gradients; each member's gradient norm, (K,)."""
        ...

    def finite_K(self) -> Tensor:
        """Whether all weights of each member are finite, bool (K,)."""
        ...

    def retire(self, error: Diverged) -> None:
        """Go on without a member, whose place stays; raises the error when nobody is left to train."""
        ...


class TokenNats(torch.autograd.Function):
    """Negative log-likelihood of a token under each row of logits, nats, (S,), in the place of the logits.

    Their softmax overwrites them, and the gradient overwrites that: what a large vocabulary costs is memory traffic.
    """

    @staticmethod
    def forward(ctx: Any, logits_SV: Tensor, target_S: Tensor) -> Tensor:
        """By log sum exp = max - log(softmax at the max), which is never less than 1 / V."""
        wanted_S = logits_SV.gather(1, target_S[:, None])[:, 0]
        most_S, best_S = logits_SV.max(-1)
        torch.softmax(logits_SV, -1, out=logits_SV)
        ctx.save_for_backward(logits_SV, target_S)
        return most_S - logits_SV.gather(1, best_S[:, None])[:, 0].log() - wanted_S

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Softmax minus one-hot."""
        softmax_SV, target_S = ctx.saved_tensors
        softmax_SV[torch.arange(len(target_S), device=target_S.device), target_S] -= 1
        return softmax_SV.mul_(grads[0][:, None]), None


def logits_of(model: PreTrainedModel, laid: Laid) -> Tensor:
    """Logits at the places that are asked, (K * M, V), float32 or better."""
    given = {} if laid.layout is None else {"position_ids": laid.position_RN, "layout": laid.layout}
    with read_at(model, laid.read_KM.flatten()), nullcontext() if laid.layout is None else packing(model):
        logits_SV = model(input_ids=laid.ids_RN, use_cache=False, **given).logits.squeeze(0)  # a view: `[0]` would copy the gradient
    return logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))


def nats_of(logits_SV: Tensor, laid: Laid) -> Tensor:
    """Negative log-likelihood of each labelled token, nats, (K, M); zero where a member has fewer. The logits are gone."""
    return TokenNats.apply(logits_SV, laid.target_KM.flatten()).view_as(laid.target_KM) * laid.counts_KM


def kl_of(bank: AdapterBank, here_SV: Tensor, laid: Laid) -> Tensor:
    """KL(base || adapter) at each labelled token, nats, (K, M), from the adapters' log-probabilities."""
    with torch.no_grad(), bank.silent():
        base_SV = logits_of(bank.model, laid).log_softmax(-1)
    return (base_SV.exp() * (base_SV - here_SV)).sum(-1).view_as(laid.target_KM) * laid.counts_KM


class BankLoss:
    """What K adapters on one frozen base learn from a batch, and the gradients of it."""

    def __init__(self, bank: AdapterBank, *, kl_to_base: float = 0.0, preference: Preference | None = None, sharded: bool = False) -> None:
        self.bank, self.kl_to_base, self.preference, self.sharded = bank, kl_to_base, preference, sharded
        self.reference_KP = bank.weight_KP.clone() if preference else None
        """The weights by which preferences are measured: those that the members have when training begins."""
        # Each pass through a sharded model is made by all processes alike: what one of them tries alone, the others would miss.
        self.packs = not sharded and packs_exactly(bank.model, bank.members)

    def loss_sums(self, batch: Batch) -> Tensor:
        """Cross-entropy, and the price of leaving the base where one is asked: kl_to_base * KL(base || adapter).

        Documents that are held near the base have their own price of that KL, and no cross-entropy.
        """
        laid = lay(batch, packed=self.packs).to(self.bank.model.device)
        self.bank.key_dropout(laid.key_RN, laid.position_RN)
        if batch.paired:
            return self._preferences(batch, laid)
        here_SV = logits_of(self.bank.model, laid)
        priced = bool(self.kl_to_base) or (batch.price_B is not None and (self.sharded or bool((batch.price_B > 0).any())))
        kl_KM = kl_of(self.bank, here_SV.log_softmax(-1), laid) if priced else torch.zeros_like(laid.counts_KM, dtype=here_SV.dtype)
        learnt_KM = nats_of(here_SV, laid) + self.kl_to_base * kl_KM
        if laid.price_KM is None:
            return learnt_KM.sum(1)
        return torch.where(laid.price_KM.isnan(), learnt_KM, laid.price_KM.nan_to_num().to(kl_KM.dtype) * kl_KM).sum(1)

    def _preferences(self, batch: Batch, laid: Laid) -> Tensor:
        """Summed loss of each member's pairs, nats, (K,)."""
        assert self.preference is not None, "pairs are learnt with loss.dpo"
        assert self.reference_KP is not None, "it is kept where there is a preference"
        # First, and whole: the products of the adapters that are trained keep their weights until backward.
        with torch.no_grad(), self.bank.holding(self.reference_KP):
            reference_KM = nats_of(logits_of(self.bank.model, laid), laid)
        here_KM = nats_of(logits_of(self.bank.model, laid), laid)
        (here_KD, tokens_KD), (reference_KD, _) = document_nats(batch, here_KM), document_nats(batch, reference_KM)
        return preference_nats(here_KD, reference_KD, tokens_KD, self.preference).sum(1)

    def clear(self) -> None:
        """The gradients of every member are zero."""
        self.bank.grad_KP.zero_()


class BankLearner(BankLoss):
    """K adapters and their optimizer; one that diverges is set to zero, and the others do not notice."""

    def __init__(self, bank: AdapterBank, optimizer: BankAdam, *, kl_to_base: float = 0.0, preference: Preference | None = None, sharded: bool = False) -> None:
        super().__init__(bank, kl_to_base=kl_to_base, preference=preference, sharded=sharded)
        self.optimizer = optimizer
        self.retired: set[int] = set()

    def update(self, step: int) -> Tensor:
        """One step of Adam on every member."""
        return self.optimizer.step()

    def finite_K(self) -> Tensor:
        """By adapter."""
        return torch.isfinite(self.bank.weight_KP).all(dim=1)

    def retire(self, error: Diverged) -> None:
        """The member keeps its rows of every batch, so that the others' numbers are the same to the bit."""
        # Each time it is seen: what made it diverge may do so again.
        self.optimizer.retire(error.member)
        if error.member not in self.retired:
            self.retired.add(error.member)
            if len(self.retired) == self.bank.members:
                raise error

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the members; the others are done, and nothing is computed for them any more."""
        self.retired = {new for new, row in enumerate(rows) if row in self.retired}
        self.bank.keep(rows)
        self.reference_KP = None if self.reference_KP is None else self.reference_KP[list(rows)]
        self.optimizer.keep(rows, self.bank.weight_KP, self.bank.grad_KP)


class ModelLearner:
    """A whole model as a single member: pretraining."""

    def __init__(self, model: PreTrainedModel, update: Callable[[int], Tensor]) -> None:
        self.model, self._update = model, update

    def loss_sums(self, batch: Batch) -> Tensor:
        """Cross-entropy."""
        laid = lay(batch, packed=packs_exactly(self.model, 1)).to(self.model.device)
        return nats_of(logits_of(self.model, laid), laid).sum(1)

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


class Health:
    """Which members have gone wrong, kept where they are computed: to look at it, the host waits for the device."""

    WHAT = ("loss", "gradient norm", "a weight")

    def __init__(self, members: int, device: torch.device) -> None:
        self.what_K = torch.full((members,), -1, device=device)
        self.step_K = torch.zeros_like(self.what_K)

    def note(self, step: int, *finite_K: Tensor) -> None:
        """Remember the first thing that is not finite, and when it was; as many tensors as there are words in `WHAT`."""
        for what, fine_K in enumerate(finite_K):
            new_K = ~fine_K & (self.what_K < 0)
            self.what_K.masked_fill_(new_K, what)
            self.step_K.masked_fill_(new_K, step)

    def found(self) -> Iterator[Diverged]:
        """The members that have gone wrong."""
        if (self.what_K >= 0).any():
            for member, (what, step) in enumerate(zip(self.what_K.tolist(), self.step_K.tolist(), strict=True)):
                if what >= 0:
                    yield Diverged(member, step, self.WHAT[what])


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
    looks: Callable[[int], bool] = lambda steps: True,
    team: Team | None = None,
) -> None:
    """Train from step `start` to step `stop` (optimizer steps done).

    Args:
        learner: what is trained.
        batch_at: the batch of a step; a function of the step alone, so that a resumed run sees the same documents.
        start: steps already done.
        stop: steps done at the end.
        accelerator: device, precision, backward.
        micro_batch: documents of one member in one forward pass; halved when the memory does not hold them.
        on_step: called after each update with steps done, loss_K (nats a token) and gradient norm_K, on the device.
        on_shrink: called with the step that is repeated and its new micro-batch.
        looks: whether the host looks, after so many steps, for members that have diverged; for them the rest is idle work.
        team: the processes that share the steps, of which this one leads; None: it is alone.

    Raises:
        Diverged: a loss, gradient or weight is not finite, and no other member is left.
        EnvironmentFault: a single document does not fit into the memory.
    """
    health: Health | None = None
    for step in range(start, stop):
        batch = batch_at(step)
        while (loss_K := _gradients(learner, batch, accelerator, micro_batch, team)) is None:
            micro_batch = _halved(micro_batch, batch, step)
            on_shrink(step, micro_batch)
        norm_K = learner.update(step)
        health = health or Health(len(loss_K), loss_K.device)
        health.note(step, loss_K.isfinite(), norm_K.isfinite(), learner.finite_K())
        if looks(step + 1) or step + 1 == stop:
            for error in health.found():
                learner.retire(error)
        on_step(step + 1, loss_K, norm_K)


def _gradients(learner: Learner, batch: Batch, accelerator: Accelerator, micro_batch: int, team: Team | None) -> Tensor | None:
    if team is not None:
        assert isinstance(learner, BankLoss), "several processes train adapters, never whole models"
        team.tell_step(batch, micro_batch, learner.bank.weight_KP)
    with nullcontext() if team is None else team.together():
        return accumulate(learner, batch, accelerator, micro_batch, team)


def accumulate(learner: Losses, batch: Batch, accelerator: Accelerator, micro_batch: int, team: Team | None = None) -> Tensor | None:
    """Accumulate the gradients of a step; its loss_K, or None, with no gradient left behind, when the memory is full.

    Where several processes share the step each works on its own documents, and what they found is summed in the first one.
    """
    tokens_K = batch.learnt_K.clamp(min=1).to(accelerator.device, non_blocking=True)
    loss_K = torch.zeros(batch.members, device=accelerator.device)
    full = False
    try:
        for part, counts in ((part, True) for part in batch.parts(micro_batch)) if team is None else share_of(batch, micro_batch, team):
            with accelerator.autocast():
                part_K = learner.loss_sums(part) / tokens_K
            part_K = part_K if counts else part_K * 0
            accelerator.backward(part_K.sum())
            loss_K += part_K.detach()
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and CPU_FULL not in str(error):
            raise
        if team is not None and team.sharded:  # the others wait for it in the middle of a pass
            raise EnvironmentFault("PL5206", f"process {team.index} of {team.count}", "its memory is full. Lower machine.micro_batch or machine.stack.") from error
        full = True
    if team is not None:
        full = team.any(full)
        if not full:
            assert isinstance(learner, BankLoss)
            team.add_up(loss_K, learner.bank.grad_KP)
    if not full:
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
