"""What a checkpoint of a stack holds: of each member its adapter, Adam's moments and its log, and where they all are.

    state.safetensors     3fa9.../mean, 3fa9.../square, 3fa9.../adapter/base_model.model...lora_A.weight
    state.json            {"step": 40, "cursor": 40, "members": [...], "logs": {...}, "diverged": {}, ...}

The step stands for the random numbers too: dropout and the order of documents are functions of it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from persona_lab.store.files import read_json, write_json
from persona_lab.train.finetune import Progress

TENSORS, STATE = "state.safetensors", "state.json"


@dataclass
class Journal:
    """What is told of a stack beside its tensors."""

    micro_batch: int
    """Documents of one forward pass, as far as it had to be lowered."""
    began: int
    """The step at which the stack was formed."""
    lasts: dict[str, int]
    """Trajectory to the step after which it leaves the stack."""
    logs: dict[str, list[dict[str, float]]]
    """Trajectory to the log of its stage."""
    diverged: dict[str, str] = field(default_factory=dict)
    """Trajectory to why it was given up."""
    out_of_memory: list[dict[str, int]] = field(default_factory=list)
    """Steps that were repeated, and the micro-batch from then on."""
    went_on: list[dict[str, Any]] = field(default_factory=list)
    """Where training was resumed, and on what."""


@dataclass(frozen=True)
class Checkpoint:
    """All members of a stack between two steps."""

    step: int
    progress: Mapping[str, Progress]
    """By trajectory, those that diverged among them; without those that are done."""
    journal: Journal


def write_checkpoint(folder: Path, step: int, progress: Mapping[str, Progress], journal: Journal) -> None:
    """Write both files into a folder. EnvironmentFault."""
    tensors = {}
    for member, at in progress.items():
        tensors |= {f"{member}/mean": at.mean_P, f"{member}/square": at.square_P}
        tensors |= {f"{member}/adapter/{name}": tensor.contiguous() for name, tensor in at.adapter.items()}
    save_file(tensors, folder / TENSORS)
    write_json(folder / STATE, {"step": step, "cursor": step, "members": list(progress), **asdict(journal)})


def read_checkpoint(folder: Path) -> Checkpoint:
    """What was written; the folder's digests have been verified."""
    state, tensors = read_json(folder / STATE), load_file(folder / TENSORS)
    progress = {}
    for member in state["members"]:
        lead = f"{member}/adapter/"
        adapter = {name.removeprefix(lead): tensor for name, tensor in tensors.items() if name.startswith(lead)}
        progress[member] = Progress(adapter, tensors[f"{member}/mean"], tensors[f"{member}/square"], state["step"])
    return Checkpoint(state["step"], progress, Journal(**{name: state[name] for name in ("micro_batch", "began", "lasts", "logs", "diverged", "out_of_memory", "went_on")}))
