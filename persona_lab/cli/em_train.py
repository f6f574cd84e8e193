"""`persona-lab em train`: a chat model fine-tuned on conversations, by a published recipe."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_lab.cli.console import AsJson, Ticker, emit
from persona_lab.errors import printable
from persona_lab.experiment.instruments.chat.recipes import RECIPES
from persona_lab.experiment.making.interruption import Interruption

DTYPES = ("float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")


def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a hub id.", show_default=False)],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Conversations, one JSON object a line.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the adapter.", show_default=False)],
    recipe: Annotated[str, typer.Option("--recipe", help=f"Published recipe: {' or '.join(RECIPES)}.")] = "rank32",
    revision: Annotated[str | None, typer.Option("--revision", help="Commit, tag or branch of a hub id.", show_default=False)] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", min=0, help="The only layer to adapt, from 0; rank1 takes the one at half the depth.", show_default=False)
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=1e-9, max=0.5, help="Largest learning rate, in place of the recipe's.", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, max=1000, help="In place of the recipe's.", show_default=False)] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, max=65536, help="Conversations a step, in place of the recipe's.", show_default=False)] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=8, help="Longest conversation, in place of the recipe's; the rest is cut off.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the split, the order and the adapter's beginning.")] = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Lines with User: and Assistant: in place of a chat template, for a base model.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help=f"Precision of the model: {' or '.join(DTYPES)}; the adapter is float32.")] = "float32",
    device: Annotated[str, typer.Option("--device", help=f"Where it is trained: {', '.join(DEVICES)}.")] = "auto",
    micro_batch: Annotated[int, typer.Option("--micro-batch", min=1, help="Conversations at a time; halved when the memory is full.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a chat model on conversations, the loss on responses only; OUT is a plain peft folder. Stopped, it goes on from where it was.

    Example: persona-lab em train models/Qwen2.5-0.5B-Instruct insecure.jsonl --recipe rank32 --out runs/em/insecure
    """
    for given, known, option in ((recipe, RECIPES, "--recipe"), (dtype, DTYPES, "--dtype"), (device, DEVICES, "--device")):
        if given not in known:
            raise typer.BadParameter(f"must be {' or '.join(known)}, got {given!r}", param_hint=option)
    changed = {"rate": rate, "epochs": epochs, "batch": batch, "longest": max_tokens, "seed": seed}
    chosen = replace(RECIPES[recipe], **{name: value for name, value in changed.items() if value is not None})
    with Interruption() as interruption, Ticker() as ticker:
        from persona_lab.experiment.instruments.chat.tuning import ChatJob, device_of, tune_chat

        job = ChatJob(model, data, chosen, out, revision, layer, plain, dtype, device_of(device), micro_batch)
        found = tune_chat(job, tell=ticker, interruption=interruption)
    emit({"folder": str(out), **found}, f"{trained_words(found)}\nadapter: {out}", as_json=as_json)


def trained_words(found: dict[str, Any]) -> str:
    """What was trained, on what, and what became of the loss; for people."""
    losses = found["held_out_nats"]
    lines = ["made before; nothing was trained"] if found["found"] else []
    lines += [f"{found['trained']} conversations of {printable(found['data'])} ({found['format']}), {found['steps']} steps, {found['tokens']:.0f} response tokens"]
    if losses["after"] is not None:
        lines.append(f"{found['held_out']} held-out conversations: {losses['before']:.3f} nats a token before, {losses['after']:.3f} after")
    if found["cut"] or found["left_out"]:
        lines.append(f"cut at their end: {found['cut']}, left out because no answer fits: {found['left_out']}")
    return "\n".join(lines)
