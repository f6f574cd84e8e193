"""Stacks: trajectories that are trained together in one bank, because a small model alone leaves a device idle.

A stack is whatever ready members one worker got leases for; it is never a node. Members that train the same way (one
base, batch, loss and start) fit into one stack, whatever their documents, ranks, rates, seeds and lengths. They commit
one by one, and who is done leaves.

A stack that was left before its end has a checkpoint, and goes on with the same members in the same order: the bits of
a product depend on its shape. So members that were committed by others meanwhile, and those that diverged, keep their
places until they are done.
"""

import logging
import time
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from persona_lab.experiment.making.checkpoints import Checkpoint, Journal, read_checkpoint, write_checkpoint
from persona_lab.experiment.making.members import base_name, features, labelled_tokens, lora_shape, member_of, widest
from persona_lab.experiment.planning.frontier import Line, filling, frontier, stack_size
from persona_lab.models.folders import write_adapter
from persona_lab.store.checkpoints import Checkpoints, Stalled, stacks_under_way
from persona_lab.store.files import read_jsonl, write_json, write_jsonl
from persona_lab.store.lease import Lease
from persona_lab.store.nodes import Store
from persona_lab.tracking import Tracker
from persona_lab.train.finetune import Member, Progress, Watcher, finetune, write_moments
from persona_lab.train.loop import Diverged
from persona_lab.train.preferences import Preference

if TYPE_CHECKING:
    from persona_lab.experiment.making.workshop import Workshop

READ_EVERY = 10
"""Steps after which the losses are fetched from a GPU."""
TRACK_EVERY = 10
"""Steps of which a tracker is told; `log.jsonl` has them all."""

log = logging.getLogger(__name__)


def train_next(shop: "Workshop", wanted: Sequence[Any], workers: int, doomed: Container[str]) -> dict[str, str] | None:
    """Train one stack of what the wanted scores need: one that was left, or else a new one.

    Returns trajectories to why they failed, mostly none; None when everything that is ready is leased by others.
    """
    ready = {line.trajectory.id: line for line in frontier(shop.store, shop.stages_of, wanted) if line.trajectory.id not in doomed}
    for under_way in stacks_under_way(shop.store.root / "attempts"):
        mine = [line for member in under_way.members if (line := ready.get(member))]
        if mine:
            failed = _resume(shop, under_way, mine)
            if failed is not None:
                return failed
            # Taken apart, its members would not come out the same to the bit: its worker, or the lease of a dead one, is waited for.
            for line in mine:
                del ready[line.trajectory.id]
    # Longest first, so that no worker is left alone with a long one at the end.
    return _begin(shop, sorted(ready.values(), key=lambda line: -line.documents), workers)


def _begin(shop: "Workshop", ready: Sequence[Line], workers: int) -> dict[str, str] | None:
    """Train the first of the ready trajectories that are free; None when there is none, or when it is too early to tell."""
    with ExitStack() as held:
        lines: list[Line] = []
        leases: list[Lease] = []
        missed: list[Line] = []
        size = 1
        for line in ready:
            same = [other for other in ready if other.key == (lines or [line])[0].key]
            if line not in same:
                continue
            if len(lines) >= size:
                break
            lease = shop.lease_line(line)
            if lease is not None:
                size = size if lines else _size(shop, line, len(same), workers)
                lines.append(line)
                leases.append(held.enter_context(lease))
            elif not lines:
                missed.append(line)
        if not lines:
            return None
        # Leases are taken in order, and a stack with all of its leases is under way and no longer ready. So whoever holds an earlier one is
        # taking them just now, or was killed at it: then they come free together, and the stack is the one that it would have been.
        if len(lines) < size and any(line.key == lines[0].key for line in missed):
            return None
        return _train(shop, lines, leases, None)


def _size(shop: "Workshop", line: Line, ready: int, workers: int) -> int:
    """How many members a stack gets that begins with this one."""
    most = filling(features(shop, line.stage), shop.accelerator.device.type)
    return stack_size(shop.machine, min(most, shop.bounds.get(line.stage.id, most)), ready, workers)


def _resume(shop: "Workshop", under_way: Checkpoints, mine: Sequence[Line]) -> dict[str, str] | None:
    """Go on with a stack that was left; None while one of its members is leased."""
    with ExitStack() as held:
        leases: list[Lease] = []
        for line in mine:
            lease = shop.lease_line(line)
            if lease is None:
                return None
            leases.append(held.enter_context(lease))
        folder = under_way.newest()
        saved = read_checkpoint(folder) if folder else None
        if saved is None:
            lines = [line for line in mine if line.key == mine[0].key]
        elif any(step > saved.step for line in mine for step in line.missing):
            by_id = {line.trajectory.id: line for line in mine}
            lines = [line for member in saved.progress if (line := by_id.get(member) or shop.finished_line(member))]
        else:
            lines = []
        if not lines or (saved is None and [line.trajectory.id for line in lines] != list(under_way.members)):
            under_way.remove()
        return _train(shop, lines, leases, saved) if lines else {}


def _train(shop: "Workshop", lines: Sequence[Line], leases: Sequence[Lease], saved: Checkpoint | None) -> dict[str, str]:
    shop.begin_clock()
    try:
        return train_stack(shop, lines, leases, saved)
    except Stalled as error:
        return {line.trajectory.id: error.problems[0].message for line in lines if line.missing}


def train_stack(shop: "Workshop", lines: Sequence[Line], leases: Sequence[Lease], saved: Checkpoint | None = None) -> dict[str, str]:
    """Train the members together and commit each of their missing stages when it is reached.

    Returns the trajectories that diverged, with the reason; what these committed before stays.

    Raises:
        Stalled: too many attempts have gone on from here already.
        EnvironmentFault: one document of each member does not fit into the memory.
        Interrupted: a signal came; what was reached is in a checkpoint.
    """
    recipe, base = lines[0].stage.fields["recipe"], lines[0].stage.inputs["base"]
    bank = shop.bank(base, widest([lora_shape(line.stage.fields["recipe"]["lora"]) for line in lines]))
    _, tokenizer = shop.base(base)
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int), "load_model gives every tokenizer one"
    start = saved.step if saved else lines[0].start
    stops = sorted({step for line in lines for step in line.missing if step > start or step == 0})
    lasts = {line.trajectory.id: max(line.last, saved.journal.lasts[line.trajectory.id] if saved else 0) for line in lines}
    members = [member_of(shop, line, lasts[line.trajectory.id], saved) for line in lines]
    with ExitStack() as open_trackers:
        trackers = [open_trackers.enter_context(shop.track(line.stage, "train", recipe)) for line in lines]
        training = _Training(shop, lines, members, trackers, leases, saved, start, stops, lasts)
        training.checkpoints.begin(start, shop.machine.attempts)
        try:
            finetune(
                bank,
                members,
                training,
                pad=pad,
                stops=stops,
                kl_to_base=recipe["loss"]["kl_to_base"],
                preference=Preference(beta, recipe["loss"].get("nll", 0.0)) if (beta := recipe["loss"].get("dpo")) else None,
                micro_batch=training.journal.micro_batch,
                accelerator=shop.accelerator,
                team=shop.team,
            )
        except Diverged:
            log.debug("no member of the stack is left; each was told of when it diverged")
    training.checkpoints.remove()
    return training.journal.diverged


class _Training(Watcher):
    """What a worker does while its stack is trained: heartbeats, logs, commits, checkpoints, and leaving when asked."""

    def __init__(
        self,
        shop: "Workshop",
        lines: Sequence[Line],
        members: Sequence[Member],
        trackers: Sequence[Tracker],
        leases: Sequence[Lease],
        saved: Checkpoint | None,
        start: int,
        stops: Sequence[int],
        lasts: dict[str, int],
    ) -> None:
        self.shop, self.lines, self.members, self.trackers, self.saved, self.start, self.stops = shop, lines, members, trackers, saved, start, stops
        self.ids = [line.trajectory.id for line in lines]
        self.recipe, self.base = lines[0].stage.fields["recipe"], lines[0].stage.inputs["base"]
        self.beat = shop.heartbeat(leases)
        self.checkpoints = Checkpoints(shop.store.root / "attempts", self.ids)
        self.unread: list[tuple[int, Sequence[int], Tensor, Tensor]] = []
        """Steps whose losses are still on the device: to read them is to wait for it."""
        self.kept_at = time.monotonic()
        if saved is None:
            micro_batch = self.recipe["batch"] if shop.machine.micro_batch == "auto" else shop.machine.micro_batch
            self.journal = Journal(micro_batch, start, lasts, {line.trajectory.id: _log_so_far(shop.store, line) for line in lines})
        else:
            self.journal = saved.journal
            self.journal.lasts |= lasts
            self.journal.went_on.append({"step": start, "threads": torch.get_num_threads(), "device": str(shop.accelerator.device), "torch": str(torch.__version__)})

    def on_step(self, step: int, members: Sequence[int], loss_K: Tensor, norm_K: Tensor) -> None:
        """Log every step; on a GPU the host reads them now and then."""
        self.beat()
        self.unread.append((step, tuple(members), loss_K, norm_K))
        if loss_K.device.type == "cpu" or step % READ_EVERY == 0 or step in self.stops:
            self._read()
            self.shop.tell(f"training {len(self.lines)} adapters", step, self.stops[-1])

    def _read(self) -> None:
        """Write down the losses of the steps that are behind."""
        for step, members, loss_K, norm_K in self.unread:
            for k, loss, norm in zip(members, loss_K.tolist(), norm_K.tolist(), strict=True):
                if self.ids[k] not in self.journal.diverged:
                    self.journal.logs[self.ids[k]].append({"step": step, "loss": loss, "norm": norm})
                    if step % TRACK_EVERY == 0 or step == 1:
                        self.trackers[k].log({"train/step": step, "train/loss": loss})
        self.unread.clear()

    def on_stop(self, member: int, step: int, progress: Progress) -> None:
        """Commit a stage that is missing."""
        line, trajectory = self.lines[member], self.ids[member]
        if step not in line.missing:
            return
        model, _ = self.shop.base(self.base)
        tokens = labelled_tokens(self.members[member], step)
        rows = [{**row, "tokens": count} for row, count in zip(self.journal.logs[trajectory], tokens, strict=True)]
        with self.shop.store.attempt(line.missing[step]) as attempt:
            trained = step - max((s for s in (self.start, *self.stops) if s < step), default=0)
            attempt.note(documents=trained * self.recipe["batch"], began=self.journal.began, stack=[other.at(self.journal.lasts[other.trajectory.id]).id for other in self.lines])
            attempt.note(out_of_memory=self.journal.out_of_memory, went_on=self.journal.went_on)
            shape = lora_shape(line.stage.fields["recipe"]["lora"])
            write_adapter(attempt.folder / "adapter", progress.adapter, model=model, shape=shape, base_id=base_name(self.base.id))
            write_moments(attempt.folder / "state.safetensors", progress)
            write_json(attempt.folder / "state.json", {"step": step, "cursor": step, "tokens": sum(tokens), "trajectory": trajectory})
            write_jsonl(attempt.folder / "log.jsonl", rows)
            self.shop.committed(line.missing[step], attempt, share=len(self.lines))
        self.checkpoints.moved()

    def on_pause(self, step: int, snapshot: Callable[[], dict[int, Progress]]) -> None:
        """Keep a checkpoint when it is time, and leave when asked to; but never without having gained a step."""
        if step == self.stops[-1]:
            return
        leaving = step > self.start and self.shop.interruption.asked()
        # A stack of one comes out the same when it starts again; one of several only with the same members.
        founding = step == self.start and self.saved is None and len(self.lines) > 1
        due = step > self.start and time.monotonic() - self.kept_at >= self.shop.machine.checkpoint_seconds
        if leaving or founding or due:
            with self.checkpoints.write(step) as folder:
                write_checkpoint(folder, step, {self.ids[k]: progress for k, progress in snapshot().items()}, self.journal)
            self.kept_at = time.monotonic()
        if leaving or due:
            self.checkpoints.moved()
        if leaving:
            self.shop.interruption.leave()

    def on_diverged(self, error: Diverged) -> None:
        """Remember why."""
        self.journal.diverged[self.ids[error.member]] = f"diverged: {error}. Lower the rate of that stage"

    def on_shrink(self, step: int, micro_batch: int) -> None:
        """Remember it, and say so."""
        self.journal.micro_batch = micro_batch
        self.journal.out_of_memory.append({"step": step, "micro_batch": micro_batch})
        log.warning("out of memory at step %d: it is repeated with a micro-batch of %d; batch and order stay", step, micro_batch)


def _log_so_far(store: Store, line: Line) -> list[dict[str, float]]:
    """The log that the stage before left; tokens are counted anew."""
    rows = read_jsonl(store.open(line.done) / "log.jsonl") if line.done else []
    return [{name: value for name, value in row.items() if name != "tokens"} for row in rows]
