"""One judge for all ways: the plain loop of `benchmarks.scoring` on adapters as peft loads them from their folders."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from peft.utils.save_and_load import set_peft_model_state_dict
from safetensors.torch import load_file

from benchmarks.scoring import padded_nats
from benchmarks.sweep.work import Work
from persona_lab.models.folders import load_model
from persona_lab.probes.protocol import Choice
from persona_lab.probes.spans import Span, choice_spans, encode

TRAINED = 1e-3
"""Nats by which the log-probabilities of an adapter may differ after training in float32, which amplifies rounding."""
SCORED = 1e-4
"""Nats by which two ways to score the same adapter may differ."""


class Judge:
    """A base with one adapter of peft, whose weights are replaced."""

    def __init__(self, work: Work) -> None:
        self.work = work
        base, self.tokenizer = load_model(str(work.base))
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int), "load_model gives every tokenizer one"
        self.pad = pad
        self.model = PeftModel.from_pretrained(base, str(work.init(0)), low_cpu_mem_usage=False).eval()

    def load(self, folder: Path) -> None:
        """Put an adapter in; every tensor of it must fit."""
        report = set_peft_model_state_dict(self.model, load_file(folder / "adapter_model.safetensors"))
        missing = [key for key in report.missing_keys if "lora_" in key]
        unfit = [*missing, *report.unexpected_keys]
        assert not unfit, f"{folder} does not fit the base: {unfit[:3]}"

    def spans(self, cell: int, questions: int) -> list[Span]:
        """Every option of a cell as token ids."""
        asked = [Choice(q.prompt, q.options) for q in self.work.questions(cell, questions)]
        ids = encode(self.tokenizer, asked)
        return [span for q in asked for span in choice_spans(self.tokenizer, q, ids)]

    def nats(self, cell: int, folder: Path, questions: int) -> np.ndarray:
        """Log-probability of every option of a cell under an adapter."""
        self.load(folder)
        return np.array(padded_nats(self.model, self.spans(cell, questions), self.pad))


def differences(judge: Judge, out: Path, ours: Path, cells: Sequence[int], questions: int) -> tuple[float, float | None]:
    """Largest difference in nats of the adapters in `out` from ours, and of the way's own scores from the judge's of the same adapter."""
    trained, scored = 0.0, None
    with torch.inference_mode():
        for cell in cells:
            theirs_N = judge.nats(cell, out / str(cell) / "adapter", questions)
            ours_N = judge.nats(cell, ours / str(cell) / "adapter", questions)
            trained = max(trained, float(np.abs(theirs_N - ours_N).max()))
            if (file := out / str(cell) / "nats.json").exists():
                own_N = np.array(json.loads(file.read_text()))
                scored = max(scored or 0.0, float(np.abs(own_N - theirs_N).max()))
    return trained, scored


def verdict(trained: float, scored: float | None) -> str:
    """In words."""
    said = [f"trained {'equal' if trained <= TRAINED else 'NOT EQUAL'} ({trained:.0e})"]
    if scored is not None:
        said.append(f"scored {'equal' if scored <= SCORED else 'NOT EQUAL'} ({scored:.0e})")
    return ", ".join(said)
