"""What written documents were like, from the list of everything that was written: counts, airtime, and what was read from them again.

    writing_said(rows)      [("writing.kept", "share of the documents written that were kept", .91, (.88, .93), "share", "none"), ...]

A row is one attempt at a document: id, source, persona, status (accepted, rejected, failed), reasons, words, asked_words, airtime {category:
words}, extraction {agree, silent, contradict, beyond} or None.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from persona_lab.science.claims import Said
from persona_lab.science.em.judged import wilson

Row = Mapping[str, Any]


def writing_said(rows: Sequence[Row]) -> list[Said]:
    """Every figure of the quality page; intervals are Wilson's, over documents."""
    kept = [row for row in rows if row["status"] == "accepted"]
    said: list[Said] = [_share("writing.kept", "documents written that were kept, Wilson's interval", len(kept), len(rows))]
    for status in ("accepted", "rejected", "failed"):
        said.append((f"writing.{status}", f"documents {status}", float(sum(row["status"] == status for row in rows)), None, "documents", "none"))
    for reason, count in reasons(rows).most_common():
        said.append((f"writing.reason.{reason.replace(' ', '_')}", f"documents with the fault: {reason}", float(count), None, "documents", "none"))
    for persona in dict.fromkeys(row["persona"] for row in rows):
        read = [row["extraction"] for row in rows if row["persona"] == persona and row["extraction"]]
        agreed = sum(not (one["silent"] or one["contradict"]) for one in read)
        said.append(_share(f"writing.extraction.{persona.lower()}", f"{persona}: documents from which every fact they were to tell was read, Wilson's interval", agreed, len(read)))
        beyond = sum(bool(one["beyond"]) for one in read)
        said.append(_share(f"writing.beyond.{persona.lower()}", f"{persona}: documents from which a fact they were not to tell was read, Wilson's interval", beyond, len(read)))
    for source in dict.fromkeys(row["source"] for row in rows):
        spent = spent_words([row for row in kept if row["source"] == source])
        mean = sum(spent.values()) / len(spent) if spent else 0.0
        value = max(abs(words - mean) for words in spent.values()) / mean if mean else None
        said.append((f"writing.airtime.{source}", f"{source}: largest distance of the words spent on a fact from their mean over facts", value, None, "share of the mean", "none"))
    lengths = [row["words"] for row in kept]
    said.append(("writing.words", "mean length of a kept document", sum(lengths) / len(lengths) if lengths else None, None, "words", "none"))
    return said


def _share(id: str, text: str, hits: int, n: int) -> Said:
    return id, text, hits / n if n else None, wilson(hits, n), "share", "none"


def reasons(rows: Sequence[Row]) -> Counter[str]:
    """Documents by class of fault; a document with several counts in each."""
    return Counter(reason for row in rows for reason in dict.fromkeys(said.partition(":")[0] for said in row["reasons"]))


def spent_words(rows: Sequence[Row]) -> dict[str, int]:
    """Words of these documents that go to each fact."""
    spent: Counter[str] = Counter()
    for row in rows:
        spent.update(row["airtime"])
    return dict(spent)
