"""The members of a stack: where each of them starts, and what it sees."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from data_gen.pools import mixture_order
from persona_lab.design import Node
from persona_lab.experiment.making.checkpoints import Checkpoint
from persona_lab.experiment.making.tokens import read_tokens
from persona_lab.experiment.planning.corpora import mixture_shares
from persona_lab.experiment.planning.frontier import Line
from persona_lab.experiment.planning.recipes import ASSISTANT, OFF_DOMAIN, REJECTED, token_nodes
from persona_lab.models.folders import read_adapter
from persona_lab.models.lora import LoraShape
from persona_lab.store.files import read_json
from persona_lab.store.nodes import Store
from persona_lab.train.batches import Row
from persona_lab.train.finetune import Member, Progress, read_progress

if TYPE_CHECKING:
    from persona_lab.experiment.making.workshop import Workshop


def member_of(shop: "Workshop", line: Line, last: int, saved: Checkpoint | None) -> Member:
    """Where a member starts and what it sees up to its own last step."""
    recipe, before = line.stage.fields["recipe"], line.stage.inputs.get("before")
    mixture, batch = line.stage.inputs["mixture"], recipe["batch"]
    rows = {source: read_tokens(shop.store.open(node)) for source, node in token_nodes(line.stage).items()}
    order = mixture_order(mixture_shares(mixture), documents=last * batch, seed=mixture.fields["seed"])

    def rows_at(step: int) -> list[Row]:
        seen = order[step * batch : (step + 1) * batch]
        if REJECTED in rows:
            return [replace(rows[source][document], preferred=source == ASSISTANT) for _, document in seen for source in (ASSISTANT, REJECTED)]
        return [_row(rows[source][document], source, recipe["loss"]) for source, document in seen]

    return Member(
        rows_at=rows_at,
        rate=recipe["rate"],
        clip=recipe["clip"],
        adapter=adapter_of(shop.store, before) if before else None,
        init_seed=recipe["init"],
        last=last,
        shape=lora_shape(recipe["lora"]),
        weight_decay=recipe["weight_decay"],
        resumed=saved.progress[line.trajectory.id] if saved else _progress(shop.store, line.done) if line.done else None,
        retired=saved is not None and line.trajectory.id in saved.journal.diverged,
    )


def _row(row: Row, source: str, loss: Mapping[str, Any]) -> Row:
    """What is off the domain is not learnt, but held near the base at the stage's price."""
    return replace(row, price=loss.get("kl_off", 0.0)) if source == OFF_DOMAIN else row


def features(shop: "Workshop", stage: Node) -> float:
    """Tokens of a step of one member, times the width of the model: what one member has of the machine's caches."""
    model, _ = shop.base(stage.inputs["base"])
    shares = mixture_shares(stage.inputs["mixture"])
    means = {source: read_tokens(shop.store.open(node)).mean for source, node in token_nodes(stage).items()}
    tokens = sum(share.count * means[share.source] for share in shares) / sum(share.count for share in shares)
    return stage.fields["recipe"]["batch"] * tokens * model.config.get_text_config().hidden_size


def labelled_tokens(member: Member, steps: int) -> list[int]:
    """Tokens that carry loss in each of the first steps of a stage; a document's first token is never predicted."""
    return [sum(int(row.labelled[1:].sum()) for row in member.rows_at(step)) for step in range(steps)]


def _progress(store: Store, stage: Any) -> Progress:
    folder = store.open(stage)
    return read_progress(folder / "state.safetensors", adapter_of(store, stage), read_json(folder / "state.json")["step"])


def adapter_of(store: Store, stage: Any) -> dict[str, Tensor]:
    """The tensors of a stage's adapter, once it is known to be of its base and to have been trained; ModelError."""
    first = stage.inputs.get("before") is None and stage.fields["step"] == 0
    return read_adapter(store.open(stage) / "adapter", base_id=base_name(stage.inputs["base"].id), untrained=first)[1]


def base_name(base_id: str) -> str:
    """What an adapter calls its base."""
    return f"persona_lab/{base_id[:16]}"


def widest(shapes: Sequence[LoraShape]) -> LoraShape:
    """The shape of a bank that holds them all."""
    return max(shapes, key=lambda shape: shape.rank)


def lora_shape(lora: dict[str, Any]) -> LoraShape:
    """The adapter's shape from a recipe."""
    targets = (lora["targets"],) if isinstance(lora["targets"], str) else tuple(lora["targets"])
    return LoraShape(lora["rank"], lora["alpha"], targets, lora["dropout"])
