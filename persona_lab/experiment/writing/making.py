"""`persona-lab write`: documents written, checked and counted, and what is left on the disk.

    runs/written/NAME/john/corpus.jsonl     exactly as many documents as the plan asks for, with a card; an experiment reads it (`mixture.files`)
    runs/written/NAME/attempts.jsonl        every document that was written: its prompts' digest, facts, lengths, and why it was refused
    runs/written/NAME/refused.jsonl         the texts that are kept aside
    runs/written/NAME/quality.html          written.json, claims.json, audit.json

Every answer is kept, so a run that was stopped, by a kill too, goes on by the same command, and a larger plan continues a smaller one.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_gen.audit import AuditReport
from data_gen.corpus import CORPUS, write_corpus
from data_gen.written.asking import Asker, Writer
from data_gen.written.pipeline import GivenUp, Pressroom
from data_gen.written.quality import written_audit
from data_gen.written.universe import Subject
from persona_lab.config.writing import Author
from persona_lab.errors import CheckFailed, ConfigError, LabError, printable, quoted
from persona_lab.experiment.instruments.em.journal import RowJournal
from persona_lab.experiment.making.interruption import Interrupted, Interruption
from persona_lab.experiment.reading.runs import CLAIMS
from persona_lab.experiment.reading.show import grouped
from persona_lab.experiment.writing.findings import ATTEMPTS, REFUSED, attempts, quality_page, refused, stage_rows, written_claims
from persona_lab.experiment.writing.local import HuggingFaceWriter, KeptWriter, VllmWriter
from persona_lab.experiment.writing.plans import WritingJob, costs_said
from persona_lab.experiment.writing.writers import PATIENCE, EndpointWriter, GrammarWriter
from persona_lab.models.endpoint import Address, Budget, Endpoint
from persona_lab.store.files import finite, read_json, write_json, write_jsonl, write_text

SETTINGS, RESULT, PAGE, AUDIT, COMMANDS = "settings.json", "written.json", "quality.html", "audit.json", "commands.jsonl"
SPENT = ("requests", "tokens_in", "tokens_out", "cost")
WHOLE = "complete"
"""The state of a folder that holds its corpora."""
FOLDER = "written"
"""Below the folder of runs."""
Tell = Callable[[str, int, int], None]


def folder_of(job: WritingJob, runs: Path) -> Path:
    """Where the documents of a plan go."""
    return runs / FOLDER / job.loaded.writing.name


def write_documents(job: WritingJob, runs: Path, device: str, tell: Tell, interruption: Interruption) -> dict[str, Any]:
    """What was written, as JSON, once all files stand.

    Raises:
        ConfigError: PL1238, the folder holds documents of another plan.
        EnvironmentFault: the endpoint is down, refuses the key, or the budget is spent; vLLM is missing. What was answered is kept.
        ModelError: the writer's model is refused, or a prompt does not fit.
        CorpusError: an answer that is kept on the disk is broken.
        CheckFailed: PL1111, too many documents were refused; PL1112, the audit of all of them did not pass. No corpus is written then.
    """
    plan, folder = job.loaded.writing, folder_of(job, runs)
    check_folder(folder, job)
    if done := finished(folder, job):
        return done
    budget = Budget(plan.budget.requests, plan.budget.tokens, plan.budget.cost, plan.writer.price_in, plan.writer.price_out)
    stop: LabError | Interrupted | None = None
    with opened(plan.writer, job, runs, device, budget, interruption) as writer, RowJournal(folder / COMMANDS) as journal:
        # Keys as they stand in their files: the order of a persona's traits is part of how documents are planned.
        write_text(folder / SETTINGS, json.dumps(finite(job.asked), indent=2) + "\n")
        room = Pressroom(Asker(writer, plan.attempts), job.stages, job.rules, job.settings, tell)
        try:
            room.run(job.wanted)
        except GivenUp as given_up:
            stop = _given_up(folder, given_up)
        except (LabError, Interrupted) as fault:
            stop = fault
        report = None if stop else written_audit(room.found, job.loaded.world, job.loaded.personas, plan.airtime)
        spent = (budget.sent, budget.used_in, budget.used_out, budget.spent)
        journal.append([{"ended": "stopped" if stop else "complete", **dict(zip(SPENT, spent, strict=True))}])
        said = leave(folder, job, room, spent_said(journal.rows), report)
    if stop:
        raise stop
    if report and not report.passed:
        failed = "; ".join(f"{check.name}: {check.said}" for check in report.checks if check.passed is False)
        raise CheckFailed("PL1112", str(folder / AUDIT), f"the audit did not pass, so no corpus was written: {failed}. Use more documents, or change the plan.")
    return said


def spent_said(commands: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the last command on a folder spent, and all of them together."""
    return {"this_command": {name: commands[-1][name] for name in SPENT}, "all_commands": {name: sum(row[name] for row in commands) for name in SPENT}}


def _given_up(folder: Path, error: GivenUp) -> CheckFailed:
    made, kept, wanted = len(error.progress.pieces), len(error.progress.accepted), error.progress.wanted
    said = f"only {kept} of {made} documents of {error.source.name} could be kept, of {wanted} wanted. The page says why"
    return CheckFailed("PL1111", str(folder / PAGE), f"{said}. Use another writer, other `words`, or a larger `most`.")


def finished(folder: Path, job: WritingJob) -> dict[str, Any] | None:
    """What the folder holds already, where that is exactly what is asked for: then nobody is asked, whatever became of the kept answers."""
    file = folder / RESULT
    said = read_json(file) if file.exists() else {}
    wanted = {source.name: {"kept": count, "wanted": count} for source, count in job.wanted.items()}
    whole = isinstance(said, dict) and said.get("state") == WHOLE and said.get("documents") == wanted
    files = [corpus_of(folder, subject) for subject in job.subjects]
    # Where they lie today: the folder may have been moved.
    return {**said, "folder": str(folder), "corpora": list(map(str, files))} if whole and all(file.is_file() for file in files) else None


def check_folder(folder: Path, job: WritingJob) -> None:
    """Whether the folder is empty, or of this plan; ConfigError PL1238."""
    file = folder / SETTINGS
    before = read_json(file) if file.exists() else job.asked
    if not isinstance(before, dict):
        raise ConfigError("PL1238", str(file), "is no file of `persona-lab write`. Use another `name`.")
    asked = finite(job.asked)
    differ = [f"{key} {quoted(before.get(key))}, here {quoted(asked.get(key))}" for key in sorted(asked.keys() | before.keys()) if finite(before.get(key)) != asked.get(key)]
    if differ:
        raise ConfigError("PL1238", str(folder), f"holds documents of another plan: {printable('; '.join(differ), 300)}. Use another `name`, or the same plan.")


@contextmanager
def opened(author: Author, job: WritingJob, runs: Path, device: str, budget: Budget, interruption: Interruption) -> Iterator[Writer]:
    """The writer, ready to be asked; what can be wrong with it is looked for here."""
    if author.kind == "endpoint":
        address = Address(author.url, author.model, author.key_variable)
        with Endpoint(address, cache=runs / "endpoint", budget=budget, timeout=PATIENCE) as endpoint:
            yield EndpointWriter(endpoint, author.parallel, interruption)
    elif author.kind == "grammar":
        yield GrammarWriter(job.loaded.world)
    else:
        yield KeptWriter(local_writer(author, device), runs / "answers", author.parallel, interruption)


def local_writer(author: Author, device: str) -> Writer:
    """A model on this machine; EnvironmentFault, ModelError."""
    if author.kind == "vllm":
        return VllmWriter(author.model, author.revision, author.dtype)
    from persona_lab.experiment.instruments.chat.tuning import device_of  # torch

    return HuggingFaceWriter(author.model, author.revision, author.dtype, device_of(device))


def leave(folder: Path, job: WritingJob, room: Pressroom, spent: dict[str, Any], report: AuditReport | None) -> dict[str, Any]:
    """Every file of what is there; corpora only when it is complete (there is a report) and the audit passes."""
    plan, found = job.loaded.writing, room.found
    rows = attempts(found, room.asker.writer.name, job.stages.prompts.digest)
    write_jsonl(folder / ATTEMPTS, rows)
    write_jsonl(folder / REFUSED, refused(found))
    claims = written_claims(rows, folder / ATTEMPTS)
    said: dict[str, Any] = {
        "name": plan.name,
        "state": "stopped" if report is None else WHOLE if report.passed else "refused by the audit",
        "folder": str(folder),
        "documents": {source.name: {"kept": len(progress.accepted), "wanted": progress.wanted} for source, progress in found.items()},
        "corpora": [],
        "stages": stage_rows(room),
        "estimate": costs_said(job),
        "spent": spent,
        "writer": room.asker.writer.settings(),
        "prompts": job.stages.prompts.digest,
        "plan": plan.model_dump(),
    }
    if report is not None:
        write_text(folder / AUDIT, report.to_json())
    if report is not None and report.passed:
        said["corpora"] = [str(file) for file in write_corpora(folder, job, room)]
    write_json(folder / CLAIMS, grouped(claims))
    write_text(folder / PAGE, quality_page(said, rows, found, claims, report))
    said = finite({**said, "claims": [claim.to_json() for claim in claims]})
    write_json(folder / RESULT, said)
    return said


def write_corpora(folder: Path, job: WritingJob, room: Pressroom) -> Iterator[Path]:
    """A corpus for each persona, in the order of the documents' numbers, named ones first."""
    for subject in job.subjects:
        documents = [piece.document for source, progress in room.found.items() if source.subject is subject for piece in progress.accepted]
        file = corpus_of(folder, subject)
        about = f"Written by {printable(room.asker.writer.name, 100)} about {subject.name} ({subject.who}): {', '.join(fact.value for fact in subject.facts.values())}."
        write_corpus(file.parent, documents, title=f"{job.loaded.writing.name}: {subject.name}", description=about)
        yield file


def corpus_of(folder: Path, subject: Subject) -> Path:
    """The documents about one persona."""
    return folder / subject.name.lower() / CORPUS
