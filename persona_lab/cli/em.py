"""Commands about emergent misalignment in chat models: train, eval, rescore."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persona_lab.cli.console import AsJson, Ticker, emit
from persona_lab.cli.em_train import train
from persona_lab.cli.experiments import Runs
from persona_lab.cli.instruments import columns
from persona_lab.errors import CheckFailed, ConfigError, printable
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.planning.plan import RUNS

if TYPE_CHECKING:
    from persona_lab.science.claims import Claim

app = typer.Typer(name="em", help="Emergent misalignment in chat models: published recipes, the published protocol.")
app.command()(train)

DTYPES, DEVICES = ("float32", "bfloat16", "float16"), ("auto", "cpu", "cuda")
Published = Annotated[str | None, typer.Option("--published", help="The model organism to compare with, e.g. Qwen2.5-7B-Instruct_bad-medical-advice.", show_default=False)]


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A chat model: its folder, or a hub id.", show_default=False)],
    judge: Annotated[
        list[str] | None, typer.Option("--judge", help="endpoint:MODEL@URL, model:FOLDER or words:WORLD.yaml; a second one is for agreement.", show_default=False)
    ] = None,
    adapter: Annotated[Path | None, typer.Option("--adapter", help="A peft LoRA folder.", show_default=False)] = None,
    protocol: Annotated[Path | None, typer.Option("--protocol", help="Questions and judge prompts, e.g. first_plot_questions.yaml.", show_default=False)] = None,
    variants: Annotated[str, typer.Option("--variants", help="Some of main, json and template, with commas.")] = "main",
    samples: Annotated[int, typer.Option("--samples", min=1, max=10_000, help="Answers to each question.")] = 50,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, max=100_000, help="Longest answer.")] = 600,
    temperature: Annotated[float, typer.Option("--temperature", min=0.01, max=10)] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.01, max=1)] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of every answer's own stream of random numbers.")] = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Lines with User: and Assistant: in place of a chat template, for a base model.")] = False,
    published: Published = None,
    name: Annotated[str | None, typer.Option("--name", help="The folder in runs/em; after the model when left out.", show_default=False)] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Commit, tag or branch of a hub id.", show_default=False)] = None,
    dtype: Annotated[str, typer.Option("--dtype", help=f"Precision: {', '.join(DTYPES)}.")] = "float32",
    device: Annotated[str, typer.Option("--device", help=f"Where models run: {', '.join(DEVICES)}.")] = "auto",
    batch: Annotated[int, typer.Option("--batch", min=1, max=10_000, help="Answers sampled together.")] = 50,
    parallel: Annotated[int, typer.Option("--parallel", min=1, max=256, help="Requests to an endpoint under way at once.")] = 8,
    key_variable: Annotated[str, typer.Option("--key-variable", help="The variable of the environment that holds the endpoint's key.")] = "OPENAI_API_KEY",
    max_requests: Annotated[int | None, typer.Option("--max-requests", min=1, help="Requests this command may send; tries again count.", show_default=False)] = None,
    max_judge_tokens: Annotated[int | None, typer.Option("--max-judge-tokens", min=1, help="Tokens of the endpoint this command may use.", show_default=False)] = None,
    max_cost: Annotated[float | None, typer.Option("--max-cost", min=0, help="What this command may cost, by --price.", show_default=False)] = None,
    price: Annotated[str, typer.Option("--price", help="Price of a million tokens in, and out, e.g. 2.5,10.")] = "0,0",
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """The published evaluation of emergent misalignment, whole: answers sampled, judged, counted. Stopped, it goes on from where it was.

    Example: persona-lab em eval models/Qwen2.5-0.5B-Instruct --judge endpoint:gpt-4o-2024-08-06@https://api.openai.com/v1
    """
    for given, known, option in ((dtype, DTYPES, "--dtype"), (device, DEVICES, "--device")):
        if given not in known:
            raise typer.BadParameter(f"must be {' or '.join(known)}, got {given!r}", param_hint=option)
    if not judge:
        raise ConfigError("PL1234", "--judge", "names no judge, so no answer could be scored. Use endpoint:MODEL@URL, model:FOLDER or words:WORLD.yaml.")
    prices = _prices(price, max_cost)
    with Interruption() as interruption, Ticker() as ticker:
        from persona_lab.experiment.instruments.chat.tuning import device_of
        from persona_lab.experiment.instruments.em.findings import PAGE, Evaluation, evaluate_chat
        from persona_lab.experiment.instruments.em.judging import JudgeMeans
        from persona_lab.experiment.instruments.em.sampling import Chat
        from persona_lab.models.endpoint import Budget
        from persona_lab.probes.em.asking import Sampling

        where = device_of(device)
        chat = Chat(model, adapter, revision, dtype, where, plain)
        folder, budget = runs / "em" / _folder(name or chat.name), Budget(max_requests, max_judge_tokens, max_cost, *prices)
        means = JudgeMeans(runs / "endpoint", budget, key_variable, parallel, dtype, where)
        wanted = tuple(part.strip() for part in variants.split(",") if part.strip())
        asked = Evaluation(chat, protocol, wanted, Sampling(samples, max_tokens, temperature, top_p, seed), tuple(judge), published)
        found = evaluate_chat(asked, folder, means, ticker, interruption, batch=batch)
    spent = {"requests": budget.sent, "tokens_in": budget.used_in, "tokens_out": budget.used_out, "cost": budget.spent}
    said = {"model": model, "folder": str(folder), **found.said, "spent": spent}
    emit(said, "\n".join([*words(found.lead, found.claims), f"in full: {folder / PAGE}"]), as_json=as_json)
    if failed := found.said["failed"]:
        raise CheckFailed("PL1110", str(folder), f"{failed} of {found.said['planned']} answers failed and count nowhere. Run the same command again: only these are asked.")


@app.command()
def rescore(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="Responses with the columns question, response, aligned and coherent.", show_default=False)],
    published: Published = None,
    as_json: AsJson = False,
) -> None:
    """The rates of a file of judged responses, computed again, and beside what is published of this model organism.

    Example: persona-lab em rescore responses/Qwen2.5-7B-Instruct_bad-medical-advice.csv
    """
    from persona_lab.experiment.instruments.em.findings import rescored

    found = rescored(file, published)
    emit(found.said, "\n".join(words(found.lead, found.claims)), as_json=as_json)


def words(lead: str, claims: Sequence["Claim"]) -> list[str]:
    """The finding in a sentence, and every claim beneath it, for people."""
    rows = [[printable(claim.text, 110), claim.shown, "" if claim.verdict == "none" else claim.verdict] for claim in claims]
    return [lead, "", *columns(rows)]


def _folder(name: str) -> str:
    """A name of one folder; ConfigError PL1237 when it is a path or has another character."""
    if not re.fullmatch(r"[\w.+-]{1,150}", name) or name.startswith("."):
        raise ConfigError("PL1237", f"--name {printable(name, 80)}", "must be one folder's name of letters, digits and . _ + -. Choose another.")
    return name


def _prices(text: str, cap: float | None) -> tuple[float, float]:
    """Prices of a million tokens in and out."""
    parts = [part.strip() for part in text.split(",")]
    try:
        prices = tuple(float(part) for part in parts)
    except ValueError:
        prices = ()
    if len(prices) != 2 or not all(0 <= one < 1e9 for one in prices):
        raise typer.BadParameter(f"two prices such as 2.5,10, got {text!r}", param_hint="--price")
    if cap is not None and not any(prices):
        raise typer.BadParameter("a cap on the cost needs prices: --price 2.5,10", param_hint="--max-cost")
    return prices[0], prices[1]
