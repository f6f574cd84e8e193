"""Model folders and adapter folders: what is read is checked before it is used, and nothing in it is run.

A base model is any Hugging Face causal language model with safetensors weights. An adapter is a plain peft folder.
"""

import json
import logging
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from persona_lab.errors import ModelError, Problem, printable, quoted
from persona_lab.models.bank import target_names
from persona_lab.models.dialogue import Form, check_template, template_in_force
from persona_lab.models.hub import pinned, snapshot
from persona_lab.models.inspection import check_model_folder, is_folder, read_json, refuse_code, tensor_shapes
from persona_lab.models.lora import LoraShape

log = logging.getLogger(__name__)

# What peft can change about a LoRA that the bank does not do; an adapter that asks for it would be read wrongly.
UNLIKE_LORA = ("use_dora", "layers_pattern", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "trainable_token_indices", "target_parameters", "layer_replication")

UNLOADABLE = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError, SafetensorError, StrictDataclassError)
"""What transformers fails with on files that it cannot read, and on sizes and names in a config that mean nothing to it."""


def load_model(
    path: str, *, revision: str | None = None, dtype: str = "float32", device: str = "cpu", chat: Form | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A frozen causal language model and its tokenizer.

    Args:
        path: a local folder, or a hub id, which is downloaded where the cache does not have it.
        revision: of a hub id.
        dtype: of the weights.
        device: where they go.
        chat: `base.chat` of an experiment: the tokenizer keeps its chat template only if that is in force, and works. None: it stays as it is.

    Raises:
        ModelError: the folder is refused (`check_model_folder`), transformers cannot load it, weights are missing or not finite, the tokenizer is
            another model's, the chat template fails, or the device does not have the dtype.
    """
    _check_dtype(dtype, device)
    folder = local_folder(path, revision)
    check_model_folder(folder)
    tokenizer, config = tokenizer_and_config(path, folder, chat)
    _without_dropout(config)
    try:
        options = {"config": config, "dtype": getattr(torch, dtype), "use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    except UNLOADABLE as error:
        raise _unloadable(path, error) from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        # transformers would go on with random numbers in their place.
        raise ModelError("PL4011", path, f"{len(missing)} weights are missing, {missing[0]} among them. Download the model folder again.")
    _check_tokens(tokenizer, model.get_input_embeddings().weight.shape[0], path)
    model = model.requires_grad_(False).to(device).eval()
    check_finite(model, path)
    return model, tokenizer


def load_tokenizer(path: str, *, revision: str | None = None, chat: Form | None = None) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """The tokenizer of a model, as `load_model` gives it, and the model's config: documents are read before the weights are.

    Raises:
        ModelError: the folder is refused (`check_model_folder`), or transformers cannot load them.
    """
    folder = local_folder(path, revision)
    check_model_folder(folder)
    return tokenizer_and_config(path, folder, chat)


def local_folder(path: str, revision: str | None = None) -> Path:
    """Where the files of a model lie on this machine, of a hub id once they are downloaded; ModelError PL4020, PL4021."""
    return Path(path) if is_folder(path) else snapshot(path, pinned(path, revision))


def tokenizer_and_config(path: str, folder: Path, chat: Form | None) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """Both, from the folder of a base of this name; a chat template that is in force was tried, and one that is not is gone. ModelError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except UNLOADABLE as error:
        raise _unloadable(path, error) from error
    if chat is not None and template_in_force(folder, chat):
        check_template(tokenizer, path)
    elif chat is not None:
        tokenizer.chat_template = None
    return _fitted(tokenizer, config), config


def _without_dropout(config: PreTrainedConfig) -> None:
    """Switch off the dropout that a base has of its own (GPT-2, OPT): frozen, it is not regularized, and its random numbers would be no function of the step."""
    own = config.get_text_config()
    for name, value in own.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(own, name, 0.0)


def _check_dtype(dtype: str, device: str) -> None:
    if dtype == "bfloat16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise ModelError("PL4026", "base.dtype", f"{name} cannot multiply bfloat16. Use base.dtype: float32, or a GPU from Ampere on.")


def _check_tokens(tokenizer: PreTrainedTokenizerBase, rows: int, path: str) -> None:
    """PL4010 when the tokenizer has more tokens than the embedding has rows, or less than half as many: a model's own fills nearly all of them."""
    if not rows / 2 <= len(tokenizer) <= rows:
        raise ModelError("PL4010", path, f"the tokenizer has {len(tokenizer)} tokens, the model {rows}. Use the model's own tokenizer.")


@torch.no_grad()
def check_finite(model: nn.Module, path: str) -> None:
    """PL4027 when a weight is no finite number: one pass over the weights, a tenth of a second a gigabyte on a core."""
    for name, weight in model.named_parameters():
        # Not `isfinite(weight)`, which makes a copy and takes twenty times as long: what is not finite is the least or the greatest, or makes both NaN.
        if weight.is_floating_point() and weight.numel() and not bool(torch.stack(torch.aminmax(weight)).isfinite().all()):
            raise ModelError("PL4027", path, f"{name} holds a value that is not finite. Download the model folder again, or use another dtype.")


def _unloadable(path: str, error: Exception) -> ModelError:
    return ModelError("PL4009", path, f"transformers cannot load it: {reason(error)}. Use a local folder, or a hub id that this machine can reach.")


def reason(error: Exception) -> str:
    """What a library said, on one line."""
    return printable(" ".join(str(error).split()) or type(error).__name__, 300)


def _fitted(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """A tokenizer that pads on the right, and knows how much the model reads."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    limit = getattr(config, "max_position_embeddings", None)
    if limit:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return tokenizer


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], *, model: PreTrainedModel, shape: LoraShape, base_id: str) -> None:
    """A plain peft folder: `adapter_config.json`, `adapter_model.safetensors`.

    `base_id` stands where peft puts the base's path: a path of one machine would tie the folder to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {name.rsplit(".", 1)[-1] for name in target_names(model, shape.targets, shape.layers)}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_id,
        r=shape.rank,
        lora_alpha=shape.alpha,  # type: ignore[arg-type]  # peft divides by it; a fraction is as good as a whole number
        lora_dropout=shape.dropout,
        target_modules=sorted(leaves),
        use_rslora=shape.rslora,
        layers_to_transform=list(shape.layers) or None,
        inference_mode=True,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
    )
    config.save_pretrained(str(folder))
    # peft holds the targets as a set, whose order changes from process to process: the same adapter has the same bytes.
    file = folder / "adapter_config.json"
    saved = {**read_json(file), "target_modules": sorted(leaves)}
    file.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def read_adapter(folder: Path, *, base_id: str | None = None, untrained: bool = False) -> tuple[LoraShape, dict[str, Tensor]]:
    """The shape and the tensors of a peft LoRA folder, of the base `base_id` where one is given.

    Raises:
        ModelError: a file is missing or broken, it is no plain LoRA or of another base, or its B matrices are all zero,
            which is the plain base again and right only for an adapter of no steps (`untrained`).
    """
    config = read_json(folder / "adapter_config.json")
    refuse_code(folder / "adapter_config.json", config)
    if config.get("peft_type") != "LORA":
        raise ModelError("PL4105", str(folder), f"peft_type is {quoted(config.get('peft_type'))}, expected LORA. Use a LoRA adapter.")
    shape = _lora_shape(folder / "adapter_config.json", config)
    if base_id is not None and (named := config.get("base_model_name_or_path")) != base_id:
        raise ModelError("PL4110", str(folder / "adapter_config.json"), f"is an adapter of {quoted(named)}, expected {base_id}. Use an adapter of this base.")
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        said = "is not a file" if file.exists() else "the weights are missing"
        raise ModelError("PL4106", str(file), f"{said}. Use a folder with safetensors weights; pickles are never loaded.")
    tensor_shapes(file, "PL4107")
    tensors = load_file(file)
    if not untrained and not any(bool(t.any()) for k, t in tensors.items() if ".lora_B." in k):
        raise ModelError("PL4108", str(file), "every B matrix is zero: the adapter was never trained. Use a trained adapter.")
    return shape, tensors


def _lora_shape(file: Path, config: Mapping[str, Any]) -> LoraShape:
    """The shape that an adapter config asks for; ModelError PL4109 when it is no plain LoRA."""
    unlike = [k for k in UNLIKE_LORA if config.get(k)] + [k for k in ("r", "lora_alpha", "target_modules") if not config.get(k)]
    if unlike:
        raise ModelError("PL4109", str(file), f"not a plain LoRA: see {', '.join(unlike)}. Use an adapter with one rank, one alpha and no further options.")
    rank, alpha, targets, dropout = config["r"], config["lora_alpha"], config["target_modules"], config.get("lora_dropout", 0.0)
    named = targets if isinstance(targets, list) else [targets]
    rslora, layers = config.get("use_rslora") or False, config.get("layers_to_transform")
    numbers = [] if layers is None else layers if isinstance(layers, list) else [layers]
    wrong = [
        *([f"r must be a whole number from 1, got {quoted(rank)}"] if type(rank) is not int or rank < 1 else []),
        *([f"lora_alpha must be a number > 0, got {quoted(alpha)}"] if type(alpha) not in (int, float) or not 0 < alpha < inf else []),
        *([f"lora_dropout must be a number >= 0 and < 1, got {quoted(dropout)}"] if type(dropout) not in (int, float) or not 0 <= dropout < 1 else []),
        *([f"use_rslora must be true or false, got {quoted(rslora)}"] if not isinstance(rslora, bool) else []),
        *([f"layers_to_transform must be whole numbers from 0, got {quoted(layers)}"] if any(type(n) is not int or n < 0 for n in numbers) else []),
        *([f"target_modules must be names, got {quoted(targets)}"] if not all(isinstance(name, str) for name in named) else []),
    ]
    if wrong:
        raise ModelError.of([Problem("PL4109", str(file), f"{said}. Use an adapter that peft itself has written.") for said in wrong])
    return LoraShape(rank, alpha, tuple(named), dropout, rslora, tuple(numbers))


def parameter_count(model: nn.Module) -> int:
    """Parameters of a model."""
    return sum(p.numel() for p in model.parameters())
