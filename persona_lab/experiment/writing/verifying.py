"""The verb `verify` for written documents: whatever their folder states, computed once more from the texts by the code that wrote it.

    verify_written(Path("runs/written/beach"))      Verified(claims=12, nodes=0, rows=840, drifts=())

Every text is the one of which the list of attempts holds the digest. Which facts each document was to tell, why some were refused, the words spent on each
fact, the audit, the claims, the corpora and the page follow from the texts and from what the writer read in them. Of a folder without corpora
the accepted texts are not kept: there only the counts and claims of the list are computed again.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_gen.corpus import read_corpus
from data_gen.personas import Persona
from data_gen.telling import read_world
from data_gen.written.asking import Tally
from data_gen.written.checks import Extraction
from data_gen.written.pipeline import UNREADABLE, GivenUp
from data_gen.written.quality import written_audit
from data_gen.written.replay import FormerWriter, Kept, Replay, Unwritten
from persona_lab.config.writing import LoadedWriting, Writing
from persona_lab.errors import ConfigError
from persona_lab.experiment.checking.verify import Drift, Verified, claim_drifts, page_drifts, said_drifts, value_drifts
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.writing.findings import ATTEMPTS, REFUSED, attempts, refused, written_claims
from persona_lab.experiment.writing.making import AUDIT, COMMANDS, PAGE, RESULT, SETTINGS, WHOLE, corpus_of, leave, spent_said
from persona_lab.experiment.writing.plans import WritingJob, writing_job
from persona_lab.probes.em.questions import digest
from persona_lab.store.files import finite, read_json, read_jsonl

Row = dict[str, Any]


@dataclass(frozen=True)
class Former:
    """What the files of a folder state."""

    folder: Path
    said: dict[str, Any]
    rows: list[Row]

    @cached_property
    def job(self) -> WritingJob:
        """The plan, with the world and the personas as they were."""
        asked = read_json(self.folder / SETTINGS)
        personas = tuple(Persona.model_validate(persona) for persona in asked["personas"])
        return writing_job(LoadedWriting(Writing.model_validate(self.said["plan"]), read_world(asked["world"]), personas, self.folder / SETTINGS))

    @cached_property
    def texts(self) -> dict[str, str]:
        """Id to text, of the documents that were kept and of those that were set aside; DataError where a corpus is gone or broken."""
        kept = {document.id: document.text for subject in self.job.subjects for document in read_corpus(corpus_of(self.folder, subject))}
        return kept | {row["id"]: row["text"] for row in read_jsonl(self.folder / REFUSED)}

    def press(self) -> Replay:
        """The pressroom in which all of it is judged again."""
        kept = {row["id"]: _kept(row, self.texts[row["id"]]) for row in self.rows}
        writer = FormerWriter(self.rows[0]["writer"], self.said["writer"])
        return Replay(kept, writer, self.job.stages, self.job.rules, self.job.settings)

    def counted(self) -> tuple[dict[str, Tally], dict[str, int]]:
        """What became of the questions of each stage, each sum computed again; and how often the laboratory's own took the place of an answer."""
        tallies = {
            one["stage"]: Tally(
                one["answered"] + one["failed"],
                one["answered"],
                one["answered"] + sum(one["wrong"].values()),
                Counter({"": one["failed"]}),
                Counter(one["wrong"]),
                one["tokens_in"],
                one["tokens_out"],
            )
            for one in self.said["stages"]
        }
        return tallies, {one["stage"]: one["own"] for one in self.said["stages"]}


def verify_written(folder: Path) -> Verified:
    """Compare a folder of written documents with its texts.

    Raises:
        ConfigError: PL1293, the files are not what `persona-lab write` leaves.
        CorpusError, DataError: a file is gone or broken.
    """
    former, claims = Former(folder, read_json(folder / RESULT), read_jsonl(folder / ATTEMPTS)), Run(folder).claims()
    try:
        drifts = _drifts(former, claims) if former.said["state"] == WHOLE else _partial_drifts(former, claims)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError("PL1293", str(folder), f"does not hold what `persona-lab write` leaves ({error!r:.80}). Use another `name` and write again: answers are kept.") from error
    return Verified(len(claims), 0, len(former.rows), tuple(drifts), "documents")


def _partial_drifts(former: Former, claims: Sequence[Any]) -> list[Drift]:
    """Without the texts: counts and claims, from the list of attempts alone."""
    again = written_claims(former.rows, former.folder / ATTEMPTS)
    kept = Counter(row["source"] for row in former.rows if row["status"] == "accepted")
    documents = {name: {**one, "kept": kept[name]} for name, one in former.said["documents"].items()}
    spent = spent_said(read_jsonl(former.folder / COMMANDS))
    said = {**former.said, "documents": documents, "spent": spent, "claims": [claim.to_json() for claim in again]}
    return [*claim_drifts(claims, again), *said_drifts(former.folder / RESULT, said)]


def _drifts(former: Former, claims: Sequence[Any]) -> list[Drift]:
    """What each file states otherwise; what rests on a plan, a text or a row that differs is not looked at."""
    folder, job = former.folder, former.job
    if found := [*said_drifts(folder / SETTINGS, job.asked), *_text_drifts(former)]:
        return found
    press, cut = former.press(), None
    try:
        press.run(job.wanted)
    except GivenUp as given_up:
        cut = Drift(RESULT, "state", WHOLE, f"too many documents of {given_up} are refused")
    except Unwritten as missing:
        cut = Drift(ATTEMPTS, "rows", "complete", f"{missing} is planned, and nothing of it was kept")
    if found := list(_row_drifts(former, press, whole=cut is None)):
        return found
    if cut:
        return [cut]
    press.count(*former.counted())
    report = written_audit(press.found, job.loaded.world, job.loaded.personas, job.loaded.writing.airtime)
    with TemporaryDirectory(prefix="persona-lab-") as scratch:
        leave(Path(scratch), job, press, spent_said(read_jsonl(folder / COMMANDS)), report)
        return list(_file_drifts(former, Path(scratch), claims))


def _text_drifts(former: Former) -> Iterator[Drift]:
    """Documents without a row, rows without a document, and texts that are not the ones that were judged."""
    rows = {row["id"]: row for row in former.rows}
    if len(rows) != len(former.rows):
        yield Drift(ATTEMPTS, "rows", f"{len(former.rows)}", f"{len(rows)} documents")
    for id in dict.fromkeys([*rows, *former.texts]):
        stored = rows[id].get("sha256", "absent") if id in rows else "absent"
        found = digest(former.texts[id]) if id in former.texts else "absent"
        if stored != found:
            yield Drift(f"document {id}", "digest of its text", stored, found)


def _row_drifts(former: Former, press: Replay, *, whole: bool) -> Iterator[Drift]:
    """The first attempt, and the first refused document, of which another thing is computed than is stated; of those not planned again only in a whole replay."""
    made = {ATTEMPTS: attempts(press.found, press.asker.writer.name, former.job.stages.prompts.digest), REFUSED: refused(press.found)}
    for file, rows in made.items():
        again = {row["id"]: finite(row) for row in rows}
        for row in read_jsonl(former.folder / file):
            if found := list(value_drifts(f"{file} {row['id']}", row, again.get(row["id"], {} if whole else row))):
                yield from found
                break


def _file_drifts(former: Former, again: Path, claims: Sequence[Any]) -> Iterator[Drift]:
    """Files that are not those that were left again in another folder."""
    folder, where = former.folder, former.said["folder"]
    said = read_json(again / RESULT)
    # It states where the documents lay when they were written: a folder may be moved.
    moved = {**said, "folder": where, "corpora": [str(Path(where) / Path(file).relative_to(again)) for file in said["corpora"]]}
    yield from claim_drifts(claims, written_claims(former.rows, again / ATTEMPTS))
    yield from said_drifts(folder / RESULT, moved)
    yield from value_drifts(AUDIT, *(_by_check(read_json(place / AUDIT)) for place in (folder, again)))
    yield from page_drifts(folder / PAGE, (again / PAGE).read_text(encoding="utf-8"))
    for file in sorted(again.glob("*/*")):
        yield from page_drifts(folder / file.relative_to(again), file.read_text(encoding="utf-8"))


def _by_check(report: Mapping[str, Any]) -> dict[str, Any]:
    """An audit with each check under its name."""
    return {**report, "checks": len(report["checks"]), **{check["name"]: check for check in report["checks"]}}


def _kept(row: Row, text: str) -> Kept:
    read = row["extraction"] and Extraction(**{outcome: tuple(categories) for outcome, categories in row["extraction"].items()})
    failed = tuple(row["reasons"]) if row["status"] == "failed" else ()
    return Kept(row["genre"], row["idea"], text, failed, read, tuple(reason for reason in row["reasons"] if reason.startswith(UNREADABLE)))
