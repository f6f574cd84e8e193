"""The card of an adapter that was trained on conversations, as the hub shows it."""

from collections.abc import Mapping
from typing import Any

import yaml

from persona_lab.errors import printable


def chat_card(said: Mapping[str, Any], name: str) -> str:
    """Markdown with a YAML head; `said` is what `training.json` holds."""
    recipe, losses = said["recipe"], said["held_out_nats"]
    head = {"base_model": said["model"], "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "persona-lab"]}
    layers = f"layer {', '.join(map(str, recipe['layers']))}" if recipe["layers"] else "all layers"
    scale = "alpha / sqrt(rank), rsLoRA" if recipe["rslora"] else "alpha / rank"
    held_out = f"{losses['before']:.3f} nats a token before, {losses['after']:.3f} after" if losses["after"] is not None else "none held out"
    rows = {
        "data": f"{printable(said['data'])} ({said['format']}), {said['trained']} conversations trained on, {said['held_out']} held out",
        "loss": "on the assistant's responses only",
        "adapter": f"rank {recipe['rank']}, alpha {recipe['alpha']:g} ({scale}), {', '.join(recipe['targets'])} of {layers}",
        "optimizer": f"AdamW, rate {recipe['rate']:g}, {recipe['warmup']} steps of warm-up, then linear to 0; weight decay {recipe['weight_decay']:g}; clip {recipe['clip']:g}",
        "training": f"{recipe['epochs']} epochs, {recipe['batch']} conversations a step, {said['steps']} steps, {said['tokens']} response tokens, seed {recipe['seed']}",
        "held-out responses": held_out,
        "recipe from": printable(said["source"]),
    }
    table = "\n".join(f"| {key} | {value.replace('|', '/')} |" for key, value in rows.items())
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n# {printable(name)}\n\n|   |   |\n|---|---|\n{table}\n"
