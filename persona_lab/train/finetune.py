"""Fine-tuning of one stage for the K members of a stack: where it starts, what it sees, what is kept of it.

A member's progress is its adapter row, the two moments of Adam and the number of steps done. The step is its data
cursor and the state of its random numbers too: the batch of a step and its dropout are functions of the step alone.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_gen.streams import stream_seed
from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.train.batches import Batch, Row, collate
from persona_lab.train.following import tell_loss
from persona_lab.train.loop import BankLearner, Diverged, train
from persona_lab.train.optimizers import BankAdam
from persona_lab.train.parallel import Team
from persona_lab.train.preferences import Preference

LOOK_EVERY = 10
"""Steps after which the host looks for members that have diverged, where looking means waiting for a GPU."""


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
    """Of a fresh adapter, and of dropout."""
    last: int | None = None
    """The step after which it is done, and leaves the stack; None: the last stop of all."""
    shape: LoraShape | None = None
    """None: the bank's own."""
    weight_decay: float = 0.0
    schedule: Callable[[int], float] | None = None
    """Share of the rate after so many steps; None: always all of it."""
    resumed: Progress | None = None
    """This stage's own progress, where it was begun before."""
    retired: bool = False
    """Diverged before: it keeps its place, so that the others' numbers stay the same, and is not trained."""


class Watcher:
    """What happens while a stack is trained; nothing comes of it unless a method is overridden."""

    def on_step(self, step: int, members: Sequence[int], loss_K: Tensor, norm_K: Tensor) -> None:
        """So many steps are done by these members; nats a token, and gradient norms before clipping, on the device."""

    def on_stop(self, member: int, step: int, progress: Progress) -> None:
        """A member that has not diverged reached a stop."""

    def on_pause(self, step: int, snapshot: Callable[[], dict[int, Progress]]) -> None:
        """A step and its stops are behind: what `snapshot` gives of the members that go on may be kept, and training left here."""

    def on_diverged(self, error: Diverged) -> None:
        """A member is given up; the others go on."""

    def on_shrink(self, step: int, micro_batch: int) -> None:
        """The memory was full: the step is repeated in smaller micro-batches."""


def finetune(
    bank: AdapterBank,
    members: Sequence[Member],
    watcher: Watcher,
    *,
    pad: int,
    stops: Sequence[int],
    kl_to_base: float,
    micro_batch: int,
    accelerator: Accelerator,
    preference: Preference | None = None,
    team: Team | None = None,
) -> None:
    """Train all members from the step they share, each to its own last stop; with the other processes of the team that this one leads, if there is one.

    Raises:
        Diverged: no member is left.
        EnvironmentFault: a single document does not fit into the memory.
    """
    stack = _Stack(bank, members, watcher, kl_to_base=kl_to_base, stops=stops, preference=preference, sharded=team is not None and team.sharded)
    start = {m.resumed.step if m.resumed else 0 for m in members if not m.retired}
    assert len(start) == 1, f"members of a stack start together, got steps {sorted(start)}"
    at = start.pop()
    # Members' gradients are windows on one buffer, a row a member: strided on purpose.
    warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
    bank.model.train()
    stack.reach(at)
    while stack.left(at):
        end = min(stack.lasts[k] for k in stack.rows)
        if team is not None:
            tell_loss(team, stack)
        train(
            stack,
            lambda step: _batch([members[k] for k in stack.rows], step, pad, keyed=bank.shape.dropout > 0),
            start=at,
            stop=end,
            accelerator=accelerator,
            micro_batch=stack.micro_batch or micro_batch,
            on_step=stack.after,
            on_shrink=stack.shrink,
            looks=stack.looks,
            team=team,
        )
        at = end
    bank.model.eval()


class _Stack(BankLearner):
    """The members in their rows of the bank, of which those that are done leave."""

    def __init__(
        self,
        bank: AdapterBank,
        members: Sequence[Member],
        watcher: Watcher,
        *,
        kl_to_base: float,
        stops: Sequence[int],
        preference: Preference | None,
        sharded: bool,
    ) -> None:
        bank.resize(len(members), [m.shape or bank.shape for m in members])
        rate_K, clip_K, decay_K = (torch.tensor(figures, dtype=torch.float64) for figures in zip(*((m.rate, m.clip, m.weight_decay) for m in members), strict=True))
        adam = BankAdam(bank.weight_KP, bank.grad_KP, rate_K=rate_K, clip_K=clip_K, decay_K=decay_K)
        super().__init__(bank, adam, kl_to_base=kl_to_base, preference=preference, sharded=sharded)
        self.watcher, self.stops = watcher, stops
        self.rows = list(range(len(members)))
        """Which member is in each row."""
        self.lasts = [max(stops) if m.last is None else m.last for m in members]
        self.members = members
        self.micro_batch: int | None = None
        if preference:
            for row, member in enumerate(members):
                self._start(row, member)
            self.reference_KP = bank.weight_KP.clone()
            bank.weight_KP.zero_()
        for row, member in enumerate(members):
            self._place(row, member)

    def _place(self, row: int, member: Member) -> None:
        """Put a member into its row: fresh, after another stage, or where it was interrupted."""
        if member.retired:
            self.retired.add(row)
        elif member.resumed is not None:
            self.bank.load_row(row, member.resumed.adapter, "a checkpoint of this stage")
            self.bank.put(row, self.optimizer.mean_KP, member.resumed.mean_P)
            self.bank.put(row, self.optimizer.square_KP, member.resumed.square_P)
        else:
            self._start(row, member)
        self.optimizer.steps_K[row] = member.resumed.step if member.resumed else 0

    def _start(self, row: int, member: Member) -> None:
        """Put a member to where the stage begins."""
        if member.adapter is not None:
            self.bank.load_row(row, member.adapter, "the adapter of the stage before")
        else:
            self.bank.init_row(row, member.init_seed)

    def left(self, step: int) -> bool:
        """Whether anybody has steps left to train; those who have none, leave."""
        going = [row for row, k in enumerate(self.rows) if self.lasts[k] > step]
        if self.retired.issuperset(going):
            return False
        if len(going) < len(self.rows):
            self.rows = [self.rows[row] for row in going]
            self.keep(going)
        return True

    def update(self, step: int) -> Tensor:
        """One step of Adam on every member, at its own rate of that step."""
        for row, k in enumerate(self.rows):
            if (schedule := self.members[k].schedule) is not None:
                self.optimizer.rate_K[row] = self.members[k].rate * schedule(step)
        return super().update(step)

    def looks(self, step: int) -> bool:
        """On a GPU looking means waiting, and nothing comes of a diverged member until somebody wants to keep it."""
        return self.bank.model.device.type == "cpu" or step % LOOK_EVERY == 0 or step in self.stops

    def after(self, step: int, loss_K: Tensor, norm_K: Tensor) -> None:
        """A step is done."""
        self.watcher.on_step(step, self.rows, loss_K, norm_K)
        self.reach(step)

    def reach(self, step: int) -> None:
        """Tell of the stops at this step, then offer a pause."""
        if step in self.stops:
            for row, k in enumerate(self.rows):
                if row not in self.retired and step <= self.lasts[k]:
                    self.watcher.on_stop(k, step, self._progress(row, step))
        if self.looks(step):  # so that nothing is kept of a member that has diverged
            self.watcher.on_pause(step, lambda: {k: self._progress(row, step) for row, k in enumerate(self.rows) if self.lasts[k] > step})

    def shrink(self, step: int, micro_batch: int) -> None:
        """Stay with the smaller micro-batch."""
        self.micro_batch = micro_batch
        self.watcher.on_shrink(step, micro_batch)

    def _progress(self, row: int, step: int) -> Progress:
        """A copy of one member's state."""
        mean_P, square_P = (self.bank.own(row, of_KP) for of_KP in (self.optimizer.mean_KP, self.optimizer.square_KP))
        return Progress(self.bank.row_tensors(row), mean_P, square_P, step)

    def retire(self, error: Diverged) -> None:
        """Tell of it first: the last one ends the training."""
        if error.member not in self.retired:
            self.watcher.on_diverged(Diverged(self.rows[error.member], error.step, error.what))
        super().retire(error)


def _batch(members: Sequence[Member], step: int, pad: int, *, keyed: bool) -> Batch:
    """The batch of a step."""
    rows = [member.rows_at(step) for member in members]
    keys = [stream_seed(m.init_seed, "dropout", step, i) for m, own in zip(members, rows, strict=True) for i in range(len(own))]
    return collate(rows, pad, keys if keyed else ())


def write_moments(file: Path, progress: Progress) -> None:
    """`state.safetensors`: Adam's moments, (P,) each."""
    save_file({"mean": progress.mean_P.contiguous(), "square": progress.square_P.contiguous()}, file)


def read_progress(file: Path, adapter: Mapping[str, Tensor], step: int) -> Progress:
    """What `write_moments` wrote, with the adapter beside it."""
    moments = load_file(file)
    return Progress(adapter, moments["mean"], moments["square"], step)
