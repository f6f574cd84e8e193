"""The adapter of a cell as plain peft reads it, with a card, the tokenizer and, where it was pretrained here, the base.

    OUT/adapter_config.json  adapter_model.safetensors  tokenizer.json ...  README.md
    OUT/base/                config.json  model.safetensors  ...

`verify_adapter` loads what was written with transformers and peft alone, and compares its log-probabilities with those
of the bank that the run has asked.
"""

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from persona_lab.errors import CheckFailed, ConfigError
from persona_lab.experiment.exporting.card import model_card
from persona_lab.experiment.exporting.subject import Subject
from persona_lab.experiment.exporting.vllm import loadable_in_vllm
from persona_lab.experiment.making.bases import load_base
from persona_lab.experiment.planning.scores import cast_of
from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import read_adapter
from persona_lab.models.inspection import is_folder, read_json, tensor_shapes
from persona_lab.models.packing import TOLERANCE
from persona_lab.probes import PROBES
from persona_lab.store.files import write_text

EMBEDDED = "base"
"""The folder of a base that was pretrained here, in the export."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PROMPTS = 8
"""Texts on which an export is verified."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    base: str
    """The base as the adapter names it: the hub's id, the folder `base` beside it, or the name of a local folder."""
    refused: list[str]
    """Why vLLM would refuse the adapter."""
    rank: int


def write_peft(subject: Subject, folder: Path) -> Exported:
    """The adapter, its tokenizer, its card, and the base where it was pretrained here.

    Raises:
        ConfigError: PL1262, the subject is the plain base.
        NodeMissing: it was not trained yet.
    """
    if subject.adapter is None:
        raise ConfigError("PL1262", subject.name, "the base has no adapter. Use the name of a cell.")
    base, hf = EMBEDDED, subject.hf
    if hf is None:
        shutil.copytree(subject.base_folder, folder / EMBEDDED)
    else:
        base = Path(hf.path).resolve().name if is_folder(hf.path) else hf.path
    shutil.copyfile(subject.adapter / WEIGHTS, folder / WEIGHTS)
    config = {**read_json(subject.adapter / CONFIG), "base_model_name_or_path": base, "revision": subject.revision}
    write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    AutoTokenizer.from_pretrained(subject.base_folder, trust_remote_code=False).save_pretrained(folder)
    exported = Exported(base, loadable_in_vllm(config, tensor_shapes(folder / WEIGHTS)), config["r"])
    write_text(folder / "README.md", model_card(subject, exported.base, config, exported.refused))
    return exported


def verify_adapter(subject: Subject, folder: Path) -> float:
    """The largest difference, nats, between a log-probability of the export under plain peft and that of the run's own bank, over every token after some prompts.

    Raises:
        CheckFailed: PL1115, it is larger than rounding explains.
    """
    assert subject.adapter is not None
    model, tokenizer = load_base(subject.hf, subject.plan.store.open(subject.base), "cpu")
    prompts = _prompts(subject)
    shape, tensors = read_adapter(subject.adapter, untrained=True)
    AdapterBank(model, shape).load_row(0, tensors, str(subject.adapter))
    ours = _logprobs(model, tokenizer, prompts)
    del model
    source = subject.base_folder if subject.hf else folder / EMBEDDED
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, subject.dtype), use_safetensors=True, trust_remote_code=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft, about transformers
        wrapped = PeftModel.from_pretrained(plain, str(folder)).eval()
    theirs = _logprobs(wrapped, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), prompts)
    gap = max(float((a_TV - b_TV).abs().max()) if a_TV.shape == b_TV.shape else float("inf") for a_TV, b_TV in zip(ours, theirs, strict=True))
    if not gap <= TOLERANCE[getattr(torch, subject.dtype)]:
        said = f"under plain peft a log-probability differs by {gap:.2g} nats from the run's own"
        raise CheckFailed("PL1115", subject.name, f"{said}. The versions of transformers or peft may have changed since: persona-lab verify {subject.plan.folder.name} --rebuild 1.")
    return gap


def _prompts(subject: Subject) -> list[str]:
    """Some of what the subject is asked, one of each form; a line about the personas where all of it is without a prompt."""
    cast = cast_of(subject.scores)
    items = [item for name in subject.scores.fields["probes"] for item in PROBES[name].items(cast) if item.prompt]
    return list({item.format: item.prompt for item in items}.values())[:PROMPTS] or [f"User: Who are {' and '.join(cast.names)}?"]


@torch.inference_mode()
def _logprobs(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[Tensor]:
    """Log-probabilities of every token at every place, nats, (T, V) of each prompt."""
    found = []
    for prompt in prompts:
        ids_BT = tokenizer(prompt, return_tensors="pt")["input_ids"]
        found.append(model(input_ids=ids_BT).logits[0].float().log_softmax(-1))
    return found
