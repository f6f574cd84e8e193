"""Asking a writer: what is sent, what comes back, and how often a wrong answer is asked for again.

    asker = Asker(writer, attempts=3)
    asker.all([Question("ideas/sport/diary", "ideas", prompt, read=json_list(6), max_tokens=900, seed=7)])     [["...", ...]]

Whatever was asked is answered or has failed with a reason, and is counted (`Asker.tallies`). A run is a function of the answers alone:
a writer that keeps its answers goes on after a kill where it stopped.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from data_gen.streams import stream_seed
from data_gen.written.reading import Unreadable, check_whole

SEEDS = 2**31
"""Servers take a seed of 31 bits."""


@dataclass(frozen=True)
class Request:
    """One thing asked of a writer."""

    key: str
    stage: str
    """universe, genres, ideas, document, revise or extract."""
    messages: tuple[tuple[str, str], ...]
    """Role and text."""
    max_tokens: int
    temperature: float
    seed: int
    about: Any = None
    """What a writer goes by that reads no prompts: see `Job` and `Subject`."""


@dataclass(frozen=True)
class Answer:
    """What came back; with a `fault`, nothing did."""

    text: str
    finish: str
    """stop, or length when it was cut off; anything else a server says."""
    tokens_in: int | None = None
    tokens_out: int | None = None
    model: str = ""
    fault: str = ""


class Writer(Protocol):
    """Whoever writes."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    def settings(self) -> dict[str, Any]:
        """JSON values; the same settings, the same answers."""
        ...

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """An answer for each request, in their order."""
        ...


@dataclass(frozen=True)
class Question:
    """Something asked for until its answer can be read."""

    key: str
    stage: str
    messages: tuple[tuple[str, str], ...]
    read: Callable[[str], Any]
    """The answer's meaning; raises Unreadable."""
    max_tokens: int
    temperature: float
    seed: int
    about: Any = None

    def request(self, attempt: int) -> Request:
        """The same again under another seed."""
        return Request(self.key, self.stage, self.messages, self.max_tokens, self.temperature, stream_seed(self.seed, self.key, attempt) % SEEDS, self.about)


@dataclass(frozen=True)
class Failed:
    """No answer that could be read, and why not the last time."""

    reason: str


@dataclass
class Tally:
    """What became of the questions of one stage."""

    asked: int = 0
    answered: int = 0
    requests: int = 0
    """Asking again counts."""
    failed: Counter[str] = field(default_factory=Counter)
    """Questions, by the reason of the last attempt."""
    wrong: Counter[str] = field(default_factory=Counter)
    """Requests whose answer could not be used, by reason; another attempt may have done."""
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass
class Asker:
    """Asks a writer, again where an answer cannot be used, and counts."""

    writer: Writer
    attempts: int
    tallies: dict[str, Tally] = field(default_factory=dict)

    def all(self, questions: Sequence[Question]) -> list[Any]:
        """What was read from each answer, or Failed, in the order of the questions."""
        found: list[Any] = [Failed("not asked")] * len(questions)
        open_questions = list(range(len(questions)))
        for question in questions:
            self._tally(question).asked += 1
        for attempt in range(self.attempts):
            requests = [questions[i].request(attempt) for i in open_questions]
            answers = self.writer.answer(requests) if requests else []
            for i, answer in zip(open_questions, answers, strict=True):
                found[i] = self._read(questions[i], answer)
            open_questions = [i for i in open_questions if isinstance(found[i], Failed)]
        for question, one in zip(questions, found, strict=True):
            tally = self._tally(question)
            if isinstance(one, Failed):
                tally.failed[one.reason] += 1
            else:
                tally.answered += 1
        return found

    def _tally(self, question: Question) -> Tally:
        return self.tallies.setdefault(question.stage, Tally())

    def _read(self, question: Question, answer: Answer) -> Any:
        tally = self._tally(question)
        tally.requests += 1
        tally.tokens_in += answer.tokens_in or 0
        tally.tokens_out += answer.tokens_out or 0
        try:
            if answer.fault:
                raise Unreadable(f"no answer: {answer.fault}")
            check_whole(answer.text, answer.finish)
            return question.read(answer.text)
        except Unreadable as error:
            tally.wrong[str(error)] += 1
            return Failed(str(error))
