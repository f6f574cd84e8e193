"""A chat model fine-tuned on conversations: one peft folder, by the one training loop, resumed where it was left.

    OUT/adapter_config.json, adapter_model.safetensors    what peft, transformers and vLLM read
    OUT/README.md                                         what it is, for people
    OUT/log.jsonl                                         {"step": 1, "loss": ..., "norm": ..., "rate": ..., "tokens": ...}: nats a token
    OUT/training.json                                     recipe, data, model, template, losses on held-out conversations before and after
    OUT/manifest.json, COMMIT                             the seal: the folder is whole, and made from just this

While it is trained, checkpoints are kept beside OUT. A folder that stands there already is never written to: the same training is found done.
"""

import hashlib
import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from data_gen.conversations import Conversations, read_conversations
from data_gen.streams import stream, stream_seed
from persona_lab.design import Node
from persona_lab.errors import CheckFailed, ConfigError, EnvironmentFault, ModelError
from persona_lab.experiment.instruments.chat.card import chat_card
from persona_lab.experiment.instruments.chat.recipes import ChatRecipe
from persona_lab.experiment.making.checkpoints import Journal, read_checkpoint, write_checkpoint
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import is_folder, load_model, load_tokenizer, write_adapter
from persona_lab.models.inspection import folder_digest
from persona_lab.models.lora import LoraShape
from persona_lab.store.checkpoints import Checkpoints
from persona_lab.store.files import make_folder, read_json, write_json, write_jsonl, write_text
from persona_lab.store.moves import move
from persona_lab.store.seal import COMMIT, inspect, seal
from persona_lab.train.batches import Row, collate
from persona_lab.train.chat import Encoded, encode_chat, require_template
from persona_lab.train.finetune import Member, Progress, Watcher, finetune
from persona_lab.train.loop import BankLearner, Diverged
from persona_lab.train.optimizers import BankAdam, warmed_up

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often training may be taken up at one step without getting further."""


@dataclass(frozen=True)
class ChatJob:
    """What is trained, from what, into which folder."""

    model: str
    """A folder, or a hub id."""
    data: Path
    recipe: ChatRecipe
    out: Path
    revision: str | None = None
    layer: int | None = None
    """The only layer to adapt, where it is not the recipe's choice."""
    plain: bool = False
    """The lab's own format of a dialogue in place of the model's template."""
    dtype: str = "float32"
    device: str = "cpu"
    micro_batch: int = 2
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True)
class Prepared:
    """All that is known before the weights are loaded."""

    node: Node
    shape: LoraShape
    data: Conversations
    encoded: Encoded
    template: str
    """Of the chat; empty: the lab's own format."""
    pad: int


def tune_chat(job: ChatJob, *, tell: Callable[[str, int, int], None], interruption: Interruption) -> dict[str, Any]:
    """Train, or find it done; what `training.json` holds.

    Raises:
        DataError: the data is broken; CorpusError: the model cannot read it. Both before the weights are loaded.
        ModelError: the model is refused, has no chat template, or has no such layer or matrix.
        ConfigError: PL1299, something else stands at OUT.
        Interrupted: a signal came; what was reached is kept, and the same command goes on from there.
    """
    data = read_conversations(job.data)
    tokenizer, config = load_tokenizer(job.model, revision=job.revision)
    template = "" if job.plain else require_template(tokenizer, job.model)
    encoded = encode_chat(tokenizer, data.conversations, where=str(job.data), longest=job.recipe.longest, plain=job.plain)
    for count, what in ((encoded.cut, "are cut at their end"), (encoded.lost, "are left out, because no answer begins in the part that fits")):
        if count:
            log.warning("%d of %d conversations %s", count, len(data.conversations), what)
    shape = _shape(job, config.get_text_config().num_hidden_layers)
    pad = tokenizer.pad_token_id
    # Never read where a tokenizer has none: padding has no label, and no token sees it.
    prepared = Prepared(_node(job, data, template, shape), shape, data, encoded, template, pad if isinstance(pad, int) else 0)
    if job.out.exists():
        return _found(job.out, prepared.node)
    model, _ = load_model(job.model, revision=job.revision, dtype=job.dtype, device=job.device)
    try:
        return _Tuning(job, prepared, model, tell, interruption).run()
    except Diverged as error:
        raise CheckFailed("PL1104", str(job.out), f"diverged: {error}. Use a lower --rate.") from error


def _shape(job: ChatJob, depth: int) -> LoraShape:
    """The adapter's shape, for a model of so many layers."""
    recipe = job.recipe
    layer = job.layer if job.layer is not None else depth // 2 if recipe.middle_layer else None
    if layer is not None and layer >= depth:
        raise ModelError("PL4101", job.model, f"has {depth} layers, so there is no layer {layer}. Use layers from 0 to {depth - 1}.")
    return LoraShape(recipe.rank, recipe.alpha, recipe.targets, 0.0, recipe.rslora, () if layer is None else (layer,))


def _node(job: ChatJob, data: Conversations, template: str, shape: LoraShape) -> Node:
    """The identity of the training: base, conversations, template, recipe."""
    said = [[[message.role, message.content] for message in conversation] for conversation in data.conversations]
    files = folder_digest(Path(job.model)) if is_folder(job.model) else f"{job.model}@{job.revision}"
    base = Node("base", {"kind": "hf", "files": files, "dtype": job.dtype})
    fields = {
        "recipe": {**job.recipe.to_json(), "targets": list(shape.targets), "layers": list(shape.layers)},
        "conversations": _digest(json.dumps(said)),
        "template": _digest(template) if template else "plain",
    }
    return Node("stage", fields, {"base": base})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _found(out: Path, node: Node) -> dict[str, Any]:
    """What stands in the folder, when it is this very training."""
    if not (out / COMMIT).is_file():
        raise ConfigError("PL1299", str(out), "--out stands there already, and is no adapter of this command. Use a new folder.")
    said = read_json(out / "manifest.json").get("id") if (out / "manifest.json").is_file() else None
    if said != node.id:
        raise ConfigError("PL1299", str(out), "--out holds an adapter of another model, data set or recipe. Use a new folder.")
    inspect(out, node.id, digests=True)
    return {**read_json(out / "training.json"), "found": True}


class _Tuning(Watcher):
    """One training under way: its rows, its log, its checkpoints."""

    def __init__(self, job: ChatJob, prepared: Prepared, model: PreTrainedModel, tell: Callable[[str, int, int], None], interruption: Interruption) -> None:
        self.job, self.prepared, self.tell, self.interruption, self.recipe = job, prepared, tell, interruption, job.recipe
        self.id, self.pad = prepared.node.id, prepared.pad
        self.trained, self.held_out = split_rows(prepared.encoded.rows, self.recipe)
        self.steps = self.recipe.steps(len(self.trained))
        self.bank = AdapterBank(model, prepared.shape)
        self.accelerator = Accelerator(cpu=job.device == "cpu", mixed_precision="no")
        self.checkpoints = Checkpoints(job.out.parent / f".{job.out.name}.attempts", [self.id])
        self.journal = Journal(job.micro_batch, 0, {self.id: self.steps}, {self.id: []})
        self.kept_at = time.monotonic()
        self.progress: Progress | None = None

    def run(self) -> dict[str, Any]:
        """Train to the end, and seal the folder."""
        folder = self.checkpoints.newest()
        saved = read_checkpoint(folder) if folder else None
        if saved is not None:
            self.journal, self.progress = saved.journal, saved.progress[self.id]
        start = saved.step if saved else 0
        self.checkpoints.begin(start, ATTEMPTS)
        before = self.mean_nats()
        member = Member(
            rows_at=self.rows_at,
            rate=self.recipe.rate,
            clip=self.recipe.clip,
            adapter=None,
            init_seed=stream_seed(self.recipe.seed, "init"),
            weight_decay=self.recipe.weight_decay,
            schedule=self.share_of_rate,
            resumed=self.progress,
        )
        finetune(
            self.bank, [member], self, pad=self.pad, stops=[self.steps], kl_to_base=0.0, micro_batch=self.journal.micro_batch, accelerator=self.accelerator
        )
        assert self.progress is not None, "the last step is a stop"
        self.bank.resize(1)
        self.bank.load_row(0, self.progress.adapter, "the trained adapter")
        return self.write({"before": before, "after": self.mean_nats()})

    def rows_at(self, step: int) -> Sequence[Row]:
        """The conversations of a step: every epoch has an order of its own."""
        each = self.recipe.steps(len(self.trained)) // self.recipe.epochs
        epoch, at = divmod(step, each)
        order = stream(self.recipe.seed, "order", epoch).permutation(len(self.trained))
        return [self.trained[i] for i in order[at * self.recipe.batch : (at + 1) * self.recipe.batch]]

    def share_of_rate(self, step: int) -> float:
        """Of the largest learning rate."""
        return warmed_up(step, self.recipe.warmup, self.steps)

    @torch.no_grad()
    def mean_nats(self) -> float | None:
        """Nats a token of the held-out responses under the first row of the bank; None where nothing is held out."""
        if not self.held_out:
            return None
        one_K = torch.ones(1, dtype=torch.float64)
        learner = BankLearner(self.bank, BankAdam(self.bank.weight_KP, self.bank.grad_KP, rate_K=one_K, clip_K=one_K))
        parts = collate([self.held_out], self.pad).parts(self.journal.micro_batch)
        return float(sum(learner.loss_sums(part) for part in parts)) / sum(int(row.labelled[1:].sum()) for row in self.held_out)

    def on_step(self, step: int, members: Sequence[int], loss_K: Tensor, norm_K: Tensor) -> None:
        """A line of the log."""
        tokens = sum(int(row.labelled[1:].sum()) for row in self.rows_at(step - 1))
        rate = self.recipe.rate * self.share_of_rate(step - 1)
        self.journal.logs[self.id].append({"step": step, "loss": float(loss_K[0]), "norm": float(norm_K[0]), "rate": rate, "tokens": tokens})
        self.tell("fine-tuning", step, self.steps)

    def on_stop(self, member: int, step: int, progress: Progress) -> None:
        """The end."""
        self.progress = progress

    def on_pause(self, step: int, snapshot: Callable[[], dict[int, Progress]]) -> None:
        """Keep a checkpoint when it is time, and leave when asked to."""
        leaving = self.interruption.asked()
        if step == self.steps or not (leaving or time.monotonic() - self.kept_at >= self.job.checkpoint_seconds):
            return
        with self.checkpoints.write(step) as folder:
            write_checkpoint(folder, step, {self.id: snapshot()[0]}, self.journal)
        self.checkpoints.moved()
        self.kept_at = time.monotonic()
        if leaving:
            self.interruption.leave()

    def on_shrink(self, step: int, micro_batch: int) -> None:
        """Stay with it after an interruption too."""
        self.journal = replace(self.journal, micro_batch=micro_batch)
        log.warning("out of memory at step %d: it is repeated with a micro-batch of %d; batch and order stay", step, micro_batch)

    def write(self, losses: dict[str, float | None]) -> dict[str, Any]:
        """The folder, sealed beside its place and moved there."""
        job, made, rows = self.job, self.prepared, self.journal.logs[self.id]
        said = {
            "model": job.model if not is_folder(job.model) else Path(job.model).resolve().name,
            "data": job.data.name,
            "format": made.data.format,
            "conversations": len(made.data.conversations),
            "trained": len(self.trained),
            "held_out": len(self.held_out),
            "cut": made.encoded.cut,
            "left_out": made.encoded.lost,
            "recipe": made.node.fields["recipe"],
            "source": job.recipe.source,
            "steps": self.steps,
            "tokens": sum(row["tokens"] for row in rows),
            "held_out_nats": losses,
            "template": made.template or "plain: User, Assistant and System open the lines",
        }
        staged = job.out.parent / f".{job.out.name}.{secrets.token_hex(8)}"
        make_folder(staged)
        try:
            assert self.progress is not None
            write_adapter(staged, self.progress.adapter, model=self.bank.model, shape=made.shape, base_id=said["model"])
            write_jsonl(staged / "log.jsonl", rows)
            write_json(staged / "training.json", said)
            write_text(staged / "README.md", chat_card(said, job.out.name))
            seal(staged, made.node, attempt=secrets.token_hex(8), notes={"device": job.device, "micro_batch": self.journal.micro_batch})
            if not move(staged, job.out):
                return _found(job.out, made.node)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        self.checkpoints.remove()
        shutil.rmtree(self.checkpoints.folder.parent, ignore_errors=True)
        return {**said, "found": False}


def split_rows(rows: Sequence[Row], recipe: ChatRecipe) -> tuple[list[Row], list[Row]]:
    """What is trained on, and what is held out: drawn by the seed; nothing is held out of fewer than two."""
    count = round(len(rows) * recipe.held_out) if len(rows) > 1 else 0
    order = stream(recipe.seed, "held out").permutation(len(rows))
    return [rows[i] for i in sorted(order[count:])], [rows[i] for i in sorted(order[:count])]


def device_of(named: str) -> str:
    """Where to train: `auto` is a GPU where there is one. EnvironmentFault when a GPU is asked for and none is there."""
    if named == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("PL5202", "--device cuda", "this machine has no GPU that torch can use. Use --device cpu, or auto.")
    return "cuda" if named != "cpu" and torch.cuda.is_available() else "cpu"
