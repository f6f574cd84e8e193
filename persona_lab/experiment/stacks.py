"""Stacks: trajectories that are trained together in one bank, because a small model alone leaves a device idle.

A stack is whatever ready members one worker got leases for; it is never a node. Members that train the same way (one
base, adapter shape, batch, loss, start and stops) fit into one stack, whatever their documents, rates and seeds. They
commit one by one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from data_gen.corpus import read_corpus
from persona_lab.config.schema import Machine
from persona_lab.design import Node, canonical_json
from persona_lab.experiment.corpora import CORPUS, epoch_order
from persona_lab.experiment.recipes import trajectory
from persona_lab.models.bank import LoraShape
from persona_lab.models.folders import read_adapter, write_adapter
from persona_lab.store.files import read_json, write_json, write_jsonl
from persona_lab.store.lease import Lease
from persona_lab.store.nodes import Store
from persona_lab.train.batches import Row, encode
from persona_lab.train.finetune import Member, Progress, finetune, read_progress, write_moments

if TYPE_CHECKING:
    from persona_lab.experiment.making import Workshop

FULL_STEP = 128
"""Documents of all members in one step at which a processor core has enough to do."""
LOG_EVERY = 10


@dataclass(frozen=True)
class Line:
    """One member of a stack: a trajectory, and which planned stages of it are missing."""

    stage: Node
    """The longest one wanted."""
    missing: dict[int, Node]
    """Steps to stage."""
    done: Node | None
    """The longest one that exists and is shorter than the first missing one: training goes on from there."""

    @property
    def start(self) -> int:
        """Steps done already."""
        return self.done.fields["step"] if self.done else 0

    @cached_property
    def trajectory(self) -> Node:
        """What the lease is for."""
        return trajectory(self.stage)

    @cached_property
    def key(self) -> str:
        """Equal for members that fit into one stack."""
        recipe = self.stage.fields["recipe"]
        shared = {name: recipe[name] for name in ("batch", "loss", "lora")}
        return canonical_json([self.stage.inputs["base"].id, shared, self.start, sorted(self.missing)])


def line_of(store: Store, siblings: Sequence[Node], stage: Node) -> Line:
    """What is left of a trajectory up to one of its stages."""
    wanted = [n for n in siblings if n.fields["step"] <= stage.fields["step"]] or [stage]
    missing = {n.fields["step"]: n for n in wanted if not store.has(n)}
    done = [n for n in wanted if n.fields["step"] < min(missing, default=0) and store.has(n)]
    return Line(stage, missing, max(done, key=lambda n: n.fields["step"], default=None))


def frontier(store: Store, siblings: Callable[[Node], Sequence[Node]], wanted: Sequence[Node]) -> Iterator[Line]:
    """The trajectories that could be trained now, each to the longest stage that the wanted scores need."""
    ready: dict[str, Node] = {}
    for scores in wanted:
        stage = scores.inputs.get("stage")
        while stage is not None and (before := stage.inputs.get("before")) is not None and not store.has(before):
            stage = before
        if stage is not None and not store.has(stage):
            line = trajectory(stage).id
            if line not in ready or ready[line].fields["step"] < stage.fields["step"]:
                ready[line] = stage
    for stage in ready.values():
        yield line_of(store, siblings(stage), stage)


def stack_size(machine: Machine, batch: int, ready: int, workers: int) -> int:
    """How many members one worker takes: enough to fill its step, and no more than its share of what is ready."""
    most = machine.stack if isinstance(machine.stack, int) else max(1, FULL_STEP // batch)
    return max(1, min(most, -(-ready // workers)))


def train_stack(shop: "Workshop", lines: Sequence[Line], leases: Sequence[Lease]) -> None:
    """Train the members together and commit each of their missing stages when it is reached.

    Raises:
        Diverged: with the number of the member; what was committed before stays.
    """
    first = lines[0].stage
    recipe, base = first.fields["recipe"], first.inputs["base"]
    shape = lora_shape(recipe["lora"])
    bank = shop.bank(base, shape)
    model, tokenizer = shop.base(base)
    stops, start = sorted(lines[0].missing), lines[0].start
    logs: list[list[dict[str, float]]] = [[] for _ in lines]
    beat = shop.heartbeat(leases)
    with ExitStack() as open_trackers:
        trackers = [open_trackers.enter_context(shop.track(line.stage, "train", line.stage.fields["recipe"])) for line in lines]

        def on_step(step: int, loss_K: Tensor, norm_K: Tensor) -> None:
            beat()
            if step % LOG_EVERY == 0 or step == 1 or step in stops:
                for tracker, log, loss, norm in zip(trackers, logs, loss_K.tolist(), norm_K.tolist(), strict=True):
                    log.append({"step": step, "loss": loss, "norm": norm})
                    tracker.log({"train/step": step, "train/loss": loss})
                shop.tell(f"training {len(lines)} adapters", step, stops[-1])

        def on_stop(k: int, step: int, progress: Progress) -> None:
            node = lines[k].missing[step]
            with shop.store.attempt(node) as attempt:
                trained = step - max((s for s in (start, *stops) if s < step), default=0)
                attempt.note(documents=trained * recipe["batch"], stack=len(lines))
                write_adapter(attempt.folder / "adapter", progress.adapter, model=model, shape=shape, base_id=f"persona_lab/{base.id[:16]}")
                write_moments(attempt.folder / "state.safetensors", progress)
                write_json(attempt.folder / "state.json", {"step": step, "cursor": step, "trajectory": lines[k].trajectory.id})
                write_jsonl(attempt.folder / "log.jsonl", logs[k])
                shop.committed(node, attempt, share=len(lines))

        finetune(
            bank,
            [member_of(shop, line, tokenizer) for line in lines],
            pad=int(tokenizer.pad_token_id),  # type: ignore[arg-type]  # load_model gives every tokenizer one
            stops=stops,
            kl_to_base=recipe["loss"]["kl_to_base"],
            micro_batch=recipe["batch"] if shop.machine.micro_batch == "auto" else shop.machine.micro_batch,
            accelerator=shop.accelerator,
            on_step=on_step,
            on_stop=on_stop,
        )


def member_of(shop: "Workshop", line: Line, tokenizer: Any) -> Member:
    """Where a member starts and what it sees."""
    recipe, before = line.stage.fields["recipe"], line.stage.inputs.get("before")
    mixture, batch = line.stage.inputs["mixture"], recipe["batch"]
    texts = [d.text for d in read_corpus(shop.store.open(mixture) / CORPUS)]
    rows = encode(tokenizer, texts, on=recipe["loss"]["on"], where=f"mixture {mixture.id[:12]}")
    order = epoch_order(mixture, max(line.missing) * batch)

    def rows_at(step: int) -> list[Row]:
        return [rows[i] for i in order[step * batch : (step + 1) * batch]]

    return Member(
        rows_at=rows_at,
        rate=recipe["rate"],
        clip=recipe["clip"],
        adapter=read_adapter(shop.store.open(before) / "adapter")[1] if before else None,
        init_seed=recipe["init"],
        resumed=_progress(shop.store, line.done) if line.done else None,
    )


def _progress(store: Store, stage: Node) -> Progress:
    folder = store.open(stage)
    return read_progress(folder / "state.safetensors", read_adapter(folder / "adapter")[1], read_json(folder / "state.json")["step"])


def lora_shape(lora: dict[str, Any]) -> LoraShape:
    """The adapter's shape from a recipe."""
    targets = (lora["targets"],) if isinstance(lora["targets"], str) else tuple(lora["targets"])
    return LoraShape(lora["rank"], lora["alpha"], targets, lora["dropout"])
