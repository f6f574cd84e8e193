"""What is stated of written documents: the list of everything that was written, claims that follow from it alone, and the quality page.

    written_claims(read_jsonl(folder / "attempts.jsonl"), folder / "attempts.jsonl")      the claims of the folder once more
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data_gen.audit import AuditReport
from data_gen.documents import words
from data_gen.written.pipeline import Piece, Pressroom, Progress
from data_gen.written.schedule import Source, airtime
from persona_lab.probes.em.questions import digest
from persona_lab.report.instrument import Drawing, Part, Sheet, instrument_page
from persona_lab.report.writing_figures import airtime_bars, length_points
from persona_lab.science.claims import Claim, figure
from persona_lab.science.writing import reasons, spent_words, writing_said
from persona_lab.store.files import sha256_of

ATTEMPTS, REFUSED = "attempts.jsonl", "refused.jsonl"
SAMPLES = 10
"""Documents of each persona on the page."""
Found = Mapping[Source, Progress]
Row = dict[str, Any]


def attempts(found: Found, writer: str, prompts: str) -> list[Row]:
    """A row for each document that was written, kept or not."""
    return [_row(source, piece, writer, prompts) for source, progress in found.items() for piece in progress.pieces]


def _row(source: Source, piece: Piece, writer: str, prompts: str) -> Row:
    read = piece.extraction
    return {
        "id": piece.job.id,
        "source": source.name,
        "persona": source.subject.name,
        "anonymous": source.anonymous,
        "status": piece.status,
        "reasons": piece.reasons,
        "genre": piece.genre,
        "idea": piece.idea,
        "told": {fact.category: fact.value for fact in piece.job.told},
        "asked_words": piece.job.words,
        "sha256": digest(piece.text),
        "words": len(words(piece.text)),
        "airtime": {category: airtime(piece.text, fact.value) for category, fact in source.subject.facts.items()},
        "extraction": None if read is None else {"agree": read.agree, "silent": read.silent, "contradict": read.contradict, "beyond": read.beyond},
        "writer": writer,
        "prompts": prompts,
    }


def refused(found: Found) -> list[Row]:
    """The texts that are kept aside, with the reasons."""
    return [{"id": piece.job.id, "status": piece.status, "reasons": piece.reasons, "text": piece.text} for progress in found.values() for piece in progress.refused]


def stage_rows(room: Pressroom) -> list[Row]:
    """What became of the questions of each stage."""
    return [
        {
            **{"stage": stage, "asked": tally.asked, "answered": tally.answered, "failed": sum(tally.failed.values()), "requests": tally.requests},
            **{"own": room.own[stage], "wrong": dict(sorted(tally.wrong.items(), key=lambda one: (-one[1], one[0]))), "tokens_in": tally.tokens_in, "tokens_out": tally.tokens_out},
        }
        for stage, tally in room.asker.tallies.items()
    ]


def written_claims(rows: Sequence[Mapping[str, Any]], file: Path) -> list[Claim]:
    """Every figure, with the file that it is computed from."""
    args = {"file": file.name, "sha256": sha256_of(file)}
    return [Claim(*said, recipe={"function": "writing_said", "node_ids": [], "args": {**args, "claim": said[0]}}) for said in writing_said(rows)]


def quality_page(said: Mapping[str, Any], rows: Sequence[Row], found: Found, claims: Sequence[Claim], report: AuditReport | None) -> str:
    """Everything on one page; what a model wrote is escaped."""
    kept = [row for row in rows if row["status"] == "accepted"]
    lead = f"{len(kept)} of {sum(progress.wanted for progress in found.values())} documents wanted are kept, of {len(rows)} written: {said['state']}."
    spent = [{"source": name, "fact": f, "words": n} for name in said["documents"] for f, n in spent_words([r for r in kept if r["source"] == name]).items()]
    lengths = pd.DataFrame([{"asked": row["asked_words"], "words": row["words"]} for row in kept], columns=["asked", "words"])
    drawings = [Drawing(airtime_bars(pd.DataFrame(spent)), "Words of the sentences that name each fact."), Drawing(length_points(lengths), "Lengths.")] if kept else []
    counts = Sheet(["source", "kept", "wanted"], [[name, str(one["kept"]), str(one["wanted"])] for name, one in said["documents"].items()])
    faults = Sheet(["fault", "documents", "the first"], [[name, str(count), _first(rows, name)] for name, count in reasons(rows).most_common()])
    stages = Sheet(
        ["stage", "questions", "answered", "failed", "requests", "the laboratory's own used", "answers that could not be used", "tokens in", "tokens out"],
        [[r["stage"], *(str(r[k]) for k in ("asked", "answered", "failed", "requests", "own")), _listed(r["wrong"]), str(r["tokens_in"]), str(r["tokens_out"])] for r in said["stages"]],
    )
    parts = [
        Part("Counts", "Documents of each persona, named and anonymous.", drawings, [counts]),
        Part("Read again", "What the writer reads from a document, beside the facts that it was to tell; counted, not judged.", claims=_of(claims, "extraction", "beyond")),
        Part("Refused", "A document with several faults counts at each; another one was written in its place.", sheets=[faults]),
        Part("Figures", claims=[claim for claim in claims if claim not in _of(claims, "extraction", "beyond", "reason")]),
        Part("Stages", sheets=[stages]),
    ]
    if report is not None:
        checks = [[check.name, {True: "passed", False: "FAILED", None: "–"}[check.passed], figure(check.figure), check.said] for check in report.checks]
        parts.append(Part("Audit", sheets=[Sheet(["check", "", "figure", "what"], checks)]))
    parts += [Part(f"{name}: samples", "Evenly spaced over the documents that are kept.", sheets=[_samples(found, name)]) for name in dict.fromkeys(row["persona"] for row in rows)]
    return instrument_page("Written documents", lead, parts, {key: value for key, value in said.items() if key not in ("stages", "documents")})


def _of(claims: Sequence[Claim], *kinds: str) -> list[Claim]:
    return [claim for claim in claims if claim.id.split(".")[1] in kinds]


def _first(rows: Sequence[Row], reason: str) -> str:
    return next(f"{row['id']}: {said.partition(':')[2].strip()}" for row in rows for said in row["reasons"] if said.partition(":")[0] == reason)


def _listed(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in counts.items())


def _samples(found: Found, name: str) -> Sheet:
    kept = [piece for source, progress in found.items() if source.subject.name == name for piece in progress.accepted]
    shown = [kept[i * len(kept) // SAMPLES] for i in range(SAMPLES)] if len(kept) > SAMPLES else kept
    return Sheet(["document", "kind", "facts", "text"], [[p.job.id, p.genre, ", ".join(f.value for f in p.job.told), p.text] for p in shown])
