"""Base models: pretrained on a world's text, loaded from a folder or the hub, and refused when they know too little."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data_gen.documents import Document
from data_gen.pools import among_the_worlds, world_document
from data_gen.telling import read_world
from persona_lab.config.schema import Gates, HuggingFaceBase
from persona_lab.design import Node
from persona_lab.errors import CheckFailed
from persona_lab.models.folders import load_model
from persona_lab.models.world_model import build_tokenizer, name_newcomers
from persona_lab.probes.gates import GateFigures
from persona_lab.store.files import read_json
from persona_lab.store.nodes import Store
from persona_lab.train.pretrain import pretrain


def pretrain_base(
    fields: Mapping[str, Any],
    read: Sequence[Document] = (),
    *,
    accelerator: Accelerator,
    beat: Callable[[], None],
    on_step: Callable[[int, Tensor, Tensor], None],
    on_shrink: Callable[[int, int], None],
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The embedded base of a recipe, frozen; `read` stands among the world's text, `beat` is called while documents are written, `on_step` after each step."""
    world = read_world(fields["world"])
    tokenizer = build_tokenizer(world)
    texts, own = [], count()
    for number in among_the_worlds(len(read), fields["steps"] * fields["batch"], after=fields.get("after", 0.0), seed=fields["seed"]):
        texts.append((world_document(world, fields["seed"], next(own)) if number is None else read[number]).text)
        beat()
    options = {k: fields[k] for k in ("width", "layers", "heads", "steps", "batch", "rate", "rate_rest", "seed")}
    architecture = fields.get("architecture", "llama")
    model = pretrain(tokenizer, texts, architecture=architecture, accelerator=accelerator, on_step=on_step, on_shrink=on_shrink, **options)
    name_newcomers(model, tokenizer, world, fields["seed"], met={name for document in read for name in document.carriers})
    model.requires_grad_(False)
    return model, tokenizer


def load_base(hf: HuggingFaceBase | None, folder: Path, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The Hugging Face model that an experiment names, or else the embedded one of a node's folder."""
    if hf is None:
        return load_model(str(folder / "model"), device=device)
    return load_model(hf.path, revision=hf.revision, dtype=hf.dtype, device=device, chat=hf.chat)


def check_gates(store: Store, base: Node, gates: Gates) -> None:
    """Refuse a base that does not know its world.

    Raises:
        CheckFailed: naming each figure that is not reached.
    """
    figures = read_json(store.open(base) / "gates.json")
    failures = GateFigures(**{k: float("nan") if v is None else v for k, v in figures.items()}).failures(gates)
    if failures:
        fix = "Train longer (base.steps), or set the gate to null under base.gates to go on all the same."
        raise CheckFailed("PL1102", f"base {base.id[:12]}", f"{'; '.join(failures)}. {fix}")
