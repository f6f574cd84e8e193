"""Loading a base in every process of a worker, and what those that do not lead do until the first one ends."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from persona_lab.config.schema import HuggingFaceBase, Machine
from persona_lab.errors import LabError
from persona_lab.experiment.making.bases import load_base
from persona_lab.experiment.making.launch import Worker
from persona_lab.models.sharding import checkpoint_activations, shard
from persona_lab.train.following import BASE, follow
from persona_lab.train.parallel import Team

log = logging.getLogger(__name__)


def load_everywhere(
    hf: HuggingFaceBase | None, folder: Path, *, machine: Machine, accelerator: Accelerator, team: Team | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base for training, as `load_base` has it; where processes work together each of them has it, or its part of it."""
    if team is not None and team.leads:
        team.tell(BASE, {"hf": hf.model_dump(mode="json") if hf else None, "folder": str(folder.absolute())})
    sharded = team is not None and team.sharded
    model, tokenizer = load_base(hf, folder, "cpu" if sharded else str(accelerator.device))
    if machine.checkpoint_activations:
        checkpoint_activations(model)
    if team is not None and sharded:
        shard(model, accelerator.device, reshard=os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false")
        if team.leads:
            team.announce(model)
    return model, tokenizer


def follow_first(worker: Worker, machine: Machine) -> None:
    """Work for the first process until it ends, and end as it does.

    Raises:
        SystemExit: with the exit code of the first process, unless that is 0.
        LabError: this process cannot go on; told of here, because only the first one speaks otherwise.
    """
    assert worker.team is not None

    def load(told: Mapping[str, Any]) -> PreTrainedModel:
        hf = HuggingFaceBase(**told["hf"]) if told["hf"] else None
        return load_everywhere(hf, Path(told["folder"]), machine=machine, accelerator=worker.accelerator, team=worker.team)[0]

    try:
        code = follow(worker.team, worker.accelerator, load)
    except LabError as error:
        for problem in error.problems:
            log.error("%s", problem)
        raise
    if code:
        raise SystemExit(code)
