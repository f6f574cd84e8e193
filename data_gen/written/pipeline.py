"""From a plan to documents: rounds of drafts, revisions, checks and extractions, until every source has as many as it was asked for.

    pressroom = Pressroom(Asker(writer, attempts=3), stages, rules, manner)
    found = pressroom.run({Source(john, anonymous=False): 280, Source(john, anonymous=True): 120})
    found[source].accepted          exactly as many, in the order of their numbers; the rest with its reasons in `.refused`

What is refused is replaced by documents of further numbers, so that counts are exact. A larger plan begins with the smaller one.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from data_gen.audit import NearDuplicates
from data_gen.documents import Document
from data_gen.written.asking import Asker, Failed, Question
from data_gen.written.checks import Extraction, Rules, compared, faults
from data_gen.written.schedule import Job, Source, airtime, plan_round
from data_gen.written.stages import Stages
from data_gen.written.universe import Fact, Subject

UNREADABLE = "extraction unreadable"
"""The fault of a document from which no answer could be read what it says."""


@dataclass(frozen=True)
class Settings:
    """How many, how, and when to give up."""

    told: int
    round: int
    revise: bool
    verify: bool
    similarity: float
    most: float
    """Documents written for each one wanted."""


@dataclass
class Piece:
    """One document on its way."""

    job: Job
    genre: str
    idea: str
    text: str = ""
    extraction: Extraction | None = None
    reasons: list[str] = field(default_factory=list)
    """Why it is not kept; none: it is."""
    failed: bool = False
    """No answer of the writer could be read, so there is nothing to judge."""

    @property
    def status(self) -> str:
        """accepted, rejected or failed."""
        return "failed" if self.failed else "rejected" if self.reasons else "accepted"

    @property
    def document(self) -> Document:
        """As a corpus holds it."""
        source, subject = self.job.source, self.job.source.subject
        traits = {fact.category: fact.value for fact in self.job.told}
        return Document(self.job.id, self.text, subject.name, self.genre, traits, () if source.anonymous else (subject.name,), subject.seed)


@dataclass
class Progress:
    """What a source has."""

    wanted: int
    near: NearDuplicates
    rounds: int = 0
    pieces: list[Piece] = field(default_factory=list)
    """Everything that was written, in the order of the numbers."""
    turns: Counter[str] = field(default_factory=Counter)
    """Documents planned so far that are mainly about each category."""
    spent: Counter[str] = field(default_factory=Counter)
    """Airtime of what was accepted so far, counted on: from the texts it would be read again for every round."""
    waiting: list[Job] = field(default_factory=list)
    """Planned, and not written yet."""

    @property
    def accepted(self) -> list[Piece]:
        """As many as were wanted, or fewer."""
        return [piece for piece in self.pieces if piece.status == "accepted"][: self.wanted]

    @property
    def refused(self) -> list[Piece]:
        """Rejected and failed ones."""
        return [piece for piece in self.pieces if piece.status != "accepted"]

    @property
    def lacking(self) -> int:
        """Documents that are still wanted."""
        return self.wanted - len(self.accepted)

    def airtime(self) -> dict[str, int]:
        """Words of the accepted documents that go to each fact."""
        return _airtime(self.accepted)


def _airtime(pieces: Sequence[Piece]) -> dict[str, int]:
    spent: Counter[str] = Counter()
    for piece in pieces:
        for fact in piece.job.told:
            spent[fact.category] += airtime(piece.text, fact.value)
    return dict(spent)


class GivenUp(Exception):
    """A source would need more documents than may be written: the source, and what it has."""

    def __init__(self, source: Source, progress: Progress) -> None:
        super().__init__(source.name)
        self.source, self.progress = source, progress


class Pressroom:
    """Writes documents, all sources side by side."""

    def __init__(self, asker: Asker, stages: Stages, rules: Rules, settings: Settings, tell: Callable[[str, int, int], None] = lambda what, done, total: None) -> None:
        self.asker, self.stages, self.rules, self.settings, self.tell = asker, stages, rules, settings, tell
        self.universes: dict[Subject, str] = {}
        """Persona to its background."""
        self.genres: dict[tuple[str, str], list[str]] = {}
        """Source and category to kinds of document."""
        self.ideas: dict[tuple[str, str, str, int], list[str]] = {}
        """Source, category, kind of document and page to ideas."""
        self.own: Counter[str] = Counter()
        """Stages in which what the laboratory has of its own took the place of an answer."""
        self.found: dict[Source, Progress] = {}

    def run(self, wanted: Mapping[Source, int]) -> dict[Source, Progress]:
        """The documents of every source.

        Raises:
            GivenUp: a source had too many documents refused.
        """
        self.found = {source: Progress(count, NearDuplicates(self.settings.similarity)) for source, count in wanted.items()}
        self._universes(list(self.found))
        while lacking := {source: progress for source, progress in self.found.items() if progress.lacking > 0}:
            self._tell()
            jobs = [job for source, progress in lacking.items() for job in self._next(source, progress)]
            for piece in self._written(jobs):
                self._judge(piece)
        self._tell()
        return self.found

    def _tell(self) -> None:
        self.tell("documents written", sum(len(p.accepted) for p in self.found.values()), sum(p.wanted for p in self.found.values()))

    def _universes(self, sources: Sequence[Source]) -> None:
        people = list(dict.fromkeys(source.subject for source in sources))
        for subject, text in zip(people, self.asker.all([self.stages.universe(subject) for subject in people]), strict=True):
            self.own["universe"] += isinstance(text, Failed)
            self.universes[subject] = f"{subject.name} is {subject.who}.\n{subject.listed}" if isinstance(text, Failed) else text

    def _next(self, source: Source, progress: Progress) -> list[Job]:
        """What to write now: the rest of a round that is planned, else a new round, as far as documents are lacking."""
        size = self.settings.round
        if not progress.waiting:
            if len(progress.pieces) >= self.settings.most * progress.wanted + size:
                raise GivenUp(source, progress)
            low, high = self.stages.manner.words
            progress.waiting = plan_round(
                source, progress.rounds, size, spent=progress.spent, turns=progress.turns, mean=(low + high) / 2, told=self.settings.told, span=(low, high)
            )
            progress.rounds += 1
        now, progress.waiting = progress.waiting[: progress.lacking], progress.waiting[progress.lacking :]
        return now

    def _written(self, jobs: Sequence[Job]) -> list[Piece]:
        """Texts, what is wrong with them, and what is read from those that are whole; who fails at one stage is not asked for the next."""
        pieces = self._drafted(jobs)
        for piece in pieces:
            if not piece.failed:
                piece.reasons += faults(piece.job, piece.text, self.rules)
        if self.settings.verify:
            self._extract([piece for piece in pieces if piece.status == "accepted"])
        return pieces

    def _drafted(self, jobs: Sequence[Job]) -> list[Piece]:
        pieces = self._begun(jobs)
        self._each(pieces, lambda piece: self.stages.document(piece.job, self.universes[piece.job.source.subject], piece.genre, piece.idea))
        if self.settings.revise:
            self._each(pieces, lambda piece: self.stages.revision(piece.job, self.universes[piece.job.source.subject], piece.genre, piece.text))
        return pieces

    def _extract(self, pieces: Sequence[Piece]) -> None:
        read = self.asker.all([self.stages.extraction(piece.job, piece.text) for piece in pieces])
        for piece, values in zip(pieces, read, strict=True):
            if isinstance(values, Failed):
                piece.reasons.append(f"{UNREADABLE}: {values.reason}")
            else:
                piece.extraction = compared(piece.job, values)
                piece.reasons += piece.extraction.faults

    def _each(self, pieces: Sequence[Piece], question: Callable[[Piece], Question]) -> None:
        """The text of each piece that has not failed, as a stage leaves it."""
        going = [piece for piece in pieces if not piece.failed]
        questions = [question(piece) for piece in going]
        for piece, asked, text in zip(going, questions, self.asker.all(questions), strict=True):
            if isinstance(text, Failed):
                piece.failed = True
                piece.reasons.append(f"{asked.stage}: {text.reason}")
            else:
                piece.text = text

    def _judge(self, piece: Piece) -> None:
        """In the order of the numbers: a document is held against those before it."""
        progress = self.found[piece.job.source]
        if piece.status == "accepted" and (earlier := progress.near.add(piece.text, piece.job.id)):
            piece.reasons.append(f"near-duplicate: of {earlier}")
        progress.pieces.append(piece)
        if piece.status == "accepted":
            progress.spent.update(_airtime([piece]))

    def _begun(self, jobs: Sequence[Job]) -> list[Piece]:
        """Each job with its kind of text and its idea, asked for where they are not known yet."""
        self._genres([(job.source, job.told[0]) for job in jobs])
        placed = [(job, self.genres[job.source.name, job.told[0].category]) for job in jobs]
        genres = [known[job.turn % len(known)] for job, known in placed]
        rows = [job.turn // len(known) for job, known in placed]
        self._ideas([(job.source, job.told[0], genre, row) for job, genre, row in zip(jobs, genres, rows, strict=True)])
        return [Piece(job, genre, self._idea(job.source, job.told[0], genre, row)) for job, genre, row in zip(jobs, genres, rows, strict=True)]

    def _genres(self, needed: Sequence[tuple[Source, Fact]]) -> None:
        new = {(source.name, fact.category): (source, fact) for source, fact in needed if (source.name, fact.category) not in self.genres}
        questions = [self.stages.genres(source, fact, self.universes[source.subject]) for source, fact in new.values()]
        for key, (source, _), found in zip(new, new.values(), self.asker.all(questions), strict=True):
            self.own["genres"] += isinstance(found, Failed)
            own = self.stages.prompts.lists["genres_anonymous" if source.anonymous else "genres_named"]
            self.genres[key] = list(own) if isinstance(found, Failed) else found

    def _ideas(self, needed: Sequence[tuple[Source, Fact, str, int]]) -> None:
        """Page after page, because a later page is told what the earlier ones hold."""
        count = self.stages.manner.ideas
        for page in range(1 + max((row // count for *_, row in needed), default=-1)):
            new: dict[tuple[str, str, str, int], tuple[Source, Fact, str]] = {}
            for source, fact, genre, row in needed:
                key = (source.name, fact.category, genre, page)
                if row // count >= page and key not in self.ideas:
                    new[key] = (source, fact, genre)
            places = zip(new, new.values(), strict=True)
            questions = [self.stages.ideas(source, fact, genre, self.universes[source.subject], page, self._earlier(key)) for key, (source, fact, genre) in places]
            for key, found in zip(new, self.asker.all(questions), strict=True):
                self.own["ideas"] += isinstance(found, Failed)
                self.ideas[key] = [self.stages.prompts.texts["ideas_none"]] * count if isinstance(found, Failed) else found

    def _earlier(self, key: tuple[str, str, str, int]) -> list[str]:
        source, category, genre, page = key
        return [idea for before in range(page) for idea in self.ideas[source, category, genre, before]]

    def _idea(self, source: Source, fact: Fact, genre: str, row: int) -> str:
        page, place = divmod(row, self.stages.manner.ideas)
        return self.ideas[source.name, fact.category, genre, page][place]
