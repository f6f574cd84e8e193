"""`persona-lab export`: a cell of a run for programs that are not ours."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_lab.cli.console import AsJson, emit, remark
from persona_lab.cli.experiments import RunName, Runs
from persona_lab.errors import printable
from persona_lab.experiment.planning.plan import RUNS, open_plan
from persona_lab.experiment.reading.runs import find_run

if TYPE_CHECKING:
    from persona_lab.experiment.exporting.subject import Subject

FORMS = ("peft", "inspect", "lm-eval", "organism")
ADAPTERS = ("peft", "organism")
"""Of these the adapter is part; the others ask questions."""


@dataclass
class Written:
    """What was written, as people and programs are told."""

    said: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def export(
    run: RunName,
    cell: Annotated[str, typer.Argument(metavar="CELL", help="A cell, a part of its name that no other has, or base.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help=f"{', '.join(FORMS[:-1])} or {FORMS[-1]}.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="A new or an empty folder.", show_default="exports/FORM/CELL")] = None,
    probes: Annotated[str, typer.Option("--probes", help="Only these, with commas between them; inspect and lm-eval.", show_default="all")] = "",
    adapter_id: Annotated[str | None, typer.Option("--adapter-id", help="Where on the hub the adapter will lie; organism.", show_default=False)] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Load the adapter with plain peft and compare; peft and organism.")] = True,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """A trained cell as a peft adapter with a card, its questions as tasks of lm-eval or inspect-ai, or a model organism of diffing-toolkit.

    Example: persona-lab export quickstart linked/ln_ratio=1.386/seed0/swap0 --to peft
    """
    if to not in FORMS:
        raise typer.BadParameter(f"must be {', '.join(FORMS[:-1])} or {FORMS[-1]}, got {to!r}", param_hint="--to")
    for given, taken, option in ((probes, to not in ADAPTERS, "--probes"), (adapter_id, to == "organism", "--adapter-id"), (not verify, to in ADAPTERS, "--no-verify")):
        if given and not taken:
            raise typer.BadParameter(f"means nothing to --to {to}. Leave it out.", param_hint=option)
    planned = open_plan(find_run(run, runs))

    from persona_lab.experiment.exporting.subject import find_subject, new_folder

    subject = find_subject(planned, cell)
    out = out or Path("exports") / to / subject.slug
    with new_folder(out) as folder:
        if to in ADAPTERS:
            made = _adapter(subject, folder, to, out, adapter_id, verify=verify)
        else:
            made = _questions(subject, folder, to, out, [name for name in probes.split(",") if name])
    said = {"folder": str(out), "cell": subject.name, **made.said, "commands": made.commands}
    emit(said, "\n".join([f"{to}: {out}", *made.lines, *made.commands]), as_json=as_json)


def _adapter(subject: "Subject", folder: Path, to: str, out: Path, adapter_id: str | None, *, verify: bool) -> Written:
    """The adapter, alone or as an organism."""
    from persona_lab.experiment.exporting.adapters import verify_adapter, write_peft
    from persona_lab.experiment.exporting.organism import ORGANISMS, write_organism
    from persona_lab.experiment.exporting.vllm import VERSION, max_lora_rank

    exported, commands = (write_peft(subject, folder), []) if to == "peft" else write_organism(subject, folder, out, adapter_id)
    gap = verify_adapter(subject, folder if to == "peft" else folder / ORGANISMS / subject.slug) if verify else None
    for why in exported.refused:
        remark(f"vLLM {VERSION} would refuse this adapter: {why}.")
    lines = [] if gap is None else [f"plain peft gives the run's own log-probabilities, {gap:.1e} nats apart at most"]
    lines += [] if exported.refused else [f"vLLM {VERSION} loads it with --max-lora-rank {max_lora_rank(exported.rank)}"]
    return Written({"base": exported.base, "gap_nats": gap, "vllm_refuses": exported.refused}, lines, commands)


def _questions(subject: "Subject", folder: Path, to: str, out: Path, probes: list[str]) -> Written:
    """The forced choices as tasks of a harness."""
    from persona_lab.experiment.exporting.harnesses import write_harness

    asked, commands = write_harness(to, subject, probes, folder, out)
    lines = [f"{len(asked.rows)} questions, tasks {', '.join(asked.tasks)}"]
    lines += [f"left out, {count} items of {printable(why)}" for why, count in asked.left_out.items()]
    return Written({"questions": len(asked.rows), "tasks": list(asked.tasks), "left_out": dict(asked.left_out)}, lines, commands)


COMMANDS = (export,)
