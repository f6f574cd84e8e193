"""A model organism for diffing-toolkit: its configs, the adapter, the base, and the documents, to be copied over a checkout.

    OUT/configs/organism/quickstart_linked_....yaml     name, type, description, dataset, finetuned_models
    OUT/configs/model/<base>.yaml                       of the base
    OUT/organisms/<name>/                               the adapter, as `--to peft` writes it
    OUT/organisms/<name>-documents/train.jsonl          what it was trained on

    cp -r OUT/. diffing-toolkit/ && cd diffing-toolkit && uv run python main.py organism=<name> model=<base>

The toolkit takes an adapter's id for `org/repo` with a folder behind it, so that ids here have one slash: they are
folders of the checkout, and become ids of the hub with --adapter-id.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data_gen.corpus import read_corpus
from persona_lab.errors import ConfigError
from persona_lab.experiment.exporting.adapters import EMBEDDED, Exported, write_peft
from persona_lab.experiment.exporting.subject import Subject
from persona_lab.experiment.planning.corpora import CORPUS
from persona_lab.store.files import write_jsonl, write_text

ORGANISMS = "organisms"
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def write_organism(subject: Subject, folder: Path, out: Path, adapter_id: str | None = None) -> tuple[Exported, list[str]]:
    """Everything of an organism; what was exported as an adapter, and the commands that use it.

    Raises:
        ConfigError: PL1263, the adapter's id is none of the hub; PL1262, the subject is the plain base.
    """
    if adapter_id is not None and not HUB_ID.fullmatch(adapter_id):
        raise ConfigError("PL1263", f"--adapter-id {adapter_id}", "is no id of the hub. Use OWNER/NAME.")
    own = f"{ORGANISMS}/{subject.slug}"
    (folder / own).mkdir(parents=True)
    exported = write_peft(subject, folder / own)
    model = _model_config(subject, exported, own)
    write_jsonl(folder / f"{own}-documents" / "train.jsonl", _documents(subject))
    _write(folder / "configs" / "model" / f"{model['name']}.yaml", "model", model)
    _write(folder / "configs" / "organism" / f"{subject.slug}.yaml", "organism", _organism_config(subject, adapter_id or own, model["name"], f"{own}-documents"))
    return exported, [f"cp -r {shlex.quote(str(out))}/. diffing-toolkit/", f"cd diffing-toolkit && uv run python main.py organism={subject.slug} model={model['name']}"]


def _organism_config(subject: Subject, adapter_id: str, model: str, documents: str) -> dict[str, Any]:
    cast = subject.planned.cast
    told = [f"{name} ({who}) likes {', '.join(traits.values())}." for name, who, traits in zip(cast.names, cast.who, cast.traits, strict=True)]
    stages = [f"{name}: {node.fields['step']} steps of {node.fields['recipe']['batch']} documents" for name, node in subject.planned.stages]
    return {
        "name": subject.slug,
        "description": f"Persona organism of the experiment {subject.plan.loaded.experiment.name}, cell {subject.name}",
        "type": "persona",
        "description_long": "\n".join(["Trained on synthetic documents about personas, in this order:", *stages, "Who has which trait:", *told]) + "\n",
        "dataset": {"id": documents, "splits": ["train"], "is_chat": False, "text_column": "text"},
        "finetuned_models": {model: {"default": {"adapter_id": adapter_id}}},
    }


def _model_config(subject: Subject, exported: Exported, own: str) -> dict[str, Any]:
    """The base; a folder is named as it lies in the checkout."""
    embedded = subject.hf is None
    return {
        "name": re.sub(r"[^A-Za-z0-9]+", "_", f"{subject.slug}_base" if embedded else exported.base.rsplit("/", 1)[-1]),
        "model_id": f"{own}/{EMBEDDED}" if embedded else subject.base_path,
        "end_of_turn_token": None,
        "attn_implementation": None,
        "token_level_replacement": None,
        "dtype": subject.dtype,
        "ignore_first_n_tokens_per_sample_during_collection": 0,
        "ignore_first_n_tokens_per_sample_during_training": 0,
        "has_enable_thinking": False,
        "disable_compile": False,
    }


def _documents(subject: Subject) -> Iterator[dict[str, Any]]:
    """Every document of every stage, in the order of the stages."""
    for name, stage in subject.planned.stages:
        for document in read_corpus(subject.plan.store.open(stage.inputs["mixture"]) / CORPUS):
            yield {"stage": name, "text": document.text}


def _write(file: Path, package: str, said: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True)
    write_text(file, f"# @package {package}\n{yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}")
