"""What all processes of a team but the first one do: load what it loads, work on their documents of its steps, until it ends.

    follow(team, accelerator, load=lambda told: load_model(told["folder"])[0])
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.train.loop import BankLoss, accumulate
from persona_lab.train.parallel import END, FORWARD, STEP, Order, Team, lost, told_batch
from persona_lab.train.preferences import Preference

BASE, BANK, LEARN = "base", "bank", "learn"


def tell_bank(team: Team, shape: LoraShape) -> None:
    """The first process makes a bank now; the others do the same."""
    team.tell(BANK, asdict(shape))


def tell_loss(team: Team, loss: BankLoss) -> None:
    """The first process trains the members of its bank from here on, by this loss."""
    preference = None if loss.preference is None else asdict(loss.preference)
    team.tell(LEARN, {"shapes": [asdict(shape) for shape in loss.bank.shapes], "kl_to_base": loss.kl_to_base, "preference": preference})
    if loss.reference_KP is not None:
        team.hand_out(loss.reference_KP)


def follow(team: Team, accelerator: Accelerator, load: Callable[[Mapping[str, Any]], PreTrainedModel]) -> int:
    """Do what the first process tells, and return the exit code with which it left.

    Raises:
        EnvironmentFault: the first process is gone, or the memory does not hold a sharded model's step.
    """
    warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")  # as in `finetune`
    follower = _Follower(team, accelerator, load)
    try:
        while (order := team.hear()).what != END:
            follower.obey(order)
    except RuntimeError as error:
        if (fault := lost(team, error)) is None:
            raise
        raise fault from error
    return order.fields["code"]


class _Follower:
    """A base, a bank in it and a loss, as the first process has them."""

    def __init__(self, team: Team, accelerator: Accelerator, load: Callable[[Mapping[str, Any]], PreTrainedModel]) -> None:
        self.team, self.accelerator, self.load = team, accelerator, load
        self.model: PreTrainedModel
        self.bank: AdapterBank | None = None
        self.loss: BankLoss

    def obey(self, order: Order) -> None:
        """One order."""
        {BASE: self._base, BANK: self._bank, LEARN: self._learn, STEP: self._step, FORWARD: self._forward}[order.what](order)

    def _base(self, order: Order) -> None:
        self.bank = None
        self.model = self.load(order.fields)

    def _bank(self, order: Order) -> None:
        if self.bank is not None:
            self.bank.remove()
        self.model.eval()
        self.bank = AdapterBank(self.model, shape_of(order.fields))

    def _learn(self, order: Order) -> None:
        assert self.bank is not None, "a bank is told of before what it learns"
        shapes = [shape_of(fields) for fields in order.fields["shapes"]]
        self.bank.resize(len(shapes), shapes)
        told = order.fields["preference"]
        self.loss = BankLoss(self.bank, kl_to_base=order.fields["kl_to_base"], preference=Preference(**told) if told else None, sharded=self.team.sharded)
        if self.loss.reference_KP is not None:
            self.team.hand_out(self.loss.reference_KP)

    def _step(self, order: Order) -> None:
        self.model.train()
        self.team.hand_out(self.loss.bank.weight_KP)
        accumulate(self.loss, told_batch(order), self.accelerator, order.fields["micro_batch"], self.team)
        self.loss.clear()

    @torch.no_grad()
    def _forward(self, order: Order) -> None:
        """A pass of nothing in particular: the first process needs this one's part of the base."""
        self.model.eval()
        members = 1 if self.bank is None else self.bank.members
        self.model(input_ids=torch.zeros(members, 1, dtype=torch.int64, device=self.accelerator.device), use_cache=False)


def shape_of(fields: Mapping[str, Any]) -> LoraShape:
    """An adapter's shape as it was told: JSON has no tuples."""
    shape = LoraShape(**fields)
    return replace(shape, targets=tuple(shape.targets), layers=tuple(shape.layers))
