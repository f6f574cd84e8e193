"""Model folders and adapter folders: what is read is checked before it is used, and nothing in it is run.

A base model is any Hugging Face causal language model with safetensors weights. An adapter is a plain peft folder.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from persona_lab.errors import ModelError
from persona_lab.models.bank import LoraShape, target_names

log = logging.getLogger(__name__)

# Keys through which a model folder can name code of its own.
CODE_KEYS = ("auto_map", "custom_pipelines", "_attn_implementation", "_attn_implementation_internal", "auto_mapping")
# What peft can change about a LoRA that the bank does not do; an adapter that asks for it would be read wrongly.
UNLIKE_LORA = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "trainable_token_indices", "target_parameters", "layer_replication")
PICKLED = ("pytorch_model.bin", "model.pt", "model.pkl", "adapter_model.bin")


def _read_json(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError("PL4002", str(file), "the file is missing. Use a complete Hugging Face folder (save_pretrained writes one).") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError("PL4003", str(file), f"not JSON: {error}. Download the model folder again.") from None
    if not isinstance(found, dict):
        raise ModelError("PL4003", str(file), "holds no JSON object. Download the model folder again.")
    return found


def check_model_folder(folder: Path) -> list[Path]:
    """The weight files of a local model folder, once everything about it has been found in order.

    Raises:
        ModelError: the folder is missing or empty, has no safetensors weights, or names code to run.
    """
    if not folder.is_dir():
        raise ModelError("PL4001", str(folder), "base.path: no such model folder. Use the path of a folder written by save_pretrained.")
    config = _read_json(folder / "config.json")
    named = [k for k in CODE_KEYS if k in config]
    if named:
        raise ModelError("PL4004", str(folder / "config.json"), f"names code of its own ({', '.join(named)}), which is never run. Use a model that transformers itself supports.")
    if (folder / "model.safetensors.index.json").exists():
        index = _read_json(folder / "model.safetensors.index.json")
        names = sorted(set(index.get("weight_map", {}).values()))
        outside = [n for n in names if Path(n).name != n]
        if outside:
            raise ModelError("PL4006", str(folder), f"the index names a shard outside the folder: {outside[0]!r}. Download the model folder again.")
        shards = [folder / n for n in names]
    else:
        shards = [folder / "model.safetensors"]
    for shard in shards:
        if not shard.exists():
            pickled = [p for p in PICKLED if (folder / p).exists()]
            hint = f" {pickled[0]} is a pickle and is never loaded; convert it to safetensors." if pickled else ""
            raise ModelError("PL4005", str(shard), f"the weights are missing.{hint} Use a folder with safetensors weights.")
        try:
            with safe_open(shard, framework="pt") as opened:
                opened.keys()
        except SafetensorError as error:
            raise ModelError("PL4007", str(shard), f"not a safetensors file: {error}. Download the model folder again.") from None
    if not any((folder / n).exists() for n in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")):
        raise ModelError("PL4008", str(folder), "the tokenizer is missing. Save it beside the model with tokenizer.save_pretrained.")
    return shards


def folder_digest(folder: Path) -> str:
    """SHA-256 over the weights, the config and the tokenizer of a local model folder: what its identity is."""
    digest = hashlib.sha256()
    wanted = [*check_model_folder(folder), *(folder / n for n in ("config.json", "tokenizer.json", "chat_template.jinja") if (folder / n).exists())]
    for file in sorted(wanted):
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            while block := opened.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def load_model(path: str, *, revision: str | None = None, dtype: str = "float32", device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A frozen causal language model and its tokenizer.

    Raises:
        ModelError: the folder is refused (`check_model_folder`), transformers cannot load it, or weights are missing.
    """
    if Path(path).exists() or path.startswith((".", "/", "~")):
        check_model_folder(Path(path))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        options = {"dtype": getattr(torch, dtype), "use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, revision=revision, **options)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise ModelError("PL4009", path, f"transformers cannot load it: {str(error).splitlines()[0]}. Use a local folder, or a hub id that this machine can reach.") from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        # transformers would go on with random numbers in their place.
        raise ModelError("PL4011", path, f"{len(missing)} weights are missing, {missing[0]} among them. Download the model folder again.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise ModelError("PL4010", path, f"the tokenizer has {len(tokenizer)} tokens, the model {model.get_input_embeddings().weight.shape[0]}. Use the model's own tokenizer.")
    tokenizer.padding_side = "right"
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return model.requires_grad_(False).to(device).eval(), tokenizer


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], *, model: PreTrainedModel, shape: LoraShape, base_id: str) -> None:
    """A plain peft folder: `adapter_config.json`, `adapter_model.safetensors`.

    `base_id` stands where peft puts the base's path: a path of one machine would tie the folder to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {name.rsplit(".", 1)[-1] for name in target_names(model, shape.targets)}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_id,
        r=shape.rank,
        lora_alpha=shape.alpha,  # type: ignore[arg-type]  # peft divides by it; a fraction is as good as a whole number
        lora_dropout=shape.dropout,
        target_modules=sorted(leaves),
        inference_mode=True,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
    )
    config.save_pretrained(str(folder))
    # peft holds the targets as a set, whose order changes from process to process: the same adapter has the same bytes.
    file = folder / "adapter_config.json"
    saved = {**_read_json(file), "target_modules": sorted(leaves)}
    file.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def read_adapter(folder: Path) -> tuple[LoraShape, dict[str, Tensor]]:
    """The shape and the tensors of a peft LoRA folder.

    Raises:
        ModelError: a file is missing or broken, it is no plain LoRA, or its B matrices are all zero (never trained).
    """
    config = _read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise ModelError("PL4105", str(folder), f"peft_type is {config.get('peft_type')!r}, expected LORA. Use a LoRA adapter.")
    unlike = [k for k in UNLIKE_LORA if config.get(k)] + [k for k in ("r", "lora_alpha", "target_modules") if not config.get(k)]
    if unlike:
        raise ModelError("PL4109", str(folder / "adapter_config.json"), f"not a plain LoRA: see {', '.join(unlike)}. Use an adapter with one rank, one alpha and no further options.")
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise ModelError("PL4106", str(file), "the weights are missing. Use a folder with safetensors weights; pickles are never loaded.")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ModelError("PL4107", str(file), f"not a safetensors file: {error}. Use an intact adapter.") from None
    if not any(bool(t.any()) for k, t in tensors.items() if ".lora_B." in k):
        raise ModelError("PL4108", str(file), "every B matrix is zero: the adapter was never trained. Use a trained adapter.")
    targets = config["target_modules"]
    named = tuple(targets) if isinstance(targets, list) else (targets,)
    return LoraShape(config["r"], config["lora_alpha"], named, config.get("lora_dropout", 0.0)), tensors


def parameter_count(model: nn.Module) -> int:
    """Parameters of a model."""
    return sum(p.numel() for p in model.parameters())
