"""Making nodes: one function for each kind, and the workshop that holds what they share.

Whatever is missing of a node's inputs is made first. A lease decides who tries; the store's first-wins commit
decides what counts.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_gen.corpus import read_corpus
from data_gen.pools import world_document
from data_gen.world import World
from persona_lab.config.schema import HuggingFaceBase, Machine
from persona_lab.design import Node
from persona_lab.errors import CheckFailed
from persona_lab.experiment.corpora import CORPUS, epoch_order, make_mixture, make_pool
from persona_lab.experiment.recipes import trajectory
from persona_lab.models.bank import AdapterBank, LoraShape
from persona_lab.models.folders import load_model, read_adapter, write_adapter
from persona_lab.models.world_model import build_tokenizer, name_newcomers
from persona_lab.probes import PROBES, Cast, Row
from persona_lab.probes.engine import Voice, answer
from persona_lab.probes.gates import measure_gates
from persona_lab.probes.protocol import Sample
from persona_lab.store.files import read_json, write_json, write_jsonl
from persona_lab.store.lease import Lease
from persona_lab.store.nodes import Attempt, Store
from persona_lab.tracking import Tracker, open_tracker
from persona_lab.train import batches
from persona_lab.train.finetune import Member, Progress, finetune, read_progress, write_moments
from persona_lab.train.pretrain import pretrain

RENEW_SECONDS = 10.0
LEASE_SECONDS = 60.0


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
    wandb: bool = True
    on_progress: Any = None
    """Called with (what, done, total) while work goes on."""
    made: list[str] = field(default_factory=list)
    """Kinds of the nodes made by this workshop."""
    _base: tuple[str, PreTrainedModel, PreTrainedTokenizerBase] | None = None
    _bank: AdapterBank | None = None
    _rows: dict[tuple[str, str], list[batches.Row]] = field(default_factory=dict)
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

    def _commit(self, node: Node, attempt: Attempt) -> None:
        now = time.monotonic()
        spent, device = round(now - self._since, 3), str(self.accelerator.device)
        attempt.note(seconds=spent, threads=torch.get_num_threads(), device=device, micro_batch=str(self.machine.micro_batch))
        self.made.append(node.kind)
        self._since = now

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.on_progress:
            self.on_progress(what, done, total)

    def _track(self, node: Node, job: Any, config: Mapping[str, Any]) -> Tracker:
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
            self._commit(node, attempt)

    def _mixture(self, node: Node, lease: Lease) -> None:
        with self.store.attempt(node) as attempt:
            make_mixture(node, attempt.folder, {source: self.store.open(pool) for source, pool in node.inputs.items()})
            self._commit(node, attempt)

    # ------------------------------------------------------------------ base
    def _make_base(self, node: Node, lease: Lease) -> None:
        world = World.model_validate(node.fields["world"])
        beat = _Heartbeat(lease)
        with self.store.attempt(node) as attempt, self._track(node, "pretrain", node.fields) as tracker:
            if self.hf is not None:
                model, tokenizer = load_model(self.hf.path, revision=self.hf.revision, dtype=self.hf.dtype, device=str(self.accelerator.device))
                log: list[dict[str, float]] = []
            else:
                model, tokenizer, log = self._pretrained(node.fields, world, beat, tracker)
                model.save_pretrained(attempt.folder / "model")
                tokenizer.save_pretrained(attempt.folder / "model")
            figures = measure_gates(Voice(model, tokenizer), world)
            write_json(attempt.folder / "gates.json", {k: (v if v == v else None) for k, v in figures.to_json().items()})
            write_jsonl(attempt.folder / "log.jsonl", log)
            tracker.summary(figures.to_json())
            self._commit(node, attempt)
        self._base = (node.id, model, tokenizer)

    def _pretrained(self, fields: Mapping[str, Any], world: World, beat: "_Heartbeat", tracker: Tracker) -> Any:
        tokenizer = build_tokenizer(world)
        count = fields["steps"] * fields["batch"]
        texts = []
        for i in range(count):
            texts.append(world_document(world, fields["seed"], i).text)
            beat()
        log: list[dict[str, float]] = []

        def on_step(step: int, loss_K: Tensor, norm_K: Tensor) -> None:
            beat()
            if step % 20 == 0 or step == fields["steps"]:
                log.append({"step": step, "loss": float(loss_K[0]), "norm": float(norm_K[0])})
                tracker.log({"train/step": step, "train/loss": float(loss_K[0])})
                self._tell("pretraining the base", step, fields["steps"])

        options = {k: fields[k] for k in ("width", "layers", "heads", "steps", "batch", "rate", "rate_rest", "seed")}
        model = pretrain(tokenizer, texts, accelerator=self.accelerator, on_step=on_step, **options)
        name_newcomers(model, tokenizer, world, fields["seed"])
        return model.requires_grad_(False), tokenizer, log

    def base(self, node: Node) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The loaded base model, plain or with this workshop's bank in it."""
        if self._base is None or self._base[0] != node.id:
            self._drop_bank()
            if self.hf is not None:
                model, tokenizer = load_model(self.hf.path, revision=self.hf.revision, dtype=self.hf.dtype, device=str(self.accelerator.device))
            else:
                model, tokenizer = load_model(str(self.store.open(node) / "model"), device=str(self.accelerator.device))
            self._base = (node.id, model, tokenizer)
        return self._base[1], self._base[2]

    def check_gates(self, node: Node, gates: Any) -> dict[str, float | None]:
        """The gate figures of a base; CheckFailed when one is not reached."""
        from persona_lab.probes.gates import GateFigures

        figures = read_json(self.store.open(node) / "gates.json")
        failures = GateFigures(**{k: float("nan") if v is None else v for k, v in figures.items()}).failures(gates)
        if failures:
            raise CheckFailed("PL1102", f"base {node.id[:12]}", "; ".join(failures) + ". Train longer (base.steps), or set the gate to null under base.gates to go on all the same.")
        return figures

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
    def _stage(self, node: Node, lease: Lease) -> None:
        """Train a stage, and with it every planned shorter stage of the same trajectory that is missing."""
        recipe, base = node.fields["recipe"], node.inputs["base"]
        shape = _shape(recipe["lora"])
        bank = self.bank(base, shape)
        model, tokenizer = self.base(base)
        line = [n for n in self.siblings.get(trajectory(node).id, [node]) if n.fields["step"] <= node.fields["step"]]
        done = [n for n in line if self.store.has(n)]
        missing = {n.fields["step"]: n for n in line if n not in done}
        before = node.inputs.get("before")
        member = Member(
            rows_at=self._rows_at(node, tokenizer, max(missing)),
            rate=recipe["rate"],
            clip=recipe["clip"],
            adapter=read_adapter(self.store.open(before) / "adapter")[1] if before else None,
            init_seed=recipe["init"],
            resumed=self._progress(max(done, key=lambda n: n.fields["step"])) if done else None,
        )
        beat = _Heartbeat(lease)
        log: list[dict[str, float]] = []
        starts = [member.resumed.step if member.resumed else 0, *sorted(missing)]
        with self._track(node, "train", {**recipe, "step": node.fields["step"]}) as tracker:

            def on_step(step: int, loss_K: Tensor, norm_K: Tensor) -> None:
                beat()
                if step % 10 == 0 or step == 1 or step in missing:
                    log.append({"step": step, "loss": float(loss_K[0]), "norm": float(norm_K[0])})
                    tracker.log({"train/step": step, "train/loss": float(loss_K[0])})
                    self._tell("training a stage", step, max(missing))

            def on_stop(_: int, step: int, progress: Progress) -> None:
                trained = step - max((s for s in starts if s < step), default=0)
                self._commit_stage(missing[step], progress, model, shape, log, documents=trained * recipe["batch"])

            finetune(
                bank,
                [member],
                pad=int(tokenizer.pad_token_id),  # type: ignore[arg-type]  # load_model gives every tokenizer one
                stops=sorted(missing),
                kl_to_base=recipe["loss"]["kl_to_base"],
                micro_batch=self._micro_batch(recipe["batch"]),
                accelerator=self.accelerator,
                on_step=on_step,
                on_stop=on_stop,
            )

    def _commit_stage(self, node: Node, progress: Progress, model: PreTrainedModel, shape: LoraShape, log: list[dict[str, float]], documents: int) -> None:
        with self.store.attempt(node) as attempt:
            attempt.note(documents=documents)
            write_adapter(attempt.folder / "adapter", progress.adapter, model=model, shape=shape, base_id=f"persona_lab/{node.inputs['base'].id[:16]}")
            write_moments(attempt.folder / "state.safetensors", progress)
            write_json(attempt.folder / "state.json", {"step": progress.step, "cursor": progress.step, "trajectory": trajectory(node).id})
            write_jsonl(attempt.folder / "log.jsonl", log)
            self._commit(node, attempt)

    def _progress(self, node: Node) -> Progress:
        folder = self.store.open(node)
        return read_progress(folder / "state.safetensors", read_adapter(folder / "adapter")[1], read_json(folder / "state.json")["step"])

    def _rows_at(self, node: Node, tokenizer: PreTrainedTokenizerBase, steps: int) -> Any:
        mixture, on, batch = node.inputs["mixture"], node.fields["recipe"]["loss"]["on"], node.fields["recipe"]["batch"]
        key = (mixture.id, on)
        if key not in self._rows:
            self._rows.clear()  # cells come grouped by mixture: one is enough
            texts = [d.text for d in read_corpus(self.store.open(mixture) / CORPUS)]
            self._rows[key] = batches.encode(tokenizer, texts, on=on, where=f"mixture {mixture.id[:12]}")
        rows, order = self._rows[key], epoch_order(mixture, steps * batch)
        return lambda step: [rows[i] for i in order[step * batch : (step + 1) * batch]]

    def _micro_batch(self, batch: int) -> int:
        return batch if self.machine.micro_batch == "auto" else self.machine.micro_batch

    # ------------------------------------------------------------------ scores
    def _scores(self, node: Node, lease: Lease) -> None:
        world = World.model_validate(node.inputs["base"].fields["world"])
        fields = node.fields
        cast = Cast(
            world,
            *(tuple(fields[k]) for k in ("names", "traits", "who", "shared", "held_out")),
            samples=fields["samples"],
            seed=fields["seed"],
        )
        stage = node.inputs.get("stage")
        model, tokenizer = self.base(node.inputs["base"])
        if stage is not None:
            _, tensors = read_adapter(self.store.open(stage) / "adapter")
            bank = self.bank(node.inputs["base"], _shape(stage.fields["recipe"]["lora"]))
            bank.resize(1)
            bank.load_row(0, tensors, f"stage {stage.id[:12]}")
        else:
            self._drop_bank()
        rows, samples = ask(Voice(model, tokenizer), cast, fields["probes"])
        with self.store.attempt(node) as attempt, self._track(node, "probe", {"stage": stage.id if stage else None}) as tracker:
            pd.DataFrame([asdict(row) for row in rows]).to_parquet(attempt.folder / "rows.parquet", index=False)
            write_jsonl(attempt.folder / "samples.jsonl", samples)
            tracker.table("scores", list(asdict(rows[0])), [list(asdict(r).values()) for r in rows])
            self._commit(node, attempt)


def ask(voice: Voice, cast: Cast, probes: Iterable[str]) -> tuple[list[Row], list[dict[str, Any]]]:
    """Every row of the named probes for a single model, and every sampled answer as it was given."""
    asked = [(PROBES[name], item, PROBES[name].requests(item)) for name in probes for item in PROBES[name].items(cast)]
    answers = iter(answer(voice, [request for _, _, requests in asked for request in requests])[0])
    rows, samples = [], []
    for probe, item, requests in asked:
        found = [next(answers) for _ in requests]
        rows += probe.score(item, found)
        samples += [{"item": item.id, "prompt": r.prompt, "answers": list(a)} for r, a in zip(requests, found, strict=True) if isinstance(r, Sample)]
    return rows, samples


def _shape(lora: Mapping[str, Any]) -> LoraShape:
    targets = (lora["targets"],) if isinstance(lora["targets"], str) else tuple(lora["targets"])
    return LoraShape(lora["rank"], lora["alpha"], targets, lora["dropout"])


class _Heartbeat:
    """Renews a lease now and then while work goes on."""

    def __init__(self, lease: Lease) -> None:
        self.lease, self.last = lease, time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self.last > RENEW_SECONDS:
            self.lease.renew()
            self.last = time.monotonic()
