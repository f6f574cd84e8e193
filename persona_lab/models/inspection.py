"""Model folders and adapter folders are inspected before anything of them is loaded: no torch, and nothing in them is run.

    error[PL4013] model/config.json: num_hidden_layers is 12, model.safetensors holds the weights of 2 layers. Download the folder again.

Sizes are compared with the headers of the weights, so that a config that lies is found before memory is asked for.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from persona_lab.errors import ModelError, quoted

CODE_KEYS = {"auto_map", "auto_mapping", "trust_remote_code", "custom_pipelines", "custom_generate", "kernels"}
CODE_KEYS |= {"_attn_implementation", "_attn_implementation_internal", "attn_implementation"}
"""Keys through which a folder can name code, of its own or of the hub."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")  # told by name and refused: to read one is to run it
LARGEST = {"num_hidden_layers": 1_000, "hidden_size": 1_000_000, "vocab_size": 10_000_000, "num_attention_heads": 10_000, "intermediate_size": 10_000_000}
"""Sizes of a config that memory is asked for by, and what no model comes near."""
CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
"""How the classes that predict the next token are called; the last one is also that of models which read pictures beside text."""
EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in)\.weight$")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
INDEX = "model.safetensors.index.json"
AGAIN = "Download the folder again."
Shapes = dict[str, tuple[int, ...]]
"""Tensor name to shape."""


def is_folder(path: str) -> bool:
    """Whether it is a place on this machine, and no hub id."""
    return Path(path).exists() or path.startswith((".", "/", "~"))


def check_model_folder(folder: Path) -> list[Path]:
    """The weight files of a local model folder, once everything about it has been found in order.

    Raises:
        ModelError: a file is missing, broken or not what it claims to be, names code to run, or does not fit the others.
    """
    if not folder.is_dir():
        raise ModelError("PL4001", str(folder), "base.path: no such model folder. Use the path of a folder written by save_pretrained.")
    config = check_config(folder)
    shards = _shards(folder)
    shapes: Shapes = {}
    for shard, wanted in shards.items():
        found = tensor_shapes(shard)
        if absent := sorted(wanted - found.keys()):
            raise ModelError("PL4006", str(folder / INDEX), f"{absent[0]} is not in {shard.name}, where the index has it. {AGAIN}")
        shapes |= found
    _check_against_weights(folder / "config.json", config, shapes)
    _check_tokenizer(folder, shapes)
    return list(shards)


def check_config(folder: Path) -> dict[str, Any]:
    """The config of a model folder, whose weights need not be there yet; ModelError as `check_model_folder`."""
    config = read_json(folder / "config.json")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if name == "config.json" or (folder / name).exists():
            refuse_code(folder / name, config if name == "config.json" else read_json(folder / name))
    _check_sizes(folder / "config.json", config)
    _check_kind(folder / "config.json", config)
    return config


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


def read_json(file: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        ModelError: PL4002, there is no such file; PL4003, it holds no JSON object.
    """
    if not file.is_file():
        said = "is not a file" if file.exists() else "the file is missing"
        raise ModelError("PL4002", str(file), f"{said}. Use a complete Hugging Face folder (save_pretrained writes one).")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError("PL4002", str(file), f"cannot be read: {error.strerror}. Use a folder that you may read.") from None
    try:
        found = json.loads(data.decode(), parse_constant=_refuse_nan, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise ModelError("PL4003", str(file), f"not JSON: byte {error.start} is not UTF-8. {AGAIN}") from None
    except json.JSONDecodeError as error:
        raise ModelError("PL4003", f"{file}:{error.lineno}:{error.colno}", f"not JSON: {disguise(data) or error.msg}. {AGAIN}") from None
    except RecursionError:
        raise ModelError("PL4003", str(file), f"not JSON: nested too deeply. {AGAIN}") from None
    except ValueError as error:
        raise ModelError("PL4003", str(file), f"not JSON: {error}. {AGAIN}") from None
    if not isinstance(found, dict):
        raise ModelError("PL4003", str(file), f"holds no JSON object. {AGAIN}")
    return found


def _refuse_nan(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)  # some configs have an open end, written as Infinity


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def disguise(data: bytes) -> str:
    """What a file is that stands in place of another one; empty when that cannot be told."""
    if data.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"
    if data.lstrip()[:9].lower() in (b"<!doctype", b"<html>") or data.lstrip()[:6].lower() == b"<html>":
        return "it is a web page, perhaps of an error"
    if data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "it is a pickle, which is never loaded"
    return ""


def refuse_code(file: Path, content: Mapping[str, Any]) -> None:
    """ModelError PL4004 when a JSON file names code to run, at any depth."""
    if named := list(_code_in(content, "")):
        fix = "Use a model that transformers itself supports."
        raise ModelError("PL4004", str(file), f"names code of its own ({', '.join(named[:5])}), which is never run. {fix}")


def _code_in(value: Any, at: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, child in value.items():
            if key in CODE_KEYS and child:
                yield f"{at}{key}"
            yield from _code_in(child, f"{at}{key}.")


def _check_sizes(file: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    if not isinstance(kind, str):
        said = "is missing" if kind is None else f"must be text, got {quoted(kind)}"
        raise ModelError("PL4012", str(file), f"model_type {said}. Use a complete Hugging Face folder (save_pretrained writes one).")
    for key, most in LARGEST.items():
        size = config.get(key, 1)
        if type(size) is not int or not 1 <= size <= most:
            raise ModelError("PL4012", str(file), f"{key} must be a whole number from 1 to {most}, got {quoted(size)}. {AGAIN}")


def _check_kind(file: Path, config: Mapping[str, Any]) -> None:
    """PL4015 when a folder says that its model predicts something else than the next token: a head of its own would be dropped without a word."""
    named = config.get("architectures")
    other = isinstance(named, list) and named and not any(isinstance(name, str) and CAUSAL.search(name) for name in named)
    if other or config.get("is_encoder_decoder") is True:
        said = f"architectures is {quoted(named)}" if other else "is_encoder_decoder is true"
        raise ModelError("PL4015", str(file), f"no causal language model: {said}. Use a model that continues text, whose architecture ends in ForCausalLM.")


def _shards(folder: Path) -> dict[Path, set[str]]:
    """Each weight file with the tensors that the index says it has; without an index, one file and nothing said."""
    if not (folder / INDEX).exists():
        shards: dict[Path, set[str]] = {folder / "model.safetensors": set()}
    else:
        named = read_json(folder / INDEX).get("weight_map")
        if not isinstance(named, dict) or not named or not all(isinstance(shard, str) for shard in named.values()):
            raise ModelError("PL4006", str(folder / INDEX), f"weight_map must give each tensor its file, got {quoted(named)}. {AGAIN}")
        outside = [shard for shard in named.values() if Path(shard).name != shard or not shard.endswith(".safetensors") or "\0" in shard]
        if outside:
            said = f"the index names a shard outside the folder, or one that is no safetensors file: {quoted(outside[0])}"
            raise ModelError("PL4006", str(folder / INDEX), f"{said}. {AGAIN}")
        shards = {}
        for tensor, shard in named.items():
            shards.setdefault(folder / shard, set()).add(tensor)
    for shard in shards:
        if not shard.is_file():
            pickled = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES)
            hint = f" {pickled[0]} is a pickle and is never loaded; convert it to safetensors." if pickled else ""
            said = "is not a file" if shard.exists() else "the weights are missing"
            raise ModelError("PL4005", str(shard), f"{said}.{hint} Use a folder with safetensors weights.")
    return shards


def tensor_shapes(file: Path, code: str = "PL4007") -> Shapes:
    """The shapes in the header of a safetensors file, once the header has been found to fit the file.

    Raises:
        ModelError: it is not a whole safetensors file.
    """
    try:
        with safe_open(file, framework="np") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  # an opened safetensors file has keys, but cannot be gone through itself
    except (SafetensorError, OSError) as error:
        with file.open("rb") as opened:
            start = opened.read(64)
        size = file.stat().st_size
        why = disguise(start) or (f"it has {size} bytes" if size <= 8 else str(error))
        raise ModelError(code, str(file), f"not a safetensors file: {why}. {AGAIN}") from None
    if not shapes:
        raise ModelError(code, str(file), f"holds no tensor. {AGAIN}")
    return shapes


def _check_against_weights(file: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """A config that says more layers, or another width or vocabulary, than the weights have."""
    layers = {int(number[1]) for name in shapes if (number := re.search(r"\.(\d{1,6})\.", name))}
    said = config.get("num_hidden_layers")
    if layers and said is not None and said > max(layers) + 1:
        raise ModelError("PL4013", str(file), f"num_hidden_layers is {said}, the folder has the weights of {max(layers) + 1}. {AGAIN}")
    if shape := embedding_shape(shapes):
        width = "word_embed_proj_dim" if "word_embed_proj_dim" in config else "hidden_size"  # OPT
        for key, size in zip(("vocab_size", width), shape, strict=True):
            if config.get(key, size) != size:
                raise ModelError("PL4013", str(file), f"{key} is {config[key]}, the embedding has {size}. {AGAIN}")


def embedding_shape(shapes: Shapes) -> tuple[int, int] | None:
    """Rows and columns of the token embedding; None where it has a name of its own."""
    found = [shape for name, shape in shapes.items() if EMBEDDINGS.search(name) and len(shape) == 2]
    return (found[0][0], found[0][1]) if found else None


def _check_tokenizer(folder: Path, shapes: Shapes) -> None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError("PL4008", str(folder), "the tokenizer is missing. Save it beside the model with tokenizer.save_pretrained.")
    file = folder / "tokenizer.json"
    if not file.exists():
        return
    content = read_json(file)
    added, model = content.get("added_tokens") or [], content.get("model")
    if not isinstance(added, list) or not all(isinstance(token, dict) and type(token.get("id")) is int for token in added):
        raise ModelError("PL4003", str(file), f"added_tokens must be a list of tokens with their ids, got {quoted(added)}. {AGAIN}")
    words = model.get("vocab") if isinstance(model, dict) else None
    ids = [*(token["id"] for token in added), *(n for n in words.values() if type(n) is int)] if isinstance(words, dict) else [t["id"] for t in added]
    shape = embedding_shape(shapes)
    if shape and ids and not shape[0] / 2 <= max(ids) + 1 <= shape[0]:
        raise ModelError("PL4010", str(file), f"the tokenizer has {max(ids) + 1} tokens, the model {shape[0]}. Use the model's own tokenizer.")
