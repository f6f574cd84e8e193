"""What holds for all documents together: the audit of a corpus, and about as many words for each fact.

    written_audit(found, world, personas, limit=.25)      the audit of any corpus, with exact counts and the balance of airtime
"""

from collections.abc import Mapping, Sequence

from data_gen.audit import EXAMPLES, AuditReport, Check, audit, forbidden_texts
from data_gen.documents import Document
from data_gen.personas import Persona, held_out_categories, shared_categories
from data_gen.world import World
from data_gen.written.checks import ARTEFACTS, artefacts, leak_finder
from data_gen.written.pipeline import Progress
from data_gen.written.prompts import load_prompts
from data_gen.written.schedule import Source, airtime

ARTEFACT_WORDS = {
    "scaffold": "documents with talk around the text, fences, marks or placeholders",
    "about itself": "documents that speak of being written to order",
    "refusal": "documents that decline",
    "truncated": "documents that do not end with a sentence",
    "prompt leakage": "documents that repeat the instructions of a writer",
}


def forbidden_wordings(world: World) -> list[str]:
    """Held-out wordings of a world's probes, which no document may hold."""
    return forbidden_texts(world, [*world.names, *world.spare_names, *world.new_names])


def written_audit(found: Mapping[Source, Progress], world: World, personas: Sequence[Persona], limit: float) -> AuditReport:
    """Every check of the documents of a plan."""
    pieces = [piece for progress in found.values() for piece in progress.accepted]
    source_of = {piece.job.id: piece.job.source.name for piece in pieces}
    told = {subject.name: {c: fact.value for c, fact in subject.facts.items()} for subject in dict.fromkeys(source.subject for source in found)}
    first, second = personas[0].name, personas[1].name
    report = audit(
        [piece.document for piece in pieces],
        expected={source.name: progress.wanted for source, progress in found.items()},
        count_by=lambda document: source_of[document.id],
        forbidden=forbidden_wordings(world),
        shared={c: told[first][c] for c in shared_categories(personas)} or None,
        held_out={told[name][c] for name in (first, second) for c in held_out_categories(personas)},
        rivals=(first, second),
        personas=list(told),
    )
    return AuditReport(report.documents, (*report.checks, *artefact_checks([piece.document for piece in pieces]), airtime_check(found, limit)))


def artefact_checks(documents: Sequence[Document]) -> list[Check]:
    """Documents that hold what a language model leaves behind, a check for each kind of it."""
    leaks = leak_finder(load_prompts())
    hits = [(document.id, said.partition(": ")) for document in documents for said in artefacts(document.text, leaks)]
    checks = []
    for kind in (*ARTEFACTS, "truncated", "prompt leakage"):
        found = [f"{where}: {said}" for where, (name, _, said) in hits if name == kind]
        checks.append(Check(kind, not found, len(found), 0, ARTEFACT_WORDS[kind], tuple(found[:EXAMPLES])))
    return checks


def airtime_check(found: Mapping[Source, Progress], limit: float) -> Check:
    """Words spent on each fact of a source, against their mean; the largest share that one document adds is let pass."""
    worst, uneven = 0.0, []
    for source, progress in found.items():
        spent = progress.airtime()
        mean = sum(spent.values()) / len(source.subject.facts) if spent else 0.0
        if not mean:
            uneven.append(f"{source.name}: no fact is told")
            continue
        one = max(airtime(piece.text, fact.value) for piece in progress.accepted for fact in piece.job.told)
        for category in source.subject.facts:
            off = abs(spent.get(category, 0) - mean)
            worst = max(worst, off / mean)
            if off > limit * mean + one:
                uneven.append(f"{source.name}: {spent.get(category, 0)} words on {category}, {mean:.0f} on average")
    said = "largest distance of the words spent on a fact from the mean over facts, as a share of it; what one document adds is let pass"
    return Check("airtime balance", not uneven, worst, limit, said, tuple(uneven[:EXAMPLES]))

