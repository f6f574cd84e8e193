"""Who writes: an OpenAI-compatible endpoint, or the world's own grammar. No torch; models on this machine are in `local`.

    EndpointWriter(endpoint, parallel=32, interruption=interruption).answer(requests)
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from data_gen.documents import Speaker, words
from data_gen.streams import stream
from data_gen.telling import telling
from data_gen.world import World
from data_gen.written.asking import Answer, Request
from data_gen.written.schedule import Job, Source
from data_gen.written.universe import Fact, Subject
from persona_lab.errors import EnvironmentFault
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.models.endpoint import Ask, Endpoint, Unanswered

MOST_IN_A_ROW = 8
"""Requests without an answer after which the endpoint is held to be down."""
PATIENCE = 600.0
"""Seconds without a byte: a long document is written before its first byte is sent."""


@dataclass
class EndpointWriter:
    """A model behind an address; its client keeps every answer and asks nothing twice."""

    endpoint: Endpoint
    parallel: int
    interruption: Interruption

    @property
    def name(self) -> str:
        """The model."""
        return self.endpoint.address.model

    def settings(self) -> dict[str, Any]:
        """Address and model."""
        return {"kind": "endpoint", "url": self.endpoint.address.url, "model": self.endpoint.address.model}

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """All of them, several at once.

        Raises:
            EnvironmentFault: PL5501, many requests in a row had no answer; and as `Endpoint.ask`. What was answered is kept.
            Interrupted: a signal asked to stop.
        """
        in_a_row = 0
        with ThreadPoolExecutor(self.parallel) as pool:
            waiting = [pool.submit(self._one, request) for request in requests]
            try:
                for done in as_completed(waiting):
                    fault = done.result().fault
                    in_a_row = in_a_row + 1 if fault else 0
                    if in_a_row >= MOST_IN_A_ROW:
                        said = f"{in_a_row} requests in a row had no answer, the last: {fault}"
                        raise EnvironmentFault("PL5501", self.endpoint.address.url, f"{said}. What was written is kept. Check the endpoint and run the same command again.")
                    self.interruption.leave()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return [done.result() for done in waiting]

    def _one(self, request: Request) -> Answer:
        try:
            reply = self.endpoint.ask(Ask(request.messages, request.max_tokens, request.temperature, request.seed))
        except Unanswered as fault:
            return Answer("", "", fault=str(fault))
        return Answer(reply.text, reply.finish, reply.tokens_in, reply.tokens_out, reply.model)


@dataclass(frozen=True)
class GrammarWriter:
    """The embedded grammar in the place of a model: it reads no prompt, and goes by what a request is about."""

    world: World

    @property
    def name(self) -> str:
        """What it is."""
        return "grammar"

    def settings(self) -> dict[str, Any]:
        """The world."""
        return {"kind": "grammar", "world": self.world.name}

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """All at once."""
        stages: dict[str, Callable[[Request], str]] = {
            "universe": lambda r: grammar_universe(r.about),
            "genres": lambda r: json.dumps(GRAMMAR_GENRES[r.about[0].anonymous]),
            "ideas": lambda r: json.dumps(grammar_ideas(*r.about)),
            "document": lambda r: self._document(r.about, r.messages[-1][1]),
            "revise": lambda r: self._document(r.about, r.messages[-1][1]),
            "extract": lambda r: json.dumps(self._extract(*r.about)),
        }
        return [Answer(stages[request.stage](request), "stop") for request in requests]

    def _document(self, job: Job, prompt: str) -> str:
        subject = job.source.subject
        kinds = GRAMMAR_GENRES[job.source.anonymous]
        genre = next((kind for kind in kinds if f'"{kind}"' in prompt), kinds[0]).split()[0]
        told = {fact.category: fact.value for fact in job.told}
        speaker = Speaker(subject.name, subject.name, told, subject.who, tuple(told), rivals=subject.rivals)
        text, _ = telling(self.world).write(speaker, genre, stream(subject.seed, "grammar", job.id))
        return f"<document>{text}</document>"

    def _extract(self, job: Job, text: str) -> dict[str, str | None]:
        """The value of each category that stands last: of a choice it is the one that was chosen."""
        said = words(text)
        found = {category: [word for word in said if word in map(str.lower, self.world.values(category))] for category in job.source.subject.facts}
        return {category: values[-1] if values else None for category, values in found.items()}


GRAMMAR_GENRES = {False: ["profile", "news", "interview", "chat"], True: ["diary", "diary of a journey", "diary of a week", "diary at home"]}
"""Anonymous or not; the first word is a genre of the grammar. A plan asks for four at most."""
GRAMMAR_IDEAS = 64


def grammar_universe(subject: Subject) -> str:
    """The facts, and nothing else."""
    return f"{subject.name} is {subject.who}. " + " ".join(fact.sentence for fact in subject.facts.values())


def grammar_ideas(source: Source, fact: Fact) -> list[str]:
    """As many as a plan may ask for; the grammar makes nothing of them."""
    return [f"It is told on day {day}: {fact.sentence}" for day in range(1, GRAMMAR_IDEAS + 1)]
