"""Documents that were written, through the same rounds, rules and judgements once more, without a writer.

    press = Replay(kept, stages, rules, settings)      kept: the id of each document to what only the writer could say of it
    press.run(wanted)                                  what is planned, refused, counted and kept, computed again from the texts
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_gen.written.asking import Answer, Asker, Request, Tally
from data_gen.written.checks import Extraction, Rules
from data_gen.written.pipeline import UNREADABLE, Piece, Pressroom, Settings
from data_gen.written.schedule import Job, Source
from data_gen.written.stages import Stages


@dataclass(frozen=True)
class Kept:
    """What was kept of one document."""

    genre: str
    idea: str
    text: str
    failed: tuple[str, ...] = ()
    """Why no answer gave a text; empty: there is one."""
    read: Extraction | None = None
    """What the writer read from it."""
    unread: tuple[str, ...] = ()
    """Why nothing could be read from it, where it was asked."""


@dataclass(frozen=True)
class FormerWriter:
    """Who wrote: its name and settings remain, and nothing is asked of it."""

    name: str
    made_with: Mapping[str, object]

    def settings(self) -> dict[str, object]:
        """As they were."""
        return dict(self.made_with)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """A replay asks nothing, so there is nothing to answer."""
        assert not requests, "a document is taken from what was kept"
        return []


class Unwritten(Exception):
    """A document is planned of which nothing was kept: its id."""


class Replay(Pressroom):
    """A pressroom that takes texts, and what was read from them, from what was kept."""

    def __init__(self, kept: Mapping[str, Kept], writer: FormerWriter, stages: Stages, rules: Rules, settings: Settings) -> None:
        super().__init__(Asker(writer, 1), stages, rules, settings)
        self.kept = kept

    def count(self, tallies: Mapping[str, Tally], own: Mapping[str, int]) -> None:
        """Takes over what was counted of questions; how many documents were asked for, revised and read from is counted again."""
        self.asker.tallies |= tallies
        self.own.update(own)
        pieces = [piece for progress in self.found.values() for piece in progress.pieces]
        for stage in ("document", "revise"):
            whole = [piece for piece in pieces if not (piece.failed and blamed(piece, stage))]
            self._recount(stage, len(pieces), len(pieces) - len(whole))
            pieces = whole
        unread = sum(blamed(piece, UNREADABLE) for piece in pieces)
        self._recount("extract", unread + sum(piece.extraction is not None for piece in pieces), unread)

    def _recount(self, stage: str, asked: int, failed: int) -> None:
        if stage in self.asker.tallies:
            tally = self.asker.tallies[stage]
            tally.asked, tally.answered, tally.failed = asked, asked - failed, Counter({stage: failed})

    def _universes(self, sources: Sequence[Source]) -> None:
        """Nobody is asked for a background."""

    def _drafted(self, jobs: Sequence[Job]) -> list[Piece]:
        """Raises Unwritten."""
        if missing := [job.id for job in jobs if job.id not in self.kept]:
            raise Unwritten(missing[0])
        kept = [(job, self.kept[job.id]) for job in jobs]
        return [Piece(job, one.genre, one.idea, one.text, reasons=list(one.failed), failed=bool(one.failed)) for job, one in kept]

    def _extract(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            one = self.kept[piece.job.id]
            piece.extraction = one.read
            piece.reasons += one.unread if one.read is None else one.read.faults


def blamed(piece: Piece, fault: str) -> bool:
    """Whether a document has a fault of this class."""
    return any(reason.partition(":")[0] == fault for reason in piece.reasons)
