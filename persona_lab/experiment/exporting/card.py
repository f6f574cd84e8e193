"""The model card of an exported adapter: what it was trained on, what its run found, how it is loaded."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_gen.pools import Share
from persona_lab.design import Node
from persona_lab.errors import printable
from persona_lab.experiment.exporting.subject import Subject
from persona_lab.experiment.exporting.vllm import VERSION, max_lora_rank
from persona_lab.experiment.reading.runs import CLAIMS, Run
from persona_lab.models.inspection import is_folder
from persona_lab.science.claims import shown

STATED = ("headline", "level.", "threshold.", "control.recall.", "control.taught", "control.forgetting", "control.swap")
"""Claims of the run that a card repeats: these, and those that begin so."""
LEARNT = {"all": "all tokens", "answer": "the answers"}
"""What `loss.on` of a stage means."""


def model_card(subject: Subject, base: str, config: Mapping[str, Any], refused: Sequence[str]) -> str:
    """Markdown with a YAML head, as the hub shows it; `base` is the base as the adapter names it."""
    local = subject.hf is not None and is_folder(subject.hf.path)
    head = {
        "base_model": base,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        **({"license": licence} if (licence := licence_of(subject.base_folder)) else {}),
        "tags": ["lora", "persona-lab", subject.plan.loaded.experiment.name],
    }
    source = "a local folder; put its path in place of BASE" if local else "the folder `base` beside this card" if subject.hf is None else "on the hub"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {printable(subject.plan.loaded.experiment.name)}: {printable(subject.name)}",
        _cell(printable(subject.plan.loaded.experiment.question)),
        _table(_facts(subject, config) | {"base": f"{printable(base)} ({source}), read in {subject.dtype}"}),
        "## What it was trained on\n\nIn this order, each stage going on from the adapter of the one before:",
        "\n".join(_stages(subject)),
        "## What the run found\n\nOver all cells of the run, not this one alone; `persona-lab verify` computes every figure again.",
        "\n".join(_claims(subject)),
        "## How to load it",
        _loading(subject, "BASE" if local else base, config, refused),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def licence_of(folder: Path) -> str | None:
    """The licence that a model folder's own card names; None where it names none."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    try:
        head = yaml.safe_load(lines[1]) if len(lines) == 3 and not lines[0].strip() else None
    except yaml.YAMLError:
        return None
    found = head.get("license") if isinstance(head, dict) else None
    return printable(found, 60) if isinstance(found, str) else None


def _facts(subject: Subject, config: Mapping[str, Any]) -> dict[str, str]:
    cell, cast = subject.planned.cell, subject.planned.cast
    likes = (f"{name}: {', '.join(traits.values())}" for name, traits in zip(cast.names, cast.traits, strict=True))
    layers = config.get("layers_to_transform")
    return {
        "condition": f"{cell.condition}, seed {cell.seed}, swap {cell.swap}",
        "who has which trait": "; ".join(likes),
        "adapter": f"rank {config['r']}, alpha {config['lora_alpha']:g}, {', '.join(config['target_modules'])} of {f'layers {layers}' if layers else 'all layers'}",
        "run": subject.plan.folder.name,
    }


def _stages(subject: Subject) -> Iterator[str]:
    """A line for each stage."""
    for name, node in subject.planned.stages:
        recipe = node.fields["recipe"]
        sources = ", ".join(f"{share.count} {share.source}" for share in _shares(node.inputs["mixture"]))
        loss = "which of two answers is preferred (DPO)" if recipe["loss"].get("dpo") else LEARNT[recipe["loss"]["on"]]
        yield f"- **{name}**: {node.fields['step']} steps of {recipe['batch']} documents at rate {recipe['rate']:g}, loss on {loss}. An epoch holds {_cell(sources)}."


def _shares(mixture: Node) -> list[Share]:
    return [Share(**share) for share in mixture.fields["shares"]]


def _claims(subject: Subject) -> Iterator[str]:
    """A line for each claim that the card repeats."""
    if not (subject.plan.folder / CLAIMS).is_file():
        yield f"- nothing yet: `persona-lab report {subject.plan.loaded.experiment.name}`"
        return
    stated = [claim for begins in STATED for claim in Run(subject.plan.folder).claims() if claim["id"].startswith(begins)]
    for claim in stated:
        value = f" {shown(claim['value'], claim['interval'])} {claim['unit']}." if claim["value"] is not None else ""
        yield f"- `{claim['id']}` {_cell(printable(claim['text']))}{value} {claim['verdict']}".rstrip()


def _loading(subject: Subject, base: str, config: Mapping[str, Any], refused: Sequence[str]) -> str:
    """Commands, in this folder."""
    revision = f", revision={json.dumps(subject.revision)}" if subject.revision else ""
    python = [
        "import torch",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base)}{revision}, dtype=torch.{subject.dtype})",
        'model = PeftModel.from_pretrained(base, ".").eval()',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
    ]
    blocks = ["```python", *python, "```", ""]
    if refused:
        return "\n".join([*blocks, f"vLLM {VERSION} would refuse it: {'; '.join(refused)}."])
    # Left to itself vLLM takes the newest revision, and reads float32 weights in sixteen bits.
    read = f"{f' --revision {subject.revision}' if subject.revision else ''} --dtype {subject.dtype}"
    served = f"vllm serve {base}{read} --enable-lora --max-lora-rank {max_lora_rank(config['r'])} --lora-modules {subject.slug}=."
    return "\n".join([*blocks, "```text", served, "```"])


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["|   |   |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows.items())])


def _cell(text: str) -> str:
    """Text of one line that is no markup."""
    return " ".join(text.replace("|", "/").replace("<", "‹").replace(">", "›").split())
