"""Making nodes: one function for each kind, and the workshop that holds what they share.

Whatever is missing of a node's inputs is made first. A lease decides who tries; the store's first-wins commit
decides what counts.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_gen.telling import read_world
from persona_lab.config.schema import HuggingFaceBase, Machine
from persona_lab.design import Node
from persona_lab.errors import CheckFailed
from persona_lab.experiment.making.bases import pretrain_base
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.making.scoring import score_stack
from persona_lab.experiment.making.stacks import train_stack
from persona_lab.experiment.making.together import load_everywhere
from persona_lab.experiment.making.tokens import pool_rows, write_tokens
from persona_lab.experiment.planning.corpora import make_mixture, make_pool, pool_corpus
from persona_lab.experiment.planning.frontier import Line, line_of
from persona_lab.experiment.planning.open_weights import VALUE_TOKENS
from persona_lab.experiment.planning.recipes import trajectory
from persona_lab.experiment.planning.sources import Files
from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.probes.engine import Voice
from persona_lab.probes.gates import measure_gates, value_tokens
from persona_lab.store.files import write_json, write_jsonl
from persona_lab.store.lease import Lease
from persona_lab.store.nodes import Attempt, Store
from persona_lab.tracking import Tracker, open_tracker
from persona_lab.train.following import tell_bank
from persona_lab.train.loop import Diverged
from persona_lab.train.parallel import Team

RENEW_SECONDS = 5.0
LEASE_SECONDS = 30.0
"""Longer than any step: a lease that is taken too early costs the work of that step, one that is taken late the wait."""


class Busy(Exception):
    """Another worker is making this node."""


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
    files: Files = field(default_factory=Files)
    """Where imported documents are read."""
    bounds: Mapping[str, int] = field(default_factory=dict)
    """Stage id to the most members whose stack fits into the memory, where that was measured."""
    wandb: bool = True
    interruption: Interruption = field(default_factory=Interruption)
    """Whether somebody asked this process to stop."""
    team: Team | None = None
    """The processes that work as one, led by this one."""
    on_progress: Any = None
    """Called with (what, done, total) while work goes on."""
    made: list[str] = field(default_factory=list)
    """Kinds of the nodes made by this workshop."""
    asked: dict[str, Sequence[str]] = field(default_factory=dict)
    """Scores to the stack in which they were asked, as far as somebody wanted to know."""
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
        self.interruption.leave()
        for earlier in node.inputs.values():
            self.make(earlier)
        lease = self.lease(trajectory(node) if node.kind == "stage" else node)
        if lease is None:
            raise Busy(node.id)
        with lease:
            if self.store.has(node):
                return
            self.begin_clock()
            {"pool": self._pool, "mixture": self._mixture, "base": self._make_base, "tokens": self._tokens, "stage": self._stage, "scores": self._scores}[node.kind](node, lease)

    def lease(self, node: Node) -> Lease | None:
        """The right to make a node, or None while another worker has it."""
        return self.store.lease(node, ttl_seconds=LEASE_SECONDS)

    def begin_clock(self) -> None:
        """Work on the next node begins."""
        self._since = time.monotonic()

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

    @contextmanager
    def probing(self, model: PreTrainedModel, leases: Sequence[Lease], step: int) -> Iterator[None]:
        """While a model is asked: each forward pass is a safe point, and its logits must be finite.

        Raises:
            Diverged: naming the step after which the model was asked.
        """
        beat = self.heartbeat(leases)

        def after(module: Any, given: Any, found: Any) -> None:
            beat()
            self.interruption.leave()
            if not torch.isfinite(found.logits).all():
                raise Diverged(0, step, "a logit")

        hook = model.register_forward_hook(after)
        try:
            yield
        finally:
            hook.remove()

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
            make_pool(node, attempt.folder, self.files)
            attempt.note(**self.files.where(node.fields))
            self.committed(node, attempt)

    def _mixture(self, node: Node, lease: Lease) -> None:
        with self.store.attempt(node) as attempt:
            make_mixture(node, attempt.folder, {source: self.store.open(pool) for source, pool in node.inputs.items()})
            self.committed(node, attempt)

    def _tokens(self, node: Node, lease: Lease) -> None:
        pool = node.inputs["pool"]
        tokenizer = self.base(node.inputs["base"])[1]
        rows = pool_rows(tokenizer, self.store.open(pool), node.fields, where=f"pool {pool.id[:12]}")
        with self.store.attempt(node) as attempt:
            write_tokens(attempt.folder, rows)
            if pool.fields.get("kind") == "conversations":
                attempt.note(chat="template" if tokenizer.chat_template else "plain")
            self.committed(node, attempt)

    # ------------------------------------------------------------------ base
    def _make_base(self, node: Node, lease: Lease) -> None:
        renew = self.heartbeat([lease])
        log: list[dict[str, float]] = []
        shrunk: list[dict[str, int]] = []

        def beat() -> None:
            renew()
            self.interruption.leave()

        with self.store.attempt(node) as attempt, self.track(node, "pretrain", node.fields) as tracker:

            def on_step(step: int, loss_K: Tensor, norm_K: Tensor) -> None:
                beat()
                if step % 20 == 0 or step == node.fields["steps"]:
                    log.append({"step": step, "loss": float(loss_K[0]), "norm": float(norm_K[0])})
                    tracker.log({"train/step": step, "train/loss": float(loss_K[0])})
                    self.tell("pretraining the base", step, node.fields["steps"])

            def on_shrink(step: int, micro_batch: int) -> None:
                shrunk.append({"step": step, "micro_batch": micro_batch})
                attempt.note(out_of_memory=shrunk)

            try:
                if self.hf is not None:
                    model, tokenizer = self._load(attempt.folder)
                    attempt.note(dialogues="chat template" if tokenizer.chat_template else "plain lines")
                    write_json(attempt.folder / VALUE_TOKENS, value_tokens(tokenizer, read_world(node.fields["world"])))
                else:
                    read = pool_corpus(self.store.open(node.inputs["mixture"])) if "mixture" in node.inputs else ()
                    model, tokenizer = pretrain_base(node.fields, read, accelerator=self.accelerator, beat=beat, on_step=on_step, on_shrink=on_shrink)
                    model.save_pretrained(attempt.folder / "model")
                    tokenizer.save_pretrained(attempt.folder / "model")
                with self.probing(model, [lease], node.fields.get("steps", 0)):
                    figures = measure_gates(Voice(model, tokenizer), read_world(node.fields["world"]))
            except Diverged as error:
                raise CheckFailed("PL1108", f"base {node.id[:12]}", f"diverged: {error}. Lower base.rate, or use another model.") from error
            write_json(attempt.folder / "gates.json", {k: v if math.isfinite(v) else None for k, v in figures.to_json().items()})
            write_jsonl(attempt.folder / "log.jsonl", log)
            tracker.summary(figures.to_json())
            self.committed(node, attempt)
        # What was pretrained here the other processes of a team do not have: it is loaded by all.
        self._base = (node.id, model, tokenizer) if self.hf is not None or (self.team is None and not self.machine.checkpoint_activations) else None

    def _load(self, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_everywhere(self.hf, folder, machine=self.machine, accelerator=self.accelerator, team=self.team)

    def base(self, node: Node) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The loaded base model, plain or with this workshop's bank in it."""
        if self._base is None or self._base[0] != node.id:
            self._drop_bank()
            self._base = (node.id, *self._load(self.store.open(node)))
        return self._base[1], self._base[2]

    def plain(self, node: Node) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The loaded base model without a bank."""
        self._drop_bank()
        return self.base(node)

    def _drop_bank(self) -> None:
        if self._bank is not None:
            self._bank.remove()
            self._bank = None

    def bank(self, base: Node, shape: LoraShape) -> AdapterBank:
        """The adapter bank on a base, of one shape; made again only when the shape changes."""
        model, _ = self.base(base)
        if self._bank is None or self._bank.shape != shape or self._bank.model is not model:
            self._drop_bank()
            if self.team is not None:
                tell_bank(self.team, shape)
            with nullcontext() if self.team is None else self.team.together():
                self._bank = AdapterBank(model, shape)
        return self._bank

    # ------------------------------------------------------------------ stages
    def line(self, stage: Node) -> Line:
        """What is left of a stage's trajectory, up to that stage."""
        return line_of(self.store, self.stages_of(stage), stage)

    def stages_of(self, stage: Node) -> Sequence[Node]:
        """Every planned stage of a stage's trajectory."""
        return self.siblings.get(trajectory(stage).id, [stage])

    def finished_line(self, trajectory_id: str) -> Line | None:
        """A trajectory with nothing to commit, to keep its place in a stack; None when this plan does not know its documents."""
        stages = self.siblings.get(trajectory_id, [])
        return Line(stages[-1], {}, None) if stages and all(self.store.has(n) for n in stages[-1].inputs.values()) else None

    def lease_line(self, line: Line) -> Lease | None:
        """The lease of a trajectory whose documents exist and which nobody has finished meanwhile."""
        try:
            for role, node in line.stage.inputs.items():
                if role != "before":
                    self.make(node)
        except Busy:
            return None
        lease = self.lease(line.trajectory)
        if lease is not None and self.line(line.stage).missing.keys() != line.missing.keys():
            lease.release()
            return None
        return lease

    def _stage(self, node: Node, lease: Lease) -> None:
        for why in train_stack(self, [self.line(node)], [lease]).values():
            raise CheckFailed("PL1104", f"stage {node.id[:12]}", f"{why}.")

    # ------------------------------------------------------------------ scores
    def _scores(self, node: Node, lease: Lease) -> None:
        for why in score_stack(self, [node], [node], [lease]).values():
            raise CheckFailed("PL1104", f"scores {node.id[:12]}", f"{why}.")
