"""When the memory is full: the step is repeated in smaller micro-batches, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import SHAPE, members_of, trained
from torch import Tensor

from persona_lab.errors import EnvironmentFault
from persona_lab.experiment.making.checkpoints import read_checkpoint
from persona_lab.models.bank import AdapterBank
from persona_lab.train.finetune import Watcher, finetune


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_step_that_does_not_fit_is_repeated_in_halves_and_nothing_else_changes(llama, rows, accelerator, tmp_path: Path, device: str):
    model = llama.double()
    whole = trained(model, rows, accelerator, tmp_path / "whole", micro_batch=1, leave=8)
    passes: list[int] = []

    room = 4 * max(len(row.ids) for row in rows)

    def allocate(module: Any, given: Any, logits_1SV: Tensor) -> None:
        passes.append(logits_1SV.shape[1]) if torch.is_grad_enabled() else None
        if len(passes) > 5 and passes[-1] > room:  # from the sixth step on there is room for two documents of each member
            if device == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory.")
            torch.empty(1 << 46, dtype=torch.uint8)

    model.lm_head.register_forward_hook(allocate)
    small = trained(model, rows, accelerator, tmp_path / "small", micro_batch=16, leave=8)
    assert small.shrunk == [(5, 2)]
    for step, figures in whole.losses.items():
        assert small.losses[step] == pytest.approx(figures, rel=1e-6), "losses are summed in float32"
    for ours, theirs in zip(*(read_checkpoint(tmp_path / f / "8").progress.values() for f in ("small", "whole")), strict=True):
        assert float((ours.mean_P - theirs.mean_P).norm() / theirs.mean_P.norm()) < 1e-9


def test_what_was_accumulated_before_the_memory_was_full_is_forgotten(llama, rows, accelerator, tmp_path: Path):
    model, passes = llama.double(), []
    trained(model, rows, accelerator, tmp_path / "whole", micro_batch=1, leave=3)

    def allocate(module: Any, given: Any, logits: Tensor) -> None:
        passes.append(logits.shape) if torch.is_grad_enabled() else None
        if len(passes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.lm_head.register_forward_hook(allocate)
    assert trained(model, rows, accelerator, tmp_path / "small", micro_batch=2, leave=3).shrunk == [(0, 1)]
    for ours, theirs in zip(*(read_checkpoint(tmp_path / f / "3").progress.values() for f in ("small", "whole")), strict=True):
        assert torch.equal(ours.mean_P, theirs.mean_P)


def test_a_single_document_that_does_not_fit_is_said_clearly(llama, rows, accelerator):
    llama.lm_head.register_forward_hook(lambda module, given, logits: torch.empty(1 << 46, dtype=torch.uint8) if torch.is_grad_enabled() else None)
    with pytest.raises(EnvironmentFault, match=r"PL5201.*one document for each of 2 adapters.*machine\.stack"):
        finetune(AdapterBank(llama, SHAPE), members_of(rows), Watcher(), pad=0, stops=[2], kl_to_base=0.0, micro_batch=4, accelerator=accelerator)


def test_another_fault_is_not_taken_for_full_memory(llama, rows, accelerator):
    def fail(*_: object) -> None:
        if torch.is_grad_enabled():
            raise RuntimeError("index out of range")

    llama.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="index out of range"):
        finetune(AdapterBank(llama, SHAPE), members_of(rows), Watcher(), pad=0, stops=[2], kl_to_base=0.0, micro_batch=4, accelerator=accelerator)
