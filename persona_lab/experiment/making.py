"""Making nodes: one function for each kind, and the workshop that holds what they share.

Whatever is missing of a node's inputs is made first. A lease decides who tries; the store's first-wins commit
decides what counts.
"""

import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_gen.world import World
from persona_lab.config.schema import HuggingFaceBase, Machine
from persona_lab.design import Node
from persona_lab.experiment.bases import load_base, pretrain_base
from persona_lab.experiment.corpora import make_mixture, make_pool
from persona_lab.experiment.recipes import trajectory
from persona_lab.experiment.scores import cast_of
from persona_lab.experiment.stacks import Line, frontier, line_of, lora_shape, stack_size, train_stack
from persona_lab.models.bank import AdapterBank, LoraShape
from persona_lab.models.folders import read_adapter
from persona_lab.probes.engine import Voice, ask
from persona_lab.probes.gates import measure_gates
from persona_lab.store.files import write_json, write_jsonl
from persona_lab.store.lease import Lease
from persona_lab.store.nodes import Attempt, Store
from persona_lab.tracking import Tracker, open_tracker
from persona_lab.train.loop import Diverged

RENEW_SECONDS = 10.0
LEASE_SECONDS = 60.0


class Busy(Exception):
    """Another worker is making this node."""


class StackDiverged(ArithmeticError):
    """A member of a stack is not finite any more; the others can be trained without it."""

    def __init__(self, trajectory: str, why: str) -> None:
        self.trajectory = trajectory
        super().__init__(why)


@dataclass
class Workshop:
    """A store, a machine, and what is loaded on it."""

    store: Store
    machine: Machine
    accelerator: Accelerator
    group: str
    """The experiment's run: wandb's group."""
    folder: Path
    """The run's folder."""
    hf: HuggingFaceBase | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    """Node id to what a reader sees."""
    siblings: Mapping[str, Sequence[Node]] = field(default_factory=dict)
    """Trajectory id to every planned stage of it, shortest first."""
    wandb: bool = True
    on_progress: Any = None
    """Called with (what, done, total) while work goes on."""
    made: list[str] = field(default_factory=list)
    """Kinds of the nodes made by this workshop."""
    _base: tuple[str, PreTrainedModel, PreTrainedTokenizerBase] | None = None
    _bank: AdapterBank | None = None
    _since: float = 0.0
    """When the work on the node at hand began."""

    # ------------------------------------------------------------------ any node
    def make(self, node: Node) -> None:
        """Make a node and whatever it needs; nothing happens when it exists.

        Raises:
            Busy: another worker holds the lease of the node or of one of its inputs.
        """
        if self.store.has(node):
            return
        for earlier in node.inputs.values():
            self.make(earlier)
        lease = self.store.lease(trajectory(node) if node.kind == "stage" else node, ttl_seconds=LEASE_SECONDS)
        if lease is None:
            raise Busy(node.id)
        with lease:
            if self.store.has(node):
                return
            self._since = time.monotonic()
            {"pool": self._pool, "mixture": self._mixture, "base": self._make_base, "stage": self._stage, "scores": self._scores}[node.kind](node, lease)

    def committed(self, node: Node, attempt: Attempt, *, share: int = 1) -> None:
        """Note how a node was made; one of `share` nodes that were made in the same time."""
        now = time.monotonic()
        spent, device = round((now - self._since) / share, 3), str(self.accelerator.device)
        attempt.note(seconds=spent, threads=torch.get_num_threads(), device=device, micro_batch=str(self.machine.micro_batch))
        self.made.append(node.kind)
        if share == 1:
            self._since = now

    def heartbeat(self, leases: Sequence[Lease]) -> Callable[[], None]:
        """To be called often while work goes on: now and then it renews the leases."""
        last = time.monotonic()

        def beat() -> None:
            nonlocal last
            if time.monotonic() - last > RENEW_SECONDS:
                for lease in leases:
                    lease.renew()
                last = time.monotonic()

        return beat

    def tell(self, what: str, done: int, total: int) -> None:
        """Report progress to whoever asked for it."""
        if self.on_progress:
            self.on_progress(what, done, total)

    def track(self, node: Node, job: Any, config: Mapping[str, Any]) -> Tracker:
        """Where the metrics of a node go; to be used in a `with` block."""
        mode = self.machine.wandb if self.wandb else "disabled"
        return open_tracker(
            mode=mode,
            folder=self.folder / "tracking" / f"{job}-{node.id[:12]}",
            experiment=self.group,
            node=node.id,
            job_type=job,
            name=self.names.get(node.id, node.id[:12]),
            config=config,
            wandb_folder=self.folder,
        )

    # ------------------------------------------------------------------ documents
    def _pool(self, node: Node, lease: Lease) -> None:
        with self.store.attempt(node) as attempt:
            make_pool(node, attempt.folder)
            self.committed(node, attempt)

    def _mixture(self, node: Node, lease: Lease) -> None:
        with self.store.attempt(node) as attempt:
            make_mixture(node, attempt.folder, {source: self.store.open(pool) for source, pool in node.inputs.items()})
            self.committed(node, attempt)

    # ------------------------------------------------------------------ base
    def _make_base(self, node: Node, lease: Lease) -> None:
        beat = self.heartbeat([lease])
        log: list[dict[str, float]] = []
        with self.store.attempt(node) as attempt, self.track(node, "pretrain", node.fields) as tracker:

            def on_step(step: int, loss_K: Tensor, norm_K: Tensor) -> None:
                beat()
                if step % 20 == 0 or step == node.fields["steps"]:
                    log.append({"step": step, "loss": float(loss_K[0]), "norm": float(norm_K[0])})
                    tracker.log({"train/step": step, "train/loss": float(loss_K[0])})
                    self.tell("pretraining the base", step, node.fields["steps"])

            if self.hf is not None:
                model, tokenizer = load_base(self.hf, attempt.folder, str(self.accelerator.device))
            else:
                model, tokenizer = pretrain_base(node.fields, accelerator=self.accelerator, beat=beat, on_step=on_step)
                model.save_pretrained(attempt.folder / "model")
                tokenizer.save_pretrained(attempt.folder / "model")
            figures = measure_gates(Voice(model, tokenizer), World.model_validate(node.fields["world"]))
            write_json(attempt.folder / "gates.json", {k: v if math.isfinite(v) else None for k, v in figures.to_json().items()})
            write_jsonl(attempt.folder / "log.jsonl", log)
            tracker.summary(figures.to_json())
            self.committed(node, attempt)
        self._base = (node.id, model, tokenizer)

    def base(self, node: Node) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The loaded base model, plain or with this workshop's bank in it."""
        if self._base is None or self._base[0] != node.id:
            self._drop_bank()
            self._base = (node.id, *load_base(self.hf, self.store.open(node), str(self.accelerator.device)))
        return self._base[1], self._base[2]

    def _drop_bank(self) -> None:
        if self._bank is not None:
            self._bank.remove()
            self._bank = None

    def bank(self, base: Node, shape: LoraShape) -> AdapterBank:
        """The adapter bank on a base, of one shape; made again only when the shape changes."""
        model, _ = self.base(base)
        if self._bank is None or self._bank.shape != shape or self._bank.model is not model:
            self._drop_bank()
            self._bank = AdapterBank(model, shape)
        return self._bank

    # ------------------------------------------------------------------ stages
    def line(self, stage: Node) -> Line:
        """What is left of a stage's trajectory, up to that stage."""
        return line_of(self.store, self.siblings.get(trajectory(stage).id, [stage]), stage)

    def _stage(self, node: Node, lease: Lease) -> None:
        train_stack(self, [self.line(node)], [lease])

    def make_stack(self, wanted: Sequence[Node], workers: int, doomed: Container[str] = ()) -> Sequence[Line]:
        """Train the first trajectories of the frontier of the wanted scores that are free; none when all are leased.

        Raises:
            StackDiverged: naming the trajectory.
        """
        ready = [line for line in frontier(self.store, lambda n: self.siblings.get(trajectory(n).id, [n]), wanted) if line.trajectory.id not in doomed]
        with ExitStack() as held:
            lines: list[Line] = []
            leases: list[Lease] = []
            for line in ready:
                same = [other for other in ready if other.key == (lines or [line])[0].key]
                if line not in same or len(lines) >= stack_size(self.machine, line.stage.fields["recipe"]["batch"], len(same), workers):
                    continue
                lease = self._ready(line)
                if lease is not None:
                    lines.append(line)
                    leases.append(held.enter_context(lease))
            if lines:
                self._since = time.monotonic()
                try:
                    train_stack(self, lines, leases)
                except Diverged as error:
                    raise StackDiverged(lines[error.member].trajectory.id, str(error)) from error
            return lines

    def _ready(self, line: Line) -> Lease | None:
        """The lease of a trajectory whose documents exist and which nobody has finished meanwhile."""
        try:
            self.make(line.stage.inputs["mixture"])
        except Busy:
            return None
        lease = self.store.lease(line.trajectory, ttl_seconds=LEASE_SECONDS)
        if lease is not None and self.line(line.stage).missing.keys() != line.missing.keys():
            lease.release()
            return None
        return lease

    # ------------------------------------------------------------------ scores
    def _scores(self, node: Node, lease: Lease) -> None:
        stage = node.inputs.get("stage")
        model, tokenizer = self.base(node.inputs["base"])
        if stage is not None:
            _, tensors = read_adapter(self.store.open(stage) / "adapter")
            bank = self.bank(node.inputs["base"], lora_shape(stage.fields["recipe"]["lora"]))
            bank.resize(1)
            bank.load_row(0, tensors, f"stage {stage.id[:12]}")
        else:
            self._drop_bank()
        rows, samples = ask(Voice(model, tokenizer), cast_of(node), node.fields["probes"])
        with self.store.attempt(node) as attempt, self.track(node, "probe", {"stage": stage.id if stage else None}) as tracker:
            records = [vars(row) for row in rows]
            pd.DataFrame(records).to_parquet(attempt.folder / "rows.parquet", index=False)
            write_jsonl(attempt.folder / "samples.jsonl", samples)
            tracker.table("scores", list(records[0]), [list(record.values()) for record in records])
            self.committed(node, attempt)
