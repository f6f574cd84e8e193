"""Fine-tuning of one stage for the K members of a stack: where it starts, what it sees, what is kept of it.

A member's progress is its adapter row, the two moments of Adam and the number of steps done. Its data cursor is the
step itself, because the batch of a step is a function of the step alone.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from persona_lab.models.bank import AdapterBank
from persona_lab.train.batches import Row, collate
from persona_lab.train.loop import BankLearner, train
from persona_lab.train.optimizers import BankAdam


@dataclass(frozen=True)
class Progress:
    """A member between two steps: enough to go on as if nothing had happened."""

    adapter: Mapping[str, Tensor]
    """Tensors under peft's names."""
    mean_P: Tensor
    square_P: Tensor
    step: int


@dataclass(frozen=True)
class Member:
    """One adapter's share of a stack."""

    rows_at: Callable[[int], Sequence[Row]]
    """The documents of a step."""
    rate: float
    clip: float
    adapter: Mapping[str, Tensor] | None
    """The adapter of the stage before; None: a fresh one."""
    init_seed: int
    resumed: Progress | None = None
    """This stage's own progress, where it was begun before."""


def finetune(
    bank: AdapterBank,
    members: Sequence[Member],
    *,
    pad: int,
    stops: Sequence[int],
    kl_to_base: float,
    micro_batch: int,
    accelerator: Accelerator,
    on_step: Callable[[int, Tensor, Tensor], None],
    on_stop: Callable[[int, int, Progress], None],
) -> None:
    """Train all members, from the step they share to the last stop; `on_stop(member, step, progress)` at each stop.

    Raises:
        Diverged: a member's loss or gradient is not finite.
    """
    bank.resize(len(members))
    rate_K, clip_K = (torch.tensor(figures, dtype=torch.float64) for figures in ([m.rate for m in members], [m.clip for m in members]))
    optimizer = BankAdam(bank.weight_KP, bank.grad_KP, rate_K=rate_K, clip_K=clip_K)
    start = {m.resumed.step if m.resumed else 0 for m in members}
    assert len(start) == 1, f"members of a stack start together, got steps {sorted(start)}"
    for k, member in enumerate(members):
        place(bank, optimizer, k, member)
    first, last = start.pop(), max(stops)

    def after(step: int, loss_K: Tensor, norm_K: Tensor) -> None:
        on_step(step, loss_K, norm_K)
        if step in stops:
            for k in range(len(members)):
                on_stop(k, step, progress_of(bank, optimizer, k, step))

    # Members' gradients are windows on one buffer, a row a member: strided on purpose.
    warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
    bank.model.train()
    train(
        BankLearner(bank, optimizer, kl_to_base=kl_to_base),
        lambda step: collate([m.rows_at(step) for m in members], pad),
        start=first,
        stop=last,
        accelerator=accelerator,
        micro_batch=micro_batch,
        on_step=after,
    )
    bank.model.eval()


def place(bank: AdapterBank, optimizer: BankAdam, row: int, member: Member) -> None:
    """Put a member into its row: fresh, after another stage, or where it was interrupted."""
    if member.resumed is not None:
        bank.load_row(row, member.resumed.adapter, "a checkpoint of this stage")
        optimizer.mean_KP[row].copy_(member.resumed.mean_P)
        optimizer.square_KP[row].copy_(member.resumed.square_P)
        optimizer.steps_K[row] = member.resumed.step
    elif member.adapter is not None:
        bank.load_row(row, member.adapter, "the adapter of the stage before")
    else:
        bank.init_row(row, member.init_seed)


def progress_of(bank: AdapterBank, optimizer: BankAdam, row: int, step: int) -> Progress:
    """A copy of one member's state."""
    return Progress(bank.row_tensors(row), optimizer.mean_KP[row].cpu().clone(), optimizer.square_KP[row].cpu().clone(), step)


def write_moments(file: Path, progress: Progress) -> None:
    """`state.safetensors`: Adam's moments, (P,) each."""
    save_file({"mean": progress.mean_P.contiguous(), "square": progress.square_P.contiguous()}, file)


def read_progress(file: Path, adapter: Mapping[str, Tensor], step: int) -> Progress:
    """What `write_moments` wrote, with the adapter beside it."""
    moments = load_file(file)
    return Progress(adapter, moments["mean"], moments["square"], step)
