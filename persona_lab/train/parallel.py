"""Data parallelism: the processes of one launch train one stack together, each on its own documents of every step.

    accelerate launch --multi_gpu --num_processes 8 -m persona_lab run CONFIG machine.data_parallel=true

The first process leads. It alone reads and writes the store, steps the optimizer and asks the probes; the others do what
they are told (`train.following`). With every step it hands out the weights of all adapters, so no two processes ever
differ, and the gradients are summed in it. What a process adds is the loss of its documents over the labelled tokens of
the whole step: the sum is the mean over these tokens, whoever had which document.

Orders and flags go through gloo from host to host, tensors through the group that accelerate has formed (NCCL or gloo).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedModel

from persona_lab.errors import EnvironmentFault, LabError
from persona_lab.train.batches import Batch

STEP_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for another one within a step, before it takes it for dead. One that has ended is noticed at once."""
ORDER_TIMEOUT = timedelta(hours=12)
"""How long the others wait for an order: as long as the first one may write documents, pretrain a base, or ask probes."""
LOST = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "broken pipe")
"""What torch's messages hold when another process of the group is gone."""
FORWARD, STEP, END = "forward", "step", "end"


@dataclass(frozen=True)
class Order:
    """What the first process tells the others."""

    what: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Team:
    """The processes of one launch, which are one worker."""

    def __init__(self, index: int, count: int, *, sharded: bool = False, asked: Callable[[], bool] = lambda: False, ask: Callable[[], None] = lambda: None) -> None:
        """To be called by all of them, within a process group.

        Args:
            index: which of them this is; 0 leads.
            count: how many they are.
            sharded: whether each holds a part of the base only, so that each pass of one is a pass of all.
            asked: whether somebody asked this process to stop.
            ask: called in the first process when another one was asked to stop.
        """
        self.index, self.count, self.sharded, self.asked, self.ask = index, count, sharded, asked, ask
        control = dist.new_group(backend="gloo", timeout=ORDER_TIMEOUT)
        assert isinstance(control, dist.ProcessGroup), "this process is in it, as all are"
        self.control = control
        self._together = False

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.index == 0

    # ------------------------------------------------------------------ orders
    def tell(self, what: str, fields: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None) -> None:
        """From the first process to all others."""
        header = json.dumps({"what": what, "fields": dict(fields or {})}).encode()
        body = save({name: tensor.contiguous() for name, tensor in tensors.items()}) if tensors else b""
        dist.broadcast(torch.tensor([len(header), len(body)]), 0, group=self.control)
        dist.broadcast(torch.frombuffer(bytearray(header + body), dtype=torch.uint8), 0, group=self.control)

    def hear(self) -> Order:
        """What the first process tells next; waits for it."""
        sizes = torch.zeros(2, dtype=torch.int64)
        dist.broadcast(sizes, 0, group=self.control)
        header, body = sizes.tolist()
        told = torch.empty(header + body, dtype=torch.uint8)
        dist.broadcast(told, 0, group=self.control)
        said = told.numpy().tobytes()
        return Order(**json.loads(said[:header]), tensors=load(said[header:]) if body else {})

    def hand_out(self, tensor: Tensor) -> None:
        """Give a tensor of the first process to all others, in place."""
        dist.broadcast(tensor, 0)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Around all that the first process does; at its end the others are told to leave, and how this one left.

        Raises:
            EnvironmentFault: another process is gone.
        """
        code = 1
        try:
            yield
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            raise
        except LabError as error:
            code = error.exit_code
            raise
        except RuntimeError as error:
            if (fault := lost(self, error)) is None:
                raise
            raise fault from error
        finally:
            try:
                self.tell(END, {"code": code})
            except RuntimeError as error:
                if not lost(self, error):
                    raise

    # ------------------------------------------------------------------ steps
    def tell_step(self, batch: Batch, micro_batch: int, weight_KP: Tensor) -> None:
        """A step begins: its documents, and the adapters to work with."""
        tensors = {name: value for name in ("ids_BT", "labelled_BT", "key_B", "price_B") if (value := getattr(batch, name)) is not None}
        self.tell(STEP, {"length_B": batch.length_B, "members": batch.members, "paired": batch.paired, "micro_batch": micro_batch}, tensors)
        self.hand_out(weight_KP)

    def any(self, flag: bool) -> bool:
        """Whether the flag is raised in any process; wishes to stop go to the first one on the way."""
        flags = torch.tensor([flag, self.asked()], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        if self.leads and flags[1]:
            self.ask()
        return bool(flags[0])

    def add_up(self, *tensors: Tensor) -> None:
        """Sum tensors over all processes, in the first one's."""
        for tensor in tensors:
            dist.reduce(tensor, 0)

    # ------------------------------------------------------------------ passes of a sharded model
    def announce(self, model: PreTrainedModel) -> None:
        """Let the others lend their parts to each pass of the first process, unless all make that pass anyway."""

        def tell(*_: Any) -> None:
            if not self._together:
                self.tell(FORWARD)

        model.register_forward_pre_hook(tell, prepend=True)  # before the parts are gathered

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, all processes make the same passes."""
        self._together = True
        try:
            yield
        finally:
            self._together = False


def told_batch(order: Order) -> Batch:
    """The batch of a step that was told."""
    named = {name: order.fields[name] for name in ("members", "paired")}
    return Batch(**order.tensors, **named, length_B=tuple(order.fields["length_B"]))


def share_of(batch: Batch, micro_batch: int, team: Team) -> Iterator[tuple[Batch, bool]]:
    """This process's micro-batches of a step, and whether each counts.

    A sharded model needs as many passes of every process, so one with fewer documents repeats some that do not count.
    """
    unit = 2 if batch.paired else 1
    shares = list(batch.parts(unit * -(-batch.documents // (unit * team.count))))
    own = list(shares[team.index].parts(micro_batch)) if team.index < len(shares) else []
    yield from ((part, True) for part in own)
    if team.sharded:
        most = len(list(shares[0].parts(micro_batch)))
        yield from ((next(batch.parts(1)), False) for _ in range(most - len(own)))


def lost(team: Team, error: RuntimeError) -> EnvironmentFault | None:
    """What a failed exchange means; None for an error of another kind."""
    said = str(error)
    if not isinstance(error, dist.DistError) and not any(sign in said.lower() for sign in LOST):
        return None
    where, fix = f"process {team.index} of {team.count}", "The same command goes on from the last checkpoint"
    return EnvironmentFault("PL5204", where, f"another process of this launch is gone, or did not answer: {said.splitlines()[0][:200]}. {fix}.")
