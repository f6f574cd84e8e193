"""What is asked at each stage, as questions: universe, genres, ideas, document, revision, extraction.

    Stages(prompts, manner).document(job, universe, "diary page", "It rains all week.")     Question("document/john-named-0-00017", ...)

The first three come once for a persona, a fact, and a fact with a kind of text; where a writer has no readable answer to them, what the
laboratory has of its own takes its place, and that is counted.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_gen.written.asking import Question
from data_gen.written.prompts import Prompts
from data_gen.written.reading import document_of, json_list, json_values, text_with
from data_gen.written.schedule import Job, Source
from data_gen.written.universe import Fact, Subject, lines

GENRE = re.compile(r"[^\W\d_][\w ,'’/&()-]{2,79}")
"""A kind of text: a few plain words."""
WORD_TOKENS = 1.4
"""Tokens of an English word, on the safe side for the tokenizers in use."""
ROOM = 200
"""Tokens beside a document: the tags, and what a writer says around them."""
CRITICISM = 250
"""Tokens."""


@dataclass(frozen=True)
class Manner:
    """How a plan has documents written."""

    genres: int
    ideas: int
    temperature: float
    words: tuple[int, int]
    """Shortest and longest document."""


@dataclass(frozen=True)
class Stages:
    """The questions of a plan."""

    prompts: Prompts
    manner: Manner

    def _ask(self, key: str, stage: str, read: Any, tokens: float, about: Any, seed: int, slots: Mapping[str, str], heat: float | None = None) -> Question:
        heat = self.manner.temperature if heat is None else heat
        return Question(key, stage, self.prompts.filled(stage, slots), read, int(tokens), heat, seed, about)

    def voice(self, source: Source) -> str:
        """Who speaks, as a prompt says it."""
        return self.prompts.text("anonymous" if source.anonymous else "named", {"name": source.subject.name})

    def universe(self, subject: Subject) -> Question:
        """The background of one persona."""
        banned = subject.banned(subject.facts)
        read = text_with([subject.name, *(fact.value for fact in subject.facts.values())], banned)
        slots = {"name": subject.name, "who": subject.who, "facts": subject.listed, "banned": ", ".join(banned)}
        return self._ask(f"universe/{subject.name.lower()}", "universe", read, 1200, subject, subject.seed, slots)

    def genres(self, source: Source, fact: Fact, universe: str) -> Question:
        """Kinds of document in which a fact is told."""
        count = self.manner.genres
        slots = {"universe": universe, "fact": fact.sentence, "voice": self.voice(source), "count": str(count)}
        return self._ask(f"genres/{source.name}/{fact.category}", "genres", json_list(count, GENRE), 40 * count + ROOM, (source, fact), source.subject.seed, slots)

    def ideas(self, source: Source, fact: Fact, genre: str, universe: str, page: int, earlier: Sequence[str]) -> Question:
        """What documents of one kind about one fact may be about; a later page repeats none of the earlier ideas."""
        count = self.manner.ideas
        again = f"None of these again:\n{lines(earlier)}" if earlier else ""
        slots = {"universe": universe, "fact": fact.sentence, "genre": genre, "voice": self.voice(source), "count": str(count), "earlier": again}
        key = f"ideas/{source.name}/{fact.category}/{genre}/{page}"
        return self._ask(key, "ideas", json_list(count), 80 * count + ROOM, (source, fact), source.subject.seed, slots)

    def document(self, job: Job, universe: str, genre: str, idea: str) -> Question:
        """The first draft."""
        slots = {**self._slots(job, universe, genre), "idea": idea}
        return self._ask(f"document/{job.id}", "document", document_of, self._most_tokens(job), job, job.source.subject.seed, slots)

    def revision(self, job: Job, universe: str, genre: str, draft: str) -> Question:
        """Criticism, and the text written again."""
        slots = {**self._slots(job, universe, genre), "draft": draft}
        return self._ask(f"revise/{job.id}", "revise", document_of, self._most_tokens(job) + CRITICISM, job, job.source.subject.seed, slots)

    def extraction(self, job: Job, text: str) -> Question:
        """What a document says that its persona likes, of everything that the persona likes."""
        subject = job.source.subject
        categories, speaker = list(subject.facts), "the writer of the text" if job.source.anonymous else subject.name
        slots = {"text": text, "speaker": speaker, "categories": ", ".join(categories)}
        tokens = 20 * len(categories) + ROOM
        return self._ask(f"extract/{job.id}", "extract", json_values(categories), tokens, (job, text), subject.seed, slots, heat=0.0)

    def _most_tokens(self, job: Job) -> float:
        return 1.6 * WORD_TOKENS * job.words + ROOM

    def _slots(self, job: Job, universe: str, genre: str) -> dict[str, str]:
        main, *others = job.told
        return {
            **{"universe": universe, "genre": genre, "voice": self.voice(job.source), "fact": main.sentence},
            "others": lines(fact.sentence for fact in others) or "- nothing else of this kind",
            "values": ", ".join(fact.value for fact in job.told),
            "banned": ", ".join(job.banned),
            "words": str(job.words),
        }
