"""What training takes of a device's memory, said before there are any weights: for a Hugging Face base, from its config alone.

    injection    32.4 GB of a device: base 16.1 GB, adapters and optimizer 671 MB, a step 13.8 GB (1 adapter, 32 documents of 96 tokens)
                 with FSDP on each of 2: 25.7 GB, 4: 21.7 GB, 8: 19.7 GB
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_gen.pools import world_document
from persona_lab.config.schema import HuggingFaceBase
from persona_lab.errors import ModelError
from persona_lab.experiment.making.members import lora_shape
from persona_lab.experiment.planning.costs import sharded_bytes
from persona_lab.experiment.planning.plan import Plan
from persona_lab.models.folders import UNLOADABLE, reason, tokenizer_and_config
from persona_lab.models.hub import pinned, snapshot
from persona_lab.models.inspection import check_config, is_folder
from persona_lab.models.lora import LoraShape
from persona_lab.train.memory import trace

PROCESSES = (2, 4, 8)
SIZES = (("hidden_size", "n_embd", "d_model"), ("num_hidden_layers", "n_layer", "n_layers", "num_layers"))
"""What a config has to say, under one of the names that architectures have for it."""
DOCUMENTS = 200
"""Of the world, of which the longest is taken for the length of all documents."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one device while stages of one kind are trained."""

    stages: str
    """By name."""
    members: int
    """Adapters trained together."""
    documents: int
    """Of each, in one pass."""
    tokens: int
    """Of each document."""
    weights: int
    adapters: int
    """With gradients and the moments of the optimizer."""
    work: int
    """Activations, logits and temporary results of one pass."""
    sharded: dict[int, int]
    """Processes to the bytes on each of them where FSDP divides the base."""

    @property
    def total(self) -> int:
        """With the base whole on the device."""
        return self.weights + self.adapters + self.work


def footprints(plan: Plan) -> list[Footprint]:
    """Of every kind of stage that a plan has, the largest first; none where the base is pretrained here.

    Raises:
        ModelError: the files of the base are refused, or not on this machine and out of reach; PL4016, its config does not say what a step takes.
    """
    base, machine = plan.loaded.experiment.base, plan.loaded.experiment.machine
    if not isinstance(base, HuggingFaceBase):
        return []
    folder = Path(base.path) if is_folder(base.path) else snapshot(base.path, pinned(base.path, base.revision), weights=False)
    _check_says(folder / "config.json", check_config(folder))
    tokenizer, config = tokenizer_and_config(base.path, folder, None)
    world = plan.loaded.world
    tokens = max(len(tokenizer(world_document(world, 0, i).text)["input_ids"]) for i in range(DOCUMENTS)) + 1
    members = machine.stack if isinstance(machine.stack, int) else 1
    found = []
    for (batch, held, shape), names in _kinds(plan).items():
        documents = min(batch, machine.micro_batch) if isinstance(machine.micro_batch, int) else batch
        dtype = getattr(torch, base.dtype)
        try:
            taken = trace(config, shape, dtype=dtype, members=members, documents=documents, tokens=tokens, checkpoint=machine.checkpoint_activations, held=held)
        except UNLOADABLE as error:
            raise ModelError("PL4016", str(folder / "config.json"), f"no step can be made of this config: {reason(error)}. Download the folder again, or use a model that transformers itself supports.") from error
        sharded = {count: sharded_bytes(taken.weights, taken.layer, taken.rest, count) + taken.adapters + taken.work for count in PROCESSES}
        found.append(Footprint(", ".join(names), members, documents, tokens, taken.weights, taken.adapters, taken.work, sharded))
    return sorted(found, key=lambda footprint: -footprint.total)


def _check_says(file: Path, config: Mapping[str, Any]) -> None:
    """PL4016 for a config without a size: transformers would take the one of the architecture's first model in its place."""
    inner = config.get("text_config")  # of a model that reads pictures too
    own = {**config, **(inner if isinstance(inner, dict) else {})}
    for names in SIZES:
        if not any(type(own.get(name)) is int for name in names):
            said = f"does not say {names[0]}, so what training takes of memory cannot be told"
            raise ModelError("PL4016", str(file), f"{said}. Use the complete config of the model.")


def _kinds(plan: Plan) -> dict[tuple[int, bool, LoraShape], list[str]]:
    """Documents of a step, whether something is held near the base, and the adapter, to the names of such stages; a pair is two documents."""
    kinds: dict[tuple[int, bool, LoraShape], list[str]] = {}
    for name, stage in dict.fromkeys((name, stage) for planned in plan.cells for name, stage in (*planned.stages, *planned.branches)):
        recipe = stage.fields["recipe"]
        loss, documents = recipe["loss"], recipe["batch"] * (2 if recipe["loss"].get("dpo") else 1)
        names = kinds.setdefault((documents, bool(loss["kl_to_base"] or loss.get("kl_off")), lora_shape(recipe["lora"])), [])
        if name not in names:
            names.append(name)
    return kinds
